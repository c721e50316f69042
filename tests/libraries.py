"""Client libraries of others, unmodified, each behind the same few calls: what it holds is its own business."""

import asyncio
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

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


@dataclass(frozen=True)
class Place:
    """Where a library finds the server and what it is registered as there; whom to trust stands in the environment."""

    issuer: str
    client_id: str
    secret: str = field(repr=False)

    @property
    def token_url(self) -> str:
        """Where tokens are, for libraries that look nothing up (the others read the metadata, RFC 8414)."""
        return self.issuer + TOKEN_PATH


class Library(Protocol):
    """One client as an application uses it: it is given a token response once, and keeps what it keeps."""

    def __init__(self, place: Place, tokens: Json) -> None: ...

    def refresh(self) -> str:
        """Refresh with what the library holds; return the refresh token that it would use next."""

    def narrow(self, scope: str) -> str:
        """Refresh for less scope, where the library can say so; return the scope it was told."""

    def close(self) -> None:
        """Close what connections the library keeps."""


class AuthlibWithRequests:
    def __init__(self, place: Place, tokens: Json) -> None:
        self.session = AuthlibRequests(place.client_id, place.secret, token=tokens)
        self.url = place.token_url

    def refresh(self) -> str:
        self.session.refresh_token(self.url)
        return str(self.session.token["refresh_token"])

    def narrow(self, scope: str) -> str:
        return str(self.session.refresh_token(self.url, scope=scope)["scope"])

    def close(self) -> None:
        self.session.close()


class AuthlibWithHttpx:
    def __init__(self, place: Place, tokens: Json) -> None:
        self.client = AuthlibHttpx(place.client_id, place.secret, token=tokens)
        self.url = place.token_url

    def refresh(self) -> str:
        self.client.refresh_token(self.url)
        return str(self.client.token["refresh_token"])

    def narrow(self, scope: str) -> str:
        return str(self.client.refresh_token(self.url, scope=scope)["scope"])

    def close(self) -> None:
        self.client.close()


class RequestsOauthlib:
    def __init__(self, place: Place, tokens: Json) -> None:
        self.session = requests_oauthlib.OAuth2Session(place.client_id, token=tokens, scope=SCOPE.split())
        self.place = place

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
    def __init__(self, place: Place, tokens: Json) -> None:
        self.client: httpx_oauth.oauth2.BaseOAuth2[Json] = httpx_oauth.oauth2.BaseOAuth2(
            place.client_id, place.secret, "https://unused.example", place.token_url, place.token_url
        )
        self.token = str(tokens["refresh_token"])  # the library keeps nothing: its caller does

    def refresh(self) -> str:
        self.token = str(asyncio.run(self.client.refresh_token(self.token))["refresh_token"])
        return self.token

    def narrow(self, scope: str) -> str:
        raise NotImplementedError(f"no way to ask for {scope}")

    def close(self) -> None:
        pass  # it has a connection for each call


class GoogleAuth:
    def __init__(self, place: Place, tokens: Json) -> None:
        self.place = place
        self.session = requests.Session()
        self.request = google.auth.transport.requests.Request(self.session)  # type: ignore[no-untyped-call]
        self.credentials = self._holding(tokens["refresh_token"], SCOPE)

    def _holding(self, token: str, scope: str) -> google.oauth2.credentials.Credentials:
        return google.oauth2.credentials.Credentials(  # type: ignore[no-untyped-call]
            None,
            refresh_token=token,
            token_uri=self.place.token_url,
            client_id=self.place.client_id,
            client_secret=self.place.secret,
            scopes=scope.split(),
        )

    def refresh(self) -> str:
        self.credentials.refresh(self.request)  # type: ignore[no-untyped-call]
        return str(self.credentials.refresh_token)

    def narrow(self, scope: str) -> str:
        self.credentials = self._holding(str(self.credentials.refresh_token), scope)
        self.refresh()
        return " ".join(self.credentials.granted_scopes)

    def close(self) -> None:
        self.session.close()


class RequestsOauth2client:
    def __init__(self, place: Place, tokens: Json) -> None:
        self.client = requests_oauth2client.OAuth2Client.from_discovery_endpoint(
            issuer=place.issuer, client_id=place.client_id, client_secret=place.secret
        )
        self.token = requests_oauth2client.BearerToken(**tokens)  # the library keeps nothing: its caller does

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

    def __init__(self, place: Place, tokens: Json, options: tuple[str, ...] = ()) -> None:
        self.place = place
        self.token = str(tokens["refresh_token"])
        self.options = options

    def refresh(self) -> str:
        return str(self._ask()["refresh_token"])

    def narrow(self, scope: str) -> str:
        return str(self._ask(scope=scope)["scope"])

    def _ask(self, **more: str) -> Json:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": self.token,
            "client_id": self.place.client_id,
            "client_secret": self.place.secret,
            **more,
        }
        pairs = [word for name, value in form.items() for word in ("-d", f"{name}={value}")]
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


PYTHON: dict[str, Callable[[Place, Json], Library]] = {
    "Authlib, requests": AuthlibWithRequests,
    "Authlib, httpx": AuthlibWithHttpx,
    "requests-oauthlib": RequestsOauthlib,
    "httpx-oauth": HttpxOauth,
    "google-auth": GoogleAuth,
    "requests_oauth2client": RequestsOauth2client,
    "curl": Curl,
    "curl --retry": partial(Curl, options=("--retry", "2", "--retry-all-errors")),
}
