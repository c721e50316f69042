"""What OAuch asks of a token endpoint with refresh tokens; each test names its test there, and its level.

The checks are OAuch's, the words and the code are not. It waits some seconds before it looks whether something ended;
here nothing may still work at once, which is harder to keep.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conformance import Profile, check_refused, check_success, profile, unauthenticated, varied_bits
from tests.proofs import MISSING
from tests.servers import SECRETS, Grant, Server, basic
from tests.wire import FORM, REVOKE_PATH, TOKEN_PATH, Answer, Json, form_bytes, request_bytes

ROTATING = ("www", "std", "spa", "win")


def refused(server: Server, client: str, token: str) -> bool:
    return server.refresh(client, token).status == 400


# -- the refresh token and its client ---------------------------------------------------------------------------------


def test_is_refresh_authentication_required(shared_server: Server) -> None:
    """IsRefreshAuthenticationRequired (Must): without the secret, then without the client's id."""
    grant = shared_server.issue("std")
    check_refused(unauthenticated(shared_server, grant.refresh_token, client_id="std"), "invalid_client")
    check_refused(unauthenticated(shared_server, grant.refresh_token), "invalid_client")
    check_success(shared_server.refresh("std", grant.refresh_token))


def test_is_refresh_bound_to_client(shared_server: Server) -> None:
    """IsRefreshBoundToClient (Must): another client's credentials buy nothing with it."""
    grant = shared_server.issue("std")
    check_refused(shared_server.refresh("oth", grant.refresh_token), "invalid_grant")
    check_success(shared_server.refresh("std", grant.refresh_token))


@pytest.mark.parametrize("client", ROTATING)
def test_uses_token_rotation(shared_server: Server, client: str) -> None:
    """UsesTokenRotation (Must, but for bound tokens)."""
    grant = shared_server.issue(client)
    assert grant.refresh_token != shared_server.refresh(client, grant.refresh_token).json()["refresh_token"]


@pytest.mark.parametrize("client", ["www", "spa"])
def test_refresh_token_revoked_after_use_and_its_successor_with_it(
    shared_server: Server, count: Callable[[int, int], int], client: str
) -> None:
    """RefreshTokenRevokedAfterUse (Must against its attack), InvalidatedRefreshToken (Must): old and new are dead."""
    grant = shared_server.issue(client)
    new = shared_server.refresh(client, grant.refresh_token).json()
    time.sleep(count(0, 25) / 10)
    assert refused(shared_server, client, grant.refresh_token)
    time.sleep(count(0, 25) / 10)
    assert refused(shared_server, client, new["refresh_token"])
    assert {"active": False} == shared_server.introspect(new["access_token"])


@pytest.mark.parametrize("client", ["win", "std", "late"])
def test_refresh_token_revoked_after_use_once_no_retry_is_left(shared_server: Server, client: str) -> None:
    """RefreshTokenRevokedAfterUse where retries are served: not once the successor is used; then all are dead."""
    grant = shared_server.issue(client)
    new = shared_server.refresh(client, grant.refresh_token).json()["refresh_token"]
    newer = shared_server.refresh(client, new).json()["refresh_token"]
    newest = shared_server.refresh(client, newer).json()["refresh_token"]
    assert [True] * 4 == [refused(shared_server, client, old) for old in (grant.refresh_token, new, newer, newest)]


# -- many at once -----------------------------------------------------------------------------------------------------


def at_once(server: Server, client: str, token: str, sources: list[str]) -> list[Answer]:
    """Send the same refresh on many sockets, HTTP/1.0: all heads first, then all bodies; return the answers."""
    body = form_bytes({"grant_type": "refresh_token", "refresh_token": token, **server.credentials(client)})
    head = f"POST {TOKEN_PATH} HTTP/1.0\r\nContent-Type: {FORM}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    connections = [server.connect(source=source) for source in sources]
    for connection in connections:
        connection.send(head)
    for connection in connections:
        connection.send(body)
    answers = [server.checked(head, connection.answer()) for connection in connections]
    for connection in connections:
        connection.close()
    return answers


