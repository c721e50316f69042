"""Client libraries that authenticate by keys: the same calls, but that a place's secret is a private key (RFC 7517)."""

import json
from typing import Any

import requests
import requests_oauth2client
from authlib.integrations.requests_client import OAuth2Session as AuthlibRequests
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from joserfc.jwk import ECKey

from tests.libraries import METADATA_PATH, Place, RequestsOauth2client
from tests.wire import Json


class AuthlibByAssertion:
    """Authlib signs assertions; it has no proofs of possession."""

    def __init__(self, place: Place, tokens: Json = None) -> None:
        jwk = json.loads(place.secret)
        self.url = place.token_url
        self.session = AuthlibRequests(
            place.client_id, ECKey.import_key(jwk), token=tokens, token_endpoint_auth_method="private_key_jwt"
        )
        method = PrivateKeyJWT(self.url, headers={"kid": jwk["kid"]}, alg="ES256")
        self.session.register_client_auth_method(method)

    def refresh(self) -> str:
        self.session.refresh_token(self.url)
        return str(self.session.token["refresh_token"])

    def close(self) -> None:
        self.session.close()


class RequestsOauth2clientByKeys(RequestsOauth2client):
    """requests_oauth2client signs assertions and proofs."""

    def __init__(self, place: Place, tokens: Json = None, **how: Any) -> None:
        self.client = requests_oauth2client.OAuth2Client.from_discovery_document(
            requests.get(place.issuer + METADATA_PATH, timeout=30).json(),
            issuer=place.issuer,
            auth=requests_oauth2client.PrivateKeyJwt(place.client_id, json.loads(place.secret), alg="ES256", **how),
            dpop_bound_access_tokens=True,
        )
        key = requests_oauth2client.DPoPKey.generate("ES256")
        self.token = requests_oauth2client.DPoPToken(**tokens | {"token_type": "DPoP"}, _dpop_key=key)
