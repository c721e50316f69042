"""A whole clients file against the whole ledger: what changes, in which words, and what refuses the file."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from ledger import times
from ledger.acts import Act
from ledger.changes import ApplyReport, Difference, SettingsEvent, compared
from ledger.clients import Client, ClientSpec, Operator, OperatorSpec, Settings
from ledger.events import (
    ClientChanged,
    ClientDisabled,
    ClientRegistered,
    ClientRevoked,
    OperatorChanged,
)
from ledger.policy import STANDARD
from ledger.refusals import LedgerError
from ledger.registration import SettingsRefused

ACT = Act(at=times.micros("2026-03-01T10:00:00.000000Z"), command_id="c" * 32, requested_by="operator:local")


def hashed(secret: str) -> str:
    return f"h1${secret.encode().hex():0>64}"


class Known:
    """A ledger in memory: files are applied to it one after the other."""

    def __init__(self) -> None:
        self.clients: dict[str, Client] = {}
        self.operators: dict[str, Operator] = {}
        self.serial: int | None = None

    def apply(
        self, clients: Sequence[ClientSpec], operators: Sequence[OperatorSpec] = (), serial: int | None = None
    ) -> tuple[list[SettingsEvent], list[Difference]]:
        events, differences = compared(
            self.clients, self.operators, clients, operators,
            act=ACT, serial=serial, last_serial=self.serial, hash_secret=hashed,
        )  # fmt: skip
        for event in events:
            if isinstance(event, ClientRegistered | ClientChanged | ClientDisabled | ClientRevoked):
                self.clients.setdefault(event.client_id, Client()).evolve(event)
            else:
                self.operators.setdefault(event.name, Operator()).evolve(event)
        self.serial = serial if serial is not None else self.serial
        return events, differences


def client(client_id: str, *secrets: str, **said: Any) -> ClientSpec:
    policy = msgspec.structs.replace(STANDARD, **said.pop("policy", {}))
    return ClientSpec(client_id=client_id, secrets=secrets or ("Secr3t!",), settings=Settings(policy=policy, **said))


def operator(name: str, *tokens: str, roles: tuple[str, ...] = ("security",)) -> OperatorSpec:
    return OperatorSpec(name=name, roles=roles, tokens=tokens or (f"token-of-{name}",))


def lines(known: Known, *clients: ClientSpec, operators: Sequence[OperatorSpec] = ()) -> list[str]:
    return ApplyReport(differences=known.apply(clients, operators)[1]).lines()


def test_a_file_registers_what_it_names_and_applied_again_changes_nothing() -> None:
    """In the order of the file; the second time no event at all, the secrets' hashes being the same."""
    known = Known()
    files = ([client("www"), client("app", scope=("read",))], [operator("soc"), operator("ops")])
    events, differences = known.apply(*files, serial=4)
    assert [
        ("client:www", "client.registered", 4),
        ("client:app", "client.registered", 4),
        ("operator:soc", "operator.registered", 4),
        ("operator:ops", "operator.registered", 4),
    ] == [(event.stream, event.topic, getattr(event, "serial", None)) for event in events]
    assert [
        'client "www": registered',
        'client "app": registered',
        'operator "soc": registered',
        'operator "ops": registered',
    ] == [difference.line() for difference in differences]
    assert ([], []) == known.apply(*files, serial=4)
    assert ["nothing changes"] == ApplyReport(differences=[]).lines()


def test_a_report_names_the_fields_that_changed_and_no_value() -> None:
    """As a clients file spells them."""
    known = Known()
    known.apply([client("www", "0ld!"), client("app")], [operator("soc")])
    assert [
        'client "www": changed: scope, secret, policy.retry_budget, origins',
        'operator "soc": changed: token, roles',
    ] == lines(
        known,
        client("www", "N3w!", scope=("read",), policy={"retry_budget": 7}, origins=("https://app.example",)),
        client("app"),
        operators=[operator("soc", "N3w!", roles=("security", "auditor"))],
    )


def test_another_order_of_secrets_is_a_change_because_it_tells_which_is_used() -> None:
    """The number of the secret that matched is what a metric counts."""
    known = Known()
    known.apply([client("www", "0ld!", "N3w!")])
    assert ['client "www": changed: secret'] == lines(known, client("www", "N3w!", "0ld!"))


def test_whoever_the_file_leaves_out_is_disabled_or_removed_and_back_in_it_returns() -> None:
    """The report has room for the live grants that go along and come back; the application counts them."""
    known = Known()
    known.apply([client("www"), client("app")], [operator("soc"), operator("ops")])
    events, differences = known.apply([client("www")], [operator("ops")])
    assert ["client.disabled", "operator.removed"] == [event.topic for event in events]
    assert [
        'client "app": disabled; suspends 1 live grant',
        'operator "soc": removed',
    ] == [
        msgspec.structs.replace(each, live_grants=1 if each.kind == "client" else None).line() for each in differences
    ]
    events, differences = known.apply(
        [client("www"), client("app", scope=("read",))], [operator("ops"), operator("soc", "N3w!")]
    )
    assert ["client.registered", "operator.registered"] == [event.topic for event in events]
    assert [
        'client "app": returned: scope; brings back 3 live grants',
        'operator "soc": returned: token',
    ] == [
        msgspec.structs.replace(each, live_grants=3 if each.kind == "client" else None).line() for each in differences
    ]
    assert ([], []) == known.apply(
        [client("www"), client("app", scope=("read",))], [operator("ops"), operator("soc", "N3w!")]
    )


