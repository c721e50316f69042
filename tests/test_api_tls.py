"""TLS: files that are wrong are one line each, new ones are taken while serving, and slow handshakes end in time."""

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from api import tls
from api.certificates import ClientCertificates
from api.server import Parser
from api.settings import Settings, SettingsError
from ledger import times
from ledger.authority import Authority
from ledger.clients import Client
from ledger.clients import Settings as ClientSettings
from tests.certificates import Party, authority, certificate
from tests.serving import PARSERS, Lines, Running, Shower, check_quiet, check_refused, logged, serving
from tests.wire import Connection, request_bytes


class Files:
    """A certificate for localhost and its key, as the server reads them, and a client that trusts its authority."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.settings = Settings(port=0, tls_cert=folder / "tls.pem", tls_key=folder / "tls.key")
        self.client = ssl.create_default_context()
        self.authority.configure_trust(self.client)
        self.issue()

    def issue(self, key_type: trustme.KeyType = trustme.KeyType.ECDSA) -> trustme.LeafCert:
        leaf = self.authority.issue_cert("localhost", "127.0.0.1", key_type=key_type)
        assert self.settings.tls_cert is not None
        assert self.settings.tls_key is not None
        self.settings.tls_cert.write_bytes(leaf.cert_chain_pems[0].bytes())
        self.settings.tls_key.write_bytes(leaf.private_key_pem.bytes())
        return leaf


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def refused(settings: Settings) -> str:
    with pytest.raises(SettingsError) as caught:
        tls.context_of(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_certificate_the_server_refuses_unless_plain_http_is_allowed() -> None:
    """TE-7: TLS is the default, and its absence a decision."""
    names = "TOKEN_LEDGER_TLS_CERT and TOKEN_LEDGER_TLS_KEY"
    said = f"{names} are missing: set both, or TOKEN_LEDGER_ALLOW_PLAIN_HTTP=1 behind a proxy"
    assert said == refused(Settings())
    assert tls.context_of(Settings(allow_plain_http=True)) is None


def test_files_that_are_wrong_are_named_with_what_is_wrong(files: Files, tmp_path: Path) -> None:
    """One line each: missing, a folder, no PEM, the other's key, a password."""
    cert, key = files.settings.tls_cert, files.settings.tls_key
    other, missing, text = tmp_path / "other.key", tmp_path / "missing", tmp_path / "text"
    other.write_bytes(trustme.CA().issue_cert("localhost").private_key_pem.bytes())
    text.write_text("nothing of the kind")

    def said(**changed: Any) -> str:
        return refused(replace(files.settings, **changed))

    assert f"TOKEN_LEDGER_TLS_CERT: {missing} cannot be read: No such file or directory" == said(tls_cert=missing)
    assert f"TOKEN_LEDGER_TLS_KEY: {missing} cannot be read: No such file or directory" == said(tls_key=missing)
    assert f"TOKEN_LEDGER_TLS_KEY: {tmp_path} cannot be read: Is a directory" == said(tls_key=tmp_path)
    assert f"TOKEN_LEDGER_TLS_CERT: {text} holds no certificate in PEM that OpenSSL accepts" == said(tls_cert=text)
    assert f"TOKEN_LEDGER_TLS_KEY: {text} holds no private key in PEM that OpenSSL accepts" == said(tls_key=text)
    assert f"TOKEN_LEDGER_TLS_KEY: {other} is not the key of the certificate in {cert}" == said(tls_key=other)
    assert key is not None
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"Secr3t!"),
        )
    )
    assert f"TOKEN_LEDGER_TLS_KEY: {locked} is encrypted; give the key without a password" == said(tls_key=locked)


def test_certificates_are_asked_for_only_where_authorities_are_named(files: Files, tmp_path: Path) -> None:
    """RFC 8705: optional for everybody; where nobody could show a good one, nobody is asked (a browser asks its
    person). A file that is wrong is one line."""
    plain = tls.context_of(files.settings)
    assert plain is not None
    assert (ssl.CERT_NONE, []) == (plain.verify_mode, plain.get_ca_certs())
    missing, file = tmp_path / "missing.pem", tmp_path / "ca.pem"
    file.write_text(authority().pem)
    asking = tls.context_of(replace(files.settings, tls_client_ca=file))
    assert asking is not None
    assert (ssl.CERT_OPTIONAL, 1) == (asking.verify_mode, len(asking.get_ca_certs()))
    assert ssl.OP_NO_RENEGOTIATION & asking.options
    said = refused(replace(files.settings, tls_client_ca=missing))
    assert f"TOKEN_LEDGER_TLS_CLIENT_CA: {missing} cannot be read: No such file or directory" == said
    file.write_text(certificate().pem)
    said = refused(replace(files.settings, tls_client_ca=file))
    assert f"TOKEN_LEDGER_TLS_CLIENT_CA: {file}: certificate 1 is no certificate authority" == said


