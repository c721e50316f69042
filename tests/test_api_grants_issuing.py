"""Grants that begin over HTTP: first tokens, what does not fit, and one grant for each Idempotency-Key."""

import asyncio
from pathlib import Path

import pytest

from api.grants import canonical
from tests.asking import ASKED, KIOSK, SECOND_ISSUER, asking, bearer
from tests.wire import Json


async def test_issuing_answers_with_first_tokens_and_the_grants_id(tmp_path: Path) -> None:
    """RFC 6749 1.5: 201, the token response, the grant's id."""
    async with asking(tmp_path) as ledger:
        answer = await ledger.operator("issuer", "POST", "/grants", ASKED)
        body = answer.json()
        assert (201, "read openid", 300) == (answer.status_code, body["scope"], body["expires_in"])
        assert 32 == len(body["grant_id"])
        assert str(ledger.opened.last_position()) == answer.headers["ledger-position"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"scope": "read admin"}, "invalid_scope"),
        ({"scope": "read  openid"}, "invalid_scope"),
        ({"client_id": "nobody"}, "invalid_request"),
        ({"subject": ""}, "invalid_request"),
        ({"subject": "a\nb"}, "invalid_request"),
        ({"subject": "x" * 256}, "invalid_request"),
        ({"subject": None}, "invalid_request"),
        ({"subject": 7}, "invalid_request"),
        ({"scope": ["read"]}, "invalid_request"),
        ({"colour": "blue"}, "invalid_request"),
        ({"device": None}, "invalid_request"),
        ({"device": "a\0b"}, "invalid_request"),
        ({"refresh_token_ttl_seconds": 0}, "invalid_request"),
        ({"refresh_token_ttl_seconds": 3600.0}, "invalid_request"),
        ({"refresh_token_ttl_seconds": "3600"}, "invalid_request"),
        ({"refresh_token_ttl_seconds": 86_401}, "invalid_request"),
        ({"grant_ttl_seconds": 30 * 86_400 + 1}, "invalid_request"),
        ({"resource": "https://a.example"}, "invalid_target"),
        ({"resource": []}, "invalid_request"),
        ({"amr": "pwd"}, "invalid_request"),
        ({"cnf": {"jkt": "short"}}, "invalid_request"),
        ({"cnf": {"jkt": "A" * 43 + "\n"}}, "invalid_request"),
        ({"cnf": {"jkt": "A" * 42 + "B"}}, "invalid_request"),
        ({"cnf": {"kid": "x"}}, "invalid_request"),
    ],
)
async def test_what_does_not_fit_is_told_and_issues_nothing(tmp_path: Path, change: Json, error: str) -> None:
    """Bodies are strictly typed; a member that is unknown, null or too long is named."""
    async with asking(tmp_path) as ledger:
        before = ledger.opened.last_position()
        answer = await ledger.operator("issuer", "POST", "/grants", ASKED | change)
        assert (400, error) == (answer.status_code, answer.json()["error"])
        assert before == ledger.opened.last_position()


async def test_the_member_that_does_not_fit_is_named(tmp_path: Path) -> None:
    """A person must find the mistake by reading the answer."""
    async with asking(tmp_path) as ledger:
        for change, name in [({"colour": "blue"}, "colour"), ({"grant_ttl_seconds": "1"}, "grant_ttl_seconds")]:
            answer = await ledger.operator("issuer", "POST", "/grants", ASKED | change)
            assert name in answer.json()["error_description"]


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b"\xff", b'{"subject":"\\ud800"}', b"\xef\xbb\xbf{}", b""])
async def test_what_is_no_json_object_is_an_invalid_request(tmp_path: Path, content: bytes) -> None:
    """RFC 8259."""
    async with asking(tmp_path) as ledger:
        headers = {**bearer("issuer"), "Content-Type": "application/json"}
        answer = await ledger.ask("POST", "/grants", headers=headers, content=content)
        assert (400, "invalid_request") == (answer.status_code, answer.json()["error"])


