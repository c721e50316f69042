"""What commands ask through the socket beside the database: clients files, keys, rebuilds, the archive, restores."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import psycopg
import pytest

from api import clients_file, local_routes
from ledger.head_file import Acknowledged
from ledger.recorders import postgres_readers
from ledger.segments import folder_of
from tests.asking import Asking, asking
from tests.engines import url_of
from tests.wire import Json

ROUTES = [
    ("POST", "/local/apply"),
    ("GET", "/local/keys"),
    ("POST", "/local/keys/rotate"),
    ("POST", "/local/keys/1/activate"),
    ("POST", "/local/keys/1/distrust"),
    ("POST", "/local/rebuild"),
    ("POST", "/local/archive"),
    ("POST", "/local/erase"),
    ("POST", "/local/restore/acknowledge"),
]


async def local(ledger: Asking, method: str, path: str, body: Json = None) -> Json:
    """Ask through the socket; the answer must be 200."""
    content = {} if body is None else {"json": body}
    answer = await ledger.ask(method, path, local=True, **content)
    assert 200 == answer.status_code, answer.text
    return answer.json()


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_none_of_it_is_there_for_others(tmp_path: Path, method: str, path: str) -> None:
    """On the port these paths do not exist, whoever asks; only a server can mark a request as local."""
    async with asking(tmp_path) as ledger:
        for headers in ({}, {"Authorization": "Bearer admin-token-0f93ab7d65c84e12"}, {"local": "1"}):
            answer = await ledger.ask(method, path, headers=headers)
            assert (404, "not_found") == (answer.status_code, answer.json()["error"])


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_another_method_is_told_the_right_one(tmp_path: Path, method: str, path: str) -> None:
    """As everywhere."""
    async with asking(tmp_path) as ledger:
        answer = await ledger.ask("DELETE", path, local=True)
        assert (405, True) == (answer.status_code, method in answer.headers["allow"])


def file_of(ledger: Asking) -> Json:
    """The clients file as a command sends it."""
    wanted = clients_file.load(ledger.opened.folder / "clients.toml")
    return msgspec.to_builtins({"clients": wanted.clients, "operators": wanted.operators})


async def test_a_clients_file_is_applied_whole_and_tells_what_it_takes_along(tmp_path: Path) -> None:
    """A removed client's live grants are counted, and a returning one's, but none that stays suspended; a dry run
    records nothing."""
    async with asking(tmp_path) as ledger:
        for _ in range(3):
            await ledger.issue("oth")
        suspended = await ledger.issue("oth")
        await ledger.operator("admin", "POST", f"/grants/{suspended['grant_id']}/suspend", {})
        body = file_of(ledger)
        assert [] == (await local(ledger, "POST", "/local/apply", body))["differences"]
        without = {**body, "clients": [each for each in body["clients"] if each["client_id"] != "oth"]}
        before = ledger.opened.last_position()
        told = await local(ledger, "POST", "/local/apply", {**without, "dry_run": True})
        [difference] = told["differences"]
        assert ("oth", "disabled", 3) == tuple(difference[name] for name in ("name", "change", "live_grants"))
        assert (True, before) == (told["dry_run"], ledger.opened.last_position())
        await local(ledger, "POST", "/local/apply", without)
        [difference] = (await local(ledger, "POST", "/local/apply", body))["differences"]
        assert ("oth", "returned", 3) == tuple(difference[name] for name in ("name", "change", "live_grants"))


@pytest.mark.usefixtures("on_postgres")
async def test_what_cannot_be_counted_fails_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is applied by then: an error would say that it was not. A transaction that holds up every reader stands for a
    table that is too large; a second file is out of time for counting."""
    monkeypatch.setattr(postgres_readers, "SECONDS_MAX", 0.2)
    async with asking(tmp_path) as ledger:
        await ledger.issue("oth")
        body = file_of(ledger)
        without = {**body, "clients": [each for each in body["clients"] if each["client_id"] != "oth"]}
        url = url_of(ledger.opened.path)
        assert url is not None
        with psycopg.connect(url) as other:
            other.execute("SELECT pg_current_xact_id()")
            told = await local(ledger, "POST", "/local/apply", without)
        assert [("disabled", False)] == [(each["change"], "live_grants" in each) for each in told["differences"]]
        monkeypatch.setattr(local_routes, "COUNT_SECONDS_MAX", 0)
        told = await local(ledger, "POST", "/local/apply", body)
        assert [("returned", False)] == [(each["change"], "live_grants" in each) for each in told["differences"]]
        assert {each["client_id"] for each in body["clients"]} == {
            name for name, each in ledger.ledger.authority.clients.items() if each.enabled
        }


