"""Client authentication by a signed JWT (RFC 7523): what is taken, and that everything else is refused alike."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import clients_file
from api.assertions import ASSERTION_CHARACTERS_MAX, LIFETIME_SECONDS_MAX, read
from ledger.registration import ASSERTION_ALGS
from tests.asking import ISSUER_URL, Asking
from tests.assertions import LEGACY, NOW, REFUSED, STRICT, TOKEN_URL, refresh, refused, signing, taken
from tests.servers import FIXTURES
from tests.signers import Signer, derived_key, encoded, inline, new_key

pytestmark = pytest.mark.anyio


async def test_an_assertion_to_the_issuer_authenticates(tmp_path: Path) -> None:
    """V68, CA-5, CA-6: aud is the issuer's own text; with client_id beside it and without; recorded as what it is."""
    async with signing(tmp_path) as ledger:
        issued = await ledger.issue("strict")
        token = await taken(ledger, STRICT, issued["refresh_token"])
        answer = await refresh(ledger, STRICT, token, client_id="strict")
        assert 200 == answer.status_code
        assert answer.headers["ledger-position"].isdigit()
        events: list[Any] = ledger.opened.events(f"grant:{issued['grant_id']}")
        assert {"private_key_jwt"} == {event.auth_method for event in events if hasattr(event, "auth_method")}


@pytest.mark.parametrize(
    "typ", [None, "JWT", "jwt", "client-authentication+jwt", "application/client-authentication+jwt"]
)
async def test_types_that_libraries_send_are_taken(tmp_path: Path, typ: str | None) -> None:
    """CA-7: the type of its own where a client knows it, none or JWT from all others, in both modes."""
    async with signing(tmp_path) as ledger:
        for signer in (STRICT, LEGACY):
            token = (await ledger.issue(signer.client_id))["refresh_token"]
            await taken(ledger, signer, token, signer.assertion(header={"typ": typ}, now=NOW))


HEADERS: Mapping[str, Mapping[str, Any]] = {
    **{
        f"typ {typ}": {"typ": typ}
        for typ in ("at+jwt", "dpop+jwt", "oauth-authz-req+jwt", "secevent+jwt", "logout+jwt", "", "client", 1, ["JWT"])
    },
    "no alg": {"alg": None},
    "alg of no kind": {"alg": 1},
    "another alg": {"alg": "ES384"},
    "another kid": {"kid": "k2"},
    "kid of no kind": {"kid": 1},
    "crit": {"crit": ["exp"], "exp": NOW + 60},
    "crit of what is known": {"crit": ["kid"]},
    "payload not encoded": {"crit": ["b64"], "b64": False},
    "b64 without crit": {"b64": True},
}
CLAIMS: Mapping[str, Mapping[str, Any]] = {
    **{f"no {name}": {name: None} for name in ("iss", "sub", "aud", "exp", "jti")},
    "another iss": {"iss": "legacy"},
    "another sub": {"sub": "legacy"},
    "another iss and sub": {"iss": "www", "sub": "www"},
    "iss in capitals": {"iss": "STRICT"},
    "iss of no kind": {"iss": 7},
    "sub of no kind": {"sub": ["strict"]},
    "aud another host": {"aud": "https://other.example"},
    "aud with a slash": {"aud": ISSUER_URL + "/"},
    "aud in capitals": {"aud": ISSUER_URL.upper()},
    "aud the token endpoint": {"aud": TOKEN_URL},
    "aud a list": {"aud": [ISSUER_URL]},
    "aud two": {"aud": [ISSUER_URL, "https://evil.example"]},
    "aud nobody": {"aud": []},
    "aud empty": {"aud": ""},
    "aud of no kind": {"aud": {"iss": ISSUER_URL}},
    "exp five minutes ago": {"exp": NOW - 300},
    "exp at the end of the skew": {"exp": NOW - 10},
    "exp too far ahead": {"iat": None, "exp": NOW + LIFETIME_SECONDS_MAX + 11},
    "exp for ever": {"exp": 10**30},
    "exp beyond all numbers": {"exp": 10**400, "iat": 0.5},
    "iat before all numbers": {"iat": -(10**400), "exp": NOW + 0.5},
    "nbf before all numbers": {"nbf": -(10**400)},
    "lived too long": {"iat": NOW - LIFETIME_SECONDS_MAX, "exp": NOW + 1},
    "exp a text": {"exp": str(NOW + 60)},
    "exp a truth": {"exp": True},
    "iat 11 s ahead": {"iat": NOW + 11},
    "iat 61 s ahead": {"iat": NOW + 61, "exp": NOW + 120},
    "iat a text": {"iat": "now"},
    "nbf 11 s ahead": {"nbf": NOW + 11},
    "nbf 61 s ahead": {"nbf": NOW + 61, "exp": NOW + 120},
    "nbf a text": {"nbf": "now"},
    "jti empty": {"jti": ""},
    "jti too long": {"jti": "x" * 257},
    "jti a number": {"jti": 1},
}


