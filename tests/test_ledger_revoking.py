"""Giving a token back, and asking about it: only its owner may, with the key that the grant is bound to (I-18)."""

from pathlib import Path
from typing import Any

import pytest

from ledger import tokens
from ledger.answers import Caller, IssueRequest, TokenAnswer
from ledger.refusals import Refusal, Refused
from tests.ledgers import HOME, ISSUER, LOCAL_OPERATOR, Opened, caller, client, open_ledger, refused

KEY, OTHER_KEY = "k" * 43, "o" * 43
PUBLIC = client("spa", auth="none")


def holder(jkt: str | None = None, x5t: str | None = None) -> Caller:
    """The public client, and the key that it shows."""
    return Caller(client_id="spa", authenticated=False, auth_method="none", proof_jkt=jkt, proof_x5t_s256=x5t)


async def bound(opened: Opened, **members: Any) -> TokenAnswer:
    """A grant of the public client, bound to a key."""
    request = IssueRequest(client_id="spa", subject="alice", scope=("read",), **members)
    return await opened.ledger.operators.issue(ISSUER, request, None, b"{}")


def token(answer: TokenAnswer, kind: str) -> str:
    """One of an answer's tokens."""
    text = answer.access_token if kind == "access" else answer.refresh_token
    assert text is not None
    return text


@pytest.mark.parametrize("kind", ["access", "refresh"])
@pytest.mark.parametrize(
    ("members", "stranger", "owner"),
    [
        ({"bound_jkt": KEY}, holder(), holder(KEY)),
        ({"bound_jkt": KEY}, holder(OTHER_KEY), holder(KEY)),
        ({"bound_jkt": KEY}, holder(x5t=KEY), holder(KEY)),
        ({"bound_x5t_s256": KEY}, holder(), holder(x5t=KEY)),
        ({"bound_jkt": KEY, "bound_x5t_s256": KEY}, holder(KEY), holder(KEY, KEY)),
    ],
)
async def test_a_bound_grant_is_the_key_holders(
    tmp_path: Path, kind: str, members: dict[str, str], stranger: Caller, owner: Caller
) -> None:
    """I-18: a thief of a bound token names the public client and can end nothing, and learns nothing."""
    async with open_ledger(tmp_path, clients=[PUBLIC]) as opened:
        answer = await bound(opened, **members)
        presented = token(answer, kind)
        assert await opened.ledger.introspect(stranger, presented) is None
        with pytest.raises(Refused) as refused:
            await opened.ledger.revoke_token(stranger, HOME, presented)
        assert Refusal.UNKNOWN_TOKEN is refused.value.refusal
        assert ["issued"] == opened.topics(answer)
        assert await opened.ledger.introspect(owner, presented) is not None
        await opened.ledger.revoke_token(owner, HOME, presented)
        assert await opened.ledger.introspect(owner, presented) is None
        assert 2 == len(opened.topics(answer))


async def test_a_bound_token_of_a_distrusted_key_is_active(tmp_path: Path) -> None:
    """Its holder may still refresh it, so it is; an unbound one is refused, so it is not (RFC 7662 2.2)."""
    async with open_ledger(tmp_path, clients=[PUBLIC]) as opened:
        of_key, of_anyone = await bound(opened, bound_jkt=KEY), await bound(opened)
        await opened.ledger.operators.keys_activate(await opened.ledger.operators.keys_rotate())
        await opened.ledger.operators.keys_distrust(1)
        assert await opened.ledger.introspect(holder(KEY), token(of_key, "refresh")) is not None
        assert await opened.ledger.introspect(LOCAL_OPERATOR, token(of_key, "refresh")) is not None
        assert await opened.ledger.introspect(holder(), token(of_anyone, "refresh")) is None


@pytest.mark.parametrize("who", [caller("www"), caller("oth")])
async def test_a_wrong_secret_makes_an_unknown_token(tmp_path: Path, who: Caller) -> None:
    """RV-4: a token that never was is no error, whoever sends it, and ends nothing."""
    async with open_ledger(tmp_path, clients=[client("www"), client("oth")]) as opened:
        answer = await opened.issue()
        forged = tokens.derive(opened.ledger.desk.ring, 1, answer.grant_id, 0, bytes(32))
        await opened.ledger.revoke_token(who, HOME, forged)
        assert ["issued"] == opened.topics(answer)


async def test_a_stranger_is_not_told_that_a_grant_has_ended(tmp_path: Path) -> None:
    """I-18: whoever gives another's access token back is refused once its grant is over as they were before."""
    async with open_ledger(tmp_path, clients=(client(), client("other"))) as opened:
        answer = await opened.issue()
        for _ in range(2):
            revoking = opened.ledger.revoke_token(caller("other"), HOME, answer.access_token)
            assert Refusal.UNKNOWN_TOKEN is await refused(revoking)
            await opened.act("revoke", answer.grant_id)
        await opened.ledger.revoke_token(caller(), HOME, answer.access_token)