async def test_a_file_that_breaks_a_rule_is_one_line_and_nothing_is_recorded(tmp_path: Path) -> None:
    """A serial that is too low, a client twice."""
    async with asking(tmp_path) as ledger:
        body = file_of(ledger)
        await local(ledger, "POST", "/local/apply", {**body, "serial": 7})
        before = ledger.opened.last_position()
        for wrong in ({**body, "serial": 6}, body, {**body, "clients": 2 * body["clients"], "serial": 8}):
            answer = await ledger.ask("POST", "/local/apply", local=True, json=wrong)
            assert (400, "invalid_request") == (answer.status_code, answer.json()["error"])
            assert "\n" not in answer.json()["error_description"]
        assert before == ledger.opened.last_position()


async def test_a_large_clients_file_fits(tmp_path: Path) -> None:
    """The cap of the public port is for clients' requests."""
    async with asking(tmp_path) as ledger:
        body = file_of(ledger)
        many = [{**body["clients"][0], "client_id": f"client-{number}"} for number in range(300)]
        told = await local(ledger, "POST", "/local/apply", {**body, "clients": [*body["clients"], *many]})
        assert 300 == len(told["differences"])


async def test_keys_are_rotated_activated_and_distrusted(tmp_path: Path) -> None:
    """The key that signs cannot be distrusted, and a distrusted one never signs again."""
    async with asking(tmp_path) as ledger:

        async def refused(path: str) -> tuple[int, str]:
            answer = await ledger.ask("POST", path, local=True, json={})
            return answer.status_code, answer.json()["error"]

        listed = await local(ledger, "GET", "/local/keys")
        assert [(1, "active")] == [(key["id"], key["state"]) for key in listed["keys"]]
        assert 254 == listed["ids_left"]
        assert (2, "verifying") == _key(await local(ledger, "POST", "/local/keys/rotate", {}))
        assert (409, "conflict") == await refused("/local/keys/1/distrust")
        assert (2, "active") == _key(await local(ledger, "POST", "/local/keys/2/activate", {}))
        assert (1, "distrusted") == _key(await local(ledger, "POST", "/local/keys/1/distrust", {}))
        assert (409, "conflict") == await refused("/local/keys/1/activate")
        for key_id in ("3", "0", "256", "x", "1e1", "²", "00000000000000001"):
            assert (404, "not_found") == await refused(f"/local/keys/{key_id}/activate")


def _key(told: Json) -> tuple[int, str]:
    return told["id"], told["state"]


async def test_a_rebuild_tells_its_progress_and_then_what_it_found(tmp_path: Path) -> None:
    """I-13: where live and replayed differ, table, key and column are named, and the next run finds nothing."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")

        async def rebuilt() -> tuple[Json, Json]:
            answer = await ledger.ask("POST", "/local/rebuild", local=True, json={})
            assert (200, "application/x-ndjson") == (answer.status_code, answer.headers["content-type"])
            lines = [json.loads(line) for line in answer.text.splitlines()]
            return lines[:-1], lines[-1]

        progress, found = await rebuilt()
        assert all({"done", "total"} == set(line) for line in progress)
        assert ([], True, True) == (found["differences"], found["history_holds"], found["healed"])
        with closing(sqlite3.connect(ledger.opened.path)) as connection, connection:
            connection.execute("UPDATE current_tokens_v1 SET issued_by = 'x', scope = 'admin'")
        _, found = await rebuilt()
        differing = {(each["table"], each["column"]) for each in found["differences"]}
        assert {("current_tokens_v1", "issued_by"), ("current_tokens_v1", "scope")} == differing
        assert {issued["grant_id"]} == {each["key"] for each in found["differences"]}
        _, found = await rebuilt()
        assert [] == found["differences"]
        told = (await ledger.operator("auditor", "GET", f"/grants/{issued['grant_id']}")).json()
        assert (0, "read openid profile") == (told["generation"], told["scope"])


async def test_a_wrong_snapshot_is_healed_in_memory_too(tmp_path: Path) -> None:
    """What the process believed to know came from the wrong one: it is read again."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("std")
        await ledger.refresh("std", issued["refresh_token"])
        with closing(sqlite3.connect(ledger.opened.path)) as connection, connection:
            connection.execute("UPDATE streams SET state = x'00' WHERE name LIKE 'grant:%'")
        answer = await ledger.ask("POST", "/local/rebuild", local=True, json={})
        found = json.loads(answer.text.splitlines()[-1])
        assert ({"streams"}, True) == ({each["table"] for each in found["differences"]}, found["healed"])
        ledger.opened.check_memory()
        assert 200 == (await ledger.refresh("std", issued["refresh_token"])).status_code


