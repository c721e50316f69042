"""What a process remembers of a stream: who acted on it, within bounds, and in no text."""

from ledger.answers import Source
from ledger.grant import Grant
from ledger.memory import CONTEXTS_MAX, Loaded
from ledger.private import PrivateGrant

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
