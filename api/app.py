"""The route table: the only file that knows all endpoints.

Two applications over one ledger: the one that everybody reaches, and the same with the operator `local` and the
commands' own endpoints, for the socket beside the database.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Any, Final

from starlette.routing import BaseRoute, Route, Router

from api import errors
from api.answers import Replies, Send, oauth_error
from api.archiver import Archiver
from api.assertions import Assertions
from api.authorizations import Authorizations
from api.certificates import ClientCertificates, Forwarded
from api.client_auth import ClientAuth
from api.context import Contexts
from api.cors import CrossOrigin
from api.dpop import ALGORITHMS, Proofs, target
from api.dpop_nonces import Nonces
from api.endpoint import FrontDesk, Open, Operated
from api.ends import Ends
from api.explain import Explain
from api.forms import Receive
from api.grants import READERS, SEE_ALL, Grants
from api.guides import Guides
from api.heads import Headers
from api.health import Health, ServerView, ledger_families
from api.introspect import IntrospectionEndpoint
from api.jwks import Jwks
from api.local_routes import LocalRoutes
from api.metadata import (
    INTROSPECTION,
    JWKS,
    REVOCATION,
    TOKEN,
    Metadata,
    auth_methods,
    metadata,
    places,
    sees_certificates,
    url,
)
from api.metrics import LedgerCollector, Meters, registry
from api.openapi import Described
from api.operators import ADMIN, ISSUER, SECURITY, ByToken, Local, Operators
from api.reading import Reading
from api.remote_keys import RemoteKeys
from api.reuse import Reuse
from api.revoke import RevocationEndpoint
from api.settings import Settings
from api.sockets import LOCAL_BODY_BYTES_MAX
from api.throttle import Throttle
from api.token import TokenEndpoint
from api.worker_metrics import Collects
from ledger.application import Ledger
from ledger.clients import ROLES
from ledger.refusals import Unavailable
from ledger.registration import ASSERTION_ALGS

NOT_FOUND: Final = oauth_error(404, "not_found", "there is no such path here")
BEHIND: Final = errors.told(
    Unavailable("the log has lost what it had acknowledged, and that is not dealt with yet", retry_after_seconds=60)
)

_TOKEN_PATHS: Final = (TOKEN, "/token")
_REVOCATION_PATHS: Final = (REVOCATION, "/revoke")
_INTROSPECTION_PATHS: Final = (INTROSPECTION, "/introspect")
_POSTED_BY_PAGES: Final = (*_TOKEN_PATHS, *_REVOCATION_PATHS)
"""What web pages of the origins that clients list may post to."""

_POSTED_BY_CLIENTS: Final = (*_POSTED_BY_PAGES, *_INTROSPECTION_PATHS)

_UNSEEN: Final[Mapping[str, bool]] = {}

Asgi = Callable[[Any, Receive, Send], Awaitable[None]]
ServesRepeated = Callable[[Headers, bytes, Replies], bool]
"""Serves a request that repeats another of its connection, by their headers; False: it does not, nothing happened."""


class OfWholeLog:
    """An endpoint that is served only while the log holds all that was acknowledged; before that it answers 503 (I-23).

    Without it a token, client or grant of the lost span would be called unknown, and a client drops what is unknown.
    """

    def __init__(self, ledger: Ledger, endpoint: Asgi) -> None:
        self._ledger = ledger
        self._endpoint = endpoint

    def __call__(self, scope: Any, receive: Receive, send: Send) -> Awaitable[None]:
        if self._ledger.behind is None:
            return self._endpoint(scope, receive, send)
        return BEHIND.send(send)


class App:
    """The ledger over HTTP, an ASGI application. What comes with `state["local"]` goes to `local`: only a server can
    set that, and it does so for the socket of commands. In process `local` may be called itself. `certificates` reads
    those of clients, and TLS_CLIENT_CA again when told to. `repeated` are the paths where requests that repeat may be
    served without a task."""

    def __init__(
        self,
        hot: dict[str, Asgi],
        repeated: dict[str, ServesRepeated],
        cross_origin: CrossOrigin,
        certificates: ClientCertificates,
        public: Asgi,
        local: Asgi,
    ) -> None:
        self.certificates = certificates
        self._hot = hot
        self._repeated = repeated
        self._cross_origin = cross_origin
        self._public = public
        self.local = local

    def once_more(self, scope: Any) -> ServesRepeated | None:
        """What serves requests without a task that repeat this one on its connection; None where nothing does."""
        return None if scope["state"]["names_origin"] else self._repeated.get(scope["path"])

    def __call__(self, scope: Any, receive: Receive, send: Send) -> Awaitable[None]:
        # The paths that are asked for all day are found in one step, before any router looks.
        hot = self._hot.get(scope.get("path"))
        state = scope.get("state", _UNSEEN)
        if hot is None or scope["type"] != "http":
            return self.local(scope, receive, send) if state.get("local") else self._public(scope, receive, send)
        # The server has seen already whether a browser may be asking; where nobody has looked, it may be.
        if state.get("names_origin", True):
            return self._cross_origin.serve(hot, scope, receive, send)
        return hot(scope, receive, send)


def create_app(
    ledger: Ledger,
    settings: Settings,
    *,
    server: ServerView | None = None,
    monotonic: Callable[[], float] = time.monotonic,
    remote_keys: RemoteKeys | None = None,
    share: Callable[[Collects], Collects] = lambda own: own,
    throttle: Throttle | None = None,
) -> App:
    """Put every endpoint over an open ledger. `server` is the one that serves it, for its figures; `monotonic` gives
    the seconds that throttling counts in; `remote_keys` is for tests, whose clients publish their keys close by;
    `share` gives, for the process's own figures, those that are to be told; `throttle` counts failures, its own unless
    others count with it."""
    meters = Meters()
    contexts = Contexts(settings.trusted_proxies)
    desk = FrontDesk(contexts, meters, settings.request_body_bytes_max)
    local_desk = FrontDesk(contexts, meters, LOCAL_BODY_BYTES_MAX)
    throttle = Throttle(monotonic) if throttle is None else throttle  # one that has counted nothing is false
    assertions = Assertions(
        ledger,
        remote_keys or RemoteKeys(),
        issuer=settings.issuer,
        endpoints={url(settings.issuer, path) for path in _POSTED_BY_CLIENTS},
    )
    clock = ledger.memory.clock
    certificates = ClientCertificates(clock, settings.tls_client_ca)
    clients = ClientAuth(ledger, throttle, meters, assertions, certificates)
    by_token = ByToken(ledger, throttle, meters)
    families = registry(LedgerCollector(meters, lambda: ledger_families(ledger, server)), version("token-ledger"))
    health = Health(ledger, share(families))
    reading = Reading(ledger.store, settings.request_timeout_seconds)

    nonces = Nonces(lambda: ledger.desk.ring, clock)
    proofs = Proofs(nonces, clock, clock_skew_seconds=settings.clock_skew_seconds)
    token = TokenEndpoint(ledger, clients, desk, proofs, target(settings.issuer, *_TOKEN_PATHS))
    revocation = RevocationEndpoint(ledger, clients, desk, proofs, target(settings.issuer, *_REVOCATION_PATHS))
    at_introspection = target(settings.issuer, *_INTROSPECTION_PATHS)
    introspection = IntrospectionEndpoint(
        ledger, clients, by_token, desk, reading, settings.issuer, proofs, at_introspection
    )
    hot: dict[str, Asgi] = {
        **dict.fromkeys(_TOKEN_PATHS, OfWholeLog(ledger, token)),
        **dict.fromkeys(_REVOCATION_PATHS, OfWholeLog(ledger, revocation)),
        **dict.fromkeys(_INTROSPECTION_PATHS, OfWholeLog(ledger, introspection)),
    }
    repeated: dict[str, ServesRepeated] = dict.fromkeys(_TOKEN_PATHS, token.once_more)
    if settings.tls_client_cert_header is not None:
        repeated = {}  # a proxy tells which certificate a request came with: each is looked at
    if settings.trusted_proxies and sees_certificates(settings):
        hot = {path: Forwarded(settings.tls_client_cert_header, contexts, each) for path, each in hot.items()}
    read_by_pages = _read_by_pages(ledger, settings, desk, token.grant_types)
    by_pages = dict.fromkeys(_POSTED_BY_PAGES, "POST") | dict.fromkeys(read_by_pages, "GET, HEAD")

    operated = OperatedRoutes(ledger, reading, settings.issuer)
    open_routes = _open_routes(health, desk, settings.issuer)
    public = [*open_routes, *operated.of(by_token, desk)]
    commands = _local_routes(LocalRoutes(ledger, reading, Archiver(ledger, settings)), local_desk)
    on_socket = [*open_routes, *operated.of(Local(), local_desk), *commands]
    cross_origin = CrossOrigin(ledger.authority.lists_origin, by_pages)
    return App(hot | read_by_pages, repeated, cross_origin, certificates, _router(public), _router(on_socket))


def _read_by_pages(
    ledger: Ledger, settings: Settings, desk: FrontDesk, grant_types: tuple[str, ...]
) -> dict[str, Asgi]:
    """What web pages of the origins that clients list may read: the metadata and the keys."""
    about = Metadata(
        metadata(
            settings.issuer,
            authorization_endpoint=settings.authorization_endpoint,
            grant_types=grant_types,
            auth_methods=auth_methods(settings),
            assertion_algs=ASSERTION_ALGS,
            dpop_algs=ALGORITHMS,
            binds_to_certificates=sees_certificates(settings),
        )
    )
    found: dict[str, Asgi] = {place: Open(place, about.document, desk) for place in places(settings.issuer)}
    # An older log may not know yet which key is distrusted.
    found[JWKS] = OfWholeLog(ledger, Open(JWKS, Jwks(ledger).document, desk))
    return found


def _open_routes(health: Health, desk: FrontDesk, issuer: str) -> list[BaseRoute]:
    guides = Guides()
    handlers = {
        "/healthz": health.healthz,
        "/readyz": health.readyz,
        "/metrics": health.metrics,
        "/openapi.json": Described(issuer).document,
        "/docs": guides.index,
        "/docs/{name}": guides.page,
    }
    return [Route(path, Open(path, handler, desk)) for path, handler in handlers.items()]


class OperatedRoutes:
    """What operators may ask: which roles, by which methods."""

    def __init__(self, ledger: Ledger, reading: Reading, issuer: str) -> None:
        self._ledger = ledger
        self._authorizations = Authorizations(ledger.operators, issuer)
        self._grants = Grants(ledger, reading)
        self._ends = Ends(ledger.operators)
        self._reuse = Reuse(ledger, reading)
        self._explain = Explain(ledger.operators)

    def of(self, operators: Operators, desk: FrontDesk) -> list[BaseRoute]:
        """The routes, for operators who are recognized in one way."""
        grants, ends = self._grants, self._ends

        def at(path: str, **handlers: Any) -> Route:
            endpoint = Operated(path.replace(":path", ""), handlers, operators, desk)
            return Route(path, OfWholeLog(self._ledger, endpoint))

        return [
            at("/authorizations", POST=((ISSUER,), self._authorizations.authorize)),
            at("/grants", GET=(READERS, grants.list), POST=((ISSUER,), grants.issue)),
            at("/grants/search", POST=(READERS, grants.search)),
            at("/grants/{grant_id}", GET=(READERS, grants.one)),
            at("/grants/{grant_id}/events", GET=(SEE_ALL, grants.events)),
            at("/grants/{grant_id}/revoke", POST=((SECURITY, ADMIN, ISSUER), grants.revoke)),
            at("/grants/{grant_id}/suspend", POST=((SECURITY, ADMIN), grants.suspend)),
            at("/grants/{grant_id}/reinstate", POST=((SECURITY, ADMIN), grants.reinstate)),
            at("/subjects/revoke", POST=((SECURITY, ADMIN, ISSUER), ends.subject)),
            # A client id may hold a slash.
            at("/clients/{client_id:path}/revoke", POST=((SECURITY, ADMIN), ends.client)),
            at("/reuse", GET=((SECURITY, ADMIN), self._reuse.list)),
            at("/explain", POST=((SECURITY, ADMIN), self._explain.explain)),
        ]


def _local_routes(local: LocalRoutes, desk: FrontDesk) -> list[BaseRoute]:
    def at(path: str, **handlers: Any) -> Route:
        table = {method: (ROLES, handler) for method, handler in handlers.items()}
        return Route(path, Operated(path, table, Local(), desk))

    return [
        at("/local/apply", POST=local.apply),
        at("/local/keys", GET=local.keys),
        at("/local/keys/rotate", POST=local.rotate),
        at("/local/keys/{key_id}/activate", POST=local.activate),
        at("/local/keys/{key_id}/distrust", POST=local.distrust),
        at("/local/rebuild", POST=local.rebuild),
        at("/local/archive", POST=local.archive),
        at("/local/erase", POST=local.erase),
        at("/local/restore/acknowledge", POST=local.acknowledge),
    ]


def _router(routes: list[BaseRoute]) -> Router:
    """No path redirects: one with a slash too many is another path, and there is none."""
    return Router(routes, redirect_slashes=False, default=_nowhere)


async def _nowhere(scope: Any, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close"})
        return
    await NOT_FOUND.send(send)
