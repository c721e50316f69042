"""Issuing: once for each Idempotency-Key, whenever it comes again, whatever the grant has come to meanwhile."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from ledger.answers import IssueRequest, TokenAnswer
from ledger.clients import Operator
from ledger.recorders.errors import StoreBroken, StoreFull
from ledger.refusals import Refusal, Refused, Unavailable
from tests.faulty_store import FaultyStore, after, faulty, instead
from tests.ledgers import ISSUER, LOCAL_OPERATOR, check_ledger, client, open_ledger, refused, with_policy

pytestmark = pytest.mark.anyio

BODY = b'{"client_id":"www","subject":"alice"}'


def tokens(answer: TokenAnswer) -> tuple[object, ...]:
    return answer.grant_id, answer.refresh_token, answer.access_token, answer.scope, answer.position


async def test_a_new_grant_says_all_that_its_issuer_said(tmp_path: Path) -> None:
    """The first event holds the request, persons and texts only as commitments."""
    async with open_ledger(tmp_path) as opened:
        request = IssueRequest(
            client_id="www", subject="alice", scope=("read", "write"), refresh_token_ttl_seconds=3600,
            grant_ttl_seconds=7200, device="phone", session="s-1", auth_time=1_764_000_000, acr="high",
            amr=("pwd", "otp"),
        )  # fmt: skip
        answer = await opened.ledger.operators.issue(ISSUER, request, None, b"")
        event = opened.issuance(answer)
        assert (3600, 7200, 300) == (
            answer.refresh_token_timeout,
            answer.authorization_expires_in,
            answer.expires_in,
        )
        expected = {
            "scope": ("read", "write"),
            "auth_time": 1_764_000_000,
            "acr": "high",
            "amr": ("pwd", "otp"),
            "v": 1,
        }
        assert expected == {name: getattr(event, name) for name in expected}
        assert "operator:login-app" == event.issued_by
        assert 64 == len(event.device or "") == len(event.session or "") == len(event.nonce_sha256)
        assert answer.position == opened.last_position()
    check_ledger(opened.path)


async def test_the_same_key_and_body_get_the_same_answer(tmp_path: Path) -> None:
    """An issuer that lost the answer asks again: generation 0, also when the grant has moved on."""
    async with open_ledger(tmp_path) as opened:
        first = await opened.issue(key="k", body=BODY)
        assert tokens(first) == tokens(await opened.issue(key="k", body=BODY))
        await opened.chain(first, 3)
        again = await opened.issue(key="k", body=BODY)
        assert tokens(first) == tokens(again)
        assert first.expires_in - 3 == again.expires_in
        assert [(1,)] == opened.rows("SELECT count(*) FROM private_grants")
    check_ledger(opened.path)


async def test_ten_at_once_make_one_grant(tmp_path: Path) -> None:
    """While the first is on its way, in its own batch and in the next."""
    async with open_ledger(tmp_path) as opened:
        first = [asyncio.ensure_future(opened.issue(key="k", body=BODY)) for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second = [asyncio.ensure_future(opened.issue(key="k", body=BODY)) for _ in range(5)]
        answers = await asyncio.gather(*first, *second)
        assert 1 == len({tokens(answer) for answer in answers})
    assert 1 == check_ledger(opened.path).topics["grant.issued"]


async def test_after_a_crash_the_same_key_finds_its_grant(tmp_path: Path) -> None:
    """COMMIT was durable and the process died: the answer was lost, the key was not (I-10)."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        faulty(opened).on_commit.append(after(StoreBroken("the database failed: SQLITE_IOERR")))
        with pytest.raises(Unavailable):
            await opened.issue(key="k", body=BODY)
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        answer = await opened.issue(key="k", body=BODY)
        await opened.refresh(answer)
        assert [(1,)] == opened.rows("SELECT count(*) FROM private_grants")
    assert 1 == check_ledger(opened.path).topics["grant.issued"]


async def test_a_key_whose_issuance_failed_is_free(tmp_path: Path) -> None:
    """The twin of the test above: nothing was durable, so nothing is remembered."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        faulty(opened).on_commit.append(instead(StoreFull("no room")))
        with pytest.raises(Unavailable):
            await opened.issue(key="k", body=BODY)
        await opened.issue(key="k", body=b"another")
    assert 1 == check_ledger(opened.path).topics["grant.issued"]


async def test_a_key_that_was_refused_is_free(tmp_path: Path) -> None:
    """A refusal records nothing, the key neither."""
    async with open_ledger(tmp_path) as opened:
        assert Refusal.INVALID_SCOPE is await refused(opened.issue(key="k", body=BODY, scope=("admin",)))
        await opened.issue(key="k", body=b"another")
    check_ledger(opened.path)


async def test_another_body_under_the_same_key_is_refused(tmp_path: Path) -> None:
    """422, in the first one's own batch and an hour later."""
    async with open_ledger(tmp_path) as opened:
        first, second = await asyncio.gather(
            opened.issue(key="k", body=BODY), opened.issue(key="k", body=b"{}"), return_exceptions=True
        )
        assert isinstance(first, TokenAnswer)
        assert isinstance(second, Refused)
        assert Refusal.UNPROCESSABLE is second.refusal
        opened.clock.pass_seconds(3600)
        assert Refusal.UNPROCESSABLE is await refused(opened.issue(key="k", body=b"{}"))
    check_ledger(opened.path)


