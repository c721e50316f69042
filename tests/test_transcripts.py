"""The black-box vectors V1–V67 of the token endpoint as transcripts, each run against a real server process."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.certificates import certificate
from tests.servers import Server, clients_toml, running
from tests.transcripts import Run, is_step, run_vector
from tests.vectors import Expected, Vector, load, parse
from tests.wire import Answer, check_answer, secrets_in

VECTORS = load(is_step)
H = (("Date", "Sun, 06 Nov 1994 08:49:37 GMT"), ("Cache-Control", "no-store"), ("Pragma", "no-cache"))
TOKEN = "rt1_" + 72 * "A"


CERTIFICATES = {
    "own": certificate("CN=own"),
    "page": certificate("CN=page"),
    "other": certificate("CN=other"),
    "expired": certificate("CN=expired", days=(-9, -1)),
}
SHOWN = {
    f"{form} {name}": text
    for name, party in CERTIFICATES.items()
    for form, text in (("certificate", party.rfc9440), ("pem", party.escaped), ("x5t", party.x5t_s256))
}
SHOW_CERTIFICATES = f"""
[[client]]
id = "own"
auth = "self_signed_tls_client_auth"
jwks = {{ keys = [{{ x5c = ["{CERTIFICATES["own"].x5c}"] }}] }}
scope = "read openid profile"

[[client]]
id = "page"
auth = "none"
tls_client_certificate_bound_access_tokens = true
scope = "read openid profile"
"""


def proxied(folder: Path, settings: Mapping[str, str]) -> AbstractContextManager[Server]:
    """A server behind a proxy, from which it learns the certificates of clients."""
    behind = {"TRUSTED_PROXIES": "127.255.255.254", "TLS_CLIENT_CERT_HEADER": "Client-Cert"}
    return running(folder, clients=clients_toml(more=SHOW_CERTIFICATES), settings={**behind, **settings})


@pytest.fixture(scope="session")
def proxied_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with proxied(tmp_path_factory.mktemp("proxied"), {}) as server:
        yield server


@pytest.fixture(scope="session")
def proxied_workers(
    tmp_path_factory: pytest.TempPathFactory, two_workers: Callable[[], dict[str, str]]
) -> Iterator[Server]:
    with proxied(tmp_path_factory.mktemp("proxied"), two_workers()) as server:
        yield server


@pytest.fixture
def server_for(request: pytest.FixtureRequest, tmp_path: Path, window_seconds: int) -> Iterator[Server]:
    """The shared server; for a vector that ends the process one of its own, for certificates the one that sees them.
    Each is one process on SQLite, or two workers on PostgreSQL."""
    vector, processes = (request.node.callspec.params[name] for name in ("vector", "processes"))
    if vector.place.startswith("9-certificates"):
        yield request.getfixturevalue("proxied_server" if processes == 1 else "proxied_workers")
    elif not vector.restarts:
        yield request.getfixturevalue("shared_server" if processes == 1 else "shared_workers")
    else:
        clients = clients_toml(window_seconds=window_seconds)
        settings = {} if processes == 1 else request.getfixturevalue("two_workers")()
        with running(tmp_path / "server", clients=clients, settings=settings) as server:
            yield server


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every vector on SQLite; over two workers a tenth of them by default, all with `--full`."""
    if "vector" in metafunc.fixturenames:
        stride = 1 if metafunc.config.option.full else 10
        cases = [("sqlite", vector, 1) for vector in VECTORS]
        cases += [("two-workers-on-postgresql", vector, 2) for vector in VECTORS[::stride]]
        metafunc.parametrize(
            ("vector", "processes"),
            [(vector, processes) for _, vector, processes in cases],
            ids=[f"{vector.number}-{name}" for name, vector, _ in cases],
        )


def test_vector(vector: Vector, processes: int, server_for: Server, window_seconds: int) -> None:
    """Each request of the transcript gets the answer that stands below it (RFC 6749 5 and 6)."""
    run_vector(vector, server_for, {"window": str(window_seconds), "half": str(window_seconds / 2), **SHOWN})


def test_every_vector_has_its_transcript() -> None:
    """V1–V67 are all there, and of those after them what is built so far."""
    assert {f"V{number}" for number in range(1, 68)} <= {
        match[0] for vector in VECTORS if (match := re.match(r"V\d+", vector.number))
    }


def test_no_log_of_the_vectors_holds_a_token(shared_server: Server) -> None:
    """V96 over all that this worker's server has logged so far at DEBUG; its end asks once more (I-20)."""
    run_vector(VECTORS[0], shared_server, {})
    assert shared_server.tokens
    assert shared_server.log()
    shared_server.check_log()


