"""What a client or an operator may be registered as: every rule that a clients file must keep.

`check_client` and `check_operator` raise for the first rule that is broken: one line with the owner's name, the field
as it is spelled in a clients file, and what is allowed there, never the value. Rules that need the store (serial, a
token that two operators share) are `changes.py`'s.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias, get_args
from urllib.parse import urlsplit

from ledger import scope
from ledger.clients import ROLES, ClientSpec, OperatorSpec, Settings
from ledger.events import Words
from ledger.policy import (
    CLIENT_SECRETS_MAX,
    NAME_CHARACTERS_MAX,
    PRESETS,
    RETRY_BUDGET_MAX,
    SECONDS_MAX,
    SECRET_CHARACTERS_MAX,
    AccessTokenFormat,
    OnReuse,
    Policy,
    Rotation,
    ScopeMode,
)
from ledger.refusals import LedgerError, Refused
from ledger.secret_hashes import is_secret_hash

SECRET_AUTHS: Final = ("client_secret", "client_secret_basic", "client_secret_post")
TLS_AUTHS: Final = ("tls_client_auth", "self_signed_tls_client_auth")
AUTHS: Final = (*SECRET_AUTHS, "private_key_jwt", *TLS_AUTHS, "none")
ASSERTION_ALGS: Final = ("PS256", "ES256", "EdDSA", "RS256")
FAPI2_ALGS: Final = ("PS256", "ES256", "EdDSA")
TLS_NAMES: Final = tuple(name for name in Settings.__struct_fields__ if name.startswith("tls_client_auth_"))
GRANT_TYPES: Final = (
    "refresh_token",
    "authorization_code",
    "client_credentials",
    "urn:ietf:params:oauth:grant-type:device_code",
    "urn:ietf:params:oauth:grant-type:token-exchange",
    "urn:ietf:params:oauth:grant-type:jwt-bearer",
    "urn:ietf:params:oauth:grant-type:saml2-bearer",
)

CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "rotation": get_args(Rotation),
    "on_reuse": get_args(OnReuse),
    "scope_mode": get_args(ScopeMode),
    "access_token_format": get_args(AccessTokenFormat),
}
"""What a policy field that is a word may say."""

RANGES: Final[dict[str, tuple[int, int, tuple[str, ...]]]] = {
    "concurrent_seconds": (0, SECONDS_MAX, ()),
    "retry_window_seconds": (0, SECONDS_MAX, ()),
    "retry_budget": (0, RETRY_BUDGET_MAX, ()),
    "unconfirmed_seconds": (0, SECONDS_MAX, ()),
    "access_token_ttl_seconds": (1, SECONDS_MAX, ()),
    "refresh_token_ttl_seconds": (1, SECONDS_MAX, ("unlimited", "off")),
    "grant_ttl_seconds": (1, SECONDS_MAX, ("unlimited",)),
}
"""What a policy field that is a number may say: from, to, and the words that may stand in its place."""

Problem: TypeAlias = tuple[str, str]
"""A field and what is wrong with it."""

_VSCHAR = re.compile(r"[\x20-\x7e]+")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?:[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")
_WEB_HOST = re.compile(r"https?://[^/?@]", re.IGNORECASE)
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_JWK_CERTIFICATE = {"x5c", "x5t#S256"}


class SettingsRefused(LedgerError):
    """A setting of one client or operator is not allowed: one line, never the value. Nothing was recorded."""

    def __init__(self, owner: str, field: str, problem: str) -> None:
        super().__init__(f"{owner}: field {field}: {problem}")
        self.owner = owner
        self.field = field


def owner_name(kind: str, name: str) -> str:
    """How a line names a client or an operator, whatever its name holds: `client "www"`."""
    return f"{kind} {json.dumps(name if len(name) <= 80 else name[:80] + '…')}"


def allowed_number(field: str) -> str:
    """What a policy field that is a number may say, in words."""
    low, high, words = RANGES[field]
    number = f"a whole number from {low} to {high}"
    return " or ".join((number, *(f'"{word}"' for word in words)))


def check_client(spec: ClientSpec) -> None:
    """Raise SettingsRefused for the first rule that a client's settings break."""
    for field, problem in _client_problems(spec):
        raise SettingsRefused(owner_name("client", spec.client_id), field, problem)


