"""What makes a DPoP proof (RFC 9449 4.2, 4.3): each member as it must be, and each way in which it can be wrong."""

import contextlib
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

from api.dpop import (
    ALGORITHMS,
    JTI_CHARACTERS_MAX,
    PROOF_BYTES_MAX,
    PROOF_SECONDS_MAX,
    InvalidProof,
    NonceWanted,
    Proofs,
    normalised,
    proof_of,
    target,
)
from api.dpop_nonces import SLOT_SECONDS, Nonces
from ledger.answers import Caller
from ledger.keyring import KeyRing
from ledger.times import SECOND
from tests.ledgers import START, Clock
from tests.proofs import MISSING, encoded, new_key, proof, public, signed, thumbprint

ISSUER = "https://ledger.example"
HTU = f"{ISSUER}/oauth/v2/oauth-token"
NOW = START // SECOND
SKEW = 10
SPA = Caller(client_id="spa", authenticated=False, auth_method="none")
TOKEN = target(ISSUER, "/oauth/v2/oauth-token", "/token")

KEY = new_key()
OTHER_KEY = new_key()
ED25519 = new_key("EdDSA")
RSA = new_key("PS256")


class Desk:
    """Proofs as the token endpoint judges them, on a clock that is set."""

    def __init__(self) -> None:
        self.clock = Clock()
        ring = KeyRing.new(START)
        self.nonces = Nonces(lambda: ring, self.clock)
        self.proofs = Proofs(self.nonces, self.clock, clock_skew_seconds=SKEW)

    def shown(self, text: str | bytes, *, nonce_required: bool = False) -> Caller:
        raw = text.encode("ascii") if isinstance(text, str) else text
        return self.proofs.shown(SPA, raw, TOKEN, nonce_required=nonce_required)

    def refused(self, text: str | bytes) -> str:
        with pytest.raises(InvalidProof) as caught:
            self.shown(text)
        assert "invalid_dpop_proof" == caught.value.error
        return caught.value.description


@pytest.fixture
def desk() -> Desk:
    return Desk()


# ---------------------------------------------------------------- what is taken


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_proof_names_its_key(desk: Desk, algorithm: str) -> None:
    """RFC 9449 6.1, RFC 7638: by the thumbprint, which the client can work out as well."""
    key = new_key(algorithm)
    caller = desk.shown(proof(key, HTU, iat=NOW, header={"alg": algorithm}))
    assert (thumbprint(key), "spa") == (caller.proof_jkt, caller.client_id)


def test_a_thumbprint_is_that_of_the_standard() -> None:
    """RFC 7638 3.1: its own example."""
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3okn"
        "jhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qM"
        "QvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJz"
        "KnqDKgw"
    )
    key = RSAKey.import_key({"kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"})
    assert "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs" == thumbprint(key)


def test_a_proof_is_to_be_spent_by_its_key_for_this_endpoint(desk: Desk) -> None:
    """RFC 9449 11.1: kept for longer than anybody takes it; both paths are one endpoint."""
    long, short = (
        desk.shown(proof(KEY, f"{ISSUER}{path}", iat=NOW, claims={"jti": "once"})).single_use
        for path in ("/oauth/v2/oauth-token", "/token")
    )
    assert long == short
    (once,) = long
    assert ("dpop", f"{thumbprint(KEY)} /oauth/v2/oauth-token", "once") == (once.kind, once.owner, once.identifier)
    assert (NOW + PROOF_SECONDS_MAX + 2 * SKEW) * SECOND == once.expires_at


def test_what_an_assertion_is_to_spend_stays() -> None:
    """A client may prove who it is by an assertion and show a key: both are spent together."""
    desk = Desk()
    first = desk.shown(proof(KEY, HTU, iat=NOW))
    second = desk.proofs.shown(first, proof(KEY, HTU, iat=NOW).encode(), TOKEN, nonce_required=False)
    assert 2 == len(second.single_use)
    assert first.single_use == second.single_use[:1]


