"""`POST /authorizations`, and the code that comes of it at the token endpoint (RFC 6749 4.1, RFC 7636, RFC 9207)."""

import json
import re
from importlib.resources import files
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx2
import pytest
from joserfc.jwk import Key

from api.authorizations import with_parameters
from ledger import times
from ledger.times import SECOND
from tests.asking import ELSEWHERE, ISSUER_URL, Asking, Json, asking, bearer
from tests.asking import credentials as known_credentials
from tests.jwts import claims_of
from tests.proofs import new_key, proof, thumbprint
from tests.sign_ins import CALLBACK, CHALLENGE, VERIFIER

pytestmark = pytest.mark.anyio

PAGE = f"""
[[client]]
id = "page"
auth = "none"
grant_types = ["authorization_code", "refresh_token"]
scope = "read openid profile"
redirect_uris = ["{CALLBACK}"]

[[client]]
id = "jwts"
secret = "J!wts"
grant_types = ["authorization_code", "refresh_token"]
scope = "read openid profile"
redirect_uris = ["{CALLBACK}"]
resource = ["https://api.example", "https://files.example", "https://other.example"]
policy = {{ access_token_format = "jwt" }}
"""


def credentials(client: str) -> dict[str, str]:
    """A client's credentials as members of a form, also of the clients above."""
    own = {"page": {"client_id": "page"}, "jwts": {"client_id": "jwts", "client_secret": "J!wts"}}
    return own.get(client) or known_credentials(client)


def agreed(client: str = "code", **members: Json) -> Json:
    """What a sign-in page posts; a member that is None is left out."""
    body = {
        "client_id": client,
        "subject": "alice",
        "scope": "read openid profile",
        "redirect_uri": CALLBACK,
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
        **members,
    }
    return {name: value for name, value in body.items() if value is not None}


async def authorize(ledger: Asking, client: str = "code", **members: Json) -> Json:
    """Let the sign-in page post; the answer's body."""
    answer = await ledger.operator("issuer", "POST", "/authorizations", agreed(client, **members))
    assert 201 == answer.status_code, answer.text
    return answer.json()


async def exchange(ledger: Asking, code: str, client: str = "code", /, **more: str | None) -> httpx2.Response:
    """Exchange a code as its client; a field that is None is left out."""
    fields = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": CALLBACK,
        "code_verifier": VERIFIER,
        **credentials(client),
        **more,
    }
    return await ledger.form("/token", {name: value for name, value in fields.items() if value is not None})


async def refresh(ledger: Asking, client: str, token: str, **more: str) -> httpx2.Response:
    """Refresh as a client."""
    fields = {"grant_type": "refresh_token", "refresh_token": token, **credentials(client), **more}
    return await ledger.form("/token", fields)


