"""The OpenAPI 3.1 document at `/openapi.json`: every path of the route table, short ones too.

Bodies are described by the very types that requests are checked against and answers are made of.
"""

from importlib.metadata import version
from inspect import cleandoc
from typing import Any, Final

import msgspec
from msgspec import Struct

from api import shapes
from api.answers import Answer, with_body
from api.metadata import url
from api.operations import FORMS, OPERATIONS, PARAMETERS, Operation
from ledger.answers import Explanation
from projections.grant_history import History
from projections.grant_views import GrantPage, GrantView
from projections.reuse_incidents import IncidentPage

Json = Any

TYPES: Final[tuple[type[Struct], ...]] = (
    shapes.TokenResponse,
    shapes.IssuedResponse,
    shapes.AuthorizationResponse,
    shapes.IntrospectionResponse,
    shapes.ServerMetadata,
    shapes.PublicKeys,
    shapes.ErrorResponse,
    shapes.IssueBody,
    shapes.AuthorizationBody,
    shapes.SearchBody,
    shapes.ActBody,
    shapes.ReinstateBody,
    shapes.RevokeSubjectBody,
    shapes.RevokeClientBody,
    shapes.ExplainBody,
    shapes.SubjectEpoch,
    shapes.ClientEpoch,
    shapes.Healthy,
    shapes.Unready,
    GrantView,
    GrantPage,
    History,
    IncidentPage,
    Explanation,
)
"""What operations name by its class."""

_REF: Final = "#/components/schemas/{name}"

_ERRORS: Final = {
    400: "The request is malformed, or refused by a rule (RFC 6749 5.2).",
    401: "The caller did not prove who it is; WWW-Authenticate says how it may.",
    403: "The operator lacks the role.",
    404: "There is no such thing, or not for this caller.",
    405: "Another method; Allow names the right ones.",
    409: "The state of the grant does not allow it.",
    413: "The body is too long. The connection is closed.",
    422: "The Idempotency-Key was used with another body.",
    429: "Too many failures from this address, or a grant refreshed too fast; wait for Retry-After.",
    503: "Nothing is known of the outcome: send the request again after Retry-After.",
}
_SECURITY: Final[dict[str, list[Json]]] = {
    "client": [{"client": []}, {"certificate": []}, {}],  # or in the body, which this language has no word for
    "operator": [{"operator": []}],
    "either": [{"client": []}, {"certificate": []}, {"operator": []}, {}],
    "": [],
}
_WAITING: Final = (429, 503)
_NONCE: Final[Json] = {
    "description": "The nonce for the next proof of a client that is registered to use them (RFC 9449 8).",
    "schema": {"type": "string"},
}

_INTRODUCTION: Final = (
    "OAuth 2.0 refresh tokens as a history. Clients authenticate by HTTP Basic, by client_id and client_secret in the "
    "body, by a signed assertion, by a certificate, or, where public, by client_id alone; operators by a bearer "
    "token. Every answer carries Date; no path redirects; a path with one slash more is another path. Web pages of the "
    "origins that clients list may call the token and revocation endpoints, the metadata and the keys: every answer to "
    "them, an error too, says so to their browser, and OPTIONS asks whether they may (CORS)."
)


class Described:
    """The endpoint. The document is made when it is first asked for, and kept; it says where this server is."""

    def __init__(self, issuer: str) -> None:
        self._issuer = issuer
        self._answer: Answer | None = None

    async def document(self, scope: Any) -> Answer:
        """The document, which holds for as long as the process runs."""
        if self._answer is None:
            told = {**document(), "servers": [{"url": url(self._issuer, "")}]}
            self._answer = with_body(200, msgspec.json.encode(told), ((b"content-type", b"application/json"),))
        return self._answer


def document() -> Json:
    """Return the document, of whichever server."""
    paths: dict[str, dict[str, Json]] = {}
    for operation in OPERATIONS:
        for place, path in enumerate(operation.paths):
            paths.setdefault(path, {})[operation.method] = _described(operation, place)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Token ledger",
            "version": version("token-ledger"),
            "description": _INTRODUCTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "client": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "RFC 6749 2.3.1; or in the body, as a secret or "
                    "as a JWT that the client signs (RFC 7523).",
                },
                "certificate": {"type": "mutualTLS", "description": "RFC 8705, with client_id in the body."},
                "operator": {"type": "http", "scheme": "bearer", "description": "Its roles say what it may do."},
            },
        },
    }


def _schemas() -> Json:
    _, components = msgspec.json.schema_components(TYPES, ref_template=_REF)
    return _without_null(components)


def _without_null(schema: Json) -> Json:
    """The schema of what is sent: a member that is null is left out, never null."""
    if isinstance(schema, list):
        return [_without_null(each) for each in schema]
    if isinstance(schema, str):
        return cleandoc(schema)  # a docstring, indented as in its file
    if not isinstance(schema, dict):
        return schema
    found = {name: _without_null(value) for name, value in schema.items() if not (name == "default" and value is None)}
    kinds = found.get("anyOf")
    if isinstance(kinds, list) and {"type": "null"} in kinds:
        kinds = [kind for kind in kinds if kind != {"type": "null"}]
        del found["anyOf"]
        found |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return found


def _described(operation: Operation, place: int) -> Json:
    # Two paths for one endpoint: one operation id each.
    name = operation.name if place == 0 else f"{operation.name}_{place + 1}"
    description = operation.text
    if operation.roles:
        description += f" Roles: {', '.join(operation.roles)}."
    found: dict[str, Json] = {
        "operationId": name,
        "summary": operation.text.partition(". ")[0].rstrip("."),
        "description": description,
        "tags": [operation.tag],
        "security": _SECURITY[operation.caller],
        "responses": _responses(operation),
    }
    if operation.parameters:
        found["parameters"] = [PARAMETERS[each] for each in operation.parameters]
    if operation.form:
        content = {"application/x-www-form-urlencoded": {"schema": FORMS[operation.form]}}
        found["requestBody"] = {"required": True, "content": content}
    if operation.body is not None:
        content = {"application/json": {"schema": _schema(operation.body)}}
        found["requestBody"] = {"required": not operation.body_may_be_empty, "content": content}
    return found


def _responses(operation: Operation) -> Json:
    found: dict[str, Json] = {}
    for status, (text, content) in operation.answers.items():
        answer: dict[str, Json] = {"description": text}
        if isinstance(content, str):
            answer["content"] = {content: {"schema": {"type": "string"}}}
        elif content is not None:
            schema = {"type": "object"} if content is dict else _schema(content)
            answer["content"] = {"application/json": {"schema": schema}}
        if status == 200 and operation.name == "token":
            answer["headers"] = {
                "Ledger-Position": {
                    "description": "Position of the redemption's last event; to authenticated clients.",
                    "schema": {"type": "string"},
                },
                "DPoP-Nonce": _NONCE,
            }
        found[str(status)] = answer
    for status in operation.errors:
        if str(status) not in found:
            found[str(status)] = _error(status)
    if operation.name == "token":
        found["400"]["headers"] = {"DPoP-Nonce": _NONCE}
    return found


def _error(status: int) -> Json:
    answer: dict[str, Json] = {
        "description": _ERRORS[status],
        "content": {"application/json": {"schema": _schema(shapes.ErrorResponse)}},
    }
    if status in _WAITING:
        answer["headers"] = {
            "Retry-After": {"description": "Whole seconds.", "schema": {"type": "integer", "minimum": 1}}
        }
    return answer


def _schema(kind: type[Any]) -> Json:
    return {"$ref": _REF.format(name=kind.__name__)}
