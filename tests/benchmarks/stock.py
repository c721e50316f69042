"""Stores made in process, before any server opens them: many grants, or one with a long history."""

import asyncio
import time
from pathlib import Path

import uvloop

from ledger.answers import Caller, IssueRequest, Source
from ledger.application import Ledger, Options
from ledger.clients import LOCAL_OPERATOR
from ledger.head_file import HeadFile
from ledger.keyring import KeyRing
from ledger.randomness import system_randomness
from ledger.recorders.sqlite import SQLiteStore
from projections import INLINE
from tests.benchmarks.clients import CLIENTS, SCOPE, SPECS


def stock(folder: Path, *, grants: int, rotations: int = 0) -> list[str]:
    """A new store in a folder with so many grants, the first of them rotated so often; their current tokens.

    Written without waiting for the disk, since nothing is measured here; the server that opens it afterwards syncs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clients.toml").write_text(CLIENTS, "utf-8")
    return uvloop.run(_stock(folder, grants, rotations))


async def _stock(folder: Path, grants: int, rotations: int) -> list[str]:
    keys = folder / "token-ledger.keys"
    ring = KeyRing.create(keys)
    store = SQLiteStore(folder / "token-ledger.db", INLINE, synchronous="OFF")
    store.open(ring.ring_id)
    ledger = await Ledger.open(
        store,
        ring,
        keys,
        HeadFile(folder / "token-ledger.keys.head"),
        Options(request_timeout_seconds=60),
        clock=lambda: time.time_ns() // 1000,
        randomness=system_randomness(),
    )
    await ledger.operators.apply(SPECS, [])
    tokens = []
    for start in range(0, grants, 5000):
        requests = (
            IssueRequest(client_id="www", subject=f"person-{number}", scope=SCOPE)
            for number in range(start, min(grants, start + 5000))
        )
        answers = await asyncio.gather(*(
            ledger.operators.issue(LOCAL_OPERATOR, each, None, b"{}") for each in requests
        ))
        tokens += [answer.refresh_token or "" for answer in answers]
    caller = Caller(client_id="www", authenticated=True, auth_method="client_secret_post")
    for _ in range(rotations):
        answer = await ledger.refresh(caller, Source("127.0.0.1", "bench"), tokens[0], None, None)
        tokens[0] = answer.refresh_token or ""
    await ledger.close()
    return tokens
