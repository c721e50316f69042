"""What went wrong for others with tokens and requests, each as a trial against a real server."""

import re
import threading
import time
from collections.abc import Callable

import pytest

from tests.histories import check_history
from tests.servers import OPERATORS, Server
from tests.wire import FORM, TOKEN_PATH, Answer, Json, form_bytes, request_bytes

OPAQUE_CHARACTERS = 76


def refresh_body(server: Server, token: str, client: str = "www") -> bytes:
    return form_bytes({"grant_type": "refresh_token", "refresh_token": token, **server.credentials(client)})


def post(server: Server, path: str, body: bytes, *content_types: str, host: str = "localhost") -> Answer:
    headers = [("Content-Type", value) for value in content_types]
    return server.exchange(request_bytes("POST", path, host=host, headers=headers, body=body))


def assert_lives(server: Server, token: str, client: str = "www", scope: str = "read openid profile") -> str:
    """Assert that a refresh token buys what it should, and return its successor."""
    answer = server.refresh(client, token)
    assert 200 == answer.status, answer.body
    assert scope == answer.json()["scope"]
    return str(answer.json()["refresh_token"])


# -- tokens and what surrounds them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("around", ["{}\n", "\n{}", " {}", "{}\r\n", "{} "])
def test_a_token_with_white_space_is_refused_by_the_endpoint_and_named_by_explain(
    shared_server: Server, around: str
) -> None:
    """A token read from a file carries a line feed: the endpoint keeps one spelling, `explain` helps."""
    grant = shared_server.issue()
    refused = shared_server.refresh("www", around.format(grant.refresh_token))
    assert (400, "invalid_grant") == (refused.status, refused.json()["error"])
    told = shared_server.operator("security", "POST", "/explain", {"token": around.format(grant.refresh_token)}).json()
    assert ("current", grant.grant_id, 0) == (told["verdict"], told["grant_id"], told["generation"])
    assert_lives(shared_server, grant.refresh_token)


def test_the_explain_command_ignores_white_space_around_a_token(shared_server: Server) -> None:
    """`token-ledger explain < token.txt`: exit 0 while the token is current, 1 when it is not."""
    grant = shared_server.issue()
    alive = shared_server.command("explain", stdin=f"{grant.refresh_token}\n")
    assert (0, b"") == (alive.returncode, alive.stderr)
    assert grant.grant_id.encode() in alive.stdout
    assert grant.refresh_token.encode() not in alive.stdout
    shared_server.revoke("www", grant.refresh_token)
    dead = shared_server.command("explain", stdin=f"  {grant.refresh_token}\r\n")
    assert (1, b"") == (dead.returncode, dead.stderr)
    assert grant.grant_id.encode() in dead.stdout


@pytest.mark.parametrize("client", ["www", "std", "mob", "keep"])
def test_tokens_keep_their_length_over_a_hundred_refreshes(shared_server: Server, client: str) -> None:
    """A token that grows no longer fits the client's column after the server has rotated."""
    grant = shared_server.issue(client)
    lengths = {len(grant.access_token), len(grant.refresh_token)}
    token = grant.refresh_token
    with shared_server.connect() as connection:
        for _ in range(100):
            body = shared_server.refresh(client, token, over=connection).json()
            token = body["refresh_token"]
            lengths |= {len(token), len(body["access_token"])}
    assert {OPAQUE_CHARACTERS} == lengths


def test_no_answer_to_a_client_carries_an_absolute_time(shared_server: Server) -> None:
    """Clients with wrong clocks loop: token answers say how long, never until when."""
    grant = shared_server.issue("std")
    answer = shared_server.refresh("std", grant.refresh_token)
    numbers = [value for value in answer.json().values() if isinstance(value, int)]
    assert all(0 < number < 1_000_000_000 for number in numbers)
    assert not re.search(rb"\d{4}-\d\d-\d\dT", answer.body)


def test_clocks_are_told_on_every_answer(shared_server: Server) -> None:
    """`Date` within two seconds on errors too; `Server.exchange` checks it on each answer of every test."""
    for path, method in (("/no-such", "GET"), (TOKEN_PATH, "GET"), (TOKEN_PATH, "POST"), ("/healthz", "GET")):
        assert shared_server.exchange(request_bytes(method, path)).header("Date")


