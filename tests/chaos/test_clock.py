"""Clocks that jump: no token comes back to life, no history runs backwards, nobody honest pays for it (I-16)."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ledger.answers import TokenAnswer
from ledger.events import GrantEvent, GrantExpired
from ledger.grant import Grant
from ledger.private import PrivateGrant
from ledger.refusals import Refusal, Refused
from tests.chaos.chains import Chain, faults_of
from tests.chaos.files import report
from tests.chaos.load import Load
from tests.chaos.processes import TroubledServer
from tests.ledgers import Opened, check_ledger, open_ledger
from tests.server_process import eventually
from tests.wire import Answer

SECOND, HOUR, DAY = 1, 3_600, 86_400
JUMPS_SECONDS = [sign * size for size in (SECOND, HOUR, 20 * DAY, 400 * DAY) for sign in (1, -1)]
IDLE_SECONDS = 30 * DAY
BUDGET = 3
GENERATIONS_OF_A_BUDGET = 10

Dead = list[tuple[str, TokenAnswer]]


async def check_a_jump(opened: Opened, jump_seconds: int) -> None:
    """There and back again: what was alive lives as long as its dates say, what was dead stays dead at every moment."""
    dead: Dead = []
    quiet = await opened.chain(await opened.issue(), 3)
    used = await opened.chain(await opened.issue(), 3)
    revoked = await opened.chain(await opened.issue(), 2)
    await opened.act("revoke", revoked.grant_id)
    dead.append(("revoked", revoked))
    stolen = await opened.issue()
    newest = await opened.chain(stolen, 3, every_seconds=61)
    assert Refusal.REUSE_DETECTED == (await opened.refused(stolen)).refusal
    dead += [("retired", stolen), ("of a family that was ended", newest)]
    await none_lives(opened, dead)

    opened.clock.pass_seconds(jump_seconds)
    await none_lives(opened, dead)
    if jump_seconds > IDLE_SECONDS:
        assert Refusal.EXPIRED_IDLE == (await opened.refused(used)).refusal
        dead.append(("expired", used))
    else:
        used = await opened.chain(used, 2)
    await none_lives(opened, dead)

    opened.clock.pass_seconds(-jump_seconds)
    await none_lives(opened, dead)
    if jump_seconds <= IDLE_SECONDS:
        used = await opened.chain(used, 2)
    quiet = await opened.chain(quiet, 2)  # it was not there while the clock was wrong, and has lost nothing


async def none_lives(opened: Opened, dead: Dead) -> None:
    """Present every dead token."""
    for why, answer in dead:
        try:
            await opened.refresh(answer)
        except Refused:
            continue
        raise AssertionError(f"a token lives again that was {why}")


@pytest.mark.parametrize("jump_seconds", JUMPS_SECONDS)
async def test_a_jump_and_back_revives_nothing(tmp_path: Path, jump_seconds: int) -> None:
    """From one second to 400 days, forwards and backwards, with the ledger's own clock."""
    async with open_ledger(tmp_path) as opened:
        await check_a_jump(opened, jump_seconds)
    check_ledger(tmp_path / "ledger.db")


async def test_an_expiry_that_a_clock_takes_back_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: a grant that was told to be expired, and forgets it; its nonce is kept by mistake, too."""
    evolve = Grant.evolve

    def forgetful(self: Grant, event: GrantEvent) -> None:
        if not isinstance(event, GrantExpired):
            evolve(self, event)
        else:
            self.v, self.at = event.v, self.at

    monkeypatch.setattr(Grant, "evolve", forgetful)
    monkeypatch.setattr(PrivateGrant, "without_nonce", lambda self: self)
    async with open_ledger(tmp_path) as opened:
        with pytest.raises(AssertionError, match="a token lives again that was expired"):
            await check_a_jump(opened, 400 * DAY)


async def generations_stolen(opened: Opened) -> int:
    """Let somebody who has every token one step late live beside its owner; how many steps they go together."""
    previous = await opened.refresh(await opened.issue())
    opened.clock.pass_seconds(-2 * HOUR)
    for steps in range(GENERATIONS_OF_A_BUDGET):
        current = await opened.refresh(previous)
        try:
            assert current.refresh_token == (await opened.refresh(previous)).refresh_token
        except Refused:
            return steps
        previous = current
    return GENERATIONS_OF_A_BUDGET


async def test_a_clock_that_was_put_back_opens_no_window_for_ever(tmp_path: Path) -> None:
    """While the clock is behind the grant's own time no window ends: so every retry counts, and they run out."""
    async with open_ledger(tmp_path) as opened:
        assert BUDGET == await generations_stolen(opened)
    check_ledger(tmp_path / "ledger.db")