async def test_a_sign_in_leads_the_person_back_and_the_client_to_its_tokens(tmp_path: Path) -> None:
    """The whole way: 201, the redirect with code, state and iss, the exchange, a refresh."""
    async with asking(tmp_path) as ledger:
        told = await authorize(ledger, state="a b&c=d", auth_time=1_764_000_000, acr="high", amr=["pwd"], session="s")
        assert {"code", "expires_in", "redirect_to"} == set(told)
        assert (76, "ac1_", 60) == (len(told["code"]), told["code"][:4], told["expires_in"])
        assert told["redirect_to"].startswith(f"{CALLBACK}?")
        query = dict(parse_qsl(urlsplit(told["redirect_to"]).query, strict_parsing=True))
        assert {"code": told["code"], "state": "a b&c=d", "iss": ISSUER_URL} == query
        answer = await exchange(ledger, told["code"])
        assert 200 == answer.status_code
        body = answer.json()
        assert ("read openid profile", "bearer", 300) == (body["scope"], body["token_type"], body["expires_in"])
        assert "grant_id" not in body
        assert answer.headers["ledger-position"].isdigit()
        assert 200 == (await ledger.refresh("code", body["refresh_token"])).status_code
        looked = await ledger.form("/introspect", {"token": body["access_token"], **credentials("code")})
        assert {
            "auth_time": 1_764_000_000,
            "acr": "high",
            "amr": ["pwd"],
            "sub": "alice",
        }.items() <= looked.json().items()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://a.example/cb", "https://a.example/cb?code=c&state=s+1&iss=i"),
        ("https://a.example/cb?x=y", "https://a.example/cb?x=y&code=c&state=s+1&iss=i"),
        ("https://a.example/cb?", "https://a.example/cb?code=c&state=s+1&iss=i"),
        ("https://a.example/cb?x=y&", "https://a.example/cb?x=y&code=c&state=s+1&iss=i"),
        ("com.example.app:/cb", "com.example.app:/cb?code=c&state=s+1&iss=i"),
    ],
)
def test_parameters_join_the_query_that_is_there(uri: str, expected: str) -> None:
    """RFC 6749 3.1.2: the registered query is kept; RFC 6749 4.1.2: form-encoded."""
    assert expected == with_parameters(uri, {"code": "c", "state": "s 1", "iss": "i"})
    assert "state" not in with_parameters(uri, {"code": "c", "state": None, "iss": "i"})


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ({"client_id": "nobody"}, "invalid_request"),
        ({"redirect_uri": "https://evil.example/callback"}, "invalid_request"),
        ({"redirect_uri": CALLBACK + "/"}, "invalid_request"),
        ({"redirect_uri": CALLBACK + "#x"}, "invalid_request"),
        ({"redirect_uri": None}, "invalid_request"),
        ({"client_id": "www"}, "invalid_request"),  # it has no redirect address
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
        ({"code_challenge": CHALLENGE[:-1] + "="}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"scope": "read admin"}, "invalid_scope"),
        ({"scope": "read  openid"}, "invalid_scope"),
        ({"resource": "https://api.example"}, "invalid_target"),
        ({"subject": ""}, "invalid_request"),
        ({"subject": "a\nb"}, "invalid_request"),
        ({"dpop_jkt": "x"}, "invalid_request"),
        ({"state": ""}, "invalid_request"),
        ({"state": 1}, "invalid_request"),
        ({"nonce": "n"}, "invalid_request"),
        ({"refresh_token_ttl_seconds": 5}, "invalid_request"),
    ],
)
async def test_what_is_wrong_is_told_to_the_sign_in_page(tmp_path: Path, members: Json, error: str) -> None:
    """RFC 6749 4.1.2.1, RFC 9700 2.1.1: nothing is recorded, nobody is redirected."""
    async with asking(tmp_path) as ledger:
        events = len(ledger.opened.events())
        answer = await ledger.operator("issuer", "POST", "/authorizations", agreed(**members))
        assert (400, error) == (answer.status_code, answer.json()["error"])
        assert "evil" not in answer.text
        assert events == len(ledger.opened.events())


async def test_a_sign_in_that_no_access_token_has_room_for_gets_no_code(tmp_path: Path) -> None:
    """RFC 6749 4.1.2: its code could never be exchanged. `POST /grants` says the same of it."""
    long = {"acr": "a" * 200, "amr": ["m" * 200] * 6}
    async with asking(tmp_path, more=PAGE) as ledger:
        events = len(ledger.opened.events())
        answer = await ledger.operator("issuer", "POST", "/authorizations", agreed("jwts", **long))
        grant = {"client_id": "jwts", "subject": "alice", "scope": "read openid profile", **long}
        directly = await ledger.operator("issuer", "POST", "/grants", grant)
        assert (400, "invalid_request") == (answer.status_code, answer.json()["error"])
        assert directly.json() == answer.json()
        assert events == len(ledger.opened.events())
        fits = await authorize(ledger, "jwts", acr="a" * 200, amr=["m" * 200] * 4)
        assert 200 == (await exchange(ledger, fits["code"], "jwts")).status_code
        opaque = await authorize(ledger, "page", **long)
        assert 200 == (await exchange(ledger, opaque["code"], "page")).status_code


async def test_a_sign_in_that_has_room_for_one_of_its_resources_is_exchanged_for_it(tmp_path: Path) -> None:
    """RFC 8707 2.2: the exchange may ask for less than was granted."""
    many = [f"https://{'r' * 200}.example/{number}" for number in range(8)]
    registered = PAGE.replace('"https://api.example", ', f"{json.dumps(many)[1:-1]}, ")
    async with asking(tmp_path, more=registered) as ledger:
        code = (await authorize(ledger, "jwts", resource=many))["code"]
        assert "invalid_request" == (await exchange(ledger, code, "jwts")).json()["error"]
        assert 200 == (await exchange(ledger, code, "jwts", resource=many[0])).status_code


