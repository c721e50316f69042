"""What the process remembers between two requests changes no answer and no byte of the store.

The same requests, times and random bytes go to a ledger that remembers, to one that forgets which tokens it handed out,
and to one that forgets everything before each request. Batches that fail, keys that change and people who are erased
are among them.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import msgspec
import pytest

from ledger import commits, redeeming, tokens
from ledger.answers import Caller, Source, TokenAnswer
from ledger.batch import Batch
from ledger.keyring import KeyRing
from ledger.memory import Loaded
from ledger.presenting import Desk
from ledger.recorders.errors import StoreFull
from ledger.refusals import Refused, Unavailable
from tests.faulty_store import FaultyStore, faulty, instead
from tests.ledgers import (
    ELSEWHERE,
    HOME,
    SECURITY,
    START,
    Opened,
    check_ledger,
    client,
    open_ledger,
    with_policy,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]

CLIENTS = (
    client("www"),
    client("app", policy=with_policy("mobile", retry_budget=2)),
    client("old", policy=with_policy("stable")),
    client("spa", auth="none", policy=with_policy("standard", concurrent_seconds=5)),
)
PEOPLE = ("alice", "bob", "carol")
SOURCES = (HOME, ELSEWHERE, *(Source(f"192.0.2.{number}", "app/2") for number in range(20)))


@pytest.fixture(autouse=True)
def by_no_clock_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is asked whether it has healed by the next request, not when the time of day says so."""
    monkeypatch.setattr(commits, "SWEEP_SECONDS", 3_600.0)


Forget = Callable[[Opened], None]


def nothing(opened: Opened) -> None:
    """Remember whatever there is to remember."""


def handed_out(opened: Opened) -> None:
    """Take each token apart when it comes back."""
    opened.ledger.desk.handed_out.clear()


def everything(opened: Opened) -> None:
    """Read each grant from the store."""
    opened.ledger.desk.handed_out.clear()
    opened.ledger.memory.forget_everything()


class World:
    """One course of events: what a number draws next depends on nothing but the number and the answers so far."""

    def __init__(self, opened: Opened, seed: object) -> None:
        self.opened = opened
        self.random = Random(f"world {seed}")
        self.tokens: dict[str, list[tuple[str, str]]] = {}  # of each grant all refresh tokens, each with its client
        self.told: list[object] = []

    def request(self) -> Awaitable[object]:
        """The next request."""
        draw, opened = self.random, self.opened
        acts: dict[Callable[[], Awaitable[object]], float] = {
            self._refresh: 60,
            lambda: opened.issue(draw.choice(PEOPLE), client_id=draw.choice(CLIENTS).client_id): 8,
            lambda: opened.ledger.revoke_token(self._caller(), draw.choice(SOURCES), self._token()[0]): 1,
            lambda: opened.ledger.introspect(self._caller(), self._token()[0]): 3,
            lambda: opened.act(draw.choice(("suspend", "reinstate", "revoke")), draw.choice(list(self.tokens))): 4,
            lambda: opened.ledger.operators.revoke_subject(SECURITY, draw.choice(PEOPLE), None, None): 0.5,
            lambda: opened.ledger.operators.revoke_client(SECURITY, draw.choice(CLIENTS).client_id, None, None): 0.3,
            lambda: opened.ledger.operators.erase(SECURITY, draw.choice(PEOPLE)): 0.5,
            lambda: opened.apply(*CLIENTS[draw.choice((0, 0, 1)) :]): 0.5,
            lambda: opened.ledger.operators.keys_activate(draw.choice((1, 2, 3))): 1,
            lambda: opened.ledger.operators.keys_distrust(draw.choice((1, 2))): 0.1,
        }
        if len(self.tokens) < 3:
            return opened.issue(draw.choice(PEOPLE), client_id=draw.choice(CLIENTS).client_id)
        (act,) = draw.choices(list(acts), list(acts.values()))
        return act()

    def _caller(self, client_id: str | None = None) -> Caller:
        named = client_id or self.random.choice(CLIENTS).client_id
        if named != "spa":
            return Caller(client_id=named, authenticated=True, auth_method="client_secret_post")
        jkt = self.random.choice((None, None, "key"))
        return Caller(client_id=named, authenticated=False, auth_method="none", proof_jkt=jkt)

    def _token(self) -> tuple[str, str]:
        of_grant = self.tokens[self.random.choice(list(self.tokens))]
        return of_grant[-1] if self.random.random() < 0.8 else self.random.choice(of_grant[-4:])

    def _refresh(self) -> Awaitable[object]:
        token, client_id = self._token()
        if self.random.random() < 0.06:
            client_id = self.random.choice(CLIENTS).client_id
        if self.random.random() < 0.03:
            token = token[:-1] + self.random.choice("AB")
        source = self.random.choices((HOME, ELSEWHERE, self.random.choice(SOURCES)), (6, 2, 2))[0]
        return self.opened.ledger.refresh(self._caller(client_id), source, token, None, None)

    def hear(self, answer: object) -> None:
        """Note what was answered, and what can be presented from now on."""
        if isinstance(answer, TokenAnswer):
            self.told.append(msgspec.structs.astuple(answer))
            if answer.refresh_token is not None:
                issued = self.opened.issuance(answer)
                self.tokens.setdefault(answer.grant_id, []).append((answer.refresh_token, issued.client_id))
        elif isinstance(answer, Refused):
            self.told.append((answer.refusal, answer.detail, answer.event_id, answer.retry_after_seconds))
        elif isinstance(answer, BaseException):
            assert isinstance(answer, Unavailable), repr(answer)
            self.told.append("unavailable")
        else:
            self.told.append(repr(answer))