def test_the_same_key_again_costs_no_second_reading_and_is_judged_alike(desk: Desk) -> None:
    """Keys are remembered by the bytes of their header: a signature by another key is refused all the same."""
    for _ in range(3):
        assert thumbprint(KEY) == desk.shown(proof(KEY, HTU, iat=NOW)).proof_jkt
        assert "signature" in desk.refused(proof(KEY, HTU, iat=NOW, signed_by=OTHER_KEY))


def test_members_that_nobody_asked_for_mean_nothing(desk: Desk) -> None:
    """RFC 7515 4, RFC 7519 4: unknown members are ignored; `ath` and a nonce that nobody wanted too."""
    header, claims = {"kid": "mine", "x-more": [1]}, {"ath": "x", "nonce": "of another server", "htx": {"a": 1}}
    assert thumbprint(KEY) == desk.shown(proof(KEY, HTU, iat=NOW, header=header, claims=claims)).proof_jkt


# ---------------------------------------------------------------- what is not

Make = Callable[[], str | bytes]


def of(key: Any = KEY, /, *, header: dict[str, Any] | None = None, **claims: Any) -> Make:
    """A proof with members replaced, made when the test asks for it."""
    return lambda: proof(key, HTU, iat=NOW, header=header, claims=claims)


SMALL_RSA = {"kty": "RSA", "n": encoded(b"\xc1" + 127 * b"\x01"), "e": "AQAB"}
HUGE_E = {**public(RSA), "e": encoded(b"\x01" + 31 * b"\x00" + b"\x01")}

