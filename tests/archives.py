"""Trials of the archive: a ledger with a past, every question that it can be asked, and a twin that was archived.

`past` makes a history by chance and remembers every token that was ever given. `answers` asks whatever changes
nothing, `presented` presents every token again. What is asked of a ledger and of its archived twin must come to the
same (I-23).
"""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, get_args

import msgspec
import pytest

from ledger import archiving, copying, movable, moving, segments, times, withholding
from ledger.answers import GrantAct
from ledger.archiving import Report
from ledger.clients import LOCAL_OPERATOR
from ledger.recorders import postgres_archive
from ledger.refusals import Refused
from ledger.standing import Status
from projections import grant_history, grant_views, reuse_incidents
from tests.engines import back_up, url_of
from tests.ledgers import ELSEWHERE, HOME, SECURITY, Clock, Opened, caller, client, open_ledger, with_policy
from tests.sign_ins import app, exchanged, sign_in

__all__ = ["Given", "answers", "archive", "past", "presented", "reopened", "twin"]

DAY = 86_400
PEOPLE = ("ann", "bob", "eve", "joe")
CLIENTS = (
    client("www"),
    client("reuse", policy=with_policy("stable")),
    client("alert", policy=with_policy("standard", on_reuse="suspend", access_token_format="jwt")),
    app(),
)
ACTS = (
    "issue", "issue", "sign in", "refresh", "refresh", "refresh", "refresh", "refresh", "narrow", "retry", "older",
    "stray", "operate", "give back", "person", "client", "erase",
)  # fmt: skip


class Given(msgspec.Struct):
    """What clients hold: refresh tokens of each grant in the order of their making, access tokens, codes."""

    grants: dict[str, str] = {}
    refresh: dict[str, list[str]] = {}
    access: list[tuple[str, str]] = []
    codes: list[str] = []

    def answer(self, client_id: str, grant_id: str, refresh: str | None, access: str) -> None:
        """Note what a token response gave."""
        self.grants[grant_id] = client_id
        mine = self.refresh.setdefault(grant_id, [])
        if refresh is not None and refresh not in mine:
            mine.append(refresh)
        if (client_id, access) not in self.access:
            self.access.append((client_id, access))


SMALL = (
    (movable, "PART_EVENTS_MIN", 4),
    (movable, "STREAMS_A_PAGE", 3),
    (segments, "BLOCK_BYTES", 3_000),
    (postgres_archive, "PAGE_BYTES", 300),
    (copying, "EVENTS_A_SEGMENT", 40),
    (moving, "EVENTS_A_STEP", 9),
    (withholding, "PIECES_A_STEP", 3),
    (archiving, "PAUSE_SECONDS", 0),
)
"""Blocks of few events, segments of few blocks, steps of few pieces: so a short past has many of each."""


