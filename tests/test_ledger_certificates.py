"""Client certificates (RFC 8705 2): whose one is, by the one thing that its client is registered with."""

import ipaddress
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from joserfc.jwk import ECKey, RSAKey

from ledger.certificates import (
    Unreadable,
    expectation,
    key_problem,
    name_problem,
    read,
    registered,
    thumbprint,
    thumbprints,
)
from ledger.clients import Settings
from ledger.registration import check_client
from tests.certificates import Party, authority, certificate
from tests.test_ledger_registration import refused_line, spec

NAMES: list[x509.GeneralName] = [
    x509.DNSName("App.example"),
    x509.UniformResourceIdentifier("spiffe://example/App"),
    x509.IPAddress(ipaddress.ip_address("192.0.2.7")),
    x509.IPAddress(ipaddress.ip_address("2001:db8::7")),
    x509.RFC822Name("Ops@Example.org"),
    x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "app.example")])),
]


def meets(party: Party, **settings: Any) -> bool:
    return expectation(Settings(auth="tls_client_auth", **settings))(read(party.der))


def test_a_thumbprint_is_the_hash_of_the_der() -> None:
    """RFC 8705 3.1: SHA-256, base64url, no padding; computed by another library's function, too."""
    party = certificate()
    assert party.x5t_s256 == thumbprint(party.der) == read(party.der).x5t_s256
    assert 43 == len(party.x5t_s256)


def test_validity_counts_its_first_and_its_last_second() -> None:
    """RFC 5280 4.1.2.5: both ends belong to it."""
    party = certificate()
    found = read(party.der)
    begins = int(party.certificate.not_valid_before_utc.timestamp()) * 1_000_000
    ends = int(party.certificate.not_valid_after_utc.timestamp()) * 1_000_000
    assert [False, True] == [found.valid_at(begins - 1), found.valid_at(begins)]
    assert [True, True, False] == [found.valid_at(at) for at in (ends, ends + 999_999, ends + 1_000_000)]


@pytest.mark.parametrize("bent", [b"", b"0", b"\x30\x03\x02\x01\x01", b"-----BEGIN CERTIFICATE-----", b"x" * 5000])
def test_what_is_no_certificate_is_unreadable(bent: bytes) -> None:
    """One exception, whatever is wrong."""
    with pytest.raises(Unreadable):
        read(bent)
    with pytest.raises(Unreadable):
        read(certificate().der + bent + b"\0")


def test_every_cut_and_every_flipped_byte_is_read_or_unreadable() -> None:
    """No other exception: what a proxy forwards may be anything."""
    der = certificate("CN=app,C=SE", names=NAMES).der
    for at in range(len(der)):
        for bent in (der[:at], der[:at] + bytes([der[at] ^ 0x5A]) + der[at + 1 :]):
            try:
                found = read(bent)
            except Unreadable:
                continue
            for settings in (
                Settings(auth="tls_client_auth", tls_client_auth_subject_dn="CN=other"),
                Settings(auth="tls_client_auth", tls_client_auth_san_dns="other.example"),
            ):
                assert not expectation(settings)(found)


# ---------------------------------------------------------------- by name (RFC 8705 2.1.2)


@pytest.mark.parametrize(
    ("registered", "subject", "same"),
    [
        ("CN=app,O=Example,C=SE", "CN=app,O=Example,C=SE", True),
        ("CN=app", "CN=App", False),
        ("CN=app", "CN=app,O=Example", False),
        ("CN=app,O=Example", "O=Example,CN=app", False),
        ("CN=a\\,b\\+c", "CN=a\\,b\\+c", True),
        ("CN=J\\C3\\BCrg", "CN=Jürg", True),
        ("CN=\\#1", "CN=\\#1", True),
        ("OU=x+CN=app", "CN=app+OU=x", True),
        ("2.5.4.3=app", "CN=app", True),
        ("emailAddress=a@b.example,CN=app", "emailAddress=a@b.example,CN=app", True),
        ("E=a@b.example,CN=app", "emailAddress=a@b.example,CN=app", True),
        ("DC=example,DC=com", "DC=example,DC=com", True),
    ],
)
def test_a_subject_is_the_registered_one_attribute_by_attribute(registered: str, subject: str, same: bool) -> None:
    """RFC 4514: the order of RDNs counts, that inside one does not, nor how a value is escaped."""
    assert same is meets(certificate(subject), tls_client_auth_subject_dn=registered)