async def test_a_clock_that_goes_right_bounds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the one above: retries at once, from one place, do not count where time is what it was."""
    async with open_ledger(tmp_path) as opened:
        monkeypatch.setattr(opened.clock, "pass_seconds", lambda seconds: None)
        assert GENERATIONS_OF_A_BUDGET == await generations_stolen(opened)


# -- the clock of a running server -------------------------------------------------------------------------------------


class JumpingServer(TroubledServer):
    """A server whose wall clock is put forwards and backwards while it serves."""

    def __init__(self, folder: Path, library: Path) -> None:
        folder.mkdir(parents=True)
        self._clock = folder / "clock"
        self.jump_to(0)
        super().__init__(
            folder,
            settings={"LOG_LEVEL": "info"},
            variables={
                "LD_PRELOAD": str(library),
                "FAKETIME_TIMESTAMP_FILE": str(self._clock),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            },
        )

    def jump_to(self, seconds: int) -> None:
        """Let the clock be so far ahead of everybody else's."""
        aside = self._clock.with_suffix(".new")
        aside.write_text(f"{seconds:+d}\n")
        aside.replace(self._clock)

    def checked(self, raw: bytes, answer: Answer) -> Answer:
        """Nothing that depends on the time."""
        assert answer.status != 500, answer.body
        if answer.status == 200 and b'"refresh_token"' in answer.body:
            body = answer.json()
            self.tokens |= {body["access_token"], body["refresh_token"]}
        return answer


@pytest.fixture
def faketime(full: bool) -> Path:
    if not full:
        pytest.skip("the clock of a running server jumps with --full")
    places = [
        *Path("/usr/lib").glob("*/faketime/libfaketime.so.1"),
        *Path("/usr/lib/faketime").glob("libfaketime.so.1"),
    ]
    if not places:
        pytest.skip("no libfaketime here (Debian's package libfaketime)")
    return places[0]


def wait_for(load: Load, refreshes: int) -> None:
    """Until there were more."""
    eventually(lambda: load.refreshes > refreshes, what="work")


def test_the_clock_of_a_server_jumps_under_load(faketime: Path, tmp_path: Path) -> None:
    """Twenty jumps there and back: nobody honest is refused, and what has ended stays so, whatever the time."""
    server = JumpingServer(tmp_path / "server", faketime)
    try:
        server.start()
        # One sender each: beside a clock that was put back even retries from one place count, and run out.
        chains = [Chain(server, server.issue(client)) for client in ("std", "mob", "keep", "std") * 8]
        over = ended(server)
        for jump in [seconds for seconds in JUMPS_SECONDS if abs(seconds) < IDLE_SECONDS] * 3 + [-400 * DAY] * 2:
            with Load(chains) as load:
                for seconds in (jump, 0):
                    before = load.refreshes
                    server.jump_to(seconds)
                    time.sleep(0.3)
                    stay_over(server, over)
                    wait_for(load, before + len(chains))
                load.stop()
            report(faults_of(chains))
        server.jump_to(400 * DAY)
        refused = [server.refresh(chain.grant.client, chain.token) for chain in chains]
        assert {(400, "expired_idle")} == {(answer.status, answer.json().get("reason")) for answer in refused}
        server.jump_to(0)
        stay_over(server, [(chain.grant.client, chain.token) for chain in chains])
        assert 0 == server.terminate(), server.tail()
        check_ledger(server.database)
    finally:
        server.kill()


def ended(server: TroubledServer) -> list[tuple[str, str]]:
    """Tokens that are over: retired, reused, revoked; each with its client."""
    found = []
    for client in ("www", "std", "mob"):
        grant = server.issue(client)
        newest = server.refresh(client, grant.refresh_token).json()["refresh_token"]
        assert 200 == server.revoke(client, newest).status
        found += [(client, grant.refresh_token), (client, newest)]
    grant = server.issue("www")
    newest = server.refresh("www", grant.refresh_token).json()["refresh_token"]
    assert "reuse_detected" == server.refresh("www", grant.refresh_token).json()["reason"]
    return [*found, ("www", grant.refresh_token), ("www", newest)]


def stay_over(server: TroubledServer, over: Sequence[tuple[str, str]]) -> None:
    """Present them all."""
    for client, token in over:
        assert 400 == server.refresh(client, token).status, f"a token of {client} lives again"
