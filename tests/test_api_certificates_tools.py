"""Client certificates as others make and show them: the guide's commands, a thousand connections to one process."""

import base64
import contextlib
import json
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.certificate_clients import VERSIONS, client, jwks
from tests.certificates import authority, certificate
from tests.mutual_tls import mutual
from tests.server_process import eventually
from tests.servers import Server, clients_toml, running
from tests.serving import logged
from tests.wire import Connection

OPENSSL, CURL = shutil.which("openssl"), shutil.which("curl")


@pytest.mark.skipif(OPENSSL is None or CURL is None, reason="neither openssl nor curl is needed for anything else")
def test_the_commands_of_the_guide_do_what_it_says(tmp_path: Path) -> None:
    """What `openssl` makes and prints is what is registered, and `cURL` signs in with it; version 1 is refused."""

    def run(*words: str) -> str:
        return subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    run("openssl", "req", "-x509", *new, "-keyout", "own.key", "-out", "own.pem", "-subj", "/C=SE/CN=own")
    run("openssl", "req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=My CA")
    subject = "/C=SE/O=Example, Inc./CN=app/emailAddress=ops@example.org"
    run("openssl", "req", *new, "-keyout", "app.key", "-out", "app.csr", "-subj", subject)
    (tmp_path / "app.ext").write_text("extendedKeyUsage = clientAuth\n")
    signs = ("openssl", "x509", "-req", "-in", "app.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", "1")
    run(*signs, "-out", "app.pem", "-extfile", "app.ext")
    subject = run("openssl", "x509", "-in", "app.pem", "-noout", "-subject", "-nameopt", "RFC2253")
    x5c = base64.b64encode(ssl.PEM_cert_to_DER_cert((tmp_path / "own.pem").read_text())).decode()
    tables = (
        client("app", "tls_client_auth", f"tls_client_auth_subject_dn = '{subject.removeprefix('subject=').strip()}'"),
        client("own", "self_signed_tls_client_auth", f'jwks = {{ keys = [ {{ x5c = ["{x5c}"] }} ] }}'),
    )
    with mutual(tmp_path, "\n".join(tables), tls_client_ca=tmp_path / "ca.pem") as ledger:
        assert ledger.trusting is not None
        trusted = ledger.trusting.get_ca_certs(binary_form=True)
        (tmp_path / "server.pem").write_text("".join(map(ssl.DER_cert_to_PEM_cert, trusted)))

        def refresh(name: str, certificate: str) -> Any:
            form = f"grant_type=refresh_token&client_id={name}&refresh_token={ledger.issue(name)['refresh_token']}"
            url = f"https://localhost:{ledger.running.port}/oauth/v2/oauth-token"
            shown = ("--cert", certificate, "--key", f"{name}.key", "--cacert", "server.pem")
            return json.loads(run("curl", "-s", *shown, "-d", form, url))

        assert "read" == refresh("own", "own.pem")["scope"] == refresh("app", "app.pem")["scope"]
        run(*signs, "-out", "app1.pem")
        if "Version: 1 " in run("openssl", "x509", "-in", "app1.pem", "-noout", "-text"):
            with logged() as lines:
                assert "invalid_client" == refresh("app", "app1.pem")["error"]
            assert "not_vouched_for" in lines.events


def test_connections_with_certificates_leave_nothing_behind(tmp_path: Path, count: Callable[[int, int], int]) -> None:
    """A thousand of them, good and refused, of both versions, resumed and not: no descriptor stays, nor memory."""
    ca, own = authority(), certificate("CN=own")
    (tmp_path / "ca.pem").write_text(ca.pem)
    parties = [certificate(f"CN=app{number}", by=ca) for number in range(10)]
    table = client("own", "self_signed_tls_client_auth", jwks(own))
    settings = {"TLS_CLIENT_CA": str(tmp_path / "ca.pem"), "LOG_LEVEL": "info"}
    with running(tmp_path / "server", clients=clients_toml(more=table), settings=settings, tls=True) as server:
        assert server.client_tls is not None
        shown = [
            each.shown_by(server.client_tls, tmp_path, version=version)
            for each in (own, *parties, certificate("CN=stranger"))
            for version in VERSIONS
        ]
        sessions: dict[int, ssl.SSLSession | None] = {}

        def connect(number: int) -> None:
            kind = number % len(shown)
            with (
                contextlib.suppress(ssl.SSLError, ConnectionError),
                Connection(("127.0.0.1", server.port), tls=shown[kind], session=sessions.get(kind)) as connection,
            ):
                raw = server.refresh_request("www", "rt1_nothing")
                assert 400 == server.exchange(raw, over=connection).status
                assert isinstance(connection.socket, ssl.SSLSocket)
                sessions[kind] = connection.socket.session if number % 3 else None

        for number in range(count(30, 500)):
            connect(number)
        settled = (files_of(server), memory_kib_of(server))
        for number in range(count(100, 1000)):
            connect(number)
        eventually(lambda: files_of(server) <= settled[0], what=f"no more than {settled[0]} open files")
        assert memory_kib_of(server) - settled[1] < count(4096, 8192)


def files_of(server: Server) -> int:
    assert server.process is not None
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def memory_kib_of(server: Server) -> int:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])