async def test_each_operator_has_keys_of_its_own(tmp_path: Path) -> None:
    """What one calls k is nobody else's k."""
    async with open_ledger(tmp_path) as opened:
        request = IssueRequest(client_id="www", subject="alice", scope=("read",))
        other = Operator(name="other", enabled=True, roles=("issuer",))
        first = await opened.ledger.operators.issue(ISSUER, request, "k", BODY)
        second = await opened.ledger.operators.issue(other, request, "k", BODY)
        assert first.grant_id != second.grant_id
    check_ledger(opened.path)


@pytest.mark.parametrize("how", ["revoked", "expired", "epoch"])
async def test_the_key_of_an_ended_grant_is_a_conflict(tmp_path: Path, how: str) -> None:
    """409, however it ended, whether or not an event of its own says so."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue(key="k", body=BODY)
        match how:
            case "revoked":
                await opened.act("revoke", answer.grant_id)
            case "expired":
                opened.clock.pass_seconds(31 * 86400)
            case _:
                await opened.ledger.operators.revoke_client(LOCAL_OPERATOR, "www", None, None)
        assert Refusal.CONFLICT is await refused(opened.issue(key="k", body=BODY))


async def test_the_key_of_a_suspended_grant_still_holds(tmp_path: Path) -> None:
    """It lives: it may be reinstated."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue(key="k", body=BODY)
        await opened.act("suspend", answer.grant_id)
        assert tokens(answer) == tokens(await opened.issue(key="k", body=BODY))


async def test_neither_key_nor_body_nor_token_is_in_the_files(tmp_path: Path) -> None:
    """I-20: keyed hashes only, and nothing from which a token could be made."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue(key="order-4711-of-alice", body=BODY)
        everything = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.name != "ledger.keys")
        for text in ("order-4711-of-alice", BODY.decode(), answer.refresh_token or "", answer.access_token):
            assert text.encode() not in everything


@pytest.mark.parametrize(
    ("member", "value", "refusal"),
    [
        ("client_id", "nobody", Refusal.INVALID_REQUEST),
        ("scope", ("read", "admin"), Refusal.INVALID_SCOPE),
        ("resource", ("https://elsewhere.example",), Refusal.INVALID_TARGET),
        ("refresh_token_ttl_seconds", 31 * 86400, Refusal.INVALID_REQUEST),
        ("grant_ttl_seconds", 0, Refusal.INVALID_REQUEST),
        ("subject", "", Refusal.INVALID_REQUEST),
        ("subject", "a\nb", Refusal.INVALID_REQUEST),
        ("subject", "a" * 256, Refusal.INVALID_REQUEST),
    ],
)
async def test_what_may_not_be_issued_leaves_nothing(
    tmp_path: Path, member: str, value: object, refusal: Refusal
) -> None:
    """A refusal records nothing."""
    async with open_ledger(tmp_path) as opened:
        before = opened.last_position()
        request = msgspec.structs.replace(
            IssueRequest(client_id="www", subject="alice", scope=("read",)), **{member: value}
        )
        assert refusal is await refused(opened.ledger.operators.issue(ISSUER, request, "k", BODY))
        assert before == opened.last_position()
        assert [] == opened.rows("SELECT * FROM private_grants")
        assert [] == opened.rows("SELECT * FROM private_subjects")
        opened.check_memory()


async def test_an_issuer_for_some_clients_issues_for_no_other(tmp_path: Path) -> None:
    """403 before anything is said about that client."""
    async with open_ledger(tmp_path, clients=[client(), client("other")]) as opened:
        limited = Operator(name="shop", enabled=True, roles=("issuer",), clients=("www",))
        request = IssueRequest(client_id="other", subject="alice", scope=("read",))
        assert Refusal.FORBIDDEN is await refused(opened.ledger.operators.issue(limited, request, None, b""))
        await opened.ledger.operators.issue(limited, msgspec.structs.replace(request, client_id="www"), None, b"")


async def test_without_refresh_tokens_the_key_still_gives_the_same_answer(tmp_path: Path) -> None:
    """`off`: an access token and no refresh token, today and on the retry."""
    off = client(policy=with_policy(refresh_token_ttl_seconds=0))
    async with open_ledger(tmp_path, clients=[off]) as opened:
        first = await opened.issue(key="k", body=BODY)
        assert (None, None) == (first.refresh_token, first.refresh_token_timeout)
        assert ["issued", "refresh_token_withheld"] == opened.topics(first)
        assert tokens(first) == tokens(await opened.issue(key="k", body=BODY))
    check_ledger(opened.path)


async def test_a_grant_is_never_older_than_the_latest_before_of_its_client(tmp_path: Path) -> None:
    """Epochs decide in two numbers: a clock that was put back must not issue into the past (I-16)."""
    async with open_ledger(tmp_path) as opened:
        old = await opened.issue("alice")
        opened.clock.pass_seconds(100)
        await opened.ledger.operators.revoke_client(LOCAL_OPERATOR, "www", None, opened.clock.now)
        opened.clock.pass_seconds(-1000)
        new = await opened.issue("alice")
        assert Refusal.REVOKED_BY_OPERATOR is (await opened.refused(old)).refusal
        await opened.refresh(new)
    check_ledger(opened.path)