class Registered:
    """Clients as the ledger's authority holds them; what `Anchors` reads of it."""

    def __init__(self) -> None:
        self.clients: dict[str, Client] = {}
        self.client_changes = 0

    def register(self, name: str, *parties: Party, enabled: bool = True) -> None:
        settings = ClientSettings(auth="self_signed_tls_client_auth", jwks=tuple(each.jwk for each in parties))
        self.clients[name] = Client(client_id=name, enabled=enabled, settings=settings)
        self.client_changes += 1


def test_anchors_follow_the_clients_and_cost_nothing_while_nothing_changes(files: Files) -> None:
    """Each certificate becomes an anchor once; those of disabled clients do not; one that OpenSSL cannot read is one
    log line and stops nobody else."""
    context = tls.context_of(files.settings)
    assert context is not None
    registered = Registered()
    anchors = tls.Anchors(context, cast(Authority, registered), ClientCertificates(lambda: 0))
    anchors.renew()
    assert ssl.CERT_NONE == context.verify_mode
    one, two, three = (certificate(f"CN={number}") for number in range(3))
    registered.register("one", one)
    registered.register("gone", three, enabled=False)
    anchors.renew()
    assert (ssl.CERT_OPTIONAL, 1) == (context.verify_mode, context.cert_store_stats()["x509"])
    registered.clients["more"] = Client(
        client_id="more",
        enabled=True,
        settings=ClientSettings(auth="none", jwks=(json.dumps({"x5c": ["MIIB"]}), two.jwk)),
    )
    assert 1 == context.cert_store_stats()["x509"]
    with logged() as lines:
        anchors.renew()
        assert 1 == context.cert_store_stats()["x509"]  # the number of changes is the same: it has not looked
        registered.client_changes += 1
        anchors.renew()
        anchors.renew()
    assert 2 == context.cert_store_stats()["x509"]
    assert ["certificate_not_trusted"] == [event for event in lines.events if event.startswith("certificate")]


@pytest.mark.parametrize("parser", PARSERS)
def test_requests_are_served_over_tls(files: Files, parser: Parser) -> None:
    """Versions 1.2 and 1.3, on both parsers and loops; a body too large and a malformed request as in plain HTTP."""
    fast = parser == "httptools"
    with serving(Shower(), settings=files.settings, parser=parser, fast_loop=fast) as running:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            files.client.minimum_version = files.client.maximum_version = version
            with running.connect(tls=files.client) as connection:
                for _ in range(3):
                    told = connection.exchange(request_bytes("POST", "/a", body=b"abc")).json()
                    assert ("https", "abc") == (told["scheme"], told["body"])
        with running.connect(tls=files.client) as connection:
            check_refused(connection.exchange(request_bytes("POST", "/a", body=b"x" * 100_000)), {413})
        with running.connect(tls=files.client) as connection:
            check_refused(connection.exchange(b"GET / HTTP/1.1\r\n\r\n"), {400})
            assert connection.closed_by_peer(4)


def test_old_versions_of_tls_are_refused(files: Files) -> None:
    """RFC 8996: nothing below 1.2."""
    context = tls.context_of(files.settings)
    assert context is not None
    assert ssl.TLSVersion.TLSv1_2 == context.minimum_version


@pytest.mark.parametrize("parser", PARSERS)
def test_who_does_not_speak_tls_is_no_event(files: Files, parser: Parser) -> None:
    """Plain HTTP, garbage and a cut connection at the handshake leave a word in the log for debugging alone."""
    fast = parser == "httptools"
    with (
        logged() as lines,
        serving(Shower(), settings=files.settings, parser=parser, fast_loop=fast) as running,
    ):
        for raw in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00" + b"x" * 600, b"\x16"):
            with socket.create_connection(("127.0.0.1", running.port), timeout=5) as connection:
                connection.sendall(raw)
                time.sleep(0.05)
        with running.connect(tls=files.client) as good:
            assert 200 == good.exchange(request_bytes("GET", "/a")).status
            good.cut()
        time.sleep(0.1)
    check_quiet(lines)
    ended = [record for record in lines.records if record.getMessage() == "handshake_ended"]
    assert 3 == len(ended)
    assert {logging.DEBUG} == {record.levelno for record in ended}


