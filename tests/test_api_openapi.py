"""The OpenAPI document: every path that is served and no other, schemas that tell a right answer from a wrong one.

That each answer is as described is checked wherever endpoints are tested (`tests/asking.py`).
"""

import re
from pathlib import Path

import pytest
from openapi_spec_validator import validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError
from starlette.routing import Route, Router

from api.openapi import document
from api.settings import Settings
from tests.asking import ISSUER_URL, asking
from tests.described import misfit, path_of
from tests.wire import INTROSPECT_PATH, REVOKE_PATH, TOKEN_PATH, Json

METHODS = {"get", "post"}


async def test_it_is_served_as_json(tmp_path: Path) -> None:
    """Anyone may read it."""
    async with asking(tmp_path) as ledger:
        answer = await ledger.ask("GET", "/openapi.json")
        assert (200, "application/json") == (answer.status_code, answer.headers["content-type"])
        assert document() | {"servers": [{"url": ISSUER_URL}]} == answer.json()
        assert "3.1.0" == answer.json()["openapi"]


async def test_it_says_where_the_server_is_with_the_issuers_path(tmp_path: Path) -> None:
    """A generated client sends its requests where the clients of the metadata do; a slash is not doubled."""
    for issuer in (f"{ISSUER_URL}/tokens", f"{ISSUER_URL}/tokens/"):
        async with asking(tmp_path, settings=Settings(issuer=issuer)) as ledger:
            told = (await ledger.ask("GET", "/openapi.json")).json()
            assert [{"url": f"{ISSUER_URL}/tokens"}] == told["servers"]
            validate(told)


async def test_every_path_that_is_served_is_described_and_no_other(tmp_path: Path) -> None:
    """The short paths too; the commands' own paths are not public."""
    async with asking(tmp_path) as ledger:
        public = ledger.app._public
        assert isinstance(public, Router)
        served = {
            re.sub(r"\{client_id:path\}", "{id}", route.path) for route in public.routes if isinstance(route, Route)
        }
        served |= set(ledger.app._hot)
        assert served == set(document()["paths"])
        assert {TOKEN_PATH, "/token", REVOKE_PATH, "/revoke", INTROSPECT_PATH, "/introspect"} <= served


async def test_every_described_method_is_served_and_every_other_is_405(tmp_path: Path) -> None:
    """What a description promises and what a route does are one."""
    async with asking(tmp_path) as ledger:
        for path, operations in document()["paths"].items():
            asked = re.sub(r"\{\w+\}", "x", path)
            for method in ("GET", "POST", "PUT", "DELETE"):
                answer = await ledger.ask(method, asked)
                assert (answer.status_code == 405) == (method.lower() not in operations), (method, path)
                if answer.status_code == 405:
                    allowed = set(answer.headers["allow"].split(", ")) - {"HEAD"}
                    assert {name.upper() for name in METHODS & set(operations)} == allowed


def test_it_is_lawful_openapi() -> None:
    """OpenAPI 3.1 as its own JSON Schema has it; one with a word that is none there is not."""
    validate(document())
    with pytest.raises(OpenAPIValidationError):
        validate({**document(), "servers": "everywhere"})


def test_every_reference_leads_somewhere_and_ids_are_used_once() -> None:
    """A document that tools can read."""
    told = document()
    references = set(re.findall(r"#/components/schemas/([\w]+)", str(told)))
    assert references <= set(told["components"]["schemas"])
    ids = [operation["operationId"] for path in told["paths"].values() for operation in path.values()]
    assert len(set(ids)) == len(ids)
    for path, operations in told["paths"].items():
        for operation in operations.values():
            named = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
            assert set(re.findall(r"\{(\w+)\}", path)) == named


def test_nothing_is_described_as_null() -> None:
    """TE-11: what has no value is left out."""
    assert "'null'" not in str(document())
    assert "None" not in str(document())


@pytest.mark.parametrize(
    ("schema", "value", "fits"),
    [
        ("ErrorResponse", {"error": "invalid_grant", "reason": "rotated"}, True),
        ("ErrorResponse", {"error": "invalid_grant", "reason": "bored"}, False),
        ("ErrorResponse", {"error_description": "x"}, False),
        ("ErrorResponse", {"error": "x", "more": 1}, False),
        ("ErrorResponse", {"error": None}, False),
        ("SubjectEpoch", {"known": True, "epoch": 3}, True),
        ("SubjectEpoch", {"known": True, "epoch": True}, False),
        ("IssueBody", {"client_id": "a", "subject": "b", "scope": "c", "grant_ttl_seconds": 0}, False),
        ("IssueBody", {"client_id": "a", "subject": "", "scope": "c"}, False),
        ("IssueBody", {"client_id": "a", "subject": "b", "scope": "c", "resource": ["x"]}, True),
        ("IssueBody", {"client_id": "a", "subject": "b", "scope": "c", "resource": [1]}, False),
        ("IssueBody", {"client_id": "a", "subject": "b", "scope": "c", "cnf": {"jkt": "x"}}, False),
    ],
)
def test_the_check_of_answers_tells_right_from_wrong(schema: str, value: Json, fits: bool) -> None:
    """The broken twin of the check that every endpoint's test makes."""
    problem = misfit({"$ref": f"#/components/schemas/{schema}"}, value)
    assert fits == (problem is None), problem


def test_a_requests_path_finds_its_description() -> None:
    """Parameters as they stand in requests; the longer names win over parameters."""
    assert "/grants/search" == path_of("/grants/search")
    assert "/grants/{grant_id}" == path_of("/grants/abc")
    assert "/clients/{id}/revoke" == path_of("/clients/a/b/revoke")
    assert path_of("/local/keys") is None
