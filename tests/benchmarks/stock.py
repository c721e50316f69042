"""Stores made in process, before any server opens them: many grants, or one with a long history."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from api.clients_file import parsed
from ledger.answers import IssueRequest
from ledger.application import Ledger, Options
from ledger.head_file import HeadFile
from ledger.keyring import Alg, KeyRing
from ledger.randomness import system_randomness
from ledger.recorders.sqlite import SQLiteStore
from projections import INLINE
from tests.benchmarks.clients import CLIENTS, SCOPE
from tests.bulk import issue_many, rotate_many


@dataclass(frozen=True)
class Stocked:
    """What a new store holds: each grant's current token, in the order asked for, and the id of a key of the ring for
    each algorithm, which would sign by it."""

    tokens: list[str]
    keys: dict[Alg, int]


def stock(folder: Path, *, grants: int, rotations: int = 0) -> list[str]:
    """A new store in a folder with so many grants of the one client, the first of them rotated so often; their current
    tokens."""
    asked = [IssueRequest(client_id="www", subject=f"person-{number}", scope=SCOPE) for number in range(grants)]
    return stocked(folder, CLIENTS, asked, rotations=rotations).tokens


def stocked(
    folder: Path, clients: str, asked: Sequence[IssueRequest], *, rotations: int = 0, algorithms: Sequence[Alg] = ()
) -> Stocked:
    """A new store in a folder: a clients file, the grants that were asked for, a key for each of these algorithms.

    Written without waiting for the disk, since nothing is measured here; the server that opens it afterwards syncs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clients.toml").write_text(clients, "utf-8")
    return uvloop.run(_stocked(folder, clients, asked, rotations, algorithms))


async def _stocked(
    folder: Path, clients: str, asked: Sequence[IssueRequest], rotations: int, algorithms: Sequence[Alg]
) -> Stocked:
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
    await ledger.operators.apply(parsed(clients).clients, [])
    tokens = [token async for some in issue_many(ledger, asked) for token in some]
    if rotations:
        tokens[0] = await rotate_many(ledger, tokens[0], rotations, client_id=asked[0].client_id)
    key_of = {algorithm: await ledger.operators.keys_rotate(algorithm) for algorithm in algorithms}
    await ledger.close()
    return Stocked(tokens, dict(key_of))