@pytest.mark.parametrize("scope", ["read  openid", " read", "a\tb", '"', "read admin", "caf\u00e9"])
async def test_no_error_that_is_sent_on_comes_before_the_address_is_known_as_the_clients(
    tmp_path: Path, scope: str
) -> None:
    """RFC 6749 4.1.2.1, RFC 9700 4.11: whatever else is wrong with a link, the page is told to redirect nowhere."""
    async with asking(tmp_path) as ledger:
        for wrong in ({"redirect_uri": "https://evil.example/"}, {"client_id": "nobody"}, {"client_id": "www"}):
            answer = await ledger.operator("issuer", "POST", "/authorizations", agreed(**{"scope": scope, **wrong}))
            assert (400, "invalid_request") == (answer.status_code, answer.json()["error"])
        right = await ledger.operator("issuer", "POST", "/authorizations", agreed(scope=scope))
        assert (400, "invalid_scope") == (right.status_code, right.json()["error"])


async def test_a_client_without_the_grant_type_is_told_apart(tmp_path: Path) -> None:
    """RFC 6749 4.1.2.1 `unauthorized_client`, which the sign-in page may send back to the client's address."""
    more = (
        '[[client]]\nid = "old"\nsecret = "x"\nauth = "client_secret"\nscope = "read openid profile"\n'
        f'redirect_uris = ["{CALLBACK}"]\n'
    )
    async with asking(tmp_path, more=more) as ledger:
        answer = await ledger.operator("issuer", "POST", "/authorizations", agreed("old"))
        assert (400, "unauthorized_client") == (answer.status_code, answer.json()["error"])


@pytest.mark.parametrize("role", ["auditor", "security", "admin"])
async def test_only_an_issuer_authorizes(tmp_path: Path, role: str) -> None:
    """403 for other roles, 401 for nobody, 405 for another method; an issuer limited to clients stays there."""
    more = (
        '[[operator]]\nname = "few"\ntoken = "narrow-token-1b2c3d4e5f6a7b8c"\nroles = ["issuer"]\nclients = ["www"]\n'
    )
    async with asking(tmp_path, more=more) as ledger:
        assert 403 == (await ledger.operator(role, "POST", "/authorizations", agreed())).status_code
        assert 401 == (await ledger.ask("POST", "/authorizations", json=agreed())).status_code
        assert 405 == (await ledger.ask("GET", "/authorizations", headers=bearer("issuer"))).status_code
        narrow = {"Authorization": "Bearer narrow-token-1b2c3d4e5f6a7b8c"}
        assert 403 == (await ledger.ask("POST", "/authorizations", headers=narrow, json=agreed())).status_code


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"code": None}, "invalid_request"),
        ({"code": ""}, "invalid_request"),
        ({"code": "nope"}, "invalid_grant"),
        ({"code": "ac1_" + "A" * 72}, "invalid_grant"),
        ({"code_verifier": None}, "invalid_grant"),
        ({"code_verifier": "b" + VERIFIER[1:]}, "invalid_grant"),
        ({"code_verifier": CHALLENGE}, "invalid_grant"),
        ({"redirect_uri": None}, "invalid_grant"),
        ({"redirect_uri": "https://app.example/with?a=b"}, "invalid_grant"),
        ({"client_secret": "wrong"}, "invalid_client"),
        ({"client_id": "oth", "client_secret": "Oth3r!"}, "unauthorized_client"),
        ({"client_id": "offline", "client_secret": "0ffline-access!"}, "invalid_grant"),
        ({"resource": "https://api.example"}, "invalid_target"),
    ],
)
async def test_a_failed_exchange_consumes_no_code(tmp_path: Path, wrong: dict[str, str | None], error: str) -> None:
    """D5, V81, V82: nothing of it says which part was wrong; the right request is served afterwards, and not before."""
    async with asking(tmp_path) as ledger:
        code = (await authorize(ledger))["code"]
        refused = await exchange(ledger, code, **wrong)
        assert (400, error) == (refused.status_code, refused.json()["error"])
        if error == "invalid_grant":
            assert {"error", "error_description"} == set(refused.json())
        bought = await exchange(ledger, code)
        assert 200 == bought.status_code
        again = await exchange(ledger, code, **wrong)
        assert 400 == again.status_code
        # A request that asks for too much is valid otherwise, and what it asks for is no excuse (V54).
        lives = 400 if error == "invalid_target" else 200
        assert lives == (await ledger.refresh("code", bought.json()["refresh_token"])).status_code