@pytest.mark.parametrize("parser", PARSERS)
def test_a_connection_counts_before_its_handshake(files: Files, parser: Parser) -> None:
    """The store needs files, and it comes first: what is too much is ended at once, however silent; a handshake that
    fails, is broken off or takes too long counts no more."""
    settings = replace(files.settings, request_timeout_seconds=1.0)
    with (
        logged() as lines,
        serving(Shower(), settings=settings, parser=parser, fast_loop=parser == "httptools") as running,
    ):
        running.server._listeners[0].connections_max = 5
        met = running.connect(tls=files.client)
        assert 200 == met.exchange(request_bytes("GET", "/a")).status
        silent = [running.connect() for _ in range(10)]
        assert 6 * [True] == [connection.closed_by_peer(3) for connection in silent[4:]]
        assert 6 == running.server.counts["too_many"]
        assert 200 == met.exchange(request_bytes("GET", "/a")).status
        silent[0].send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        silent[1].cut()
        silent[2].close()
        assert silent[3].closed_by_peer(3)
        with running.connect(tls=files.client) as later:
            assert 200 == later.exchange(request_bytes("GET", "/a")).status
        for connection in (met, silent[0], *silent[3:]):
            connection.close()
        deadline = time.monotonic() + 5
        while (running.server.connections or running.server.acceptor.handshakes) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (0, 0) == (running.server.connections, len(running.server.acceptor.handshakes))
    check_quiet(lines)


