"""What a clients file changes: all its clients and operators against all that the ledger knows.

`compared` is pure. Its events belong into one transaction, so that a file rules as a whole or not at all; nothing is
recorded where it raises.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec

from ledger.acts import Act
from ledger.clients import Client, ClientSpec, HashSecret, Operator, OperatorSpec, Settings
from ledger.events import ClientEvent, OperatorEvent, Words
from ledger.policy import Policy
from ledger.refusals import LedgerError
from ledger.registration import SettingsRefused, check_client, check_operator, owner_name

Change: TypeAlias = Literal["registered", "returned", "changed", "disabled", "removed"]
SettingsEvent: TypeAlias = ClientEvent | OperatorEvent

SERIAL_MAX = 2**53 - 1
"""The greatest serial. It stands in events, and above this JSON readers disagree on what an integer is (RFC 8785)."""

LIFETIMES = ("access_token_ttl_seconds", "refresh_token_ttl_seconds", "grant_ttl_seconds")


class Difference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What changes for one client (`kind` "client") or operator: which fields, never to what.

    `fields` are spelled as in a clients file; `shortened` those of them that make lifetimes shorter. `live_grants`:
    how many live grants a disabled client takes along, or a returning one brings back, where that was counted; one that
    is suspended by itself is not among them.
    """

    kind: Literal["client", "operator"]
    name: str
    change: Change
    fields: Words = ()
    shortened: Words = ()
    live_grants: int | None = None

    def line(self) -> str:
        """One line for a person."""
        text = f"{owner_name(self.kind, self.name)}: {self.change}"
        if self.fields:
            text += f": {', '.join(self.fields)}"
        if self.live_grants is not None:
            verb = "suspends" if self.change == "disabled" else "brings back"
            text += f"; {verb} {self.live_grants} live grant{'' if self.live_grants == 1 else 's'}"
        if self.shortened:
            text += f"; {', '.join(self.shortened)} got shorter: dates that were set stay as they are"
        return text


class ApplyReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What applying a clients file changed, or with `dry_run` would change. `serial` is the file's."""

    differences: Sequence[Difference]
    serial: int | None = None
    dry_run: bool = False

    def lines(self) -> list[str]:
        """One line a difference, for a person."""
        return [each.line() for each in self.differences] or ["nothing changes"]


def compared(
    known: Mapping[str, Client],
    known_operators: Mapping[str, Operator],
    clients: Sequence[ClientSpec],
    operators: Sequence[OperatorSpec],
    *,
    act: Act,
    serial: int | None,
    last_serial: int | None,
    hash_secret: HashSecret,
) -> tuple[list[SettingsEvent], list[Difference]]:
    """The events that make everything as the specs say, each with its difference, in the order of the file; whoever
    the file leaves out comes last.

    `known` are all clients and operators of the ledger, disabled ones too; `last_serial` the highest that was applied.
    Raises SettingsRefused for a spec that breaks a rule, and LedgerError for a serial that is too low or missing.
    """
    check_serial(serial, last_serial)
    check_all(clients, operators)
    _check_tokens(operators, hash_secret)
    found: list[tuple[SettingsEvent, Difference]] = []
    for spec in clients:
        client = known.get(spec.client_id) or Client()
        ruling = spec.ruling(hash_secret)
        if (event := client.decide_settings(spec.client_id, ruling, act, serial=serial)) is not None:
            found.append((event, _client_difference(client, spec.client_id, ruling)))
    for name in sorted(known.keys() - {spec.client_id for spec in clients}):
        if (gone := known[name].decide_absence(act, serial=serial)) is not None:
            found.append((gone, Difference(kind="client", name=name, change="disabled")))
    for wanted in operators:
        operator = known_operators.get(wanted.name) or Operator()
        hashes = wanted.hashes(hash_secret)
        if (said := operator.decide_settings(wanted, hashes, act, serial=serial)) is not None:
            found.append((said, _operator_difference(operator, wanted, hashes)))
    for name in sorted(known_operators.keys() - {spec.name for spec in operators}):
        if (left := known_operators[name].decide_absence(act, serial=serial)) is not None:
            found.append((left, Difference(kind="operator", name=name, change="removed")))
    return [event for event, _ in found], [difference for _, difference in found]


def check_serial(serial: int | None, last_serial: int | None) -> None:
    """A file may not be older than the last one applied, so that no node brings back what another disabled.

    Raises LedgerError where its serial is lower, or missing though one was applied before, or none at all.
    """
    if serial is not None and not 1 <= serial <= SERIAL_MAX:
        raise LedgerError(f"serial: may be a whole number from 1 to {SERIAL_MAX}")
    if last_serial is None:
        return
    if serial is None:
        raise LedgerError(f"serial: missing, and a file with serial {last_serial} was applied before")
    if serial < last_serial:
        raise LedgerError(f"serial: {serial} is lower than {last_serial}, which was applied before")


def check_all(clients: Sequence[ClientSpec], operators: Sequence[OperatorSpec]) -> None:
    """Every rule that needs nothing but the specs. Raises SettingsRefused."""
    ids: set[str] = set()
    for spec in clients:
        check_client(spec)
        if spec.client_id in ids:
            raise SettingsRefused(owner_name("client", spec.client_id), "id", "stands twice in the file")
        ids.add(spec.client_id)
    names: set[str] = set()
    for operator in operators:
        check_operator(operator)
        if operator.name in names:
            raise SettingsRefused(owner_name("operator", operator.name), "name", "stands twice in the file")
        names.add(operator.name)


def _check_tokens(operators: Sequence[OperatorSpec], hash_secret: HashSecret) -> None:
    # An operator is found by the token alone: one token of two would be one of them, nobody could say which.
    owners: dict[str, str] = {}
    for spec in operators:
        for token_hash in spec.hashes(hash_secret):
            if owners.setdefault(token_hash, spec.name) != spec.name:
                other = owner_name("operator", owners[token_hash])
                raise SettingsRefused(owner_name("operator", spec.name), "token", f"is also a token of {other}")


def _client_difference(client: Client, client_id: str, ruling: Settings) -> Difference:
    if not client.settings_v:
        return Difference(kind="client", name=client_id, change="registered")
    before, after = _by_field(client.settings), _by_field(ruling)
    return Difference(
        kind="client",
        name=client_id,
        change="changed" if client.enabled else "returned",
        fields=tuple(field for field in after if before[field] != after[field]),
        shortened=_shortened(client.settings.policy, ruling.policy),
    )


def _by_field(settings: Settings) -> dict[str, object]:
    fields: dict[str, object] = {}
    for name in settings.__struct_fields__:
        if name == "policy":
            fields |= {f"policy.{each}": getattr(settings.policy, each) for each in Policy.__struct_fields__}
        else:
            fields["secret" if name == "secret_hashes" else name] = getattr(settings, name)
    return fields


def _shortened(before: Policy, after: Policy) -> Words:
    def shorter(field: str) -> bool:
        old, new = getattr(before, field), getattr(after, field)
        return new is not None and (old is None or new < old)

    return tuple(f"policy.{field}" for field in LIFETIMES if shorter(field))


def _operator_difference(operator: Operator, spec: OperatorSpec, hashes: Words) -> Difference:
    if not operator.v:
        return Difference(kind="operator", name=spec.name, change="registered")
    pairs = {
        "token": (operator.token_hashes, hashes),
        "roles": (operator.roles, spec.roles),
        "clients": (operator.clients, spec.clients),
    }
    return Difference(
        kind="operator",
        name=spec.name,
        change="changed" if operator.enabled else "returned",
        fields=tuple(field for field, (before, after) in pairs.items() if before != after),
    )