WRONG: dict[str, tuple[Make, str]] = {
    # the form
    "empty": (lambda: b"", "no signed JWT"),
    "garbage": (lambda: b"x.y.z", "no signed JWT"),
    "bytes": (lambda: bytes(range(128, 256)), "no signed JWT"),
    "two parts": (lambda: proof(KEY, HTU, iat=NOW).rpartition(".")[0], "no signed JWT"),
    "two proofs in one header": (
        lambda: f"{proof(KEY, HTU, iat=NOW)}, {proof(KEY, HTU, iat=NOW)}", "no signed JWT"
    ),
    "padding": (lambda: proof(KEY, HTU, iat=NOW) + "=", "signature"),
    "too long": (lambda: b"x" * (PROOF_BYTES_MAX + 1), "longer"),
    "deep header": (lambda: f"{encoded('[' * 2900)}.e30.AA", "no signed JWT"),
    "header a list": (lambda: encoded('["alg"]') + ".e30.AA", "typ"),
    "header a number": (lambda: f"{encoded('5')}.e30.AA", "no signed JWT"),
    "header no JSON": (lambda: f"{encoded('{')}.e30.AA", "no signed JWT"),
    "claims a list": (lambda: signed(dict(typ="dpop+jwt", alg="ES256", jwk=public(KEY)), "[]", KEY), "a proof has"),
    "claims no JSON": (lambda: signed(dict(typ="dpop+jwt", alg="ES256", jwk=public(KEY)), "{", KEY), "a proof has"),
    "deep claims": (
        lambda: signed(dict(typ="dpop+jwt", alg="ES256", jwk=public(KEY)), '{"x":' + "[" * 2500, KEY), "a proof has"
    ),
    # typ
    "typ JWT": (of(header={"typ": "JWT"}), "typ is not"),
    "typ missing": (of(header={"typ": MISSING}), "typ is not"),
    "typ in capitals": (of(header={"typ": "DPOP+JWT"}), "typ is not"),
    "typ of an assertion": (of(header={"typ": "client-authentication+jwt"}), "typ is not"),
    "typ a list": (of(header={"typ": ["dpop+jwt"]}), "typ is not"),
    # alg
    "alg none": (
        lambda: proof(KEY, HTU, iat=NOW, header={"alg": "none"}, alg="ES256").rpartition(".")[0] + ".", "alg is one of"
    ),
    "alg HS256 by the public key": (
        lambda: proof(
            KEY, HTU, iat=NOW, header={"alg": "HS256"}, signed_by=OctKey.import_key(public(KEY)["x"])
        ),
        "alg is one of",
    ),
    "alg HS256 by a key of its own": (of(OctKey.generate_key(256)), "alg is one of"),
    "alg RS256": (of(RSA, header={"alg": "RS256"}), "alg is one of"),
    "alg ES384": (of(new_key("ES384"), header={"alg": "ES384"}), "alg is one of"),
    "alg missing": (lambda: proof(KEY, HTU, iat=NOW, header={"alg": MISSING}, alg="ES256"), "no signed JWT"),
    "alg a number": (lambda: proof(KEY, HTU, iat=NOW, header={"alg": 256}, alg="ES256"), "alg is one of"),
    "alg of another key": (lambda: proof(KEY, HTU, iat=NOW, header={"alg": "PS256"}, alg="ES256"), "no signed JWT"),
    "alg ES256 by an RSA key": (lambda: proof(RSA, HTU, iat=NOW, header={"alg": "ES256"}, alg="PS256"), "no signed"),
    "alg ES256 by P-384": (lambda: proof(new_key("ES384"), HTU, iat=NOW, alg="ES384"), "no signed JWT"),
    # jwk
    "jwk missing": (of(header={"jwk": MISSING}), "jwk is no public key"),
    "jwk null": (lambda: proof(KEY, HTU, iat=NOW, header={"jwk": None}, alg="ES256"), "jwk is no public key"),
    "jwk a URL": (lambda: proof(KEY, HTU, iat=NOW, header={"jwk": "https://x"}, alg="ES256"), "jwk is no public"),
    "jwk private": (of(header={"jwk": KEY.as_dict(private=True)}), "private key"),
    "jwk private Ed25519": (of(ED25519, header={"jwk": ED25519.as_dict(private=True)}), "private key"),
    "jwk with a prime": (of(RSA, header={"jwk": {**public(RSA), "p": "AQAB"}}), "private key"),
    "jwk of a list of kinds": (of(header={"jwk": {**public(KEY), "kty": ["EC"]}}), "jwk is no public key"),
    "jwk symmetric": (of(header={"jwk": {"kty": "oct", "k": "c2VjcmV0"}}), "jwk is no public key"),
    "jwk without y": (of(header={"jwk": {k: v for k, v in public(KEY).items() if k != "y"}}), "jwk is no public key"),
    "jwk off its curve": (of(header={"jwk": {**public(KEY), "y": public(KEY)["x"]}}), "jwk is no public key"),
    "jwk of no curve": (of(header={"jwk": {**public(KEY), "crv": "P-1"}}), "jwk is no public key"),
    "jwk for encryption": (of(header={"jwk": {**public(KEY), "use": "enc"}}), "no signed JWT"),
    "jwk with use a list": (of(header={"jwk": {**public(KEY), "use": ["sig"], "key_ops": ["x"]}}), "jwk is no public"),
    "jwk for another alg": (of(header={"jwk": {**public(KEY), "alg": "ES512"}}), "no signed JWT"),
    "jwk X25519": (
        lambda: proof(
            ED25519, HTU, iat=NOW, header={"jwk": OKPKey.generate_key("X25519").as_dict(private=False)}
        ),
        "size or curve",
    ),
    "jwk Ed448": (
        lambda: proof(OKPKey.generate_key("Ed448"), HTU, iat=NOW, header={"alg": "EdDSA"}), "size or curve"
    ),
    "jwk RSA of 1024 bits": (of(RSA, header={"jwk": SMALL_RSA}), "jwk is no public key"),
    "jwk RSA with a huge exponent": (of(RSA, header={"jwk": HUGE_E}), "size or curve"),
    "jwk RSA of 8192 bits": (
        of(RSA, header={"jwk": {"kty": "RSA", "n": encoded(b"\xc1" + 1023 * b"\x01"), "e": "AQAB"}}), "size or curve"
    ),
    "crit": (of(header={"crit": ["exp"], "exp": 1}), "extension"),
    "an unencoded payload": (
        lambda: signed(
            dict(typ="dpop+jwt", alg="ES256", jwk=public(KEY), b64=False, crit=["b64"]), "x", KEY, alg="ES256"
        ),
        "extension",
    ),
    # the signature
    "signed by another key": (lambda: proof(KEY, HTU, iat=NOW, signed_by=OTHER_KEY), "signature"),
    "not signed": (lambda: proof(KEY, HTU, iat=NOW).rpartition(".")[0] + ".", "signature"),
    "signature of zeros": (lambda: proof(KEY, HTU, iat=NOW).rpartition(".")[0] + "." + 86 * "A", "signature"),
    "claims of another": (lambda: _mixed(proof(KEY, HTU, iat=NOW), proof(KEY, HTU, iat=NOW)), "signature"),
    # claims
    "jti missing": (of(jti=MISSING), "a proof has"),
    "jti empty": (of(jti=""), "a proof has"),
    "jti null": (of(jti=None), "a proof has"),
    "jti a number": (of(jti=7), "a proof has"),
    "jti too long": (of(jti="x" * (JTI_CHARACTERS_MAX + 1)), "a proof has"),
    "htm missing": (of(htm=MISSING), "a proof has"),
    "htm GET": (of(htm="GET"), "htm is not"),
    "htm in small letters": (of(htm="post"), "htm is not"),
    "htu missing": (of(htu=MISSING), "a proof has"),
    "htu of another host": (of(htu="https://ledger.example.evil/token"), "htu is not"),
    "htu of another scheme": (of(htu="http://ledger.example/token"), "htu is not"),
    "htu of another port": (of(htu="https://ledger.example:8443/token"), "htu is not"),
    "htu of another endpoint": (of(htu=f"{ISSUER}/oauth/v2/oauth-revoke"), "htu is not"),
    "htu with a slash more": (of(htu=f"{HTU}/"), "htu is not"),
    "htu in other letters": (of(htu=f"{ISSUER}/Token"), "htu is not"),
    "htu with a user": (of(htu="https://me@ledger.example/token"), "htu is not"),
    "htu within another": (of(htu="https://evil.example//ledger.example/token"), "htu is not"),
    "htu a path": (of(htu="/token"), "htu is not"),
    "htu empty": (of(htu=""), "htu is not"),
    "htu with a line feed": (of(htu="https://ledger.exa\nmple/token"), "htu is not"),
    "iat missing": (of(iat=MISSING), "a proof has"),
    "iat text": (of(iat=str(NOW)), "a proof has"),
    "iat true": (of(iat=True), "a proof has"),
    "iat in milliseconds": (of(iat=NOW * 1000), "iat is not"),
    "iat ten minutes ago": (of(iat=NOW - 600), "iat is not"),
    "iat without end": (lambda: _claims_text(f'"iat":1{400 * "0"}'), "a proof has|iat is not"),
    "iat endless": (lambda: _claims_text('"iat":1e999'), "a proof has|iat is not"),
    "nbf ahead": (of(nbf=NOW + SKEW + 1), "nbf lies ahead"),
    "exp past": (of(exp=NOW - SKEW), "exp has passed"),
    "a lone surrogate": (lambda: _claims_text(f'"iat":{NOW},"jti":"\\ud800"'), "a proof has"),
}  # fmt: skip


