"""What a token is, in one word and plain words: exactly what its owner would meet, and nothing changed by asking."""

from pathlib import Path

import pytest

from ledger import access_tokens, grant_state, times, tokens
from ledger.answers import Caller, Explanation, IssueRequest, TokenAnswer
from ledger.explaining import UNKNOWN
from tests.engines import back_up, put_back
from tests.ledgers import HOME, ISSUER, LOCAL_OPERATOR, SECURITY, Opened, caller, check_ledger, client, open_ledger
from tests.scenario_commands import policy

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


async def explained(opened: Opened, token: str | TokenAnswer | None) -> Explanation:
    """Ask, and see that asking changed nothing."""
    text = token.refresh_token if isinstance(token, TokenAnswer) else token
    before = opened.last_position()
    explanation = await opened.ledger.operators.explain(text or "")
    assert before == opened.last_position()
    assert (text or "?") not in explanation.text
    return explanation


async def test_the_current_token_and_its_predecessors(tmp_path: Path) -> None:
    """current, retry while its windows last, retired after, and further back."""
    async with open_ledger(tmp_path) as opened:
        first = await opened.issue()
        second = await opened.chain(first, 1)
        last = await opened.chain(second, 1)
        verdicts = [(await explained(opened, answer)).verdict for answer in (first, second, last)]
        assert ["retired", "retry", "current"] == verdicts
        retired = await explained(opened, first)
        assert (0, 2, "rotated") == (retired.generation, retired.current_generation, retired.reason)
        assert opened.grant_events(first)[2].event_id == retired.event_id
        opened.clock.pass_seconds(86_401)
        assert "retired" == (await explained(opened, second)).verdict
        assert "current" == (await explained(opened, last)).verdict
    check_ledger(opened.path)


@pytest.mark.parametrize("seconds", [0, 9, 11, 59, 61, 3_600, 86_401])
async def test_a_retry_is_one_exactly_when_it_would_be_served(tmp_path: Path, seconds: float) -> None:
    """What is said on the phone is what happens next."""
    async with open_ledger(tmp_path) as opened:
        first = await opened.issue()
        await opened.refresh(first)
        opened.clock.pass_seconds(seconds)
        verdict = (await explained(opened, first)).verdict
        if verdict == "retry":
            await opened.refresh(first)
        else:
            assert ("retired", "reuse_detected") == (verdict, (await opened.refused(first)).refusal.value)


async def test_a_retry_is_none_once_the_budget_is_used_up(tmp_path: Path) -> None:
    """Three retries that count in ten generations; the next one, in its window, is a late one all the same."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        for _ in range(3):
            before, answer = answer, await opened.refresh(answer)
            opened.clock.pass_seconds(20)
            assert "retry" == (await explained(opened, before)).verdict
            await opened.refresh(before)
            assert "retry" == (await explained(opened, before)).verdict, "one generation as often as its window lasts"
        await opened.refresh(answer)
        opened.clock.pass_seconds(20)
        assert "retired" == (await explained(opened, answer)).verdict
        assert "reuse_detected" == (await opened.refused(answer)).refusal.value
    check_ledger(opened.path)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("revoke", ("revoked", "revoked_by_operator", "operator:soc")),
        ("suspend", ("suspended", "suspended", "operator:soc")),
        ("give back", ("revoked", "revoked_by_client", "client:www")),
        ("subject", ("revoked", "revoked_by_subject", "operator:soc")),
        ("client", ("revoked", "revoked_by_operator", "operator:soc")),
        ("erase", ("revoked", "revoked_by_subject", "ledger:erase")),
        ("idle", ("expired", "expired_idle", None)),
        ("reuse", ("revoked", "reuse_detected", "ledger:reuse")),
    ],
)
async def test_what_is_over_says_since_when_why_and_by_whom(
    tmp_path: Path, how: str, expected: tuple[str, str, str | None]
) -> None:
    """The owner's reason, the event that made it so, and who asked for that."""
    async with open_ledger(tmp_path) as opened:
        first = await opened.issue()
        answer = await opened.chain(first, 3, every_seconds=100)
        opened.clock.pass_seconds(1)
        match how:
            case "revoke" | "suspend":
                await opened.act(how, answer.grant_id)
            case "give back":
                await opened.ledger.revoke_token(caller(), HOME, answer.refresh_token or "")
            case "subject":
                await opened.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
            case "client":
                await opened.ledger.operators.revoke_client(SECURITY, "www", None, None)
            case "erase":
                await opened.ledger.operators.erase(LOCAL_OPERATOR, "alice")
            case "idle":
                opened.clock.pass_seconds(31 * 86_400)
            case _:
                await opened.refused(first)
        found = await explained(opened, answer)
        assert expected == (found.verdict, found.reason, found.by)
        assert found.at is not None
        refusal = await opened.refused(answer)
        assert expected[1] == refusal.refusal.value
        if found.event_id is not None:
            assert found.event_id == refusal.event_id
        access = await explained(opened, answer.access_token)
        assert ("access_token_inactive", expected[2]) == (access.verdict, access.by)
        if how != "idle":  # which leaves access tokens alone: this one had expired long before
            assert (found.at, found.event_id) == (access.at, access.event_id)
    check_ledger(opened.path)


