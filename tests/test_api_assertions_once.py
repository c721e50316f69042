"""An assertion (RFC 7523) is good once, and guessing at one is slow, costly and silent."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from joserfc.jwk import Key

from api import assertions
from api.assertions import Assertions, read
from api.remote_keys import RemoteKeys
from ledger.registration import ASSERTION_ALGS
from tests.asking import ISSUER_URL
from tests.assertions import NOW, REFUSED, STRICT, refresh, refused, signing, taken
from tests.ledgers import Clock
from tests.signers import TYPE, Signer, new_key

pytestmark = pytest.mark.anyio


async def test_an_assertion_is_good_once_at_any_endpoint(tmp_path: Path) -> None:
    """V69, CA-5: used up by whatever it was shown for: refresh, revocation, introspection."""
    async with signing(tmp_path) as ledger:
        issued = await ledger.issue("strict")
        token = issued["refresh_token"]
        for path, fields in (
            ("/token", {"grant_type": "refresh_token", "refresh_token": token}),
            ("/introspect", {"token": issued["access_token"]}),
            ("/revoke", {"token": issued["access_token"]}),
        ):
            form = STRICT.form(now=NOW)
            assert 200 == (await ledger.form(path, {**form, **fields})).status_code, path
            for other in ("/token", "/introspect", "/revoke"):
                answer = await ledger.form(
                    other, {**form, "token": token, "grant_type": "refresh_token", "refresh_token": token}
                )
                assert (400, REFUSED) == (answer.status_code, answer.content), (path, other)
                ledger.seconds.now += 1000


async def test_of_many_copies_sent_at_once_one_is_taken(tmp_path: Path, count: Callable[[int, int], int]) -> None:
    """RFC 7523 3: 500 parallel sends of one assertion, and one refresh; then the same after a restart."""
    copies, clock = count(50, 500), Clock()
    assertion = STRICT.assertion(now=NOW)
    async with signing(tmp_path, clock=clock) as ledger:
        token = (await ledger.issue("strict"))["refresh_token"]
        answers = await asyncio.gather(*(refresh(ledger, STRICT, token, assertion) for _ in range(copies)))
        statuses = [answer.status_code for answer in answers]
        assert 1 == statuses.count(200)
        assert {400, 429} >= {*statuses} - {200}
        (successor,) = (answer.json()["refresh_token"] for answer in answers if answer.status_code == 200)
    async with signing(tmp_path, clock=clock, seed=2) as ledger:
        await refused(ledger, STRICT, successor, assertion)
        await taken(ledger, STRICT, successor)


async def test_a_copy_is_refused_to_the_last_second_of_its_life(tmp_path: Path) -> None:
    """CA-5: at expiry and skew less a second, and after; an assertion not used before is taken until then."""
    for seconds, first_is_taken in ((69, True), (70, False)):
        folder = tmp_path / str(seconds)
        folder.mkdir()
        clock = Clock()
        async with signing(folder, clock=clock) as ledger:
            token = (await ledger.issue("strict"))["refresh_token"]
            used, unused = STRICT.assertion(now=NOW), STRICT.assertion(now=NOW)
            token = await taken(ledger, STRICT, token, used)
            clock.pass_seconds(seconds)
            await refused(ledger, STRICT, token, used)
            if first_is_taken:
                await taken(ledger, STRICT, token, unused)
            else:
                await refused(ledger, STRICT, token, unused)


async def test_guessing_is_slowed_down_and_copies_count(tmp_path: Path) -> None:
    """TE-8: like wrong secrets, per client and address; who is slowed down spends nothing."""
    async with signing(tmp_path) as ledger:
        token = (await ledger.issue("strict"))["refresh_token"]
        used = STRICT.assertion(now=NOW)
        token = await taken(ledger, STRICT, token, used)
        for _ in range(5):
            answers = [
                await refresh(ledger, STRICT, token, used),
                await refresh(ledger, STRICT, token, "a.b.c", client_id="strict"),
            ]
            statuses = [answer.status_code for answer in answers]
        assert [400, 429] == statuses
        good = STRICT.assertion(now=NOW)
        slowed = await refresh(ledger, STRICT, token, good)
        assert (429, "temporarily_unavailable") == (slowed.status_code, slowed.json()["error"])
        ledger.seconds.now += 2
        await taken(ledger, STRICT, token, good)


async def test_an_assertion_costs_a_check_whoever_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TE-8: one signature is checked for an unknown client, for one that signs and for one that does not."""
    checked: list[str] = []
    genuine = assertions._is_genuine

    def counted(assertion: assertions.Assertion, key: Key) -> bool:
        checked.append(assertion.algorithm)
        return genuine(assertion, key)

    monkeypatch.setattr(assertions, "_is_genuine", counted)
    async with signing(tmp_path) as ledger:
        for algorithm in ASSERTION_ALGS:
            for name in ("strict", "www", "spa", "nobody"):
                signer = Signer(name, new_key(algorithm), ISSUER_URL, algorithm=algorithm)
                await refused(ledger, signer, "x", signer.assertion(now=NOW))
            assert [algorithm] * 4 == checked
            checked.clear()


async def test_the_operating_side_can_learn_what_was_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At LOG_LEVEL debug one line names the client and the part; of clients that are none there is no line."""
    async with signing(tmp_path) as ledger:
        told = []
        for changes in (
            {"iss": "www"},
            {"sub": None},
            {"sub": "www"},
            {"aud": "x"},
            {"exp": 1},
            {"iat": 1},
            {"nbf": 1e10},
        ):
            caplog.clear()
            with caplog.at_level(logging.DEBUG):
                await refused(ledger, STRICT, "x", STRICT.assertion(changes, now=NOW), client_id="strict")
            told += [vars(each)["fields"] for each in caplog.records if each.message == "assertion_refused"]
        assert ["iss", "sub", "aud", "exp", "iat", "nbf"] == [fields["wrong"] for fields in told]
        assert {"strict"} == {fields["client"] for fields in told}


async def test_nothing_of_an_assertion_is_shown(tmp_path: Path) -> None:
    """I-20: neither the reading nor what is kept of it says what was sent."""
    async with signing(tmp_path) as ledger:
        assertion = read(STRICT.assertion(now=NOW))
        assert assertion is not None
        once = await Assertions(ledger.ledger, RemoteKeys(), issuer=ISSUER_URL, endpoints=()).proven(
            ledger.ledger.authority.client("strict"), assertion
        )
        assert once is not None
        assert assertion.claims.jti not in repr(assertion) + repr(once)
        assert TYPE not in repr(assertion)