@pytest.mark.parametrize("parser", PARSERS)
def test_who_leaves_behind_its_handshake_has_asked_for_nothing(files: Files, parser: Parser) -> None:
    """The end of the handshake, a request and a reset, all before the server looks: nobody can tell any more whose
    request it is, so it is none."""
    fast = parser == "httptools"
    with serving(Shower(), settings=files.settings, parser=parser, fast_loop=fast) as running:
        connection = running.connect()
        received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = files.client.wrap_bio(received, to_send, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        connection.send(to_send.read())
        while to_send.pending == 0:
            received.write(connection.socket.recv(65_536))
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
        client.write(request_bytes("POST", "/a", body=b"abc"))

        async def sent_and_left() -> None:  # in the loop, so that nothing is read meanwhile
            connection.send(to_send.read())
            connection.cut()

        running.do(sent_and_left())
        with running.connect(tls=files.client) as other:
            other.exchange(request_bytes("POST", "/a", body=b"met"))
        assert [b"met"] == running.server.app.bodies
        deadline = time.monotonic() + 5
        while running.server.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert 0 == running.server.connections


@pytest.mark.parametrize("parser", PARSERS)
def test_slow_handshakes_and_slow_requests_end_in_time(files: Files, parser: Parser) -> None:
    """H19: silent before the handshake, silent after it, half a request."""
    settings = replace(files.settings, request_timeout_seconds=1.0)
    fast = parser == "httptools"
    with (
        logged() as lines,
        serving(Shower(), settings=settings, parser=parser, fast_loop=fast) as running,
    ):
        address = ("127.0.0.1", running.port)
        silent = Connection(address, timeout_seconds=5)
        greeted = Connection(address, timeout_seconds=5, tls=files.client)
        begun = Connection(address, timeout_seconds=5, tls=files.client)
        begun.send(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\na")
        started = time.monotonic()
        assert silent.closed_by_peer(4)
        assert greeted.closed_by_peer(4)
        check_refused(begun.answer(), {408})
        assert begun.closed_by_peer(4)
        assert time.monotonic() - started < 3
        for connection in (silent, greeted, begun):
            connection.close()
    check_quiet(lines)


def serial(running: Running, client: ssl.SSLContext) -> int:
    """That of the certificate which a client is shown."""
    with running.connect(tls=client) as connection:
        assert isinstance(connection.socket, ssl.SSLSocket)
        certificate: Any = connection.socket.getpeercert()
        return int(certificate["serialNumber"], 16)


def end_of(lines: Lines) -> dict[str, Any]:
    """What the one line about the certificate's end says; it is forgotten then."""
    found = [record for record in lines.records if record.msg == "certificate_expires"]
    lines.records.clear()
    if not found:
        return {}
    [record] = found
    assert logging.WARNING == record.levelno
    return dict(record.__dict__["fields"])


def test_a_certificate_that_runs_out_soon_is_a_warning_and_shown_all_the_same(files: Files) -> None:
    """From two weeks before, at the start and at each reload; the moment is told of the one that is shown now."""

    def written(ends: float) -> int:
        assert files.settings.tls_cert is not None
        assert files.settings.tls_key is not None
        made = certificate("CN=localhost", days=(-2, ends))
        files.settings.tls_cert.write_text(made.pem + authority(days=(-9, -8)).pem)
        files.settings.tls_key.write_bytes(made.written(files.settings.tls_cert.parent).read_bytes())
        return int(made.certificate.not_valid_after_utc.timestamp())

    files.client.check_hostname, files.client.verify_mode = False, ssl.CERT_NONE
    expected = written(13.9)
    with logged() as lines, serving(Shower(), settings=files.settings) as running:
        for ends, warned in (13.9, {"expired": False}), (-1, {"expired": True}), (14.1, None):
            if ends != 13.9:
                expected = written(ends)
                running.do(running.server.reload())
            told = end_of(lines)
            assert expected == running.server.certificate_expires_at
            assert ({**warned, "expires_at": times.text(expected * times.SECOND)} if warned else {}) == told
            with running.connect(tls=files.client) as connection:
                assert 200 == connection.exchange(request_bytes("GET", "/a")).status
        assert files.settings.tls_key is not None
        files.settings.tls_key.write_text("nothing of the kind")
        running.do(running.server.reload())
        assert expected == running.server.certificate_expires_at
    with serving(Shower()) as plain:
        assert plain.server.certificate_expires_at is None


def serial_of(leaf: trustme.LeafCert) -> int:
    return x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).serial_number


def test_a_new_certificate_is_taken_while_serving_and_a_wrong_one_is_not(files: Files) -> None:
    """SIGHUP: what is wrong is one log line and changes nothing; open connections stay."""
    with logged() as lines, serving(Shower(), settings=files.settings) as running:
        first = serial(running, files.client)
        with running.connect(tls=files.client) as open_before:
            open_before.exchange(request_bytes("GET", "/a"))
            files.issue()
            running.do(running.server.reload())
            second = serial(running, files.client)
            assert first != second
            assert files.settings.tls_key is not None
            files.settings.tls_key.write_text("nothing of the kind")
            running.do(running.server.reload())
            assert second == serial(running, files.client)
            assert 200 == open_before.exchange(request_bytes("GET", "/a")).status
    assert ["reloaded", "reload_failed"] == [event for event in lines.events if event.startswith("reload")]


@pytest.mark.parametrize("parser", PARSERS)
def test_a_certificate_of_another_key_type_takes_the_place_of_the_old_one(files: Files, parser: Parser) -> None:
    """From EC to RSA and back: OpenSSL would show the EC one to whoever can read it, and the RSA one to all others."""
    only_rsa = ssl.create_default_context()
    files.authority.configure_trust(only_rsa)
    only_rsa.maximum_version = ssl.TLSVersion.TLSv1_2
    only_rsa.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    fast = parser == "httptools"
    with serving(Shower(), settings=files.settings, parser=parser, fast_loop=fast) as running:
        rsa = files.issue(trustme.KeyType.RSA)
        running.do(running.server.reload())
        assert serial_of(rsa) == serial(running, files.client) == serial(running, only_rsa)
        ec = files.issue(trustme.KeyType.ECDSA)
        running.do(running.server.reload())
        assert serial_of(ec) == serial(running, files.client)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            serial(running, only_rsa)


def test_a_certificate_read_later_comes_with_the_same_protocols(files: Files) -> None:
    """RFC 7301: who offers HTTP/2 as well learns that it is HTTP/1.1, as from the first one."""
    files.client.set_alpn_protocols(["h2", "http/1.1"])
    with serving(Shower(), settings=files.settings) as running:
        for _ in range(2):
            with running.connect(tls=files.client) as connection:
                assert isinstance(connection.socket, ssl.SSLSocket)
                assert "http/1.1" == connection.socket.selected_alpn_protocol()
            running.do(running.server.reload())


def test_a_reload_calls_what_else_is_to_be_read_again(files: Files) -> None:
    """The hook comes after the certificate, also where that was wrong."""
    called: list[str] = []

    async def again(server: object) -> None:
        await asyncio.sleep(0)
        called.append("again")

    with serving(Shower(), settings=files.settings, on_reload=again) as running:
        assert files.settings.tls_key is not None
        files.settings.tls_key.unlink()
        running.do(running.server.reload())
    assert ["again"] == called
