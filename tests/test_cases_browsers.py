"""What went wrong for others with pages in browsers, each as a trial against a real server."""

import json

from tests.server_process import eventually
from tests.servers import Server, basic
from tests.wire import TOKEN_PATH, Answer

LISTED = "https://app.example"


def test_a_page_can_tell_signed_out_from_no_network(own_server: Server) -> None:
    """CORS headers come with 200, 400, 401, 413, 429 and 503 alike, for a listed origin, and with none for others."""
    tokens = {origin: own_server.issue("web").refresh_token for origin in (LISTED, "https://evil.example", "null")}

    def ask(origin: str, source: str = "127.0.0.1", **fields: str) -> Answer:
        form = {"grant_type": "refresh_token", "client_id": "web", "refresh_token": "nope", **fields}
        return own_server.form(TOKEN_PATH, form, headers={"Origin": origin}, source=source)

    def failing(origin: str) -> Answer:
        headers = {"Origin": origin, "Authorization": basic("www", "wrong")}
        return own_server.form(TOKEN_PATH, {}, headers=headers, source=sources[origin])

    sources = {origin: own_server.new_address() for origin in tokens}
    answers = [
        (status, origin, answer)
        for origin in tokens
        for status, answer in (
            (200, ask(origin, refresh_token=tokens[origin])),
            (400, ask(origin)),
            (413, ask(origin, scope="x" * 9000)),
            (401, [failing(origin) for _ in range(9)][-1]),
            (429, failing(origin)),
        )
    ]
    _lose_the_end_of_the_log(own_server)
    answers += [(503, origin, ask(origin)) for origin in tokens]
    for status, origin, answer in answers:
        told = (LISTED, None) if origin == LISTED else (None, None)
        assert (status, "Origin") == (answer.status, answer.header("Vary")), (origin, answer)
        assert told == (
            answer.header("Access-Control-Allow-Origin"),
            answer.header("Access-Control-Allow-Credentials"),
        )


def _lose_the_end_of_the_log(server: Server) -> None:
    """Start again on a log that ends before what was acknowledged, as after an older backup was put back (I-23)."""
    assert 0 == server.terminate()
    head_file = server.keys_file.with_name(server.keys_file.name + ".head")
    head = json.loads(head_file.read_bytes())
    head_file.write_text(json.dumps({**head, "position": str(int(head["position"]) + 100)}))
    server.start(wait=False)
    eventually(lambda: 200 == server.health("/healthz"), what="/healthz 200", within_seconds=20)
