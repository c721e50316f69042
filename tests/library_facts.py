"""What client libraries do, as test_libraries.py measures it, and the two tables of it that the guide shows."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Facts:
    """One library in its usual setting."""

    package: str | None
    """Its name on its index; None for a program of the system's."""
    auth: str
    """How it sends its secret unless told otherwise, and so what its client is registered with."""
    scope: str
    """What a plain refresh asks for: `all` that it holds, or `none`."""
    signs_in: bool
    """Whether it can exchange a code (RFC 6749 4.1) with a proof of its own (RFC 7636)."""
    less: bool
    """Whether it can be told to ask for less scope."""
    new_token: str
    """`kept` for the next refresh, `returned` for its caller to keep, or `ignored`."""
    lost: str
    """What it raises where the answer did not come; empty where it tries again by itself."""
    busy: str
    """What it raises for a 503; empty where it tries again by itself."""
    refused: str
    """What it raises for `invalid_grant`, and where that carries the code."""
    code: str
    wrong_secret: str
    """What it raises for `invalid_client`."""
    openid: str = ""
    """What it raises where a sign-in asked for `openid` and no ID token came; empty where it goes on without."""
    policy: str = "standard"
    """The preset that suits it."""


BASIC, POST, PUBLIC = "client_secret_basic", "client_secret_post", "none"

FACTS = {
    "Authlib, requests": Facts(
        package="authlib",
        auth=BASIC,
        scope="all",
        signs_in=True,
        less=True,
        new_token="kept",
        lost="ConnectionError",
        busy="HTTPError",
        refused="OAuthError",
        code=".error",
        wrong_secret="OAuthError",
    ),
    "Authlib, httpx": Facts(
        package="authlib",
        auth=BASIC,
        scope="all",
        signs_in=True,
        less=True,
        new_token="kept",
        lost="RemoteProtocolError or ReadError",
        busy="HTTPStatusError",
        refused="OAuthError",
        code=".error",
        wrong_secret="OAuthError",
    ),
    "requests-oauthlib": Facts(
        package="requests-oauthlib",
        auth=BASIC,
        scope="all",
        signs_in=True,
        less=True,
        new_token="kept",
        lost="ConnectionError",
        busy="TemporarilyUnavailableError",
        refused="InvalidGrantError",
        code=".error",
        wrong_secret="InvalidClientError",
    ),
    "httpx-oauth": Facts(
        package="httpx-oauth",
        auth=POST,
        scope="none",
        signs_in=True,
        less=False,
        new_token="returned",
        lost="RefreshTokenError",
        busy="RefreshTokenError",
        refused="RefreshTokenError",
        code=".response",
        wrong_secret="RefreshTokenError",
    ),
    "google-auth": Facts(
        package="google-auth",
        auth=POST,
        scope="all",
        signs_in=False,
        less=True,
        new_token="kept",
        lost="TransportError",
        busy="",
        refused="RefreshError",
        code=".args[1]",
        wrong_secret="RefreshError",
    ),
    "requests_oauth2client": Facts(
        package="requests-oauth2client",
        auth=POST,
        scope="none",
        signs_in=True,
        less=True,
        new_token="returned",
        lost="ConnectionError",
        busy="UnknownTokenEndpointError",
        refused="InvalidGrant",
        code=".error",
        wrong_secret="InvalidClient",
    ),
    "curl": Facts(
        package=None,
        auth=POST,
        scope="none",
        signs_in=True,
        less=True,
        new_token="returned",
        lost="exit 56",
        busy="exit 22",
        refused="exit 22",
        code="the body",
        wrong_secret="exit 22",
    ),
    "curl --retry": Facts(
        package=None,
        auth=POST,
        scope="none",
        signs_in=True,
        less=True,
        new_token="returned",
        lost="",
        busy="",
        refused="exit 22",
        code="the body",
        wrong_secret="exit 22",
    ),
    "openid-client": Facts(
        package="openid-client",
        auth=POST,
        scope="none",
        signs_in=True,
        less=True,
        new_token="returned",
        lost="TypeError",
        busy="ClientError",
        refused="ResponseBodyError",
        code=".error",
        wrong_secret="ResponseBodyError",
    ),
    "openid-client, Basic": Facts(
        package="openid-client",
        auth=BASIC,
        scope="none",
        signs_in=True,
        less=True,
        new_token="returned",
        lost="TypeError",
        busy="ClientError",
        refused="ResponseBodyError",
        code=".error",
        wrong_secret="WWWAuthenticateChallengeError",
    ),
    "oauth4webapi": Facts(
        package="oauth4webapi",
        auth=BASIC,
        scope="none",
        signs_in=True,
        less=True,
        new_token="returned",
        lost="TypeError",
        busy="OperationProcessingError",
        refused="ResponseBodyError",
        code=".error",
        wrong_secret="WWWAuthenticateChallengeError",
    ),
    "simple-oauth2": Facts(
        package="simple-oauth2",
        auth=BASIC,
        scope="none",
        signs_in=True,
        less=True,
        new_token="returned",
        lost="Error",
        busy="Error",
        refused="Error",
        code=".data.payload",
        wrong_secret="Error",
    ),
    "oidc-client-ts": Facts(
        package="oidc-client-ts",
        auth=POST,
        scope="all",
        signs_in=True,
        less=True,
        new_token="kept",
        lost="TypeError",
        busy="ErrorResponse",
        refused="ErrorResponse",
        code=".error",
        wrong_secret="ErrorResponse",
        openid="InvalidTokenError",
    ),
    "oidc-client-ts, public": Facts(
        package="oidc-client-ts",
        auth=PUBLIC,
        scope="all",
        signs_in=True,
        less=True,
        new_token="kept",
        lost="TypeError",
        busy="ErrorResponse",
        refused="ErrorResponse",
        code=".error",
        wrong_secret="(no secret)",
        openid="InvalidTokenError",
    ),
    "google-auth-library": Facts(
        package="google-auth-library",
        auth=POST,
        scope="none",
        signs_in=True,
        less=False,
        new_token="ignored",
        lost="",
        busy="",
        refused="GaxiosError",
        code=".response.data",
        wrong_secret="GaxiosError",
        policy="stable",
    ),
}