async def test_lifetimes_given_at_issuance_rule_the_grant_for_good(tmp_path: Path) -> None:
    """A kiosk's ten minutes stay ten minutes, also after the first rotation."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www", refresh_token_ttl_seconds=600, grant_ttl_seconds=3600)
        answer = (await ledger.refresh("www", issued["refresh_token"])).json()
        assert (600, 3600) == (answer["refresh_token_timeout"], answer["authorization_expires_in"])


async def test_the_same_key_and_value_get_the_same_answer(tmp_path: Path) -> None:
    """An issuer that lost the answer asks again: members in another order and other spaces are the same value."""
    async with asking(tmp_path) as ledger:
        key = {**bearer("issuer"), "Idempotency-Key": "k-1"}
        first = await ledger.ask("POST", "/grants", headers=key, json=ASKED)
        turned = '{ "scope":"read openid", "subject": "\\u0061lice",\n"client_id":"www" }'
        headers = {**key, "Content-Type": "application/json"}
        await ledger.refresh("www", first.json()["refresh_token"])
        again = await ledger.ask("POST", "/grants", headers=headers, content=turned)
        assert (201, first.json()["refresh_token"]) == (again.status_code, again.json()["refresh_token"])
        assert first.json()["grant_id"] == again.json()["grant_id"]


async def test_the_same_answer_may_come_when_its_access_token_has_expired(tmp_path: Path) -> None:
    """The key holds while the grant lives, which is longer; no other access token comes in its place."""
    async with asking(tmp_path) as ledger:
        asked = ("issuer", "POST", "/grants", {"client_id": "std", "subject": "alice", "scope": "read"})
        first = await ledger.operator(*asked, headers={"Idempotency-Key": "k"})
        ledger.clock.pass_seconds(86_400)
        again = await ledger.operator(*asked, headers={"Idempotency-Key": "k"})
        tokens = ("access_token", "refresh_token", "grant_id")
        assert [first.json()[name] for name in tokens] == [again.json()[name] for name in tokens]
        assert (201, 300, 0) == (again.status_code, first.json()["expires_in"], again.json()["expires_in"])
        assert first.headers["ledger-position"] == again.headers["ledger-position"]


async def test_one_key_that_comes_many_times_at_once_makes_one_grant(tmp_path: Path) -> None:
    """Also while the first is on its way."""
    async with asking(tmp_path) as ledger:
        headers = {"Idempotency-Key": "k-2"}
        answers = await asyncio.gather(
            *(ledger.operator("issuer", "POST", "/grants", ASKED, headers=headers) for _ in range(20))
        )
        assert 1 == len({answer.content for answer in answers})


async def test_a_key_with_another_body_is_422_and_of_an_ended_grant_409(tmp_path: Path) -> None:
    """A key holds while its grant lives."""
    async with asking(tmp_path) as ledger:
        headers = {"Idempotency-Key": "k-3"}
        first = await ledger.operator("issuer", "POST", "/grants", ASKED, headers=headers)
        other = await ledger.operator("issuer", "POST", "/grants", ASKED | {"subject": "bob"}, headers=headers)
        assert (422, "invalid_request") == (other.status_code, other.json()["error"])
        await ledger.operator("admin", "POST", f"/grants/{first.json()['grant_id']}/revoke")
        ended = await ledger.operator("issuer", "POST", "/grants", ASKED, headers=headers)
        assert (409, "conflict") == (ended.status_code, ended.json()["error"])


@pytest.mark.parametrize("key", [b" k k", b"k k \t", b"\t k k "])
async def test_white_space_around_a_key_is_none_of_it(tmp_path: Path, key: bytes) -> None:
    """RFC 9110 5.5. A server takes it off, a command without a server does not: both are to find the same grant."""
    async with asking(tmp_path) as ledger:
        told = []
        for spelling in (key, b"k k"):
            headers = [(b"authorization", bearer("issuer")["Authorization"].encode()), (b"idempotency-key", spelling)]
            told.append((await ledger.ask("POST", "/grants", headers=headers, json=ASKED)).json()["grant_id"])
        assert 1 == len({*told})


@pytest.mark.parametrize("keys", [[b""], [b" "], [b"x" * 129], [b"a\tb"], [b"\xe9"], [b"a", b"a"]])
async def test_a_malformed_key_is_400(tmp_path: Path, keys: list[bytes]) -> None:
    """1 to 128 printable characters, given once."""
    async with asking(tmp_path) as ledger:
        headers = [(b"authorization", bearer("issuer")["Authorization"].encode())]
        headers += [(b"idempotency-key", key) for key in keys]
        answer = await ledger.ask("POST", "/grants", headers=headers, json=ASKED)
        assert (400, "invalid_request") == (answer.status_code, answer.json()["error"])


def test_equal_values_have_equal_canonical_bytes() -> None:
    """What an Idempotency-Key is compared by."""
    assert canonical(b'{"b": [1, {"d": "\\u00e9", "c": 2}], "a": "x"}') == canonical(
        '{"a":"x","b":[1,{"c":2,"d":"é"}]}'.encode()
    )
    assert canonical(b'{"a":1}') != canonical(b'{"a":"1"}')


async def test_an_issuer_that_is_limited_to_clients_issues_for_them_alone(tmp_path: Path) -> None:
    """403, whoever the other client is."""
    async with asking(tmp_path, more=SECOND_ISSUER) as ledger:
        assert 201 == (await ledger.ask("POST", "/grants", headers=KIOSK, json=ASKED)).status_code
        for client in ("oth", "nobody"):
            answer = await ledger.ask("POST", "/grants", headers=KIOSK, json=ASKED | {"client_id": client})
            assert (403, "insufficient_scope") == (answer.status_code, answer.json()["error"])
