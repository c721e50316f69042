"""Refreshing with DPoP (RFC 9449 5) over a real ledger: what a key binds, and who is refused without it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws
from msgspec.structs import replace

from api.dpop import PROOF_SECONDS_MAX, Proofs
from ledger.answers import Caller
from ledger.grant import Grant
from ledger.minting import mint
from ledger.times import SECOND
from tests.asking import ISSUER_URL, Asking, asking, credentials
from tests.asking_with_proofs import BOUND, KEY, OTHER_KEY, REVOKE, TOKEN, introspected, refresh, shown, told, topics
from tests.proofs import thumbprint

REFUSED = "the token is unknown, expired, revoked, or not for this client"


# ---------------------------------------------------------------- what a proof binds


async def test_a_proof_is_welcome_from_any_client_and_binds_that_access_token(tmp_path: Path) -> None:
    """DP-5, DP-6: `token_type` says DPoP, introspection names the key, and the next refresh may come without one."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        bound = await refresh(ledger, "www", issued["refresh_token"], shown(ledger))
        assert (200, "DPoP") == told(bound)
        about = await introspected(ledger, bound.json()["access_token"])
        assert ("DPoP", BOUND) == (about["token_type"], about["cnf"])
        about = await introspected(ledger, bound.json()["refresh_token"])
        assert (None, None) == (about.get("token_type"), about.get("cnf")), "a confidential client may change keys"
        plain = await refresh(ledger, "www", bound.json()["refresh_token"])
        assert (200, "bearer") == told(plain)
        about = await introspected(ledger, plain.json()["access_token"])
        assert ("bearer", None) == (about["token_type"], about.get("cnf"))


async def test_a_jwt_access_token_names_the_key_too(tmp_path: Path) -> None:
    """RFC 9449 6.1: whoever checks it alone finds `cnf` inside, the same as introspection tells."""
    more = """
[[client]]
id = "jwts"
auth = "none"
scope = "read"
dpop_bound_access_tokens = true
policy = { preset = "standard", access_token_format = "jwt" }
"""
    async with asking(tmp_path, more=more) as ledger:
        issued = await ledger.issue("jwts", scope="read", cnf=BOUND)
        fields = {"grant_type": "refresh_token", "client_id": "jwts", "refresh_token": issued["refresh_token"]}
        answer = await ledger.form("/token", fields, headers={"DPoP": shown(ledger)})
        assert (200, "DPoP") == told(answer)
        for token in (issued["access_token"], answer.json()["access_token"]):
            assert BOUND == json.loads(jws.extract_compact(token.encode()).payload)["cnf"]
            assert ("DPoP", BOUND) == ((about := await introspected(ledger, token))["token_type"], about["cnf"])


async def test_the_event_says_which_key_was_shown(tmp_path: Path) -> None:
    """RFC 9449 6: on record with the redemption, and the answer's binding follows from it."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("dpc")
        await refresh(ledger, "dpc", issued["refresh_token"], shown(ledger))
        redeemed: Any = ledger.opened.events(f"grant:{issued['grant_id']}")[1]
        assert (thumbprint(KEY), thumbprint(KEY), None) == (
            redeemed.proof_jkt, redeemed.cnf_jkt, redeemed.proof_x5t_s256,
        )  # fmt: skip


async def test_a_confidential_client_may_change_keys(tmp_path: Path) -> None:
    """V76, DP-4: its refresh token is bound to its authentication; the access token follows the new key."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("dpc", cnf=BOUND)
        assert "DPoP" == issued["token_type"]
        for key in (KEY, OTHER_KEY):
            answer = await refresh(ledger, "dpc", issued["refresh_token"], shown(ledger, key))
            assert (200, "DPoP") == told(answer)
            about = await introspected(ledger, answer.json()["access_token"])
            assert {"jkt": thumbprint(key)} == about["cnf"]
            issued = answer.json()


