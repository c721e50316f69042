"""The view that every decision reads: always what the store says, also within a batch and after one that failed (I-06).

On real database files, through the batches that the server itself uses.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import authority as module
from ledger import times
from ledger.acts import Act
from ledger.authority import Authority
from ledger.batch import Batch
from ledger.clients import Client, Operator, OperatorSpec, Settings
from ledger.commands import EpochEnd
from ledger.epochs import Epoch, Subject
from ledger.events import AnyEvent
from ledger.keyring import KeyRing
from ledger.keys import Keys
from ledger.memory import Memory
from ledger.recorders.sqlite import SQLiteStore
from ledger.refusals import Refusal
from ledger.secret_hashes import secret_hash

T0 = times.micros("2026-03-01T10:00:00.000000Z")
WWW = Settings(auth="none", scope=("read",))


class Grant(msgspec.Struct, frozen=True):
    """What of a grant its end by epoch depends on."""

    client_id: str = "www"
    subject_id: str = "ann"
    client_epoch: int = 0
    subject_epoch: int = 0
    issued_at: int = T0


class House:
    """A store in a file, its ring, and a view of it that goes on from batch to batch."""

    def __init__(self, folder: Path) -> None:
        self.ring = KeyRing.create(folder / "keys")
        self.store = SQLiteStore(folder / "ledger.db", ())
        self.store.open(self.ring.ring_id)
        self.authority = Authority(self.store.within, clock_skew_seconds=7)
        self.now = T0
        self.memory = Memory(self.store, self.authority, clock=lambda: self.now, randomness=lambda size: b"r" * size)

    @contextmanager
    def batch(self, *, fails: bool = False) -> Iterator[Batch]:
        """One transaction, committed at the end, or rolled back."""
        batch = Batch(self.store, self.memory)
        yield batch
        if fails:
            batch.forget()
            return
        batch.write()
        self.store.commit()

    def act(self) -> Act:
        self.now += times.SECOND
        return Act(at=self.now, command_id="c" * 32, requested_by="operator:local")

    def fresh(self) -> Authority:
        """A view that has just read the whole store."""
        fresh = Authority(self.store.within, clock_skew_seconds=7)
        fresh.reload(self.store.within(), self.store.begin()[0])
        self.store.rollback()
        return fresh

    # ------------------------------------------------------------ acts, inside a batch

    def register(self, batch: Batch, client_id: str = "www", ruling: Settings = WWW) -> None:
        loaded = batch.load_or_create(f"client:{client_id}")
        assert isinstance(loaded.aggregate, Client)
        append(batch, f"client:{client_id}", loaded.aggregate.decide_settings(client_id, ruling, self.act()))

    def disable(self, batch: Batch, client_id: str = "www") -> None:
        append(batch, f"client:{client_id}", batch.aggregate(f"client:{client_id}", Client).decide_absence(self.act()))

    def end_client(self, batch: Batch, client_id: str = "www", before: int | None = None) -> None:
        client = batch.aggregate(f"client:{client_id}", Client)
        append(batch, f"client:{client_id}", client.decide_revocation(self.act(), before=before))

    def end_subject(
        self, batch: Batch, subject_id: str = "ann", before: int | None = None, reason_class: str = "withdrawal"
    ) -> None:
        subject = batch.aggregate(f"subject:{subject_id}", Subject)
        event = subject.decide_revocation(subject_id, self.act(), before=before, reason_class=reason_class)
        append(batch, f"subject:{subject_id}", event)

    def employ(self, batch: Batch, name: str, *tokens: str) -> None:
        operator = batch.aggregate(f"operator:{name}", Operator)
        hashes = tuple(secret_hash(self.ring, token) for token in tokens)
        spec = OperatorSpec(name=name, roles=("security",))
        append(batch, f"operator:{name}", operator.decide_settings(spec, hashes, self.act()))

    def dismiss(self, batch: Batch, name: str) -> None:
        append(batch, f"operator:{name}", batch.aggregate(f"operator:{name}", Operator).decide_absence(self.act()))

    def turn_keys(self, batch: Batch) -> None:
        """Add a key, let it sign, and distrust the one before."""
        for step in ("rotation", "activation", "distrust"):
            keys = batch.aggregate("keys", Keys)
            new = max(keys.created_at, default=0) + (step == "rotation")
            if step == "rotation":
                append(batch, "keys", keys.decide_rotation(new, self.act()))
            elif step == "activation":
                append(batch, "keys", keys.decide_activation(new, self.act()))
            elif new > 1:
                append(batch, "keys", keys.decide_distrust(new - 1, self.act()))


def append(batch: Batch, stream: str, event: AnyEvent | None) -> None:
    if event is not None:
        batch.append(batch.load_or_create(stream), [event])


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.store.close()


# ---------------------------------------------------------------- who there is


def test_a_client_is_known_from_its_registration_until_it_is_disabled(house: House) -> None:
    """A disabled one is answered as one that never was, and still counted among those that were."""
    assert house.authority.client("www") is None
    with house.batch() as batch:
        house.register(batch)
    found = house.authority.client("www")
    assert found is not None
    assert (("read",), "none", ()) == (found.settings.scope, found.auth, found.secret_hashes)
    with house.batch() as batch:
        house.disable(batch)
    assert house.authority.client("www") is None
    assert ["www"] == list(house.authority.clients)
    assert house.authority.rules(Grant()).client is None
    assert found.enabled, "what was handed out does not change under whoever holds it"


def test_an_origin_is_listed_while_a_client_that_lists_it_is_there(house: House) -> None:
    """Byte for byte; a view read anew, and one of a batch that failed, say the same."""
    one, two = "https://one.example", "https://two.example"

    def listed(view: Authority) -> list[bool]:
        return [view.lists_origin(origin) for origin in (one, two, "https://ONE.example", "null", "")]

    assert [False] * 5 == listed(house.authority)
    with house.batch() as batch:
        house.register(batch, "www", msgspec.structs.replace(WWW, origins=(one, two)))
        house.register(batch, "spa", msgspec.structs.replace(WWW, origins=(two,)))
    assert [True, True, False, False, False] == listed(house.authority) == listed(house.fresh())
    with house.batch() as batch:
        house.disable(batch, "www")
    assert [False, True, False, False, False] == listed(house.authority) == listed(house.fresh())
    with house.batch(fails=True) as batch:
        house.register(batch, "www", msgspec.structs.replace(WWW, origins=(one,)))
        assert [True, True, False, False, False] == listed(house.authority)
    with house.batch():  # reads the view anew
        assert [False, True, False, False, False] == listed(house.authority)


def test_an_operator_is_found_by_each_of_its_tokens_and_by_none_that_it_gave_up(house: House) -> None:
    """A token may also move to another operator, in one file."""
    ring = house.ring
    with house.batch() as batch:
        house.employ(batch, "soc", "one", "two")
        house.employ(batch, "ops", "three")
    assert ["soc", "soc", "ops"] == [
        found.name for token in ("one", "two", "three") if (found := house.authority.operator_by_token(ring, token))
    ]
    with house.batch() as batch:
        house.employ(batch, "ops", "one")
        house.employ(batch, "soc", "two")
    assert [("one", "ops"), ("two", "soc")] == [
        (token, found.name)
        for token in ("one", "two", "three")
        if (found := house.authority.operator_by_token(ring, token))
    ]
    with house.batch() as batch:
        house.dismiss(batch, "soc")
    assert house.authority.operator_by_token(ring, "two") is None
    assert house.authority.operator_by_token(ring, "\ud800") is None
    assert ["ops", "soc"] == sorted(house.authority.operators)


# ---------------------------------------------------------------- rules


def test_rules_say_what_bears_on_a_grant(house: House) -> None:
    """Client, epochs, keys and the counter that they stand for."""
    with house.batch() as batch:
        house.register(batch)
        house.turn_keys(batch)
        house.turn_keys(batch)
        house.end_subject(batch, "eve")
    rules = house.authority.rules(Grant())
    assert rules.client is not None
    assert ("www", 1, ("read",), False) == (
        rules.client.client_id, rules.client.v, rules.client.scope, rules.client.authenticates,
    )  # fmt: skip
    assert (0, 0, None, 2, {1: "keys/5"}, 7) == (
        rules.client_epoch, rules.subject_epoch, rules.epoch_end, rules.active_key_id, rules.distrusted,
        rules.clock_skew_seconds,
    )  # fmt: skip
    assert (batch.control, 1) == (rules.control, house.authority.rules_for_issue("www", "eve").subject_epoch)
    assert house.authority.rules(Grant(client_id="never", subject_id="nobody")).client is None


def test_rules_are_made_once_and_never_outlive_a_change(house: House) -> None:
    """The hot path makes nothing; whatever moves the counter makes everything anew."""
    with house.batch() as batch:
        house.register(batch)
    first = house.authority.rules(Grant())
    assert first is house.authority.rules(Grant(subject_id="bob", issued_at=T0 + 9))
    assert first is house.authority.rules_for_issue("www", "eve")
    with house.batch() as batch:
        house.register(batch, ruling=msgspec.structs.replace(WWW, scope=("write",)))
        inside = house.authority.rules(Grant())
        assert (batch.control, ("write",)) == (inside.control, inside.client.scope if inside.client else None)
    assert first.control + 1 == house.authority.rules(Grant()).control
    house.authority.control = 99
    assert 99 == house.authority.rules(Grant()).control


def test_a_new_grant_is_no_older_than_the_latest_before(house: House) -> None:
    """What the two numbers of an epoch rest on."""
    assert 0 == house.authority.issued_at_least("www", "ann")
    with house.batch() as batch:
        house.register(batch)
        house.end_client(batch, before=T0 - 5)
        house.end_subject(batch, before=T0 - 3)
        assert T0 - 3 == house.authority.issued_at_least("www", "ann")
    assert T0 - 5 == house.authority.issued_at_least("www", "bob")


# ---------------------------------------------------------------- ends by epoch


def test_a_grant_ends_by_the_first_raise_in_log_order_whichever_stream_it_stands_in(house: House) -> None:
    """Its client's or its person's, and found again by a process that was not there."""
    with house.batch() as batch:
        house.register(batch)
        house.end_client(batch, before=T0 - 60)  # too early to hit
    with house.batch() as batch:
        house.end_subject(batch, reason_class="reuse")
    with house.batch() as batch:
        house.end_client(batch)
    end = EpochEnd(
        event_id="subject:ann/1", at=T0 + 3 * times.SECOND, refusal=Refusal.REUSE_DETECTED, reason_class="reuse"
    )
    assert end == house.authority.rules(Grant()).epoch_end == house.fresh().rules(Grant()).epoch_end
    other = house.authority.rules(Grant(subject_id="bob")).epoch_end
    assert other is not None
    assert ("client:www/3", Refusal.REVOKED_BY_OPERATOR) == (other.event_id, other.refusal)
    assert house.authority.rules(Grant(client_epoch=2, subject_epoch=1)).epoch_end is None
    assert ["client:www/2"] == [
        end.event_id for end in [house.authority.rules(Grant(client_epoch=0, issued_at=T0 - 61)).epoch_end] if end
    ]


def test_an_end_said_in_the_batch_under_way_already_rules_in_it(house: House) -> None:
    """No event of it is in the store yet; a redemption decided after it in the same batch must see it (I-06)."""
    with house.batch() as batch:
        house.register(batch)
        house.end_subject(batch)
        house.end_client(batch)
        end = house.authority.rules(Grant()).epoch_end
        assert end is not None
        assert "subject:ann/1" == end.event_id
        assert [] == house.store.within().events("subject:ann", 1, 9)
    assert end == house.authority.rules(Grant()).epoch_end == house.fresh().rules(Grant()).epoch_end


def test_many_raises_of_one_client_are_read_page_by_page(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's end is no end: the raise may stand behind it."""
    monkeypatch.setattr(module, "PAGE_EVENTS", 2)
    for number in range(5):
        with house.batch() as batch:
            house.register(batch, ruling=msgspec.structs.replace(WWW, scope=(f"s{number}",)))
            house.end_client(batch, before=T0 - 10 + number)
    end = house.fresh().rules(Grant(issued_at=T0 - 7)).epoch_end
    assert end is not None
    assert "client:www/10" == end.event_id