def test_the_string_type_of_a_value_does_not_count() -> None:
    """X.520 2.5: two encodings of one text are one name."""
    printable = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "app", x509.name._ASN1Type.PrintableString)])
    assert meets(certificate(printable), tls_client_auth_subject_dn="CN=app")


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        ("dns", "app.example", True),
        ("dns", "APP.example", True),
        ("dns", "example", False),
        ("dns", "x.app.example", False),
        ("uri", "spiffe://example/App", True),
        ("uri", "spiffe://example/app", False),
        ("ip", "192.0.2.7", True),
        ("ip", "2001:DB8:0::7", True),
        ("ip", "192.0.2.8", False),
        ("email", "Ops@example.ORG", True),
        ("email", "ops@example.org", False),
        ("uri", "app.example", False),
        ("email", "App.example@", False),
    ],
)
def test_an_alternative_name_is_an_entry_of_its_own_kind(field: str, value: str, same: bool) -> None:
    """RFC 8705 2.1.2: host names in any case, addresses as addresses, all else exactly; never one kind for another."""
    settings = {f"tls_client_auth_san_{field}": value}
    assert same is meets(certificate(names=NAMES), **settings)
    assert not meets(certificate(), **settings)


def test_a_wildcard_in_a_certificate_is_no_other_name() -> None:
    """Names are compared, never matched."""
    assert not meets(certificate(names=[x509.DNSName("*.example")]), tls_client_auth_san_dns="app.example")


def test_the_common_name_is_no_alternative_name() -> None:
    """RFC 6125 6.4.4: a subject that looks like a host name is none."""
    assert not meets(certificate("CN=app.example"), tls_client_auth_san_dns="app.example")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("subject_dn", "CN=app, O=Example"),
        ("subject_dn", "/CN=app/O=Example"),
        ("subject_dn", "CN = app"),
        ("subject_dn", "nothing"),
        ("subject_dn", "2.5.4.3=#0c03617070"),
        ("subject_dn", "NoSuch=app"),
        ("san_dns", "*.example"),
        ("san_dns", "ä.example"),
        ("san_uri", "https://ä.example"),
        ("san_ip", "192.0.2.0/24"),
        ("san_ip", "app"),
        ("san_email", "example.org"),
        ("san_email", "Ops <ops@example.org>"),
    ],
)
def test_a_name_that_no_certificate_could_have_is_refused_with_what_is_allowed(field: str, value: str) -> None:
    """One line at `apply` instead of a client that is never let in."""
    problem = name_problem(f"tls_client_auth_{field}", value)
    assert problem is not None
    assert value not in problem
    settings = {"auth": "tls_client_auth", f"tls_client_auth_{field}": value}
    assert f'client "www": field tls_client_auth_{field}: {problem}' == refused_line(**settings)


# ---------------------------------------------------------------- by thumbprint (RFC 8705 2.2)


def self_signed(*keys: str) -> Settings:
    return Settings(auth="self_signed_tls_client_auth", jwks=keys)


def test_a_registered_certificate_is_known_by_what_it_holds_or_by_its_thumbprint() -> None:
    """RFC 8705 2.2.2, RFC 7517 4.7 and 4.9: any of the registered ones, and no other with the same name or key."""
    key = ec.generate_private_key(ec.SECP256R1())
    mine, other = certificate(key=key), certificate(key=key)
    by_hash = json.dumps({"x5t#S256": mine.x5t_s256})
    for settings in (self_signed(mine.jwk), self_signed(by_hash), self_signed(certificate().jwk, mine.jwk)):
        assert [True, False] == [expectation(settings)(read(each.der)) for each in (mine, other)]
    assert [mine.der] == list(registered((mine.jwk, by_hash, json.dumps({"kty": "EC"}))))
    assert {mine.x5t_s256} == thumbprints((mine.jwk, by_hash))


def test_the_rest_of_a_chain_is_not_registered() -> None:
    """RFC 7517 4.7: the first certificate is the key's own; those after it vouch for it."""
    above = authority()
    mine = certificate(by=above)
    both = json.dumps({"x5c": [mine.x5c, above.x5c]})
    assert [True, False] == [expectation(self_signed(both))(read(each.der)) for each in (mine, above)]


