"""The OpenAPI document for people: all that the document says stands on the page, and nothing of it becomes markup."""

import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

from api.openapi import document
from api.reference import reference

Json = Any
VOID = {"br"}


class Outline(HTMLParser):
    """Reads a page: its text, its links and ids, and whether every element that opens is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()
        assert [] == self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name == "href"]

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def texts(value: Json) -> list[str]:
    """Every description in a part of the document."""
    if isinstance(value, list):
        return [text for each in value for text in texts(each)]
    if not isinstance(value, dict):
        return []
    own = [value["description"]] if isinstance(value.get("description"), str) else []
    return own + [text for each in value.values() for text in texts(each)]


def test_every_path_shape_and_description_stands_on_the_page() -> None:
    """Whoever reads the page has read the document."""
    told = document()
    page = Outline(reference(told))
    for path, methods in told["paths"].items():
        assert path in page.text
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in page.text or f"also {path}" in page.text
            assert operation["description"] in page.text
    for name, schema in told["components"]["schemas"].items():
        assert name in page.ids
        for member in schema.get("properties", {}):
            assert member in page.text
    flat = re.sub(r"\s+", " ", page.text)
    for text in texts(told):
        assert re.sub(r"\s+", " ", text) in flat, text


def test_every_link_leads_to_a_place_on_the_page_and_each_place_is_there_once() -> None:
    """Shapes are linked where they are used."""
    page = Outline(reference(document()))
    assert len(set(page.ids)) == len(page.ids)
    assert {link.removeprefix("#") for link in page.links if link.startswith("#")} <= set(page.ids)
    assert {"openapi.json"} == {link for link in page.links if not link.startswith("#")}
    assert {"section", "h2", "h3", "p", "a", "b", "code", "table", "tr", "th", "td", "br"} >= page.tags


def test_one_endpoint_on_two_paths_is_told_once() -> None:
    """The short path stands beside the long one."""
    page = unescape(reference(document()))
    assert 1 == page.count("POST /oauth/v2/oauth-token")
    assert 0 == page.count("POST /token")
    assert ", also <code>/token</code>" in page


def test_nothing_of_the_document_becomes_markup() -> None:
    """The broken twin of whoever writes `<b>` into a description."""
    evil = '<script>alert("&")</script>'
    schema = {"type": "object", "description": evil, "properties": {evil: {"type": "string", "pattern": evil}}}
    operation = {
        "operationId": evil, "summary": evil, "description": evil, "tags": [evil], "security": [{evil: []}],
        "parameters": [{"name": evil, "in": "query", "required": False, "description": evil, "schema": schema}],
        "requestBody": {"required": True, "content": {evil: {"schema": schema}}},
        "responses": {
            evil: {"description": evil, "content": {evil: {"schema": {"$ref": f"#/components/schemas/{evil}"}}},
                   "headers": {evil: {"description": evil}}}
        },
    }  # fmt: skip
    page = reference(
        {
            "openapi": "3.1.0",
            "info": {"description": evil, "version": evil},
            "paths": {evil: {"get": operation}},
            "components": {
                "schemas": {evil: schema},
                "securitySchemes": {evil: {"scheme": evil, "description": evil}},
            },
        }
    )
    assert "<script" not in page
    assert evil in unescape(page)
    Outline(page)


def test_values_are_said_in_words() -> None:
    """Bounds, choices, lists and what a member may be instead."""
    page = reference(document())
    assert "one of <code>active</code>, <code>suspended</code>, <code>revoked</code>, <code>expired</code>" in page
    assert "string, like <code>^[0-9a-f]{32}$</code>" in page
    assert "a list, each string, at least 1 of them, at most 64 of them or string" in page
    assert "integer, at least 1, else 100" in page