async def test_a_second_exchange_ends_what_the_first_bought(tmp_path: Path) -> None:
    """V80, PK-3: both tokens of the first are dead; the owner reads why, and the operating side too."""
    async with asking(tmp_path) as ledger:
        code = (await authorize(ledger))["code"]
        bought = (await exchange(ledger, code)).json()
        second = await exchange(ledger, code)
        assert (400, "invalid_grant", "reuse_detected") == (
            second.status_code, second.json()["error"], second.json()["reason"],
        )  # fmt: skip
        dead = (await ledger.refresh("code", bought["refresh_token"])).json()
        assert ("reuse_detected", second.json()["event_id"]) == (dead["reason"], dead["event_id"])
        looked = await ledger.form("/introspect", {"token": bought["access_token"], **credentials("code")})
        assert {"active": False} == looked.json()
        grant_id = second.json()["event_id"].removeprefix("grant:").partition("/")[0]
        events = (await ledger.operator("security", "GET", f"/grants/{grant_id}/events")).json()["events"]
        assert ["grant.authorized", "grant.issued", "grant.revoked"] == [event["topic"] for event in events]
        assert "its authorization code was presented a second time" == events[2]["disclosed"]["reason"]["value"]


async def test_a_public_client_exchanges_with_its_verifier_alone(tmp_path: Path) -> None:
    """RFC 8252 7.3: a program on the person's machine listens on whatever port was free."""
    async with asking(tmp_path) as ledger:
        here = "http://127.0.0.1:51004/callback"
        told = await authorize(ledger, "native", redirect_uri=here)
        assert told["redirect_to"].startswith(here + "?code=")
        other = await exchange(ledger, told["code"], "native", redirect_uri="http://127.0.0.1:51005/callback")
        assert 400 == other.status_code
        answer = await exchange(ledger, told["code"], "native", redirect_uri=here)
        assert 200 == answer.status_code
        assert "ledger-position" not in answer.headers
        assert 200 == (await ledger.refresh("native", answer.json()["refresh_token"])).status_code


async def test_offline_access_decides_for_a_client_that_may_ask_for_it(tmp_path: Path) -> None:
    """OpenID Connect Core 11: no refresh token without the word, and none is ever null (D10)."""
    async with asking(tmp_path) as ledger:
        without = await authorize(ledger, "offline", scope="read openid")
        body = (await exchange(ledger, without["code"], "offline")).json()
        assert "refresh_token" not in body
        assert "refresh_token_timeout" not in body
        assert ("read openid", 365 * 86_400) == (body["scope"], body["authorization_expires_in"])
        given = await authorize(ledger, "offline", scope="openid offline_access")
        body = (await exchange(ledger, given["code"], "offline")).json()
        assert "openid offline_access" == body["scope"]
        assert 200 == (await ledger.refresh("offline", body["refresh_token"])).status_code


async def test_a_sign_in_is_a_grant_before_its_code_is_exchanged(tmp_path: Path) -> None:
    """Listed without a generation, `active` as long as its code, `expired` afterwards; revocable; its history whole."""
    async with asking(tmp_path) as ledger:
        code = (await authorize(ledger))["code"]
        start = ledger.clock.now
        (grant,) = (await ledger.operator("issuer", "GET", "/grants")).json()["grants"]
        assert ("active", "alice", "read openid profile") == (grant["status"], grant["subject"], grant["scope"])
        assert "generation" not in grant
        assert grant["absolute_expires_at"] == times.text(start + 60_000_000)
        ledger.clock.pass_seconds(61)
        (grant,) = (await ledger.operator("issuer", "GET", "/grants?state=expired")).json()["grants"]
        assert ("expiry", grant["absolute_expires_at"]) == (grant["end"]["reason_class"], grant["end"]["at"])
        assert 400 == (await exchange(ledger, code)).status_code
        assert "event_id" in (await ledger.operator("issuer", "GET", f"/grants/{grant['grant_id']}")).json()["end"]

        other = (await authorize(ledger, subject="bob"))["code"]
        grants = (await ledger.operator("issuer", "POST", "/grants/search", {"subject": "bob"})).json()["grants"]
        path = f"/grants/{grants[0]['grant_id']}"
        assert 200 == (await ledger.operator("issuer", "POST", f"{path}/revoke", {"reason": "no"})).status_code
        assert "revoked_by_operator" == (await exchange(ledger, other)).json()["reason"]


