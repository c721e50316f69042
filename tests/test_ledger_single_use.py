"""Single-use identifiers: one of many copies is taken, whatever is decided with it, and wherever the store fails."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from ledger import single_use
from ledger.answers import Caller, TokenAnswer
from ledger.application import Options
from ledger.batch import Batch
from ledger.recorders.errors import LostRace, StoreBusy, StoreError, StoreFull
from ledger.refusals import Refusal, Refused, Unavailable
from ledger.single_use import SingleUse, SingleUseKind
from ledger.times import SECOND
from tests.faulty_store import Fault, FaultyStore, after, faulty, instead
from tests.ledgers import HOME, START, Opened, caller, client, open_ledger

pytestmark = pytest.mark.anyio


def identifier(
    text: str = "jti-1", *, owner: str = "www", kind: SingleUseKind = "assertion", seconds: int = 70
) -> SingleUse:
    return SingleUse(kind=kind, owner=owner, identifier=text, expires_at=START + seconds * SECOND)


def showing(*those: SingleUse, client_id: str = "www") -> Caller:
    return msgspec.structs.replace(caller(client_id), single_use=those)


async def refresh(opened: Opened, token: str | TokenAnswer | None, *those: SingleUse) -> TokenAnswer:
    text = token.refresh_token if isinstance(token, TokenAnswer) else token
    assert text is not None
    return await opened.ledger.refresh(showing(*those), HOME, text, None, None)


async def used(opened: Opened, token: TokenAnswer, *those: SingleUse) -> str | None:
    with pytest.raises(Refused) as refused:
        await refresh(opened, token, *those)
    assert refused.value.refusal is Refusal.ALREADY_USED
    return refused.value.used


def kept(opened: Opened) -> int:
    ((number,),) = opened.rows("SELECT count(*) FROM single_use")
    assert isinstance(number, int)
    return number


async def test_of_many_copies_at_once_one_is_taken(tmp_path: Path, count: Callable[[int, int], int]) -> None:
    """RFC 7523 3: the winner's refresh happens, every other copy is refused, and one row is kept."""
    copies = count(50, 500)
    async with open_ledger(tmp_path) as opened:
        issued = await opened.issue()
        answers = await asyncio.gather(
            *(refresh(opened, issued, identifier()) for _ in range(copies)), return_exceptions=True
        )
        refusals = [each.refusal for each in answers if isinstance(each, Refused)]
        assert (1, copies - 1) == (copies - len(refusals), refusals.count(Refusal.ALREADY_USED))
        assert ["issued", "token_redeemed", "token_rotated"] == opened.topics(issued)
        assert 1 == kept(opened)


async def test_without_the_check_every_copy_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin of the trial above: a ledger that looks nothing up takes all copies, as retries."""
    monkeypatch.setattr(single_use, "_is_spent", lambda *_: False)
    async with open_ledger(tmp_path) as opened:
        issued = await opened.issue()
        answers = await asyncio.gather(*(refresh(opened, issued, identifier()) for _ in range(5)))
        assert 5 == len(answers)


async def test_a_copy_is_refused_after_a_restart(tmp_path: Path) -> None:
    """What was spent is as durable as what it admitted."""
    async with open_ledger(tmp_path) as opened:
        answer = await refresh(opened, await opened.issue(), identifier())
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        assert "assertion" == await used(opened, answer, identifier())
        await refresh(opened, answer, identifier("jti-2"))


@pytest.mark.parametrize("seconds", [0, 1, 69, 70, 71, 3670])
async def test_a_copy_is_refused_until_its_expiry_and_later(tmp_path: Path, seconds: int) -> None:
    """The same assertion is never free again here: that it has expired is judged by whoever reads it."""
    async with open_ledger(tmp_path) as opened:
        answer = await refresh(opened, await opened.issue(), identifier())
        opened.clock.pass_seconds(seconds)
        assert "assertion" == await used(opened, answer, identifier())


async def test_an_identifier_is_free_again_once_it_has_expired(tmp_path: Path) -> None:
    """Unique until expiry plus skew: at the last microsecond another assertion with it is refused, then taken."""
    async with open_ledger(tmp_path) as opened:
        answer = await refresh(opened, await opened.issue(), identifier())
        opened.clock.now = START + 70 * SECOND - 1
        assert "assertion" == await used(opened, answer, identifier(seconds=200))
        opened.clock.now += 1
        answer = await refresh(opened, answer, identifier(seconds=200))
        assert "assertion" == await used(opened, answer, identifier(seconds=200))


async def test_an_identifier_is_its_owners_own(tmp_path: Path) -> None:
    """Unique per client, or key and URI, and per kind: nobody spends another's."""
    those = [
        identifier(),
        identifier(owner="other"),
        identifier(kind="dpop"),
        identifier("jti-2"),
        identifier("\ud800"),
        identifier("jti-1\0"),
    ]
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        for each in those:
            answer = await refresh(opened, answer, each)
        for each in those:
            assert each.kind == await used(opened, answer, each)
        assert len(those) == kept(opened)


