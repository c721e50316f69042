"""A hundred thousand wounded forms, put to both HTTP parsers: no 5xx, no traceback, and refusals that look alike.

Wounds to what carries the forms, HTTP itself, are dealt in `test_api_server_hostile.py`.
"""

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.fuzz_forms import BATCH, INACTIVE, REFUSED, TOKENS, Bench, Wounded, alike, forms, judge, readable
from tests.servers import SECRETS, Server, clients_toml
from tests.wire import FORM, INTROSPECT_PATH, REVOKE_PATH, TOKEN_PATH, Answer, Connection, request_bytes

LASTING = 'policy = { preset = "stable", access_token_ttl_seconds = 86400 }'  # no token may end during the trial
Headers = tuple[tuple[str, str], ...]
H: Headers = (("content-type", "application/json"), ("cache-control", "no-store"))


class WithoutHttptools(Server):
    """A server where httptools is not installed, so that it speaks HTTP by h11."""

    def environment(self) -> dict[str, str]:
        hidden = self.folder / "hidden"
        hidden.mkdir(exist_ok=True)
        (hidden / "httptools.py").write_text("raise ImportError('not installed here')\n")
        found = super().environment()
        return found | {"PYTHONPATH": os.pathsep.join([str(hidden), found["PYTHONPATH"]])}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """One server on each parser; their logs are searched for tracebacks, tokens and secrets at the end."""
    kinds = (("httptools", Server), ("h11", WithoutHttptools))
    clients = clients_toml().replace('policy = "stable"', LASTING)
    assert LASTING in clients
    servers = [kind(tmp_path_factory.mktemp(name), clients=clients) for name, kind in kinds]
    try:
        for server in servers:
            server.start()
        yield servers[0], servers[1]
    except BaseException:
        for server in servers:
            server.kill()
        raise
    for server in servers:
        server.stop()


def tokens_of(server: Server) -> dict[str, str]:
    """A token of every kind that a refusal could tell apart."""
    brief = server.issue("keep", refresh_token_ttl_seconds=1)
    live, retired, revoked = server.issue("keep"), server.issue("susp"), server.issue("keep")
    suspended, foreign = server.issue("susp"), server.issue("oth")
    assert 200 == server.refresh("susp", retired.refresh_token).status  # the next use of it is reuse
    assert 200 == server.revoke("keep", revoked.refresh_token).status
    assert 200 == server.operator("security", "POST", f"/grants/{suspended.grant_id}/suspend", {}).status
    time.sleep(1.1)  # not used meanwhile: each use would put the end off
    assert 400 == server.refresh("keep", brief.refresh_token).status
    token = live.refresh_token
    return {
        "live": token,
        "retired": retired.refresh_token,
        "revoked": revoked.refresh_token,
        "expired": brief.refresh_token,
        "suspended": suspended.refresh_token,
        "access": live.access_token,
        "foreign": foreign.refresh_token,
        "forged": token[:40] + ("A" if token[40] != "A" else "B") + token[41:],
        "nothing": "nope",
    }


def test_the_two_servers_do_not_parse_alike(both: tuple[Server, Server]) -> None:
    """A method that nobody has registered tells which parser is at work: llhttp knows it not, h11 lets it through."""
    assert [400, 405] == [_status(server.connect(), "FOO") for server in both]


def _status(connection: Connection, method: str) -> int:
    with connection:
        return connection.exchange(request_bytes(method, "/token")).status