@pytest.fixture(params=[5, 25], ids=["SingleFastRefresh", "MultiFastRefresh"])
def sources(request: pytest.FixtureRequest, shared_server: Server) -> list[str]:
    """Where the requests come from: five sockets of one address, or 25 of as many."""
    address = shared_server.new_address()
    return [address if request.param == 5 else shared_server.new_address() for _ in range(request.param)]


@pytest.mark.parametrize("client", ["www", "spa", "std", "win", "keep", "late"])
def test_fast_refresh(shared_server: Server, client: str, sources: list[str]) -> None:
    """SingleFastRefresh, MultiFastRefresh (Must): all that are served get one access token and one refresh token.

    Where the refresh token is meant to stay the same, each use of it buys an access token of its own.
    """
    grant = shared_server.issue(client)
    answers = at_once(shared_server, client, grant.refresh_token, sources)
    served = [answer.json() for answer in answers if answer.status == 200]
    assert served
    assert {200, 400} >= {answer.status for answer in answers}
    assert 1 == len({body["refresh_token"] for body in served})
    assert client == "keep" or 1 == len({body["access_token"] for body in served})
    if client in ("std", "keep") and len(sources) == 5:
        assert 5 == len(served), "nobody is turned away for a race"


@pytest.mark.parametrize("client", ["www", "std", "keep"])
def test_concurrent_tokens_revoked(shared_server: Server, client: str, sources: list[str]) -> None:
    """ConcurrentTokensRevoked (Must): what a race gave dies, all of it, when the person withdraws."""
    grant = shared_server.issue(client)
    answers = at_once(shared_server, client, grant.refresh_token, sources)
    served = [answer.json() for answer in answers if answer.status == 200]
    wish = {"subject": grant.subject, "reason": "withdrawn"}
    assert 200 == shared_server.operator("security", "POST", "/subjects/revoke", wish).status
    assert {400} == {shared_server.refresh(client, body["refresh_token"]).status for body in served}
    for access_token in {grant.access_token, *(body["access_token"] for body in served)}:
        assert {"active": False} == shared_server.introspect(access_token)


# -- tokens and answers -----------------------------------------------------------------------------------------------


def test_refresh_token_entropy(shared_server: Server) -> None:
    """RefreshTokenEntropyMin (Must, 128 bits), RefreshTokenEntropySug (Should, 160): measured over many tokens."""
    grants = [shared_server.issue("std") for _ in range(64)]
    assert varied_bits(grant.refresh_token for grant in grants) >= 160
    assert varied_bits(grant.access_token for grant in grants) >= 160
    assert varied_bits(f"rt1_{number:072d}" for number in range(64)) < 8, "and a counter is found out"


def test_has_cache_control_and_pragma(shared_server: Server) -> None:
    """HasCacheControl, HasPragma (Must): on what carries tokens, and on refusals too."""
    grant = shared_server.issue("std")
    for answer in (shared_server.refresh("std", grant.refresh_token), shared_server.refresh("std", "nope")):
        assert ("no-store", "no-cache") == (answer.header("Cache-Control"), answer.header("Pragma"))


@pytest.mark.parametrize("twice", ["grant_type", "refresh_token", "client_id", "client_secret", "hello"])
def test_same_parameter_twice_disallowed(shared_server: Server, twice: str) -> None:
    """SameParameterTwiceDisallowed (Must): equal values make it no better."""
    grant = shared_server.issue("std")
    fields = {"grant_type": "refresh_token", "refresh_token": grant.refresh_token, "hello": "world"}
    fields |= shared_server.credentials("std")
    answer = shared_server.form(TOKEN_PATH, [*fields.items(), (twice, fields[twice])])
    check_refused(answer, "invalid_request")
    check_success(shared_server.refresh("std", grant.refresh_token))


def test_unrecognized_parameter_allowed(shared_server: Server) -> None:
    """UnrecognizedParameterAllowed (Must): `hello=world` is ignored."""
    grant = shared_server.issue("std")
    check_success(shared_server.refresh("std", grant.refresh_token, hello="world"))