@pytest.mark.parametrize("wrong", HEADERS)
async def test_a_wrong_header_is_refused(tmp_path: Path, wrong: str) -> None:
    """V69, CA-5, CA-7, RFC 7515 4.1.11: each member, at each endpoint's door alike; the token lives."""
    async with signing(tmp_path) as ledger:
        token = (await ledger.issue("strict"))["refresh_token"]
        await refused(ledger, STRICT, token, STRICT.assertion(header=HEADERS[wrong], now=NOW))
        await taken(ledger, STRICT, token)


@pytest.mark.parametrize("wrong", CLAIMS)
async def test_a_wrong_claim_is_refused(tmp_path: Path, wrong: str) -> None:
    """V69, CA-5, CA-6, CA-8: each claim left out, of another kind, and beyond its bounds; the token lives."""
    async with signing(tmp_path) as ledger:
        token = (await ledger.issue("strict"))["refresh_token"]
        await refused(ledger, STRICT, token, STRICT.assertion(CLAIMS[wrong], now=NOW))
        await taken(ledger, STRICT, token)


@pytest.mark.parametrize(
    "right",
    [
        {"iat": None},
        {"iat": NOW + 8},
        {"iat": NOW + 10, "nbf": NOW + 10},
        {"nbf": NOW + 8},
        {"nbf": NOW - 5000},
        {"exp": NOW - 9},
        {"exp": NOW + 0.5, "iat": NOW - 0.5},
        {"iat": None, "exp": NOW + LIFETIME_SECONDS_MAX + 10},
        {"exp": NOW + LIFETIME_SECONDS_MAX},
        {"jti": "x" * 256},
        {"jti": "\u00e9\u0000"},
        {"more": {"members": [1]}},
    ],
    ids=str,
)
async def test_an_odd_but_lawful_claim_is_taken(tmp_path: Path, right: Mapping[str, Any]) -> None:
    """V70, CA-8: clocks may differ by 10 s; the beginnings of a lifetime need not be told; more may be."""
    async with signing(tmp_path) as ledger:
        token = (await ledger.issue("strict"))["refresh_token"]
        await taken(ledger, STRICT, token, STRICT.assertion(right, now=NOW))


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "..",
        "a.b.c",
        "{}",
        "é.é.é",
        STRICT.assertion(now=NOW) + "=",
        STRICT.assertion(now=NOW) + ".x",
        STRICT.assertion(now=NOW).rpartition(".")[0] + ".",
        STRICT.assertion(now=NOW) + "A" * ASSERTION_CHARACTERS_MAX,
        STRICT.assertion(payload=b"[]", now=NOW),
        STRICT.assertion(payload=b"{", now=NOW),
        STRICT.assertion(payload=b"[" * 3000, now=NOW),
        STRICT.assertion(payload=b'{"iss":"\xff"}', now=NOW),
        STRICT.assertion(payload=b'{"exp":NaN}', now=NOW),
    ],
    ids=[
        "no dots", "empty parts", "no JSON", "JSON", "no ASCII", "padded", "a fourth part", "no signature", "too long",
        "claims a list", "claims cut", "claims too deep", "claims not UTF-8", "claims not a number",
    ],
)  # fmt: skip
async def test_what_is_no_assertion_is_refused(tmp_path: Path, text: str) -> None:
    """RFC 7515 5.2: whatever cannot be read is an authentication that failed, not a fault."""
    async with signing(tmp_path) as ledger:
        token = (await ledger.issue("strict"))["refresh_token"]
        await refused(ledger, STRICT, token, text, client_id="strict")
        await taken(ledger, STRICT, token)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5) | st.sampled_from(ASSERTION_ALGS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("alg", "kid", "typ", "iss", "sub", "aud", "exp", "jti", "crit", "b64")), inner, max_size=6
        )
    ),
    max_leaves=8,
)
PART = st.binary(max_size=40).map(encoded) | JSON.map(lambda value: encoded(json.dumps(value).encode()))


@given(st.text(max_size=60) | st.lists(PART | st.text(max_size=5), max_size=4).map(".".join))
def test_reading_never_raises(text: str) -> None:
    """Whatever somebody sends is an assertion or None."""
    read(text)


