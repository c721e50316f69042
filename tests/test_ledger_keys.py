"""Which keys sign, verify or are distrusted, as the log says it."""

from typing import Literal, TypeAlias

import msgspec
import pytest

from ledger import times
from ledger.acts import Act
from ledger.events import KeyEvent
from ledger.keys import Keys
from ledger.refusals import Refusal, Refused

T0 = times.micros("2026-03-01T10:00:00.000000Z")
ACT = Act(at=T0, command_id="c" * 32, requested_by="operator:local")

Step: TypeAlias = tuple[Literal["rotate", "activate", "distrust"], int]


def decided(keys: Keys, step: Step) -> KeyEvent | None:
    verb, key_id = step
    match verb:
        case "rotate":
            return keys.decide_rotation(key_id, f"{key_id:032x}", ACT)
        case "activate":
            return keys.decide_activation(key_id, ACT)
        case "distrust":
            return keys.decide_distrust(key_id, ACT)


def after(*steps: Step) -> Keys:
    keys = Keys()
    for step in steps:
        event = decided(keys, step)
        assert event is not None
        keys.evolve(event)
    return keys


TWO: tuple[Step, ...] = (("rotate", 1), ("activate", 1), ("rotate", 2))


def test_a_new_key_verifies_and_signs_only_when_it_is_told_to() -> None:
    """Every node can read the ring before the first token of the new key is out."""
    assert ("active", "verifying") == tuple(after(*TWO).state(key_id) for key_id in (1, 2))
    assert ("verifying", "active") == tuple(after(*TWO, ("activate", 2)).state(key_id) for key_id in (1, 2))


def test_of_a_key_that_an_earlier_release_added_no_fingerprint_is_known() -> None:
    """It cannot be told from another of its id, and is taken for what it says it is."""
    keys = Keys()
    event = keys.decide_rotation(1, "f" * 32, ACT)
    keys.evolve(event)
    assert {1: "f" * 32} == keys.fingerprints
    earlier = Keys()
    earlier.evolve(msgspec.structs.replace(event, fingerprint=None))
    assert ({1: T0}, {}) == (earlier.created_at, earlier.fingerprints)
    stored: list[object] = msgspec.to_builtins(earlier)
    assert earlier == msgspec.convert(stored[:-1], Keys), "as its snapshot was written"


def test_a_distrusted_key_is_named_with_the_event_that_said_so() -> None:
    """The owner of a token of it reads that event's id."""
    keys = after(*TWO, ("activate", 2), ("distrust", 1))
    assert ({1: "keys/5"}, "distrusted", 5) == (keys.distrusted, keys.state(1), keys.v)
    assert {1: T0, 2: T0} == keys.created_at


@pytest.mark.parametrize(
    ("step", "refusal"),
    [
        (("rotate", 0), Refusal.CONFLICT),
        (("rotate", 256), Refusal.CONFLICT),
        (("rotate", 2), Refusal.CONFLICT),  # never used twice
        (("activate", 3), Refusal.NOT_FOUND),
        (("distrust", 3), Refusal.NOT_FOUND),
        (("distrust", 1), Refusal.CONFLICT),  # the one that signs
    ],
)
def test_what_the_keys_do_not_allow(step: Step, refusal: Refusal) -> None:
    """A key id is 1-255 and never used twice; there is always a key that signs."""
    with pytest.raises(Refused) as refused:
        decided(after(*TWO), step)
    assert refusal is refused.value.refusal


def test_a_distrusted_key_never_signs_again() -> None:
    """Whoever has stolen it must not be helped by a mistake."""
    with pytest.raises(Refused, match="key 1 is distrusted and never signs again"):
        decided(after(*TWO, ("activate", 2), ("distrust", 1)), ("activate", 1))


def test_what_was_said_before_writes_nothing() -> None:
    """An act that changes nothing answers alike."""
    assert decided(after(*TWO), ("activate", 1)) is None
    assert decided(after(*TWO, ("activate", 2), ("distrust", 1)), ("distrust", 1)) is None


def test_a_snapshot_of_the_keys_is_the_keys() -> None:
    """I-13; dictionaries with whole numbers as keys included."""
    keys = after(*TWO, ("activate", 2), ("distrust", 1))
    assert keys == msgspec.msgpack.decode(msgspec.msgpack.encode(keys), type=Keys)
    assert Keys().created_at == {} == Keys().distrusted