@pytest.mark.parametrize("how", ["revoke", "suspend"])
async def test_an_access_token_that_its_grant_took_along_is_not_said_to_have_expired(tmp_path: Path, how: str) -> None:
    """Until when a thief could use it is the earlier of the two, whenever that is asked."""
    async with open_ledger(tmp_path) as opened:
        kept, ended = await opened.issue(), await opened.issue()
        expires = times.text(opened.clock.now + 300 * times.SECOND)
        opened.clock.pass_seconds(299)
        await opened.act("revoke" if how == "revoke" else "suspend", ended.grant_id)
        since = times.text(opened.clock.now)
        opened.clock.pass_seconds(2)
        await opened.act("revoke", kept.grant_id)
        opened.clock.pass_seconds(3600)
        found = await explained(opened, ended.access_token)
        assert since == found.at
        assert f"since {since}, by operator:soc." in found.text
        expired = await explained(opened, kept.access_token)
        assert (expires, f"An access token that expired at {expires}.") == (expired.at, expired.text)


async def test_what_its_grants_end_did_is_not_put_down_to_the_clock(tmp_path: Path) -> None:
    """I-16: the grant ended after the token had expired, and then the clock was put back to when it had not."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        opened.clock.pass_seconds(400)
        await opened.act("suspend", answer.grant_id)
        since = times.text(opened.clock.now)
        opened.clock.pass_seconds(-300)
        found = await explained(opened, answer.access_token)
        assert (since, f"An access token of a grant that is suspended since {since}, by operator:soc.") == (
            found.at, found.text,
        )  # fmt: skip
    check_ledger(opened.path)


@pytest.mark.parametrize("how", ["subject", "suspend"])
async def test_what_stops_an_access_token_is_told_also_where_the_refresh_token_was_idle_too_long(
    tmp_path: Path, how: str
) -> None:
    """The idle end leaves access tokens alone, a suspension before it and an epoch after it do not."""
    async with open_ledger(tmp_path, clients=[client(policy=policy(refresh_token_ttl_seconds=60))]) as opened:
        answer = await opened.issue()
        opened.clock.pass_seconds(30)
        since = times.text(opened.clock.now)
        if how == "suspend":
            await opened.act("suspend", answer.grant_id)
        opened.clock.pass_seconds(60)
        if how == "subject":
            assert "access_token_active" == (await explained(opened, answer.access_token)).verdict
            since = times.text(opened.clock.now)
            await opened.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        found = await explained(opened, answer.access_token)
        verdict, refusal = ("revoked", "revoked_by_subject") if how == "subject" else ("suspended", "suspended")
        text = f"An access token of a grant that is {verdict} since {since}, by operator:soc."
        assert (refusal, since, text) == (found.reason, found.at, found.text)
    check_ledger(opened.path)


async def test_access_tokens(tmp_path: Path) -> None:
    """Active until its expiry; given back, expired, or of an event that minted none."""
    async with open_ledger(tmp_path) as opened:
        first = await opened.issue()
        second = await opened.refresh(first)
        assert "access_token_active" == (await explained(opened, second.access_token)).verdict
        await opened.ledger.revoke_token(caller(), HOME, first.access_token)
        given_back = await explained(opened, first.access_token)
        assert ("access_token_inactive", "revoked_by_client") == (given_back.verdict, given_back.reason)
        assert f"An access token that was given back at {given_back.at}, by client:www." == given_back.text
        opened.clock.pass_seconds(-60)
        ahead = await explained(opened, second.access_token)
        assert "access_token_inactive" == ahead.verdict
        assert "which lies ahead: the clock was put back since" in ahead.text
        opened.clock.pass_seconds(60)
        opened.clock.pass_seconds(300)
        expired = await explained(opened, second.access_token)
        assert "access_token_inactive" == expired.verdict
        assert "expired" in expired.text


@pytest.mark.parametrize("later", ["nothing", "another given back", "grant revoked", "person's end", "expired", "all"])
async def test_an_access_token_that_was_given_back_says_when_whatever_comes_later(tmp_path: Path, later: str) -> None:
    """The earliest of what ended it, with the event that says so: also once the token would have expired, and once the
    grant does not remember it by itself any more."""
    async with open_ledger(tmp_path) as opened:
        first = await opened.issue()
        last = await opened.chain(first, 3, every_seconds=20)
        opened.clock.pass_seconds(20)
        await opened.ledger.revoke_token(caller(), HOME, first.access_token)
        said = opened.grant_events(first)[-1]
        opened.clock.pass_seconds(20)
        if later in ("expired", "another given back", "all"):
            opened.clock.pass_seconds(600)
        if later in ("another given back", "all"):
            last = await opened.refresh(last)
            opened.clock.pass_seconds(1)
            await opened.ledger.revoke_token(caller(), HOME, last.access_token)
        if later in ("person's end", "all"):
            await opened.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        if later == "grant revoked":
            await opened.act("revoke", first.grant_id)
        found = await explained(opened, first.access_token)
        assert (said.at, said.event_id, "revoked_by_client", "client:www") == (
            found.at, found.event_id, found.reason, found.by,
        )  # fmt: skip
        assert f"An access token that was given back at {said.at}, by client:www." == found.text
    check_ledger(opened.path)


async def test_an_access_token_that_expired_first_is_not_put_down_to_its_grants_end(tmp_path: Path) -> None:
    """The words and the members tell one story: no reason, and the event that set the expiry."""
    async with open_ledger(tmp_path) as opened:
        first = await opened.issue()
        expires = times.text(opened.clock.now + 300 * times.SECOND)
        await opened.chain(first, 2)
        opened.clock.pass_seconds(298.86)
        await opened.refused(first)
        found = await explained(opened, first.access_token)
        assert (expires, None, None, opened.issuance(first).event_id) == (
            found.at, found.reason, found.by, found.event_id,
        )  # fmt: skip
        assert f"An access token that expired at {expires}." == found.text
    check_ledger(opened.path)


async def test_an_access_token_that_counts_as_given_back_says_no_more_than_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where too many were given back at once those issued before them are over, too, and no event says when."""
    monkeypatch.setattr(grant_state, "REVOKED_ACCESS_TOKENS_MAX", 1)
    async with open_ledger(tmp_path) as opened:
        first = await opened.issue()
        second = await opened.chain(first, 1)
        for answer in (second, await opened.chain(second, 1)):
            await opened.ledger.revoke_token(caller(), HOME, answer.access_token)
        found = await explained(opened, first.access_token)
        assert ("revoked_by_client", None, None) == (found.reason, found.at, found.event_id)
        assert "An access token that is over since it, or a later one, was given back, by client:www." == found.text


