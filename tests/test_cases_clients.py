"""What went wrong for others with clients, persons and secrets, each as a trial against a real server."""

import json
import re
import sqlite3
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.server_process import eventually
from tests.servers import Server, basic, clients_toml
from tests.wire import FORM, TOKEN_PATH, Answer, Json, form_bytes, request_bytes

TWO_SECRETS = """
[[client]]
id = "two"
secret = ["0ld!secret", "N3w!secret"]
scope = "read"
"""
NEW_SECRET = TWO_SECRETS.replace('["0ld!secret", "N3w!secret"]', '"N3w!secret"')


def refresh_with(server: Server, client: str, secret: str, token: str) -> Answer:
    """Refresh by HTTP Basic, each time from an address that has no failures yet."""
    headers = {"Authorization": basic(client, secret), "Content-Type": FORM}
    body = form_bytes({"grant_type": "refresh_token", "refresh_token": token})
    return server.exchange(request_bytes("POST", TOKEN_PATH, headers=headers, body=body), source=server.new_address())


def counters(server: Server) -> Mapping[str, float]:
    """Return every series of the ledger's own metrics."""
    text = server.exchange(request_bytes("GET", "/metrics")).body.decode()
    series = re.findall(r"^(token_ledger_\S+(?:\{.*\})?) ([0-9.e+-]+)$", text, re.M)
    return {name: float(value) for name, value in series}


def grown(server: Server, act: Callable[[], object]) -> set[str]:
    """Return the series that an act has moved up, times left out."""
    before = counters(server)
    act()
    after = counters(server)
    return {name for name, value in after.items() if value > before.get(name, 0.0) and "seconds" not in name}


# -- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ['secret = "Secr3t!\\n"', 'secret = ["good", "Secr3t!\\n"]', 'id = "w:w"', 'id = "a\\n"']
)
def test_a_clients_file_with_an_unlawful_secret_or_id_is_refused(own_server: Server, tmp_path: Path, line: str) -> None:
    """A secret read from a file carries a line feed: said at `apply`, by file, client and field, never the value."""
    name = line.partition(" = ")[0]
    table = {"id": '"fresh"', "secret": '"Fine!"', "scope": '"read"', name: line.partition(" = ")[2]}
    file = tmp_path / "wrong.toml"
    file.write_text("[[client]]\n" + "".join(f"{key} = {value}\n" for key, value in table.items()))
    told = own_server.command("apply", str(file))
    said = told.stderr.decode()
    assert (2, 1) == (told.returncode, len(said.splitlines())), said
    assert "wrong.toml" in said
    assert name in said
    assert "Secr3t!" not in said + told.stdout.decode()
    if name != "id":
        assert "fresh" in said


def test_a_secret_is_changed_without_an_outage(own_server: Server) -> None:
    """Two secrets for a while, both work; the one taken out is refused at once, and nobody is signed out."""
    own_server.secrets += ["0ld!secret", "N3w!secret"]
    own_server.hangup(clients_toml(more=TWO_SECRETS))
    eventually(lambda: _may_issue(own_server, "two"), what="the new client")
    grant = own_server.issue("two", scope="read")
    tokens = [grant.refresh_token]

    def use(secret: str) -> None:
        answer = refresh_with(own_server, "two", secret, tokens[-1])
        assert 200 == answer.status, answer.body
        tokens.append(answer.json()["refresh_token"])

    use("0ld!secret")  # series that come into being with the first refresh are not what is looked for
    old = grown(own_server, lambda: use("0ld!secret"))
    new = grown(own_server, lambda: use("N3w!secret"))
    assert old - new, f"no metric tells whether the old secret is still used: {sorted(old)}"
    own_server.hangup(clients_toml(more=NEW_SECRET))
    eventually(
        lambda: refresh_with(own_server, "two", "0ld!secret", tokens[-1]).status == 401, what="the old secret's end"
    )
    use("N3w!secret")
    assert "active" == own_server.look(grant.grant_id)["status"]


def _may_issue(server: Server, client: str) -> bool:
    wish = {"client_id": client, "subject": "probe", "scope": "read"}
    return server.operator("issuer", "POST", "/grants", wish).status == 201


# -- clients that go and come back ------------------------------------------------------------------------------------