def test_no_form_breaks_anything_and_both_parsers_answer_alike(
    both: tuple[Server, Server], count: Callable[[int, int], int]
) -> None:
    """100,000 forms to each parser in the full tier (H28, I-19): each judged alone, then the two answers compared."""
    first, second = (Bench(server, tokens_of(server)) for server in both)
    assert {*TOKENS} == set(first.tokens) == set(second.tokens)
    source = forms(20, SECRETS)
    statuses: Counter[int] = Counter()
    for _ in range(count(5_000, 100_000) // BATCH):
        batch = list(itertools.islice(source, BATCH))
        for form, one, other in zip(batch, first.answers(batch), second.answers(batch), strict=True):
            assert alike(one, other), (readable(form), one, other)
            statuses[one.status] += 1
    assert {200, 400, 401, 413} == set(statuses), statuses
    assert min(statuses[200], statuses[400], statuses[401]) > sum(statuses.values()) // 50, statuses
    for bench in (first, second):
        live = bench.server.refresh("keep", bench.tokens["live"], source=bench.server.new_address())
        assert 200 == live.status, live


# -- broken twins -----------------------------------------------------------------------------------------------------


def _form(*parts: bytes | str, path: str = TOKEN_PATH, sender: str = "keep") -> Wounded:
    return Wounded(path, sender, FORM, None, parts)


@pytest.mark.parametrize(
    ("form", "status", "body"),
    [
        (_form(b"a=b"), 500, b'{"error":"server_error"}'),
        (_form(b"a=b"), 503, b'{"error":"temporarily_unavailable"}'),
        (_form(b"refresh_token=", "foreign"), 400, b'{"error":"invalid_grant","error_description":"not yours"}'),
        (_form(b"refresh_token=", "foreign"), 400, REFUSED[:-1] + b',"reason":"rotated"}'),
        (_form(b"refresh_token=", "live", sender="oth"), 400, REFUSED[:-1] + b',"reason":"rotated"}'),
        (_form(b"refresh_token=", "live"), 418, b'{"error":"teapot"}'),
        (_form(b"token=", "live", path=INTROSPECT_PATH), 200, b'{"active":false,"scope":"read"}'),
        (_form(b"token=", "live", path=INTROSPECT_PATH), 200, b'{"active":"no"}'),
    ],
)
def test_an_answer_that_breaks_something_is_caught(form: Wounded, status: int, body: bytes) -> None:
    """A 5xx, words of its own for a stranger's token, a reason for whoever is no owner, a status or shape untold."""
    with pytest.raises(AssertionError):
        judge(form, Answer(status, H, body))


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, H, REFUSED),
        (400, (*H, ("retry-after", "1")), REFUSED),
        (400, H, REFUSED.replace(b"unknown", b"foreign")),
        (400, H, REFUSED[:-1] + b',"reason":"rotated"}'),
    ],
)
def test_answers_that_differ_are_told_apart(status: int, headers: Headers, body: bytes) -> None:
    """A status, a header, a word, a member; what must differ between two ledgers may."""
    expected = Answer(400, (("date", "now"), *H), REFUSED)
    assert alike(expected, Answer(400, (("date", "then"), *H), REFUSED))
    assert not alike(expected, Answer(status, (("date", "now"), *headers), body))
    ended = (REFUSED[:-1] + b',"reason":"rotated","event_id":"grant:%d/5"}' % grant for grant in (1, 2))
    assert alike(*(Answer(400, (("date", "now"), *H), told) for told in ended))


def test_answers_that_keep_it_all_pass() -> None:
    """The twins above fail for what is broken in them."""
    judge(_form(b"refresh_token=", "foreign"), Answer(400, H, REFUSED))
    judge(_form(b"refresh_token=", "retired", sender="susp"), Answer(400, H, REFUSED[:-1] + b',"reason":"rotated"}'))
    judge(_form(b"token=", "foreign", path=INTROSPECT_PATH), Answer(200, H, INACTIVE))


def test_forms_are_wounded_in_every_way_and_the_same_again_from_the_same_seed() -> None:
    """A failure can be made again; few forms stay whole, and few tokens are spared."""
    first, again = ([*itertools.islice(forms(7, SECRETS), 2000)] for _ in range(2))
    assert first == again
    whole = sum(form.media_type == FORM and b"filler" not in form.body(dict.fromkeys(TOKENS, "t")) for form in first)
    assert 1000 < whole < 2000
    assert {part for form in first for part in form.parts if isinstance(part, str)} == {*TOKENS}
    assert 100 < len({form.parts for form in first})
    assert {TOKEN_PATH, "/token", REVOKE_PATH, INTROSPECT_PATH} == {form.path for form in first}
