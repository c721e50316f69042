"""A closed-loop client: so many connections, each sending its next request when the last was answered.

A process of its own, so that it can be given another core than the server. Speaks just enough HTTP/1.1 to be faster
than what it measures: one write a request, one scan of each answer.
"""

import asyncio
import json
import ssl
import sys
import time
from collections.abc import Callable
from typing import cast
from urllib.parse import quote_plus

import uvloop

HEAD = (
    "POST /oauth/v2/oauth-token HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\n"
    "Content-Type: application/x-www-form-urlencoded\r\n{}Content-Length: {}\r\n\r\n"
)
MARK = b'"refresh_token":"'


def request(body: str, header: str) -> bytes:
    return (HEAD.format(header, len(body)) + body).encode()


class Chain(asyncio.Protocol):
    """One connection: takes a token from the pool, redeems it, gives its successor back, takes the next."""

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.buffer = b""
        self.taken = 0
        self.sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases
        self.send()

    def send(self) -> None:
        self.taken, token = self.run.take()
        self.sent_at = time.perf_counter()
        self.transport.write(request(self.run.credentials + token, self.run.header))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head_end = self.buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self.buffer[:head_end].lower()
        at = head.index(b"content-length:") + 15
        end = head_end + 4 + int(head[at:].split(b"\r\n", 1)[0])
        if len(self.buffer) < end:
            return
        answer, self.buffer = self.buffer[:end], self.buffer[end:]
        run = self.run
        if answer.startswith(b"HTTP/1.1 200"):
            start = answer.index(MARK) + len(MARK)
            run.give(self.taken, answer[start : answer.index(b'"', start)].decode())
            run.latencies.append(time.perf_counter() - self.sent_at)
        else:
            run.failed.append(answer[:400].decode("latin-1"))
            run.stop()
        if run.stopping:
            self.transport.close()
            run.gone()
        else:
            self.send()


class Run:
    """What all connections share: the pool of tokens, the figures, the end."""

    def __init__(self, tokens: list[str], credentials: str, connections: int, order: Callable[[int], int]) -> None:
        self.tokens = tokens
        self.credentials = credentials
        self.header = ""
        self.free = sorted(range(len(tokens)), key=order)
        self.connections = connections
        self.latencies: list[float] = []
        self.failed: list[str] = []
        self.stopping = False
        self.ended = asyncio.get_running_loop().create_future()

    def take(self) -> tuple[int, str]:
        index = self.free.pop()
        return index, self.tokens[index]

    def give(self, index: int, token: str) -> None:
        self.tokens[index] = token
        if self.connections == len(self.tokens):
            self.free.append(index)  # each connection its own chain
        else:
            self.free.insert(0, index) if len(self.free) < 64 else self.returned(index)

    def returned(self, index: int) -> None:
        """Shuffled order without moving a long list: swap with a place further down."""
        place = hash((index, len(self.latencies))) % len(self.free)
        self.free.append(self.free[place])
        self.free[place] = index

    def stop(self) -> None:
        self.stopping = True

    def gone(self) -> None:
        self.connections -= 1
        if not self.connections and not self.ended.done():
            self.ended.set_result(None)


async def drive(job: dict[str, object]) -> dict[str, object]:
    tokens = list(job["tokens"])  # type: ignore[call-overload]
    connections = int(str(job["connections"]))
    credentials = (
        f"grant_type=refresh_token&client_id=www&client_secret={quote_plus(str(job['secret']))}&refresh_token="
    )
    if "credentials" in job:  # of another way to say who one is
        credentials = f"grant_type=refresh_token&{job['credentials']}&refresh_token="
    run = Run(tokens, credentials, connections, lambda index: hash((index, 7)) if len(tokens) > connections else index)
    run.header = str(job.get("header", ""))
    tls = ssl.create_default_context(cafile=str(job["authority"])) if "authority" in job else None
    if tls is not None and "certificate" in job:
        tls.load_cert_chain(str(job["certificate"]))
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    for _ in range(connections):
        await loop.create_connection(lambda: Chain(run), "127.0.0.1", int(str(job["port"])), ssl=tls)
    loop.call_later(float(str(job["seconds"])), run.stop)
    await run.ended
    elapsed = time.perf_counter() - started
    found = sorted(run.latencies)
    return {
        "answers": len(found),
        "seconds": elapsed,
        "p50_ms": found[len(found) // 2] * 1000 if found else 0,
        "p99_ms": found[int(len(found) * 0.99)] * 1000 if found else 0,
        "failed": run.failed[:3],
        "tokens": run.tokens,
    }


def main() -> None:
    """Read a job (JSON) from standard input, run it, write its figures to standard output."""
    print(json.dumps(uvloop.run(drive(json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