async def test_a_public_clients_grant_is_good_with_its_key_alone(tmp_path: Path) -> None:
    """V75, DP-3, I-18: another key reads what everybody reads of an unknown token, and nothing is recorded."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("dpp", cnf=BOUND)
        other = await refresh(ledger, "dpp", issued["refresh_token"], shown(ledger, OTHER_KEY))
        assert (400, {"error": "invalid_grant", "error_description": REFUSED}) == (other.status_code, other.json())
        unknown = await refresh(ledger, "dpp", "rt1_nope", shown(ledger, OTHER_KEY))
        assert other.content == unknown.content
        assert ["issued"] == topics(ledger, issued["grant_id"])
        about = await introspected(ledger, issued["refresh_token"])
        assert (True, BOUND) == (about["active"], about["cnf"])
        right = await refresh(ledger, "dpp", issued["refresh_token"], shown(ledger))
        assert (200, "DPoP") == told(right)


async def test_a_grant_is_bound_at_its_issuance_only(tmp_path: Path) -> None:
    """RFC 9449 5: a public client's grant without `cnf` stays free, whatever is shown; one registered needs it."""
    async with asking(tmp_path) as ledger:
        asked = {"client_id": "dpp", "subject": "alice", "scope": "read"}
        assert (400, "invalid_request") == told(await ledger.operator("issuer", "POST", "/grants", asked))
        issued = await ledger.issue("spa")
        for key in (KEY, OTHER_KEY, None):
            text = None if key is None else shown(ledger, key)
            answer = await refresh(ledger, "spa", issued["refresh_token"], text)
            assert (200, "DPoP" if key else "bearer") == told(answer)
            issued = answer.json()


async def test_a_bound_grant_needs_its_key_though_its_client_is_registered_for_none(tmp_path: Path) -> None:
    """DP-3: what the issuer bound is bound."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("spa", cnf=BOUND)
        for text in (None, shown(ledger, OTHER_KEY)):
            assert (400, "invalid_grant") == told(await refresh(ledger, "spa", issued["refresh_token"], text))
        assert (200, "DPoP") == told(await refresh(ledger, "spa", issued["refresh_token"], shown(ledger)))


@pytest.mark.parametrize("client", ["dpp", "dpn", "dpc"])
async def test_a_client_that_is_registered_to_show_a_key_is_told_when_it_does_not(tmp_path: Path, client: str) -> None:
    """V74, DP-5: whatever its token is worth; the token lives."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue(client, cnf=BOUND)
        assert (400, "invalid_dpop_proof") == told(await refresh(ledger, client, issued["refresh_token"]))
        assert ["issued"] == topics(ledger, issued["grant_id"])


# ---------------------------------------------------------------- the order of checks


async def test_a_proof_is_judged_after_the_tokens_shape_and_before_its_grant(tmp_path: Path) -> None:
    """RFC 9449 5, D5: authentication, parameters and shape first; whose token it is only after the proof."""
    async with asking(tmp_path) as ledger:
        bad = "no.proof.atall"
        token = (await ledger.issue("dpc", cnf=BOUND))["refresh_token"]
        foreign = (await ledger.issue("www"))["refresh_token"]
        flipped = token[:40] + ("A" if token[40] != "A" else "B") + token[41:]
        fields = {"grant_type": "refresh_token", "refresh_token": token}
        headers = {"DPoP": bad}

        async def asked(**changes: str) -> tuple[int, str]:
            return told(await ledger.form("/token", {**fields, **credentials("dpc"), **changes}, headers=headers))

        assert (400, "invalid_client") == await asked(client_secret="wrong")
        assert (400, "unsupported_grant_type") == await asked(grant_type="password")
        assert (400, "invalid_request") == await asked(refresh_token="")
        assert (400, "invalid_grant") == await asked(refresh_token="nope")
        assert (400, "invalid_grant") == await asked(refresh_token=flipped)
        assert (400, "invalid_dpop_proof") == await asked()
        assert (400, "invalid_dpop_proof") == await asked(refresh_token=foreign)
        assert (400, "invalid_dpop_proof") == await asked(scope="admin")
        assert (200, "DPoP") == told(await refresh(ledger, "dpc", token, shown(ledger)))


async def test_two_proofs_are_one_too_many(tmp_path: Path) -> None:
    """DP-1, V78: also where each of them is good."""
    async with asking(tmp_path) as ledger:
        token = (await ledger.issue("www"))["refresh_token"]
        fields = {"grant_type": "refresh_token", "refresh_token": token, **credentials("www")}
        pairs = [(b"dpop", shown(ledger).encode()) for _ in range(2)]
        answer = await ledger.ask("POST", "/token", headers=pairs, data=fields)
        assert (400, "invalid_dpop_proof") == told(answer)
        assert (200, "bearer") == told(await refresh(ledger, "www", token))