def test_is_get_supported(shared_server: Server) -> None:
    """IsGetSupported (Must not): the same request by GET, in the query, buys nothing."""
    grant = shared_server.issue("std")
    query = form_bytes({"grant_type": "refresh_token", "refresh_token": grant.refresh_token, "client_id": "std"})
    answer = shared_server.exchange(request_bytes("GET", f"{TOKEN_PATH}?{query.decode()}&client_secret=St4ndard%21"))
    assert (405, "POST") == (answer.status, answer.header("Allow"))
    check_success(shared_server.refresh("std", grant.refresh_token))


def test_is_auth_in_uri_allowed(shared_server: Server) -> None:
    """IsAuthInUriAllowed (Must not): credentials in the query are not seen."""
    grant = shared_server.issue("std")
    fields = {"grant_type": "refresh_token", "refresh_token": grant.refresh_token}
    answer = shared_server.form(f"{TOKEN_PATH}?client_id=std&client_secret=St4ndard%21", fields)
    check_refused(answer, "invalid_client")
    check_success(shared_server.refresh("std", grant.refresh_token))


def test_is_basic_authentication_supported(shared_server: Server) -> None:
    """IsBasicAuthenticationSupported (Must)."""
    grant = shared_server.issue("std")
    fields = {"grant_type": "refresh_token", "refresh_token": grant.refresh_token}
    headers = {"Authorization": basic("std", str(SECRETS["std"]))}
    check_success(shared_server.form(TOKEN_PATH, fields, headers=headers))


@pytest.mark.parametrize("grant_type", ["client_credentials", "password", "implicit"])
def test_refresh_token_present(shared_server: Server, grant_type: str) -> None:
    """RefreshTokenPresent for client_credentials and the implicit flow (Must not): neither gives any token here."""
    answer = shared_server.form(TOKEN_PATH, {"grant_type": grant_type, **shared_server.credentials("cc")})
    check_refused(answer, "unsupported_grant_type")


# -- revocation -------------------------------------------------------------------------------------------------------


def lives(server: Server, grant: Grant) -> bool:
    return server.refresh(grant.client, grant.refresh_token).status == 200


def test_can_refresh_tokens_be_revoked_and_access_tokens_with_them(shared_server: Server) -> None:
    """Revocation.CanRefreshTokensBeRevoked (Must), Revocation.RefreshRevokesAccess (Should)."""
    grant = shared_server.issue("std")
    assert 200 == shared_server.revoke("std", grant.refresh_token).status
    assert not lives(shared_server, grant)
    assert {"active": False} == shared_server.introspect(grant.access_token)


def test_can_access_tokens_be_revoked_alone(shared_server: Server) -> None:
    """Revocation.CanAccessTokensBeRevoked (Should); Revocation.AccessRevokesRefresh (May): here it does not."""
    grant = shared_server.issue("std")
    assert 200 == shared_server.revoke("std", grant.access_token).status
    assert {"active": False} == shared_server.introspect(grant.access_token)
    assert lives(shared_server, grant)


@pytest.mark.parametrize("fields", [{}, {"client_id": "std"}, {"client_id": "std", "client_secret": "wr0ng"}])
def test_is_client_auth_required_for_revocation(shared_server: Server, fields: dict[str, str]) -> None:
    """Revocation.IsClientAuthRequired (Must): nobody ends a grant without being its client."""
    grant = shared_server.issue("std")
    for token in (grant.refresh_token, grant.access_token):
        check_refused(unauthenticated(shared_server, token, path=REVOKE_PATH, **fields), "invalid_client")
    assert shared_server.introspect(grant.access_token)["active"] is True
    assert lives(shared_server, grant)


def test_is_revocation_bound_to_client(shared_server: Server) -> None:
    """Revocation.IsBoundToClient (Must): another client is refused, and the token lives."""
    grant = shared_server.issue("std")
    for token in (grant.refresh_token, grant.access_token):
        check_refused(shared_server.revoke("oth", token), "invalid_grant")
    assert shared_server.introspect(grant.access_token)["active"] is True
    assert lives(shared_server, grant)


# -- codes, assertions and proofs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Profile]:
    """A server with clients that sign assertions, show keys and exchange codes."""
    with profile(tmp_path_factory.mktemp("oauch")) as found:
        yield found


