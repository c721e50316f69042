"""The view that every decision reads: who there is, which rules bear on a grant, and which end by epoch (I-06).

On real database files, through the batches that the server itself uses.
"""

import msgspec
import pytest

from ledger import authority as module
from ledger import times
from ledger.authority import Authority
from ledger.commands import EpochEnd
from ledger.refusals import Refusal
from tests.authority_houses import T0, WWW, Grant, House

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


def test_who_is_known_is_not_learned_anew(house: House) -> None:
    """I-06: of an end in the batch under way the store knows nothing yet, nor does what is fetched meanwhile."""
    with house.batch() as batch:
        house.register(batch)
        house.end_subject(batch)
        house.authority.hold_subjects({"ann": None})
        assert house.authority.rules(Grant()).epoch_end is not None
    head = house.store.head("subject:ann")
    with house.batch() as batch:
        house.end_subject(batch)
        house.authority.hold_subjects({"ann": head})
        assert 2 == house.authority.rules(Grant()).subject_epoch
