"""Bounded memory (I-22): who came first leaves first, and looking for them costs next to nothing."""

from collections.abc import Callable, Iterator

import pytest

from ledger.bounded import AT_ONCE, make_room

MAX = 4_096


class Walked(dict[int, int]):
    """Counts how often somebody starts to walk over it, which is what steps over those that have left."""

    walks = 0

    def __iter__(self) -> Iterator[int]:
        self.walks += 1
        return super().__iter__()


def filled(let_in: Callable[[dict[int, int], int], None], comers: int) -> Walked:
    kept = Walked()
    for number in range(comers):
        let_in(kept, MAX)
        kept[number] = number
        assert len(kept) <= MAX
    return kept


def test_the_youngest_stay() -> None:
    """One too many, or a thousand: what is left came last, without a gap, and an eighth is free at most."""
    for comers in (MAX, MAX + 1, 3 * MAX + 7):
        kept = list(filled(make_room, comers))
        assert list(range(comers - len(kept), comers)) == kept
        assert min(comers, MAX) - AT_ONCE <= len(kept)


@pytest.mark.parametrize(("at_most", "left"), [(1, 0), (2, 1), (7, 6), (8, 6), (16, 13)])
def test_there_is_always_room_for_one_more(at_most: int, left: int) -> None:
    """Also where a bound is small, or was just made smaller."""
    kept = dict.fromkeys(range(100), 0)
    make_room(kept, at_most)
    assert list(range(100 - left, 100)) == list(kept)


def check_walks(let_in: Callable[[dict[int, int], int], None]) -> None:
    """Assert that few walks let many in."""
    assert filled(let_in, 5 * MAX).walks <= 4 * MAX // AT_ONCE + 1


def test_many_leave_with_one_walk() -> None:
    """A walk for each that leaves would come to the square of how many are kept."""
    check_walks(make_room)


def test_a_walk_for_each_is_caught() -> None:
    """The broken twin of the above."""

    def one_by_one(kept: dict[int, int], at_most: int) -> None:
        while len(kept) >= at_most:
            del kept[next(iter(kept))]

    with pytest.raises(AssertionError):
        check_walks(one_by_one)
