"""What a client certificate costs beside a secret: `python -m tests.benchmarks.certificates`.

One store, one client, the same load over connections that stay open, so that handshakes hardly count; in every round
each way to say who one is in turn, over plain HTTP behind a proxy and over TLS. Quote the differences of CPU time: they
are what survives a noisy machine.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from tests.benchmarks.clients import CLIENTS, SECRET
from tests.benchmarks.refresh import CONNECTIONS, Figures, drive
from tests.benchmarks.stock import stock
from tests.certificates import authority, certificate
from tests.servers import Server, basic

CA = authority()
APP = certificate("CN=app", by=CA)
OWN = certificate("CN=own")
BASIC = {"credentials": "hint=none", "header": f"Authorization: {basic('www', SECRET)}\r\n"}
NAMED = {"credentials": "client_id=www"}


def registered(auth: str, setting: str) -> str:
    """The client, registered to show a certificate instead of its secret."""
    before = f'secret = "{SECRET}"\nauth = "client_secret"\n'
    assert before in CLIENTS
    return CLIENTS.replace(before, f'auth = "{auth}"\n{setting}\n')


BY_NAME = registered("tls_client_auth", 'tls_client_auth_subject_dn = "CN=app"')
BY_CERTIFICATE = registered("self_signed_tls_client_auth", f'jwks = {{ keys = [{{ x5c = ["{OWN.x5c}"] }}] }}')


def ways(folder: Path) -> dict[str, tuple[str, bool, dict[str, str]]]:
    """Each way to say who one is: clients file, whether over TLS, what the load does otherwise."""
    app, own = str(APP.written(folder)), str(OWN.written(folder))
    return {
        "Basic": (CLIENTS, False, BASIC),
        "header, by name": (BY_NAME, False, {**NAMED, "header": f"Client-Cert: {APP.rfc9440}\r\n"}),
        "header, registered": (BY_CERTIFICATE, False, {**NAMED, "header": f"Client-Cert: {OWN.escaped}\r\n"}),
        "TLS, Basic": (CLIENTS, True, BASIC),
        "TLS, Basic and certificate": (CLIENTS, True, {**BASIC, "certificate": app}),
        "TLS, by name": (BY_NAME, True, {**NAMED, "certificate": app}),
        "TLS, registered": (BY_CERTIFICATE, True, {**NAMED, "certificate": own}),
    }


def measured(
    folder: Path, clients: str, tls: bool, otherwise: dict[str, str], tokens: list[str], seconds: float
) -> Figures:
    """One run of one way."""
    settings = {"LOG_LEVEL": "info", "REFRESH_PER_SECOND": "0", "TLS_CLIENT_CA": str(folder / "clients-ca.pem")}
    if not tls:
        settings |= {"TRUSTED_PROXIES": "127.0.0.1", "TLS_CLIENT_CERT_HEADER": "Client-Cert"}
    server = Server(folder, clients=clients, settings=settings, tls=tls)
    server.start()
    try:
        assert server.process is not None
        if tls:
            otherwise = {**otherwise, "authority": str(folder / "ca.pem")}
        pid = server.process.pid
        return drive(server.port, pid, tokens, connections=CONNECTIONS, seconds=seconds, **otherwise)
    finally:
        assert server.terminate() == 0


def main() -> None:
    """Run some rounds and print each way's figures, and what it costs beside Basic on the same kind of connection."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="token-ledger-bench-") as name:
        folder = Path(name) / "store"
        tokens = stock(folder, grants=CONNECTIONS)
        (folder / "clients-ca.pem").write_text(CA.pem)
        found: dict[str, list[Figures]] = {}
        for number in range(asked.rounds):
            for way, (clients, tls, otherwise) in ways(folder).items():
                run = measured(folder, clients, tls, otherwise, tokens, asked.seconds)
                tokens = run.tokens
                found.setdefault(way, []).append(run)
                print(f"round {number + 1}: {way:27} {run.per_second:6.0f}/s {run.cpu_us:5.0f} µs", flush=True)
    for way, runs in found.items():
        beside = found["TLS, Basic" if way.startswith("TLS") else "Basic"]
        more = statistics.median(each.cpu_us for each in runs) - statistics.median(each.cpu_us for each in beside)
        print(f"{way:27} {more:+5.0f} µs of CPU a refresh beside Basic")


if __name__ == "__main__":
    main()
