"""Finds what must not be there: tokens, secrets, keys, nonces, persons who were erased, however they are spelled."""

import base64
import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from random import Random
from urllib.parse import quote, quote_plus

from tests.chaos.files import report
from tests.engines import url_of
from tests.ledger_check import copied
from tests.servers import OPERATORS, SECRETS, Server, basic
from tests.wire import secrets_in

SHORT_BYTES = 12
"""Below this, only the plain spellings are looked for: pieces of base64 that short stand everywhere."""


def spellings(secret: bytes) -> set[bytes]:
    """Every form in which these bytes could lie somewhere: raw, hex, base64 at each alignment, in JSON, in a URL."""
    found = {secret}
    if _is_text(secret):
        text = secret.decode()
        found |= {quote(text).encode(), quote_plus(text).encode(), quote(text, safe="").encode()}
        found |= {json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode() for ascii_only in (True, False)}
        found |= {text.encode("utf-16-le"), text.encode("unicode_escape")}
    if len(secret) >= SHORT_BYTES:
        found |= {secret.hex().encode(), secret.hex().upper().encode()}
        for shift in range(3):
            inner = base64.b64encode(bytes(shift) + secret)[4 if shift else 0 : -4]
            found |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return {spelling for spelling in found if spelling}


def _is_text(secret: bytes) -> bool:
    try:
        return secret.decode().isprintable()
    except UnicodeDecodeError:
        return False


class Canary:
    """Things that must not be found, by a name that may be told."""

    def __init__(self) -> None:
        self._spelled: dict[str, set[bytes]] = {}

    def add(self, name: str, secret: bytes | str) -> None:
        """Look for this, too."""
        self._spelled[name] = spellings(secret.encode() if isinstance(secret, str) else secret)

    def add_tokens(self, tokens: Iterable[str]) -> None:
        """Tokens, and within them the bytes that are secret; what names the grant may stand anywhere."""
        for number, token in enumerate(tokens):
            self.add(f"token {number}", token)
            self.add(f"the secret of token {number}", base64.urlsafe_b64decode(token[4:])[22:])

    def found_in(self, places: Mapping[str, bytes]) -> list[str]:
        """Name what stands where, never the thing itself."""
        return [
            f"{name} in {place}"
            for place, content in places.items()
            for name, spelled in self._spelled.items()
            if any(spelling in content for spelling in spelled)
        ]


def ring_secrets(keys_file: Path) -> dict[str, bytes]:
    """The root and the keys of a key ring's file, by a name."""
    ring = json.loads(keys_file.read_bytes())
    keys = {f"key {key['id']} of the ring": bytes.fromhex(key["secret"]) for key in ring["keys"]}
    return {"the root of the ring": bytes.fromhex(ring["root"]), **keys}


def canary_of(server: Server, tokens: int) -> Canary:
    """Every secret of a server, and of the tokens that passed so many; whatever looks like one is found anyway."""
    canary = Canary()
    passed = sorted(server.tokens)
    canary.add_tokens(Random(len(passed)).sample(passed, min(len(passed), tokens)))
    for client, secret in SECRETS.items():
        if secret is not None:
            canary.add(f"the secret of {client}", secret)
            canary.add(f"the credentials of {client}", basic(client, secret).removeprefix("Basic "))
    for role, token in OPERATORS.items():
        canary.add(f"the token of the {role}", token)
    for name, key in ring_secrets(server.keys_file).items():
        canary.add(name, key)
    return canary


def check_left(server: Server) -> None:
    """Assert that nothing which a server has left holds a secret (I-20), and its log no traceback."""
    server.check_log()
    places = files_beside(server.database)
    if url_of(server.database) is not None:
        places |= values_in(server.database)
    logs = {path.name: path.read_bytes() for path in (server.log_file, server.error_file) if path.exists()}
    report(canary_of(server, 20).found_in(places | logs) + tokens_in(places | logs))


def files_beside(database: Path) -> dict[str, bytes]:
    """The database with its log and shared memory, its lock, the head file: raw bytes. The key ring is left out."""
    return {
        path.name: path.read_bytes()
        for path in database.parent.iterdir()
        if path.is_file() and path.name.startswith(database.stem) and not path.name.endswith(".keys")
    }


def values_in(database: Path) -> dict[str, bytes]:
    """Every value of every table, together by column: where raw bytes of the file are broken up, these are not."""
    found: dict[str, bytes] = {}
    with copied(database) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            rows = connection.execute(f"SELECT * FROM {table}")
            for number, (column, *_) in enumerate(rows.description):
                values = (row[number] for row in connection.execute(f"SELECT * FROM {table}"))
                found[f"{table}.{column}"] = b"\n".join(
                    value if isinstance(value, bytes) else str(value).encode() for value in values if value is not None
                )
    return found


def nonces_in(database: Path) -> dict[str, bytes]:
    """The nonces that grants have now, by a name; the database may be in use."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT stream, nonce FROM private_grants WHERE nonce IS NOT NULL")
        return {f"the nonce of stream {stream}": nonce for stream, nonce in rows.fetchall()}


def tokens_in(places: Mapping[str, bytes]) -> list[str]:
    """Whatever looks like a token of ours."""
    return [f"{found} of {place}" for place, content in places.items() for found in secrets_in(content, (), ())]
