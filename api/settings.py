"""Every setting of the program: defaults, over them an optional TOML file, over that the environment.

A name that is none and a value that does not fit are errors of one line, naming the setting and what is allowed. A
value is never repeated: whoever pastes a secret into the wrong place must not find it in a log.
"""

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, get_args
from urllib.parse import urlsplit

from api.logs import LogFormat, LogLevel, one_line
from api.tracing import TRACING

PREFIX = "TOKEN_LEDGER_"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DAYS_MAX: Final = 36_500

_SQLITE: Final = "sqlite:///"
_POSTGRESQL: Final = "postgresql://"
_BESIDE_KEYS_FILE: Final = Path("<KEYS_FILE>.head")  # a default that depends on another setting
_OF_THE_DATABASE: Final = ("", "-wal", "-shm", "-journal", ".lock", ".sock", ".archive")
_OF_A_SERVICE: Final = re.compile(
    r"\w+_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_[0-9]+_[A-Z]+(?:_PROTO|_PORT|_ADDR)?)=.*|\w+_PORT=[a-z]+://.*"
)
_DEFAULT_ISSUER: Final = ""
_READ_OTHERWISE: Final = (
    *("authorization", "connection", "content-length", "content-type", "dpop", "expect", "host", "idempotency-key"),
    *("origin", "transfer-encoding", "user-agent", "x-forwarded-for"),
)


class SettingsError(Exception):
    """A setting is wrong: one line that names it and says what is allowed, never the value."""


# -- what a value may be: each takes text, or a typed value from the file, and raises ValueError(what is allowed) --


def _text(raw: object) -> str:
    if not isinstance(raw, str) or not raw or not raw.isprintable():
        raise ValueError("text without control characters")
    return raw


def _path(raw: object) -> Path:
    # What ends in a folder's own name (`.`, `..`, `/`) names no file, nor anything beside one.
    if not isinstance(raw, str) or "\0" in raw or Path(raw).name in ("", ".."):
        raise ValueError("the path of a file")
    return Path(raw)


def _head_file(raw: object) -> Path | None:
    return None if raw == "off" else _path(raw)


def _database_url(raw: object) -> str:
    allowed = "sqlite:///FILE (sqlite:////FILE for an absolute path) or postgresql://…"
    text = raw if isinstance(raw, str) and raw.isprintable() else ""
    if text.startswith(_POSTGRESQL) and len(text) > len(_POSTGRESQL):
        return text
    file = text.removeprefix(_SQLITE)
    # SQLite's own spellings for "no file at all", and for options, would quietly mean something else.
    if not text.startswith(_SQLITE) or file in ("", "/", ":memory:") or file.startswith("file:") or set("?#") & {*file}:
        raise ValueError(allowed)
    return text


def _switch(raw: object) -> bool:
    values = {"1": True, "true": True, "0": False, "false": False}
    found = values.get(str(raw).lower()) if isinstance(raw, bool | int | str) else None
    if found is None:
        raise ValueError("1, 0, true or false")
    return found


def _whole(low: int, high: int) -> Callable[[object], int]:
    def parse(raw: object) -> int:
        if isinstance(raw, str) and re.fullmatch(r"[0-9]{1,12}", raw):
            raw = int(raw)
        if not isinstance(raw, int) or isinstance(raw, bool) or not low <= raw <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return raw

    return parse


def _number(low: float, high: float) -> Callable[[object], float]:
    def parse(raw: object) -> float:
        if isinstance(raw, str) and re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", raw):
            raw = float(raw)
        if not isinstance(raw, int | float) or isinstance(raw, bool) or not low <= raw <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return float(raw)

    return parse


def _days(never: str) -> Callable[[object], int | None]:
    whole = _whole(1, DAYS_MAX)

    def parse(raw: object) -> int | None:
        if raw == never:
            return None
        try:
            return whole(raw)
        except ValueError as error:
            raise ValueError(f"{never} or {error}") from None

    return parse


def _one_of(*values: str) -> Callable[[object], str]:
    def parse(raw: object) -> str:
        if not isinstance(raw, str) or raw.lower() not in values:
            raise ValueError(f"{', '.join(values[:-1])} or {values[-1]}")
        return raw.lower()

    return parse


def _url_without(signs: str, allowed: str) -> Callable[[object], str]:
    def parse(raw: object) -> str:
        text = raw if isinstance(raw, str) else ""
        try:
            parts = urlsplit(text)
            port_fits = parts.port != 0
        except ValueError:
            port_fits = False
        plain = re.fullmatch(r"[\x21\x23-\x5b\x5d-\x7e]+", text) is not None
        web = plain and port_fits and parts.scheme in ("https", "http") and bool(parts.hostname)
        if not web or set(signs) & {*text}:
            raise ValueError(allowed)
        return text

    return parse