def test_memory_of_subjects_and_ends_is_bounded_and_what_left_it_is_read_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-22: a person who is back after a million others is ended all the same."""
    for bound in ("SUBJECTS_IN_MEMORY_MAX", "ENDS_IN_MEMORY_MAX", "RAISES_IN_MEMORY_MAX", "RULES_IN_MEMORY_MAX"):
        monkeypatch.setattr(module, bound, 2)
    with house.batch() as batch:
        house.register(batch)
    for number in range(6):
        with house.batch() as batch:
            house.end_subject(batch, f"person {number}")
    for _ in range(2):
        for number in range(6):
            end = house.authority.rules(Grant(subject_id=f"person {number}")).epoch_end
            assert end is not None
            assert f"subject:person {number}/1" == end.event_id
            assert house.authority.rules(Grant(subject_id=f"person {number}", subject_epoch=1)).epoch_end is None
    view = house.authority
    assert [2, 2, 2, 2] >= [len(view._subjects), len(view._ends), len(view._raises), len(view.rules_now)]


def test_a_raise_of_the_batch_under_way_is_never_what_leaves_memory(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-06: a person who was asked about long ago is ended in this batch; the store does not know it yet."""
    for bound in ("SUBJECTS_IN_MEMORY_MAX", "RAISES_IN_MEMORY_MAX"):
        monkeypatch.setattr(module, bound, 3)
    ann = Grant(subject_id="ann", issued_at=T0)
    with house.batch() as batch:
        house.register(batch)
        house.end_subject(batch, "ann", before=T0)
        house.end_subject(batch, "bob")
        house.end_subject(batch, "cecilia")
    assert house.authority.rules(ann).epoch_end is None
    with house.batch() as batch:
        house.end_subject(batch, "ann")
        house.end_subject(batch, "dora")
        end = house.authority.rules(ann).epoch_end
        assert end is not None
        assert "subject:ann/2" == end.event_id


# ---------------------------------------------------------------- always what the store says


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


def test_a_view_that_could_not_be_read_whole_stands_for_no_store(house: House) -> None:
    """Half of the clients would pass for all: the counter says that it must be read again."""
    with house.batch() as batch:
        house.register(batch)

    class Broken:
        def __getattr__(self, name: str) -> object:
            raise OSError("input/output error")

    with pytest.raises(OSError, match="input/output error"):
        house.authority.reload(Broken(), 1)  # type: ignore[arg-type]  # whatever is asked, it fails
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
