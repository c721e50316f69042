"""What can be asked over HTTP, as data: the words, parameters, bodies and answers of the OpenAPI document."""

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

import msgspec

from api import shapes
from api.assertions import ASSERTION_CHARACTERS_MAX, JWT_BEARER
from api.grants import READERS, SEE_ALL
from api.operators import ADMIN, ISSUER, SECURITY
from ledger.answers import Explanation
from ledger.standing import Status
from projections.grant_history import History
from projections.grant_views import GrantPage, GrantView
from projections.reuse_incidents import IncidentPage

Json = Any
Content = type[Any] | str | None
"""What an answer holds: JSON of this type, text of this media type, or nothing."""

CLIENT_ERRORS: Final = (400, 401, 405, 413, 429, 503)
LOOK_ERRORS: Final = (400, 401, 403, 405, 429, 503)
ACT_ERRORS: Final = (*LOOK_ERRORS, 413)


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one endpoint, on all its paths. `caller` is who may ask; nobody in particular where empty."""

    name: str
    paths: tuple[str, ...]
    method: Literal["get", "post"]
    tag: str
    text: str
    caller: Literal["client", "operator", "either", ""] = ""
    roles: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    form: str = ""
    body: type[Any] | None = None
    body_may_be_empty: bool = False
    answers: Mapping[int, tuple[str, Content]]
    errors: tuple[int, ...] = ()


def _parameter(name: str, place: str, text: str, schema: Json) -> Json:
    return {"name": name, "in": place, "required": place == "path", "description": text, "schema": schema}


_TEXT: Final = {"type": "string"}
_GRANT_ID: Final = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_STATES: Final = list(get_args(Status))

PARAMETERS: Final[dict[str, Json]] = {
    "grant_id": _parameter("grant_id", "path", "32 lower-case hex digits.", _GRANT_ID),
    "id": _parameter("id", "path", "A client's id.", _TEXT),
    "client_id": _parameter("client_id", "query", "Of this client only.", _TEXT),
    "state": _parameter("state", "query", "In this state now.", {"type": "string", "enum": _STATES}),
    "cursor": _parameter("cursor", "query", "From an earlier page; where to go on.", {**_TEXT, "pattern": "^[0-9]+$"}),
    "limit": _parameter(
        "limit", "query", "How many at most; above 1000 means 1000.", {"type": "integer", "minimum": 1, "default": 100}
    ),
    "at": _parameter("at", "query", "Also the state then: RFC 3339 with its offset, not in the future.", _TEXT),
    "since": _parameter("since", "query", "From this time on, inclusive: RFC 3339 with its offset.", _TEXT),
    "name": _parameter("name", "path", "A guide.", _TEXT),
    "idempotency_key": _parameter(
        "Idempotency-Key",
        "header",
        "The same key with the same body gets the same answer, while the grant lives.",
        {"type": "string", "minLength": 1, "maxLength": 128},
    ),
    "dpop": _parameter(
        "DPoP",
        "header",
        "A proof that the sender holds a key (RFC 9449 4): a JWT of type dpop+jwt for this method and URL, made now, "
        "good once. The access token is then bound to the key.",
        {**_TEXT, "pattern": r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$"},
    ),
    "dpop_of_public": _parameter(
        "DPoP",
        "header",
        "Of a public client whose grant is bound to a key: a proof for this endpoint (RFC 9449 4). Not looked at where "
        "the client authenticates.",
        _TEXT,
    ),
}
"""Every parameter, once."""

_CLIENT_FIELDS: Final[dict[str, Json]] = {
    "client_id": {"type": "string", "description": "Who asks, where no Authorization header says so."},
    "client_secret": {"type": "string", "description": "Of a confidential client that uses no Authorization header."},
    "client_assertion_type": {
        "type": "string",
        "description": "Of a client that signs; with client_assertion (RFC 7521 4.2).",
        "enum": [JWT_BEARER],
    },
    "client_assertion": {
        "type": "string",
        "description": "Of a client that signs: a JWT for this server's issuer, good once (RFC 7523 2.2 and 3).",
        "maxLength": ASSERTION_CHARACTERS_MAX,
    },
}
_RESOURCE: Final = {
    "type": "array",
    "items": {"type": "string", "format": "uri"},
    "description": "For whom the access token shall be, of those granted (RFC 8707); left out: all.",
}
_HINT: Final = {"type": "string", "description": "Changes nothing: a token says itself what it is."}


def _form(required: list[str], fields: dict[str, Json]) -> Json:
    # A parameter that is repeated is refused, one that is unknown is ignored (RFC 6749 3.2).
    return {"type": "object", "required": required, "properties": fields | _CLIENT_FIELDS}


FORMS: Final[dict[str, Json]] = {
    "token": {
        "anyOf": [
            _form(
                ["grant_type", "refresh_token"],
                {
                    "grant_type": {"type": "string", "enum": ["refresh_token"]},
                    "refresh_token": {"type": "string", "description": "The one that the last answer gave."},
                    "scope": {"type": "string", "description": "Of the access token; left out: as before."},
                    "resource": _RESOURCE,
                },
            ),
            _form(
                ["grant_type", "code", "redirect_uri", "code_verifier"],
                {
                    "grant_type": {"type": "string", "enum": ["authorization_code"]},
                    "code": {"type": "string", "description": "From the redirect address; good once, for a minute."},
                    "redirect_uri": {"type": "string", "description": "That of the authorization."},
                    "code_verifier": {"type": "string", "description": "Of its challenge (RFC 7636 4.5)."},
                    "resource": _RESOURCE,
                },
            ),
        ]
    },
    "revoke": _form(["token"], {"token": _TEXT, "token_type_hint": _HINT}),
    "introspect": _form(["token"], {"token": _TEXT, "token_type_hint": _HINT}),
}
"""The form bodies of the clients' endpoints."""

