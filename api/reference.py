"""The OpenAPI document as a page for people: every operation, body, answer and shape, in plain HTML made here.

It is rendered from the document alone, so the page says what the document says and fetches nothing from anywhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any, Final

Json = Any

_SCHEMAS: Final = "#/components/schemas/"
_BOUNDS: Final = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} of them",
    "maxItems": "at most {} of them",
    "pattern": "like <code>{}</code>",
    "format": "{}",
    "default": "else {}",
}


def reference(document: Json) -> str:
    """Return the document as the inside of an HTML page that lies beside `/openapi.json`."""
    info = document["info"]
    return "".join(
        (
            f"<p>{escape(info['description'])}</p>",
            f'<p>Version {escape(info["version"])}. <a href="openapi.json">The OpenAPI {document["openapi"]} '
            "document</a> says the same to programs.</p>",
            *(
                f"<h2>{escape(tag)}</h2>" + "".join(map(_operation, operations))
                for tag, operations in groupby(_operations(document), key=lambda each: str(each["tags"][0]))
            ),
            "<h2>Shapes</h2>",
            *(_shape(name, schema) for name, schema in sorted(document["components"]["schemas"].items())),
            "<h2>Who asks</h2>",
            *(_scheme(name, scheme) for name, scheme in document["components"]["securitySchemes"].items()),
        )
    )


def _operations(document: Json) -> list[Json]:
    """Every operation once, with `at`: its method and path; with `also`: the paths where the same one is, too."""
    found: list[Json] = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            told = {name: value for name, value in operation.items() if name != "operationId"}
            same = next((each for each in found if each["told"] == told and each["method"] == method), None)
            if same is not None:
                same["also"].append(path)
            else:
                found.append({**operation, "told": told, "method": method, "path": path, "also": []})
    return sorted(found, key=lambda each: _first_of_tag(found, each["tags"][0]))


def _first_of_tag(operations: Sequence[Json], tag: str) -> int:
    return next(place for place, each in enumerate(operations) if each["tags"][0] == tag)


def _operation(operation: Json) -> str:
    name, heading = escape(operation["operationId"]), f"{operation['method'].upper()} {operation['path']}"
    also = "".join(f", also <code>{escape(path)}</code>" for path in operation["also"])
    return "".join(
        (
            f'<section id="{name}"><h3><a href="#{name}"><code>{escape(heading)}</code></a>{also}</h3>',
            f"<p>{escape(operation['description'])}</p>",
            _who(operation["security"]),
            _parameters(operation.get("parameters", ())),
            _request(operation.get("requestBody")),
            _table(("answer", "means", "holds"), map(_response, operation["responses"].items())),
            "</section>",
        )
    )


def _who(security: Sequence[Mapping[str, Json]]) -> str:
    ways = [escape(" and ".join(way)) or "as the body says" for way in security]
    return f"<p>Asked by: {', or '.join(ways) or 'anyone'}.</p>"


def _parameters(parameters: Iterable[Json]) -> str:
    rows = (
        (
            f"<code>{escape(each['name'])}</code>",
            f"{each['in']}{', required' if each['required'] else ''}",
            f"{_kind(each['schema'])}. {escape(each['description'])}",
        )
        for each in parameters
    )
    return _table(("parameter", "in", "is"), rows)


def _request(body: Json) -> str:
    if body is None:
        return ""
    told = "" if body["required"] else ", which may be left out"
    return "".join(
        f"<p>Body <code>{escape(media_type)}</code>{told}:</p>" + _alternatives(content["schema"])
        for media_type, content in body["content"].items()
    )


def _alternatives(schema: Json) -> str:
    return "<p>or</p>".join(_members(each) or _line(each) for each in schema.get("anyOf", [schema]))


def _response(response: tuple[str, Json]) -> tuple[str, str, str]:
    status, told = response
    contents, headers = told.get("content", {}).items(), told.get("headers", {}).items()
    kinds = [f"<code>{escape(media_type)}</code> {_kind(content['schema'])}" for media_type, content in contents]
    more = [f"<br><code>{escape(name)}</code>: {escape(header['description'])}" for name, header in headers]
    text = escape(told["description"]) + "".join(more)
    return f"<code>{escape(status)}</code>", text, " or ".join(kinds) or "nothing"


def _shape(name: str, schema: Json) -> str:
    text = f"<p>{escape(schema['description'])}</p>" if "description" in schema else ""
    return f'<section id="{escape(name)}"><h3>{escape(name)}</h3>{text}{_members(schema) or _line(schema)}</section>'


def _scheme(name: str, scheme: Json) -> str:
    kind = f"HTTP {scheme['scheme']}" if "scheme" in scheme else scheme["type"]
    return f"<p><b>{escape(name)}</b>: {escape(kind)}. {escape(scheme['description'])}</p>"


def _members(schema: Json) -> str:
    required = schema.get("required", ())
    rows = (
        (
            f"<code>{escape(name)}</code>",
            "always" if name in required else "",
            _kind(member) + (f". {escape(member['description'])}" if "description" in member else ""),
        )
        for name, member in schema.get("properties", {}).items()
    )
    return _table(("member", "there", "is"), rows)


def _line(schema: Json) -> str:
    return f"<p>{_kind(schema)}.</p>"


def _kind(schema: Json) -> str:
    """Say in words what a value may be."""
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(_SCHEMAS))
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if "enum" in schema:
        return "one of " + ", ".join(f"<code>{escape(str(each))}</code>" for each in schema["enum"])
    if schema.get("type") == "array":
        kind = f"a list, each {_kind(schema.get('items', {}))}"
    elif isinstance(schema.get("additionalProperties"), dict):
        kind = f"an object, each member {_kind(schema['additionalProperties'])}"
    else:
        kind = escape(str(schema.get("type", "anything")))
    bounds = [text.format(escape(str(schema[name]))) for name, text in _BOUNDS.items() if name in schema]
    return ", ".join((kind, *bounds))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    if not lines:
        return ""
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