async def test_archiving_tells_what_it_came_to_and_a_history_reads_as_before(tmp_path: Path) -> None:
    """I-23: what happened longer ago than so many days moves; younger things stay."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        await ledger.refresh("www", issued["refresh_token"])
        assert 200 == (await ledger.operator("admin", "POST", f"/grants/{issued['grant_id']}/revoke")).status_code
        before = (await ledger.operator("auditor", "GET", f"/grants/{issued['grant_id']}/events")).json()

        async def archived(body: Json) -> Json:
            answer = await ledger.ask("POST", "/local/archive", local=True, json=body)
            assert (200, "application/x-ndjson") == (answer.status_code, answer.headers["content-type"])
            return json.loads(answer.text.splitlines()[-1])

        nothing = {"events": 0, "pieces": 0, "segments": 0, "bytes": 0, "foreign": 0, "withheld": 0}
        assert nothing == await archived({"after_days": 1})
        ledger.opened.clock.pass_seconds(86_401)
        found = await archived({"after_days": 1})
        assert (4, 1, 1) == (found["events"], found["pieces"], found["segments"])
        assert before == (await ledger.operator("auditor", "GET", f"/grants/{issued['grant_id']}/events")).json()


@pytest.mark.parametrize("body", [{}, {"after_days": 0}, {"after_days": 40_000}, {"after_days": "1"}])
async def test_archiving_wants_to_know_after_how_many_days(tmp_path: Path, body: Json) -> None:
    """Nothing moves by mistake."""
    async with asking(tmp_path) as ledger:
        answer = await ledger.ask("POST", "/local/archive", local=True, json=body)
        assert (400, "invalid_request") == (answer.status_code, answer.json()["error"])


async def test_what_keeps_archiving_from_going_on_is_told_in_its_last_line(tmp_path: Path) -> None:
    """A folder that cannot be made, say; the ledger serves on."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        assert 200 == (await ledger.operator("admin", "POST", f"/grants/{issued['grant_id']}/revoke")).status_code
        await ledger.issue("www")
        ledger.opened.clock.pass_seconds(86_401)
        folder_of(ledger.opened.path).write_text("no folder")
        answer = await ledger.ask("POST", "/local/archive", local=True, json={"after_days": 1})
        told = json.loads(answer.text.splitlines()[-1])
        assert "temporarily_unavailable" == told["error"]
        assert told["error_description"].startswith("archiving was broken off, what moved stays moved: ")
        assert 200 == (await ledger.ask("GET", "/readyz")).status_code


async def test_erasing_a_person_says_whether_there_was_one(tmp_path: Path) -> None:
    """Their grants end, and nothing about them is found any more."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www", subject="alice@example.com", device="Alice's phone")
        assert {"known": True} == await local(ledger, "POST", "/local/erase", {"subject": "alice@example.com"})
        assert {"known": False} == await local(ledger, "POST", "/local/erase", {"subject": "alice@example.com"})
        told = await ledger.operator("admin", "GET", f"/grants/{issued['grant_id']}/events")
        assert "alice" not in told.text.lower()
        assert b"alice@example.com" not in ledger.opened.path.read_bytes()
        assert "revoked_by_subject" == (await ledger.refresh("www", issued["refresh_token"])).json()["reason"]


async def test_a_ring_that_cannot_be_read_keeps_a_restore_from_being_acknowledged(tmp_path: Path) -> None:
    """Whoever put it back with another mode is told so, and nothing is recorded until that is right."""
    async with asking(tmp_path) as ledger:
        log_end = ledger.ledger.log_end
        log_end.behind = Acknowledged(log_end.position + 10, ledger.clock.now)
        before = ledger.opened.last_position()
        (tmp_path / "ledger.keys").chmod(0o644)
        answer = await ledger.ask("POST", "/local/restore/acknowledge", local=True, json={})
        assert (400, "invalid_request") == (answer.status_code, answer.json()["error"])
        assert "ledger.keys" in answer.json()["error_description"]
        assert before == ledger.opened.last_position()
        (tmp_path / "ledger.keys").chmod(0o600)
        assert 2 == (await local(ledger, "POST", "/local/restore/acknowledge", {}))["key_id"]


async def test_a_restore_that_never_was_cannot_be_acknowledged(tmp_path: Path) -> None:
    """409: the log has lost nothing."""
    async with asking(tmp_path) as ledger:
        answer = await ledger.ask("POST", "/local/restore/acknowledge", local=True, json={})
        assert (409, "conflict") == (answer.status_code, answer.json()["error"])
