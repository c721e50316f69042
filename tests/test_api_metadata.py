"""Metadata (RFC 8414, MD-1 to MD-5): where it is, and that it claims what works and nothing else."""

from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from api.dpop import ALGORITHMS
from api.metadata import JWKS, OAUTH_PLACE, OPENID_PLACE, auth_methods, metadata, places, sees_certificates, url
from api.settings import Settings
from ledger.head_file import Acknowledged
from ledger.registration import ASSERTION_ALGS, AUTHS
from tests.asking import ISSUER_URL, Asking, asking, credentials
from tests.wire import Json

FILE = Path("a.pem")
BEHIND: dict[str, Json] = {"tls_client_cert_header": "client-cert", "trusted_proxies": (ip_network("10.0.0.0/8"),)}
EVERY: dict[str, Json] = {
    "authorization_endpoint": "https://login.example/authorize?for=all",
    "grant_types": ("refresh_token", "authorization_code"),
    "auth_methods": ("none", "client_secret_basic", "private_key_jwt"),
    "assertion_algs": ("PS256", "ES256"),
    "dpop_algs": ("ES256",),
    "binds_to_certificates": True,
}


def told(issuer: str = ISSUER_URL, **about: Json) -> Json:
    """The metadata as JSON; what is not given is as little as there can be."""
    least = {"grant_types": ("refresh_token",), "auth_methods": ("none",)}
    return msgspec.to_builtins(metadata(issuer, **{**least, **about}))


async def found(ledger: Asking, path: str = OAUTH_PLACE) -> Json:
    """The metadata as it is served at a path."""
    answer = await ledger.ask("GET", path)
    assert (200, "application/json") == (answer.status_code, answer.headers["content-type"])
    return answer.json()


def test_the_least_that_can_be_said_is_said_without_an_empty_list() -> None:
    """MD-4: no list is empty, no member null; MD-3: the grant types are always told."""
    assert {
        "issuer": "https://ledger.example",
        "token_endpoint": "https://ledger.example/oauth/v2/oauth-token",
        "token_endpoint_auth_methods_supported": ["none"],
        "revocation_endpoint": "https://ledger.example/oauth/v2/oauth-revoke",
        "revocation_endpoint_auth_methods_supported": ["none"],
        "introspection_endpoint": "https://ledger.example/oauth/v2/oauth-introspect",
        "introspection_endpoint_auth_methods_supported": ["none"],
        "jwks_uri": "https://ledger.example/oauth/v2/jwks",
        "grant_types_supported": ["refresh_token"],
        "refresh_token_expiration_types_supported": ["authorization", "credential"],
        "service_documentation": "https://ledger.example/docs",
    } == told()


def test_all_that_there_can_be_is_said_where_it_is_there() -> None:
    """MD-2: algorithms beside every endpoint once a method signs; MD-5: response types once there are codes."""
    algorithms = ["PS256", "ES256"]
    methods = ["client_secret_basic", "none", "private_key_jwt"]
    assert told() | {
        "token_endpoint_auth_methods_supported": methods,
        "token_endpoint_auth_signing_alg_values_supported": algorithms,
        "revocation_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_signing_alg_values_supported": algorithms,
        "introspection_endpoint_auth_methods_supported": methods,
        "introspection_endpoint_auth_signing_alg_values_supported": algorithms,
        "authorization_endpoint": "https://login.example/authorize?for=all",
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": True,
        "dpop_signing_alg_values_supported": ["ES256"],
        "tls_client_certificate_bound_access_tokens": True,
    } == told(**EVERY)


def test_algorithms_of_assertions_are_told_only_where_one_may_be_sent() -> None:
    """RFC 8414 2: they belong to private_key_jwt."""
    assert not [name for name in told(assertion_algs=("ES256",)) if "signing_alg" in name]


@pytest.mark.parametrize(
    ("issuer", "expected"),
    [
        ("https://a.example", (OAUTH_PLACE, OPENID_PLACE)),
        ("https://a.example/", (OAUTH_PLACE, OPENID_PLACE)),
        (
            "https://a.example/tenant/one",
            (
                "/.well-known/oauth-authorization-server",
                "/.well-known/openid-configuration",
                "/.well-known/oauth-authorization-server/tenant/one",
                "/.well-known/openid-configuration/tenant/one",
                "/tenant/one/.well-known/openid-configuration",
            ),
        ),
        (
            "https://a.example:8443/a%20b/",
            (
                "/.well-known/oauth-authorization-server",
                "/.well-known/openid-configuration",
                "/.well-known/oauth-authorization-server/a b",
                "/.well-known/openid-configuration/a b",
                "/a b/.well-known/openid-configuration",
            ),
        ),
    ],
)
def test_the_issuers_path_stands_behind_the_well_known_name(issuer: str, expected: tuple[str, ...]) -> None:
    """RFC 8414 3.1 and 5, as paths arrive here: unescaped."""
    assert expected == places(issuer)


def test_a_slash_at_the_issuers_end_is_not_doubled_and_stays_the_issuers() -> None:
    """The issuer is compared character by character (RFC 8414 3.3); endpoints have one slash."""
    assert "https://a.example/x/token" == url("https://a.example/x/", "/token")
    assert "https://a.example/x/" == told("https://a.example/x/")["issuer"]