def _networks(raw: object) -> tuple[Network, ...]:
    entries = [entry.strip() for entry in raw.split(",")] if isinstance(raw, str) else raw
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError("networks or addresses, separated by commas")
    try:
        return tuple(_network(entry) for entry in entries if entry)
    except ValueError:
        raise ValueError("networks or addresses without host bits, separated by commas") from None


def _network(text: str) -> Network:
    """One whose addresses are IPv4 ones written as IPv6 (RFC 4291 2.5.5.2) is that of IPv4: so is each peer taken."""
    network = ipaddress.ip_network(text)
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is None or network.prefixlen < 96:
        return network
    return ipaddress.IPv4Network((mapped, network.prefixlen - 96))


def _header_name(raw: object) -> str:
    name = raw if isinstance(raw, str) else ""
    taken = name.lower() in _READ_OTHERWISE or name.lower().encode() in TRACING
    if re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) is None or taken:
        raise ValueError("the name of a header that means nothing else here, such as Client-Cert")
    return name


# -- the settings -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the program was told; a value here has been checked. Raises SettingsError where two do not go together.

    `head_file` and `archive_after_days` None are `off`, `archive_retention_days` None is `unlimited`. `database_url`
    may hold a password, so the repr leaves it out.
    """

    database_url: str = field(default="sqlite:///token-ledger.db", repr=False)
    keys_file: Path = Path("token-ledger.keys")
    head_file: Path | None = _BESIDE_KEYS_FILE
    clients_file: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8443
    issuer: str = _DEFAULT_ISSUER
    authorization_endpoint: str | None = None
    workers: int = 1
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    allow_plain_http: bool = False
    trusted_proxies: tuple[Network, ...] = ()
    tls_client_cert_header: str | None = None
    clock_skew_seconds: int = 10
    request_body_bytes_max: int = 8192
    request_timeout_seconds: float = 10.0
    keep_alive_seconds: float = 75.0
    refresh_burst: int = 10
    refresh_per_second: float = 1.0
    archive_after_days: int | None = None
    archive_retention_days: int | None = None
    log_level: LogLevel = "info"
    log_format: LogFormat = "console"

    def __post_init__(self) -> None:
        if self.workers > 1 and self.sqlite_path is not None:
            raise SettingsError(
                "TOKEN_LEDGER_WORKERS: SQLite is served by one process; above 1 needs PostgreSQL as"
                " TOKEN_LEDGER_DATABASE_URL"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            missing, given = ("CERT", "KEY") if self.tls_cert is None else ("KEY", "CERT")
            raise SettingsError(
                f"TOKEN_LEDGER_TLS_{missing} is missing: TOKEN_LEDGER_TLS_{given} alone serves nothing (name the same"
                " file twice where it holds both)"
            )
        if self.tls_client_cert_header is not None and not self.trusted_proxies:
            raise SettingsError(
                "TOKEN_LEDGER_TLS_CLIENT_CERT_HEADER: believed from TOKEN_LEDGER_TRUSTED_PROXIES only, and there"
                " are none"
            )
        if self.tls_client_ca is not None and self.tls_cert is None and self.tls_client_cert_header is None:
            raise SettingsError(
                "TOKEN_LEDGER_TLS_CLIENT_CA: needs TOKEN_LEDGER_TLS_CERT and TOKEN_LEDGER_TLS_KEY, or"
                " TOKEN_LEDGER_TLS_CLIENT_CERT_HEADER behind a proxy"
            )
        if self.head_file is _BESIDE_KEYS_FILE:
            object.__setattr__(self, "head_file", self.keys_file.with_name(self.keys_file.name + ".head"))
        if self.head_file is not None:  # else it would be called a damaged head file, which is to be removed
            for name in ("keys_file", "clients_file", "tls_cert", "tls_key", "tls_client_ca", "sqlite_path"):
                file = getattr(self, name)
                if file is not None and os.path.realpath(file) == os.path.realpath(self.head_file):
                    setting = "database_url" if name == "sqlite_path" else name
                    raise SettingsError(f"TOKEN_LEDGER_HEAD_FILE: this file is TOKEN_LEDGER_{setting.upper()}'s")
        if self.sqlite_path is not None:  # SQLite empties and removes what it keeps there: a key ring would be gone
            database = os.path.realpath(self.sqlite_path)
            beside = {database + ending for ending in _OF_THE_DATABASE}
            for name in ("keys_file", "head_file"):
                file = getattr(self, name)
                if file is not None and os.path.realpath(file) in beside:
                    raise SettingsError(f"TOKEN_LEDGER_{name.upper()}: this file is one of the database's own")
        if self.issuer == _DEFAULT_ISSUER:
            object.__setattr__(self, "issuer", self._issuer_on(self.port))
        for name in ("issuer", "authorization_endpoint"):
            if (getattr(self, name) or "").startswith("http:") and not self.allow_plain_http:
                raise SettingsError(
                    f"TOKEN_LEDGER_{name.upper()}: allowed is an https URL; http needs TOKEN_LEDGER_ALLOW_PLAIN_HTTP"
                )

    @property
    def sqlite_path(self) -> Path | None:
        """The database file; None where the store is PostgreSQL."""
        if not self.database_url.startswith(_SQLITE):
            return None
        return Path(self.database_url.removeprefix(_SQLITE))

    def on_port(self, port: int) -> "Settings":
        """Return the same settings on another port (asked for 0, given 40123); an issuer by default follows it."""
        follows = self.issuer == self._issuer_on(self.port)
        return replace(self, port=port, issuer=_DEFAULT_ISSUER if follows else self.issuer)

    def _issuer_on(self, port: int) -> str:
        plain = self.allow_plain_http and self.tls_cert is None
        return f"{'http' if plain else 'https'}://localhost:{port}"


_PARSERS: Final[Mapping[str, Callable[[object], object]]] = {
    "database_url": _database_url,
    "keys_file": _path,
    "head_file": _head_file,
    "clients_file": _path,
    "host": _text,
    "port": _whole(0, 65535),
    "issuer": _url_without("?#@", "an https URL without query, fragment or user (RFC 8414)"),
    "authorization_endpoint": _url_without("#@", "an https URL without fragment or user (RFC 6749 3.1)"),
    "workers": _whole(1, 64),
    "tls_cert": _path,
    "tls_key": _path,
    "tls_client_ca": _path,
    "allow_plain_http": _switch,
    "trusted_proxies": _networks,
    "tls_client_cert_header": _header_name,
    "clock_skew_seconds": _whole(0, 300),
    "request_body_bytes_max": _whole(512, 1_048_576),
    "request_timeout_seconds": _number(0.1, 300),
    "keep_alive_seconds": _number(0.1, 3600),
    "refresh_burst": _whole(0, 1_000_000),
    "refresh_per_second": _number(0, 1_000_000),
    "archive_after_days": _days("off"),
    "archive_retention_days": _days("unlimited"),
    "log_level": _one_of(*get_args(LogLevel)),
    "log_format": _one_of(*get_args(LogFormat)),
}


def load(environment: Mapping[str, str], file: Path | None = None) -> Settings:
    """Read the settings; the environment wins over the file, and an empty variable counts as not set.

    Raises SettingsError for a file that cannot be read, an unknown name, or a value that does not fit.
    """
    values = {} if file is None else _from_file(file)
    for name, text in environment.items():
        if name.startswith(PREFIX):
            setting = name.removeprefix(PREFIX).lower()
            if _OF_A_SERVICE.fullmatch(f"{name}={text}"):
                raise SettingsError(
                    f"{one_line(name)[:80]}: Kubernetes has set it for a service of such a name; set"
                    " enableServiceLinks: false for the pod, or give the service another name"
                )
            if name != PREFIX + setting.upper() or setting not in _PARSERS:
                raise SettingsError(_unknown(name, [PREFIX + known.upper() for known in _PARSERS]))
            if text:
                values[setting] = _value(setting, text, name)
    return Settings(**values)


def _from_file(file: Path) -> dict[str, Any]:
    where = one_line(str(file))
    try:
        with file.open("rb") as opened:
            table = tomllib.load(opened)
    except OSError as error:
        raise SettingsError(f"the settings file {where} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"the settings file {where} is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line \d+, column \d+|end of document", str(error))
        raise SettingsError(f"the settings file {where} is not TOML ({place[0] if place else 'syntax'})") from None
    except RecursionError:
        raise SettingsError(f"the settings file {where} is nested too deeply") from None
    except ValueError:  # what Python will not make a number of
        raise SettingsError(f"the settings file {where} holds a number that is too long") from None
    for name in table:
        if name not in _PARSERS:
            raise SettingsError(f"{where}: {_unknown(name, list(_PARSERS))}")
    return {name: _value(name, raw, f"{where}: {name}") for name, raw in table.items()}


def _value(setting: str, raw: object, where: str) -> object:
    try:
        return _PARSERS[setting](raw)
    except ValueError as error:
        raise SettingsError(f"{where}: allowed is {error}") from None


def _unknown(name: str, known: list[str]) -> str:
    """Say so of a name, and which one is meant; `known` are written as it should have been."""
    alike = {_bare(each): each for each in known}
    close = difflib.get_close_matches(_bare(name), alike, n=1)
    return f"{one_line(name)[:80]} is no setting" + (f"; is {alike[close[0]]} meant?" if close else "")


def _bare(name: str) -> str:
    """A setting's name without what the environment and the file write differently."""
    return name.lower().removeprefix(PREFIX.lower())
