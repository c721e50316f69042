"""Client libraries that sign: assertions for themselves, proofs for their tokens, and the nonces that those need."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import api
from tests.certificates import Party, certificate
from tests.libraries import PYTHON as LIBRARIES
from tests.libraries import SCOPE, Place, Refreshing
from tests.libraries_keys import AuthlibByAssertion, RequestsOauth2clientByKeys
from tests.libraries_node import WITH_KEYS, fetched_into
from tests.library_facts import KEYED, keyed_table
from tests.library_world import World, code_of, library_server, library_world, thrown_by
from tests.lines import Line
from tests.servers import Server
from tests.signers import Signer, derived_key

PYTHON: dict[str, Callable[..., Refreshing]] = {
    "Authlib, requests": AuthlibByAssertion,
    "requests_oauth2client": RequestsOauth2clientByKeys,
}
CERTIFIED = certificate("CN=certified")
SIGNER = Signer("signer", derived_key("signer"), "")


def table(name: str) -> str:
    """Return the client of a library as a clients file says it."""
    signer = Signer(name, SIGNER.key, "")
    fields = {"policy": '"standard"', "scope": f'"{SCOPE}"', "assertion_audience": f'"{KEYED[name].audience}"'}
    if KEYED[name].proofs != "none":
        fields |= {"dpop_bound_access_tokens": "true", "dpop_nonce_required": "true"}
    return signer.toml(**fields)


def strict(name: str) -> str:
    """Return the same client, but that it must name the issuer as the audience."""
    return table(name).replace('"legacy"', '"issuer"').replace(f'id = "{name}"', f'id = "{name}, strict"')


def own_certificate_table(party: Party) -> str:
    """Return a client that is known by a certificate of its own, which also binds its tokens (RFC 8705 2.2, 3)."""
    return (
        f'\n[[client]]\nid = "certified"\nauth = "self_signed_tls_client_auth"\nscope = "{SCOPE}"\n'
        f'policy = "standard"\ntls_client_certificate_bound_access_tokens = true\n'
        f'jwks = {{ keys = [{{ x5c = ["{party.x5c}"] }}] }}\n'
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that names a library once for each: those of Node.js in the full tier only."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", [*PYTHON, *WITH_KEYS] if metafunc.config.option.full else [*PYTHON])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Line]]:
    """One server for all of them."""
    clients = own_certificate_table(CERTIFIED) + "".join(
        table(name) + strict(name) * (KEYED[name].audience == "legacy") for name in KEYED
    )
    with library_server(tmp_path_factory.mktemp("keys"), clients) as found:
        yield found


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetched_into(tmp_path_factory.mktemp("node"))


@pytest.fixture
def world(place: tuple[Server, Line], request: pytest.FixtureRequest) -> Iterator[World]:
    """The server, and libraries that end with the test."""
    with library_world(place, lambda: request.getfixturevalue("program")) as found:
        yield found


def given(world: World, name: str, *, client: str | None = None, key: str = "signer") -> tuple[str, Refreshing]:
    """Issue a grant to the client of a library, and hand it over with a private key."""
    client = client or name
    grant_id, tokens = world.issued(client)
    jwk = dict(derived_key(key).as_dict(private=True)) | {"kid": "k1"}
    place = Place(world.line.url, client, json.dumps(jwk))
    if name not in PYTHON:
        return grant_id, world.make(name, place, tokens)
    library = PYTHON[name](place, tokens)
    world.made.append(library)
    return grant_id, library


def test_assertions_and_proofs_are_taken(world: World, name: str) -> None:
    """RFC 7523 3, RFC 9449 5 and 8: three refreshes, each by a new assertion; a nonce is asked for and used."""
    grant_id, library = given(world, name)
    tokens = {library.refresh(), library.refresh(), library.refresh()}
    assert (3, 3) == (len(tokens), world.generation(grant_id))
    redemptions = world.redemptions(grant_id)
    assert ["private_key_jwt"] * 3 == [each["auth_method"] for each in redemptions]
    if KEYED[name].proofs == "none":
        assert all("proof_jkt" not in each for each in redemptions)
    else:
        assert 1 == len({each["proof_jkt"] for each in redemptions})
        assert {each["proof_jkt"] for each in redemptions} == {each["cnf_jkt"] for each in redemptions}
    expected = ["grant.issued", *["grant.token_redeemed", "grant.token_rotated"] * 3]
    assert expected == world.server.topics(grant_id), "what was asked for twice for its nonce happened once"


def test_a_lost_answer_costs_nothing(world: World, name: str) -> None:
    """I-10: the same call again, by another assertion and another proof, gets the same successor."""
    grant_id, library = given(world, name)
    library.refresh()  # with proofs, this one learns the nonce
    world.line.lose(lambda: len(world.redemptions(grant_id)) == 2)
    thrown_by(library.refresh)
    library.refresh()
    library.refresh()
    topics = world.server.topics(grant_id)
    assert (1, 3) == (topics.count("grant.retry_served"), topics.count("grant.token_rotated"))


def test_the_audience_is_the_one_that_the_table_says(world: World, name: str) -> None:
    """RFC 7523 3 and its update: who names the token endpoint is let in by `legacy` alone."""
    if KEYED[name].audience == "legacy":
        grant_id, library = given(world, name, client=f"{name}, strict")
        thrown, error = thrown_by(library.refresh)
        assert (KEYED[name].wrong_key, "invalid_client") == (thrown, code_of(error)[1])
        assert 0 == world.generation(grant_id)


def test_requests_oauth2client_can_name_the_issuer(world: World) -> None:
    """RFC 7523 3 and its update: told so, it needs no `legacy`."""
    client = "requests_oauth2client, strict"
    grant_id, tokens = world.issued(client)
    jwk = dict(SIGNER.key.as_dict(private=True)) | {"kid": "k1"}
    place = Place(world.line.url, client, json.dumps(jwk))
    library = RequestsOauth2clientByKeys(place, tokens, aud=world.line.url)
    world.made.append(library)
    library.refresh()
    assert 1 == world.generation(grant_id)


def test_refusals_are_typed_errors(world: World, name: str) -> None:
    """RFC 6749 5.2: another key is `invalid_client`, an ended grant `invalid_grant`."""
    grant_id, library = given(world, name, key="another")
    thrown, error = thrown_by(library.refresh)
    assert (KEYED[name].wrong_key, "invalid_client") == (thrown, code_of(error)[1])
    assert 0 == world.generation(grant_id)
    grant_id, library = given(world, name)
    world.server.operator("security", "POST", f"/grants/{grant_id}/revoke", {"reason": "test"})
    thrown, error = thrown_by(library.refresh)
    assert (KEYED[name].refused, "invalid_grant") == (thrown, code_of(error)[1])


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_shows_a_certificate(world: World, tmp_path: Path) -> None:
    """RFC 8705 2.2: `curl --cert` and the client's id are all that it takes; without the certificate it is nobody."""
    grant_id, tokens = world.issued("certified")
    place = Place(world.line.url, "certified", "")
    shown = LIBRARIES["curl"](place, tokens, options=("--cert", str(CERTIFIED.written(tmp_path))))
    held = shown.refresh()
    assert [CERTIFIED.x5t_s256] == [each["cnf_x5t_s256"] for each in world.redemptions(grant_id)]
    thrown, error = thrown_by(LIBRARIES["curl"](place, {"refresh_token": held}).refresh)
    assert ("exit 22", "invalid_client") == (thrown, code_of(error)[1])
    assert held != shown.refresh()


def test_the_guide_shows_what_was_measured() -> None:
    """The table of the guide is this one, to the character, and no library is without its trial."""
    assert {*PYTHON, *WITH_KEYS} == set(KEYED)
    assert keyed_table() in (Path(api.__file__).parent / "docs" / "libraries.md").read_text("utf-8")