async def test_whatever_is_none_of_ours_is_unknown(tmp_path: Path) -> None:
    """Garbage and forged secrets: one answer, whoever made it."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.refresh(await opened.issue())
        ring = opened.ledger.desk.ring
        for text in (
            "",
            "nonsense",
            f"rt1_{'A' * 72}",
            tokens.derive(ring, 1, answer.grant_id, 1, bytes(32)),
            access_tokens.derive(ring, 1, answer.grant_id, 2, bytes(32)),
            access_tokens.derive(ring, 1, answer.grant_id, 999, bytes(32)),
        ):
            assert UNKNOWN == await explained(opened, text)


async def test_what_was_made_here_and_lost_is_not_said_to_be_none_of_ours(tmp_path: Path) -> None:
    """I-15: after an older backup was put back the log may know nothing of a genuine token's grant or event; nobody is
    to be told that it was not made here, and a suspension for it says why."""
    async with open_ledger(tmp_path) as opened:
        kept, clock = await opened.issue(), opened.clock
    back_up(opened.path, tmp_path / "backup")
    async with open_ledger(tmp_path, clock=clock, seed=2, clients=None) as opened:
        moved, lost = await opened.refresh(kept), await opened.issue("bob")
    put_back(tmp_path / "backup", opened.path)
    async with open_ledger(tmp_path, clock=clock, seed=3, clients=None) as opened:
        await opened.ledger.operators.restore_acknowledge()
        for text in (lost.refresh_token, lost.access_token, moved.access_token):
            found = await explained(opened, text)
            assert ("unknown", True) == (found.verdict, "events were lost" in found.text)
            assert found.grant_id in (kept.grant_id, lost.grant_id)
        await opened.refused(moved)
        found = await explained(opened, kept)
        assert f"suspended since {found.at}, because a genuine token came that is ahead of the log" in found.text


async def test_white_space_around_a_token_is_ignored(tmp_path: Path) -> None:
    """Here alone: people paste."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        assert "current" == (await opened.ledger.operators.explain(f"\n  {answer.refresh_token}\t\n")).verdict


