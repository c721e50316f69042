"""What went wrong for others with audiences: lost at the first refresh, any accepted, refused for a slash (RFC 8707).

Each trial goes over opaque access tokens (`shop`) and JWTs (`jat`), against a real server.
"""

import pytest

from tests.jwts import claims_of
from tests.servers import Server, basic
from tests.wire import FORM, Answer, form_bytes, request_bytes

API, FILES, THIRD = "https://api.example", "https://files.example", "https://third.example"
BOTH = [API, FILES]
CLIENTS = {"shop": "Sh0p!", "jat": "Jwt!access"}

each_format = pytest.mark.parametrize("client", CLIENTS)


def refresh(server: Server, client: str, token: str, *resources: str) -> Answer:
    """Refresh for these resources, each a parameter of its own."""
    body = form_bytes({"grant_type": "refresh_token", "refresh_token": token})
    body += b"".join(b"&" + form_bytes({"resource": resource}) for resource in resources)
    headers = {"Authorization": basic(client, CLIENTS[client]), "Content-Type": FORM}
    return server.exchange(request_bytes("POST", "/token", headers=headers, body=body))


def audience(server: Server, client: str, answer: Answer) -> list[str]:
    """For whom an answer's access token is: as introspection says and, of a JWT, as it says itself."""
    assert 200 == answer.status, answer.body
    token = answer.json()["access_token"]
    told = server.introspect(token)["aud"]
    if client == "jat":
        assert told == claims_of(token)["aud"]
    else:
        assert token.startswith("at1_")
    return [told] if isinstance(told, str) else list(told)


@each_format
def test_the_audience_outlives_every_refresh(shared_server: Server, client: str) -> None:
    """casdoor#5744, rauthy#1645, better-auth#9836: kept when left out, narrowed, back again, and no third."""
    grant = shared_server.issue(client, resource=BOTH)
    token, asked = grant.refresh_token, ((), (FILES,), (), (API,), (FILES, API), (), ())
    for resources in asked:
        answer = refresh(shared_server, client, token, *resources)
        assert (sorted(resources) or BOTH) == audience(shared_server, client, answer)
        token = answer.json()["refresh_token"]
        for refused in ((THIRD,), (API, THIRD), (API + "/deeper",), (API + "#here",), (API.upper(),)):
            wrong = refresh(shared_server, client, token, *refused)
            assert (400, "invalid_target") == (wrong.status, wrong.json()["error"])


@each_format
def test_a_library_that_adds_a_slash_is_served(shared_server: Server, client: str) -> None:
    """RI-3: URL types of some languages write an empty path as a slash, at issuance or at a refresh."""
    grant = shared_server.issue(client, resource=API)
    answer = refresh(shared_server, client, grant.refresh_token, API + "/")
    assert [API] == audience(shared_server, client, answer)
    slashed = shared_server.issue(client, resource=[API + "/", FILES + "/"])
    answer = refresh(shared_server, client, slashed.refresh_token, FILES)
    assert [FILES] == audience(shared_server, client, answer)


@each_format
def test_one_resource_servers_tokens_are_nothing_to_another(shared_server: Server, client: str) -> None:
    """A server that is deceived or taken over learns nothing of tokens that it passes on elsewhere (RFC 9700 2.3)."""
    grant = shared_server.issue(client, resource=BOTH)
    for_api = refresh(shared_server, client, grant.refresh_token, API).json()
    for_files = refresh(shared_server, client, for_api["refresh_token"], FILES).json()
    seen = []
    for each in (for_api, for_files):
        body = form_bytes({"token": each["access_token"]})
        headers = {"Authorization": basic("rs1", "R!esource-server"), "Content-Type": FORM}
        told = shared_server.exchange(request_bytes("POST", "/introspect", headers=headers, body=body))
        seen.append(told.json()["active"])
    assert [True, False] == seen