def test_a_removed_client_is_dead_while_away_and_its_return_says_what_comes_back(
    own_server: Server, tmp_path: Path
) -> None:
    """Something made again under an old name must not give old tokens their power back unsaid."""
    kept, ended = own_server.issue("oth"), own_server.issue("oth")
    own_server.revoke("oth", ended.refresh_token)
    without, with_it = tmp_path / "without.toml", tmp_path / "with.toml"
    without.write_text(clients_toml(without=["oth"]))
    with_it.write_text(clients_toml())
    gone = own_server.command("apply", str(without))
    assert (0, b"") == (gone.returncode, gone.stderr)
    assert re.search(rb"\both\b.*\b1\b", gone.stdout), gone.stdout

    unknown = own_server.refresh("oth", kept.refresh_token, source=own_server.new_address())
    assert (400, "invalid_client") == (unknown.status, unknown.json()["error"])
    assert {"active": False} == own_server.introspect(kept.access_token)
    assert {"active": False} == own_server.introspect(kept.refresh_token)
    assert 400 == own_server.operator("issuer", "POST", "/grants", _wish("oth")).status
    grant = own_server.look(kept.grant_id)
    assert ("suspended", "client_disabled") == (grant["status"], grant["blocked_by"])
    page = own_server.operator("auditor", "GET", "/grants?client_id=oth").json()["grants"]
    assert [kept.grant_id, ended.grant_id] == [grant["grant_id"] for grant in page], "grants of removed clients stay"

    tried = own_server.command("apply", "--dry-run", str(with_it))
    assert re.search(rb"\both\b.*\b1\b", tried.stdout), tried.stdout
    assert "suspended" == own_server.look(kept.grant_id)["status"], "a dry run changes nothing"
    back = own_server.command("apply", str(with_it))
    assert (0, b"") == (back.returncode, back.stderr)
    assert re.search(rb"\both\b.*\b1\b", back.stdout), back.stdout
    assert "active" == own_server.look(kept.grant_id)["status"]
    assert 200 == own_server.refresh("oth", kept.refresh_token, source=own_server.new_address()).status
    assert 400 == own_server.refresh("oth", ended.refresh_token, source=own_server.new_address()).status


def test_a_client_revoked_while_away_comes_back_with_nothing(own_server: Server, tmp_path: Path) -> None:
    """`revoke --client` between removal and return ends what would have come back, for good (I-07)."""
    grant = own_server.issue("oth")
    file = tmp_path / "clients.toml"
    file.write_text(clients_toml(without=["oth"]))
    assert 0 == own_server.command("apply", str(file)).returncode
    assert 0 == own_server.command("revoke", "--client", "oth", "--reason", "gone").returncode
    file.write_text(clients_toml())
    assert 0 == own_server.command("apply", str(file)).returncode
    refused = own_server.refresh("oth", grant.refresh_token)
    assert (400, "revoked_by_operator") == (refused.status, refused.json()["reason"])
    assert {"active": False} == own_server.introspect(grant.access_token)


def test_piled_up_grants_are_found_and_ended_by_client_and_time(own_server: Server) -> None:
    """No cap yet: what clients that sign in anew each run leave behind is ended with `before`."""
    old = [own_server.issue("std") for _ in range(5)]
    time.sleep(0.01)
    moment = datetime.now(UTC).isoformat()
    time.sleep(0.01)
    young = own_server.issue("std")
    told = own_server.command("revoke", "--client", "std", "--before", moment, "--reason", "pile")
    assert (0, b"") == (told.returncode, told.stderr)
    page = own_server.operator("security", "GET", "/grants?client_id=std&state=active").json()
    assert [young.grant_id] == [grant["grant_id"] for grant in page["grants"]]
    for grant in old:
        assert 400 == own_server.refresh("std", grant.refresh_token).status
    assert 200 == own_server.refresh("std", young.refresh_token).status


def _wish(client: str) -> Json:
    return {"client_id": client, "subject": "person", "scope": "read"}


# -- for whom a token is ----------------------------------------------------------------------------------------------

ONE, TWO = "https://one.example/api", "https://two.example"
TWO_RESOURCES = f"""
[[client]]
id = "res"
secret = "R3source!"
scope = "read"
resource = ["{ONE}", "{TWO}", "https://third.example"]
"""


def test_the_audience_outlives_refreshes_and_no_other_is_accepted(own_server: Server) -> None:
    """RFC 8707 2.2: what was granted is kept when left out, narrowed on demand, and back again; a third is refused."""
    own_server.secrets.append("R3source!")
    own_server.hangup(clients_toml(more=TWO_RESOURCES))
    eventually(lambda: _may_issue(own_server, "res"), what="the new client")
    wish = {"client_id": "res", "subject": "person", "scope": "read", "resource": [ONE, TWO]}
    token = own_server.operator("issuer", "POST", "/grants", wish).json()["refresh_token"]
    fields = {"grant_type": "refresh_token", "client_id": "res", "client_secret": "R3source!"}
    for asked, audience in (
        ([], [ONE, TWO]),
        ([ONE], ONE),
        ([], [ONE, TWO]),
        ([TWO + "/"], TWO),
        ([TWO, ONE], [ONE, TWO]),
    ):
        form = [*fields.items(), ("refresh_token", token), *(("resource", resource) for resource in asked)]
        for other in ("https://third.example", "https://fourth.example", ONE + "#part", "one.example"):
            refused = own_server.form(TOKEN_PATH, [*form, ("resource", other)])
            assert (400, "invalid_target") == (refused.status, refused.json()["error"])
        answer = own_server.form(TOKEN_PATH, form)
        assert 200 == answer.status, answer.body
        assert audience == own_server.introspect(answer.json()["access_token"])["aud"]
        token = answer.json()["refresh_token"]