async def test_it_is_served_at_every_place_and_says_the_same(tmp_path: Path) -> None:
    """MD-1, also for an issuer with a path; any other method is 405, a slash more is another path."""
    issuer = "https://ledger.example/tenant"
    async with asking(tmp_path, settings=Settings(issuer=issuer)) as ledger:
        expected = await found(ledger)
        assert issuer == expected["issuer"]
        for place in places(issuer):
            assert expected == await found(ledger, place)
            assert (405, "GET, HEAD") == _refused(await ledger.ask("POST", place))
            assert 404 == (await ledger.ask("GET", place + "/")).status_code
            assert 200 == (await ledger.ask("HEAD", place)).status_code


def _refused(answer: Json) -> tuple[int, str]:
    return answer.status_code, answer.headers["allow"]


async def test_every_endpoint_that_is_told_is_there(tmp_path: Path) -> None:
    """V95: nothing leads to 404."""
    async with asking(tmp_path) as ledger:
        about = await found(ledger)
        leads = {name: value for name, value in about.items() if name.endswith(("_endpoint", "_uri", "_documentation"))}
        assert {"token_endpoint", "revocation_endpoint", "introspection_endpoint"} <= set(leads)
        for name, value in leads.items():
            method = "POST" if name.endswith("_endpoint") else "GET"
            answer = await ledger.ask(method, urlsplit(value).path)
            assert answer.status_code in (200, 400), (name, answer.status_code)


@pytest.mark.parametrize(
    ("given", "by_certificate"),
    [
        ({}, set()),
        ({"tls_cert": FILE, "tls_key": FILE}, {"self_signed_tls_client_auth"}),
        (
            {"tls_cert": FILE, "tls_key": FILE, "tls_client_ca": FILE},
            {"self_signed_tls_client_auth", "tls_client_auth"},
        ),
        (BEHIND, {"self_signed_tls_client_auth"}),
        ({**BEHIND, "tls_client_ca": FILE}, {"self_signed_tls_client_auth", "tls_client_auth"}),
    ],
)
def test_a_method_is_told_where_it_can_work(given: dict[str, Json], by_certificate: set[str]) -> None:
    """Certificates must be seen, and one that goes by a name be vouched for; the rest always works."""
    chosen = Settings(issuer=ISSUER_URL, **given)
    always = {"client_secret_basic", "client_secret_post", "private_key_jwt", "none"}
    assert always | by_certificate == auth_methods(chosen)
    assert bool(by_certificate) == sees_certificates(chosen)
    assert {*AUTHS} - {"client_secret"} == always | {"self_signed_tls_client_auth", "tls_client_auth"}


async def test_methods_and_algorithms_are_those_that_judge(tmp_path: Path) -> None:
    """MD-2: alike for all three endpoints, and no algorithm is `none` or a secret's."""
    async with asking(tmp_path) as ledger:
        about = await found(ledger)
        for endpoint in ("token", "revocation", "introspection"):
            assert sorted(auth_methods(Settings())) == about[f"{endpoint}_endpoint_auth_methods_supported"]
            algorithms = about[f"{endpoint}_endpoint_auth_signing_alg_values_supported"]
            assert [*ASSERTION_ALGS] == algorithms
            assert not [each for each in algorithms if each == "none" or each.startswith("HS")]
        assert [*ALGORITHMS] == about["dpop_signing_alg_values_supported"]
        assert "tls_client_certificate_bound_access_tokens" not in about


async def test_every_grant_type_that_is_told_is_served_and_no_other(tmp_path: Path) -> None:
    """RFC 6749 5.2: `unsupported_grant_type` is for what is not told."""
    async with asking(tmp_path) as ledger:
        grant_types = (await found(ledger))["grant_types_supported"]
        asked = {"refresh_token", "authorization_code", "client_credentials", "password", "implicit", *grant_types}
        for grant_type in asked:
            answer = await ledger.form("/token", {"grant_type": grant_type, **credentials("www")})
            unsupported = "unsupported_grant_type" == answer.json()["error"]
            assert unsupported == (grant_type not in grant_types), grant_type


async def test_it_is_served_while_the_log_is_behind(tmp_path: Path) -> None:
    """I-23: it says nothing that a lost event could change."""
    async with asking(tmp_path) as ledger:
        ledger.ledger.log_end.behind = Acknowledged(10**6, ledger.clock.now)
        assert ISSUER_URL == (await found(ledger, OPENID_PLACE))["issuer"]


async def test_pages_of_listed_origins_may_read_it(tmp_path: Path) -> None:
    """TE-15: a browser client looks up the endpoints and the keys, too; caches learn that the Origin counts."""
    async with asking(tmp_path) as ledger:
        for method, path, origin, expected in (
            ("GET", OPENID_PLACE, "https://app.example", "https://app.example"),
            ("HEAD", OPENID_PLACE, "https://app.example", "https://app.example"),
            ("GET", JWKS, "https://app.example", "https://app.example"),
            ("GET", JWKS, "https://evil.example", None),
            ("GET", JWKS, "", None),
        ):
            answer = await ledger.ask(method, path, headers={"Origin": origin} if origin else {})
            assert (200, "Origin") == (answer.status_code, answer.headers["vary"])
            assert expected == answer.headers.get("access-control-allow-origin")
        asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
        allowed = await ledger.ask("OPTIONS", OAUTH_PLACE, headers=asked)
        assert (204, "GET, HEAD") == (allowed.status_code, allowed.headers["access-control-allow-methods"])
