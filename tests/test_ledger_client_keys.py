"""Public keys of clients: which can check an assertion, and which one must (RFC 7517, OpenID Connect Core 10.1)."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OKPKey

from ledger.client_keys import VerifyingKey, chosen, imported, verifying_keys


def ec(**members: Any) -> dict[str, Any]:
    return {**ECKey.generate_key("P-256").as_dict(private=False), **members}


def rsa(**members: Any) -> dict[str, Any]:
    return {"kty": "RSA", "n": "_" * 341 + "w", "e": "AQAB", **members}


def okp(curve: Any = "Ed25519", **members: Any) -> dict[str, Any]:
    return {**OKPKey.generate_key(curve).as_dict(private=False), **members}


def algorithms(jwk: object) -> set[str]:
    return {algorithm for key in verifying_keys([jwk]) for algorithm in key.algorithms}


@pytest.mark.parametrize(
    ("jwk", "expected"),
    [
        (ec(), {"ES256"}),
        (ec(use="sig", key_ops=["verify"], alg="ES256"), {"ES256"}),
        (rsa(), {"PS256", "RS256"}),
        (rsa(alg="PS256"), {"PS256"}),
        (okp(), {"EdDSA"}),
        (okp(alg="Ed25519"), {"EdDSA"}),
        (okp(alg="EdDSA", more="than needed"), {"EdDSA"}),
    ],
)
def test_a_key_checks_what_its_kind_and_registration_allow(jwk: dict[str, Any], expected: set[str]) -> None:
    """RFC 7517 4.2 to 4.4, RFC 7518 3.1: by kind, curve and size, narrowed by use, key_ops and alg."""
    assert expected == algorithms(jwk)


@pytest.mark.parametrize(
    "jwk",
    [
        ec(use="enc"),
        ec(key_ops=["encrypt"]),
        ec(alg="ES384"),
        ec(alg=["ES256"]),
        ec(kid=7),
        ec(x="AAAA"),
        ec(y=None),
        ec(crv="P-384"),
        ECKey.generate_key("P-384").as_dict(private=False),
        ECKey.generate_key("secp256k1").as_dict(private=False),
        ECKey.generate_key("P-256").as_dict(private=True),
        okp("Ed448"),
        okp("X25519"),
        {"kty": "RSA", "n": "_" * 171, "e": "AQAB"},
        rsa(e="_" * 43),
        {"kty": "RSA", "n": "_" * 1367, "e": "AQAB"},
        {"kty": "oct", "k": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"},
        {"kty": ["EC"]},
        {"kty": 1},
        {},
        [],
        "EC",
        None,
    ],
)
def test_what_is_no_fit_public_key_is_passed_over(jwk: object) -> None:
    """RFC 7517 5: another kind, a private or secret key, too small, too dear to check with, or none at all."""
    assert set() == algorithms(jwk)
    assert {"ES256"} == algorithms(ec())


def test_a_private_key_is_not_even_read() -> None:
    """A key that shows what only its owner may know is nobody's public key."""
    assert imported(ECKey.generate_key("P-256").as_dict(private=True)) is None


def keys(*kids: str | None) -> tuple[VerifyingKey, ...]:
    return verifying_keys([ec(**({} if kid is None else {"kid": kid})) for kid in kids])


def test_the_key_that_is_named_must_check() -> None:
    """OpenID Connect Core 10.1: by kid, else the only one there is; a key without a name answers to any."""
    one, (a, b), nameless = keys("a"), keys("a", "b"), keys(None)
    assert one[0].key is chosen(one, "ES256", "a")
    assert one[0].key is chosen(one, "ES256", None)
    assert None is chosen(one, "ES256", "b")
    assert None is chosen(one, "PS256", "a")
    assert (a.key, b.key) == (chosen((a, b), "ES256", "a"), chosen((a, b), "ES256", "b"))
    assert None is chosen((a, b), "ES256", None)
    assert nameless[0].key is chosen(nameless, "ES256", "whatever")
    assert a.key is chosen((a, *nameless), "ES256", "a")
    assert nameless[0].key is chosen((a, *nameless), "ES256", "b")
    assert None is chosen((*nameless, *keys(None)), "ES256", "b")
    assert None is chosen((), "ES256", None)


def test_one_name_may_stand_for_keys_of_several_kinds() -> None:
    """RFC 7517 4.5: keys that are alternatives for one another may share a kid."""
    found = verifying_keys([ec(kid="a"), okp(kid="a")])
    assert [found[0].key, found[1].key] == [chosen(found, "ES256", "a"), chosen(found, "EdDSA", "a")]


GOOD = [ec(), rsa(), okp(), okp("X25519"), ec(kid="a", use="sig", key_ops=["verify"], alg="ES256", x5c=["AA"])]
NAMES = sorted({name for each in GOOD for name in each} | {"d", "k", "oth", "x5u", "x5t", "x5t#S256", "ext"})
ODD = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=4)
    | st.sampled_from(("EC", "RSA", "OKP", "oct", "AKP", "P-256", "Ed25519", "sig", "AQAB", "AA", "https://a.example"))
)
MEMBERS = st.dictionaries(
    st.sampled_from(NAMES), ODD | st.lists(ODD, max_size=2) | st.dictionaries(st.text(max_size=2), ODD), max_size=5
)


@given(st.sampled_from(GOOD), MEMBERS, st.sets(st.sampled_from(NAMES), max_size=3))
def test_whatever_a_client_publishes_is_a_key_or_none(good: dict[str, Any], changed: Any, left_out: set[str]) -> None:
    """RFC 7517 5: members of any kind, and missing ones, raise nothing: others' documents are read here."""
    verifying_keys([{name: each for name, each in {**good, **changed}.items() if name not in left_out}])