def check_operator(spec: OperatorSpec) -> None:
    """Raise SettingsRefused for the first rule that an operator's settings break."""
    for field, problem in _operator_problems(spec):
        raise SettingsRefused(owner_name("operator", spec.name), field, problem)


def name_problem(name: str) -> str | None:
    """What is wrong with a client's id or an operator's name, if anything: `1*VSCHAR`, no colon (RFC 6749 A.1)."""
    if ":" in name:
        return "holds a colon"
    return _visible_problem(name, NAME_CHARACTERS_MAX)


def secret_problem(secret: str) -> str | None:
    """What is wrong with a secret, if anything: `1*VSCHAR` (RFC 6749 A.2)."""
    return _visible_problem(secret, SECRET_CHARACTERS_MAX)


def token_problem(token: str) -> str | None:
    """What is wrong with an operator's token, if anything: it must fit into an Authorization header (RFC 6750 2.1)."""
    return "holds a space" if " " in token else _visible_problem(token, SECRET_CHARACTERS_MAX)


def _visible_problem(text: str, characters_max: int) -> str | None:
    if not text:
        return "is empty"
    if "\n" in text or "\r" in text:
        return "holds a line feed"
    if _VSCHAR.fullmatch(text) is None:
        return "may hold visible ASCII characters and spaces only"
    return f"is longer than {characters_max} characters" if len(text) > characters_max else None


# ---------------------------------------------------------------- clients


def _client_problems(spec: ClientSpec) -> Iterator[Problem]:
    settings = spec.settings
    if problem := name_problem(spec.client_id):
        yield "id", problem
    if settings.auth not in AUTHS:
        yield "auth", f"may be one of {', '.join(AUTHS)}"
    yield from _credential_problems("secret", spec.secrets, settings.secret_hashes, secret_problem)
    yield from _secret_use_problems(spec)
    try:
        if scope.parse(" ".join(settings.scope)) != settings.scope:
            yield "scope", "must be words, each once"
    except Refused as refused:
        yield "scope", str(refused).removeprefix("scope ")
    if any(each not in GRANT_TYPES for each in settings.grant_types):
        yield "grant_types", f"may hold {', '.join(GRANT_TYPES)}"
    yield from _uri_problems(settings)
    yield from _key_problems(settings)
    yield from _auth_problems(settings)
    yield from _signing_key_problems(settings)
    yield from _number_problems(settings.policy)
    yield from _policy_problems(spec)


def _credential_problems(
    field: str, plain: Words, hashes: Words, problem_of: Callable[[str], str | None]
) -> Iterator[Problem]:
    if plain and hashes:
        yield f"{field}_hash", f"stands beside {field}: one of the two"
    if len(plain) > CLIENT_SECRETS_MAX:
        yield field, f"may list at most {CLIENT_SECRETS_MAX}"
    if len(hashes) > CLIENT_SECRETS_MAX:
        yield f"{field}_hash", f"may list at most {CLIENT_SECRETS_MAX}"
    for each in plain:
        if problem := problem_of(each):
            yield field, problem
        if is_secret_hash(each):
            yield field, f"is a hash already: write it as {field}_hash"
    if not all(map(is_secret_hash, hashes)):
        yield f"{field}_hash", "is no hash: `token-ledger hash` makes one"


def _secret_use_problems(spec: ClientSpec) -> Iterator[Problem]:
    auth = spec.settings.auth
    field = "secret_hash" if spec.settings.secret_hashes else "secret"
    has_secret = bool(spec.secrets or spec.settings.secret_hashes)
    if auth in SECRET_AUTHS and not has_secret:
        yield "secret", f'missing: auth = "{auth}" needs one; a public client says auth = "none"'
    if auth == "none" and has_secret:
        yield field, 'a public client (auth = "none") has none'
    if auth not in (*SECRET_AUTHS, "none") and has_secret:
        yield field, f'not with auth = "{auth}"'


