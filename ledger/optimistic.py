"""A batch on a store that others write to: decided on what memory holds, checked when it is written.

What a decision used of a stream, if only to refuse, is a premise: the commit says which had moved, and the requests
that stood on those are decided again with what is true now. All others are answered: one contested grant costs nobody
else anything. Grants that are not in memory, or that have moved on, are fetched in one question before their requests
are decided.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from msgspec.structs import force_setattr

from ledger.answers import TokenAnswer
from ledger.batch import Batch
from ledger.events import decode
from ledger.grant import Grant
from ledger.memory import Loaded, Memory
from ledger.private import PrivateGrant
from ledger.recorders.premises import BASE, CheckedWork, Written
from ledger.recorders.rows import Head
from ledger.recorders.store import OptimisticStore, Store
from ledger.refusals import Unavailable
from ledger.uses import Uses

W = TypeVar("W")


class Cold(Exception):
    """A request asked for grants that memory does not hold, or holds as they no longer are, before it had done
    anything: fetch them, and decide then."""

    def __init__(self, *names: str) -> None:
        self.names = names


class Footprint(NamedTuple):
    """What one request's decision used and added: streams by name, private rows and notes by where they begin."""

    used: tuple[str, ...]
    private_from: int
    notes_from: int


class OptimisticBatch(Batch):
    """One batch. `written` says what became of it, once it was committed."""

    __slots__ = ("_before", "_footprints", "_may_wait", "_unit_of", "_uses")

    new_work = CheckedWork

    store: OptimisticStore
    work: CheckedWork

    def __init__(self, store: Store, memory: Memory) -> None:
        super().__init__(store, memory)
        assert isinstance(memory.streams, Uses)
        self.work.now = self.now
        self.work.stands_on = self.control, self.serial
        self._uses = memory.streams
        self._footprints: list[Footprint] = []
        self._may_wait = False
        self._unit_of: list[int] = []
        self._before = (0, 0, 0)  # how much there was of each kind when the request under way came

    # ------------------------------------------------------------ deciding

    def decide_all(
        self, taken: Sequence[W], decide: Callable[[Batch, W], tuple[Any, bool]]
    ) -> list[tuple[W, Any, bool]]:
        """Decide each, those last whose grants have to be fetched first."""
        self._may_wait = True
        done, waiting = self._decide(taken, decide)
        self._may_wait = False
        if waiting:
            self._fetch([name for _, names in waiting for name in names])
            more, _ = self._decide([each for each, _ in waiting], decide)
            done += more
        return done

    def _decide(
        self, those: Sequence[W], decide: Callable[[Batch, W], tuple[Any, bool]]
    ) -> tuple[list[tuple[W, Any, bool]], list[tuple[W, tuple[str, ...]]]]:
        used, events, private, notes = self._uses.used, self.work.events, self.work.private, self.when_done
        done: list[tuple[W, Any, bool]] = []
        waiting: list[tuple[W, tuple[str, ...]]] = []
        for each in those:
            used.clear()
            private_from, notes_from = len(private), len(notes)
            self._before = len(events), private_from, notes_from
            try:
                answer, refused = decide(self, each)
            except Cold as cold:
                waiting.append((each, cold.names))
            else:
                done.append((each, answer, refused))
                self._footprints.append(Footprint(tuple(used), private_from, notes_from))
        used.clear()
        return done, waiting

    def reload(self, name: str) -> Loaded | None:
        """Read a grant again that somebody else has moved: with all others that the batch has to fetch, where its
        request has done nothing yet."""
        now = len(self.work.events), len(self.work.private), len(self.when_done)
        if self._may_wait and self._before == now and name not in self._touched:
            self._uses.pop(name, None)
            raise Cold(name)
        return super().reload(name)

    def ask_for(self, names: Sequence[str]) -> None:
        """As every batch does; a decision, which asks before it does anything else, with all others that wait."""
        if self._may_wait and (cold := self._cold(names)):
            raise Cold(*cold)
        super().ask_for(names)
        if not self._may_wait:  # with a grant that is read its person's epoch is, too
            authority = self.memory.authority
            known = filter(None, map(self._uses.known, names))
            moved = [each.aggregate for each in known if each.rules_of is not authority.rules_now]
            if moved:  # seldom: whose rules are known needs no epoch
                authority.ask_for_subjects([each.subject_id for each in moved if isinstance(each, Grant)])

    def _found_grant(self, name: str) -> tuple[Head, PrivateGrant | None] | None:
        if self._may_wait and not self._uses.used and name not in self._fetched:
            raise Cold(name)
        return super()._found_grant(name)

    # ------------------------------------------------------------ writing

    @property
    def must_commit(self) -> bool:
        """Also where nothing is to be written: what an answer stands on is checked all the same."""
        return bool(self._footprints)

    def write(self) -> None:
        """Hand the work to the store, with its premises."""
        work = self.work
        units = self._unit_of = self._units()
        for unit, footprint in zip(units, self._footprints, strict=True):
            for name in footprint.used:
                work.unit_of[name] = unit
        if work.private:
            ends = [*(footprint.private_from for footprint in self._footprints[1:]), len(work.private)]
            for unit, footprint, end in zip(units, self._footprints, ends, strict=True):
                work.private_units += [unit] * (end - footprint.private_from)
        for name, unit in work.unit_of.items():
            touched = self._touched.get(name)
            if touched is None:
                if (known := self._uses.known(name)) is not None:
                    work.read.append((known.id, known.v, unit))
                continue
            work.names[touched[0].id] = name
            self._add_head(*touched)
        assert len(work.moved) + len(work.made) == len(self._touched), "events without their head"
        self.store.write(work)

    def _units(self) -> list[int]:
        """Each request's unit: those that used the same stream share one. Where authority moves all are one, for
        what was decided afterwards stands on it."""
        footprints = self._footprints
        if len(footprints) == 1 or self.work.control is not None or self.work.serial is not None:
            self.work.units = 1
            return [0] * len(footprints)
        names = [name for footprint in footprints for name in footprint.used]
        if len(set(names)) == len(names):  # nearly always
            self.work.units = len(footprints)
            return [*range(len(footprints))]
        parents = list(range(len(footprints)))

        def root(number: int) -> int:
            while parents[number] != number:
                number = parents[number]
            return number

        first_user: dict[str, int] = {}
        for number, footprint in enumerate(footprints):
            for name in footprint.used:
                first = first_user.setdefault(name, number)
                if first != number:
                    parents[max(root(first), root(number))] = min(root(first), root(number))
        self.work.units = len(footprints)
        return [root(number) for number in range(len(footprints))]

    # ------------------------------------------------------------ ending

    def settle(self, done: list[tuple[W, Any, bool]]) -> tuple[list[tuple[W, Any, bool]], list[W]]:
        """What of the batch came to be, with its positions made real; and who is to be decided again."""
        written, memory = self.written, self.memory
        if written is None:  # nothing was used: nothing to check
            return done, []
        if written.base is None:
            self.when_done.clear()
            self.forget()
            return [], [each for each, _, _ in done]
        kept, again = self._parted(done, written) if written.lost else (done, [])
        for _, answer, _ in kept:
            if type(answer) is TokenAnswer and answer.position >= BASE:
                force_setattr(answer, "position", answer.position - BASE + written.base)
        self._make_real(written.base, written.lost)
        memory.position = self.store.last()
        if written.lost and (self.work.control is not None or self.work.serial is not None):
            self._forget_authority()
        return kept, again

    def _parted(self, done: list[tuple[W, Any, bool]], written: Written) -> tuple[list[tuple[W, Any, bool]], list[W]]:
        """Who was written, and who was lost. Of the notes only those of the first are left. Of whom nobody knows is
        told so, and asks again with a new identifier."""
        notes, self.when_done = self.when_done, []
        kept: list[tuple[W, Any, bool]] = []
        again: list[W] = []
        for number, (footprint, each) in enumerate(zip(self._footprints, done, strict=True)):
            if (unit := self._unit_of[number]) in written.lost:
                if unit in written.unknown:
                    kept.append((each[0], Unavailable(), True))
                else:
                    again.append(each[0])
                continue
            kept.append(each)
            end = self._footprints[number + 1].notes_from if number + 1 < len(self._footprints) else len(notes)
            self.when_done += notes[footprint.notes_from : end]
        return kept, again

    def _make_real(self, base: int, lost: frozenset[int]) -> None:
        work, shift = self.work, base - BASE
        for loaded, _ in self._touched.values():  # those that were lost are forgotten below
            loaded.position += shift
        if not lost:
            if work.events:
                self.position = work.events[-1][0] + shift
            return
        for name, unit in work.unit_of.items():
            if unit in lost:
                self._uses.pop(name, None)
        self.last_at = None
        for position, id, _, _, body in reversed(work.events):
            if work.unit_of[work.names[id]] not in lost:
                self.position, self.last_at = position + shift, decode(body).at
                break

    def forget(self) -> None:
        """The batch did not happen, or nobody knows: forget whatever it used. Asks nothing, so it cannot fail."""
        memory, streams = self.memory, self._uses
        for footprint in self._footprints:
            for name in footprint.used:
                streams.pop(name, None)
        for name in (*self._touched, *self._also_changed, *streams.used):
            streams.pop(name, None)
        streams.used.clear()
        self.store.rollback()
        memory.position = self.store.last()
        self.last_at = None  # nothing of it may be acknowledged: its positions are places that came to nothing
        if self._authority_touched:
            self._forget_authority()

    def _forget_authority(self) -> None:
        """What was folded did not happen: believe nothing of it, and read it anew before anything is decided."""
        self.memory.authority.distrust()
        self.memory.forget_everything()
