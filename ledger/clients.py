"""The client and operator aggregates: registration, policy, credentials as keyed hashes (RFC 6749 2, RFC 7591 2).

A clients file says how things shall be (`ClientSpec`, `OperatorSpec`); `decide_settings` and `decide_absence` compare
that with how they are, and what comes out are events. Plain secrets live in a spec only, on their way to their hashes.
What may stand in a spec is `registration.py`'s; a whole file against the whole store is `changes.py`'s.
"""

from collections.abc import Callable
from typing import Any, Final, assert_never

import msgspec

from ledger import times
from ledger.acts import Act
from ledger.commands import ClientRules
from ledger.epochs import Epoch, check_before
from ledger.events import (
    ClientChanged,
    ClientDisabled,
    ClientEvent,
    ClientRegistered,
    ClientRevoked,
    ClientSettings,
    OperatorChanged,
    OperatorEvent,
    OperatorRegistered,
    OperatorRemoved,
    Words,
)
from ledger.policy import STANDARD, Policy

HashSecret = Callable[[str], str]
"""The keyed hash of a client's secret or an operator's token. Deterministic: an unchanged secret gives no event."""

ROLES: Final = ("issuer", "auditor", "security", "admin")


class Settings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Every setting of one client as it rules, named as in its events; secrets only as keyed hashes.

    `auth` is one of `registration.AUTHS`. None: not set, or switched off. Lists that are empty are None, but for
    `scope`, `grant_types` and `secret_hashes`.
    """

    auth: str = "client_secret"
    scope: Words = ()
    grant_types: Words = ("refresh_token",)
    secret_hashes: Words = ()
    policy: Policy = STANDARD
    jwks: Words | None = None
    jwks_uri: str | None = None
    token_endpoint_auth_signing_alg: str | None = None
    assertion_audience: str | None = None
    tls_client_auth_subject_dn: str | None = None
    tls_client_auth_san_dns: str | None = None
    tls_client_auth_san_uri: str | None = None
    tls_client_auth_san_ip: str | None = None
    tls_client_auth_san_email: str | None = None
    dpop_bound_access_tokens: bool | None = None
    dpop_nonce_required: bool | None = None
    tls_client_certificate_bound_access_tokens: bool | None = None
    resource: Words | None = None
    may_introspect: Words | None = None
    origins: Words | None = None
    redirect_uris: Words | None = None
    allow_unbound_reuse: bool | None = None

    @property
    def authenticates(self) -> bool:
        """A confidential client (RFC 6749 2.1): it proves who it is with every request."""
        return self.auth != "none"

    @property
    def sender_bound(self) -> bool:
        """Its access tokens are bound to a key that it must prove (RFC 9449, RFC 8705)."""
        return bool(self.dpop_bound_access_tokens or self.tls_client_certificate_bound_access_tokens)


_SETTINGS: Final = tuple(name for name in Settings.__struct_fields__ if name != "policy")
_POLICY: Final = Policy.__struct_fields__


def spread(settings: Settings) -> dict[str, Any]:
    """The settings as members of an event: the policy spread over `policy_<field>`."""
    members: dict[str, Any] = {name: getattr(settings, name) for name in _SETTINGS}
    return members | {f"policy_{name}": getattr(settings.policy, name) for name in _POLICY}


def gathered(event: ClientSettings) -> Settings:
    """The settings that an event says: the way back from `spread`."""
    policy = Policy(**{name: getattr(event, f"policy_{name}") for name in _POLICY})
    return Settings(**{name: getattr(event, name) for name in _SETTINGS}, policy=policy)


class Client(msgspec.Struct, array_like=True):
    """The aggregate of `client:<id>`. `Client()`: nothing happened yet.

    `settings_v` is the version of its last event that changed its settings, 0 before the first; `enabled` is False
    while no clients file names it. The epoch outlives a removal, so an end said in between is for good.
    """

    v: int = 0
    at: int = 0
    client_id: str = ""
    enabled: bool = False
    settings_v: int = 0
    settings: Settings = Settings()
    epoch: Epoch = msgspec.field(default_factory=Epoch)

    @property
    def auth(self) -> str:
        """How it is to authenticate."""
        return self.settings.auth

    @property
    def secret_hashes(self) -> Words:
        """Its secrets as keyed hashes, in the file's order."""
        return self.settings.secret_hashes

    def rules(self) -> ClientRules:
        """What of the client bears on a grant's decisions."""
        return ClientRules(
            client_id=self.client_id,
            v=self.settings_v,
            scope=self.settings.scope,
            resource=self.settings.resource or (),
            policy=self.settings.policy,
            authenticates=self.settings.authenticates,
            dpop_bound=bool(self.settings.dpop_bound_access_tokens),
            certificate_bound=bool(self.settings.tls_client_certificate_bound_access_tokens),
            unbound_reuse=bool(self.settings.allow_unbound_reuse),
            grant_types=self.settings.grant_types,
            redirect_uris=self.settings.redirect_uris or (),
        )

    def decide_settings(
        self, client_id: str, settings: Settings, act: Act, *, serial: int | None = None
    ) -> ClientRegistered | ClientChanged | None:
        """Let the client rule as `settings` say; None where it does already. One that returns is registered again."""
        if self.enabled and settings == self.settings:
            return None
        kind = ClientChanged if self.enabled else ClientRegistered
        begins = act.begins(f"client:{client_id}", self.v, self.at)
        return kind(**begins, client_id=client_id, serial=serial, **spread(settings))

    def decide_absence(self, act: Act, *, serial: int | None = None) -> ClientDisabled | None:
        """Block the client and its grants until it is registered again; None where it is not there anyway."""
        if not self.enabled:
            return None
        begins = act.begins(f"client:{self.client_id}", self.v, self.at)
        return ClientDisabled(**begins, client_id=self.client_id, serial=serial)

    def decide_revocation(
        self,
        act: Act,
        *,
        before: int | None = None,
        reason: str | None = None,
        issued_since: bool = True,
    ) -> ClientRevoked | None:
        """End the client's grants, or those issued earlier than `before`; None where that changes nothing.

        Also while it is disabled. `reason` is a commitment; `issued_since` as in `Epoch.adds`. Raises Refused where
        `before` lies in the future.
        """
        check_before(before, act.at)
        if not self.epoch.adds(before, issued_since=issued_since):
            return None
        return ClientRevoked(
            **act.begins(f"client:{self.client_id}", self.v, self.at),
            client_id=self.client_id,
            epoch=self.epoch.number + 1,
            before=None if before is None else times.text(before),
            reason=reason,
            reason_class="termination",
        )

    def evolve(self, event: ClientEvent) -> None:
        """Fold one event in. Never refuses."""
        match event:
            case ClientRegistered() | ClientChanged():
                self.settings = gathered(event)
                self.settings_v = event.v
                self.enabled = True
            case ClientDisabled():
                self.enabled = False
            case ClientRevoked():
                self.epoch.evolve(event)
            case _:
                assert_never(event)
        self.v = event.v
        self.at = times.micros(event.at)
        self.client_id = event.client_id


