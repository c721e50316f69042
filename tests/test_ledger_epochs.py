"""Epochs: two numbers must say what the whole list of raises says (I-06, I-07)."""

from typing import Any, TypeAlias

import msgspec
import pytest
from hypothesis import find, given
from hypothesis import strategies as st

from ledger import times
from ledger.acts import Act
from ledger.commands import EpochEnd
from ledger.epochs import Epoch, Raise, Subject, first_hit
from ledger.events import ClientRevoked, SubjectErased, SubjectRevoked
from ledger.refusals import Refusal, Refused

T0 = times.micros("2026-03-01T10:00:00.000000Z")
PERSON = "5ubj"
ACT = Act(at=T0, command_id="c" * 32, requested_by="operator:soc")


def raised(epoch: int, before: int | None = None, *, reason_class: str = "withdrawal") -> SubjectRevoked:
    """Raise `epoch` of a person, at that many seconds after T0."""
    return SubjectRevoked(
        stream=f"subject:{PERSON}",
        v=epoch,
        at=times.text(T0 + epoch * times.SECOND),
        command_id="c" * 32,
        subject_id=PERSON,
        epoch=epoch,
        before=None if before is None else times.text(before),
        reason_class=reason_class,
        requested_by="operator:soc",
    )


def folded(*events: SubjectRevoked | SubjectErased) -> Subject:
    subject = Subject()
    for event in events:
        subject.evolve(event)
    return subject


# ---------------------------------------------------------------- one raise


def test_a_raise_says_everything_that_its_version_1_has() -> None:
    """`subject.revoked` as it is stored: number, class, commitment of the reason, who asked, and when."""
    event = Subject().decide_revocation(PERSON, ACT, before=T0 - 5, reason="a" * 64, reason_class="withdrawal")
    assert event is not None
    assert {
        "topic": "subject.revoked",
        "stream": "subject:5ubj",
        "v": 1,
        "at": "2026-03-01T10:00:00.000000Z",
        "command_id": "c" * 32,
        "subject_id": "5ubj",
        "epoch": 1,
        "before": "2026-03-01T09:59:59.999995Z",
        "reason": "a" * 64,
        "reason_class": "withdrawal",
        "requested_by": "operator:soc",
    } == msgspec.to_builtins(event)


def test_a_raise_without_before_ends_what_was_issued_under_a_lower_number() -> None:
    """All grants there were; one issued afterwards lives."""
    epoch = folded(raised(1)).epoch
    assert (True, False) == (epoch.hits(0, T0), epoch.hits(1, T0))


def test_a_raise_with_before_ends_what_was_issued_earlier_than_that() -> None:
    """Earlier, not at the same microsecond."""
    epoch = folded(raised(1, before=T0)).epoch
    assert (True, False) == (epoch.hits(0, T0 - 1), epoch.hits(0, T0))


def test_a_later_raise_with_an_earlier_before_narrows_nothing() -> None:
    """An end is final (I-07)."""
    assert folded(raised(1, before=T0)).epoch == msgspec.structs.replace(
        folded(raised(1, before=T0), raised(2, before=T0 - 60)).epoch, number=1
    )
    assert folded(raised(1), raised(2, before=T0 - 60)).epoch.hits(0, T0)


def test_before_may_not_lie_in_the_future() -> None:
    """Else two numbers could not say what the list says; the present moment is no future."""
    with pytest.raises(Refused) as refused:
        Subject().decide_revocation(PERSON, ACT, before=T0 + 1, reason_class="withdrawal")
    assert Refusal.INVALID_REQUEST is refused.value.refusal
    assert Subject().decide_revocation(PERSON, ACT, before=T0, reason_class="withdrawal") is not None


