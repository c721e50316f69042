"""The `eventsourcing` library's own cases, on our recorder: those that ask what it selects and what a subscription
yields; a recorder of the test's own writes what they insert. Those that try how a recorder inserts have nothing to try:
ours refuses.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from eventsourcing import cryptography
from eventsourcing.persistence import ApplicationRecorder, IntegrityError, Notification, StoredEvent

from ledger.recorders.library import LedgerRecorder
from ledger.recorders.readers import Readers
from ledger.recorders.rows import Work
from ledger.recorders.sqlite import SQLiteStore

with pytest.MonkeyPatch.context() as patched:
    # The cases import another implementation of the cipher that they use; we have no need of it otherwise.
    patched.setitem(sys.modules, "eventsourcing.cipher", cryptography)
    from eventsourcing.tests import persistence as cases


class Inserting(LedgerRecorder):
    """Our recorder with a writer of the test's own, which puts the cases' events where a ledger's would lie."""

    def __init__(self, store: SQLiteStore) -> None:
        super().__init__(Readers(store.path))
        self._store = store

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int]:
        store, work = self._store, Work(())
        store.begin()
        try:
            position = store.last()
            positions = []
            for event in stored_events:
                position += 1
                name, asked = str(event.originator_id), (None, None, None)
                head = store.head(name)
                known = head.v if head else 0
                if event.originator_version != known + 1:
                    raise IntegrityError
                body = msgspec.json.encode({"topic": event.topic, "state": event.state.decode()}).decode()
                stream, back = (head.id, head.position) if head else (store.new_key(name), 0)
                work.events.append((position, stream, event.originator_version, back, body))
                work.add_head(stream, name, event.originator_version, position, b"", b"", asked, known)
                store.write(work)
                work = Work(())
                positions.append(position)
            store.commit()
        except BaseException:
            store.rollback()
            raise
        return positions

    def select_events(self, *args: Any, **kwargs: Any) -> list[StoredEvent]:
        return [_as_inserted(each) for each in super().select_events(*args, **kwargs)]

    def select_notifications(self, *args: Any, **kwargs: Any) -> list[Notification]:
        return [_as_inserted(each) for each in super().select_notifications(*args, **kwargs)]


def _as_inserted(stored: Any) -> Any:
    return dataclasses.replace(stored, state=msgspec.json.decode(stored.state)["state"].encode())


class SelectingCases(cases.ApplicationRecorderTestCase[ApplicationRecorder]):
    """The library's cases on selecting and subscribing, each run by a function below."""

    __test__ = False
    recorder: ClassVar[LedgerRecorder]

    def create_recorder(self) -> ApplicationRecorder:
        return self.recorder

    def new_originator_id(self) -> str:
        return str(super().new_originator_id())


@pytest.mark.parametrize("case", ["test_insert_select", "optional_test_insert_subscribe"])
def test_a_case_of_the_librarys_own(tmp_path: Path, case: str) -> None:
    """What the library asks of every application recorder that it reads from."""
    run_case(tmp_path, case)


def run_case(folder: Path, case: str) -> None:
    store = SQLiteStore(folder / "ledger.db", ())
    store.open("0" * 32)
    SelectingCases.recorder = Inserting(store)
    try:
        SelectingCases(case).debug()
    finally:
        SelectingCases.recorder._readers.close()
        store.close()


def test_a_case_of_the_librarys_own_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: a recorder that counts `start` wrongly is caught by the same case."""

    def off_by_one(self: Any, start: int | None, *args: Any, **kwargs: Any) -> Any:
        return select(self, None if start is None else start + 1, *args, **kwargs)

    select = LedgerRecorder.select_notifications
    monkeypatch.setattr(LedgerRecorder, "select_notifications", off_by_one)
    with pytest.raises(AssertionError):
        run_case(tmp_path, "test_insert_select")