def _uri_problems(settings: Settings) -> Iterator[Problem]:
    for field in ("resource", "may_introspect", "redirect_uris"):
        if not all(map(_is_absolute, getattr(settings, field) or ())):
            yield field, "may hold absolute URIs without a fragment only"
    if "authorization_code" in settings.grant_types and not settings.redirect_uris:
        yield "redirect_uris", "missing: the grant type authorization_code needs at least one"  # RFC 7591 2
    if settings.may_introspect is not None and not settings.authenticates:
        yield "may_introspect", 'not for a public client (auth = "none")'
    if not all(map(_is_origin, settings.origins or ())):
        yield "origins", "may hold origins as a browser sends them only: scheme://host, lower case, no path"
    if settings.jwks_uri is not None and not _is_fetchable(settings.jwks_uri):
        yield "jwks_uri", "must be an https URI without a fragment or a user"


def _is_absolute(uri: str) -> bool:
    if _URI.fullmatch(uri) is None:
        return False
    return uri.partition(":")[0].lower() not in _DEFAULT_PORTS or _WEB_HOST.match(uri) is not None


def _is_fetchable(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        return parts.scheme == "https" and _is_absolute(uri) and "@" not in parts.netloc and parts.port != 0
    except ValueError:  # a port beyond all ports
        return False


def _is_origin(origin: str) -> bool:
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        return False
    port = found[2]
    return port is None or (int(port) <= 65_535 and port != _DEFAULT_PORTS.get(found[1]))


def _key_problems(settings: Settings) -> Iterator[Problem]:
    if settings.jwks is not None and settings.jwks_uri is not None:
        yield "jwks_uri", "stands beside jwks: one of the two"
    if settings.jwks is None:
        return
    from ledger.client_keys import imported, names_secret  # here: few clients have keys, and every command would pay

    for index, text in enumerate(settings.jwks):
        key = _decoded(text)
        if names_secret(key):
            yield f"jwks.keys[{index}]", "holds a private or secret key: give the public one"
        elif problem := _certificate_problem(key):
            yield f"jwks.keys[{index}]", problem
        elif imported(key) is None and ("kty" in key or not _names_certificate(key)):
            yield f"jwks.keys[{index}]", "is no public key (RFC 7517)"


def _decoded(text: str) -> dict[str, str | list[str]]:
    try:
        key = json.loads(text)
    except ValueError:
        return {}
    return key if isinstance(key, dict) else {}


def _names_certificate(key: dict[str, str | list[str]]) -> bool:
    return not _JWK_CERTIFICATE.isdisjoint(key)


def _certificate_problem(key: dict[str, str | list[str]]) -> str | None:
    if not _names_certificate(key):
        return None
    from ledger.certificates import key_problem  # as above

    return key_problem(key)


def _signing_key_problems(settings: Settings) -> Iterator[Problem]:
    """Each algorithm that the client may sign with must lead to one key (OpenID Connect Core 10.1)."""
    if settings.auth != "private_key_jwt" or settings.jwks is None:
        return
    from ledger.client_keys import from_texts  # as above

    keys = from_texts(settings.jwks)
    registered = settings.token_endpoint_auth_signing_alg
    algorithms = ASSERTION_ALGS if registered is None else (registered,)
    if not any(each.algorithms.intersection(algorithms) for each in keys):
        yield "jwks", f"holds no key that checks a signature by {' or '.join(algorithms)}"
    for algorithm in algorithms:
        names = [each.kid for each in keys if algorithm in each.algorithms]
        if len(names) > 1 and (None in names or len({*names}) < len(names)):
            yield "jwks", f"holds several keys for {algorithm}: each of them needs a kid of its own"


def _auth_problems(settings: Settings) -> Iterator[Problem]:
    auth = settings.auth
    has_keys = settings.jwks is not None or settings.jwks_uri is not None
    if auth == "private_key_jwt" and not has_keys:
        yield "jwks", f'missing: auth = "{auth}" needs jwks or jwks_uri'
    if auth == "self_signed_tls_client_auth":
        # In the handshake there is no time to fetch them, and later they would be too late.
        if settings.jwks_uri is not None:
            yield "jwks_uri", f'not with auth = "{auth}": its certificates stand in jwks'
        if not any(_names_certificate(_decoded(text)) for text in settings.jwks or ()):
            yield "jwks", f'auth = "{auth}" needs a certificate: a key with x5c or x5t#S256'
    for field, allowed in (
        ("token_endpoint_auth_signing_alg", ASSERTION_ALGS),
        ("assertion_audience", ("issuer", "legacy")),
    ):
        value = getattr(settings, field)
        if value is not None and auth != "private_key_jwt":
            yield field, 'only with auth = "private_key_jwt"'
        if value is not None and value not in allowed:
            yield field, f"may be one of {', '.join(allowed)}"
    names = [field for field in TLS_NAMES if getattr(settings, field) is not None]
    if names and auth != "tls_client_auth":
        yield names[0], 'only with auth = "tls_client_auth"'
    if auth == "tls_client_auth" and len(names) != 1:
        yield (
            names[1] if names else TLS_NAMES[0],
            f'auth = "tls_client_auth" needs exactly one of {", ".join(TLS_NAMES)}',
        )
    for field in names:
        if not getattr(settings, field).strip() or not getattr(settings, field).isprintable():
            yield field, "may hold printable characters only, and not none"
            continue
        from ledger.certificates import name_problem  # as above

        if problem := name_problem(field, getattr(settings, field)):
            yield field, problem


# ---------------------------------------------------------------- policy


def _number_problems(policy: Policy) -> Iterator[Problem]:
    for field, choices in CHOICES.items():
        if getattr(policy, field) not in choices:
            yield f"policy.{field}", f"may be one of {', '.join(choices)}"
    for field, (low, high, words) in RANGES.items():
        number = getattr(policy, field)
        spelled = (number is None and "unlimited" in words) or (number == 0 and "off" in words)
        if not spelled and (type(number) is not int or not low <= number <= high):
            yield f"policy.{field}", f"may be {allowed_number(field)}"


def _policy_problems(spec: ClientSpec) -> Iterator[Problem]:
    settings, policy = spec.settings, spec.settings.policy
    proves = settings.authenticates or settings.sender_bound
    if spec.preset not in PRESETS:
        yield "policy.preset", f"may be one of {', '.join(PRESETS)}"
    if policy.rotation == "reuse" and not proves and not settings.allow_unbound_reuse:
        yield "policy.rotation", 'not "reuse" for a public client that is not sender-bound (allow_unbound_reuse = true)'
    if policy.on_reuse in ("alert", "revoke_subject") and not proves:
        yield "policy.on_reuse", f'not "{policy.on_reuse}" for a public client that is not sender-bound'
    if spec.preset == "fapi2":
        yield from _fapi2_problems(settings)


def _fapi2_problems(settings: Settings) -> Iterator[Problem]:
    """What the FAPI 2.0 security profile (5.3) asks of a client."""
    if settings.auth not in ("private_key_jwt", *TLS_AUTHS):
        yield "policy", "the preset fapi2 needs a client that authenticates by private_key_jwt or TLS"
    if not settings.sender_bound:
        yield "policy", "the preset fapi2 needs a client whose access tokens are bound by DPoP or a certificate"
    if settings.assertion_audience == "legacy":
        yield "policy", 'the preset fapi2 needs assertion_audience = "issuer"'
    if settings.auth == "private_key_jwt" and settings.token_endpoint_auth_signing_alg not in FAPI2_ALGS:
        yield "policy", f"the preset fapi2 needs token_endpoint_auth_signing_alg {', '.join(FAPI2_ALGS)}"


# ---------------------------------------------------------------- operators


def _operator_problems(spec: OperatorSpec) -> Iterator[Problem]:
    if problem := name_problem(spec.name):
        yield "name", problem
    if spec.name == "local":
        yield "name", '"local" is who runs commands beside the store'
    yield from _credential_problems("token", spec.tokens, spec.token_hashes, token_problem)
    if not spec.tokens and not spec.token_hashes:
        yield "token", "missing"
    if not spec.roles or any(role not in ROLES for role in spec.roles):
        yield "roles", f"may hold {', '.join(ROLES)}, and at least one of them"
    if spec.clients is not None and "issuer" not in spec.roles:
        yield "clients", "limits an issuer only"
    if spec.clients is not None and not spec.clients:
        yield "clients", "lists none: leave it out for all"
    if any(map(name_problem, spec.clients or ())):
        yield "clients", "may hold ids of clients only"
