"""Client libraries of others, unmodified, each behind the same few calls: what it holds is its own business."""

import asyncio
import json
import secrets
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import ClassVar, Protocol
from urllib.parse import parse_qs, urlencode, urlsplit

import google.auth.transport.requests
import google.oauth2.credentials
import httpx_oauth.oauth2
import requests
import requests_oauth2client
import requests_oauthlib
from authlib.integrations.httpx_client import OAuth2Client as AuthlibHttpx
from authlib.integrations.requests_client import OAuth2Session as AuthlibRequests

from tests.wire import TOKEN_PATH, Json

SCOPE = "read openid profile"
BACK = "https://app.example/back"
SIGN_IN = "https://login.example/authorize"
"""Where people sign in: the operating side's own page. No library fetches it, and the metadata does not know it."""
METADATA_PATH = "/.well-known/oauth-authorization-server"


@dataclass(frozen=True)
class Place:
    """Where a library finds the server and what it is registered as there; whom to trust stands in the environment."""

    issuer: str
    client_id: str
    secret: str = field(repr=False)
    scope: str = "read profile"
    """What a sign-in asks for."""

    @property
    def token_url(self) -> str:
        """Where tokens are, for libraries that look nothing up (the others read the metadata, RFC 8414)."""
        return self.issuer + TOKEN_PATH


class Refreshing(Protocol):
    """A client that has a refresh token and uses it."""

    def refresh(self) -> str:
        """Refresh with what the library holds; return the refresh token that it would use next."""

    def close(self) -> None:
        """Close what connections the library keeps."""


class Library(Refreshing, Protocol):
    """One client as an application uses it. It begins with the token response of an issued grant, or signs in."""

    def __init__(self, place: Place, tokens: Json = None) -> None: ...

    def authorization_url(self) -> str:
        """Begin a sign-in: return where the application sends the person."""

    def exchange(self, redirect_to: str) -> str:
        """End it with the address that the person came back to; return the refresh token that came."""

    def narrow(self, scope: str) -> str:
        """Refresh for less scope, where the library can say so; return the scope it was told."""


def new_verifier() -> str:
    """Return a fresh `code_verifier` (RFC 7636 4.1), for the libraries whose caller makes it."""
    return secrets.token_urlsafe(48)


def challenge_of(verifier: str) -> str:
    return urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def code_in(redirect_to: str) -> str:
    return parse_qs(urlsplit(redirect_to).query)["code"][0]


class AuthlibWithRequests:
    made_by: ClassVar[type[AuthlibRequests] | type[AuthlibHttpx]] = AuthlibRequests

    def __init__(self, place: Place, tokens: Json = None) -> None:
        scope = SCOPE if tokens else place.scope
        pkce = {"redirect_uri": BACK, "code_challenge_method": "S256"}
        self.session = self.made_by(place.client_id, place.secret, scope=scope, token=tokens, **pkce)
        self.url = place.token_url
        self.verifier = new_verifier()

    def authorization_url(self) -> str:
        return str(self.session.create_authorization_url(SIGN_IN, code_verifier=self.verifier)[0])

    def exchange(self, redirect_to: str) -> str:
        back = {"authorization_response": redirect_to, "code_verifier": self.verifier}
        return str(self.session.fetch_token(self.url, **back)["refresh_token"])

    def refresh(self) -> str:
        self.session.refresh_token(self.url)
        return str(self.session.token["refresh_token"])

    def narrow(self, scope: str) -> str:
        self.session.scope = scope
        return str(self.session.refresh_token(self.url)["scope"])

    def close(self) -> None:
        self.session.close()


class AuthlibWithHttpx(AuthlibWithRequests):
    made_by = AuthlibHttpx


class RequestsOauthlib:
    def __init__(self, place: Place, tokens: Json = None) -> None:
        scope = (SCOPE if tokens else place.scope).split()
        self.session = requests_oauthlib.OAuth2Session(
            place.client_id, redirect_uri=BACK, token=tokens, scope=scope, pkce="S256"
        )
        self.place = place

    def authorization_url(self) -> str:
        return str(self.session.authorization_url(SIGN_IN)[0])

    def exchange(self, redirect_to: str) -> str:
        told = self.session.fetch_token(
            self.place.token_url, authorization_response=redirect_to, auth=(self.place.client_id, self.place.secret)
        )
        return str(told["refresh_token"])

    def refresh(self) -> str:
        told = self.session.refresh_token(self.place.token_url, auth=(self.place.client_id, self.place.secret))
        return str(told["refresh_token"])

    def narrow(self, scope: str) -> str:
        self.session.scope = scope.split()
        self.refresh()
        return " ".join(self.session.token["scope"])

    def close(self) -> None:
        self.session.close()


class HttpxOauth:
    def __init__(self, place: Place, tokens: Json = None) -> None:
        self.client: httpx_oauth.oauth2.BaseOAuth2[Json] = httpx_oauth.oauth2.BaseOAuth2(
            place.client_id, place.secret, SIGN_IN, place.token_url, place.token_url
        )
        self.scope = place.scope.split()
        self.token = str(tokens["refresh_token"]) if tokens else ""  # the library keeps nothing: its caller does
        self.verifier = new_verifier()

    def authorization_url(self) -> str:
        return asyncio.run(
            self.client.get_authorization_url(
                BACK,
                scope=self.scope,
                code_challenge=challenge_of(self.verifier),
                code_challenge_method="S256",
            )
        )

    def exchange(self, redirect_to: str) -> str:
        told = asyncio.run(self.client.get_access_token(code_in(redirect_to), BACK, self.verifier))
        self.token = str(told["refresh_token"])
        return self.token

    def refresh(self) -> str:
        self.token = str(asyncio.run(self.client.refresh_token(self.token))["refresh_token"])
        return self.token

    def narrow(self, scope: str) -> str:
        raise NotImplementedError(f"no way to ask for {scope}")

    def close(self) -> None:
        pass  # it has a connection for each call


