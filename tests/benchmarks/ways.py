"""Every way to refresh that is measured: as what its client is registered, and what it sends with each request.

Each is a client of its own, registered in one file, so that servers and settings are the same for all. Assertions and
proofs are good once, so they are signed ahead, as many as a run may need.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from joserfc.jwk import Key

from ledger.answers import IssueRequest
from ledger.keyring import Alg
from tests import proofs, signers
from tests.benchmarks.clients import SCOPE, SECRET
from tests.benchmarks.load import ONCE
from tests.certificates import Party, certificate
from tests.servers import basic
from tests.wire import TOKEN_PATH

PLAIN, PROXY, TLS = "plain", "proxy", "tls"
"""What the server is reached over: HTTP, HTTP from a proxy that tells certificates in a header, or TLS."""

JWT_ALGORITHMS: tuple[Alg, ...] = ("ES256", "EdDSA", "RS256")
REFERENCE = "basic"
BY_SECRET = f'secret = "{SECRET}"\nauth = "client_secret"'
PUBLIC = 'auth = "none"'


@dataclass(frozen=True)
class Sent:
    """What all requests of a run have in common, and of what each takes one: as in `load.Job`."""

    form: str = ""
    header: str = ""
    once: list[str] = field(default_factory=list)
    certificate: str | None = None


@dataclass(frozen=True)
class Asked:
    """For what to make it: the server's issuer, a folder to write to, how many requests at most."""

    issuer: str
    folder: Path
    count: int


Sends = Callable[[Asked], Sent]


@dataclass(frozen=True)
class Way:
    """One way to refresh. `registered` are fields of the client's table, `alg` is how the server signs JWTs while this
    is measured, `bound_jkt` the key that its grants are bound to."""

    name: str
    over: str
    registered: str
    sends: Sends
    alg: Alg | None = None
    bound_jkt: str | None = None

    @property
    def beside(self) -> str:
        """The way that it is compared with: Basic over the same, and that with Basic over plain HTTP."""
        own = REFERENCE if self.over == PLAIN else f"{self.over}-{REFERENCE}"
        return REFERENCE if self.name == own else own

    def table(self) -> str:
        """The client in a clients file."""
        policy = '{ preset = "standard", access_token_format = "jwt" }' if self.alg else '"standard"'
        common = f'scope = "{" ".join(SCOPE)}"\npolicy = {policy}'
        return f'[[client]]\nid = "{self.name}"\n{self.registered}\n{common}\n'

    def grant(self, number: int) -> IssueRequest:
        """One of its grants."""
        return IssueRequest(client_id=self.name, subject=f"person-{number}", scope=SCOPE, bound_jkt=self.bound_jkt)


def ways(client_authority: Party) -> list[Way]:
    """All of them, the reference first; those by a certificate's name show one of this authority."""
    own, app = certificate("CN=own"), certificate("CN=app", by=client_authority)
    return [
        Way(REFERENCE, PLAIN, BY_SECRET, _basic(REFERENCE)),
        Way("post", PLAIN, BY_SECRET, lambda asked: Sent(form=f"client_id=post&client_secret={SECRET}")),
        Way("none", PLAIN, PUBLIC, _named("none")),
        *(_asserting(algorithm) for algorithm in ("ES256", "PS256", "EdDSA")),
        *_proving(),
        *(_with_jwts(algorithm) for algorithm in JWT_ALGORITHMS),
        Way("proxy-basic", PROXY, BY_SECRET, _basic("proxy-basic")),
        *_certified(PROXY, app, own),
        Way("tls-basic", TLS, BY_SECRET, _basic("tls-basic")),
        Way("tls-basic-certificate", TLS, BY_SECRET, _basic("tls-basic-certificate", shown=app)),
        *_certified(TLS, app, own),
    ]


def _basic(name: str, shown: Party | None = None) -> Sends:
    header = f"Authorization: {basic(name, SECRET)}\r\n"
    return lambda asked: Sent(header=header, certificate=None if shown is None else str(shown.written(asked.folder)))


def _named(name: str, header: str = "", shown: Party | None = None) -> Sends:
    """The client's id alone; what proves it, if anything, is a certificate."""
    form = f"client_id={name}"
    return lambda asked: Sent(form, header, certificate=None if shown is None else str(shown.written(asked.folder)))


def _asserting(algorithm: str) -> Way:
    """A client that signs an assertion for each request (RFC 7523)."""
    name, key = f"private_key_jwt-{algorithm}", signers.new_key(algorithm)
    registered = signers.Signer(name, key, "").public_jwk()
    keys = f'auth = "private_key_jwt"\njwks = {{ keys = [{signers.inline(registered)}] }}'

    def sends(asked: Asked) -> Sent:
        signer = signers.Signer(name, key, asked.issuer, algorithm=algorithm)
        return Sent(
            form=f"client_assertion_type={signers.TYPE}&client_assertion={ONCE}",
            once=[signer.assertion() for _ in range(asked.count)],
        )

    return Way(name, PLAIN, keys, sends)


def _proving() -> Iterator[Way]:
    """Clients that show a key with each request (RFC 9449): confidential ones with one key or with another each time,
    and a public one, whose refresh tokens are bound to its key."""
    one, bound = proofs.new_key(), proofs.new_key()
    for name, key_of in (("dpop-one-key", lambda: one), ("dpop-new-keys", proofs.new_key)):
        yield Way(name, PLAIN, BY_SECRET, _proofs(f"Authorization: {basic(name, SECRET)}\r\n", "", key_of))
    registered = f"{PUBLIC}\ndpop_bound_access_tokens = true"
    sends = _proofs("", "client_id=dpop-public", lambda: bound)
    yield Way("dpop-public", PLAIN, registered, sends, bound_jkt=proofs.thumbprint(bound))


def _proofs(header: str, form: str, key_of: Callable[[], Key]) -> Sends:
    def sends(asked: Asked) -> Sent:
        htu, now = asked.issuer + TOKEN_PATH, int(time.time())
        once = [proofs.proof(key_of(), htu, iat=now) for _ in range(asked.count)]
        return Sent(form, f"{header}DPoP: {ONCE}\r\n", once)

    return sends


def _with_jwts(algorithm: Alg) -> Way:
    """A client by Basic whose access tokens are JWTs (RFC 9068)."""
    name = f"jwt-{algorithm}"
    return Way(name, PLAIN, BY_SECRET, _basic(name), alg=algorithm)


def _certified(over: str, app: Party, own: Party) -> Iterator[Way]:
    """Clients that show a certificate (RFC 8705): one of a name, and a registered one that nobody else signed."""
    by_name = 'auth = "tls_client_auth"\ntls_client_auth_subject_dn = "CN=app"'
    registered = f'auth = "self_signed_tls_client_auth"\njwks = {{ keys = [{{ x5c = ["{own.x5c}"] }}] }}'
    for method, fields, party in (("tls_client_auth", by_name, app), ("self_signed", registered, own)):
        name = f"{over}-{method}"
        if over == PROXY:
            yield Way(name, over, fields, _named(name, header=f"Client-Cert: {party.rfc9440}\r\n"))
        else:
            yield Way(name, over, fields, _named(name, shown=party))