def _mixed(one: str, other: str) -> str:
    return ".".join((one.split(".")[0], other.split(".")[1], one.split(".")[2]))


def _claims_text(more: str) -> str:
    text = f'{{"htm":"POST","htu":"{HTU}","jti":"a",{more}}}'
    return signed({"typ": "dpop+jwt", "alg": "ES256", "jwk": public(KEY)}, text, KEY)


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_and_never_repeated(desk: Desk, case: str) -> None:
    """V78, DP-1, DP-2: 400 `invalid_dpop_proof`, in words of ours; more than fapi2-*-dpop-negative-tests and
    fapi2-*-check-dpop-proof-nbf-exp try."""
    make, told = WRONG[case]
    assert re.search(told, desk.refused(make()))


def test_the_cases_above_fail_for_what_is_wrong_in_them(desk: Desk) -> None:
    """Their twin: the proof that they all start from is taken, by each kind of key that they use."""
    for key in (KEY, ED25519, RSA):
        desk.shown(proof(key, HTU, iat=NOW))
    desk.shown(_claims_text(f'"iat":{NOW}'))


def test_an_algorithm_of_a_smaller_key_warns_nobody(desk: Desk, recwarn: pytest.WarningsRecorder) -> None:
    """What others send writes no warnings to standard error."""
    desk.refused(of(RSA, header={"jwk": SMALL_RSA})())
    desk.shown(proof(ED25519, HTU, iat=NOW))
    assert [] == list(recwarn)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) | st.just("AQAB"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
HEADER = ["typ", "alg", "jwk", "crit", "b64", "kid", "x5c", "jku", "cty", "zip", "enc"]
JWK = ["kty", "crv", "x", "y", "n", "e", "use", "key_ops", "alg", "kid", "x5c", "x5t", "d", "k"]
CLAIMS = ["jti", "htm", "htu", "iat", "nbf", "exp", "nonce", "ath"]


def judged(text: bytes) -> None:
    """Whatever is sent is taken or refused: nothing else comes out."""
    with contextlib.suppress(InvalidProof, NonceWanted):
        Desk().shown(text, nonce_required=True)


@given(st.binary(max_size=300) | st.text(alphabet="eyJ.-_A=", max_size=300).map(str.encode))
def test_any_bytes_are_refused_in_our_words(text: bytes) -> None:
    """A header is whatever anybody sends: no error but ours comes of it."""
    judged(text)


@given(
    key=st.sampled_from([KEY, ED25519, RSA]),
    header=st.dictionaries(st.sampled_from(HEADER), JSON, max_size=2),
    jwk=st.dictionaries(st.sampled_from(JWK), JSON, max_size=2),
    claims=st.dictionaries(st.sampled_from(CLAIMS), JSON, max_size=3),
)
def test_any_members_are_refused_in_our_words(
    key: Key, header: dict[str, Any], jwk: dict[str, Any], claims: dict[str, Any]
) -> None:
    """A signature that holds says nothing of what it signs: members of any type, beside others that are right."""
    algorithm = {"EC": "ES256", "OKP": "EdDSA", "RSA": "PS256"}[key.key_type]
    shown = {"jwk": {**public(key), **jwk}, **header}
    judged(proof(key, HTU, iat=NOW, header=shown, claims=claims, alg=algorithm).encode())


@given(st.data())
def test_a_proof_with_one_byte_changed_is_refused(data: st.DataObject) -> None:
    """RFC 7515 5.2: nothing of it can be other than what was signed."""
    text = bytearray(PROOF)
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != text[place]))
    with pytest.raises(InvalidProof):
        Desk().shown(bytes(text))


