"""A store in a file and the view of its authority, changed by short acts inside real batches; fixture `house`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from ledger import times
from ledger.acts import Act
from ledger.authority import Authority
from ledger.batch import Batch
from ledger.clients import Client, Operator, OperatorSpec, Settings
from ledger.epochs import Subject
from ledger.events import AnyEvent
from ledger.keyring import KeyRing
from ledger.keys import Keys
from ledger.memory import Memory
from ledger.recorders.sqlite import SQLiteStore
from ledger.secret_hashes import secret_hash
from ledger.snapshots import Aggregate

A = TypeVar("A", bound=Aggregate)

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
        client = aggregate(batch, f"client:{client_id}", Client)
        append(batch, f"client:{client_id}", client.decide_settings(client_id, ruling, self.act()))

    def disable(self, batch: Batch, client_id: str = "www") -> None:
        append(batch, f"client:{client_id}", aggregate(batch, f"client:{client_id}", Client).decide_absence(self.act()))

    def end_client(self, batch: Batch, client_id: str = "www", before: int | None = None) -> None:
        client = aggregate(batch, f"client:{client_id}", Client)
        append(batch, f"client:{client_id}", client.decide_revocation(self.act(), before=before))

    def end_subject(
        self, batch: Batch, subject_id: str = "ann", before: int | None = None, reason_class: str = "withdrawal"
    ) -> None:
        subject = aggregate(batch, f"subject:{subject_id}", Subject)
        event = subject.decide_revocation(subject_id, self.act(), before=before, reason_class=reason_class)
        append(batch, f"subject:{subject_id}", event)

    def employ(self, batch: Batch, name: str, *tokens: str) -> None:
        operator = aggregate(batch, f"operator:{name}", Operator)
        hashes = tuple(secret_hash(self.ring, token) for token in tokens)
        spec = OperatorSpec(name=name, roles=("security",))
        append(batch, f"operator:{name}", operator.decide_settings(spec, hashes, self.act()))

    def dismiss(self, batch: Batch, name: str) -> None:
        append(batch, f"operator:{name}", aggregate(batch, f"operator:{name}", Operator).decide_absence(self.act()))

    def turn_keys(self, batch: Batch) -> None:
        """Add a key, let it sign, and distrust the one before."""
        for step in ("rotation", "activation", "distrust"):
            keys = aggregate(batch, "keys", Keys)
            new = max(keys.created_at, default=0) + (step == "rotation")
            if step == "rotation":
                append(batch, "keys", keys.decide_rotation(new, f"{new:032x}", self.act()))
            elif step == "activation":
                append(batch, "keys", keys.decide_activation(new, self.act()))
            elif new > 1:
                append(batch, "keys", keys.decide_distrust(new - 1, self.act()))


def aggregate(batch: Batch, stream: str, kind: type[A]) -> A:
    found = batch.load_or_create(stream).aggregate
    assert isinstance(found, kind)
    return found


def append(batch: Batch, stream: str, event: AnyEvent | None) -> None:
    if event is not None:
        batch.append(batch.load_or_create(stream), [event])


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """One that the test begins with."""
    house = House(tmp_path)
    yield house
    house.store.close()