@pytest.mark.parametrize(
    ("before", "after", "shorter"),
    [
        (100, 99, True),
        (100, 101, False),
        (None, 100, True),  # from unlimited
        (100, None, False),
        (100, 0, True),  # off
        (0, 100, False),
    ],
)
def test_a_shortened_lifetime_is_said_to_leave_dates_alone(
    before: int | None, after: int | None, shorter: bool
) -> None:
    """Configuration never moves a date that was set; who wants an end sooner raises an epoch."""
    known = Known()
    known.apply([client("www", policy={"refresh_token_ttl_seconds": before})])
    note = "; policy.refresh_token_ttl_seconds got shorter: dates that were set stay as they are" if shorter else ""
    assert [f'client "www": changed: policy.refresh_token_ttl_seconds{note}'] == lines(
        known, client("www", policy={"refresh_token_ttl_seconds": after})
    )


def test_an_operators_new_token_is_an_event_of_its_own() -> None:
    """`operator.changed` says all settings."""
    known = Known()
    known.apply([], [operator("soc")])
    ((event,), _) = known.apply([], [operator("soc", "N3w!")])
    assert isinstance(event, OperatorChanged)
    assert ((hashed("N3w!"),), ("security",), 2) == (event.token_hashes, event.roles, event.v)


# ---------------------------------------------------------------- files that are refused


@pytest.mark.parametrize(
    ("last", "serial", "line"),
    [
        (None, None, None),
        (None, 1, None),
        (5, 5, None),
        (5, 6, None),
        (5, 4, "serial: 4 is lower than 5, which was applied before"),
        (None, 2**53 - 1, None),
        (None, 2**53, "serial: may be a whole number from 1 to 9007199254740991"),
        (5, None, "serial: missing, and a file with serial 5 was applied before"),
    ],
)
def test_no_file_older_than_the_last_is_applied(last: int | None, serial: int | None, line: str | None) -> None:
    """Else a node with yesterday's file would bring back what another one disabled."""
    known = Known()
    known.apply([client("www")], serial=last)
    if line is None:
        assert 1 == len(known.apply([], serial=serial)[0])
        return
    with pytest.raises(LedgerError) as refused:
        known.apply([], serial=serial)
    assert line == str(refused.value)


@pytest.mark.parametrize(
    ("clients", "operators", "line"),
    [
        ([client("www"), client("www")], [], 'client "www": field id: stands twice in the file'),
        ([], [operator("soc"), operator("soc")], 'operator "soc": field name: stands twice in the file'),
        (
            [],
            [operator("soc", "a"), operator("ops", "b", "a")],
            'operator "ops": field token: is also a token of operator "soc"',
        ),
        (
            [],
            [operator("soc", "a"), OperatorSpec(name="ops", roles=("admin",), token_hashes=(hashed("a"),))],
            'operator "ops": field token: is also a token of operator "soc"',
        ),
        ([client("fine"), client("www", scope=("re ad",))], [], 'client "www": field scope: must be words, each once'),
        ([], [operator("soc", roles=())],
         'operator "soc": field roles: may hold issuer, auditor, security, admin, and at least one of them'),
    ],
)  # fmt: skip
def test_a_file_that_breaks_a_rule_is_refused_as_a_whole(
    clients: list[ClientSpec], operators: list[OperatorSpec], line: str
) -> None:
    """Nothing of it is recorded, not even what stands before the mistake."""
    known = Known()
    with pytest.raises(SettingsRefused) as refused:
        known.apply(clients, operators)
    assert line == str(refused.value)
    assert ({}, {}) == (known.clients, known.operators)


def test_clients_may_share_a_secret() -> None:
    """Two clients are told apart by their ids."""
    assert 2 == len(Known().apply([client("www", "same"), client("app", "same")])[0])


def test_a_report_survives_the_way_back_to_the_command() -> None:
    """A command beside a running server reads it as JSON; what is null is left out."""
    report = ApplyReport(
        differences=[
            Difference(kind="client", name="www", change="disabled", live_grants=2),
            Difference(kind="operator", name="soc", change="changed", fields=("token",)),
        ],
        dry_run=True,
    )
    assert {
        "differences": [
            {"kind": "client", "name": "www", "change": "disabled", "live_grants": 2},
            {"kind": "operator", "name": "soc", "change": "changed", "fields": ["token"]},
        ],
        "dry_run": True,
    } == msgspec.json.decode(msgspec.json.encode(report))
    assert report == msgspec.json.decode(msgspec.json.encode(report), type=ApplyReport)
