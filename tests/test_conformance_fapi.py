"""What the OpenID Foundation's suite asks of FAPI 2.0's clients at the token endpoint; each test names its module.

All modules are `fapi2-security-profile-final-…` where no other prefix stands there; `…` is left out below. The checks
are the suite's, the words and the code are not. Pushed authorization requests and the page where people sign in are not
this server's, so what is asked of them is not asked here.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.certificates import certificate
from tests.conformance import SCOPE, Profile, check_refused, check_success, profile
from tests.mutual_tls import mutual
from tests.proofs import MISSING, new_key, thumbprint
from tests.server_process import eventually
from tests.signers import Signer, derived_key
from tests.signers import new_key as new_client_key
from tests.wire import TOKEN_PATH, Json


@pytest.fixture(scope="module")
def fapi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Profile]:
    """One server for all of these; each test has a grant of its own."""
    with profile(tmp_path_factory.mktemp("fapi")) as found:
        yield found


# -- refresh tokens ---------------------------------------------------------------------------------------------------


def test_refresh_token(fapi: Profile, count: Callable[[int, int], int]) -> None:
    """refresh-token: with a new key each time; where it rotates, the previous token is served 30 s later, too."""
    token = fapi.issue()
    first_key, second_key = new_key(), new_key()
    first = fapi.refresh(token, dpop=fapi.proof(first_key))
    check_success(first, "DPoP")
    bound = fapi.server.introspect(first.json()["access_token"])
    assert {"jkt": thumbprint(first_key)} == bound["cnf"]
    time.sleep(count(1, 30))
    again = fapi.refresh(token, dpop=fapi.proof(second_key))
    check_success(again, "DPoP")
    assert first.json()["refresh_token"] == again.json()["refresh_token"]
    assert {"jkt": thumbprint(second_key)} == fapi.server.introspect(again.json()["access_token"])["cnf"]
    check_success(fapi.refresh(again.json()["refresh_token"]), "DPoP")


def test_refresh_token_is_not_rotated(fapi: Profile) -> None:
    """refresh-token, as Brazil's profile asks it (FAPI 2.0 5.3.2.1-9): under the preset `fapi2` the token stays."""
    token = fapi.issue("kept")
    served = [fapi.refresh(token, by=fapi.kept.form(), dpop=fapi.proof(new_key())) for _ in range(3)]
    for answer in served:
        check_success(answer, "DPoP")
    assert {token} == {answer.json()["refresh_token"] for answer in served}
    assert 3 == len({answer.json()["access_token"] for answer in served})
    check_refused(fapi.refresh(token, by={}), "invalid_client", "invalid_grant", "invalid_request")
    check_refused(fapi.refresh(token, by=fapi.kept.form(), dpop=None), "invalid_dpop_proof")


def test_refresh_token_without_authentication(fapi: Profile) -> None:
    """refresh-token: no client authentication, with a proof all the same; the token lives."""
    token = fapi.issue()
    for by in ({}, {"client_id": "first"}):
        check_refused(fapi.refresh(token, by=by), "invalid_client", "invalid_grant", "invalid_request")
    check_success(fapi.refresh(token), "DPoP")


def test_refresh_token_without_proof(fapi: Profile) -> None:
    """refresh-token: no proof of possession, well authenticated; the token lives."""
    token = fapi.issue()
    check_refused(fapi.refresh(token, dpop=None), "invalid_request", "invalid_grant", "invalid_dpop_proof")
    check_success(fapi.refresh(token), "DPoP")


def test_refresh_token_of_another_client(fapi: Profile) -> None:
    """refresh-token, last block: the first client's token at the second is `invalid_grant`."""
    token = fapi.issue()
    check_refused(fapi.refresh(token, by=fapi.second.form()), "invalid_grant")
    check_success(fapi.refresh(token), "DPoP")


@contextmanager
def registered(fapi: Profile, first: Signer, **fields: str) -> Iterator[None]:
    """Let the first client be registered otherwise for a while."""

    def known(signer: Signer) -> bool:
        return bool("invalid_grant" == fapi.refresh("no token", by=signer.form()).json()["error"])

    fapi.server.hangup(fapi.clients(first, **fields))
    try:
        eventually(lambda: known(first), what="the other registration")
        yield
    finally:
        fapi.server.hangup(fapi.clients())
        eventually(lambda: known(fapi.first), what="the usual registration")


def test_oidcc_refresh_token_rp_key_rotation(fapi: Profile) -> None:
    """oidcc-refresh-token-rp-key-rotation: the client's keys are new, the old are gone; its refresh token works on."""
    new = Signer("first", derived_key("renewed"), fapi.server.issuer, kid="k2")
    token = fapi.issue()
    with registered(fapi, new):
        check_refused(fapi.refresh(token), "invalid_client")
        check_success(fapi.refresh(token, by=new.form()), "DPoP")