@pytest.fixture
def made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Archive in small pieces."""
    for module, name, value in SMALL:
        monkeypatch.setattr(module, name, value)


async def past(opened: Opened, chance: Random, acts: int, given: Given | None = None) -> Given:
    """A history by chance: grants issued and signed in to, used, retried, attacked, stopped and ended by all means.
    What clients hold already is `given`."""
    given = given or Given()
    for _ in range(acts):
        opened.clock.pass_seconds(chance.choice((1, 5, 61, 3600, DAY, 3 * DAY)))
        with contextlib.suppress(Refused):
            await _act(opened, given, chance, chance.choice(ACTS))
        await _recorded(opened)
    opened.clock.pass_seconds(120)
    await opened.ledger.afterwards.flush_presentations(opened.clock.now)
    return given


async def _recorded(opened: Opened) -> None:
    """Let what is recorded after an answer be recorded before the next question: else it is a matter of luck."""
    opened.ledger.afterwards.record_foreign()
    await opened.ledger.commits.submit(lambda batch: None)


async def _act(opened: Opened, given: Given, chance: Random, act: str) -> None:
    person, before = chance.choice(PEOPLE), chance.choice((None, opened.clock.now - chance.randrange(9) * DAY * 10**6))
    operators, grant_id = opened.ledger.operators, chance.choice([*given.grants][-6:] or [""])
    if act == "issue" or (not grant_id and act not in ("sign in", "person")):
        client_id = chance.choice(("www", "reuse", "alert"))
        answer = await opened.issue(person, client_id=client_id)
        given.answer(client_id, answer.grant_id, answer.refresh_token, answer.access_token)
    elif act == "sign in":
        code = await sign_in(opened, person)
        given.codes.append(code.code)
        if chance.random() < 0.7:
            answer = await exchanged(opened, code)
            given.answer("app", answer.grant_id, answer.refresh_token, answer.access_token)
    elif act in ("refresh", "narrow", "retry", "older", "stray"):
        await _present(opened, given, chance, grant_id, act)
    elif act == "operate":
        what = chance.choice(get_args(GrantAct))
        trust = "current" if what == "reinstate" else None
        await operators.act_on_grant(SECURITY, grant_id, what, chance.choice((None, "as asked")), trust)
    elif act == "give back":
        client_id, access = chance.choice(given.access)
        mine = given.refresh[grant_id]
        who, token = chance.choice(((client_id, access), (given.grants[grant_id], mine[-1])))
        await opened.ledger.revoke_token(caller(who), HOME, token)
    elif act == "person" and chance.random() < 0.5:
        await operators.revoke_subject(SECURITY, person, "left", before)
    elif act == "client" and chance.random() < 0.15:
        await operators.revoke_client(SECURITY, chance.choice(("www", "app")), None, before)
    elif act == "erase" and chance.random() < 0.15:
        await operators.erase(LOCAL_OPERATOR, person)


async def _present(opened: Opened, given: Given, chance: Random, grant_id: str, act: str) -> None:
    mine, client_id = given.refresh[grant_id], given.grants[grant_id]
    source = chance.choice((HOME, HOME, ELSEWHERE))
    token = (
        mine[-1] if act in ("refresh", "narrow", "stray") else mine[-2:][0] if act == "retry" else chance.choice(mine)
    )
    if act == "stray":
        client_id = chance.choice(("www", "app"))
    for _ in range(chance.choice((1, 1, 6)) if act == "refresh" else 1):
        scope = ("read",) if act == "narrow" else None
        answer = await opened.refresh(token, client_id=client_id, source=source, scope=scope)
        given.answer(client_id, answer.grant_id, answer.refresh_token, answer.access_token)
        token = answer.refresh_token or token
        opened.clock.pass_seconds(1)


@asynccontextmanager
async def reopened(folder: Path, clock: Clock, seed: str = "again") -> AsyncIterator[Opened]:
    """The ledger of a folder that has a past, with chance of its own."""
    async with open_ledger(folder, clock=Clock(clock.now), seed=seed, clients=None) as opened:
        assert opened.ledger._ticker is not None
        opened.ledger._ticker.cancel()  # it goes by the real clock: two runs would not come to the same
        yield opened


def twin(folder: Path) -> Path:
    """A copy of a closed ledger's folder, beside it; the same name, of which its chance depends."""
    copy = folder.parent / "twins" / str(len(list(folder.parent.glob("twins/*")))) / folder.name
    shutil.copytree(folder, copy)
    if url_of(folder / "ledger.db") is not None:
        back_up(folder / "ledger.db", copy / "ledger.db")
    return copy


async def archive(opened: Opened, before: int | None = None, withhold_before: int | None = None) -> Report:
    """Archive what happened before a moment, or all that may move."""
    return await opened.ledger.archiving.run(opened.clock.now + 1 if before is None else before, withhold_before)


