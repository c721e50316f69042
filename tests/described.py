"""Whether an answer is what the OpenAPI document says: the parts of JSON Schema that the document uses, no more.

A keyword that is not known here fails, so that nothing passes because nobody looked.
"""

import re
from functools import lru_cache
from typing import Any

from api.metadata import OAUTH_PLACE, OPENID_PLACE
from api.openapi import document

Json = Any

_SILENT = {"title", "description", "examples", "format", "default"}
_KNOWN = _SILENT | {
    "$ref", "type", "enum", "const", "anyOf", "properties", "required", "additionalProperties", "items", "pattern",
    "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
}  # fmt: skip
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
    "number": (int, float),
}


@lru_cache(maxsize=1)
def the_document() -> Json:
    """The document, made once."""
    return document()


@lru_cache(maxsize=1024)
def path_of(path: str) -> str | None:
    """The document's path for a request's, None where it describes none."""
    for place in (OAUTH_PLACE, OPENID_PLACE):
        if place in path and not path.endswith("/"):
            return place  # of an issuer with a path
    paths = sorted(the_document()["paths"], key=lambda each: each.count("{"))
    for each in paths:
        pattern = re.sub(r"\\\{id\\\}", "(.+)", re.escape(each))
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", "([^/]+)", pattern), path):
            return str(each)
    return None


def check_described(method: str, path: str, status: int, body: Json) -> None:
    """Assert that an answer's status is listed for its path and method, and its body fits the schema there."""
    found = path_of(path)
    if found is None:
        assert status in (404, 405), f"{path} is served and not described"
        return
    operation = the_document()["paths"][found].get(method.lower())
    if operation is None:
        assert status in (200, 401, 404, 405, 429), f"{method} {path} is served and not described"
        return
    answers = operation["responses"]
    assert str(status) in answers, f"{method} {found} answered {status}, which is not described"
    problem = misfit(answers[str(status)]["content"]["application/json"]["schema"], body)
    assert problem is None, f"{method} {found} {status}: {problem}"


def misfit(schema: Json, value: Json, place: str = "$") -> str | None:
    """The first place where a value does not fit a schema, None where it does. Members without a word are misfits."""
    unknown = set(schema) - _KNOWN
    assert not unknown, f"{place}: keywords that this check does not know: {unknown}"
    if "$ref" in schema:
        return misfit(the_document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]], value, place)
    if "anyOf" in schema:
        problems = [misfit(each, value, place) for each in schema["anyOf"]]
        return None if None in problems else f"{place}: fits none of {len(problems)} kinds"
    if "enum" in schema and value not in schema["enum"]:
        return f"{place}: {value!r} is none of {schema['enum']}"
    kind = schema.get("type")
    if kind is not None:
        fits = isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
        if not fits:
            return f"{place}: {value!r} is no {kind}"
    return _object(schema, value, place) or _array(schema, value, place) or _bounds(schema, value, place)


def _object(schema: Json, value: Json, place: str) -> str | None:
    if not isinstance(value, dict) or not {"properties", "additionalProperties"} & set(schema):
        return None
    properties, more = schema.get("properties", {}), schema.get("additionalProperties", False)
    missing = set(schema.get("required", ())) - set(value)
    if missing:
        return f"{place}: lacks {sorted(missing)}"
    for name, each in value.items():
        inner = properties.get(name, more)
        if inner is False:
            return f"{place}: has {name}, which is not described"
        if isinstance(inner, dict) and (problem := misfit(inner, each, f"{place}.{name}")):
            return problem
    return None


def _array(schema: Json, value: Json, place: str) -> str | None:
    if not isinstance(value, list):
        return None
    problems = (misfit(schema.get("items", {}), each, f"{place}[{index}]") for index, each in enumerate(value))
    return next(filter(None, problems), None)


def _bounds(schema: Json, value: Json, place: str) -> str | None:
    if isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            return f"{place}: length {len(value)}"
        if "pattern" in schema and not re.search(schema["pattern"], value):
            return f"{place}: {value!r} does not match {schema['pattern']}"
    if isinstance(value, list) and not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return f"{place}: {len(value)} items"
    counted = isinstance(value, int) and not isinstance(value, bool)
    if counted and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return f"{place}: {value} is out of bounds"
    return None