class Operator(msgspec.Struct, array_like=True):
    """The aggregate of `operator:<name>`: someone of the operating side. `Operator()`: nothing happened yet.

    `clients` limits what it does as an issuer to those clients; None is all.
    """

    v: int = 0
    at: int = 0
    name: str = ""
    enabled: bool = False
    token_hashes: Words = ()
    roles: Words = ()
    clients: Words | None = None

    @property
    def requested_by(self) -> str:
        """How events name it."""
        return f"operator:{self.name}"

    def has(self, *roles: str) -> bool:
        """Whether it has one of these roles."""
        return any(role in self.roles for role in roles)

    def decide_settings(
        self, spec: "OperatorSpec", token_hashes: Words, act: Act, *, serial: int | None = None
    ) -> OperatorRegistered | OperatorChanged | None:
        """Let the operator act as the spec says, with tokens of these hashes; None where it does already."""
        said = (token_hashes, spec.roles, spec.clients)
        if self.enabled and said == (self.token_hashes, self.roles, self.clients):
            return None
        kind = OperatorChanged if self.enabled else OperatorRegistered
        return kind(
            **act.begins(f"operator:{spec.name}", self.v, self.at),
            name=spec.name,
            token_hashes=token_hashes,
            roles=spec.roles,
            clients=spec.clients,
            serial=serial,
        )

    def decide_absence(self, act: Act, *, serial: int | None = None) -> OperatorRemoved | None:
        """Let the operator do nothing any more; None where it may do nothing anyway."""
        if not self.enabled:
            return None
        return OperatorRemoved(**act.begins(f"operator:{self.name}", self.v, self.at), name=self.name, serial=serial)

    def evolve(self, event: OperatorEvent) -> None:
        """Fold one event in. Never refuses."""
        match event:
            case OperatorRegistered() | OperatorChanged():
                self.token_hashes = event.token_hashes
                self.roles = event.roles
                self.clients = event.clients
                self.enabled = True
            case OperatorRemoved():
                self.enabled = False
            case _:
                assert_never(event)
        self.v = event.v
        self.at = times.micros(event.at)
        self.name = event.name


LOCAL_OPERATOR: Final = Operator(name="local", enabled=True, roles=ROLES)
"""Whoever may run a command on the machine that holds the store: all roles, no token, no stream."""


class ClientSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a clients file says of one client. `secrets` are plain; `settings.secret_hashes` those given as hashes;
    `preset` names what the policy was built on."""

    client_id: str
    settings: Settings = Settings()
    secrets: Words = ()
    preset: str = "standard"

    def __repr__(self) -> str:
        return f"ClientSpec(client_id={self.client_id!r}, settings={self.settings!r}, secrets=…)"

    def ruling(self, hash_secret: HashSecret) -> Settings:
        """The settings as they will rule: every secret as its hash."""
        return msgspec.structs.replace(
            self.settings, secret_hashes=_hashed(self.secrets, self.settings.secret_hashes, hash_secret)
        )


class OperatorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a clients file says of one operator. `tokens` are plain."""

    name: str
    roles: Words
    tokens: Words = ()
    token_hashes: Words = ()
    clients: Words | None = None

    def __repr__(self) -> str:
        return f"OperatorSpec(name={self.name!r}, roles={self.roles!r}, clients={self.clients!r}, tokens=…)"

    def hashes(self, hash_secret: HashSecret) -> Words:
        """Every token as its hash."""
        return _hashed(self.tokens, self.token_hashes, hash_secret)


def _hashed(plain: Words, given: Words, hash_secret: HashSecret) -> Words:
    return tuple(dict.fromkeys((*given, *map(hash_secret, plain))))
