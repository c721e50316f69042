"""The published keys, and what an unmodified verifier makes of them over every change of keys (RFC 7517, RFC 9068)."""

import contextlib
import logging
import re
import time
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from authlib.oauth2.rfc6750.errors import InvalidTokenError
from authlib.oauth2.rfc9068 import JWTBearerTokenValidator
from joserfc import jwk
from joserfc.errors import JoseError

from ledger.head_file import Acknowledged
from ledger.keyring import Alg, KeyRing, RingKey
from tests.asking import ISSUER_URL, Asking, asking, bearer
from tests.ledgers import Clock
from tests.rings import shown

JWKS = "/oauth/v2/jwks"
API = "https://api.example"
MORE = f"""
[[client]]
id = "slow"
secret = "Jw7!access-tokens"
auth = "client_secret"
scope = "read openid profile"
resource = ["{API}"]
policy = {{ preset = "standard", access_token_format = "jwt", access_token_ttl_seconds = 900 }}
"""
pytestmark = pytest.mark.filterwarnings("ignore:authlib.jose module is deprecated")


class Verifier(JWTBearerTokenValidator):  # type: ignore[misc]  # Authlib has no types
    """A resource server's: Authlib's RFC 9068 validator, with the keys kept for as long as the answer says.

    It takes ES256 and RS256, and no EdDSA.
    """

    def __init__(self, ledger: Asking) -> None:
        super().__init__(issuer=ISSUER_URL, resource_server=API)
        self._ledger = ledger
        self._keys: Any = None
        self._until = 0.0

    def get_jwks(self) -> Any:
        return self._keys

    async def takes(self, token: str) -> bool:
        """Whether the token is good, by the keys as they are known here."""
        if time.time() >= self._until:
            answer = await self._ledger.ask("GET", JWKS)
            self._keys = jwk.KeySet.import_key_set(answer.json())
            age = re.fullmatch(r"public, max-age=(\d+)", answer.headers["cache-control"])
            assert age is not None
            self._until = time.time() + int(age[1])
        try:
            self.validate_token(self.authenticate_token(token), ["read"], None)
        except (InvalidTokenError, JoseError, ValueError):
            return False
        return True


@contextlib.asynccontextmanager
async def verified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Asking, Verifier]]:
    """The application, and a verifier on whose wall the same clock hangs."""
    clock = Clock()
    monkeypatch.setattr(time, "time", lambda: clock.now / 1_000_000)
    async with asking(folder, more=MORE, clock=clock) as ledger:
        yield ledger, Verifier(ledger)


async def issued(ledger: Asking) -> str:
    answer = await ledger.operator(
        "issuer", "POST", "/grants", {"client_id": "slow", "subject": "alice", "scope": "read"}
    )
    assert 201 == answer.status_code, answer.text
    return str(answer.json()["access_token"])


async def keys(ledger: Asking) -> list[dict[str, str]]:
    answer = await ledger.ask("GET", JWKS)
    assert (200, "application/json") == (answer.status_code, answer.headers["content-type"])
    found: list[dict[str, str]] = answer.json()["keys"]
    return found


async def is_active(ledger: Asking, token: str) -> bool:
    return bool((await ledger.form("/introspect", {"token": token}, headers=bearer("admin"))).json()["active"])


# ---------------------------------------------------------------- the document


async def test_the_keys_are_public_and_for_signatures(tmp_path: Path) -> None:
    """RFC 7517 4: whatever the algorithm; nothing private, and anyone may read it."""
    async with asking(tmp_path) as ledger:
        for alg in ("EdDSA", "RS256"):
            added = await ledger.ask("POST", "/local/keys/rotate", local=True, json={"alg": alg})
            assert 200 == added.status_code
        found = await keys(ledger)
        assert [("ES256", "EC"), ("EdDSA", "OKP"), ("RS256", "RSA")] == [(key["alg"], key["kty"]) for key in found]
        prefix = ledger.ledger.desk.ring.ring_id[:8]
        assert [f"{prefix}-{number}" for number in (1, 2, 3)] == [key["kid"] for key in found]
        assert {"sig"} == {key["use"] for key in found}
        assert not any(jwk.import_key(dict(key)).is_private for key in found)
        assert not {"d", "p", "q", "dp", "dq", "qi", "oth", "k"} & {name for key in found for name in key}
        assert b"" == (await ledger.ask("HEAD", JWKS)).content
        assert "GET, HEAD" == (await ledger.ask("POST", JWKS)).headers["allow"]


async def test_an_unknown_way_to_sign_is_refused(tmp_path: Path) -> None:
    """And costs none of the 255 key ids."""
    async with asking(tmp_path) as ledger:
        for alg in ("HS256", "none", "", None, 1):
            answer = await ledger.ask("POST", "/local/keys/rotate", local=True, json={"alg": alg})
            assert (400, "invalid_request") == (answer.status_code, answer.json()["error"])
        assert 1 == len(await keys(ledger))


async def test_a_distrusted_key_is_published_no_more(tmp_path: Path) -> None:
    """A new key is there before it signs, an old one for as long as its tokens are good."""
    async with asking(tmp_path) as ledger:
        ring_keys = ledger.ledger

        async def ids() -> list[int]:
            return [int(key["kid"].partition("-")[2]) for key in await keys(ledger)]

        assert [1] == await ids()
        await ring_keys.operators.keys_rotate()
        assert [1, 2] == await ids()
        await ring_keys.operators.keys_activate(2)
        assert [1, 2] == await ids()
        await ring_keys.operators.keys_distrust(1)
        assert [2] == await ids()


