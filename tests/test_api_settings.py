"""Settings: the environment over a TOML file over defaults; what is wrong is one line that never shows a value."""

import dataclasses
import ipaddress
from pathlib import Path
from typing import Any

import pytest

from api.context import Contexts
from api.settings import Settings, SettingsError, load

SECRET = "hunter2-Secr3t!"


def env(**values: str) -> dict[str, str]:
    return {f"TOKEN_LEDGER_{name}": value for name, value in values.items()}


def test_without_any_setting_the_embedded_default_rules() -> None:
    """A newcomer sets nothing: a SQLite file here, loopback, TLS wanted."""
    expected = {
        "database_url": "sqlite:///token-ledger.db",
        "keys_file": Path("token-ledger.keys"),
        "head_file": Path("token-ledger.keys.head"),
        "clients_file": None,
        "host": "127.0.0.1",
        "port": 8443,
        "issuer": "https://localhost:8443",
        "authorization_endpoint": None,
        "workers": 1,
        "tls_cert": None,
        "tls_key": None,
        "tls_client_ca": None,
        "allow_plain_http": False,
        "trusted_proxies": (),
        "tls_client_cert_header": None,
        "clock_skew_seconds": 10,
        "request_body_bytes_max": 8192,
        "request_timeout_seconds": 10.0,
        "keep_alive_seconds": 75.0,
        "refresh_burst": 10,
        "refresh_per_second": 1.0,
        "archive_after_days": None,
        "archive_retention_days": None,
        "log_level": "info",
        "log_format": "console",
    }
    assert expected == dataclasses.asdict(load({"PATH": "/bin", "TOKEN_LEDGERX": "no prefix of ours"}))
    assert Path("token-ledger.db") == Settings().sqlite_path


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    """Three layers; an empty variable counts as not set, as container files write it."""
    file = tmp_path / "settings.toml"
    file.write_text('port = 9000\nhost = "::1"\nallow_plain_http = true\nrefresh_per_second = 0.5\n')
    settings = load(env(PORT="9443", HOST="", CLOCK_SKEW_SECONDS="7"), file)
    assert (9443, "::1", True, 0.5, 7) == (
        settings.port,
        settings.host,
        settings.allow_plain_http,
        settings.refresh_per_second,
        settings.clock_skew_seconds,
    )