def _moments(opened: Opened) -> Iterator[int]:
    """Some moments to ask about: of events, and right after them."""
    times_ = sorted({event.at for event in everything(opened)})
    for at in times_[:: max(1, len(times_) // 4)]:
        yield times.micros(at)
        yield times.micros(at) + 1


async def answers(opened: Opened, given: Given, *, moments: bool = True) -> dict[str, Any]:
    """Every question that changes nothing, and its answer; about past `moments` too."""
    found = await asyncio.to_thread(_looked_at, opened, given, moments=moments)
    for token in (*(each for mine in given.refresh.values() for each in mine), *given.codes):
        found[f"explain {token}"] = await opened.ledger.operators.explain(token)
    for client_id, token in given.access:
        found[f"explain {token}"] = await opened.ledger.operators.explain(token)
        found[f"introspect {token}"] = await opened.ledger.introspect(caller(client_id), token)
    for grant_id, mine in given.refresh.items():
        for token in mine:
            found[f"introspect {token}"] = await opened.ledger.introspect(caller(given.grants[grant_id]), token)
    return {question: _plain(answer) for question, answer in found.items()}


def _looked_at(opened: Opened, given: Given, *, moments: bool) -> dict[str, Any]:
    """Lists, histories and incidents. In a thread, as the server asks: a loop that stands still seems frozen."""
    found: dict[str, Any] = {}
    now = opened.clock.now
    with opened.store.reader() as reads:
        for state in (None, *get_args(Status)):
            page = grant_views.grants(reads, now, state=state, limit=1000, discloses=lambda _: True)
            found[f"grants {state}"] = page
        found["incidents"] = reuse_incidents.incidents(reads, now, limit=1000)
        asked = list(_moments(opened)) if moments else []
        for grant_id in given.grants:
            found[f"grant {grant_id}"] = grant_views.grant(reads, grant_id, now, lambda _: True)
            for limit in (3, 1000):
                found[f"history {grant_id} by {limit}"] = list(_pages(reads, grant_id, now, limit))
            for at in asked:
                told = grant_history.history(reads, grant_id, now, at=at, limit=2, discloses=lambda _: True)
                found[f"history {grant_id} at {at}"] = told
    return found


def _pages(reads: Any, grant_id: str, now: int, limit: int) -> Iterator[Any]:
    after = 0
    while True:
        page = grant_history.history(reads, grant_id, now, after=after, limit=limit, discloses=lambda _: True)
        yield page
        if page is None or page.next_cursor is msgspec.UNSET:
            return
        after = int(page.cursor)


async def presented(opened: Opened, given: Given, chance: Random) -> list[Any]:
    """Present every token and code again, by its client and by a stranger, in an order by chance; what came of each."""
    asked = [(given.grants[id], token) for id, mine in given.refresh.items() for token in mine]
    asked += [
        ("app" if client_id != "app" else "www", token) for client_id, token in chance.sample(asked, len(asked) // 3)
    ]
    chance.shuffle(asked)
    found = []
    for client_id, token in asked:
        opened.clock.pass_seconds(chance.choice((0, 1, 5)))
        try:
            found.append(_plain(await opened.refresh(token, client_id=client_id)))
        except Refused as refused:
            found.append([refused.refusal.value, refused.event_id, refused.counts])
        await _recorded(opened)
    for code in given.codes:
        try:
            found.append(_plain(await exchanged(opened, code)))
        except Refused as refused:
            found.append([refused.refusal.value, refused.event_id, refused.counts])
    return found


def differing(expected: list[Any], found: list[Any]) -> dict[str, Any]:
    """Where two lists of answers and outcomes differ: question → both."""
    differ: dict[str, Any] = {}
    for stage, (one, other) in enumerate(zip(expected, found, strict=True)):
        if isinstance(one, list):
            one, other = dict(enumerate(one)), dict(enumerate(other))
        for question in one.keys() | other.keys():
            if one.get(question) != other.get(question):
                differ[f"{stage} {question}"] = one.get(question), other.get(question)
    return differ


def _plain(answer: Any) -> Any:
    return msgspec.to_builtins(answer)


def everything(opened: Opened) -> list[Any]:
    """Every event, in the archive or not, stream by stream."""
    with opened.store.reader() as reads:
        names = [str(name) for (name,) in reads.select("SELECT name FROM streams ORDER BY id")]
        return [msgspec.json.decode(each.body, type=_At) for name in names for each in reads.events(name, 1, 1_000_000)]


class _At(msgspec.Struct):
    at: str
