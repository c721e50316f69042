"""What both conformance suites check of an answer, said once, in our own words."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from joserfc.jwk import Key

from tests.proofs import encoded, new_key, proof
from tests.servers import Server, clients_toml
from tests.signers import Signer, derived_key
from tests.wire import FORM, REVOKE_PATH, TOKEN_PATH, Answer, Json, form_bytes, request_bytes

SCOPE = "read openid profile"
BITS_IN_LENGTH_MIN = 128
BITS_OF_SHANNON_MIN = 96


def shannon_bits(token: str) -> float:
    """Return the Shannon entropy of a text by the frequencies of its own characters, in bits."""
    return -sum(count * math.log2(count / len(token)) for count in Counter(token).values())


def varied_bits(tokens: Iterable[str]) -> float:
    """Return how many bits many tokens vary by, place by place, at most: a counter or a fixed prefix adds nothing."""
    return sum(math.log2(len(set(column))) for column in zip(*tokens, strict=True))


def check_success(answer: Answer, token_type: str = "bearer") -> None:
    """200, JSON, no-store, a token that cannot be guessed, of the right type and for a sane time; no ID token."""
    assert 200 == answer.status, answer.body
    assert "application/json" == answer.header("Content-Type")
    assert "no-store" == answer.header("Cache-Control")
    body = answer.json()
    assert token_type.lower() == body["token_type"].lower()
    assert 0 < body["expires_in"] <= 31_536_000
    assert "id_token" not in body
    for token in (body["access_token"], body["refresh_token"]):
        assert all("\x20" <= character <= "\x7e" for character in token), "RFC 6749 A.12, A.17"
        assert 6 * len(token) >= BITS_IN_LENGTH_MIN
        assert shannon_bits(token) > BITS_OF_SHANNON_MIN


def check_refused(answer: Answer, *errors: str) -> None:
    """400, or 401 for a client that is not who it says; JSON; one of these errors, well spelled."""
    assert answer.status in ((400, 401) if "invalid_client" in errors else (400,)), answer.body
    assert "application/json" == answer.header("Content-Type")
    assert answer.json()["error"] in errors
    assert not set(answer.json().get("error_description", "")) & set("\r\n\t")


def unauthenticated(server: Server, token: str, *, path: str = TOKEN_PATH, **fields: str) -> Answer:
    """Send a refresh, or a revocation, with no more than these members beside the token."""
    form = {"token": token} if path == REVOKE_PATH else {"grant_type": "refresh_token", "refresh_token": token}
    raw = request_bytes("POST", path, headers={"Content-Type": FORM}, body=form_bytes(form | fields))
    return server.exchange(raw, source=server.new_address())


VERIFIER = "a-verifier-of-64-characters-that-is-good-enough-for-these-trials"
CHALLENGE = encoded(sha256(VERIFIER.encode()).digest())
BACK = "https://app.example/back"


class Profile:
    """A server with clients as FAPI 2.0 wants them: they sign assertions, show DPoP keys, and come by codes."""

    def __init__(self, folder: Path) -> None:
        self.server = Server(folder)
        self.key = new_key()
        issuer = self.server.issuer
        names = ("first", "second", "kept")
        self.first, self.second, self.kept = (Signer(name, derived_key(name), issuer) for name in names)
        self.server.write_clients(self.clients())

    def clients(self, first: Signer | None = None, **fields: str) -> str:
        """Return a clients file with these clients beside the usual ones: two that rotate, and `kept`, which has the
        preset of FAPI 2.0. The first may be another, with further fields."""
        common = {
            "dpop_bound_access_tokens": "true",
            "grant_types": '["authorization_code", "refresh_token"]',
            "redirect_uris": f'["{BACK}"]',
        }
        tables = (
            (first or self.first).toml(policy='"standard"', **common, **fields),
            self.second.toml(policy='"standard"', **common),
            self.kept.toml(policy='"fapi2"', token_endpoint_auth_signing_alg='"ES256"', **common),
        )
        return clients_toml(more="".join(tables))

    def proof(self, key: Key | None = None, **how: Json) -> str:
        """Return a DPoP proof for the token endpoint; further arguments make it another (proofs.proof)."""
        return proof(key or self.key, self.server.issuer + TOKEN_PATH, **{"iat": time.time(), **how})

    def post(self, fields: Mapping[str, str], *, by: Mapping[str, str] | None = None, dpop: str | None = "") -> Answer:
        """Post to the token endpoint: with the first client's assertion and a proof, unless told otherwise."""
        headers = {} if dpop is None else {"DPoP": dpop or self.proof()}
        form = {**fields, **(self.first.form() if by is None else by)}
        return self.server.form(TOKEN_PATH, form, headers=headers, source=self.server.new_address())

    def issue(self, client: str = "first") -> str:
        """Issue a grant to a client; return its refresh token."""
        return self.server.issue(client, scope=SCOPE).refresh_token

    def refresh(self, token: str, **how: Json) -> Answer:
        return self.post({"grant_type": "refresh_token", "refresh_token": token}, **how)

    def code(self, **members: Json) -> str:
        """Let a person sign in and agree; return the code."""
        wish = {"client_id": "first", "subject": self.server.new_subject(), "scope": SCOPE, "redirect_uri": BACK}
        wish |= {"code_challenge": CHALLENGE, "code_challenge_method": "S256", **members}
        answer = self.server.operator("issuer", "POST", "/authorizations", wish)
        assert 201 == answer.status, answer.body
        return str(answer.json()["code"])

    def exchange(self, code: str, changes: Mapping[str, str | None] | None = None, **how: Json) -> Answer:
        """Exchange a code; `changes` replace members of the form, None leaves one out."""
        fields = {"grant_type": "authorization_code", "code": code, "redirect_uri": BACK, "code_verifier": VERIFIER}
        form = {name: value for name, value in {**fields, **(changes or {})}.items() if value is not None}
        return self.post(form, **how)


@contextmanager
def profile(folder: Path) -> Iterator[Profile]:
    """Run such a server."""
    found = Profile(folder)
    try:
        found.server.start()
        yield found
    except BaseException:
        found.server.kill()
        raise
    found.server.stop()