async def course(folder: Path, seed: object, steps: int, forget: Forget) -> tuple[list[object], list[object]]:
    """What all requests of one course are answered, and what the store holds then."""
    async with open_ledger(folder, store=FaultyStore, clients=CLIENTS) as opened:
        if opened.ledger._ticker is not None:
            opened.ledger._ticker.cancel()  # its rounds come by the time of day
        world = World(opened, seed)
        for _ in range(steps):
            forget(opened)
            opened.clock.pass_seconds(world.random.choice((0, 1, 1, 4, 20, 4_000)))
            if world.random.random() < 0.06:
                steps_of_a_batch = (faulty(opened).on_write, faulty(opened).on_commit)
                world.random.choice(steps_of_a_batch).append(instead(StoreFull("no room")))
            together = [world.request() for _ in range(world.random.choice((1, 1, 1, 2, 5)))]
            for answer in await asyncio.gather(*together, return_exceptions=True):
                world.hear(answer)
            opened.ledger.afterwards.record_foreign()
            while opened.ledger.commits._line.somebody_waits():
                await asyncio.sleep(0)
            faulty(opened).on_write.clear()
            faulty(opened).on_commit.clear()
        opened.check_memory()
        named = opened.rows(
            "SELECT count(*) FROM events e JOIN private_grants g ON g.stream = e.stream"
            " WHERE json_extract(e.body, '$.topic') = 'grant.token_redeemed' AND NOT EXISTS (SELECT 1 FROM"
            " private_contexts c WHERE c.stream = e.stream AND c.commitment = json_extract(e.body, '$.context'))"
        )
        assert [(0,)] == named, "an event names a context of a person who is not erased, and it has no row"
        tables = ("events", "streams", "private_grants", "private_contexts", "control")
        stored: list[object] = [opened.rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]
    check_ledger(opened.path)
    return world.told, stored


async def courses(
    folder: Path, seed: object, steps: int, *forgetting: Forget
) -> list[tuple[list[object], list[object]]]:
    """The same course once for each way to forget, with the same keys."""
    keys = KeyRing.new(START).with_new_key(START).with_new_key(START)
    found = []
    for forget in forgetting:
        place = folder / forget.__name__ / "ledger"
        place.mkdir(parents=True)
        keys.save(place / "ledger.keys")
        found.append(await course(place, seed, steps, forget))
        shutil.rmtree(place)
    return found


async def compare(folder: Path, seeds: int) -> None:
    """Assert that it makes no difference what is remembered."""
    for seed in range(seeds):
        remembers, *others = await courses(folder / str(seed), seed, 120, nothing, handed_out, everything)
        for forgetful in others:
            assert remembers == forgetful


async def test_what_is_remembered_changes_no_answer_and_no_byte(
    tmp_path: Path, count: Callable[[int, int], int]
) -> None:
    """I-12: memory is what the store says, whoever asks whatever in whatever order, and whatever fails."""
    await compare(tmp_path, count(4, 100))


def _for_ever(self: Desk, made: tokens.Presented) -> None:
    """Broken: what is remembered of a token is of the grant's next one."""
    next_one = tokens.Presented(made.grant_id, made.generation + 1, made.key_id, None, made.text)
    self.handed_out[made.text[tokens.WHOSE]] = next_one


def _of_any_key(self: Desk, made: tokens.Presented) -> None:
    """Broken: whatever key made a token, it is remembered as made by the first."""
    self.handed_out[made.text[tokens.WHOSE]] = tokens.Presented(made.grant_id, made.generation, 1, None, made.text)


def _whatever_it_is(self: Desk, text: str) -> tokens.Presented | None:
    """Broken: what begins like a token that is remembered passes for it."""
    return self.handed_out.get(text[tokens.WHOSE])


def _never_kept(batch: Batch, loaded: Loaded, source: Source, context: str) -> None:
    """Broken: a source that is not known yet is taken for one that has its row."""
    loaded.keep_context(source, context)


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (Desk, "hand_out", _for_ever),
        (Desk, "hand_out", _of_any_key),
        (Desk, "made", _whatever_it_is),
        (redeeming, "keep_new_context", _never_kept),
    ],
)
async def test_remembering_what_is_not_so_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, broken: object
) -> None:
    """The broken twins of the above."""
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(AssertionError):
        await compare(tmp_path, 4)