# -- persons ----------------------------------------------------------------------------------------------------------


def test_subjects_are_compared_byte_for_byte(shared_server: Server) -> None:
    """An e-mail written in another case: said to be unknown, not `0 revoked` that nobody notices."""
    subject = "Ada.Lovelace@example.org"
    grant = shared_server.issue("www", subject=subject)
    for other in ("ada.lovelace@example.org", "Ada.Lovelace@example.org ", "Ada.Lovelace@example\uff0eorg"):
        told = shared_server.operator("security", "POST", "/subjects/revoke", {"subject": other, "reason": "asked"})
        assert (200, False) == (told.status, told.json()["known"])
        assert [] == shared_server.operator("security", "POST", "/grants/search", {"subject": other}).json()["grants"]
    assert ["grant.issued"] == shared_server.topics(grant.grant_id)
    told = shared_server.operator("security", "POST", "/subjects/revoke", {"subject": subject, "reason": "asked"})
    assert (200, True) == (told.status, told.json()["known"])
    assert 400 == shared_server.refresh("www", grant.refresh_token).status


def test_an_erased_person_is_in_no_file_and_the_erasure_is_on_record(own_server: Server) -> None:
    """After `erase` no page, no WAL and no log holds the person; `subject.erased` says when and who asked."""
    person, device, session, agent = "Grace-Hopper-1906", "Device-of-Grace", "Session-of-Grace", "Agent-of-Grace/1.0"
    address = "127.200.31.7"
    stays = own_server.issue(subject="Somebody-who-stays")
    grant = own_server.issue("www", subject=person, device=device, session=session)
    answer = own_server.refresh("www", grant.refresh_token, agent=agent, source=address)
    token = answer.json()["refresh_token"]
    reason = "Reason-about-Grace"
    own_server.operator("security", "POST", f"/grants/{grant.grant_id}/suspend", {"reason": reason})
    traces = [word.encode() for word in (person, device, session, agent, address, reason)]
    kept = [trace for trace in traces if trace in _all_bytes(own_server)]
    assert traces == kept, "a trace that cannot be found proves nothing"

    told = own_server.command("erase", "--subject", person)
    assert (0, b"") == (told.returncode, told.stderr)
    left = [trace for trace in traces if trace in _all_bytes(own_server)]
    assert [] == left
    assert 400 == own_server.refresh("www", token).status
    told_of = own_server.operator("security", "GET", f"/grants/{grant.grant_id}").json()
    assert "subject" not in told_of
    assert "withdrawal" == told_of["end"]["reason_class"]
    assert 200 == own_server.refresh("www", stays.refresh_token).status
    again = own_server.issue("www", subject=person)
    found = own_server.operator("security", "POST", "/grants/search", {"subject": person}).json()["grants"]
    assert [again.grant_id] == [found_grant["grant_id"] for found_grant in found]
    assert 0 == own_server.terminate()
    (erased,) = _stored_events(own_server.database, "subject.erased")
    assert "operator:local" == erased["requested_by"]
    assert abs(datetime.now(UTC) - datetime.fromisoformat(erased["at"])).total_seconds() < 60


def _all_bytes(server: Server) -> bytes:
    kept = (server.clients_file,)
    return b"".join(path.read_bytes() for path in server.folder.rglob("*") if path.is_file() and path not in kept)


def _stored_events(database: Path, topic: str) -> list[Json]:
    """Return the stored events of a topic, wherever in the file's tables their bytes lie."""
    found = []
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                texts = [bytes(cell) if isinstance(cell, bytes) else str(cell).encode() for cell in row]
                found += [json.loads(text) for text in texts if f'"topic":"{topic}"'.encode() in text]
    finally:
        connection.close()
    return found


def test_what_others_sent_stays_on_one_line_of_the_terminal(own_server: Server) -> None:
    """Control characters and line separators in what others sent are escaped wherever people read it."""
    grant = own_server.issue(device="first\u2028second\x1b[31m")
    forged = "over\nevent=reuse_detected\r\u2029=cmd|' /C calc'!A0"
    own_server.operator("admin", "POST", f"/grants/{grant.grant_id}/revoke", {"reason": forged})
    for words in (("grant", "show"), ("grant", "history")):
        told = own_server.command(*words, grant.grant_id)
        assert 0 == told.returncode, told.stderr
        text = told.stdout.decode()
        assert not set(text) & {"\x1b", "\r", "\u2028", "\u2029", "\x85"}
        assert not any(line.startswith(("event=", "second", "=cmd")) for line in text.splitlines())
    for line in own_server.log().split("\n"):
        assert not line.startswith("event=reuse_detected")
