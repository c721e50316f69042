"""What a process remembers of a stream: who acted on it, within bounds, and in no text."""

import pytest

from ledger.answers import Source
from ledger.bounded import make_room
from ledger.epochs import Subject
from ledger.grant import Grant
from ledger.memory import CONTEXTS_MAX, Loaded
from ledger.private import PrivateGrant
from ledger.uses import Uses

NONCE, SALT = bytes(32), bytes(range(16))


def loaded() -> Loaded:
    """A grant in memory, of which nobody is remembered."""
    return Loaded("grant:00", "00", 7, 9, None, Grant(), PrivateGrant(NONCE, SALT))


def test_so_many_sources_are_remembered_each_with_its_own_commitment() -> None:
    """The last one always; one that is forgotten is hashed again, which costs no more than that."""
    grant, sources = loaded(), [Source(f"192.0.2.{number}", "app/1") for number in range(3 * CONTEXTS_MAX)]
    assert None is grant.context_of(sources[0])
    most = 0
    for number, source in enumerate(sources):
        grant.keep_context(source, f"c{number}")
        assert f"c{number}" == grant.context_of(source)
        told = [grant.context_of(each) for each in sources]
        assert {f"c{each}" for each, context in enumerate(told) if context is not None} == {*told} - {None}
        most = max(most, sum(context is not None for context in told))
    assert CONTEXTS_MAX == most
    grant.forget_contexts()
    assert [None] * len(sources) == [grant.context_of(each) for each in sources]


def test_no_text_of_it_shows_who_acted() -> None:
    """Addresses and user agents are private rows too: a struct would write out every field."""
    grant = loaded()
    for source in (Source("192.0.2.1", "app/1"), Source("192.0.2.2", "app/2")):
        grant.keep_context(source, "c")
    assert "<Loaded grant:00/7>" == repr(grant) == f"{grant}"


def remember_persons(count: int, at_most: int) -> Uses:
    """Memory that so many persons' streams came into, each of whom bears on what others may do, with room for few."""
    streams = Uses()
    for number in range(count):
        name = f"subject:{number:032x}"
        streams[name] = Loaded(name, number, 1, number, None, Subject(), is_authority=True)
        make_room(streams, at_most)
    assert streams._of_authority == {*streams}, "names of streams that have left"
    return streams


def test_memory_of_authority_has_its_bounds_too() -> None:
    """Whoever leaves memory, in whatever way, leaves no name behind."""
    streams = remember_persons(500, 50)
    first, second, *_ = streams
    streams.pop(first)
    del streams[second]
    assert streams._of_authority == {*streams}
    streams["grant:00"] = loaded()
    streams.forget_authority()
    assert ["grant:00"] == [*streams]
    streams = remember_persons(3, 50)
    streams.clear()
    assert set() == streams._of_authority


def test_names_that_stay_behind_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin of the test above: who has to make room is deleted as from any dictionary."""
    monkeypatch.delattr(Uses, "__delitem__")
    with pytest.raises(AssertionError, match="have left"):
        remember_persons(500, 50)