async def test_nobody_elses_signature_is_taken(tmp_path: Path) -> None:
    """V69: another key, another client's key, no signature at all, the public key taken for a shared secret."""
    async with signing(tmp_path) as ledger:
        token = (await ledger.issue("strict"))["refresh_token"]
        other = Signer("strict", derived_key("another"), ISSUER_URL)
        await refused(ledger, STRICT, token, other.assertion(now=NOW))
        await refused(ledger, STRICT, token, Signer("strict", LEGACY.key, ISSUER_URL).assertion(now=NOW))
        await refused(ledger, STRICT, token, STRICT.assertion(header={"alg": "none"}, now=NOW))
        pem = derived_key("strict").as_pem(private=False)
        for secret in (pem, pem.strip(), json.dumps(STRICT.public_jwk()).encode()):
            confused = STRICT.assertion(header={"alg": "HS256"}, secret=secret, now=NOW)
            await refused(ledger, STRICT, token, confused)
        head, claims, signature = STRICT.assertion(now=NOW).split(".")
        forged = LEGACY.assertion(now=NOW).split(".")
        await refused(ledger, STRICT, token, f"{head}.{forged[1]}.{signature}")
        await refused(ledger, STRICT, token, f"{forged[0]}.{claims}.{forged[2]}")
        await taken(ledger, STRICT, token)


async def test_a_key_shown_in_the_header_is_nobodys(tmp_path: Path) -> None:
    """RFC 8725 3.10: a key or a place of keys that an assertion brings along is not looked at."""
    async with signing(tmp_path) as ledger:
        token = (await ledger.issue("strict"))["refresh_token"]
        other = Signer("strict", derived_key("another"), ISSUER_URL)
        for header in (
            {"jwk": other.public_jwk()},
            {"jku": "https://evil.example/keys"},
            {"x5u": "https://evil.example"},
        ):
            await refused(ledger, STRICT, token, other.assertion(header=header, now=NOW))
            token = await taken(ledger, STRICT, token, STRICT.assertion(header=header, now=NOW))


async def test_legacy_clients_may_name_an_endpoint(tmp_path: Path) -> None:
    """V71, CA-6: the URL of an endpoint, alone in a list too, only where the registration says so; never several."""
    async with signing(tmp_path) as ledger:
        token = (await ledger.issue("legacy"))["refresh_token"]
        urls = [f"{ISSUER_URL}{path}" for path in ("/token", "/revoke", "/oauth/v2/oauth-introspect")]
        good: list[Any] = [ISSUER_URL, TOKEN_URL, [TOKEN_URL], [ISSUER_URL], *urls]
        for aud in good:
            token = await taken(ledger, LEGACY, token, LEGACY.assertion({"aud": aud}, now=NOW))
        wrong: list[Any] = [[TOKEN_URL, ISSUER_URL], [], [[TOKEN_URL]], "https://evil.example", f"{ISSUER_URL}/grants"]
        for aud in wrong:
            await refused(ledger, LEGACY, token, LEGACY.assertion({"aud": aud}, now=NOW))


@pytest.mark.parametrize(
    ("fields", "description"),
    [
        ({"client_assertion_type": ""}, "client_assertion and client_assertion_type come together"),
        ({"client_assertion": ""}, "client_assertion and client_assertion_type come together"),
        ({"client_secret": "Secr3t!", "client_id": "strict"}, "the client authenticates by more than one method"),
    ],
)
async def test_half_an_assertion_and_a_second_method_are_malformed(
    tmp_path: Path, fields: dict[str, str], description: str
) -> None:
    """V72, CA-3, CA-5: invalid_request, and nothing is spent: the same assertion is good afterwards."""
    async with signing(tmp_path) as ledger:
        token = (await ledger.issue("strict"))["refresh_token"]
        assertion = STRICT.assertion(now=NOW)
        answer = await refresh(ledger, STRICT, token, assertion, **fields)
        assert (400, "invalid_request", description) == (answer.status_code, *answer.json().values())
        await taken(ledger, STRICT, token, assertion)


async def test_two_assertions_are_malformed(tmp_path: Path) -> None:
    """V72: a parameter that stands twice is refused before anything is read."""
    async with signing(tmp_path) as ledger:
        content = httpx2.QueryParams(
            [("grant_type", "refresh_token"), ("refresh_token", "x"), *[("client_assertion", "x")] * 2]
        )
        answer = await ledger.ask(
            "POST", "/token", content=str(content), headers={"Content-Type": "application/x-www-form-urlencoded"}
        )
        assert (400, "invalid_request") == (answer.status_code, answer.json()["error"])


async def test_another_type_of_assertion_and_another_client_are_refused(tmp_path: Path) -> None:
    """RFC 7521 4.2: a kind that is not spoken here; CA-5: client_id, where it is sent, is the assertion's client."""
    async with signing(tmp_path) as ledger:
        token = (await ledger.issue("strict"))["refresh_token"]
        saml = "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"
        await refused(ledger, STRICT, token, client_assertion_type=saml)
        for client_id in ("legacy", "www", "spa", "nobody", "STRICT"):
            await refused(ledger, STRICT, token, client_id=client_id)
        for client_id in ("www", "spa", "nobody"):
            await refused(ledger, STRICT, token, Signer(client_id, STRICT.key, ISSUER_URL).assertion(now=NOW))
        await taken(ledger, STRICT, token, client_id="strict")


