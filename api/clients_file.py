"""A clients file: TOML in, specs of clients and operators out.

Whatever is wrong is one line that names the file, the client or operator, and the field, and says what is allowed
there; a value is never repeated, because it may be a secret. An unknown field is an error: a typing mistake in
`allow_unbound_reuse` must not pass for a setting.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from api.logs import one_line
from ledger import scope
from ledger.changes import SERIAL_MAX, check_all
from ledger.clients import ClientSpec, OperatorSpec, Settings
from ledger.events import Words
from ledger.policy import PRESETS, Policy
from ledger.refusals import LedgerError, Refused
from ledger.registration import RANGES, SettingsRefused, allowed_number, owner_name

INTEGER_MAX: Final = 2**53 - 1
"""Above it JSON readers disagree on what an integer is (RFC 8785 3.2.2.3)."""

_PLACE = re.compile(r"at line (\d+), column (\d+)|at end of document")


class ClientsFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a clients file says, every rule checked that needs no store. `serial` is None where it has none."""

    serial: int | None
    clients: list[ClientSpec]
    operators: list[OperatorSpec]


class Unfit(Exception):
    """A field's value is not of the kind that it must be; the text says which. `inside` leads on into the field."""

    def __init__(self, problem: str, inside: str = "") -> None:
        super().__init__(problem)
        self.inside = inside


Reader = Callable[[object], Any]
"""Takes what TOML gives for a field and returns what a spec holds. Raises Unfit."""


def load(path: Path) -> ClientsFile:
    """Read a clients file. Raises LedgerError: one line with the file's name and the first thing that is wrong."""
    file = one_line(str(path))
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise LedgerError(f"{file}: cannot be read: {error.strerror or type(error).__name__}") from None
    except UnicodeDecodeError:
        raise LedgerError(f"{file}: is not UTF-8 text") from None
    try:
        return parsed(text)
    except LedgerError as error:
        raise LedgerError(f"{file}: {error}") from None


def parsed(text: str) -> ClientsFile:
    """Read the text of a clients file. Raises LedgerError, SettingsRefused where it belongs to one owner's field."""
    tables = _tables(text)
    _check_known(tables, ("serial", "client", "operator"), "the file")
    serial = tables.get("serial")
    if serial is not None and (type(serial) is not int or not 1 <= serial <= SERIAL_MAX):
        raise LedgerError(f"serial: may be a whole number from 1 to {SERIAL_MAX}")
    clients = [_client(*each) for each in _entries(tables, "client", "id")]
    operators = [_operator(*each) for each in _entries(tables, "operator", "name")]
    check_all(clients, operators)
    return ClientsFile(serial=serial, clients=clients, operators=operators)