# -- requests as they really come -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [TOKEN_PATH + "/", "/token/", "//token", "/oauth//v2/oauth-token", "/token/x"])
def test_another_path_is_404_and_never_a_redirect(shared_server: Server, path: str) -> None:
    """A redirect built from the request's Host sends the client's secret elsewhere."""
    grant = shared_server.issue()
    answer = post(shared_server, path, refresh_body(shared_server, grant.refresh_token), FORM, host="evil.example")
    assert 404 == answer.status
    assert [] == answer.all("Location")
    assert b"evil.example" not in answer.body + "".join(value for _, value in answer.headers).encode()
    assert_lives(shared_server, grant.refresh_token)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded;charset=utf-8",
        "Application/X-WWW-Form-URLEncoded",
        'application/x-www-form-urlencoded; charset="UTF-8"',
        "application/x-www-form-urlencoded ; charset=utf-8",
        "application/x-www-form-urlencoded;",
        "application/x-www-form-urlencoded; charset=utf-8;",
        "application/x-www-form-urlencoded; charset=ISO-8859-1",
        "application/x-www-form-urlencoded; charset=us-ascii",
    ],
)
def test_every_spelling_of_the_media_type_is_served(shared_server: Server, content_type: str) -> None:
    """RFC 9110 8.3.1: case, quotes, spaces and parameters do not change what a body is."""
    grant = shared_server.issue()
    answer = post(shared_server, TOKEN_PATH, refresh_body(shared_server, grant.refresh_token), content_type)
    assert 200 == answer.status, answer.body


def test_two_content_types_are_refused(shared_server: Server) -> None:
    """RFC 9110 5.3: nobody can say which of the two the client meant."""
    grant = shared_server.issue()
    answer = post(shared_server, TOKEN_PATH, refresh_body(shared_server, grant.refresh_token), FORM, FORM)
    assert (400, "invalid_request") == (answer.status, answer.json()["error"])
    assert_lives(shared_server, grant.refresh_token)


def test_a_json_body_is_told_the_media_type_not_an_unknown_grant(shared_server: Server) -> None:
    """TE-2: `unsupported_grant_type` for a JSON body hides what is wrong."""
    body = b'{"grant_type": "refresh_token", "client_id": "www", "client_secret": "x", "refresh_token": "y"}'
    answer = post(shared_server, TOKEN_PATH, body, "application/json")
    assert (400, "invalid_request") == (answer.status, answer.json()["error"])
    assert FORM in answer.json()["error_description"]


def test_no_misspelled_scope_hands_out_the_whole_scope_unsaid(shared_server: Server) -> None:
    """A list as `scope[]`, a BOM, CR LF at the end: refused, or ignored and the answer's `scope` says so."""
    grant = shared_server.issue()
    form = refresh_body(shared_server, grant.refresh_token)
    for body, error in (
        (form + b"&scope%5B%5D=read&scope%5B%5D=openid", "invalid_request"),
        (form + b"&scope[]=read&scope[]=openid", "invalid_request"),
        (b"\xef\xbb\xbf" + form + b"&scope=read", "invalid_request"),
        (form + b"&scope=\xef\xbb\xbfread", "invalid_request"),  # neither a mark nor a raw control is form encoding
        (form + b"&scope=read\r\n", "invalid_request"),
        (form + b"&scope=read%0D%0A", "invalid_scope"),
    ):
        answer = post(shared_server, TOKEN_PATH, body, FORM)
        assert (400, error) == (answer.status, answer.json()["error"]), body[-30:]
    answer = post(shared_server, TOKEN_PATH, form + b"&scope%5B%5D=read", FORM)
    assert (200, "read openid profile") == (answer.status, answer.json()["scope"])


def test_offline_access_is_dropped_before_the_check(shared_server: Server) -> None:
    """Libraries add `offline_access` to every refresh; it is echoed only where it was granted."""
    without = shared_server.issue("std", scope="read openid")
    answer = shared_server.refresh("std", without.refresh_token, scope="read openid offline_access")
    assert (200, "read openid") == (answer.status, answer.json()["scope"])
    assert ["grant.issued", "grant.token_redeemed", "grant.token_rotated"] == shared_server.topics(without.grant_id)
    granted = shared_server.issue("std", scope="read offline_access")
    answer = shared_server.refresh("std", granted.refresh_token, scope="read offline_access")
    assert (200, "read offline_access") == (answer.status, answer.json()["scope"])


