"""What the conformance suite of the OpenID Foundation asks of refresh tokens; each test names its module there.

The checks are the suite's, the words and the code are not. Its modules for logins, ID tokens and CIBA have nothing to
ask here; its first and second client are `std` and `www`, or others where a module asks for another policy.
"""

import time
from collections.abc import Callable

import pytest

from tests.conformance import SCOPE, check_refused, check_success, shannon_bits, unauthenticated
from tests.servers import Server
from tests.wire import TOKEN_PATH, Json, request_bytes

CONFIDENTIAL = ("std", "www", "keep", "mob")


@pytest.mark.parametrize("client", CONFIDENTIAL)
@pytest.mark.parametrize("asked", [{"scope": SCOPE}, {}])
def test_oidcc_refresh_token(shared_server: Server, client: str, asked: Json) -> None:
    """oidcc-refresh-token: the first client sends the whole scope, the second none; both are served alike."""
    grant = shared_server.issue(client)
    answer = shared_server.refresh(client, grant.refresh_token, **asked)
    check_success(answer)
    assert SCOPE == answer.json()["scope"]
    assert grant.access_token != answer.json()["access_token"]
    again = shared_server.refresh(client, answer.json()["refresh_token"], **asked)
    check_success(again)
    assert answer.json()["access_token"] != again.json()["access_token"]


@pytest.mark.parametrize("place", ["oauth-authorization-server", "openid-configuration"])
def test_oidcc_refresh_token_is_announced(shared_server: Server, place: str) -> None:
    """oidcc-refresh-token, EnsureServerConfigurationSupportsRefreshToken: where tokens are refreshed stands there."""
    told = shared_server.exchange(request_bytes("GET", f"/.well-known/{place}")).json()
    assert "refresh_token" in told["grant_types_supported"]
    assert (shared_server.issuer, shared_server.issuer + TOKEN_PATH) == (told["issuer"], told["token_endpoint"])


@pytest.mark.parametrize(("owner", "other"), [("www", "std"), ("std", "www"), ("spa", "std"), ("std", "spa")])
def test_oidcc_refresh_token_of_another_client(shared_server: Server, owner: str, other: str) -> None:
    """oidcc-refresh-token, last block: the second client's token at the first is `invalid_grant`, and lives."""
    grant = shared_server.issue(owner)
    check_refused(shared_server.refresh(other, grant.refresh_token), "invalid_grant")
    check_success(shared_server.refresh(owner, grant.refresh_token))


def test_fapi1_advanced_final_refresh_token_is_not_rotated(shared_server: Server) -> None:
    """fapi1-advanced-final-refresh-token, as Brazil's profile asks it: the refresh token stays what it was."""
    grant = shared_server.issue("keep")
    answer = shared_server.refresh("keep", grant.refresh_token, scope=SCOPE)
    check_success(answer)
    assert grant.refresh_token == answer.json()["refresh_token"]


@pytest.mark.parametrize("asked", [{"scope": SCOPE}, {}])
@pytest.mark.parametrize("client", ["std", "keep", "mob"])
def test_fapi2_security_profile_final_refresh_token_previous(
    shared_server: Server, count: Callable[[int, int], int], client: str, asked: Json
) -> None:
    """fapi2-security-profile-final-refresh-token: where it rotates, the previous token is served 30 s later, too."""
    grant = shared_server.issue(client)
    first = shared_server.refresh(client, grant.refresh_token, **asked)
    check_success(first)
    time.sleep(count(1, 30))
    again = shared_server.refresh(client, grant.refresh_token, **asked)
    check_success(again)
    assert first.json()["refresh_token"] == again.json()["refresh_token"]
    check_success(shared_server.refresh(client, again.json()["refresh_token"], **asked))


@pytest.mark.parametrize("client", CONFIDENTIAL)
def test_fapi2_security_profile_final_refresh_token_without_authentication(shared_server: Server, client: str) -> None:
    """fapi2-security-profile-final-refresh-token: without client authentication it is refused, and nothing is spent."""
    grant = shared_server.issue(client)
    for fields in ({}, {"client_id": client}, {"client_id": client, "client_secret": ""}):
        answer = unauthenticated(shared_server, grant.refresh_token, scope=SCOPE, **fields)
        check_refused(answer, "invalid_client", "invalid_grant", "invalid_request")
    check_success(shared_server.refresh(client, grant.refresh_token))


def test_fapi2_with_no_window_for_retries_fails_as_it_should(shared_server: Server) -> None:
    """The broken twin: under `strict`, which that profile forbids, the check of the previous token finds a refusal."""
    grant = shared_server.issue("www")
    check_success(shared_server.refresh("www", grant.refresh_token))
    with pytest.raises(AssertionError, match="invalid_grant"):
        check_success(shared_server.refresh("www", grant.refresh_token))


def test_entropy_is_measured_by_what_a_token_says() -> None:
    """The broken twin of EnsureMinimumRefreshTokenEntropy: a long text of one character has none."""
    assert 0 == shannon_bits("1" * 76)
    assert 76 * 6 >= shannon_bits("AbCdEfGhIjKlMnOpQrStUvWxYz0123456789-_abcdef") > 96