_CLIENTS: Final = "For clients"
_GRANTS: Final = "Grants"
_ENDS: Final = "Ends"
_INCIDENTS: Final = "Incidents"
_SERVER: Final = "The server"
_PAGED: Final = ("cursor", "limit")

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        name="token",
        paths=("/oauth/v2/oauth-token", "/token"),
        method="post",
        tag=_CLIENTS,
        text="Exchange a refresh token for an access token and the next refresh token (RFC 6749 6). Send the same "
        "request again where the answer was lost: it gets the same successor. Or exchange an authorization code for a "
        "grant's first tokens, once (RFC 6749 4.1.3): a second exchange ends the grant.",
        caller="client",
        parameters=("dpop",),
        form="token",
        answers={200: ("The tokens.", shapes.TokenResponse)},
        errors=CLIENT_ERRORS,
    ),
    Operation(
        name="revoke",
        paths=("/oauth/v2/oauth-revoke", "/revoke"),
        method="post",
        tag=_CLIENTS,
        text="Give a token back (RFC 7009). A refresh token ends its grant, an access token only itself.",
        caller="client",
        parameters=("dpop_of_public",),
        form="revoke",
        answers={200: ("Done, or there was no such token.", None)},
        errors=CLIENT_ERRORS,
    ),
    Operation(
        name="introspect",
        paths=("/oauth/v2/oauth-introspect", "/introspect"),
        method="post",
        tag=_CLIENTS,
        text="Ask whether a token is active (RFC 7662). A client asks about its own, a resource server about access "
        "tokens that are meant for it, an operator about any, an issuer about what it issued.",
        caller="either",
        parameters=("dpop_of_public",),
        form="introspect",
        answers={200: ("What the token is good for; or active: false and nothing else.", shapes.IntrospectionResponse)},
        errors=(*CLIENT_ERRORS, 403),
    ),
    Operation(
        name="metadata",
        paths=("/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"),
        method="get",
        tag=_CLIENTS,
        text="Look up where the endpoints are and what they take (RFC 8414). Of an issuer with a path, also where that "
        "path follows the well-known name.",
        answers={200: ("What this server has.", shapes.ServerMetadata)},
        errors=(405,),
    ),
    Operation(
        name="keys",
        paths=("/oauth/v2/jwks",),
        method="get",
        tag=_CLIENTS,
        text="Fetch the public keys to check access tokens with that are JWTs (RFC 7517, RFC 9068). To be kept five "
        "minutes at most; a token whose `kid` is not among them is a reason to fetch them again.",
        answers={200: ("The keys that sign or will.", shapes.PublicKeys)},
        errors=(405, 503),
    ),
    Operation(
        name="list_grants",
        paths=("/grants",),
        method="get",
        tag=_GRANTS,
        text="List grants, oldest first. An issuer sees what it issued.",
        caller="operator",
        roles=READERS,
        parameters=("client_id", "state", *_PAGED),
        answers={200: ("A page.", GrantPage)},
        errors=LOOK_ERRORS,
    ),
    Operation(
        name="issue_grant",
        paths=("/grants",),
        method="post",
        tag=_GRANTS,
        text="Issue a grant: a person lets a client act for them, and the client gets its first tokens.",
        caller="operator",
        roles=(ISSUER,),
        parameters=("idempotency_key",),
        body=shapes.IssueBody,
        answers={201: ("The first tokens, and the grant's id.", shapes.IssuedResponse)},
        errors=(*ACT_ERRORS, 409, 422),
    ),
    Operation(
        name="authorize",
        paths=("/authorizations",),
        method="post",
        tag=_GRANTS,
        text="Turn what a sign-in page decided into an authorization code. Send the person to redirect_to; the client "
        "exchanges the code at the token endpoint, with its verifier (RFC 7636).",
        caller="operator",
        roles=(ISSUER,),
        body=shapes.AuthorizationBody,
        answers={201: ("The code, and the address that carries it to the client.", shapes.AuthorizationResponse)},
        errors=ACT_ERRORS,
    ),
    Operation(
        name="search_grants",
        paths=("/grants/search",),
        method="post",
        tag=_GRANTS,
        text="List a person's grants, oldest first. Subjects never stand in a URL, so this is a POST.",
        caller="operator",
        roles=READERS,
        body=shapes.SearchBody,
        answers={200: ("A page.", GrantPage)},
        errors=ACT_ERRORS,
    ),
    Operation(
        name="get_grant",
        paths=("/grants/{grant_id}",),
        method="get",
        tag=_GRANTS,
        text="Look at a grant as it is now. An issuer sees what it issued.",
        caller="operator",
        roles=READERS,
        parameters=("grant_id",),
        answers={200: ("The grant.", GrantView)},
        errors=(*LOOK_ERRORS, 404),
    ),
    Operation(
        name="get_grant_events",
        paths=("/grants/{grant_id}/events",),
        method="get",
        tag=_GRANTS,
        text="Read a grant's history, oldest first, with the epochs that ended it.",
        caller="operator",
        roles=SEE_ALL,
        parameters=("grant_id", "at", *_PAGED),
        answers={200: ("A page of events; with at also the state then.", History)},
        errors=(*LOOK_ERRORS, 404),
    ),
    Operation(
        name="revoke_grant",
        paths=("/grants/{grant_id}/revoke",),
        method="post",
        tag=_ENDS,
        text="End a grant for good. An issuer may end what it issued.",
        caller="operator",
        roles=(SECURITY, ADMIN, ISSUER),
        parameters=("grant_id",),
        body=shapes.ActBody,
        body_may_be_empty=True,
        answers={200: ("The grant.", GrantView)},
        errors=(*ACT_ERRORS, 404),
    ),
    Operation(
        name="suspend_grant",
        paths=("/grants/{grant_id}/suspend",),
        method="post",
        tag=_ENDS,
        text="Stop a grant until it is reinstated. No expiry is extended.",
        caller="operator",
        roles=(SECURITY, ADMIN),
        parameters=("grant_id",),
        body=shapes.ActBody,
        body_may_be_empty=True,
        answers={200: ("The grant.", GrantView)},
        errors=(*ACT_ERRORS, 404, 409),
    ),
    Operation(
        name="reinstate_grant",
        paths=("/grants/{grant_id}/reinstate",),
        method="post",
        tag=_ENDS,
        text="Let a suspended grant go on. After reuse or rollback it wants trust: current.",
        caller="operator",
        roles=(SECURITY, ADMIN),
        parameters=("grant_id",),
        body=shapes.ReinstateBody,
        body_may_be_empty=True,
        answers={200: ("The grant.", GrantView)},
        errors=(*ACT_ERRORS, 404, 409),
    ),
    Operation(
        name="revoke_subject",
        paths=("/subjects/revoke",),
        method="post",
        tag=_ENDS,
        text="End all grants of a person at once. After the answer none of them refreshes.",
        caller="operator",
        roles=(SECURITY, ADMIN, ISSUER),
        body=shapes.RevokeSubjectBody,
        answers={200: ("Whether the subject was ever seen, and its epoch.", shapes.SubjectEpoch)},
        errors=ACT_ERRORS,
    ),
    Operation(
        name="revoke_client",
        paths=("/clients/{id}/revoke",),
        method="post",
        tag=_ENDS,
        text="End all grants of a client at once. After the answer none of them refreshes.",
        caller="operator",
        roles=(SECURITY, ADMIN),
        parameters=("id",),
        body=shapes.RevokeClientBody,
        answers={200: ("The client's epoch.", shapes.ClientEpoch)},
        errors=(*ACT_ERRORS, 404),
    ),
    Operation(
        name="list_reuse",
        paths=("/reuse",),
        method="get",
        tag=_INCIDENTS,
        text="List where a retired token came back, oldest first.",
        caller="operator",
        roles=(SECURITY, ADMIN),
        parameters=("since", *_PAGED),
        answers={200: ("A page.", IncidentPage)},
        errors=LOOK_ERRORS,
    ),
    Operation(
        name="explain",
        paths=("/explain",),
        method="post",
        tag=_INCIDENTS,
        text="Say what a token is, and if it is not good, when, why and by whom it ended.",
        caller="operator",
        roles=(SECURITY, ADMIN),
        body=shapes.ExplainBody,
        answers={200: ("The verdict, in one word and in plain words.", Explanation)},
        errors=ACT_ERRORS,
    ),
    Operation(
        name="healthz",
        paths=("/healthz",),
        method="get",
        tag=_SERVER,
        text="Whether the process answers.",
        answers={200: ("It does.", shapes.Healthy)},
        errors=(405,),
    ),
    Operation(
        name="readyz",
        paths=("/readyz",),
        method="get",
        tag=_SERVER,
        text="Whether requests are served.",
        answers={200: ("They are.", shapes.Healthy), 503: ("They are not, and why.", shapes.Unready)},
        errors=(405,),
    ),
    Operation(
        name="metrics",
        paths=("/metrics",),
        method="get",
        tag=_SERVER,
        text="What is counted, for Prometheus.",
        answers={200: ("Families in the text format.", "text/plain")},
        errors=(405,),
    ),
    Operation(
        name="openapi",
        paths=("/openapi.json",),
        method="get",
        tag=_SERVER,
        text="This document.",
        answers={200: ("It.", dict)},
        errors=(405,),
    ),
    Operation(
        name="guides",
        paths=("/docs",),
        method="get",
        tag=_SERVER,
        text="The list of guides.",
        answers={200: ("A page.", "text/html")},
        errors=(405,),
    ),
    Operation(
        name="guide",
        paths=("/docs/{name}",),
        method="get",
        tag=_SERVER,
        text="A guide.",
        parameters=("name",),
        answers={200: ("A page.", "text/html")},
        errors=(404, 405),
    ),
)
"""Every operation, in the order of the document."""