@pytest.mark.parametrize("asked", [{"scope": SCOPE}, {}])
def test_fapi1_advanced_final_refresh_token(tmp_path: Path, asked: Json) -> None:
    """fapi1-advanced-final-refresh-token: by certificate; without one the request is refused, not the handshake."""
    own, other = certificate("CN=own"), certificate("CN=other")
    fields = f'auth = "self_signed_tls_client_auth"\nscope = "{SCOPE}"\njwks = {{ keys = [{{ x5c = ["%s"] }}] }}\n'
    bound = "tls_client_certificate_bound_access_tokens = true\n"
    tables = "".join(
        f'\n[[client]]\nid = "{name}"\n{fields % party.x5c}{bound}' for name, party in (("own", own), ("other", other))
    )
    with mutual(tmp_path, tables) as ledger:
        token = ledger.issue("own", scope=SCOPE)["refresh_token"]
        check_refused(ledger.refresh("own", token, **asked), "invalid_client", "invalid_request", "invalid_grant")
        check_refused(ledger.refresh("own", token, other, **asked), "invalid_client", "invalid_request")
        check_refused(ledger.refresh("other", token, other, **asked), "invalid_grant")
        answer = ledger.refresh("own", token, own, **asked)
        check_success(answer)
        assert {"x5t#S256": own.x5t_s256} == ledger.introspect(answer.json()["access_token"])["cnf"]


# -- codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait_seconds", [0, 1, 30])
def test_a_code_is_good_once(fapi: Profile, full: bool, wait_seconds: int) -> None:
    """oidcc-codereuse, oidcc-codereuse-30seconds, attempt-reuse-authorization-code-after-one-second."""
    if wait_seconds > 1 and not full:
        wait_seconds = 2
    code = fapi.code()
    first = fapi.exchange(code)
    check_success(first, "DPoP")
    time.sleep(wait_seconds)
    check_refused(fapi.exchange(code), "invalid_grant")
    assert {"active": False} == fapi.server.introspect(first.json()["access_token"])
    check_refused(fapi.refresh(first.json()["refresh_token"]), "invalid_grant")


@pytest.mark.parametrize(
    ("changes", "errors"),
    [
        ({"code_verifier": None}, ("invalid_grant", "invalid_request")),  # ensure-pkce-code-verifier-required
        ({"code_verifier": "x" * 64}, ("invalid_grant",)),  # incorrect-pkce-code-verifier-rejected
        ({"redirect_uri": "https://app.example/other"}, ("invalid_grant",)),
        ({"redirect_uri": None}, ("invalid_grant", "invalid_request")),
    ],
)
def test_a_code_is_for_who_asked_for_it(
    fapi: Profile, changes: Mapping[str, str | None], errors: tuple[str, ...]
) -> None:
    """ensure-pkce-code-verifier-required, incorrect-pkce-code-verifier-rejected; then the right exchange succeeds."""
    code = fapi.code()
    check_refused(fapi.exchange(code, changes), *errors)
    check_success(fapi.exchange(code), "DPoP")


def test_ensure_authorization_code_is_bound_to_client(fapi: Profile) -> None:
    """ensure-authorization-code-is-bound-to-client: the second client gets nothing for it, and ends nothing by it."""
    code = fapi.code()
    check_refused(fapi.exchange(code, by=fapi.second.form()), "invalid_grant")
    check_success(fapi.exchange(code), "DPoP")
    check_refused(fapi.exchange(fapi.code(), by={}), "invalid_client", "invalid_request")


def test_ensure_token_endpoint_fails_with_expired_auth_code(fapi: Profile, full: bool) -> None:
    """ensure-token-endpoint-fails-with-expired-auth-code: after a minute."""
    if not full:
        pytest.skip("waits for a minute: with --full only")
    code = fapi.code()
    time.sleep(61)
    check_refused(fapi.exchange(code), "invalid_grant")


def test_ensure_token_endpoint_fails_with_mismatched_dpop_jkt(fapi: Profile) -> None:
    """ensure-token-endpoint-fails-with-mismatched-dpop-jkt, ensure-dpop-auth-code-binding-success."""
    code = fapi.code(dpop_jkt=thumbprint(fapi.key))
    check_refused(fapi.exchange(code, dpop=fapi.proof(new_key())), "invalid_grant", "invalid_dpop_proof")
    check_success(fapi.exchange(code), "DPoP")


# -- proofs of possession ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off_seconds", [-10, 10])
def test_ensure_dpopproof_with_iat_10seconds_off_succeeds(fapi: Profile, off_seconds: int) -> None:
    """ensure-dpopproof-with-iat-10seconds-before-succeeds, …-after-succeeds."""
    # Rounded to the side that a request which takes its time does not push over the edge.
    at = int(time.time()) + off_seconds
    check_success(fapi.refresh(fapi.issue(), dpop=fapi.proof(iat=at)), "DPoP")


