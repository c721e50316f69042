"""A closed-loop client: so many connections, each sending its next request when the last was answered.

A process of its own, so that it can be given another core than the server. Speaks just enough HTTP/1.1 to be faster
than what it measures: one write a request, one scan of each answer. All connections stand before the clock starts, and
whatever has to be signed was signed before.
"""

import asyncio
import json
import os
import random
import ssl
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import uvloop

from tests.wire import TOKEN_PATH

HEAD = (
    "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\n"
    "Content-Type: application/x-www-form-urlencoded\r\n{}Content-Length: {}\r\n\r\n"
)
MARK = b'"refresh_token"'
ONCE = "{once}"
SETTLING_SECONDS = 0.2
"""After the last handshake of TLS 1.3, whose end, as the client sees it, the server still has before it."""

ALL_SECONDS_MAX = 3600.0
"""So long a run may take whose end is that each of its tokens was used once."""


@dataclass
class Job:
    """What to send where, for how long. `form` and `header` say who refreshes: members of the body, and whole lines.

    Where either holds `ONCE`, it stands for one of `once`, another one with each request; when they are used up the run
    ends, early; so it does after `answers_max`. `authority` and `certificate` are files in PEM: whom to trust where it
    is TLS, and what to show.
    """

    port: int
    pid: int
    tokens: list[str]
    connections: int
    seconds: float
    form: str = ""
    header: str = ""
    once: list[str] = field(default_factory=list)
    authority: str | None = None
    certificate: str | None = None
    path: str = TOKEN_PATH
    answers_max: int | None = None


@dataclass
class Found:
    """What came of it. CPU is user and system time while requests ran, the server's and this client's own."""

    answers: int
    seconds: float
    server_cpu_seconds: float
    client_cpu_seconds: float
    p50_ms: float
    p99_ms: float
    failed: list[str]
    tokens: list[str]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Chain(asyncio.Protocol):
    """One connection: takes a token from the pool, redeems it, gives its successor back, takes the next."""

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.buffer = b""
        self.taken = 0
        self.sent_at = 0.0
        self.is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases

    def send(self) -> None:
        self.taken, token = self.run.take()
        raw = self.run.request(token)
        self.sent_at = time.perf_counter()
        self.transport.write(raw)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not _is_whole(self.buffer):
            return
        answer, self.buffer = self.buffer, b""
        run = self.run
        run.received_bytes += len(answer)
        if answer.startswith(b"HTTP/1.1 200"):
            start = answer.index(b'"', answer.index(MARK) + len(MARK)) + 1
            run.give(self.taken, answer[start : answer.index(b'"', start)].decode())
            run.latencies.append(time.perf_counter() - self.sent_at)
        else:
            run.failed.append(answer[:400].decode("latin-1"))
            run.stop()
        if run.stopping or run.is_used_up:
            self.is_over = True
            self.transport.close()
            run.gone()
        else:
            self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_over:
            self.run.failed.append(f"a connection was lost: {exc}")
            self.run.stop()
            self.run.gone()


def _is_whole(answer: bytes) -> bool:
    """Whether an answer has come to its end, by its length or, where it tells none, by its last chunk."""
    head_end = answer.find(b"\r\n\r\n")
    if head_end < 0:
        return False
    head = answer[:head_end].lower()
    at = head.find(b"content-length:")
    if at < 0:
        return answer.endswith(b"0\r\n\r\n")
    return len(answer) >= head_end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])


class Run:
    """What all connections share: the pool of tokens, what is sent with them, the figures, the end."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.tokens = job.tokens
        self.form = f"grant_type=refresh_token&{job.form}{'&' if job.form else ''}refresh_token="
        self.path = job.path
        self.header = job.header
        self.once = job.once if ONCE in job.form + job.header else None
        self.free = deque(_order(job))
        self.connections = job.connections
        self.latencies: list[float] = []
        self.received_bytes = 0
        self.kept = 0
        self.failed: list[str] = []
        self.stopping = False
        self.ended = asyncio.get_running_loop().create_future()

    @property
    def is_used_up(self) -> bool:
        """Whether nothing is left that another request could be made of, or may be asked for beside those under way."""
        most = self.job.answers_max
        if most is not None and len(self.latencies) + self.connections > most:
            return True
        return self.once is not None and not self.once

    def request(self, token: str) -> bytes:
        form, header = self.form, self.header
        if self.once is not None:
            once = self.once.pop()
            form, header = form.replace(ONCE, once), header.replace(ONCE, once)
        body = form + token
        return (HEAD.format(self.path, header, len(body)) + body).encode()

    def take(self) -> tuple[int, str]:
        index = self.free.pop()
        return index, self.tokens[index]

    def give(self, index: int, token: str) -> None:
        self.kept += token == self.tokens[index]
        self.tokens[index] = token
        if self.connections == len(self.tokens):
            self.free.append(index)  # each connection its own chain
        else:
            self.free.appendleft(index)  # each once, before any comes again

    def stop(self) -> None:
        self.stopping = True

    def gone(self) -> None:
        self.connections -= 1
        if not self.connections and not self.ended.done():
            self.ended.set_result(None)


def _order(job: Job) -> Sequence[int]:
    """Each connection its own chain where there is one for each, else shuffled: every run begins with other grants."""
    indexes = range(len(job.tokens))
    return indexes if len(indexes) <= job.connections else random.sample(indexes, len(indexes))


async def connected(state: Run) -> list[Chain]:
    """All connections of a run, and a moment for the server to settle."""
    job = state.job
    tls = None if job.authority is None else ssl.create_default_context(cafile=job.authority)
    if tls is not None and job.certificate is not None:
        tls.load_cert_chain(job.certificate)
    loop = asyncio.get_running_loop()
    chains = [
        (await loop.create_connection(lambda: Chain(state), "127.0.0.1", job.port, ssl=tls))[1]
        for _ in range(job.connections)
    ]
    await asyncio.sleep(SETTLING_SECONDS)
    return chains


async def walked(state: Run, chains: list[Chain]) -> float:
    """Walk the chains for the job's time; the seconds that it took until the last answer."""
    started = time.perf_counter()
    asyncio.get_running_loop().call_later(state.job.seconds, state.stop)
    for chain in chains:
        chain.send()
    await state.ended
    return time.perf_counter() - started


async def run(job: Job) -> Found:
    state = Run(job)
    chains = await connected(state)
    server, client = cpu_seconds(job.pid), time.process_time()
    seconds = await walked(state, chains)
    return Found(
        answers=len(state.latencies),
        seconds=seconds,
        server_cpu_seconds=cpu_seconds(job.pid) - server,
        client_cpu_seconds=time.process_time() - client,
        p50_ms=percentile_ms(state.latencies, 0.5),
        p99_ms=percentile_ms(state.latencies, 0.99),
        failed=state.failed[:3],
        tokens=state.tokens,
    )


def percentile_ms(latencies: list[float], part: float) -> float:
    """The latency that such a part of all answers did not exceed; 0 where there were none."""
    return sorted(latencies)[int(len(latencies) * part)] * 1000 if latencies else 0.0


def main() -> None:
    """Read a job (JSON) from standard input, run it, write its figures to standard output."""
    found = json.dumps(asdict(uvloop.run(run(Job(**json.load(sys.stdin))))))
    with open(sys.stdout.fileno(), "w", closefd=False) as out:  # all of it, also where Python was told not to buffer
        out.write(found)


if __name__ == "__main__":
    main()