def _tables(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise LedgerError("is nested too deeply") from None
    except ValueError as error:
        # What the parser says may quote the text, and the text may hold secrets: the place alone is told.
        place = _PLACE.search(str(error))
        raise LedgerError(f"is no valid TOML{f' ({place[0]})' if place else ''}") from None


def _entries(tables: Mapping[str, Any], kind: str, name_field: str) -> Iterable[tuple[str, str, dict[str, Any]]]:
    """The tables of one kind: what a line calls each, its name, and its fields."""
    entries = tables.get(kind, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise LedgerError(f"{kind}: is written as tables that begin with [[{kind}]]")
    for number, entry in enumerate(entries, start=1):
        name = entry.get(name_field)
        if not isinstance(name, str):
            problem = "missing" if name is None else "may be text"
            raise SettingsRefused(f"{kind} number {number}", name_field, problem)
        yield owner_name(kind, name), name, {key: value for key, value in entry.items() if key != name_field}


def _fields(owner: str, entry: Mapping[str, Any], readers: Mapping[str, Reader]) -> dict[str, Any]:
    """The entry's values by their fields, each as its reader makes it. Raises SettingsRefused."""
    _check_known(entry, readers, owner)
    read = {}
    for field, value in entry.items():
        try:
            read[field] = readers[field](value)
        except Unfit as unfit:
            raise SettingsRefused(owner, field + unfit.inside, str(unfit)) from None
    return read


def _check_known(entry: Iterable[str], known: Iterable[str], owner: str) -> None:
    names = list(known)
    for field in entry:
        if field not in names:
            raise SettingsRefused(owner, _shown(field), "is unknown" + _suggestion(field, names))


def _suggestion(field: str, names: list[str]) -> str:
    close = difflib.get_close_matches(field, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _shown(field: str) -> str:
    return one_line(field[:80])


# ---------------------------------------------------------------- what a field may be


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Unfit("may be text")
    return value


def _switch(value: object) -> bool | None:
    if not isinstance(value, bool):
        raise Unfit("may be true or false")
    return value or None


def _texts(value: object) -> Words:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise Unfit("may be a list of texts")
    return tuple(dict.fromkeys(value))


def _some_texts(value: object) -> Words | None:
    return _texts(value) or None


def _text_or_texts(value: object) -> Words:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        raise Unfit("may be text, or a list of texts")
    return tuple(dict.fromkeys(value))


def _scope(value: object) -> Words:
    try:
        return scope.parse(_text(value))
    except Refused:
        raise Unfit("may be words of printable ASCII with one space between") from None


def _keys(value: object) -> Words:
    """A key set (RFC 7517 5): its keys, each as canonical JSON."""
    keys = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(value, dict) or value.keys() != {"keys"} or not isinstance(keys, list) or not keys:
        raise Unfit("may be { keys = [ … ] }")
    return tuple(_key(key, f".keys[{index}]") for index, key in enumerate(keys))


def _key(key: object, inside: str) -> str:
    if not isinstance(key, dict):
        raise Unfit("may be a table", inside)
    for name, member in key.items():
        of_json = (
            isinstance(member, str | bool)
            or (isinstance(member, int) and abs(member) <= INTEGER_MAX)
            or (isinstance(member, list) and all(isinstance(each, str) for each in member))
        )
        if not of_json or not name.isascii():
            raise Unfit("may hold texts, whole numbers, true, false and lists of texts", inside)
    return msgspec.json.encode(key, order="sorted").decode()


# ---------------------------------------------------------------- policy


def _policy(value: object) -> tuple[str, Policy]:
    """A policy and the preset it is built on. A text is a preset's name; in a table `preset` names the base."""
    table = {"preset": value} if isinstance(value, str) else value
    if not isinstance(table, dict):
        raise Unfit("may be the name of a preset, or a table")
    preset = table.get("preset", "standard")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise Unfit(f"may be one of {', '.join(PRESETS)}", ".preset" if table is value else "")
    known = ("preset", *Policy.__struct_fields__)
    fields = {}
    for field, given in table.items():
        if field not in known:
            raise Unfit("is unknown" + _suggestion(field, list(known)), f".{_shown(field)}")
        if field != "preset":
            fields[field] = _policy_number(field, given) if field in RANGES else _policy_word(field, given)
    return preset, msgspec.structs.replace(PRESETS[preset], **fields)


def _policy_number(field: str, given: object) -> int | None:
    low, high, words = RANGES[field]
    if isinstance(given, str) and given in words:
        return None if given == "unlimited" else 0
    if type(given) is not int or not low <= given <= high:
        raise Unfit(f"may be {allowed_number(field)}", f".{field}")
    return given


def _policy_word(field: str, given: object) -> str:
    if not isinstance(given, str):
        raise Unfit("may be text", f".{field}")
    return given


# ---------------------------------------------------------------- clients and operators

_SETTINGS: Final[Mapping[str, Reader]] = {
    "auth": _text,
    "scope": _scope,
    "grant_types": _texts,
    "jwks": _keys,
    "jwks_uri": _text,
    "token_endpoint_auth_signing_alg": _text,
    "assertion_audience": _text,
    "tls_client_auth_subject_dn": _text,
    "tls_client_auth_san_dns": _text,
    "tls_client_auth_san_uri": _text,
    "tls_client_auth_san_ip": _text,
    "tls_client_auth_san_email": _text,
    "dpop_bound_access_tokens": _switch,
    "dpop_nonce_required": _switch,
    "tls_client_certificate_bound_access_tokens": _switch,
    "resource": _some_texts,
    "may_introspect": _some_texts,
    "origins": _some_texts,
    "redirect_uris": _some_texts,
    "allow_unbound_reuse": _switch,
}
_CLIENT: Final[Mapping[str, Reader]] = {
    **_SETTINGS,
    "secret": _text_or_texts,
    "secret_hash": _text_or_texts,
    "policy": _policy,
}
_OPERATOR: Final[Mapping[str, Reader]] = {
    "token": _text_or_texts,
    "token_hash": _text_or_texts,
    "roles": _texts,
    "clients": _texts,
}


def _client(owner: str, client_id: str, entry: Mapping[str, Any]) -> ClientSpec:
    fields = _fields(owner, entry, _CLIENT)
    preset, policy = fields.get("policy", ("standard", PRESETS["standard"]))
    settings = {field: value for field, value in fields.items() if field in _SETTINGS}
    if settings.get("auth") == "private_key_jwt":
        settings.setdefault("assertion_audience", "issuer")  # recorded, so that no later default rewrites the past
    return ClientSpec(
        client_id=client_id,
        secrets=fields.get("secret", ()),
        preset=preset,
        settings=Settings(**settings, policy=policy, secret_hashes=fields.get("secret_hash", ())),
    )


def _operator(owner: str, name: str, entry: Mapping[str, Any]) -> OperatorSpec:
    fields = _fields(owner, entry, _OPERATOR)
    return OperatorSpec(
        name=name,
        roles=fields.get("roles", ()),
        tokens=fields.get("token", ()),
        token_hashes=fields.get("token_hash", ()),
        clients=fields.get("clients"),
    )
