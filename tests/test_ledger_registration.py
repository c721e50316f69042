"""What may be registered: one row a rule, with the line that a person reads."""

import json
from base64 import urlsafe_b64encode
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc.jwk import ECKey, OKPKey

from ledger.clients import ClientSpec, OperatorSpec, Settings
from ledger.policy import PRESETS, STANDARD
from ledger.refusals import LedgerError
from ledger.registration import SettingsRefused, check_client, check_operator, owner_name

HASH = "h1$" + "0123456789abcdef" * 4
CONFIDENTIAL = {"auth": "client_secret", "secrets": ("Secr3t!",)}
PUBLIC = {"auth": "none", "secrets": ()}
ASSERTS = {"auth": "private_key_jwt", "secrets": (), "jwks_uri": "https://app.example/keys"}
SPEC_FIELDS = {"client_id", "secrets", "preset"}


def spec(**said: Any) -> ClientSpec:
    """A client with these settings; `policy` as a preset's name or as fields over `standard`."""
    policy = said.pop("policy", {})
    if isinstance(policy, str):
        said |= {"preset": policy}
        policy = {}
    said["policy"] = msgspec.structs.replace(PRESETS.get(said.get("preset", "standard"), STANDARD), **policy)
    whole = {"client_id": "www", **{name: said.pop(name) for name in SPEC_FIELDS & said.keys()}}
    return ClientSpec(**whole, settings=Settings(**said))


def refused_line(**said: Any) -> str:
    """The line that a person reads where a client may not be registered so."""
    with pytest.raises(SettingsRefused) as refused:
        check_client(spec(**said))
    return str(refused.value)


def public_key(*, private: bool = False) -> str:
    return json.dumps(ECKey.generate_key("P-256").as_dict(private=private))


def edwards_key() -> str:
    return json.dumps(OKPKey.generate_key("Ed25519").as_dict(private=False))


def bent(**members: str) -> str:
    return json.dumps({**json.loads(public_key()), **members})


LAWFUL: list[dict[str, Any]] = [
    CONFIDENTIAL,
    PUBLIC,
    {**CONFIDENTIAL, "client_id": "w w"},
    {**CONFIDENTIAL, "client_id": "~" * 255, "secrets": ("a", "b", " ")},
    {"auth": "client_secret_basic", "secret_hashes": (HASH,)},
    {"auth": "client_secret_post", "secret_hashes": (HASH, HASH[:-1] + "0", HASH[:-1] + "1")},
    {**CONFIDENTIAL, "scope": ("read", "urn:x:!#$%"), "grant_types": ()},
    {**CONFIDENTIAL, "grant_types": ("refresh_token", "client_credentials")},
    {**CONFIDENTIAL, "grant_types": ("authorization_code",), "redirect_uris": ("https://app.example/cb",)},
    {**CONFIDENTIAL, "resource": ("https://api.example", "urn:example:api", "https://api.example/a%20b?x=1")},
    {**CONFIDENTIAL, "redirect_uris": ("com.example.app:/cb", "http://127.0.0.1/cb", "http://[::1]:8080/cb")},
    {**CONFIDENTIAL, "origins": ("https://app.example", "http://localhost:3000", "capacitor://localhost")},
    {**ASSERTS, "token_endpoint_auth_signing_alg": "RS256", "assertion_audience": "legacy"},
    {"auth": "private_key_jwt", "jwks": (public_key(),)},
    {"auth": "private_key_jwt", "jwks": (public_key(), edwards_key())},
    {"auth": "private_key_jwt", "jwks": (bent(kid="a"), bent(kid="b"), bent(use="enc"))},
    {"auth": "private_key_jwt", "jwks": (public_key(), edwards_key()), "token_endpoint_auth_signing_alg": "EdDSA"},
    {**ASSERTS, "jwks_uri": "https://app.example:8443/keys?of=www"},
    {"auth": "self_signed_tls_client_auth", "jwks": (public_key(), '{"x5t#S256": "' + "A" * 43 + '"}')},
    {"auth": "tls_client_auth", "tls_client_auth_san_dns": "app.example"},
    {**CONFIDENTIAL, "policy": {"refresh_token_ttl_seconds": None, "grant_ttl_seconds": None}},
    {**CONFIDENTIAL, "policy": {"refresh_token_ttl_seconds": 0, "concurrent_seconds": 0, "retry_budget": 0}},
    {**CONFIDENTIAL, "policy": {"access_token_ttl_seconds": 3_153_600_000, "grant_ttl_seconds": 1}},
    {**CONFIDENTIAL, "policy": "stable"},
    {**CONFIDENTIAL, "policy": {"on_reuse": "alert"}},
    {**PUBLIC, "policy": "strict"},
    {**PUBLIC, "policy": "stable", "allow_unbound_reuse": True},
    {**PUBLIC, "policy": "stable", "dpop_bound_access_tokens": True},
    {**PUBLIC, "policy": {"on_reuse": "revoke_subject"}, "tls_client_certificate_bound_access_tokens": True},
    {**CONFIDENTIAL, "policy": {"access_token_format": "jwt"}},
    {**ASSERTS, "policy": "fapi2", "dpop_bound_access_tokens": True, "token_endpoint_auth_signing_alg": "ES256"},
    {**ASSERTS, "preset": "fapi2", "policy": {"access_token_format": "opaque"}, "dpop_bound_access_tokens": True,
     "token_endpoint_auth_signing_alg": "PS256"},
    {"auth": "tls_client_auth", "tls_client_auth_subject_dn": "CN=app", "preset": "fapi2",
     "policy": {"access_token_format": "opaque"}, "tls_client_certificate_bound_access_tokens": True},
]  # fmt: skip


