"""Client libraries of others, unmodified, over TLS: refresh, rotation, narrowing, a lost answer, and typed errors.

What each does stands in library_facts.py and is measured here; the guide shows the same table.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import api
from tests.libraries import PYTHON, SCOPE, Place
from tests.libraries_node import NAMES, fetched_into
from tests.library_facts import BASIC, FACTS, POST, PUBLIC, tables
from tests.library_world import SECRET, World, client_of, code_of, library_server, library_world, thrown_by
from tests.lines import Line
from tests.servers import Server
from tests.test_cases_store import hold_write_lock


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Line]]:
    """One server for all libraries."""
    with library_server(tmp_path_factory.mktemp("libraries")) as found:
        yield found


@pytest.fixture(scope="session")
def node_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that speaks for the libraries of Node.js, with them beside it; skips where they cannot be had."""
    return fetched_into(tmp_path_factory.mktemp("node"))


@pytest.fixture
def world(place: tuple[Server, Line], request: pytest.FixtureRequest) -> Iterator[World]:
    """The server, and libraries whose connections and processes end with the test."""
    with library_world(place, lambda: request.getfixturevalue("node_program")) as found:
        yield found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that names a library once for each: those of Node.js, which must be fetched, in the full tier only."""
    if "name" in metafunc.fixturenames:
        needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
        names = [*PYTHON, *NAMES] if metafunc.config.option.full else [*PYTHON]
        if metafunc.function is test_a_busy_store_is_waited_for_or_told and not metafunc.config.option.full:
            names = ["requests-oauthlib", "google-auth"]  # the others wait as long as these
        if metafunc.function is test_a_wrong_secret_is_a_typed_error:
            names = [name for name in names if FACTS[name].auth != PUBLIC]
        metafunc.parametrize("name", [pytest.param(name, marks=[needs_curl] * ("curl" in name)) for name in names])


def test_every_library_has_its_facts() -> None:
    """No library is tried without a row in the guide, and no row stands there untried."""
    assert {*PYTHON, *NAMES} == set(FACTS)


def test_a_refresh_and_another_with_the_token_that_came(world: World, name: str) -> None:
    """RFC 6749 6: each library refreshes twice; the one that ignores new tokens is served by a token that stays."""
    grant_id, tokens, library = world.library(name)
    held = [tokens["refresh_token"], library.refresh(), library.refresh()]
    assert [FACTS[name].auth] * 2 == [redeemed["auth_method"] for redeemed in world.redemptions(grant_id)]
    expected = (1, 0) if FACTS[name].policy == "stable" else (3, 2)
    assert expected == (len(set(held)), world.generation(grant_id))


def test_a_person_signs_in_and_the_token_that_came_is_refreshed(world: World, name: str) -> None:
    """RFC 6749 4.1, RFC 7636: the library's own request, a sign-in, its own exchange, then a refresh; once only."""
    library = world.make(name, Place(world.line.url, client_of(name), SECRET))
    if not FACTS[name].signs_in:
        with pytest.raises(NotImplementedError):
            library.authorization_url()
        return
    redirect_to = world.signed_in(library.authorization_url())
    token = library.exchange(redirect_to)
    assert "read profile" == world.server.introspect(token)["scope"]
    assert (token == library.refresh()) == (FACTS[name].policy == "stable")


def test_a_sign_in_that_asks_for_openid_brings_no_id_token(world: World, name: str) -> None:
    """OpenID Connect Core 3.1.3.3: `openid` is a scope like any other here; one library does not go on without."""
    library = world.make(name, Place(world.line.url, client_of(name), SECRET, "openid read"))
    if not FACTS[name].signs_in:
        return
    redirect_to = world.signed_in(library.authorization_url())
    if FACTS[name].openid:
        assert FACTS[name].openid == thrown_by(lambda: library.exchange(redirect_to))[0]
    else:
        assert "openid read" == world.server.introspect(library.exchange(redirect_to))["scope"]


def test_a_rotated_token_is_used_next_or_not(world: World, name: str) -> None:
    """RFC 6749 6: the client must discard the old token for the new one; one library does not."""
    grant_id, _, library = world.library(name, policy="standard")
    library.refresh()
    library.refresh()
    if FACTS[name].new_token == "ignored":
        assert (1, "grant.retry_served") == (world.generation(grant_id), world.server.topics(grant_id)[-1])
    else:
        assert (2, "grant.token_rotated") == (world.generation(grant_id), world.server.topics(grant_id)[-1])


def test_a_plain_refresh_asks_for_all_that_the_library_holds_or_for_nothing(world: World, name: str) -> None:
    """The carried scope is cut behind the library's back: whoever asks for all of it again gets it all back."""
    grant_id, tokens, library = world.library(name, policy="stable")
    client = world.server.look(grant_id)["client_id"]
    by = {BASIC: "requests-oauthlib", POST: "requests_oauth2client", PUBLIC: "curl"}[FACTS[name].auth]
    secret = "" if FACTS[name].auth == PUBLIC else SECRET
    assert "read" == world.make(by, Place(world.line.url, client, secret), tokens).narrow("read")
    library.refresh()
    expected = {"all": SCOPE, "none": "read"}[FACTS[name].scope]
    assert expected == world.server.look(grant_id)["scope"]


