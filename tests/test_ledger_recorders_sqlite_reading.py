"""Reading the store on one SQLite file: how a stream's events are found, and what a reader sees."""

import threading

import pytest

from ledger.recorders.errors import StoreError
from ledger.recorders.sqlite import SQLiteStore
from tests.sqlite_stores import append

LENGTHS = (1, 2, 63, 64, 65, 66, 128, 129, 130, 193, 200)


@pytest.mark.parametrize("length", LENGTHS)
def test_every_page_of_a_history_is_found_from_any_side(sqlite: SQLiteStore, length: int) -> None:
    """The way back from the next mark or from the head, at every boundary of 64 events: the same as reading all."""
    for _ in range(length // 7):
        append(sqlite, "audit", 3)
        append(sqlite, "other", 5)
        append(sqlite, "audit", 4)
    if length % 7:
        append(sqlite, "audit", length % 7)
    append(sqlite, "other", 9)
    edges = sorted({v for mark in range(0, length + 64, 64) for v in range(mark - 2, mark + 4)} | {1, length})
    with sqlite.reader() as reader:
        everything = [each for each in reader.after(0, 10_000) if '"question":"audit"' in each.body]
        assert length == len(everything)
        for from_v in edges:
            for to_v in edges:
                expected = [each for each in everything if from_v <= each.v <= to_v]
                assert expected == reader.events("audit", from_v, to_v), f"{from_v} to {to_v}"
        for v in range(-1, length + 2):
            found = [each for each in everything if each.v == v]
            assert (found[0] if found else None) == reader.event_at("audit", v)


def test_the_way_back_ends_where_it_was_asked_to(sqlite: SQLiteStore) -> None:
    """I-22: a page of a long history costs its own length and 64 steps, whatever the history's."""
    append(sqlite, "audit", 2_000)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    costs = []
    with sqlite.reader() as reader:
        reader._connection.set_progress_handler(step, 10)
        for v in (65, 1_000, 1_985):
            steps = 0
            assert 1 == len(reader.events("audit", v, v))
            costs.append(steps)
        reader._connection.set_progress_handler(None, 0)
    assert max(costs) < 3 * min(costs) + 100


def test_a_walk_without_marks_costs_the_whole_history(sqlite: SQLiteStore) -> None:
    """The broken twin of the test above: without the index's entry points the way back is the history."""
    append(sqlite, "audit", 2_000)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    sqlite._connection.execute("DROP INDEX events_marks")
    with sqlite.reader() as reader:
        reader._connection.set_progress_handler(step, 10)
        assert 1 == len(reader.events("audit", 65, 65))
        reader._connection.set_progress_handler(None, 0)
    assert steps > 1_000


def test_a_stream_that_nothing_ever_happened_to_has_no_events(sqlite: SQLiteStore) -> None:
    """Nothing, not an error."""
    with sqlite.reader() as reader:
        assert reader.stream("grant:0") is None
        assert [] == reader.events("grant:0", 1, 10)
        assert reader.event_at("grant:0", 1) is None
        assert [] == reader.after(0, 10)


def test_a_reader_sees_one_committed_moment(sqlite: SQLiteStore) -> None:
    """What is not durable is not seen; what becomes durable meanwhile neither, until the next question."""
    append(sqlite, "audit", 1)
    with sqlite.reader() as reader:
        assert 1 == len(reader.after(0, 10))
        append(sqlite, "audit", 1)
        append(sqlite, "audit", 1, commit=False)
        assert 1 == len(reader.after(0, 10))
    with sqlite.reader() as reader:
        assert 2 == len(reader.after(0, 10))
    sqlite.rollback()


def test_a_reader_can_write_nothing(sqlite: SQLiteStore) -> None:
    """Readers never write and never check-point."""
    with pytest.raises(StoreError), sqlite.reader() as reader:
        reader.select("DELETE FROM events")
    with sqlite.reader() as reader:
        assert [] == reader.after(0, 10)


def test_readers_are_lent_to_one_thread_each(sqlite: SQLiteStore) -> None:
    """Many threads that ask at once each have a connection, and give it back."""
    append(sqlite, "audit", 50)
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(100):
                with sqlite.reader() as reader:
                    assert 50 == len(reader.after(0, 100))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == failed
    assert 1 <= len(sqlite._readers._idle) <= 6


def test_what_a_question_raises_leaves_its_reader_usable(sqlite: SQLiteStore) -> None:
    """A refusal inside a question costs no connection and leaves no open moment behind."""
    with pytest.raises(ZeroDivisionError), sqlite.reader() as reader:
        assert 1 // len(reader.after(0, 1))
    append(sqlite, "audit", 1)
    with sqlite.reader() as reader:
        assert 1 == len(reader.after(0, 10))
    assert 1 == len(sqlite._readers._idle)