async def test_a_grant_of_the_code_flow_is_told_as_of_any_moment(tmp_path: Path) -> None:
    """`issued_at` is the sign-in's; as of a moment between sign-in and exchange there is no generation."""
    async with asking(tmp_path) as ledger:
        code = (await authorize(ledger))["code"]
        ledger.clock.pass_seconds(10)
        between = times.text(ledger.clock.now)
        ledger.clock.pass_seconds(10)
        await exchange(ledger, code)
        ledger.clock.pass_seconds(10)
        (grant,) = (await ledger.operator("security", "GET", "/grants")).json()["grants"]
        assert ("active", 0) == (grant["status"], grant["generation"])
        path = f"/grants/{grant['grant_id']}/events"
        then = (await ledger.operator("security", "GET", path, headers=None)).json()
        assert "session" not in then["events"][0]["data"]
        state = (await ledger.operator("security", "GET", f"{path}?at={between}")).json()["state"]
        assert ("active", grant["issued_at"]) == (state["status"], state["issued_at"])
        assert "generation" not in state
        assert grant["idle_expires_at"] > state["idle_expires_at"]


async def test_a_code_is_never_a_token(tmp_path: Path) -> None:
    """Nor a token a code: each endpoint takes what it is for."""
    async with asking(tmp_path) as ledger:
        code = (await authorize(ledger))["code"]
        assert "invalid_grant" == (await ledger.refresh("code", code)).json()["error"]
        assert {"active": False} == (await ledger.form("/introspect", {"token": code, **credentials("code")})).json()
        assert 200 == (await ledger.form("/revoke", {"token": code, **credentials("code")})).status_code
        bought = (await exchange(ledger, code)).json()
        for token in (bought["refresh_token"], bought["access_token"]):
            assert "invalid_grant" == (await exchange(ledger, token)).json()["error"]
        explained = await ledger.operator("security", "POST", "/explain", {"token": code})
        assert ("retired", 0) == (explained.json()["verdict"], explained.json()["current_generation"])


async def test_a_code_presented_from_anywhere_is_judged_alike(tmp_path: Path) -> None:
    """A code is exchanged by the client's server, the person sits elsewhere: contexts decide nothing here."""
    async with asking(tmp_path) as ledger:
        code = (await authorize(ledger))["code"]
        fields = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK, "code_verifier": VERIFIER}
        answer = await ledger.form("/oauth/v2/oauth-token", fields | credentials("code"), address=ELSEWHERE)
        assert 200 == answer.status_code


async def test_the_guides_example_works_as_it_stands(tmp_path: Path) -> None:
    """What the guide posts and exchanges is taken, but for whose client it is; what it says comes is what comes."""
    guide = files("api").joinpath("docs", "sign-in.md").read_text("utf-8")
    posted = re.search(r"-d '(\{.*?\})'", guide, re.DOTALL)
    exchanged = re.search(r"-d grant_type=authorization_code.*?-d code_verifier=(\S+)", guide, re.DOTALL)
    assert posted is not None
    assert exchanged is not None
    async with asking(tmp_path) as ledger:
        body = json.loads(posted[1]) | {"client_id": "code"}
        answer = await ledger.operator("issuer", "POST", "/authorizations", body)
        assert 201 == answer.status_code
        code = answer.json()["code"]
        told = re.search(r'"redirect_to": "(\S+)"', guide)
        assert told is not None
        issuer = urlencode({"iss": ISSUER_URL})
        expected = told[1].replace("ac1_…", code).replace("iss=https%3A%2F%2Flocalhost%3A8443", issuer)
        assert expected == answer.json()["redirect_to"]
        assert 200 == (await exchange(ledger, code, code_verifier=exchanged[1])).status_code


KEY, OTHER_KEY = new_key(), new_key()


