"""The OpenAPI document against the program: whatever fits it, or just does not, is answered as it says, never with 5xx.

Schemathesis makes the requests from the document alone; here they are given somebody to ask and something to ask about,
since chance would never guess a token. Every answer is then held against the document: status, media type, headers and
shape.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from api.openapi import document
from tests.servers import CALLBACK, VERIFIER, Grant, Server, clients_toml, running
from tests.wire import FORM

Json = Any

BOSS_TOKEN = "boss-token-4d1f0c7be28a9365"
BOSS = f"""
[[operator]]
name = "boss"
token = "{BOSS_TOKEN}"
roles = ["issuer", "auditor", "security", "admin"]
"""
CLIENTS = ("keep", "std", "spa", "code")
DOCUMENT = document()
OPERATIONS = [(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods]
ASKABLE_WRONGLY = [
    (method, path)
    for method, path in OPERATIONS
    for told in (DOCUMENT["paths"][path][method],)
    if "requestBody" in told or any(each["in"] == "query" for each in told.get("parameters", ()))
]
OFTEN = st.sampled_from((True, True, True, False))
SELDOM = OFTEN.map(lambda often: not often)
PICKS = st.fixed_dictionaries(
    {
        "grant": st.integers(0, len(CLIENTS) - 1),
        "real_id": OFTEN,
        "real_token": OFTEN,
        "access_token": SELDOM,
        "real_client": OFTEN,
        "real_code": OFTEN,
        "operator": OFTEN,
        "bearer_at_clients_endpoint": SELDOM,
        "first_page": OFTEN,
        "own_address": OFTEN,
    }
)


@dataclass
class World:
    """A server, a connection to it, and what there is to ask about."""

    server: Server
    session: requests.Session
    asked: int = 0

    def grants(self) -> list[Grant]:
        """New grants, one of each kind of client; what a trial ends is not there for the next."""
        return [self.server.issue(client) for client in CLIENTS]

    def headers(self, pick: Json, for_clients: bool) -> dict[str, str]:
        """Say from where the request comes, and who asks. Failures slow an address down (TE-8), so most have none."""
        self.asked += 1
        own = f"10.{self.asked >> 16 & 255}.{self.asked >> 8 & 255}.{self.asked & 255}"
        found = {"X-Forwarded-For": own if pick["own_address"] else "10.255.255.255"}
        if pick["bearer_at_clients_endpoint"] if for_clients else pick["operator"]:
            found["Authorization"] = f"Bearer {BOSS_TOKEN}"
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One server for all operations; its log is searched for tokens and tracebacks at the end."""
    folder: Path = tmp_path_factory.mktemp("fuzz")
    server = running(folder, clients=clients_toml(more=BOSS), settings={"TRUSTED_PROXIES": "127.0.0.0/8"})
    with server as started, requests.Session() as session:
        started.secrets.append(BOSS_TOKEN)
        yield World(started, session)


def make_real_code(case: Json, world: World) -> None:
    """Put in what a code is given for, or a code, each time a new one, with all that its exchange wants."""
    if "code_challenge" in case.body:
        of_client = {"client_id": "code", "redirect_uri": CALLBACK, "scope": "read"}
        case.body |= {name: value for name, value in of_client.items() if name in case.body}
        case.body.pop("resource", None)
    elif "code" in case.body:
        case.body |= {"code": world.server.authorize()["code"], "redirect_uri": CALLBACK, "code_verifier": VERIFIER}
        case.body |= world.server.credentials("code")
        case.body.pop("resource", None)