PROOF = proof(KEY, HTU, iat=NOW).encode()


# ---------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("off_seconds", "taken"),
    [
        (0, True), (SKEW, True), (SKEW + 1, False), (-SKEW, True), (-PROOF_SECONDS_MAX - SKEW, True),
        (-PROOF_SECONDS_MAX - SKEW - 1, False), (0.5, True), (-0.25, True),
    ],
)  # fmt: skip
def test_a_clock_may_be_off_by_the_skew(desk: Desk, off_seconds: float, taken: bool) -> None:
    """RFC 9449 11.1, CA-8: ten seconds either way pass, on top of a proof's minute; as fapi2-*-dpopproof-with-iat-
    10seconds-before and -after have it."""
    text = proof(KEY, HTU, iat=NOW + off_seconds)
    if taken:
        desk.shown(text)
    else:
        assert "iat is not" in desk.refused(text)


def test_what_is_spent_is_kept_for_as_long_as_the_proof_is_taken(desk: Desk) -> None:
    """RFC 9449 11.1: at the last moment that takes a proof, its `jti` is still on record, on a node that lags too."""
    text = proof(KEY, HTU, iat=NOW + SKEW)
    (once,) = desk.shown(text).single_use
    desk.clock.pass_seconds(PROOF_SECONDS_MAX + 2 * SKEW)
    desk.shown(text)
    assert desk.clock.now + SKEW * SECOND <= once.expires_at
    desk.clock.now += 1
    desk.refused(text)


# ---------------------------------------------------------------- htu