async def test_a_refusal_spends_as_an_answer_does(tmp_path: Path) -> None:
    """Whatever the ledger says of the token: unknown, foreign, reused; revocation and introspection too."""
    async with open_ledger(tmp_path, clients=[client(), client("other")]) as opened:
        foreign = await opened.issue(client_id="other")
        old = await opened.issue()
        last = await opened.chain(old, 3)
        assert last.refresh_token
        ledger = opened.ledger
        asked: dict[str, Callable[[Caller], Awaitable[object]]] = {
            "garbage": lambda who: ledger.refresh(who, HOME, "garbage", None, None),
            "foreign": lambda who: ledger.refresh(who, HOME, str(foreign.refresh_token), None, None),
            "too wide": lambda who: ledger.refresh(who, HOME, str(last.refresh_token), ("admin",), None),
            "no token given back": lambda who: ledger.revoke_token(who, HOME, "garbage"),
            "asked of garbage": lambda who: ledger.introspect(who, "garbage"),
            "asked of a refresh token": lambda who: ledger.introspect(who, str(last.refresh_token)),
            "asked of an access token": lambda who: ledger.introspect(who, last.access_token),
            "access token given back": lambda who: ledger.revoke_token(who, HOME, last.access_token),
            "reused": lambda who: ledger.refresh(who, HOME, str(old.refresh_token), None, None),
            "given back": lambda who: ledger.revoke_token(who, HOME, str(last.refresh_token)),
        }
        for number, (name, ask) in enumerate(asked.items()):
            who = showing(identifier(name))
            with contextlib.suppress(Refused):
                await ask(who)
            assert number + 1 == kept(opened), name
            with pytest.raises(Refused) as refused:
                await ask(who)
            assert Refusal.ALREADY_USED is refused.value.refusal, name
            assert number + 1 == kept(opened), name
        assert "reuse_detected" in opened.topics(old)


async def test_coming_too_fast_spends_nothing(tmp_path: Path) -> None:
    """429: the same request may come again when its time has come."""
    async with open_ledger(
        tmp_path, clients=[client(auth="none")], options=Options(refresh_burst=1, refresh_per_second=1)
    ) as opened:
        answer = await opened.refresh(await opened.issue(), authenticated=False)
        who = msgspec.structs.replace(caller(authenticated=False), single_use=(identifier(kind="dpop"),))
        with pytest.raises(Refused) as refused:
            await opened.ledger.refresh(who, HOME, str(answer.refresh_token), None, None)
        assert (Refusal.TOO_FAST, 0) == (refused.value.refusal, kept(opened))
        opened.clock.pass_seconds(2)
        await opened.ledger.refresh(who, HOME, str(answer.refresh_token), None, None)
        assert 1 == kept(opened)


@pytest.mark.parametrize("step", ["write", "commit"])
async def test_a_store_that_cannot_answer_spends_nothing(tmp_path: Path, step: str) -> None:
    """503: nothing happened, so the very same request is taken when the disk has room again."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        answer = await opened.issue()
        getattr(faulty(opened), f"on_{step}").append(instead(StoreFull("full")))
        with pytest.raises(Unavailable):
            await refresh(opened, answer, identifier())
        assert 0 == kept(opened)
        answer = await refresh(opened, answer, identifier())
        assert "assertion" == await used(opened, answer, identifier())


async def test_a_decision_without_a_key_spends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 out of a decision: the batch goes on without it, and without what it would have spent."""

    def lacking(batch: Batch, *_: object) -> None:
        raise Unavailable("the key ring of this node lacks key 2")

    async with open_ledger(tmp_path) as opened:
        issued = await opened.issue()
        with monkeypatch.context() as patched:
            patched.setattr("ledger.redeeming.redeem", lacking)
            with pytest.raises(Unavailable):
                await refresh(opened, issued, identifier())
        assert 0 == kept(opened)
        await refresh(opened, issued, identifier())