async def test_a_proof_for_another_place_or_time_consumes_nothing(tmp_path: Path) -> None:
    """V78, D5: another endpoint, another method, another server, an hour ago."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("dpp", cnf=BOUND)
        for text in (
            shown(ledger, htu=REVOKE),
            shown(ledger, htu="https://other.example/token"),
            shown(ledger, claims={"htm": "GET"}),
            shown(ledger, claims={"iat": ledger.clock.now // SECOND - 3600}),
        ):
            assert (400, "invalid_dpop_proof") == told(await refresh(ledger, "dpp", issued["refresh_token"], text))
        assert ["issued"] == topics(ledger, issued["grant_id"])
        for htu in (TOKEN, f"{ISSUER_URL}/oauth/v2/oauth-token"):
            answer = await refresh(ledger, "dpp", issued["refresh_token"], shown(ledger, htu=htu))
            assert (200, "DPoP") == told(answer)
            issued = answer.json()


# ---------------------------------------------------------------- once


async def test_a_proof_is_taken_once(tmp_path: Path) -> None:
    """RFC 9449 11.1: by its key and for its endpoint, on either path; the second time says so and consumes nothing."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("dpp", cnf=BOUND)
        text = shown(ledger, claims={"jti": "once"})
        newest = (await refresh(ledger, "dpp", issued["refresh_token"], text)).json()
        for again in (
            text,
            shown(ledger, claims={"jti": "once"}),
            shown(ledger, htu=f"{TOKEN}?", claims={"jti": "once"}),
        ):
            answer = await refresh(ledger, "dpp", newest["refresh_token"], again)
            assert (400, "invalid_dpop_proof") == told(answer)
            assert "used before" in answer.json()["error_description"]
        assert ["issued", "token_redeemed", "token_rotated"] == topics(ledger, issued["grant_id"])
        other = await ledger.issue("www")
        right = await refresh(ledger, "www", other["refresh_token"], shown(ledger, OTHER_KEY, claims={"jti": "once"}))
        assert (200, "DPoP") == told(right), "another key's proof may bear the same identifier"
        assert (200, "DPoP") == told(await refresh(ledger, "dpp", newest["refresh_token"], shown(ledger)))


async def test_a_proof_that_admitted_a_refusal_is_used_as_well(tmp_path: Path) -> None:
    """RFC 9449 11.1: what was judged is judged; a new try wants a new proof."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("dpp", cnf=BOUND)
        text = shown(ledger)
        answer = await refresh(ledger, "dpp", issued["refresh_token"], text, scope="admin")
        assert (400, "invalid_scope") == told(answer)
        assert (400, "invalid_dpop_proof") == told(await refresh(ledger, "dpp", issued["refresh_token"], text))
        assert (200, "DPoP") == told(await refresh(ledger, "dpp", issued["refresh_token"], shown(ledger)))


async def test_of_a_hundred_copies_one_is_taken_and_none_after_a_restart(tmp_path: Path) -> None:
    """RFC 9449 11.1, H17: sent at once, and again by whoever has kept a copy, until nobody takes it any more."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("dpp", cnf=BOUND)
        text = shown(ledger)
        answers = await asyncio.gather(*(refresh(ledger, "dpp", issued["refresh_token"], text) for _ in range(100)))
        kinds = [told(answer) for answer in answers]
        assert (1, 99) == (kinds.count((200, "DPoP")), kinds.count((400, "invalid_dpop_proof")))
        assert ["issued", "token_redeemed", "token_rotated"] == topics(ledger, issued["grant_id"])
        (token,) = {answer.json()["refresh_token"] for answer in answers if answer.status_code == 200}
        clock = ledger.clock
    async with asking(tmp_path, clock=clock, seed=2) as ledger:
        for seconds in (0, PROOF_SECONDS_MAX, 10, 1):  # at its last moment, and just after
            clock.pass_seconds(seconds)
            assert (400, "invalid_dpop_proof") == told(await refresh(ledger, "dpp", token, text))
        assert (200, "DPoP") == told(await refresh(ledger, "dpp", token, shown(ledger)))


# ---------------------------------------------------------------- retries and reuse


