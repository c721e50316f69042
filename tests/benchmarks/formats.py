"""What a JWT access token costs beside an opaque one: `python -m tests.benchmarks.formats`.

One store, one client, the same load; in every round each way of making the access token in turn. Quote the differences
of CPU time: they are what survives a noisy machine.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.clients import CLIENTS
from tests.benchmarks.refresh import CONNECTIONS, drive
from tests.benchmarks.stock import stock
from tests.servers import Server

JWT_CLIENTS = CLIENTS.replace('policy = "standard"', 'policy = { preset = "standard", access_token_format = "jwt" }')
WAYS = ("opaque", "ES256", "EdDSA", "RS256")


@contextmanager
def serving(folder: Path, way: str) -> Iterator[Server]:
    """The ledger on the store in a folder, its access tokens made in this way."""
    clients = CLIENTS if way == "opaque" else JWT_CLIENTS
    server = Server(folder, clients=clients, settings={"LOG_LEVEL": "info", "REFRESH_PER_SECOND": "0"})
    server.start()
    try:
        if way != "opaque":
            rotated = server.command("keys", "rotate", "--alg", way)
            assert rotated.returncode == 0, rotated.stderr
            activated = server.command("keys", "activate", rotated.stdout.decode().split()[-1])
            assert activated.returncode == 0, activated.stderr
        yield server
    finally:
        assert server.terminate() == 0


def main() -> None:
    """Run some rounds and print each way's figures, and what it costs beside the opaque one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    asked = parser.parse_args()
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    rate: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="token-ledger-bench-") as name:
        folder = Path(name) / "store"
        tokens = stock(folder, grants=CONNECTIONS)
        for number in range(asked.rounds):
            for way in WAYS:
                with serving(folder, way) as server:
                    assert server.process is not None
                    pid = server.process.pid
                    found = drive(server.port, pid, tokens, connections=CONNECTIONS, seconds=asked.seconds)
                tokens = found.tokens
                cpu[way].append(found.cpu_us)
                rate[way].append(found.per_second)
                print(
                    f"round {number + 1}: {way:6} {found.per_second:6.0f}/s {found.cpu_us:5.0f} µs"
                    f" p50 {found.p50_ms:5.1f} p99 {found.p99_ms:5.1f} ms",
                    flush=True,
                )
    for way in WAYS:
        more = statistics.median(cpu[way]) - statistics.median(cpu["opaque"])
        share = statistics.median(rate[way]) / statistics.median(rate["opaque"])
        print(f"{way:6} {more:+5.0f} µs of CPU a refresh beside opaque, throughput x {share:.2f}")


if __name__ == "__main__":
    main()