@pytest.mark.parametrize("said", LAWFUL, ids=map(str, range(len(LAWFUL))))
def test_what_is_lawful_is_let_through(said: dict[str, Any]) -> None:
    """A rule that is too strict would stop a deployment."""
    check_client(spec(**said))


BAD_TOKEN_TTL = "a whole number from 1 to 3153600000"
AUTHS = (
    "client_secret, client_secret_basic, client_secret_post, private_key_jwt, tls_client_auth, "
    "self_signed_tls_client_auth, none"
)
URIS = "may hold absolute URIs without a fragment only"
ORIGINS = "may hold origins as a browser sends them only: scheme://host, lower case, no path"
NEEDS_AUTHENTICATION = "the preset fapi2 needs a client that authenticates by private_key_jwt or TLS"

REFUSED: list[tuple[dict[str, Any], str]] = [
    # who: RFC 6749 A.1, A.2
    ({**CONFIDENTIAL, "client_id": ""}, "id: is empty"),
    ({**CONFIDENTIAL, "client_id": "w:w"}, "id: holds a colon"),
    ({**CONFIDENTIAL, "client_id": "www\n"}, "id: holds a line feed"),
    ({**CONFIDENTIAL, "client_id": "wörld"}, "id: may hold visible ASCII characters and spaces only"),
    ({**CONFIDENTIAL, "client_id": "w\x7f"}, "id: may hold visible ASCII characters and spaces only"),
    ({**CONFIDENTIAL, "client_id": "w" * 256}, "id: is longer than 255 characters"),
    ({**CONFIDENTIAL, "secrets": ("",)}, "secret: is empty"),
    ({**CONFIDENTIAL, "secrets": ("Secr3t!\n",)}, "secret: holds a line feed"),
    ({**CONFIDENTIAL, "secrets": ("good", "Secr3t!\r")}, "secret: holds a line feed"),
    ({**CONFIDENTIAL, "secrets": ("Secr3t!\t",)}, "secret: may hold visible ASCII characters and spaces only"),
    ({**CONFIDENTIAL, "secrets": ("s" * 1025,)}, "secret: is longer than 1024 characters"),
    ({**CONFIDENTIAL, "secrets": ("a", "b", "c", "d")}, "secret: may list at most 3"),
    ({**CONFIDENTIAL, "secrets": (HASH,)}, "secret: is a hash already: write it as secret_hash"),
    ({"auth": "client_secret", "secret_hashes": (HASH,) * 4}, "secret_hash: may list at most 3"),
    ({"auth": "client_secret", "secret_hashes": ("h1$abc",)}, "secret_hash: is no hash: `token-ledger hash` makes one"),
    ({**CONFIDENTIAL, "secret_hashes": (HASH,)}, "secret_hash: stands beside secret: one of the two"),
    # how it authenticates: RFC 6749 2.1, RFC 7523, RFC 8705 2
    ({"auth": "client_secret_jwt", "secrets": ("a",)}, f"auth: may be one of {AUTHS}"),
    ({"auth": "client_secret_basic"},
     'secret: missing: auth = "client_secret_basic" needs one; a public client says auth = "none"'),
    ({"auth": "none", "secrets": ("a",)}, 'secret: a public client (auth = "none") has none'),
    ({"auth": "none", "secret_hashes": (HASH,)}, 'secret_hash: a public client (auth = "none") has none'),
    ({**ASSERTS, "secrets": ("a",)}, 'secret: not with auth = "private_key_jwt"'),
    ({"auth": "private_key_jwt"}, 'jwks: missing: auth = "private_key_jwt" needs jwks or jwks_uri'),
    ({"auth": "self_signed_tls_client_auth"},
     'jwks: auth = "self_signed_tls_client_auth" needs a certificate: a key with x5c or x5t#S256'),
    ({**ASSERTS, "jwks": (public_key(),)}, "jwks_uri: stands beside jwks: one of the two"),
    *(
        ({**ASSERTS, "jwks_uri": uri}, "jwks_uri: must be an https URI without a fragment or a user")
        for uri in (
            "http://app.example/keys", "file:///etc/keys", "https://app.example/keys#1", "https://me@app.example/keys",
            "https://app.example:99999/keys", "https://app.example:0/keys", "https:///keys", "keys", "",
        )
    ),
    ({"auth": "private_key_jwt", "jwks": (edwards_key(),), "token_endpoint_auth_signing_alg": "ES256"},
     "jwks: holds no key that checks a signature by ES256"),
    ({"auth": "private_key_jwt", "jwks": (bent(use="enc"),)},
     "jwks: holds no key that checks a signature by PS256 or ES256 or EdDSA or RS256"),
    ({"auth": "private_key_jwt", "jwks": (public_key(), public_key())},
     "jwks: holds several keys for ES256: each of them needs a kid of its own"),
    ({"auth": "private_key_jwt", "jwks": (bent(kid="a"), bent(kid="a"))},
     "jwks: holds several keys for ES256: each of them needs a kid of its own"),
    ({"auth": "private_key_jwt", "jwks": (public_key(), public_key(private=True))},
     "jwks.keys[1]: holds a private or secret key: give the public one"),
    ({"auth": "private_key_jwt", "jwks": ('{"kty":"oct"}',)},
     "jwks.keys[0]: holds a private or secret key: give the public one"),
    ({"auth": "private_key_jwt", "jwks": ("{}",)}, "jwks.keys[0]: is no public key (RFC 7517)"),
    ({"auth": "private_key_jwt", "jwks": ("[",)}, "jwks.keys[0]: is no public key (RFC 7517)"),
    ({"auth": "private_key_jwt", "jwks": (bent(x="AAAA"),)}, "jwks.keys[0]: is no public key (RFC 7517)"),
    ({"auth": "private_key_jwt", "jwks": (bent(x="!"),)}, "jwks.keys[0]: is no public key (RFC 7517)"),
    ({"auth": "private_key_jwt", "jwks": (bent(crv="P-1"),)}, "jwks.keys[0]: is no public key (RFC 7517)"),
    ({**ASSERTS, "token_endpoint_auth_signing_alg": "none"},
     "token_endpoint_auth_signing_alg: may be one of PS256, ES256, EdDSA, RS256"),
    ({**ASSERTS, "assertion_audience": "any"}, "assertion_audience: may be one of issuer, legacy"),
    ({**CONFIDENTIAL, "assertion_audience": "issuer"}, 'assertion_audience: only with auth = "private_key_jwt"'),
    ({**CONFIDENTIAL, "tls_client_auth_san_dns": "app.example"},
     'tls_client_auth_san_dns: only with auth = "tls_client_auth"'),
    ({"auth": "tls_client_auth"},
     'tls_client_auth_subject_dn: auth = "tls_client_auth" needs exactly one of tls_client_auth_subject_dn, '
     "tls_client_auth_san_dns, tls_client_auth_san_uri, tls_client_auth_san_ip, tls_client_auth_san_email"),
    ({"auth": "tls_client_auth", "tls_client_auth_subject_dn": "CN=a", "tls_client_auth_san_ip": "::1"},
     'tls_client_auth_san_ip: auth = "tls_client_auth" needs exactly one of tls_client_auth_subject_dn, '
     "tls_client_auth_san_dns, tls_client_auth_san_uri, tls_client_auth_san_ip, tls_client_auth_san_email"),
    ({"auth": "tls_client_auth", "tls_client_auth_san_dns": "app\n"},
     "tls_client_auth_san_dns: may hold printable characters only, and not none"),
    # what it may ask for: RFC 6749 3.3, RFC 8707 2, RFC 6454 7
    ({**CONFIDENTIAL, "scope": ("re ad",)}, "scope: must be words, each once"),
    ({**CONFIDENTIAL, "scope": ("read", "read")}, "scope: must be words, each once"),
    ({**CONFIDENTIAL, "scope": ('re"ad',)}, "scope: must be words of printable ASCII with one space between"),
    ({**CONFIDENTIAL, "scope": ("",)}, "scope: must be words, each once"),
    ({**CONFIDENTIAL, "grant_types": ("refresh-token",)},
     "grant_types: may hold refresh_token, authorization_code, client_credentials, "
     "urn:ietf:params:oauth:grant-type:device_code, urn:ietf:params:oauth:grant-type:token-exchange, "
     "urn:ietf:params:oauth:grant-type:jwt-bearer, urn:ietf:params:oauth:grant-type:saml2-bearer"),
    ({**CONFIDENTIAL, "resource": ("https://api.example#part",)}, f"resource: {URIS}"),
    ({**CONFIDENTIAL, "resource": ("api.example",)}, f"resource: {URIS}"),
    ({**CONFIDENTIAL, "resource": ("/api",)}, f"resource: {URIS}"),
    ({**CONFIDENTIAL, "resource": ("https:///api",)}, f"resource: {URIS}"),
    ({**CONFIDENTIAL, "resource": ("https://api.example/a b",)}, f"resource: {URIS}"),
    ({**CONFIDENTIAL, "resource": ("https://api.example/%zz",)}, f"resource: {URIS}"),
    ({**CONFIDENTIAL, "may_introspect": ("https://api.example", "")}, f"may_introspect: {URIS}"),
    ({**CONFIDENTIAL, "redirect_uris": ("https://app.example/cb#",)}, f"redirect_uris: {URIS}"),
    # RFC 7591 2: where the code goes has to be known before
    ({**CONFIDENTIAL, "grant_types": ("authorization_code",)},
     "redirect_uris: missing: the grant type authorization_code needs at least one"),
    ({**CONFIDENTIAL, "origins": ("*",)}, f"origins: {ORIGINS}"),
    ({**CONFIDENTIAL, "origins": ("null",)}, f"origins: {ORIGINS}"),
    ({**CONFIDENTIAL, "origins": ("https://app.example/",)}, f"origins: {ORIGINS}"),
    ({**CONFIDENTIAL, "origins": ("https://App.example",)}, f"origins: {ORIGINS}"),
    ({**CONFIDENTIAL, "origins": ("https://app.example:443",)}, f"origins: {ORIGINS}"),
    ({**CONFIDENTIAL, "origins": ("https://app.example:65536",)}, f"origins: {ORIGINS}"),
    ({**CONFIDENTIAL, "origins": ("https://app.example\n",)}, f"origins: {ORIGINS}"),
    # policy: numbers
    ({**CONFIDENTIAL, "policy": {"access_token_ttl_seconds": 0}},
     f"policy.access_token_ttl_seconds: may be {BAD_TOKEN_TTL}"),
    ({**CONFIDENTIAL, "policy": {"access_token_ttl_seconds": None}},
     f"policy.access_token_ttl_seconds: may be {BAD_TOKEN_TTL}"),
    ({**CONFIDENTIAL, "policy": {"access_token_ttl_seconds": True}},
     f"policy.access_token_ttl_seconds: may be {BAD_TOKEN_TTL}"),
    ({**CONFIDENTIAL, "policy": {"grant_ttl_seconds": 0}},
     f'policy.grant_ttl_seconds: may be {BAD_TOKEN_TTL} or "unlimited"'),
    ({**CONFIDENTIAL, "policy": {"grant_ttl_seconds": 3_153_600_001}},
     f'policy.grant_ttl_seconds: may be {BAD_TOKEN_TTL} or "unlimited"'),
    ({**CONFIDENTIAL, "policy": {"refresh_token_ttl_seconds": -1}},
     f'policy.refresh_token_ttl_seconds: may be {BAD_TOKEN_TTL} or "unlimited" or "off"'),
    ({**CONFIDENTIAL, "policy": {"concurrent_seconds": None}},
     "policy.concurrent_seconds: may be a whole number from 0 to 3153600000"),
    ({**CONFIDENTIAL, "policy": {"retry_budget": -1}}, "policy.retry_budget: may be a whole number from 0 to 1000000"),
    # policy: words, and who may have them
    ({**CONFIDENTIAL, "policy": "lax"}, "policy.preset: may be one of strict, standard, mobile, stable, fapi2"),
    ({**CONFIDENTIAL, "policy": {"rotation": "always"}}, "policy.rotation: may be one of rotate, reuse"),
    ({**CONFIDENTIAL, "policy": {"on_reuse": "ignore"}},
     "policy.on_reuse: may be one of revoke, suspend, alert, revoke_subject"),
    ({**CONFIDENTIAL, "policy": {"scope_mode": "free"}}, "policy.scope_mode: may be one of sticky, rfc6749, ratchet"),
    ({**CONFIDENTIAL, "policy": {"access_token_format": "jwe"}},
     "policy.access_token_format: may be one of opaque, jwt"),
    ({**PUBLIC, "policy": "stable"},
     'policy.rotation: not "reuse" for a public client that is not sender-bound (allow_unbound_reuse = true)'),
    ({**PUBLIC, "policy": {"on_reuse": "alert"}},
     'policy.on_reuse: not "alert" for a public client that is not sender-bound'),
    ({**PUBLIC, "policy": {"on_reuse": "revoke_subject"}, "allow_unbound_reuse": True},
     'policy.on_reuse: not "revoke_subject" for a public client that is not sender-bound'),
    ({**PUBLIC, "may_introspect": ("https://api.example",)}, 'may_introspect: not for a public client (auth = "none")'),
    # FAPI 2.0 security profile 5.3.2
    ({**CONFIDENTIAL, "policy": "fapi2", "dpop_bound_access_tokens": True}, f"policy: {NEEDS_AUTHENTICATION}"),
    ({**PUBLIC, "policy": "fapi2", "dpop_bound_access_tokens": True}, f"policy: {NEEDS_AUTHENTICATION}"),
    ({**ASSERTS, "policy": "fapi2"},
     "policy: the preset fapi2 needs a client whose access tokens are bound by DPoP or a certificate"),
    ({**ASSERTS, "policy": "fapi2", "dpop_bound_access_tokens": True, "assertion_audience": "legacy"},
     'policy: the preset fapi2 needs assertion_audience = "issuer"'),
    ({**ASSERTS, "policy": "fapi2", "dpop_bound_access_tokens": True},
     "policy: the preset fapi2 needs token_endpoint_auth_signing_alg PS256, ES256, EdDSA"),
    ({**ASSERTS, "policy": "fapi2", "dpop_bound_access_tokens": True, "token_endpoint_auth_signing_alg": "RS256"},
     "policy: the preset fapi2 needs token_endpoint_auth_signing_alg PS256, ES256, EdDSA"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "line"), REFUSED, ids=map(str, range(len(REFUSED))))
