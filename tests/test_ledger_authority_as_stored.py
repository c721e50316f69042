"""The view that every decision reads is at every moment what the store says: after a batch that failed, a snapshot that
cannot be trusted, and whatever else is done (I-06, I-13).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import times
from ledger.authority import Authority
from ledger.batch import Batch
from ledger.clients import Operator
from ledger.credentials import taken_back
from ledger.epochs import Epoch
from ledger.events import AnyEvent
from ledger.recorders.rows import Reads
from tests.authority_houses import WWW, Grant, House


def test_a_batch_that_failed_leaves_no_trace_in_the_view(house: House) -> None:
    """What was folded on the way is forgotten with the batch."""
    with house.batch() as batch:
        house.register(batch)
        house.employ(batch, "soc", "one")
    with house.batch(fails=True) as batch:
        house.disable(batch)
        house.end_subject(batch)
        house.employ(batch, "soc", "two")
        assert house.authority.rules(Grant()).epoch_end is not None
    assert_like_fresh(house, [Grant()])
    with house.batch():
        assert house.authority.client("www") is not None
        assert house.authority.rules(Grant()).epoch_end is None
        assert house.authority.operator_by_token(house.ring, "two") is None


class Broken:
    """A store of which nothing can be read."""

    def __getattr__(self, name: str) -> Any:
        raise OSError("input/output error")


def test_a_view_that_could_not_be_read_whole_stands_for_no_store(house: House) -> None:
    """Half of the clients would pass for all: the counter says that it must be read again."""
    with house.batch() as batch:
        house.register(batch)

    with pytest.raises(OSError, match="input/output error"):
        house.authority.reload(Broken(), 1)
    assert -1 == house.authority.control
    with house.batch():
        assert house.authority.client("www") is not None


def test_a_snapshot_that_cannot_be_trusted_is_replaced_by_a_replay(house: House) -> None:
    """Snapshots are a shortcut, never evidence (I-13)."""
    with house.batch() as batch:
        house.register(batch)
        house.employ(batch, "soc", "one")
        house.turn_keys(batch)
        house.end_subject(batch)
    house.store._connection.execute("UPDATE streams SET state = x'00'")
    assert_like_fresh(house, [Grant(), Grant(subject_epoch=1)])


KINDS = ("register", "disable", "end client", "end subject", "employ", "dismiss", "keys")
THEN = ("same batch", "next batch", "failed batch")
ACTS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2), st.sampled_from(THEN)), max_size=16)


def live_through(house: House, acts: list[tuple[str, int, str]]) -> Iterator[list[Grant]]:
    """Do the acts in batches, of which some fail. After each: the grants that were issued before it or within it."""
    pending, grants = list(acts), list[Grant]()
    while pending:
        batch, issued, then = Batch(house.store, house.memory), list[Grant](), "same batch"
        while pending and then == "same batch":
            act, number, then = pending.pop(0)
            issued += grants_of(house)
            perform(house, batch, act, number)
            for grant in (*grants, *issued):
                house.authority.rules(grant)
        if then == "failed batch":
            batch.forget()
        else:
            batch.write()
            house.store.commit()
            grants += issued
        yield grants


def grants_of(house: House) -> Iterator[Grant]:
    """A grant of each client and person, as it would be issued now."""
    for client_id in ("c0", "c1"):
        for subject_id in ("s0", "s1", "s2"):
            rules = house.authority.rules_for_issue(client_id, subject_id)
            issued_at = max(house.now, house.authority.issued_at_least(client_id, subject_id))
            yield Grant(client_id, subject_id, rules.client_epoch, rules.subject_epoch, issued_at)


def perform(house: House, batch: Batch, act: str, number: int) -> None:
    before = house.now - number * 2 * times.SECOND if number else None
    client_id, subject_id, operator = f"c{number % 2}", f"s{number}", f"o{number}"
    match act:
        case "register":
            house.register(batch, client_id, msgspec.structs.replace(WWW, scope=(f"scope{house.now}",)))
        case "disable":
            house.disable(batch, client_id)
        case "end client" if house.authority.clients.get(client_id):
            house.end_client(batch, client_id, before)
        case "end subject":
            house.end_subject(batch, subject_id, before)
        case "employ":
            house.employ(batch, operator, f"token {number}", f"token {house.now}")
        case "dismiss":
            house.dismiss(batch, operator)
        case "keys":
            house.turn_keys(batch)


def assert_like_fresh(house: House, grants: list[Grant]) -> None:
    """The view that lived through everything answers like one that has just read the store."""
    view, fresh = house.authority, house.fresh()
    if view.control < 0:  # a batch failed: the next one reads anew
        Batch(house.store, house.memory).forget()
    assert (fresh.clients, fresh.operators, fresh.keys) == (view.clients, view.operators, view.keys)
    assert fresh._operators_by_hash == view._operators_by_hash
    for grant in grants:
        assert fresh.rules(grant) == view.rules(grant)


def assert_always_like_fresh(house: House, acts: list[tuple[str, int, str]]) -> None:
    for grants in live_through(house, acts):
        assert_like_fresh(house, grants)


def assert_followed(house: House, acts: list[tuple[str, int, str]], other: Authority) -> None:
    """Another node's view, which only hears that something has moved, answers like one that has just read the store,
    and knows when what authentication goes by has moved."""
    reads = house.store.within()
    other.reload(reads, house.store.control()[0])
    for grants in live_through(house, acts):
        control = house.store.control()[0]
        if control == other.control:
            continue
        before = other.credentials()
        moved = other.follow(reads, control)
        after, fresh = other.credentials(), house.fresh()
        assert moved == {who for who, said in before.items() if taken_back(said, after[who])}
        assert (fresh.clients, fresh.operators, fresh.keys) == (other.clients, other.operators, other.keys)
        assert fresh._operators_by_hash == other._operators_by_hash
        for grant in grants:
            assert fresh.rules(grant) == other.rules(grant)


@given(acts=ACTS)
@settings(max_examples=settings().max_examples // 8)  # each on a database of its own
def test_the_view_is_at_every_moment_what_the_store_says(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, int, str]]
) -> None:
    """Whatever is done, in whatever batches, some of which fail (I-06, I-13)."""
    house = House(tmp_path_factory.mktemp("house"))
    try:
        assert_always_like_fresh(house, acts)
    finally:
        house.store.close()


@given(acts=ACTS)
@settings(max_examples=settings().max_examples // 8)
def test_who_reads_only_what_has_moved_knows_all_that_the_store_says(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, int, str]]
) -> None:
    """The same of a view that follows what another node does (I-06)."""
    house = House(tmp_path_factory.mktemp("house"))
    try:
        assert_followed(house, acts, Authority(house.store.within, clock_skew_seconds=7))
    finally:
        house.store.close()


class KeepsPersons(Authority):
    """A broken twin: what is known of persons outlives what others have done."""

    def _clear_asked(self) -> None:
        if not hasattr(self, "_subjects"):
            super()._clear_asked()


class ReadsTooLittle(Authority):
    """A broken twin: what has moved is looked for behind the place where it stands."""

    def follow(self, reads: Reads, control: int) -> frozenset[str]:
        self._read_to += 2
        return super().follow(reads, control)


@pytest.mark.parametrize("twin", [KeepsPersons, ReadsTooLittle])
def test_a_view_that_follows_badly_is_caught(house: House, twin: type[Authority]) -> None:
    """The broken twins of the property above, on one short life."""
    life = [("register", 0, "next batch"), ("register", 1, "next batch"), ("end subject", 0, "next batch")]
    with pytest.raises(AssertionError):
        assert_followed(house, life, twin(house.store.within, clock_skew_seconds=7))


def test_a_view_that_could_not_follow_stands_for_no_store(house: House) -> None:
    """What was read before is left as it is, and is read again: also what this node is yet to hear of."""
    with house.batch() as batch:
        house.register(batch)

    with pytest.raises(OSError, match="input/output error"):
        house.authority.follow(Broken(), house.authority.control + 1)
    assert -1 == house.authority.control
    assert house.authority.client("www") is not None


class ForgetsEnds(Authority):
    """A broken twin: an end in the batch under way is not folded."""

    def evolve(self, event: AnyEvent) -> None:
        if not event.stream.startswith("subject:"):
            super().evolve(event)


class KeepsOldTokens(Authority):
    """A broken twin: a token given up goes on to be its operator's."""

    def _know_operator(self, before: Operator | None, operator: Operator) -> None:
        super()._know_operator(None, operator)


class SharesEpochs(Authority):
    """A broken twin: the raise of one person is folded into what all persons without a raise share."""

    def _subject(self, subject_id: str) -> Epoch:
        epoch = super()._subject(subject_id)
        self._subjects = dict.fromkeys(self._subjects, epoch)
        return epoch


@pytest.mark.parametrize("twin", [ForgetsEnds, KeepsOldTokens, SharesEpochs])
def test_a_broken_view_is_caught(tmp_path: Path, twin: type[Authority]) -> None:
    """The broken twins of the property above, on one short life."""
    house = House(tmp_path)
    house.authority = house.memory.authority = twin(house.store.within, clock_skew_seconds=7)
    life = [("register", 0, "next batch"), ("employ", 1, "same batch"), ("end subject", 0, "same batch")]
    with pytest.raises(AssertionError):
        assert_always_like_fresh(house, [*life, ("employ", 1, "next batch")])
    house.store.close()