def test_less_scope_is_asked_for_and_told(world: World, name: str) -> None:
    """RFC 6749 3.3: the library is told what it got, believes it, and can go on."""
    grant_id, _, library = world.library(name)
    if not FACTS[name].less:
        with pytest.raises(NotImplementedError):
            library.narrow("read")
        return
    assert "read" == library.narrow("read")
    assert "grant.scope_reduced" in world.server.topics(grant_id)
    library.refresh()
    assert "read" == world.server.look(grant_id)["scope"], "what is asked for next is what was told"


def test_a_lost_answer_costs_nothing(world: World, name: str) -> None:
    """I-10: the answer is lost after the commit; the same call again, by library or user, and all goes on."""
    grant_id, tokens, library = world.library(name)
    lost = world.line.lost
    world.line.lose(lambda: len(world.redemptions(grant_id)) == 1)
    if FACTS[name].lost:
        assert thrown_by(library.refresh)[0] in FACTS[name].lost.split(" or ")  # by what the system's OpenSSL says
    held = library.refresh()
    assert lost + 1 == world.line.lost
    assert held == library.refresh() or FACTS[name].policy != "stable"
    events = world.server.topics(grant_id)
    assert "grant.reuse_detected" not in events
    assert "active" == world.server.look(grant_id)["status"]
    if FACTS[name].policy != "stable":
        assert held != tokens["refresh_token"]
        assert (1, 2) == (events.count("grant.retry_served"), events.count("grant.token_rotated"))


@pytest.fixture(scope="module")
def impatient_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Line]]:
    """A server that answers within a second, if only to say that it cannot."""
    with library_server(tmp_path_factory.mktemp("impatient"), REQUEST_TIMEOUT_SECONDS="1") as found:
        yield found


@pytest.fixture
def impatient(impatient_place: tuple[Server, Line], request: pytest.FixtureRequest) -> Iterator[World]:
    with library_world(impatient_place, lambda: request.getfixturevalue("node_program")) as found:
        yield found


def test_a_busy_store_is_waited_for_or_told(impatient: World, name: str) -> None:
    """I-24: while another process holds the store 503 comes; some try again by themselves, all get on afterwards."""
    grant_id, tokens, library = impatient.library(name)
    holder = hold_write_lock(impatient.server.database, 2)
    if FACTS[name].busy:
        assert FACTS[name].busy == thrown_by(library.refresh)[0]
    else:
        library.refresh()
    assert 0 == holder.wait(20)
    impatient.server.wait_ready()
    held = library.refresh()
    assert {"grant.issued", "grant.token_redeemed"} <= set(impatient.server.topics(grant_id))
    assert "active" == impatient.server.look(grant_id)["status"]
    assert (held == tokens["refresh_token"]) == (FACTS[name].policy == "stable")


def test_the_end_of_a_grant_is_a_typed_error(world: World, name: str) -> None:
    """RFC 6749 5.2: `invalid_grant` reaches the application as the library's own error, and its code with it."""
    grant_id, _, library = world.library(name)
    world.server.operator("security", "POST", f"/grants/{grant_id}/revoke", {"reason": "test"})
    thrown, error = thrown_by(library.refresh)
    assert (FACTS[name].refused, FACTS[name].code, "invalid_grant") == (thrown, *code_of(error))


def test_a_wrong_secret_is_a_typed_error(world: World, name: str) -> None:
    """RFC 6749 5.2: 401 with a challenge to Basic, 400 to the body; two libraries hide the code behind the first."""
    grant_id, _, library = world.library(name, secret="wr0ng")
    thrown, error = thrown_by(library.refresh)
    assert FACTS[name].wrong_secret == thrown
    if thrown != "WWWAuthenticateChallengeError":
        assert (FACTS[name].code, "invalid_client") == code_of(error)
    assert 0 == world.generation(grant_id), "and the token lives"


def test_the_guide_shows_what_was_measured() -> None:
    """The tables of the guide are these, to the character; versions are those that the trials are pinned to."""
    guide = (Path(api.__file__).parent / "docs" / "libraries.md").read_text("utf-8")
    for table in tables():
        assert table in guide


def test_requests_oauthlib_must_not_hold_offline_access_that_was_not_granted(world: World) -> None:
    """The one word that is left out instead of refused: this library takes that for another scope, as the guide says,
    and the token that came is lost."""
    _, tokens, library = world.library("requests-oauthlib")
    with pytest.raises(Warning, match="Scope has changed"):
        library.narrow("read offline_access")
    assert tokens["refresh_token"] == vars(library)["session"].token["refresh_token"]
    assert "read" == library.narrow("read"), "the same token again: a retry, served"


def test_a_line_that_loses_nothing_is_noticed(world: World) -> None:
    """The broken twin of the lost answer: without the loss no retry is on record."""
    grant_id, _, library = world.library("requests_oauth2client")
    library.refresh()
    library.refresh()
    assert "grant.retry_served" not in world.server.topics(grant_id)