def test_what_is_not_lawful_is_one_line_that_names_client_and_field(said: dict[str, Any], line: str) -> None:
    """The field, what is allowed there, and never what stood there."""
    with pytest.raises(SettingsRefused) as refused:
        check_client(spec(**said))
    client = owner_name("client", said.get("client_id", "www"))
    assert f"{client}: field {line}" == str(refused.value)
    assert (client, line.partition(":")[0]) == (refused.value.owner, refused.value.field)
    assert isinstance(refused.value, LedgerError)


def test_no_line_holds_more_than_a_line() -> None:
    """Ids are shown, so what they hold is escaped and cut."""
    assert 'client "a\\nb\\u001b[1m\\u2028"' == owner_name("client", "a\nb\x1b[1m\u2028")
    assert len(owner_name("client", "w" * 10_000)) < 100


def test_a_key_too_short_to_be_safe_is_no_key() -> None:
    """RFC 7518 3.3: RSA keys have 2048 bits or more."""

    def key_of(bits: int) -> str:
        public = rsa.generate_private_key(65537, bits).public_key().public_numbers()
        texts = {name: urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8)).rstrip(b"=").decode()
                 for name, number in (("n", public.n), ("e", public.e))}  # fmt: skip
        return json.dumps({"kty": "RSA", **texts})

    check_client(spec(auth="private_key_jwt", jwks=(key_of(2048),)))
    with pytest.raises(SettingsRefused, match=r"field jwks\.keys\[0\]: is no public key"):
        check_client(spec(auth="private_key_jwt", jwks=(key_of(1024),)))