def test_the_lawful_forms_of_http_are_all_served(shared_server: Server) -> None:
    """RFC 9112: chunked, absolute-form, HTTP/1.0, `Expect: 100-continue`, and two requests in one packet."""
    token = shared_server.issue().refresh_token

    def one(lines: str, body: bytes, again: bytes = b"") -> list[Answer]:
        head = lines.replace("HOST", f"localhost:{shared_server.port}").replace("LENGTH", str(len(body)))
        raw = head.replace("\n", "\r\n").encode() + f"Content-Type: {FORM}\r\n\r\n".encode() + body
        with shared_server.connect() as connection:
            connection.send(raw + again)
            return [shared_server.checked(each, connection.answer()) for each in filter(None, (raw, again))]

    def plain(token: str) -> bytes:
        return refresh_body(shared_server, token)

    def chunked(token: str) -> bytes:
        body = plain(token)
        return b"%x\r\n%b\r\n%x;note=1\r\n%b\r\n0\r\n\r\n" % (9, body[:9], len(body) - 9, body[9:])

    post_line = f"POST {TOKEN_PATH} HTTP/1.1\nHost: HOST\n"
    for lines, body in (
        (post_line + "Transfer-Encoding: chunked\n", chunked),
        (f"POST http://HOST{TOKEN_PATH} HTTP/1.1\nHost: HOST\nContent-Length: LENGTH\n", plain),
        (f"POST {TOKEN_PATH} HTTP/1.0\nContent-Length: LENGTH\n", plain),
        (post_line + "Expect: 100-continue\nContent-Length: LENGTH\n", plain),
    ):
        (answer,) = one(lines, body(token))
        assert 200 == answer.status, (lines, answer.body)
        token = answer.json()["refresh_token"]
    again = request_bytes("GET", "/healthz")
    first, second = one(post_line + "Content-Length: LENGTH\n", plain(token), again)
    assert (200, 200) == (first.status, second.status)
    assert "refresh_token" in first.json()
    assert "refresh_token" not in second.json()


# -- lifetimes --------------------------------------------------------------------------------------------------------


def test_introspecting_a_refresh_token_speaks_of_that_token(shared_server: Server) -> None:
    """RFC 7662 2.2: `active` and `exp` are those of the token presented, not of the access token beside it."""
    grant = shared_server.issue("brief")  # its access tokens live two seconds
    time.sleep(2.1)
    assert {"active": False} == shared_server.introspect(grant.access_token)
    for asked_by in (None, "brief"):
        told = shared_server.introspect(grant.refresh_token, asked_by)
        assert told["active"] is True
        assert 86_390 <= told["exp"] - time.time() <= 86_400


def test_access_tokens_end_with_the_grant_and_not_with_the_refresh_token(shared_server: Server) -> None:
    """Absolute end after 3 s: `expires_in` says so, and at 3.2 s the token is inactive though nobody presented any."""
    grant = shared_server.issue("std", grant_ttl_seconds=3)
    idle = shared_server.issue("std", refresh_token_ttl_seconds=2)
    answer = shared_server.refresh("std", grant.refresh_token)
    issued_by = time.monotonic()
    assert 1 <= answer.json()["expires_in"] <= 3
    assert shared_server.introspect(answer.json()["access_token"])["active"] is True
    time.sleep(issued_by + 3.2 - time.monotonic())
    assert {"active": False} == shared_server.introspect(answer.json()["access_token"])
    assert {"active": False} == shared_server.introspect(grant.access_token)
    assert "expired" == shared_server.look(grant.grant_id)["status"]
    assert "grant.expired" not in shared_server.topics(grant.grant_id)
    assert {"active": False} == shared_server.introspect(idle.refresh_token)
    assert shared_server.introspect(idle.access_token)["active"] is True


def test_lifetimes_given_at_sign_in_rule_every_later_rotation(shared_server: Server) -> None:
    """A kiosk's ten minutes must not become thirty days at the first refresh (RFC 9700 2.2.2)."""
    grant = shared_server.issue("std", refresh_token_ttl_seconds=600, grant_ttl_seconds=3600)
    token = grant.refresh_token
    for _ in range(5):
        body = shared_server.refresh("std", token).json()
        assert 595 <= body["refresh_token_timeout"] <= 600
        assert 3595 <= body["authorization_expires_in"] <= 3600
        token = body["refresh_token"]


def test_a_given_idle_time_slides_and_then_ends(shared_server: Server) -> None:
    """Two seconds without a refresh end the token; a refresh inside them starts them anew."""
    grant = shared_server.issue("std", refresh_token_ttl_seconds=2)
    token = grant.refresh_token
    for _ in range(2):
        time.sleep(1.1)
        token = assert_lives(shared_server, token, "std")
    time.sleep(2.3)
    refused = shared_server.refresh("std", token)
    assert (400, "expired_idle") == (refused.status, refused.json()["reason"])


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ({"refresh_token_ttl_seconds": 31 * 86_400}, "invalid_request"),
        ({"grant_ttl_seconds": 366 * 86_400}, "invalid_request"),
        ({"grant_ttl_seconds": 0}, "invalid_request"),
        ({"colour": "red"}, "invalid_request"),
        ({"client_id": "nobody"}, "invalid_request"),
        ({"scope": "read write"}, "invalid_scope"),
        ({"subject": "a\nb"}, "invalid_request"),
        ({"subject": ""}, "invalid_request"),
    ],
)
def test_a_grant_that_the_policy_does_not_give_is_refused(shared_server: Server, members: Json, error: str) -> None:
    """Lifetimes only shorten, unknown members and clients are errors, scope stays within the client's."""
    asked = {"client_id": "std", "subject": "person", "scope": "read", **members}
    answer = shared_server.operator("issuer", "POST", "/grants", asked)
    assert (400, error) == (answer.status, answer.json()["error"])