def shown(ledger: Asking, key: Key) -> dict[str, str]:
    """A DPoP proof for the token endpoint, made now."""
    return {"DPoP": proof(key, f"{ISSUER_URL}/token", iat=ledger.clock.now // SECOND)}


async def exchange_with(ledger: Asking, code: str, client: str, key: Key | None) -> httpx2.Response:
    """Exchange a code, or refresh a token, with a key shown."""
    kind = {"grant_type": "refresh_token", "refresh_token": code}
    if code.startswith("ac1_"):
        kind = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK, "code_verifier": VERIFIER}
    headers = None if key is None else shown(ledger, key)
    return await ledger.form("/token", kind | credentials(client), headers=headers)


@pytest.mark.parametrize("client", ["code", "page"])
async def test_a_key_named_at_the_sign_in_must_be_shown(tmp_path: Path, client: str) -> None:
    """RFC 9449 10, DP-7: no key and another key are refused alike, the code lives; the right one binds what it buys."""
    async with asking(tmp_path, more=PAGE) as ledger:
        code = (await authorize(ledger, client, dpop_jkt=thumbprint(KEY)))["code"]
        for key in (None, OTHER_KEY):
            refused = await exchange_with(ledger, code, client, key)
            assert (400, "invalid_grant") == (refused.status_code, refused.json()["error"])
        bought = await exchange_with(ledger, code, client, KEY)
        assert (200, "DPoP") == (bought.status_code, bought.json()["token_type"])
        # A confidential client may change keys from here on, a public one may not (DP-3, DP-4).
        other = await exchange_with(ledger, bought.json()["refresh_token"], client, OTHER_KEY)
        assert (200 if client == "code" else 400) == other.status_code


async def test_a_public_client_binds_its_grant_by_the_key_it_shows(tmp_path: Path) -> None:
    """RFC 9449 5: nothing was named at the sign-in, the exchange decides."""
    async with asking(tmp_path, more=PAGE) as ledger:
        bought = (await exchange_with(ledger, (await authorize(ledger, "page"))["code"], "page", KEY)).json()
        assert "DPoP" == bought["token_type"]
        for key, status in ((None, 400), (OTHER_KEY, 400), (KEY, 200)):
            assert status == (await exchange_with(ledger, bought["refresh_token"], "page", key)).status_code
        unbound = (await exchange_with(ledger, (await authorize(ledger, "page"))["code"], "page", None)).json()
        assert "bearer" == unbound["token_type"]
        assert 200 == (await exchange_with(ledger, unbound["refresh_token"], "page", None)).status_code


async def test_the_audience_of_the_sign_in_is_kept(tmp_path: Path) -> None:
    """casdoor#5744, rauthy#1645: both resources where none is asked for, one on demand, no third; in JWTs."""
    both = ["https://api.example", "https://files.example"]
    async with asking(tmp_path, more=PAGE) as ledger:
        code = (await authorize(ledger, "jwts", resource=both, auth_time=1_764_000_000))["code"]
        assert (
            "invalid_target" == (await exchange(ledger, code, "jwts", resource="https://third.example")).json()["error"]
        )
        bought = (await exchange(ledger, code, "jwts", resource=both[1])).json()
        claims = claims_of(bought["access_token"])
        assert (both[1], "alice", 1_764_000_000) == (claims["aud"], claims["sub"], claims["auth_time"])
        kept = (await refresh(ledger, "jwts", bought["refresh_token"])).json()
        assert both == claims_of(kept["access_token"])["aud"]
        third = await refresh(ledger, "jwts", kept["refresh_token"], resource="https://third.example")
        assert "invalid_target" == third.json()["error"]
        narrowed = (await refresh(ledger, "jwts", kept["refresh_token"], resource=both[0])).json()
        assert both[0] == claims_of(narrowed["access_token"])["aud"]


async def test_a_rebuild_finds_sign_ins_as_they_are(tmp_path: Path) -> None:
    """I-13: abandoned, exchanged, without a refresh token, used twice: the replay differs in no row."""
    async with asking(tmp_path) as ledger:
        await authorize(ledger)
        for client, scope, times_used in (("code", "read", 1), ("code", "read", 2), ("offline", "read openid", 1)):
            code = (await authorize(ledger, client, scope=scope))["code"]
            for _ in range(times_used):
                await exchange(ledger, code, client)
        answer = await ledger.ask("POST", "/local/rebuild", local=True, json={})
        told = [json.loads(line) for line in answer.text.splitlines()]
        assert [] == told[-1]["differences"], told[-1]