async def test_a_lost_answer_is_retried_with_a_new_proof_of_the_same_key(tmp_path: Path) -> None:
    """I-03, D2: the identical answer, its position too."""
    async with asking(tmp_path) as ledger:
        for client, key in (("dpp", KEY), ("dpc", OTHER_KEY)):
            issued = await ledger.issue(client, cnf=BOUND)
            first = await refresh(ledger, client, issued["refresh_token"], shown(ledger, key))
            ledger.clock.pass_seconds(30)
            second = await refresh(ledger, client, issued["refresh_token"], shown(ledger, key))
            one, two = first.json(), second.json()
            assert [one["access_token"], one["refresh_token"]] == [two["access_token"], two["refresh_token"]]
            assert first.headers.get("ledger-position") == second.headers.get("ledger-position")


async def test_a_retry_with_another_key_gets_the_same_successor_and_an_access_token_of_its_own(tmp_path: Path) -> None:
    """I-03: of a confidential client, which may change keys; there is never a sibling."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("dpc")
        first = (await refresh(ledger, "dpc", issued["refresh_token"], shown(ledger))).json()
        answers = [
            (await refresh(ledger, "dpc", issued["refresh_token"], shown(ledger, OTHER_KEY))).json() for _ in range(2)
        ]
        assert {first["refresh_token"]} == {answer["refresh_token"] for answer in answers}
        (access,) = {answer["access_token"] for answer in answers}
        assert first["access_token"] != access
        assert {"jkt": thumbprint(OTHER_KEY)} == (await introspected(ledger, access))["cnf"]
        assert BOUND == (await introspected(ledger, first["access_token"]))["cnf"]
        assert 1 == topics(ledger, issued["grant_id"]).count("retry_served")


@pytest.mark.parametrize("generation", [0, 1])
async def test_an_old_token_with_a_wrong_key_ends_nothing(tmp_path: Path, generation: int) -> None:
    """D6, I-18: late retry and fork act on what the owner presents; nobody else ends a grant by what they found."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("dpp", cnf=BOUND)
        tokens = [issued["refresh_token"]]
        for _ in range(2):
            ledger.clock.pass_seconds(100_000)
            answer = await refresh(ledger, "dpp", tokens[-1], shown(ledger))
            tokens.append(answer.json()["refresh_token"])
        ledger.clock.pass_seconds(100_000)
        before = topics(ledger, issued["grant_id"])
        for text in (shown(ledger, OTHER_KEY), shown(ledger, htu=REVOKE), None):
            answer = await refresh(ledger, "dpp", tokens[generation], text)
            assert 400 == answer.status_code
            assert {"error", "error_description"} == set(answer.json())
        assert before == topics(ledger, issued["grant_id"])
        assert (200, "DPoP") == told(await refresh(ledger, "dpp", tokens[2], shown(ledger)))
        ledger.clock.pass_seconds(100)
        answer = await refresh(ledger, "dpp", tokens[generation], shown(ledger))
        assert "reuse_detected" == answer.json()["reason"], "with the right key it is reuse"


async def test_a_bound_public_client_may_retry_as_long_as_an_authenticated_one(tmp_path: Path) -> None:
    """RFC 9700 4.14.2: its key proves who it is: a lost answer is served for a day while the next token is unused."""
    async with asking(tmp_path) as ledger:
        bound, free = await ledger.issue("dpp", cnf=BOUND), await ledger.issue("web")
        first = (await refresh(ledger, "dpp", bound["refresh_token"], shown(ledger))).json()
        await refresh(ledger, "web", free["refresh_token"], shown(ledger))
        ledger.clock.pass_seconds(3600)
        again = await refresh(ledger, "dpp", bound["refresh_token"], shown(ledger))
        assert (200, first["refresh_token"]) == (again.status_code, again.json().get("refresh_token"))
        late = await refresh(ledger, "web", free["refresh_token"], shown(ledger))
        assert "reuse_detected" == late.json()["reason"], "a key that binds nothing proves nothing"