def test_an_unknown_name_is_an_error_that_names_it_and_what_was_meant(tmp_path: Path) -> None:
    """A misspelt setting must not be silently the default."""
    with pytest.raises(SettingsError) as caught:
        load(env(PROT="1"))
    assert "TOKEN_LEDGER_PROT is no setting; is TOKEN_LEDGER_PORT meant?" == str(caught.value)
    with pytest.raises(SettingsError) as caught:
        load({"TOKEN_LEDGER_port": "1"})
    assert "TOKEN_LEDGER_port is no setting; is TOKEN_LEDGER_PORT meant?" == str(caught.value)
    file = tmp_path / "settings.toml"
    file.write_text("[token]\nidel_seconds = 1\n")
    with pytest.raises(SettingsError) as caught:
        load({}, file)
    assert f"{file}: token is no setting" == str(caught.value)
    for name in ("TLS_CLIENT_CA", "TOKEN_LEDGER_TLS_CLIENT_CA"):
        file.write_text(f'{name} = "ca.pem"\n')
        with pytest.raises(SettingsError) as caught:
            load({}, file)
        assert f"{file}: {name} is no setting; is tls_client_ca meant?" == str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "tcp://10.96.0.7:8443"),
        ("SERVICE_HOST", "10.96.0.7"),
        ("SERVICE_PORT", "8443"),
        ("SERVICE_PORT_HTTPS", "8443"),
        ("PORT_8443_TCP", "tcp://10.96.0.7:8443"),
        ("PORT_8443_TCP_ADDR", "10.96.0.7"),
        ("DB_PORT", "tcp://10.96.0.8:5432"),
        ("DB_SERVICE_HOST", "10.96.0.8"),
    ],
)
def test_what_kubernetes_sets_for_a_service_of_this_name_is_told(name: str, value: str) -> None:
    """It does so in every pod that starts after the service `token-ledger` was made: the first start went well."""
    with pytest.raises(SettingsError, match=f"^TOKEN_LEDGER_{name}: Kubernetes has set it .*ServiceLinks"):
        load(env(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PORT", SECRET, "a whole number from 0 to 65535"),
        ("PORT", "65536", "a whole number from 0 to 65535"),
        ("PORT", "١٢", "a whole number from 0 to 65535"),
        ("PORT", "-1", "a whole number from 0 to 65535"),
        ("WORKERS", "0", "a whole number from 1 to 64"),
        ("ARCHIVE_AFTER_DAYS", "0", "off or a whole number from 1 to 36500"),
        ("ARCHIVE_RETENTION_DAYS", "never", "unlimited or a whole number from 1 to 36500"),
        ("ALLOW_PLAIN_HTTP", "yes", "1, 0, true or false"),
        ("REQUEST_TIMEOUT_SECONDS", "0", "a number from 0.1 to 300"),
        ("REQUEST_TIMEOUT_SECONDS", "nan", "a number from 0.1 to 300"),
        ("REQUEST_TIMEOUT_SECONDS", "1e1", "a number from 0.1 to 300"),
        ("REQUEST_BODY_BYTES_MAX", "8k", "a whole number from 512 to 1048576"),
        ("LOG_LEVEL", "loud", "debug, info, warning or error"),
        ("LOG_FORMAT", "xml", "console or json"),
        ("HOST", "a\nb", "text without control characters"),
        ("ISSUER", "https://a.example?x=1", "an https URL without query, fragment or user (RFC 8414)"),
        ("ISSUER", "https://a.example/#f", "an https URL without query, fragment or user (RFC 8414)"),
        ("ISSUER", f"https://me:{SECRET}@a.example", "an https URL without query, fragment or user (RFC 8414)"),
        ("ISSUER", "https://a.example:99999", "an https URL without query, fragment or user (RFC 8414)"),
        ("ISSUER", "localhost", "an https URL without query, fragment or user (RFC 8414)"),
        ("AUTHORIZATION_ENDPOINT", "/authorize", "an https URL without fragment or user (RFC 6749 3.1)"),
        ("AUTHORIZATION_ENDPOINT", "https://a.example/#f", "an https URL without fragment or user (RFC 6749 3.1)"),
        ("TRUSTED_PROXIES", "10.0.0.1/8", "networks or addresses without host bits, separated by commas"),
        ("TRUSTED_PROXIES", "proxy", "networks or addresses without host bits, separated by commas"),
        ("DATABASE_URL", f"mysql://me:{SECRET}@db/x", "sqlite:///FILE (sqlite:////FILE for an absolute path) or"),
        ("KEYS_FILE", ".", "the path of a file"),
        ("KEYS_FILE", "/", "the path of a file"),
        ("HEAD_FILE", "a/..", "the path of a file"),
        ("DATABASE_URL", "sqlite://file", "sqlite:///FILE (sqlite:////FILE for an absolute path) or"),
        ("DATABASE_URL", "sqlite:///", "sqlite:///FILE (sqlite:////FILE for an absolute path) or"),
        ("DATABASE_URL", "sqlite:///:memory:", "sqlite:///FILE (sqlite:////FILE for an absolute path) or"),
        ("DATABASE_URL", "sqlite:///x.db?mode=ro", "sqlite:///FILE (sqlite:////FILE for an absolute path) or"),
    ],
)
def test_a_value_that_does_not_fit_is_one_line_without_the_value(name: str, value: str, allowed: str) -> None:
    """I-20: a secret pasted into the wrong place is not repeated."""
    with pytest.raises(SettingsError) as caught:
        load(env(**{name: value}))
    said = str(caught.value)
    assert said.startswith(f"TOKEN_LEDGER_{name}: allowed is {allowed}")
    assert "\n" not in said
    assert SECRET not in said
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = true", "{file}: port: allowed is a whole number from 0 to 65535"),
        ("port = 1.5", "{file}: port: allowed is a whole number from 0 to 65535"),
        ("keys_file = 3", "{file}: keys_file: allowed is the path of a file"),
        ("trusted_proxies = [1]", "{file}: trusted_proxies: allowed is networks or addresses, separated by commas"),
        ("allow_plain_http = 2", "{file}: allow_plain_http: allowed is 1, 0, true or false"),
        ('port = "Secr3t!', "the settings file {file} is not TOML (line 1, column 16)"),
        ("port = " + "9" * 5_000, "the settings file {file} holds a number that is too long"),
        (f"port = {'[' * 3_000}{']' * 3_000}", "the settings file {file} is nested too deeply"),
        ("port = 1\nport = 2", "the settings file {file} is not TOML (line 2, column 9)"),
    ],
)
def test_a_file_that_is_wrong_is_one_line_that_names_it(tmp_path: Path, text: str, said: str) -> None:
    """Types are those of TOML; the parser's own words never quote the file."""
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load({}, file)
    place = str(caught.value).partition(" (")[0]
    assert said.format(file=file).partition(" (")[0] == place
    assert "Secr3t!" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file, and one in another encoding, are errors of one line."""
    with pytest.raises(SettingsError, match=r"missing\.toml cannot be read: No such file or directory"):
        load({}, tmp_path / "missing.toml")
    latin = tmp_path / "latin.toml"
    latin.write_bytes('host = "ü"'.encode("latin-1"))
    with pytest.raises(SettingsError, match="is not UTF-8"):
        load({}, latin)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///ledger.db", Path("ledger.db")),
        ("sqlite:///data/ledger.db", Path("data/ledger.db")),
        ("sqlite:////var/lib/ledger.db", Path("/var/lib/ledger.db")),
        ("postgresql://me:pw@db/ledger", None),
    ],
)
def test_the_database_url_names_a_sqlite_file_or_postgresql(url: str, path: Path | None) -> None:
    """Three slashes are relative, four absolute, as everywhere in Python."""
    assert path == load(env(DATABASE_URL=url)).sqlite_path


def test_a_password_in_the_database_url_stays_out_of_the_repr() -> None:
    """I-20: settings are printed while something is mended."""
    settings = load(env(DATABASE_URL=f"postgresql://me:{SECRET}@db/ledger"))
    assert SECRET not in repr(settings)
    assert SECRET in settings.database_url


def test_more_than_one_worker_on_sqlite_is_refused_with_a_line_that_names_postgresql() -> None:
    """SQLite has one owner."""
    with pytest.raises(SettingsError, match=r"^TOKEN_LEDGER_WORKERS: .* PostgreSQL as TOKEN_LEDGER_DATABASE_URL$"):
        load(env(WORKERS="2"))
    assert 2 == load(env(WORKERS="2", DATABASE_URL="postgresql://db/x")).workers


def test_a_certificate_needs_its_key_and_a_key_its_certificate() -> None:
    """Half of the pair serves nothing, so it is no half-configured start."""
    with pytest.raises(
        SettingsError, match=r"^TOKEN_LEDGER_TLS_KEY is missing: TOKEN_LEDGER_TLS_CERT .*same file twice"
    ):
        load(env(TLS_CERT="c.pem"))
    with pytest.raises(SettingsError, match=r"^TOKEN_LEDGER_TLS_CERT is missing"):
        load(env(TLS_KEY="k.pem"))


def test_the_issuer_follows_port_and_scheme_unless_it_is_set() -> None:
    """RFC 8414 2: an https URL; http only where plain HTTP is allowed and no certificate is there."""
    assert "https://localhost:9" == load(env(PORT="9")).issuer
    assert "http://localhost:9" == load(env(PORT="9", ALLOW_PLAIN_HTTP="1")).issuer
    assert "https://localhost:9" == load(env(PORT="9", ALLOW_PLAIN_HTTP="1", TLS_CERT="c", TLS_KEY="k")).issuer
    assert "https://id.example/a/" == load(env(ISSUER="https://id.example/a/")).issuer
    with pytest.raises(SettingsError, match="http needs TOKEN_LEDGER_ALLOW_PLAIN_HTTP"):
        load(env(ISSUER="http://id.example"))
    with pytest.raises(SettingsError, match="http needs TOKEN_LEDGER_ALLOW_PLAIN_HTTP"):
        load(env(AUTHORIZATION_ENDPOINT="http://login.example"))
    assert load(env(AUTHORIZATION_ENDPOINT="http://login.example", ALLOW_PLAIN_HTTP="1")).authorization_endpoint


def test_a_port_given_by_the_system_moves_the_default_issuer_along() -> None:
    """Port 0 asks for any free one; an issuer that was set stays."""
    assert (40123, "http://localhost:40123") == _on_port(env(PORT="0", ALLOW_PLAIN_HTTP="1"))
    assert (40123, "https://id.example") == _on_port(env(PORT="0", ISSUER="https://id.example"))


def _on_port(environment: dict[str, str]) -> tuple[int, str]:
    settings = load(environment).on_port(40123)
    return settings.port, settings.issuer


@pytest.mark.parametrize("name", ["KEYS_FILE", "CLIENTS_FILE", "DATABASE_URL"])
def test_the_head_file_is_no_other_settings_file(tmp_path: Path, name: str) -> None:
    """It would be called a damaged one, which is to be removed: by whatever link it is reached."""
    (tmp_path / "link").symlink_to(tmp_path / "there")
    there = str(tmp_path / "there")
    given = {name: f"sqlite:///{there}" if name == "DATABASE_URL" else there}
    with pytest.raises(SettingsError, match=f"^TOKEN_LEDGER_HEAD_FILE: this file is TOKEN_LEDGER_{name}'s$"):
        load(env(HEAD_FILE=str(tmp_path / "link"), **given))


@pytest.mark.parametrize("name", ["KEYS_FILE", "HEAD_FILE"])
@pytest.mark.parametrize("ending", ["-wal", "-shm", "-journal", ".lock", ".sock", ".archive"])
def test_no_file_lies_where_the_database_has_its_own(tmp_path: Path, name: str, ending: str) -> None:
    """SQLite removes its log when it is closed, and a key ring that stood there is gone."""
    (tmp_path / "link").symlink_to(tmp_path / "there")
    given = {name: str(tmp_path / f"there{ending}")}
    with pytest.raises(SettingsError, match=f"^TOKEN_LEDGER_{name}: this file is one of the database's own$"):
        load(env(DATABASE_URL=f"sqlite:///{tmp_path / 'link'}", **given))


def test_the_head_file_stands_beside_the_key_ring_and_can_be_off() -> None:
    """The last acknowledged position must not lie inside the database it vouches for."""
    assert Path("/etc/ring.head") == load(env(KEYS_FILE="/etc/ring")).head_file
    assert Path("elsewhere") == load(env(HEAD_FILE="elsewhere")).head_file
    assert load(env(HEAD_FILE="off")).head_file is None


@pytest.mark.parametrize("value", ["10.0.0.0/8, ::1,192.0.2.7", ["10.0.0.0/8", "::1", "192.0.2.7"]])
def test_trusted_proxies_are_networks_or_single_addresses(tmp_path: Path, value: Any) -> None:
    """Text with commas or, in the file, a list."""
    file = tmp_path / "settings.toml"
    file.write_text(f"trusted_proxies = {value!r}".replace("'", '"'))
    expected = tuple(ipaddress.ip_network(text) for text in ("10.0.0.0/8", "::1/128", "192.0.2.7/32"))
    assert expected == load({}, file).trusted_proxies


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("fd00::/8", "fd00::/8"),
    ],
)
def test_a_proxy_may_be_named_by_its_address_as_a_socket_shows_it(text: str, expected: str) -> None:
    """RFC 4291 2.5.5.2: an IPv4 address in the form of an IPv6 one is the IPv4 address, and so is a network of them."""
    networks = load(env(TRUSTED_PROXIES=text)).trusted_proxies
    assert (ipaddress.ip_network(expected),) == networks
    if "." in text:
        assert Contexts(networks).trusts("::ffff:" + expected.partition("/")[0])
        assert Contexts(networks).trusts(expected.partition("/")[0])


@pytest.mark.parametrize(("text", "expected"), [("1", True), ("TRUE", True), ("0", False), ("false", False)])
def test_switches_are_one_zero_true_or_false(text: str, expected: bool) -> None:
    """No other spelling, so that `no` is never taken for a yes."""
    assert expected is load(env(ALLOW_PLAIN_HTTP=text)).allow_plain_http