def test_check_dpop_proof_nbf_exp(fapi: Profile) -> None:
    """check-dpop-proof-nbf-exp: a proof may say from when until when it is good."""
    now = int(time.time())
    check_success(fapi.refresh(fapi.issue(), dpop=fapi.proof(claims={"nbf": now, "exp": now + 300})), "DPoP")


NEGATIVE: dict[str, Json] = {
    "no jti": {"claims": {"jti": MISSING}},
    "no htm": {"claims": {"htm": MISSING}},
    "no htu": {"claims": {"htu": MISSING}},
    "no iat": {"claims": {"iat": MISSING}},
    "another method": {"claims": {"htm": "GET"}},
    "another address": {"claims": {"htu": "https://other.example/token"}},
    "an old iat": {"iat": 1_000_000_000},
    "a far iat": {"iat": 4_000_000_000},
    "no typ": {"header": {"typ": MISSING}},
    "another typ": {"header": {"typ": "JWT"}},
    "alg none": {"header": {"alg": "none"}},
    "no jwk": {"header": {"jwk": MISSING}},
    "another key's signature": {"signed_by": new_key()},
}


@pytest.mark.parametrize("wrong", NEGATIVE)
def test_dpop_negative_tests(fapi: Profile, wrong: str) -> None:
    """dpop-negative-tests: each refused by name, and the refresh token lives."""
    token = fapi.issue()
    answer = fapi.refresh(token, dpop=fapi.proof(**NEGATIVE[wrong]))
    check_refused(answer, "invalid_dpop_proof")
    check_success(fapi.refresh(token), "DPoP")


def test_dpop_negative_tests_reuse(fapi: Profile) -> None:
    """dpop-negative-tests: the second use of one `jti` should fail, and does."""
    proof = fapi.proof()
    check_success(fapi.refresh(fapi.issue(), dpop=proof), "DPoP")
    check_refused(fapi.refresh(fapi.issue(), dpop=proof), "invalid_dpop_proof")


# -- assertions -------------------------------------------------------------------------------------------------------


def changed(now: int) -> dict[str, Json]:
    """Return by module what an assertion says otherwise than it should, or unusually and rightly."""
    return {
        "ensure-client-assertion-with-exp-is-5-minutes-in-past-fails": {"iat": now - 360, "exp": now - 300},
        "ensure-client-assertion-with-no-sub-fails": {"sub": None},
        "ensure-client-assertion-with-wrong-aud-fails": {"aud": "https://other.example"},
        "par-test-token-endpoint-url-as-audience-fails": {"aud": "TOKEN"},
        "par-ensure-jwt-client-assertions-nbf-over-60-seconds-in-the-future-fails": {"nbf": now + 70, "exp": now + 120},
        "ensure-invalid-client-assertions-fail: another issuer": {"iss": "second"},
        "ensure-invalid-client-assertions-fail: another subject": {"sub": "second"},
        "ensure-invalid-client-assertions-fail: another client": {"iss": "second", "sub": "second"},
        "ensure-invalid-client-assertions-fail: no jti": {"jti": None},
        "ensure-invalid-client-assertions-fail: no exp": {"exp": None},
        "par-ensure-jwt-client-assertions-nbf-8-seconds-in-the-future-is-accepted": {"nbf": now + 8, "iat": now + 8},
        "oidcc-ensure-client-assertion-with-iss-aud-succeeds": {},
    }


@pytest.mark.parametrize("module", changed(0))
def test_client_assertions(fapi: Profile, module: str) -> None:
    """The modules on assertions, at the token endpoint: `invalid_client` or success, and a refusal spends nothing."""
    token = fapi.issue()
    changes = changed(int(time.time()))[module]
    if changes.get("aud") == "TOKEN":
        changes["aud"] = fapi.server.issuer + TOKEN_PATH
    answer = fapi.refresh(token, by=fapi.first.form(fapi.first.assertion(changes)))
    if module.endswith(("accepted", "succeeds")):
        check_success(answer, "DPoP")
    else:
        check_refused(answer, "invalid_client")
        check_success(fapi.refresh(token), "DPoP")


def test_ensure_signed_client_assertion_with_rs256_fails(fapi: Profile) -> None:
    """ensure-signed-client-assertion-with-RS256-fails: a client registered for PS256 cannot sign by RS256."""
    key = new_client_key("PS256")
    good, bad = (Signer("first", key, fapi.server.issuer, algorithm=name) for name in ("PS256", "RS256"))
    token = fapi.issue()
    with registered(fapi, good, token_endpoint_auth_signing_alg='"PS256"'):
        check_refused(fapi.refresh(token, by=bad.form()), "invalid_client")
        check_success(fapi.refresh(token, by=good.form()), "DPoP")
