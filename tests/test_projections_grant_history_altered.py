"""A history that is not as it was recorded is never told for the truth, and whoever does not ask for it is served."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from api.reading import Reading
from ledger.answers import TokenAnswer
from ledger.recorders.rows import Reads
from ledger.refusals import Unavailable
from projections import INLINE, grant_history
from projections.grant_history import History
from projections.grant_views import grant, grants
from projections.rebuild import rebuild
from projections.reuse_incidents import incidents
from tests.engines import alter
from tests.ledgers import ELSEWHERE, SECURITY, Opened, caller, check_ledger, open_ledger

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]

BODY = "UPDATE events SET body = {}"
NO_TEXT = {
    "sqlite": "CAST(CAST(substr(body, 1, 99) AS BLOB) || x'ff' || CAST(substr(body, 101) AS BLOB) AS TEXT)",
    "postgres": "CAST(overlay(textsend(body) placing '\\xff'::bytea from 100) AS text)",
}


def another(each_store: str) -> str:
    """Another event of the same kind: whatever follows fits it, but for its hash."""
    return BODY.format("replace(body, '\"control\":', '\"control\":1')")


def no_event(each_store: str) -> str:
    return BODY.format("substr(body, 1, 99)")


def no_text(each_store: str) -> str:
    cast = "CREATE CAST (bytea AS text) WITHOUT FUNCTION; " if each_store == "postgres" else ""
    return cast + BODY.format(NO_TEXT[each_store])


def gone(each_store: str) -> str:
    return "DELETE FROM events"


WAYS = [another, no_event, no_text]


async def lived(opened: Opened) -> list[TokenAnswer]:
    """A grant of eight events that a reuse has ended: its tokens."""
    answers = [await opened.issue()]
    for scope in (None, ("read",)):
        opened.clock.pass_seconds(60)
        answers.append(await opened.refresh(answers[-1], scope=scope))
    opened.clock.pass_seconds(60)
    await opened.refused(answers[0], source=ELSEWHERE)
    opened.clock.pass_seconds(60)
    return answers


def change(opened: Opened, statement: str, stream: str, v: int) -> None:
    where = f" WHERE v = {v} AND stream = (SELECT id FROM streams WHERE name = '{stream}')"
    alter(opened.path, statement + where)
    opened.ledger.memory.forget_everything()


async def asked(opened: Opened, question: Callable[[Reads], Any]) -> Any:
    return await Reading(opened.ledger.store, 10).ask(question)


async def told(opened: Opened, grant_id: str, **asked_for: Any) -> History:
    now, asked_for = opened.clock.now, {"limit": 100, "discloses": lambda row: True, **asked_for}
    found: History = await asked(opened, lambda reads: grant_history.history(reads, grant_id, now, **asked_for))
    return found


async def refused(opened: Opened, grant_id: str, **asked_for: Any) -> str:
    with pytest.raises(Unavailable) as caught:
        await told(opened, grant_id, **asked_for)
    return str(caught.value)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("v", [1, 4, 8])
async def test_a_history_with_an_altered_event_is_never_told(
    tmp_path: Path, each_store: str, way: Callable[[str], str], v: int
) -> None:
    """I-14: the first, one between, the last: each event's hash is in the next one, the last one's in the head. Whoever
    asks is told which event it is; others are told as ever, and pages that end before it."""
    async with open_ledger(tmp_path) as opened:
        (first, *_), other = await lived(opened), await opened.issue("bob")
        assert 8 == len((await told(opened, first.grant_id)).events)
        change(opened, way(each_store), f"grant:{first.grant_id}", v)
        expected = f"grant:{first.grant_id}/{v}: what is stored is not what was recorded; rebuild names it"
        assert expected == await refused(opened, first.grant_id)
        assert expected == await refused(opened, first.grant_id, limit=v), "also where a page ends with it"
        assert 1 == len((await told(opened, other.grant_id)).events)
        if v > 2:
            assert v - 2 == len((await told(opened, first.grant_id, limit=v - 2)).events)


@pytest.mark.parametrize("way", WAYS)
async def test_a_state_is_not_told_from_an_altered_event(
    tmp_path: Path, each_store: str, way: Callable[[str], str]
) -> None:
    """What the grant was then follows from all events before, not from those of the page alone; and when it was, from
    those that come next."""
    async with open_ledger(tmp_path) as opened:
        first, *_ = await lived(opened)
        then = opened.clock.now - 100_000_000
        assert (await told(opened, first.grant_id, at=then)).state
        change(opened, way(each_store), f"grant:{first.grant_id}", 2)
        assert f"grant:{first.grant_id}/2: " in await refused(opened, first.grant_id, at=then, after=7)


async def test_a_moment_is_not_found_by_a_time_that_was_altered(tmp_path: Path) -> None:
    """An event that seems to be of later would be left out of the state of then."""
    async with open_ledger(tmp_path) as opened:
        first, *_ = await lived(opened)
        then = opened.clock.now - 100_000_000
        change(opened, BODY.format('replace(body, \'"at":"2026\', \'"at":"2027\')'), f"grant:{first.grant_id}", 5)
        assert f"grant:{first.grant_id}/5: " in await refused(opened, first.grant_id, at=then, limit=1)


@pytest.mark.parametrize("way", WAYS)
async def test_an_epoch_that_was_altered_is_not_told(
    tmp_path: Path, each_store: str, way: Callable[[str], str]
) -> None:
    """The end of a person stands in another stream, and is as much part of the history."""
    async with open_ledger(tmp_path) as opened:
        issued = await opened.issue()
        await opened.ledger.operators.revoke_subject(SECURITY, "alice", "left", None)
        stream = f"subject:{opened.issuance(issued).subject_id}"
        assert ["grant.issued", "subject.revoked"] == [e.topic for e in (await told(opened, issued.grant_id)).events]
        statement = way(each_store).replace("control", "epoch")
        change(opened, statement, stream, 1)
        await refused(opened, issued.grant_id)


def hits_nobody(each_store: str) -> str:
    return BODY.format("replace(body, '\"epoch\":1', '\"epoch\":0')")


def to_come(each_store: str) -> str:
    return BODY.format('replace(body, \'"at":"2026\', \'"at":"2027\')')


def no_time(each_store: str) -> str:
    return BODY.format('replace(body, \'"at":"2026\', \'"at":"202x\')')


@pytest.mark.parametrize("way", [hits_nobody, to_come, no_time, no_event, no_text, gone])
async def test_nothing_is_decided_or_told_by_an_epoch_that_was_altered(
    tmp_path: Path, each_store: str, way: Callable[[str], str]
) -> None:
    """Whose end it was is neither shown as alive nor said to have expired, and nothing of that gets into the log; all
    others are served."""
    async with open_ledger(tmp_path) as opened:
        ended, other = await opened.issue(), await opened.issue("bob")
        await opened.ledger.operators.revoke_subject(SECURITY, "alice", "left", None)
        stream = f"subject:{opened.issuance(ended).subject_id}"
        change(opened, way(each_store), stream, 1)
        opened.ledger.authority.distrust()  # as after a start
        presented = opened.refresh(ended), opened.ledger.operators.explain(ended.refresh_token or "")
        asking = opened.ledger.introspect(caller(), ended.access_token)
        answers = await asyncio.gather(*presented, asking, opened.refresh(other), return_exceptions=True)
        assert [Unavailable] * 3 == [type(each) for each in answers[:3]]
        assert {stream} == {str(each).split("/")[0].partition(": of versions")[0] for each in answers[:3]}
        assert not isinstance(answers[3], BaseException)
        now = opened.clock.now
        with pytest.raises(Unavailable, match="rebuild names"):
            await asked(opened, lambda reads: grant(reads, ended.grant_id, now, lambda row: True))
        await refused(opened, ended.grant_id)
        head = await asked(opened, lambda reads: reads.stream(f"grant:{ended.grant_id}"))
        assert (1, []) == (head.v, opened.fatal)


@pytest.mark.parametrize("kind", ["grant", "client", "subject"])
async def test_no_altered_event_is_replayed_where_a_snapshot_is_gone(tmp_path: Path, kind: str) -> None:
    """Who may write to the database needs no hash for that: the stream is folded anew, and its links are looked at."""
    async with open_ledger(tmp_path) as opened:
        issued = await opened.issue()
        await opened.ledger.operators.revoke_subject(SECURITY, "alice", "left", opened.clock.now - 86_400_000_000)
        issuance = opened.issuance(issued)
        of_kind = {"grant": issuance.stream, "client": "client:www", "subject": f"subject:{issuance.subject_id}"}
        alter(opened.path, f"UPDATE streams SET state = head WHERE name = '{of_kind[kind]}'")
        opened.ledger.memory.forget_everything()
        opened.ledger.authority.distrust()
        issued = await opened.refresh(issued)
        alter(opened.path, f"UPDATE streams SET state = head WHERE name = '{of_kind[kind]}'")
        change(opened, BODY.format('replace(body, \'"at":"2026\', \'"at":"2025\')'), of_kind[kind], 1)
        opened.ledger.authority.distrust()
        with pytest.raises(Unavailable):
            await opened.refresh(issued)


async def test_a_grant_whose_head_is_gone_is_named(tmp_path: Path) -> None:
    """Its row is there, and its events; only nobody knows where they end."""
    async with open_ledger(tmp_path) as opened:
        issued = await opened.issue()
        alter(opened.path, f"DELETE FROM streams WHERE name = 'grant:{issued.grant_id}'")
        assert f"grant:{issued.grant_id}: there are events" in await refused(opened, issued.grant_id)


@pytest.mark.parametrize("way", [no_event, no_text, gone])
@pytest.mark.parametrize("v", range(1, 9))
async def test_an_altered_event_keeps_nobody_else_from_anything(
    tmp_path: Path, each_store: str, way: Callable[[str], str], v: int
) -> None:
    """Whoever presents a token that it tells of cannot be answered, whoever does not is: the store itself is whole."""
    async with open_ledger(tmp_path) as opened:
        tokens, other = await lived(opened), await opened.issue("bob")
        change(opened, way(each_store), f"grant:{tokens[0].grant_id}", v)
        for each in tokens:
            for text in (each.refresh_token, each.access_token):
                assert text is not None
                with contextlib.suppress(Unavailable):
                    await opened.ledger.operators.explain(text)
            assert await opened.ledger.introspect(caller(), each.access_token) is None
            await opened.refused(each)
        await opened.refresh(other)
        assert [] == opened.fatal


@pytest.mark.parametrize("way", [no_event, no_text, gone])
async def test_a_grant_whose_end_was_altered_is_not_shown_as_alive(
    tmp_path: Path, each_store: str, way: Callable[[str], str]
) -> None:
    """I-06: lists, the grant itself and its incidents say what decisions go by, and say it of all others, too."""
    async with open_ledger(tmp_path) as opened:
        (first, *_), other = await lived(opened), await opened.issue("bob")
        change(opened, way(each_store), f"grant:{first.grant_id}", 8)
        now = opened.clock.now
        page = await asked(opened, lambda reads: grants(reads, now, limit=9, discloses=lambda row: True))
        found = {each.grant_id: each.status for each in page.grants}
        assert {first.grant_id: "revoked", other.grant_id: "active"} == found
        alone = await asked(opened, lambda reads: grant(reads, first.grant_id, now, lambda row: True))
        assert ("revoked", "reuse", f"grant:{first.grant_id}/8") == (
            alone.status, alone.end.reason_class, alone.end.event_id,
        )  # fmt: skip
        (incident,) = (await asked(opened, lambda reads: incidents(reads, now, limit=9))).incidents
        assert ("revoked", False) == (incident.alive.status, incident.alive.refresh_token)


@pytest.mark.parametrize("way", [no_event, no_text])
async def test_an_incident_that_was_altered_is_named(
    tmp_path: Path, each_store: str, way: Callable[[str], str]
) -> None:
    """It is not left out, and no other stands for all."""
    async with open_ledger(tmp_path) as opened:
        first, *_ = await lived(opened)
        change(opened, way(each_store), f"grant:{first.grant_id}", 7)
        with pytest.raises(Unavailable, match=f"grant:{first.grant_id}, position .*rebuild names it"):
            await asked(opened, lambda reads: incidents(reads, opened.clock.now, limit=9))


async def test_what_nobody_altered_is_told_on_either_store(tmp_path: Path) -> None:
    """The twin: a history whose links hold is told, page by page, whatever the page."""
    async with open_ledger(tmp_path) as opened:
        first, *_ = await lived(opened)
        for limit in range(1, 9):
            seen, after = 0, 0
            while after < 8:
                seen += len((await told(opened, first.grant_id, after=after, limit=limit)).events)
                after += limit
            assert 8 == seen
    check_ledger(opened.path)


FORGED = [
    ("private_contexts", "address = '192.0.2.1'", {"context", "first_context"}),
    ("private_grants", "device = 'tv'", {"device"}),
    ("private_grants", "session = 's-9'", {"session"}),
    ("private_reasons", "text = 'all is well'", {"reason"}),
]


@pytest.mark.parametrize(("table", "what", "members"), FORGED)
async def test_a_text_that_opens_no_commitment_is_told_to_nobody(
    tmp_path: Path, table: str, what: str, members: set[str]
) -> None:
    """A place, a device or a reason that somebody has put in since: an incident would name another culprit."""
    async with open_ledger(tmp_path) as opened:
        first, *_ = await lived(opened)
        other = await opened.issue("bob", device="phone", session="s-1")
        await opened.act("revoke", other.grant_id, reason="lost")
        before = await disclosed(opened, first.grant_id, other.grant_id)
        alter(opened.path, f"UPDATE {table} SET {what}")  # words of ours alone
        assert before - members == await disclosed(opened, first.grant_id, other.grant_id)
        assert members <= before
        found = await asyncio.to_thread(
            rebuild, opened.store.settled, INLINE, heals_nothing, lookup=opened.ledger.lookup
        )
        assert ({table}, True, False) == ({each.table for each in found.differences}, found.history_holds, found.healed)


async def test_a_name_that_changed_places_is_found(tmp_path: Path) -> None:
    """Whoever asked about a token was told that it is another person's. It stands under a key that the ring alone
    makes."""
    async with open_ledger(tmp_path) as opened:
        await opened.issue()
        whole = partial(rebuild, opened.store.settled, INLINE, heals_nothing, lookup=opened.ledger.lookup)
        assert [] == (await asyncio.to_thread(whole)).differences
        alter(opened.path, "UPDATE private_subjects SET subject = 'bob'")
        [difference] = (await asyncio.to_thread(whole)).differences
        assert ("private_subjects", "subject", None) == (difference.table, difference.column, difference.live)


def heals_nothing(_: object) -> None:
    raise AssertionError("there is nothing to heal")


async def disclosed(opened: Opened, *grant_ids: str) -> set[str]:
    """The members that are opened in any answer."""
    now = opened.clock.now
    found = [event.disclosed for each in grant_ids for event in (await told(opened, each)).events]
    page = await asked(opened, lambda reads: grants(reads, now, limit=9, discloses=lambda row: True))
    found += [each.disclosed for each in page.grants]
    found += [each.disclosed for each in (await asked(opened, lambda reads: incidents(reads, now, limit=9))).incidents]
    return {member for each in found if each for member in each}


@pytest.mark.parametrize(
    ("damage", "member"),
    [
        ("current_tokens_v1 SET issued_at = '2026-11-25X10:00:00.000000Z'", "issued_at"),
        ("current_tokens_v1 SET issued_at = '2026-21-25T10:00:00.000000Z'", "issued_at"),
        ("current_tokens_v1 SET absolute_expires_at = 'never'", "absolute_expires_at"),
        ("streams SET idle_expires_at = -9223372036854775807 WHERE name LIKE 'grant:%'", "idle_expires_at"),
        ("streams SET idle_expires_at = 4611686018427387904 WHERE name LIKE 'grant:%'", "idle_expires_at"),
        ("streams SET last_redeemed_at = -1 WHERE name LIKE 'grant:%'", "last_redeemed_at"),
    ],
)
async def test_a_row_with_a_time_that_is_none_is_named(tmp_path: Path, damage: str, member: str) -> None:
    """One flipped bit is enough. Whoever asks is told whose row it is, as of events; no fault, no other time."""
    async with open_ledger(tmp_path) as opened:
        issued, now = await opened.issue(), opened.clock.now
        await opened.refresh(issued)
        assert alter(opened.path, f"UPDATE {damage}") == 1
        expected = f"grant:{issued.grant_id}: {member} is no time; rebuild names it"
        questions: list[Callable[[Reads], Any]] = [
            lambda reads: grants(reads, now, limit=9, discloses=lambda row: True),
            lambda reads: grant(reads, issued.grant_id, now, lambda row: True),
            lambda reads: grant_history.history(reads, issued.grant_id, now, limit=9, discloses=lambda row: True),
        ]
        for question in questions:
            with pytest.raises(Unavailable, match=expected):
                await asked(opened, question)
        store = opened.ledger.store
        found = await asyncio.to_thread(rebuild, store.settled, INLINE, lambda derive: None)
        assert {member} == {each.column for each in found.differences}


async def test_an_event_with_a_time_that_is_none_is_told_by_nobody(tmp_path: Path) -> None:
    """It can be read, and what follows from it cannot: as an event that cannot be read."""
    async with open_ledger(tmp_path) as opened:
        first, *_ = await lived(opened)
        change(opened, BODY.format('replace(body, \'"at":"2026-\', \'"at":"2026x\')'), f"grant:{first.grant_id}", 8)
        with pytest.raises(Unavailable, match="a time that tells it is none; rebuild names it"):
            await asked(opened, lambda reads: grant(reads, first.grant_id, opened.clock.now, lambda row: True))