async def test_a_bound_public_client_may_keep_its_token(tmp_path: Path) -> None:
    """RFC 9700 2.2.2: sender-constrained instead of rotated; the same token again and again, with its key alone."""
    more = """
[[client]]
id = "stay"
auth = "none"
scope = "read"
dpop_bound_access_tokens = true
policy = { preset = "stable", on_reuse = "alert" }
"""
    async with asking(tmp_path, more=more) as ledger:
        token = (await ledger.issue("stay", scope="read", cnf=BOUND))["refresh_token"]
        fields = {"grant_type": "refresh_token", "client_id": "stay", "refresh_token": token}
        for key, kind in ((KEY, (200, "DPoP")), (OTHER_KEY, (400, "invalid_grant")), (KEY, (200, "DPoP"))):
            answer = await ledger.form("/token", fields, headers={"DPoP": shown(ledger, key)})
            assert kind == told(answer)
            assert token == answer.json().get("refresh_token", token)


async def test_another_client_is_recorded_with_the_key_that_it_showed(tmp_path: Path) -> None:
    """RFC 6749 10.4: a proof makes no owner of a client that the token is not for; the history says what was shown."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("dpc", cnf=BOUND)
        assert (400, "invalid_grant") == told(await refresh(ledger, "www", issued["refresh_token"], shown(ledger)))
        await asyncio.sleep(0.05)
        event: Any = ledger.opened.events(f"grant:{issued['grant_id']}")[-1]
        assert ("www", thumbprint(KEY)) == (event.presenter_client_id, event.proof_jkt)


# ---------------------------------------------------------------- broken twins


async def key_binds(ledger: Asking) -> None:
    """What a thief of a bound token gets without the key: nothing, in each of the ways in which one may try."""
    issued = await ledger.issue("dpn", cnf=BOUND)
    token = issued["refresh_token"]
    (nonce,) = (await refresh(ledger, "dpn", token, shown(ledger))).headers.get_list("dpop-nonce")
    seen = shown(ledger, nonce=nonce)  # the owner's, which somebody has read on its way
    first = (await refresh(ledger, "dpn", token, seen)).json()
    token = first["refresh_token"]
    assert BOUND == (await introspected(ledger, first["access_token"])).get("cnf")
    for text in (
        None,
        seen,
        shown(ledger, OTHER_KEY, nonce=nonce),
        shown(ledger, nonce=nonce, signed_by=OTHER_KEY),
        shown(ledger, nonce=nonce, htu="https://evil.example/token"),
        shown(ledger, nonce="x" * 24),
    ):
        assert 400 == (await refresh(ledger, "dpn", token, text)).status_code
    answer = await refresh(ledger, "dpn", token, shown(ledger, nonce=nonce))
    assert (200, "DPoP") == told(answer)


def any_key_owns(self: Grant, who: Caller) -> bool:
    return who.client_id == self.client_id


def any_uri(self: Proofs, caller: Caller, text: bytes, target: Any, *, nonce_required: bool) -> Caller:
    return honest_shown(self, caller, text, replace(target, uris=AnyUri()), nonce_required=nonce_required)


class AnyUri(frozenset[str]):
    def __contains__(self, uri: object) -> bool:
        return True


def unbound_mint(*those: Any) -> Any:
    return replace(mint(*those), cnf_jkt=None)


honest_shown = Proofs.shown
TWINS: dict[str, tuple[str, object]] = {
    "the grant is anybody's who names its client": ("ledger.grant.Grant.owned_by", any_key_owns),
    "a proof may be sent twice": ("ledger.single_use._is_spent", lambda *_: False),
    "a proof is good for any URI": ("api.dpop.Proofs.shown", any_uri),
    "any nonce will do": ("api.dpop_nonces.Nonces.accepts", lambda *_: True),
    "a signature is not looked at": ("joserfc.jws.validate_compact", lambda *_, **__: True),
    "the access token is bound to no key": ("ledger.redeem.mint", unbound_mint),
}


async def test_a_key_binds(tmp_path: Path) -> None:
    """The property that the twins below break."""
    async with asking(tmp_path) as ledger:
        await key_binds(ledger)


@pytest.mark.parametrize("twin", TWINS)
async def test_a_ledger_that_binds_nothing_is_caught(
    tmp_path: Path, twin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DP-1, DP-3: each twin leaves one check out."""
    place, broken = TWINS[twin]
    async with asking(tmp_path, checked=False) as ledger:
        with monkeypatch.context() as patched:
            patched.setattr(place, broken)
            with pytest.raises(AssertionError):
                await key_binds(ledger)