def operator(**said: Any) -> OperatorSpec:
    return OperatorSpec(**{"name": "soc", "roles": ("security",), "tokens": ("T0ken!",), **said})


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"tokens": (), "token_hashes": (HASH,)},
        {"tokens": ("a", "b", "c"), "roles": ("issuer", "auditor", "security", "admin")},
        {"roles": ("issuer",), "clients": ("www", "w w")},
    ],
)
def test_lawful_operators_are_let_through(said: dict[str, Any]) -> None:
    """A role or several, a token or its hash, some clients or all."""
    check_operator(operator(**said))


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"name": ""}, "name: is empty"),
        ({"name": "a:b"}, "name: holds a colon"),
        ({"name": "local"}, 'name: "local" is who runs commands beside the store'),
        ({"tokens": ()}, "token: missing"),
        ({"tokens": ("a b",)}, "token: holds a space"),
        ({"tokens": ("T0ken!\n",)}, "token: holds a line feed"),
        ({"tokens": (HASH,)}, "token: is a hash already: write it as token_hash"),
        ({"tokens": ("a", "b", "c", "d")}, "token: may list at most 3"),
        ({"token_hashes": (HASH,)}, "token_hash: stands beside token: one of the two"),
        ({"tokens": (), "token_hashes": ("T0ken!",)}, "token_hash: is no hash: `token-ledger hash` makes one"),
        ({"roles": ()}, "roles: may hold issuer, auditor, security, admin, and at least one of them"),
        ({"roles": ("root",)}, "roles: may hold issuer, auditor, security, admin, and at least one of them"),
        ({"clients": ("www",)}, "clients: limits an issuer only"),
        ({"roles": ("issuer",), "clients": ()}, "clients: lists none: leave it out for all"),
        ({"roles": ("issuer",), "clients": ("w:w",)}, "clients: may hold ids of clients only"),
    ],
)
def test_what_an_operator_may_not_be(said: dict[str, Any], line: str) -> None:
    """One line that names operator and field."""
    with pytest.raises(SettingsRefused) as refused:
        check_operator(operator(**said))
    assert f"{owner_name('operator', said.get('name', 'soc'))}: field {line}" == str(refused.value)