@pytest.mark.parametrize(
    ("wanted", "found", "told"),
    [
        ('{"scope": "read"}', '{"scope": "read write"}', "body.scope: 'read write', not 'read'"),
        ('{"error": "{{a|b}}"}', '{"error": "c"}', "body.error: 'c' does not match '{{a|b}}'"),
        ('{"error": "{{a|b}}"}', '{"error": "a", "more": 1}', "body: ['more'] not expected"),
        ('{"error": "{{a|b}}", "at": 1}', '{"error": "a"}', "body: ['at'] missing in ['error']"),
        ('{"expires_in": "{{1..9}}"}', '{"expires_in": 10}', "body.expires_in: 10 outside 1..9"),
        ('{"expires_in": "{{1..9}}"}', '{"expires_in": "5"}', "body.expires_in: '5' is no integer"),
        ('{"refresh_token": "{{new RT1}}"}', '{"refresh_token": "first"}', "body.refresh_token: RT1 is not new"),
        ('{"refresh_token": "{{RT0}}"}', '{"refresh_token": "other"}', "body.refresh_token: 'other' does not match"),
    ],
)
def test_an_answer_that_differs_is_caught(tmp_path: Path, wanted: str, found: str, told: str) -> None:
    """The broken twin of every vector: a body other than the transcript's fails, and the failure says where."""
    run = Run(Server(tmp_path), {"RT0": "first"}, "127.0.0.1")
    run.answers = [Answer(200, H, found.encode())]
    with pytest.raises(AssertionError, match=re.escape(told)):
        run._judge([Expected(1, frozenset({200}), (), wanted)])


def test_two_successors_among_parallel_answers_are_caught(tmp_path: Path) -> None:
    """I-03's broken twin: what is new in one of several answers must be the same in all of them."""
    run = Run(Server(tmp_path), {}, "127.0.0.1")
    kind = Expected(2, frozenset({200}), (), '{"refresh_token": "{{new RT1}}"}')
    run.answers = [Answer(200, H, b'{"refresh_token": "one"}')] * 2
    run._judge([kind])
    run.answers = [Answer(200, H, b'{"refresh_token": "two"}'), Answer(200, H, b'{"refresh_token": "three"}')]
    with pytest.raises(AssertionError, match="'three' does not match"):
        run._judge([kind])


@pytest.mark.parametrize(
    "text", ["-- issue to www", "== V1 · x\n-- make coffee", "== V1 · x\nGET / HTTP/1.1", "== V1 · x\n< 200"]
)
def test_a_line_that_no_rule_knows_is_no_transcript(text: str) -> None:
    """A step misspelled must not pass for a step done."""
    with pytest.raises(AssertionError):
        parse(text, "x.txt", is_step)


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (500, (), b'{"error": "server_error"}'),
        (307, (), b""),
        (400, (("Pragma", "no-store"),), b'{"error": "invalid_grant"}'),
        (400, (), b'{"error": "invalid_grant", "reason": null}'),
        (400, (), b'{"error": "invalid_grant", "error_description": "say \\"no\\""}'),
        (400, (), b'{"error": "invalid_grant", "error_description": "Secr3t! is wrong"}'),
        (400, (), b'{"error": "invalid_grant", "error_description": "no token ' + TOKEN.encode() + b'"}'),
        (400, (), b"nope"),
        (200, (), b'{"access_token": "a", "token_type": "bearer", "expires_in": 1}'),
    ],
)
def test_an_answer_that_breaks_what_all_keep_is_caught(
    status: int, headers: tuple[tuple[str, str], ...], body: bytes
) -> None:
    """V96's broken twins: status, headers, null, charset, a secret or a token told, a shape of no token response."""
    now = Answer(status, (*headers, *_kept(headers)), body)
    with pytest.raises(AssertionError):
        check_answer(now, "POST", "/token", ["Secr3t!"])


def _kept(changed: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    kept = (*H[1:], ("Date", formatdate(usegmt=True)), ("Content-Type", "application/json"))
    return tuple(pair for pair in kept if pair[0] not in dict(changed))


def test_an_answer_that_keeps_it_all_passes() -> None:
    """The twins above fail for what is broken in them, not for what they share."""
    check_answer(Answer(400, _kept(()), b'{"error": "invalid_grant"}'), "POST", "/token", ["Secr3t!"])


def test_a_token_in_a_log_is_caught() -> None:
    """I-20's broken twin: a token by its spelling, by its tail alone, a secret; ordinary lines pass."""
    assert [] == secrets_in(b"event=started grant=019a3f2a6e0b7c11a2b3c4d5e6f70809", [TOKEN], ["Secr3t!"])
    assert ["a token at byte 2"] == secrets_in(b"t=rt1_" + 60 * b"Z", [], [])
    assert ["the tail of a token at byte 2"] == secrets_in(b"t=" + TOKEN[-30:].encode(), [TOKEN], [])
    assert ["secret number 0"] == secrets_in(b"password Secr3t! refused", [], ["Secr3t!"])