async def test_a_log_that_lost_its_end_publishes_nothing(tmp_path: Path) -> None:
    """I-23: it may not know yet which key is distrusted; a verifier that kept the keys goes on with those."""
    async with asking(tmp_path) as ledger:
        ledger.ledger.log_end.behind = Acknowledged(position=99, at=ledger.clock.now)
        answer = await ledger.ask("GET", JWKS)
        assert (503, "temporarily_unavailable") == (answer.status_code, answer.json()["error"])
        ledger.ledger.log_end.behind = None


async def test_a_ring_that_lacks_a_key_publishes_the_others(tmp_path: Path) -> None:
    """The node is unready until it has the file; what it says is true all the same."""
    async with asking(tmp_path) as ledger:
        await ledger.ledger.operators.keys_rotate()
        ring = ledger.ledger.desk.ring
        ledger.ledger.desk.ring = KeyRing(ring.ring_id, ring.root, {1: ring.keys[1]})
        assert 1 == len(await keys(ledger))
        ledger.ledger.desk.ring = ring


# ---------------------------------------------------------------- verifiers


@pytest.mark.parametrize("algs", [("RS256", "ES256", "RS256"), (None, None, None)], ids=["mixed", "same"])
async def test_a_change_of_keys_breaks_no_verifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algs: tuple[Alg | None, ...]
) -> None:
    """Rotate, wait as long as the keys are kept, activate: every token is good at a verifier, at each moment.

    Distrust ends that: at once where somebody asks, and at the verifier when it next fetches the keys.
    """
    async with verified(tmp_path, monkeypatch) as (ledger, verifier):
        tokens = [await issued(ledger)]
        for alg in algs:
            assert await verifier.takes(tokens[-1])
            ledger.clock.pass_seconds(10)
            key_id = await ledger.ledger.operators.keys_rotate(alg)
            tokens.append(await issued(ledger))
            assert await verifier.takes(tokens[-1])
            ledger.clock.pass_seconds(300)
            await ledger.ledger.operators.keys_activate(key_id)
            tokens.append(await issued(ledger))
            assert [True, True] == [await verifier.takes(token) for token in tokens[-2:]]
        await ledger.ledger.operators.keys_distrust(key_id - 1)
        old, new = tokens[-2:]
        assert (False, True) == (await is_active(ledger, old), await is_active(ledger, new))
        ledger.clock.pass_seconds(301)
        assert (False, True) == (await verifier.takes(old), await verifier.takes(new))


async def test_a_key_that_signs_at_once_breaks_a_verifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken twin of the test above, and why the guide says to wait: a verifier that keeps the keys has not seen it."""
    async with verified(tmp_path, monkeypatch) as (ledger, verifier):
        assert await verifier.takes(await issued(ledger))
        await ledger.ledger.operators.keys_activate(await ledger.ledger.operators.keys_rotate())
        token = await issued(ledger)
        assert not await verifier.takes(token)
        ledger.clock.pass_seconds(301)
        assert await verifier.takes(token)


async def test_a_verifier_is_not_fooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier of these tests tells bad from good: changed, expired, of another issuer, for another audience."""
    async with verified(tmp_path, monkeypatch) as (ledger, verifier):
        token = await issued(ledger)
        assert await verifier.takes(token)
        head, payload, signature = token.split(".")
        assert not await verifier.takes(f"{head}.{payload[:-2]}AA.{signature}")
        for name, value in (("issuer", "https://other.example"), ("resource_server", "https://other.example")):
            right = getattr(verifier, name)
            setattr(verifier, name, value)
            assert not await verifier.takes(token)
            setattr(verifier, name, right)
        ledger.clock.pass_seconds(901)
        assert not await verifier.takes(token)


# ---------------------------------------------------------------- the private keys


def private_numbers(key: RingKey, ring: KeyRing) -> list[bytes]:
    """What must be known to sign with a key."""
    private = ring.signing_key(key.id)._key.as_dict(private=True)
    texts = [str(private[name]) for name in ("d", "p", "q") if name in private]
    return [_decoded(text) for text in texts] + [key.secret]


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


async def test_a_private_key_is_in_the_ring_file_and_nowhere_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """I-20: not in the store or its log, the head file, an answer or a log line, whatever happens to the keys."""
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    async with asking(tmp_path, more=MORE) as ledger:
        for alg in ("EdDSA", "RS256"):
            token = await issued(ledger)
            rotated = await ledger.ask("POST", "/local/keys/rotate", local=True, json={"alg": alg})
            key_id = rotated.json()["id"]
            told.append(rotated.text)
            for act in (f"{key_id}/activate", f"{key_id - 1}/distrust"):
                told.append((await ledger.ask("POST", f"/local/keys/{act}", local=True, json={})).text)
            await is_active(ledger, token)
        told += [await issued(ledger), (await ledger.ask("GET", JWKS)).text, caplog.text]
        told.append((await ledger.ask("GET", "/local/keys", local=True)).text)
        told.append((await ledger.ask("GET", "/metrics")).text)
        ring = ledger.ledger.desk.ring
        secrets = [number for key in ring.keys.values() for number in private_numbers(key, ring)]
        assert 2 + 2 + 4 == len(secrets)
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    files |= {f"{path.name}, closed": path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {"ledger.db", "ledger.db-wal", "ledger.head, closed", "ledger.keys"} <= set(files)
    held = files.pop("ledger.keys").decode()
    assert held == files.pop("ledger.keys, closed").decode()
    assert all(key.secret.hex() in held for key in ring.keys.values()), "the search finds what is there"
    for number in secrets:
        assert not any(shown(number, text) for text in told)
        for name, content in files.items():
            assert number not in content, name
            assert not shown(number, content.decode("latin-1")), name