@pytest.mark.parametrize("lost", [instead, after])
async def test_a_lost_race_is_decided_again_and_is_no_second_use(
    tmp_path: Path, lost: Callable[[StoreError], Fault]
) -> None:
    """I-11: a command that is decided twice meets nothing that it spent itself; before and after it was written."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        answers = [await opened.issue(f"person-{number}") for number in range(3)]
        faulty(opened).on_write.append(lost(LostRace("moved")))
        await asyncio.gather(
            *(refresh(opened, answer, identifier(f"jti-{number}")) for number, answer in enumerate(answers))
        )
        assert 3 == kept(opened)
        opened.check_memory()


async def test_a_busy_store_is_asked_again(tmp_path: Path) -> None:
    """Somebody else had the lock for a moment: no second use either."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        answer = await opened.issue()
        faulty(opened).on_begin.append(instead(StoreBusy("busy")))
        await refresh(opened, answer, identifier())
        assert 1 == kept(opened)


async def test_what_is_kept_tells_nothing(tmp_path: Path) -> None:
    """I-20: neither the identifier nor its owner lies in the file or its log, and equal ones of two rings differ."""
    async with open_ledger(tmp_path) as opened:
        await refresh(opened, await opened.issue(), identifier("a-telling-identifier", owner="a-telling-owner"))
        files = b"".join(each.read_bytes() for each in tmp_path.glob("ledger.db*"))
        assert b"a-telling" not in files
        ((mac, expires_at),) = opened.rows("SELECT mac, expires_at FROM single_use")
        assert isinstance(mac, bytes)
        assert (16, START + 70 * SECOND) == (len(mac), expires_at)
    (tmp_path / "second").mkdir()
    async with open_ledger(tmp_path / "second") as opened:
        await refresh(opened, await opened.issue(), identifier("a-telling-identifier", owner="a-telling-owner"))
        assert [(mac,)] != opened.rows("SELECT mac FROM single_use")
    assert "a-telling" not in repr(identifier("a-telling-identifier"))


async def test_expired_ones_leave_two_at_a_time(tmp_path: Path) -> None:
    """However many have expired, a request deletes two; who lived an hour ago stays for a clock put back."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        for number in range(6):
            answer = await refresh(opened, answer, identifier(f"old-{number}"))
        opened.clock.pass_seconds(70 + single_use.KEPT_SECONDS)
        sizes = []
        for number in range(5):
            answer = await refresh(opened, answer, identifier(f"new-{number}", seconds=99_999))
            sizes.append(kept(opened))
            opened.clock.pass_seconds(1)
        assert [7, 6, 5, 4, 5] == sizes


async def test_a_store_from_before_there_were_any_takes_them(tmp_path: Path) -> None:
    """A file that an earlier program made is served as any other."""
    async with open_ledger(tmp_path) as opened:
        issued = await opened.issue()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        connection.execute("DROP TABLE single_use")
        connection.commit()
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        answer = await refresh(opened, issued, identifier())
        assert "assertion" == await used(opened, answer, identifier())


async def test_a_clock_that_is_put_back_frees_none(tmp_path: Path) -> None:
    """I-16: what has expired may go, but not so soon that a clock put back by an hour would bring it back to life."""
    async with open_ledger(tmp_path) as opened:
        answer = await refresh(opened, await opened.issue(), identifier())
        opened.clock.pass_seconds(70 + single_use.KEPT_SECONDS)
        answer = await refresh(opened, answer, identifier("later", seconds=99_999))
        opened.clock.pass_seconds(-single_use.KEPT_SECONDS - 1)
        assert "assertion" == await used(opened, answer, identifier())