@dataclass(frozen=True)
class Keyed:
    """One library that authenticates by assertions (RFC 7523)."""

    package: str
    audience: str
    """What its assertions name: the `issuer`, or as of old the token endpoint, for which `legacy` is the setting."""
    proofs: str
    """Who answers a wish for a nonce with another proof (RFC 9449 8): `library`, `caller`; `none` has no proofs."""
    refused: str
    """What it raises for `invalid_grant`."""
    wrong_key: str
    """What it raises for `invalid_client`."""


KEYED = {
    "Authlib, requests": Keyed("authlib", "legacy", "none", "OAuthError", "OAuthError"),
    "requests_oauth2client": Keyed("requests-oauth2client", "legacy", "library", "InvalidGrant", "InvalidClient"),
    "openid-client, keys": Keyed("openid-client", "issuer", "library", "ResponseBodyError", "ResponseBodyError"),
    "oauth4webapi, keys": Keyed("oauth4webapi", "issuer", "caller", "ResponseBodyError", "ResponseBodyError"),
}


def pinned(package: str) -> str:
    """Return the version of a package that the trials are pinned to."""
    pins = (HERE.parent / ".ci" / "requirements.txt").read_text("utf-8")
    if found := re.search(rf"^{re.escape(package)}==(\S+)", pins, re.MULTILINE):
        return found[1]
    wanted = json.loads((HERE / "node" / "package.json").read_text("utf-8"))["dependencies"]
    return str(wanted[package])


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "    " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in lines
    )


def tables() -> tuple[str, str, str]:
    """Return what the guide shows: how each library refreshes and what suits it, and what it raises, twice."""
    does = _table(
        ("library", "tried", "policy", "auth", "signs in", "asks for scope", "less scope", "new token"),
        (
            (
                name, pinned(facts.package) if facts.package else "any", facts.policy, facts.auth,
                "yes" if facts.signs_in else "no", facts.scope, "yes" if facts.less else "no", facts.new_token,
            )
            for name, facts in FACTS.items()
        ),
    )  # fmt: skip
    waits = _table(
        ("library", "no answer came", "503"),
        ((name, facts.lost or "(tries again)", facts.busy or "(tries again)") for name, facts in FACTS.items()),
    )
    refused = _table(
        ("library", "invalid_grant", "its code in", "invalid_client"),
        ((name, facts.refused, facts.code, facts.wrong_secret) for name, facts in FACTS.items()),
    )
    return does, waits, refused


def keyed_table() -> str:
    """Return what the guide shows of libraries that sign."""
    return _table(
        ("library", "tried", "assertion_audience", "DPoP nonces by", "invalid_grant", "invalid_client"),
        (
            (
                name.removesuffix(", keys"),
                pinned(facts.package),
                facts.audience,
                facts.proofs if facts.proofs != "none" else "(no DPoP)",
                facts.refused,
                facts.wrong_key,
            )
            for name, facts in KEYED.items()
        ),
    )