@pytest.mark.parametrize(
    ("history", "before", "issued_since", "writes"),
    [
        ((), None, True, True),
        ((), None, False, False),  # a person without grants
        ((raised(1),), None, False, False),  # asked twice
        ((raised(1),), None, True, True),  # signed in again in between
        ((raised(1), raised(2, before=T0 - 9)), None, False, False),
        ((), T0 - 9, True, True),
        ((raised(1, before=T0 - 9),), T0 - 9, True, False),  # asked twice
        ((raised(1, before=T0 - 9),), T0 - 10, True, False),
        ((raised(1, before=T0 - 9),), T0 - 8, True, True),
        ((raised(1),), T0 - 9, True, True),  # the clock may have run backwards since: who knows
    ],
)
def test_a_raise_that_ends_nothing_more_writes_nothing(
    history: tuple[SubjectRevoked, ...], before: int | None, issued_since: bool, writes: bool
) -> None:
    """An action that changes nothing answers alike and writes nothing."""
    event = folded(*history).decide_revocation(
        PERSON, ACT, before=before, reason_class="withdrawal", issued_since=issued_since
    )
    assert writes == (event is not None)
    if event is not None:
        assert len(history) + 1 == event.epoch == event.v


def test_times_of_a_stream_never_run_backwards() -> None:
    """A clock set back writes the stream's last time again (I-16)."""
    event = folded(raised(7)).decide_revocation(PERSON, ACT, reason_class="reuse")
    assert event is not None
    assert "2026-03-01T10:00:07.000000Z" == event.at


def test_an_erasure_is_said_once() -> None:
    """`subject.erased` follows the person's last raise in the same stream."""
    subject = folded(raised(1))
    event = subject.decide_erasure(PERSON, ACT)
    assert event is not None
    assert ("subject.erased", "subject:5ubj", 2, "operator:soc") == (
        event.topic, event.stream, event.v, event.requested_by,
    )  # fmt: skip
    subject.evolve(event)
    assert subject.decide_erasure(PERSON, ACT) is None


def test_a_raise_folded_twice_changes_nothing() -> None:
    """A view that was read from the store after the append may still be told of the same event."""
    once = folded(raised(1, before=T0), raised(2))
    assert once == folded(raised(1, before=T0), raised(2), raised(1, before=T0), raised(2))


def test_a_snapshot_of_a_subject_is_the_subject() -> None:
    """I-13: state is plain, so its bytes are a snapshot."""
    subject = folded(raised(1, before=T0), raised(2))
    assert subject == msgspec.msgpack.decode(msgspec.msgpack.encode(subject), type=Subject)


# ---------------------------------------------------------------- the end of a grant


def client_raise(epoch: int) -> ClientRevoked:
    members: dict[str, Any] = {name: getattr(raised(epoch), name) for name in ("at", "command_id", "epoch")}
    return ClientRevoked(
        stream="client:www", v=9, client_id="www", reason_class="termination", requested_by="operator:ops", **members
    )


@pytest.mark.parametrize(
    ("raises", "expected"),
    [
        ([raised(1)], ("subject:5ubj/1", Refusal.REVOKED_BY_SUBJECT, "withdrawal")),
        ([raised(1, reason_class="reuse")], ("subject:5ubj/1", Refusal.REUSE_DETECTED, "reuse")),
        ([client_raise(1)], ("client:www/9", Refusal.REVOKED_BY_OPERATOR, "termination")),
    ],
)
def test_the_owner_reads_who_ended_the_grant(raises: list[Raise], expected: tuple[str, Refusal, str]) -> None:
    """By the person or for them, by the operating side, or because another grant of the person saw reuse."""
    end = first_hit(raises, 0, T0)
    assert end is not None
    assert (*expected, T0 + times.SECOND) == (end.event_id, end.refusal, end.reason_class, end.at)


def test_the_first_raise_that_hits_is_the_end() -> None:
    """What came later found nothing to end any more (I-07)."""
    raises = [raised(1), raised(2, before=T0 - 1), raised(3), raised(4)]
    assert EpochEnd(
        event_id="subject:5ubj/3",
        at=T0 + 3 * times.SECOND,
        refusal=Refusal.REVOKED_BY_SUBJECT,
        reason_class="withdrawal",
    ) == first_hit(raises, 1, T0)
    assert first_hit(raises, 4, T0) is None
    assert first_hit([], 0, T0) is None