class GoogleAuth:
    def __init__(self, place: Place, tokens: Json = None) -> None:
        self.place = place
        self.session = requests.Session()
        self.request = google.auth.transport.requests.Request(self.session)
        self.credentials = self._holding(tokens["refresh_token"] if tokens else "", SCOPE)

    def authorization_url(self) -> str:
        raise NotImplementedError("no sign-in")

    def exchange(self, redirect_to: str) -> str:
        raise NotImplementedError("no sign-in")

    def _holding(self, token: str, scope: str) -> google.oauth2.credentials.Credentials:
        return google.oauth2.credentials.Credentials(
            None,
            refresh_token=token,
            token_uri=self.place.token_url,
            client_id=self.place.client_id,
            client_secret=self.place.secret,
            scopes=scope.split(),
        )

    def refresh(self) -> str:
        self.credentials.refresh(self.request)
        return str(self.credentials.refresh_token)

    def narrow(self, scope: str) -> str:
        self.credentials = self._holding(str(self.credentials.refresh_token), scope)
        self.refresh()
        return " ".join(self.credentials.granted_scopes)

    def close(self) -> None:
        self.session.close()


class RequestsOauth2client:
    def __init__(self, place: Place, tokens: Json = None) -> None:
        self.client = requests_oauth2client.OAuth2Client.from_discovery_document(
            requests.get(place.issuer + METADATA_PATH, timeout=30).json(),
            issuer=place.issuer,
            client_id=place.client_id,
            client_secret=place.secret,
            redirect_uri=BACK,
        )
        # The library keeps nothing: its caller does.
        self.token = requests_oauth2client.BearerToken(**(tokens or {"access_token": "none yet"}))
        self.scope = place.scope
        self.request: requests_oauth2client.AuthorizationRequest | None = None

    def authorization_url(self) -> str:
        self.request = self.client.authorization_request(scope=self.scope)
        return self.request.uri

    def exchange(self, redirect_to: str) -> str:
        assert self.request is not None
        self.token = self.client.authorization_code(self.request.validate_callback(redirect_to))
        return str(self.token.refresh_token)

    def refresh(self) -> str:
        self.token = self.client.refresh_token(self.token)
        return str(self.token.refresh_token)

    def narrow(self, scope: str) -> str:
        self.token = self.client.refresh_token(self.token, scope=scope)
        return str(self.token.scope)

    def close(self) -> None:
        self.client.session.close()


class CurlError(Exception):
    """cURL ended with an exit code other than 0; `code` is the server's, where it gave one."""

    def __init__(self, exit_code: int, code: str | None) -> None:
        super().__init__(f"exit {exit_code}")
        self.thrown = f"exit {exit_code}"
        self.code = code


class Curl:
    """The command line, with the next token taken from the answer as a script takes it."""

    def __init__(self, place: Place, tokens: Json = None, options: tuple[str, ...] = ()) -> None:
        self.place = place
        self.token = str(tokens["refresh_token"]) if tokens else ""
        self.options = options
        self.verifier = new_verifier()

    def authorization_url(self) -> str:
        query = {"response_type": "code", "client_id": self.place.client_id, "redirect_uri": BACK}
        query |= {
            "scope": self.place.scope,
            "code_challenge": challenge_of(self.verifier),
            "code_challenge_method": "S256",
        }
        return f"{SIGN_IN}?{urlencode(query)}"

    def exchange(self, redirect_to: str) -> str:
        code = {"grant_type": "authorization_code", "code": code_in(redirect_to)}
        return str(self._ask(**code, redirect_uri=BACK, code_verifier=self.verifier)["refresh_token"])

    def refresh(self) -> str:
        return str(self._ask(grant_type="refresh_token", refresh_token=self.token)["refresh_token"])

    def narrow(self, scope: str) -> str:
        return str(self._ask(grant_type="refresh_token", refresh_token=self.token, scope=scope)["scope"])

    def _ask(self, **more: str) -> Json:
        form = {
            "client_id": self.place.client_id,
            "client_secret": self.place.secret,
            **more,
        }
        pairs = [word for name, value in form.items() if value for word in ("--data-urlencode", f"{name}={value}")]
        run = subprocess.run(
            ["curl", "-sS", "--fail-with-body", *self.options, self.place.token_url, *pairs],
            capture_output=True,
            timeout=60,
            check=False,
        )
        body = json.loads(b"{" + (run.stdout.rpartition(b"{")[2] or b"}"))  # the last one's, where it asked again
        if run.returncode:
            raise CurlError(run.returncode, body.get("error"))
        self.token = body["refresh_token"]
        return body

    def close(self) -> None:
        pass


PYTHON: dict[str, Callable[..., Library]] = {
    "Authlib, requests": AuthlibWithRequests,
    "Authlib, httpx": AuthlibWithHttpx,
    "requests-oauthlib": RequestsOauthlib,
    "httpx-oauth": HttpxOauth,
    "google-auth": GoogleAuth,
    "requests_oauth2client": RequestsOauth2client,
    "curl": Curl,
    "curl --retry": partial(Curl, options=("--retry", "2", "--retry-all-errors")),
}