def test_a_client_of_another_method_has_no_certificate() -> None:
    """A certificate in a key set authenticates those alone that are registered for it."""
    mine = certificate()
    for auth in ("client_secret", "private_key_jwt", "none", "tls_client_auth"):
        assert not expectation(Settings(auth=auth, jwks=(mine.jwk,)))(read(mine.der))


@pytest.mark.parametrize("field", ["subject_dn", "san_ip"])
def test_settings_that_were_registered_before_they_were_checked_expect_nothing(field: str) -> None:
    """A store may be older than the rule; its client is refused, and nothing fails."""
    assert not meets(certificate(names=NAMES), **{f"tls_client_auth_{field}": "nothing of the kind"})


def full(party: Party, **more: object) -> dict[str, object]:
    """A JWK with key and certificate."""
    public = party.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return {**ECKey.import_key(public).as_dict(private=False), "x5c": [party.x5c], **more}


def test_what_may_be_registered_of_a_certificate() -> None:
    """With its key or without, with its thumbprint or by that alone; any kind of key that cryptography reads."""
    mine, edwards = certificate(), certificate(key=ed25519.Ed25519PrivateKey.generate())
    for key in (
        {"x5c": [mine.x5c]},
        {"x5t#S256": mine.x5t_s256},
        {"x5c": [mine.x5c], "x5t#S256": mine.x5t_s256, "kid": "1"},
        full(mine),
        {"x5c": [edwards.x5c]},
    ):
        assert key_problem(key) is None
        check_client(spec(auth="self_signed_tls_client_auth", jwks=(json.dumps(key),)))


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ({"x5c": []}, "x5c may list certificates, each as base64 of its DER"),
        ({"x5c": "MIIB"}, "x5c may list certificates, each as base64 of its DER"),
        ({"x5c": ["MIIB"]}, "x5c holds no certificate that can be read: each is base64 of its DER, without lines"),
        ({"x5c": ["!"]}, "x5c holds no certificate that can be read: each is base64 of its DER, without lines"),
        ({"x5t#S256": "x" * 42}, "x5t#S256 may be the SHA-256 of a certificate in base64url, 43 characters"),
        ({"x5t#S256": "+" * 43}, "x5t#S256 may be the SHA-256 of a certificate in base64url, 43 characters"),
        ({"x5t#S256": ["x" * 43]}, "x5t#S256 may be the SHA-256 of a certificate in base64url, 43 characters"),
        (full(certificate(), **{"x5t#S256": "A" * 43}), "x5t#S256 is not that of the certificate in x5c"),
        (full(certificate(), x5c=[certificate().x5c]), "x5c is not a certificate of this key"),
        ({**RSAKey.generate_key(2048).as_dict(private=False), "x5c": [certificate().x5c]},
         "x5c is not a certificate of this key"),
    ],
)  # fmt: skip
def test_a_certificate_that_cannot_be_registered_is_one_line(key: dict[str, object], problem: str) -> None:
    """RFC 7517 4.7: the key in the certificate is the key; the value is never repeated."""
    assert problem == key_problem(key)
    line = refused_line(auth="self_signed_tls_client_auth", jwks=(json.dumps(key),))
    assert f'client "www": field jwks.keys[0]: {problem}' == line


def test_a_client_with_self_signed_certificates_has_them_in_its_key_set() -> None:
    """They must be known in the handshake, so they are not fetched."""
    needs = 'client "www": field jwks: auth = "self_signed_tls_client_auth" needs a certificate'
    assert refused_line(auth="self_signed_tls_client_auth").startswith(needs)
    bare = json.dumps(ECKey.generate_key("P-256").as_dict(private=False))
    assert refused_line(auth="self_signed_tls_client_auth", jwks=(bare,)).startswith(needs)
    line = refused_line(auth="self_signed_tls_client_auth", jwks_uri="https://app.example/keys")
    assert 'client "www": field jwks_uri: not with auth = "self_signed_tls_client_auth"' == line.rpartition(":")[0]


def test_a_client_that_signs_may_have_its_certificate_beside_its_key() -> None:
    """RFC 8705 3: the key signs its assertions, the certificate is what its access tokens are bound to."""
    key = json.dumps(ECKey.generate_key("P-256").as_dict(private=False))
    check_client(spec(auth="private_key_jwt", jwks=(key, certificate().jwk)))
    line = refused_line(auth="private_key_jwt", jwks=(certificate().jwk,))
    assert line.startswith('client "www": field jwks: holds no key that checks a signature')