# -- what one sees of one's own writes, and of others' ----------------------------------------------------------------


def test_what_was_just_written_is_seen_by_every_reader(shared_server: Server, count: Callable[[int, int], int]) -> None:
    """Reads that lag make a token issued a moment ago unknown: 200 rounds without pause over four connections."""
    faults: list[str] = []

    def rounds(number: int, times: int) -> None:
        with shared_server.connect(source=shared_server.new_address()) as connection:
            for _ in range(times):
                faults.extend(_one_round(shared_server, connection, f"reader-{number}"))

    threads = [threading.Thread(target=rounds, args=(number, count(20, 50))) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == faults


def _one_round(server: Server, connection: Json, subject: str) -> list[str]:
    def ask(role: str, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> Json:
        headers = {"Authorization": f"Bearer {OPERATORS[role]}", "Content-Type": kind}
        return server.exchange(request_bytes(method, path, headers=headers, body=body), over=connection).json()

    wish = f'{{"client_id": "std", "subject": "{subject}", "scope": "read openid"}}'.encode()
    issued = ask("issuer", "POST", "/grants", wish)
    refreshed = server.refresh("std", issued["refresh_token"], over=connection, scope="read").json()
    token = form_bytes({"token": refreshed["access_token"]})
    told = ask("security", "POST", "/introspect", token, FORM)
    old = ask("security", "POST", "/introspect", form_bytes({"token": issued["refresh_token"]}), FORM)
    grant = ask("auditor", "GET", f"/grants/{issued['grant_id']}")
    topics = [event["topic"] for event in ask("auditor", "GET", f"/grants/{issued['grant_id']}/events")["events"]]
    seen = (told.get("active"), told.get("scope"), old, grant["generation"], grant["scope"], sorted(topics))
    written = ["grant.issued", "grant.scope_reduced", "grant.token_redeemed", "grant.token_rotated"]
    wanted = (True, "read", {"active": False}, 1, "read", written)
    return [] if wanted == seen else [f"{seen}"]


def test_refusals_look_alike_to_whoever_is_not_the_owner(shared_server: Server) -> None:
    """I-19: unknown, malformed, current, retired, revoked and expired tokens of another get the same bytes."""
    current = shared_server.issue().refresh_token
    retired, used = shared_server.issue().refresh_token, shared_server.issue()
    assert_lives(shared_server, retired)
    revoked = shared_server.issue().refresh_token
    shared_server.revoke("www", revoked)
    expired = shared_server.issue(refresh_token_ttl_seconds=2).refresh_token
    time.sleep(2.1)
    tokens = ["nope", current[:-1], current[:40] + "AAAA" + current[44:], current, retired, revoked, expired]
    for client in ("oth", "spa"):
        answers = [shared_server.refresh(client, token) for token in [*tokens, used.access_token]]
        told = {
            (answer.status, answer.body, tuple(pair for pair in answer.headers if pair[0].lower() != "date"))
            for answer in answers
        }
        assert 1 == len(told), told
    assert_lives(shared_server, current)


def test_a_copy_read_minutes_ago_is_served_while_its_successor_is_unused(shared_server: Server) -> None:
    """A job presents what it read at its start: `unconfirmed` for a client that authenticates, reuse for another."""
    job = shared_server.issue("late")
    first = shared_server.refresh("late", job.refresh_token).json()
    public = shared_server.issue("tab")
    assert_lives(shared_server, public.refresh_token, "tab")
    time.sleep(1.3)  # past the retry window of one second
    second = shared_server.refresh("late", job.refresh_token, source=shared_server.new_address())
    assert 200 == second.status, second.body
    assert first["refresh_token"] == second.json()["refresh_token"]
    served = shared_server.events(job.grant_id)[-1]
    assert ("grant.retry_served", "unconfirmed", True) == (
        served["topic"],
        served["data"]["kind"],
        served["data"]["counts"],
    )
    assert_lives(shared_server, first["refresh_token"], "late")
    after = shared_server.refresh("late", job.refresh_token)
    assert (400, "reuse_detected") == (after.status, after.json()["reason"])
    told = shared_server.refresh("tab", public.refresh_token)
    assert (400, "reuse_detected") == (told.status, told.json()["reason"])
    for grant in (job, public):
        check_history(shared_server.events(grant.grant_id))