async def test_a_distrusted_key_is_named(tmp_path: Path) -> None:
    """Refused for its key alone: `retired`, reason `key_distrusted`, and the event that said so; a current token of a
    client that authenticates is rotated, so it is current."""
    async with open_ledger(tmp_path, clients=[client(), client("app", auth="none")]) as opened:
        own, public = await opened.issue(), await opened.issue(client_id="app")
        newer = await opened.refresh(own)
        await opened.ledger.operators.keys_activate(await opened.ledger.operators.keys_rotate())
        await opened.ledger.operators.keys_distrust(1)
        event_id = opened.events("keys")[-1].event_id
        for token in (own, public):
            found = await explained(opened, token)
            assert ("retired", "key_distrusted", event_id) == (found.verdict, found.reason, found.event_id)
        assert "current" == (await explained(opened, newer)).verdict
        await opened.refresh(newer)
    check_ledger(opened.path)


async def test_a_token_ahead_of_the_log(tmp_path: Path) -> None:
    """Genuine, and of a generation that the log never had (I-15)."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        ((nonce,),) = opened.rows("SELECT nonce FROM private_grants")
        assert isinstance(nonce, bytes)
        ahead = tokens.derive(opened.ledger.desk.ring, 1, answer.grant_id, 5, nonce)
        assert "ahead" == (await explained(opened, ahead)).verdict
        assert "suspended" == (await opened.refused(ahead)).refusal.value
        assert "suspended" == (await explained(opened, ahead)).verdict
    check_ledger(opened.path)


async def test_a_disabled_clients_token_says_so(tmp_path: Path) -> None:
    """It is refused now, and nothing of the grant's own says why."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        await opened.apply(client("other"))
        found = await explained(opened, answer)
        assert ("suspended", "client_disabled") == (found.verdict, found.reason)
        assert "disabled" in found.text
        access = await explained(opened, answer.access_token)
        assert ("access_token_inactive", "client_disabled") == (access.verdict, access.reason)
        await opened.apply(client())
        assert "current" == (await explained(opened, answer)).verdict


async def test_a_distrusted_key_comes_before_the_log(tmp_path: Path) -> None:
    """What a stolen key made of an older generation is refused for the key, and nothing is held to be lost."""
    async with open_ledger(tmp_path) as opened:
        first = await opened.issue()
        last = await opened.chain(first, 1)
        await opened.ledger.operators.keys_rotate()
        await opened.ledger.operators.keys_distrust(2)
        nonce = opened.rows("SELECT nonce FROM private_grants")[0][0]
        assert isinstance(nonce, bytes)
        for generation, expected in ((0, "retired"), (1, "ahead")):
            made = tokens.derive(opened.ledger.desk.ring, 2, first.grant_id, generation, nonce)
            assert expected == (await explained(opened, made)).verdict
        made = tokens.derive(opened.ledger.desk.ring, 2, first.grant_id, 0, nonce)
        assert "key_distrusted" == (await opened.refused(made)).refusal.value
        await opened.refresh(last)
    check_ledger(opened.path)


async def test_a_bound_token_of_a_distrusted_key_is_current(tmp_path: Path) -> None:
    """Its holder may still refresh it."""
    async with open_ledger(tmp_path, clients=[client("spa", auth="none")]) as opened:
        request = IssueRequest(client_id="spa", subject="alice", scope=("read",), bound_jkt="k" * 43)
        answer = await opened.ledger.operators.issue(ISSUER, request, None, b"{}")
        await opened.ledger.operators.keys_activate(await opened.ledger.operators.keys_rotate())
        await opened.ledger.operators.keys_distrust(1)
        assert "current" == (await explained(opened, answer)).verdict
        holder = Caller(client_id="spa", authenticated=False, auth_method="none", proof_jkt="k" * 43)
        await opened.ledger.refresh(holder, HOME, answer.refresh_token or "", None, None)
    check_ledger(opened.path)