def test_refresh_token_valid_after_multi_exchange(signing: Profile) -> None:
    """MultipleCodeExchanges (Must), TokenValidAfterMultiExchange, RefreshTokenValidAfterMultiExchange (Should)."""
    code = signing.code()
    first = signing.exchange(code)
    check_success(first, "DPoP")
    rotated = signing.refresh(first.json()["refresh_token"])
    check_success(rotated, "DPoP")
    check_refused(signing.exchange(code), "invalid_grant")
    for answer in (first, rotated):
        assert {"active": False} == signing.server.introspect(answer.json()["access_token"])
        check_refused(signing.refresh(answer.json()["refresh_token"]), "invalid_grant")


@pytest.mark.parametrize("copies", [5, 25], ids=["SingleFastACExchange", "MultiFastACExchange"])
def test_fast_code_exchange(signing: Profile, copies: int) -> None:
    """SingleFastACExchange, MultiFastACExchange (Must): however many come at once, one at most gets tokens."""
    code = signing.code()
    with ThreadPoolExecutor(copies) as pool:
        answers = list(pool.map(lambda _: signing.exchange(code), range(copies)))
    served = [answer for answer in answers if answer.status == 200]
    assert 1 == len(served)
    assert {200, 400} == {answer.status for answer in answers}
    check_refused(signing.refresh(served[0].json()["refresh_token"]), "invalid_grant")


JWT: dict[str, Json] = {
    "HasAudienceClaim": {"changes": {"aud": None}},
    "HasIssuerClaim": {"changes": {"iss": None}},
    "HasSubjectClaim": {"changes": {"sub": None}},
    "IsExpirationChecked": {"changes": {"iat": 1_000_000_000, "exp": 1_000_000_060}},
    "IsNotBeforeChecked": {"changes": {"nbf": 4_000_000_000, "exp": 4_000_000_060}},
    "IsSignatureRequired": {"header": {"alg": "none"}},
    "IsSignatureChecked": {},
}


@pytest.mark.parametrize("name", JWT)
def test_jwt(signing: Profile, name: str) -> None:
    """Jwt.… (Must): an assertion that lacks or breaks this is no authentication, and the refresh token lives."""
    token = signing.issue()
    assertion = signing.first.assertion(**JWT[name])
    if name == "IsSignatureChecked":
        assertion = assertion[:-8] + ("A" * 8 if assertion[-8:] != "A" * 8 else "B" * 8)
    check_refused(signing.refresh(token, by=signing.first.form(assertion)), "invalid_client")
    check_success(signing.refresh(token), "DPoP")


def test_is_jwt_replay_detected(signing: Profile) -> None:
    """Jwt.IsJwtReplayDetected (Must): the same assertion buys nothing a second time, not even for another token."""
    by = signing.first.form()
    check_success(signing.refresh(signing.issue(), by=by), "DPoP")
    check_refused(signing.refresh(signing.issue(), by=by), "invalid_client")


@pytest.mark.parametrize("claim", ["jti", "htm", "htu", "iat"])
def test_has_required_claims(signing: Profile, claim: str) -> None:
    """DPoP.HasRequiredClaims (Must)."""
    answer = signing.refresh(signing.issue(), dpop=signing.proof(claims={claim: MISSING}))
    check_refused(answer, "invalid_dpop_proof")


@pytest.mark.parametrize(
    "header", [{"alg": "none"}, {"typ": MISSING}, {"typ": "JWT"}], ids=["none", "no typ", "another typ"]
)
def test_is_dpop_signature_and_typing_required(signing: Profile, header: Json) -> None:
    """DPoP.IsSignatureRequired, DPoP.IsExplicitTypingRequired (Must)."""
    check_refused(signing.refresh(signing.issue(), dpop=signing.proof(header=header)), "invalid_dpop_proof")


def test_is_dpop_supported_and_required(signing: Profile) -> None:
    """DPoP.IsDPoPSupported, DPoP.IsDPoPTokenRequired: such a client's tokens are DPoP ones, or there are none."""
    token = signing.issue()
    check_refused(signing.refresh(token, dpop=None), "invalid_dpop_proof")
    answer = signing.refresh(token)
    check_success(answer, "DPoP")
    assert "DPoP" == signing.server.introspect(answer.json()["access_token"])["token_type"]