# ---------------------------------------------------------------- two numbers against the list

Step: TypeAlias = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("issue"), st.just(0)),
        st.tuples(st.just("raise"), st.just(0)),
        st.tuples(st.just("raise before"), st.integers(0, 40)),  # that long ago
        st.tuples(st.just("clock"), st.integers(-20, 20)),  # also backwards
    ),
    max_size=25,
)


class BlindToBefore(Epoch):
    """A broken twin: one number decides, as if every raise had no `before`."""

    def hits(self, issued_number: int, issued_at: int) -> bool:
        return self.number > issued_number


class OnceIsEnough(Epoch):
    """A broken twin: ending everything a second time taken for nothing, though grants were issued since."""

    def adds(self, before: int | None, *, issued_since: bool) -> bool:
        return super().adds(before, issued_since=issued_since and not self.unbounded)


class IncludingTheMoment(Epoch):
    """A broken twin: `before` taken as `at or before`."""

    def hits(self, issued_number: int, issued_at: int) -> bool:
        return self.unbounded > issued_number or (0 < self.latest_before and self.latest_before >= issued_at)


def disagreements(steps: list[Step], epoch_type: type[Epoch] = Epoch, *, clamp: bool = True) -> list[str]:
    """Live through the steps twice: as `Epoch`, and as a list of raises judged by the words of the rule."""
    subject = Subject(epoch=epoch_type())
    now, raises, grants, found = T0, list[SubjectRevoked](), list[tuple[int, int]](), list[str]()
    for kind, size in steps:
        if kind == "clock":
            now += size
        elif kind == "issue":
            issued_at = max(now, subject.epoch.latest_before) if clamp else now
            grants.append((subject.epoch.number, issued_at))
        else:
            act = Act(at=now, command_id="c" * 32, requested_by="operator:soc")
            before = now - size if kind == "raise before" else None
            issued_since = any(number >= subject.epoch.unbounded for number, _ in grants)
            event = subject.decide_revocation(
                PERSON, act, before=before, reason_class="withdrawal", issued_since=issued_since
            )
            if event is None:
                would_end = [
                    each for each in grants if not ended(raises, *each) and (before is None or each[1] < before)
                ]
                found += [f"a raise that ends {each} was not written" for each in would_end]
            else:
                subject.evolve(event)
                raises.append(event)
        for grant in grants:
            by_list = [event.event_id for event in raises if hit(event, *grant)]
            end = first_hit(raises, *grant)
            if subject.epoch.hits(*grant) != bool(by_list) or by_list[:1] != ([end.event_id] if end else []):
                found.append(f"{grant} is ended by {by_list}, {end} and {subject.epoch}")
    return found


def hit(event: SubjectRevoked, number: int, issued_at: int) -> bool:
    """The rule as it is worded: numbered above, and without `before` or with one later than the issuance."""
    return event.epoch > number and (event.before is None or times.micros(event.before) > issued_at)


def ended(raises: list[SubjectRevoked], number: int, issued_at: int) -> bool:
    return any(hit(event, number, issued_at) for event in raises)


@given(STEPS)
def test_two_numbers_say_what_the_list_of_raises_says(steps: list[Step]) -> None:
    """Every grant, after every step, whatever the clock does; and no raise that ends something goes unwritten."""
    assert [] == disagreements(steps)


@pytest.mark.parametrize("twin", [BlindToBefore, OnceIsEnough, IncludingTheMoment])
def test_a_broken_epoch_is_caught(twin: type[Epoch]) -> None:
    """The broken twins of the property above."""
    assert find(STEPS, lambda steps: bool(disagreements(steps, twin)))


def test_a_grant_issued_earlier_than_a_before_that_was_said_is_caught() -> None:
    """The property rests on `issued_at_least`: without it a clock that runs backwards breaks it."""
    assert find(STEPS, lambda steps: bool(disagreements(steps, clamp=False)))