@pytest.mark.parametrize(
    "htu",
    [
        HTU, f"{ISSUER}/token", f"{HTU}?client_id=spa", f"{HTU}#x", f"{HTU}?", "HTTPS://LEDGER.EXAMPLE/token",
        "https://ledger.example:443/token", "https://ledger.example:/token", f"{ISSUER}/./token",
        f"{ISSUER}/x/../token", f"{ISSUER}/%74oken", f"{ISSUER}/oauth/v2/oauth%2dtoken",
    ],
)  # fmt: skip
def test_the_same_uri_may_be_spelled_otherwise(desk: Desk, htu: str) -> None:
    """RFC 9449 4.3, RFC 3986 6.2.2, 6.2.3: case, default port, dots and needless escapes; query and fragment apart."""
    desk.shown(proof(KEY, htu, iat=NOW))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://a.example", "https://a.example/"),
        ("http://A.example:80/%7Ea/%2f", "http://a.example/~a/%2F"),
        ("https://a.example:80/", "https://a.example:80/"),
        ("https://[2001:DB8::1]:443/a/.", "https://[2001:db8::1]/a/"),
        ("https://a.example/../../x/..", "https://a.example/"),
        ("https://a.example//b/token", "https://a.example//b/token"),
        ("https://a.example/.well-known/x", "https://a.example/.well-known/x"),
        ("https://a.example:99999/", None),
        ("https://[::1/", None),
        ("https:///token", None),
        ("https://a.example/ä", None),
        ("token", None),
    ],
)
def test_uris_are_compared_in_one_spelling(uri: str, expected: str | None) -> None:
    """RFC 3986 6.2.2 and 6.2.3; what is none equals none."""
    assert expected == normalised(uri)
    assert expected is None or expected == normalised(expected)


def test_an_issuer_with_a_path_has_its_endpoints_below_it() -> None:
    """RFC 8414 3: proofs are made for the URLs that the metadata name."""
    found = target("https://Example.com:443/tenant/", "/oauth/v2/oauth-token", "/token")
    assert {"https://example.com/tenant/oauth/v2/oauth-token", "https://example.com/tenant/token"} == found.uris


# ---------------------------------------------------------------- the header


def test_a_request_has_one_proof_at_most() -> None:
    """DP-1, V78."""
    other = (b"authorization", b"Basic x")
    assert None is proof_of([other])
    assert b"a" == proof_of([other, (b"dpop", b"a")])
    with pytest.raises(InvalidProof, match="twice"):
        proof_of([(b"dpop", b"a"), other, (b"dpop", b"a")])


# ---------------------------------------------------------------- nonces


def test_a_nonce_that_is_wanted_is_handed_out_and_then_taken(desk: Desk) -> None:
    """RFC 9449 8, V77: missing, empty, foreign and outdated ones are told the nonce of the moment."""
    outdated = desk.nonces.current()
    desk.clock.pass_seconds(6 * SLOT_SECONDS)
    iat = desk.clock.now / SECOND
    for nonce in (None, "", "x", outdated, outdated.lower(), "é"):
        with pytest.raises(NonceWanted) as caught:
            desk.shown(proof(KEY, HTU, iat=iat, nonce=nonce), nonce_required=True)
        assert desk.nonces.current() == caught.value.nonce
    desk.shown(proof(KEY, HTU, iat=iat, nonce=caught.value.nonce), nonce_required=True)
    answer = caught.value.answer()
    assert 400 == answer.status
    assert [(b"dpop-nonce", caught.value.nonce.encode())] == [
        pair for pair in answer.headers if pair[0] == b"dpop-nonce"
    ]


def test_a_proof_that_is_wrong_beside_its_nonce_is_told_so(desk: Desk) -> None:
    """A challenge is for proofs that lack nothing else: the next try would fail again."""
    with pytest.raises(InvalidProof, match="htm"):
        desk.shown(proof(KEY, HTU, iat=NOW, claims={"htm": "GET"}), nonce_required=True)
    with pytest.raises(InvalidProof, match="a proof has"):
        desk.shown(proof(KEY, HTU, iat=NOW, claims={"nonce": 5}), nonce_required=True)


def test_the_keys_that_are_remembered_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes a new key for each request fills no memory."""
    monkeypatch.setattr("api.dpop.KEYS_KEPT_MAX", 3)
    for _ in range(10):
        desk.shown(proof(ECKey.generate_key("P-256"), HTU, iat=NOW))
    assert len(desk.proofs._keys) <= 3