def make_real(case: Json, grant: Grant, credentials: dict[str, str], pick: Json) -> None:
    """Put a grant, a token and a client that are there into a case, as far as chance has picked that."""
    places = case.path_parameters or {}
    if pick["real_id"]:
        places |= {name: grant.grant_id for name in ("grant_id",) if name in places}
        places |= {name: grant.client for name in ("id",) if name in places}
    if pick["first_page"] and case.query:
        case.query.pop("cursor", None)
    if not isinstance(case.body, dict):
        return
    if pick["real_token"]:
        token = grant.access_token if pick["access_token"] else grant.refresh_token
        case.body |= {name: token for name in ("token", "refresh_token") if name in case.body}
    if pick["real_client"] and case.media_type == FORM:
        for name in ("client_secret", "client_assertion", "client_assertion_type"):
            case.body.pop(name, None)
        case.body |= credentials
    elif pick["real_client"]:
        known = {"client_id": grant.client, "subject": grant.subject}
        case.body |= {name: value for name, value in known.items() if name in case.body}


def fuzz(world: World, told: Json, method: str, path: str, examples: int, *, fitting: bool = True) -> Counter[int]:
    """Ask an operation as a document tells it, and hold each answer against it; the statuses that came.

    `fitting`: whether what is sent fits the document. Raises what Schemathesis makes of an answer that does not.
    """
    import schemathesis  # here: it takes seconds, and most runs of tests need it not at all
    from schemathesis.specs.openapi import checks as of

    mode = schemathesis.GenerationMode.POSITIVE if fitting else schemathesis.GenerationMode.NEGATIVE
    checks: list[Any] = [
        of.status_code_conformance,
        of.content_type_conformance,
        of.response_schema_conformance,
        of.response_headers_conformance,
    ]
    operation = schemathesis.openapi.from_dict(told)[path][method.upper()]
    url = f"http://127.0.0.1:{world.server.port}"
    grants = world.grants()
    statuses: Counter[int] = Counter()

    def ask(case: Json, pick: Json) -> None:
        grant = grants[pick["grant"]]
        make_real(case, grant, world.server.credentials(grant.client), pick)
        if pick["real_code"] and isinstance(case.body, dict):
            make_real_code(case, world)
        headers = world.headers(pick, case.media_type == FORM)
        answer = case.call(base_url=url, session=world.session, headers=headers)
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)
        case.validate_response(answer, checks=checks)

    tried = settings(
        max_examples=examples, derandomize=True, database=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )(given(case=operation.as_strategy(generation_mode=mode), pick=PICKS)(ask))  # fmt: skip
    tried()
    return statuses


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_to_what_fits_is_as_the_document_says(
    method: str, path: str, world: World, count: Callable[[int, int], int]
) -> None:
    """No 5xx, nothing that a reader of the document would not expect, and not refusals alone."""
    statuses = fuzz(world, DOCUMENT, method, path, count(15, 400))
    assert {200, 201} & set(statuses) or "{name}" in path, statuses


@pytest.mark.parametrize(("method", "path"), ASKABLE_WRONGLY)
def test_every_answer_to_what_does_not_fit_is_as_the_document_says(
    method: str, path: str, world: World, count: Callable[[int, int], int]
) -> None:
    """Members and parameters missing, of another type, out of bounds, unknown: refused in words that are described."""
    statuses = fuzz(world, DOCUMENT, method, path, count(15, 400), fitting=False)
    assert 400 in statuses, statuses


def _without_status(told: Json) -> None:
    del told["paths"]["/grants/search"]["post"]["responses"]["401"]


def _of_another_type(told: Json) -> None:
    told["components"]["schemas"]["GrantPage"]["properties"]["cursor"] = {"type": "integer"}


def _with_a_member_more(told: Json) -> None:
    told["components"]["schemas"]["ErrorResponse"]["required"] = ["error", "error_uri"]


def _as_text(told: Json) -> None:
    answer = told["paths"]["/grants/search"]["post"]["responses"]["200"]
    answer["content"] = {"text/plain": answer["content"].pop("application/json")}


@pytest.mark.parametrize("spoil", [_without_status, _of_another_type, _with_a_member_more, _as_text])
def test_a_document_that_says_something_else_is_caught(spoil: Callable[[Json], None], world: World) -> None:
    """The broken twins: a status, a type, a member or a media type told wrongly."""
    told = copy.deepcopy(DOCUMENT)
    spoil(told)
    with pytest.raises(BaseExceptionGroup):
        fuzz(world, told, "post", "/grants/search", 40)