async def test_a_client_that_signs_uses_no_other_method(tmp_path: Path) -> None:
    """CA-3, CA-4: neither its id alone nor any secret; and Basic beside an assertion is one method too many."""
    async with signing(tmp_path) as ledger:
        token = (await ledger.issue("strict"))["refresh_token"]
        for fields in ({"client_id": "strict"}, {"client_id": "strict", "client_secret": "x"}):
            answer = await ledger.form("/token", {"grant_type": "refresh_token", "refresh_token": token, **fields})
            assert (400, REFUSED) == (answer.status_code, answer.content)
        basic = base64.b64encode(b"strict:x").decode()
        answer = await ledger.form("/token", STRICT.form(now=NOW), headers={"Authorization": f"Basic {basic}"})
        assert (400, "invalid_request") == (answer.status_code, answer.json()["error"])


# ---------------------------------------------------------------- algorithms and keys


@pytest.mark.parametrize("algorithm", [*ASSERTION_ALGS, "Ed25519"])
async def test_each_algorithm_authenticates(tmp_path: Path, algorithm: str) -> None:
    """CA-5, CA-8: by its registered algorithm alone, EdDSA by its newer name too (RFC 9864); no other key fits."""
    registered = "EdDSA" if algorithm == "Ed25519" else algorithm
    signer = Signer("signs", new_key(algorithm), ISSUER_URL, algorithm=algorithm)
    more = signer.toml(token_endpoint_auth_signing_alg=f'"{registered}"')
    async with signing(tmp_path, more) as ledger:
        token = (await ledger.issue("signs"))["refresh_token"]
        token = await taken(ledger, signer, token)
        other = Signer("signs", new_key(algorithm), ISSUER_URL, algorithm=algorithm)
        await refused(ledger, signer, token, other.assertion(now=NOW))
        if algorithm in ("RS256", "PS256"):  # one key, two algorithms: only the registered one counts
            swapped = {"RS256": "PS256", "PS256": "RS256"}[algorithm]
            await refused(ledger, signer, token, signer.assertion(header={"alg": swapped}, now=NOW))


@pytest.mark.parametrize("told", ["EdDSA", "Ed25519"])
async def test_eddsa_has_two_names(tmp_path: Path, told: str) -> None:
    """RFC 9864: whichever the key says and whichever the header says, they are the same."""
    signer = Signer("signs", new_key("EdDSA"), ISSUER_URL, algorithm="EdDSA")
    jwks = f"{{ keys = [{inline(signer.public_jwk(alg=told))}] }}"
    async with signing(tmp_path, signer.toml(jwks=jwks)) as ledger:
        token = (await ledger.issue("signs"))["refresh_token"]
        for named in ("EdDSA", "Ed25519"):
            token = await taken(ledger, signer, token, signer.assertion(header={"alg": named}, now=NOW))


async def test_fapi_clients_may_not_sign_with_rs256(tmp_path: Path) -> None:
    """CA-8, FAPI 2.0 5.4: a client registered for ES256 shows a good RS256 signature of a key in its own set."""
    rsa = Signer("mixed", new_key("RS256"), ISSUER_URL, algorithm="RS256", kid="r1")
    mixed = Signer("mixed", derived_key("mixed"), ISSUER_URL)
    jwks = f"{{ keys = [{inline(mixed.public_jwk())}, {inline(rsa.public_jwk())}] }}"
    async with signing(tmp_path, mixed.toml(jwks=jwks, token_endpoint_auth_signing_alg='"ES256"')) as ledger:
        token = (await ledger.issue("mixed"))["refresh_token"]
        await refused(ledger, mixed, token, rsa.assertion(now=NOW))
        await taken(ledger, mixed, token)


async def test_a_changed_clients_file_changes_the_keys_at_once(tmp_path: Path) -> None:
    """V73, CA-9: the new key is good and the old one is not; grants and their tokens stay."""
    renewed = Signer("strict", derived_key("renewed"), ISSUER_URL, kid="k2")
    async with signing(tmp_path) as ledger:
        token = (await ledger.issue("strict"))["refresh_token"]
        await refused(ledger, STRICT, token, renewed.assertion(now=NOW))
        token = await taken(ledger, STRICT, token)
        await apply(ledger, renewed.toml() + LEGACY.toml(assertion_audience='"legacy"'))
        await refused(ledger, STRICT, token, STRICT.assertion(now=NOW))
        await taken(ledger, renewed, token)


async def apply(ledger: Asking, more: str) -> None:
    wanted = clients_file.parsed(FIXTURES.read_text("utf-8") + more)
    await ledger.ledger.operators.apply(wanted.clients, wanted.operators)
