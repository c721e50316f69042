"""What `serve` does around the server: opening, recording, reading again, waiting for a restore, closing in order."""

import asyncio
import errno
import json
import re
import shutil
import signal
import sqlite3
import ssl
import stat
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

import api
from api import serving
from api.cli.certificate import write_certificate
from api.serving import Serving
from api.settings import Settings
from api.wiring import open_ledger
from ledger.refusals import Unavailable
from tests.bulk import issue_many, persons
from tests.chaos.shims import Faults
from tests.places import Place
from tests.postgres import Server as Postgres
from tests.server_process import eventually
from tests.servers import Server, clients_toml, running
from tests.serving import logged
from tests.wire import Json

POSITIONS = ("from_position", "lost_position")
MORE = '[[client]]\nid = "more"\nsecret = "M0re!"\nauth = "client_secret"\nscope = "read"\n'


def recorded(server: Server, stream: str) -> list[Json]:
    """Every event of a stream, oldest first, read from the file beside the server."""
    question = "SELECT e.body FROM events e JOIN streams s ON e.stream = s.id WHERE s.name = ? ORDER BY e.position"
    connection = sqlite3.connect(f"file:{server.database}?mode=ro", uri=True)
    try:
        return [json.loads(body) for (body,) in connection.execute(question, (stream,))]
    finally:
        connection.close()


def topics(server: Server, stream: str) -> list[str]:
    return [event["topic"] for event in recorded(server, stream)]


def lines(server: Server, event: str) -> list[str]:
    return [line for line in server.log().splitlines() if f" event={event} " in line + " "]


def test_serve_on_a_new_file_does_what_init_does_and_says_so(own_server: Server) -> None:
    """Key ring and database are made, for their owner alone; a second start has nothing to make."""
    assert 1 == len(lines(own_server, "created"))
    assert 1 == len(lines(own_server, "serving"))
    assert all(0o600 == path.stat().st_mode & 0o777 for path in (own_server.database, own_server.keys_file))
    own_server.restart()
    assert 1 == len(lines(own_server, "created"))
    assert 2 == len(lines(own_server, "serving"))


def test_the_start_and_a_stop_in_order_are_recorded(own_server: Server) -> None:
    """`ledger.started` and `ledger.stopped` by `operator:local`; a kill leaves no stop."""
    assert ["ledger.started"] == topics(own_server, "ledger")
    own_server.restart()
    own_server.restart(kill=True)
    assert 0 == own_server.terminate()
    expected = ["started", "stopped", "started", "started", "stopped"]
    assert [f"ledger.{what}" for what in expected] == topics(own_server, "ledger")
    assert {"operator:local"} == {event["requested_by"] for event in recorded(own_server, "ledger")}


def test_the_clients_file_is_applied_at_the_start_and_at_a_hangup(own_server: Server) -> None:
    """Each change is an event and a log line; what did not change is none."""
    assert ["client.registered"] == topics(own_server, "client:www")
    own_server.restart()
    assert ["client.registered"] == topics(own_server, "client:www")
    own_server.hangup(clients=clients_toml(without=["www"], more=MORE))
    eventually(lambda: ["client.registered"] == topics(own_server, "client:more"), what="the new client")
    assert ["client.registered", "client.disabled"] == topics(own_server, "client:www")
    said = eventually(lambda: [line for line in lines(own_server, "clients_file") if "www" in line][1:], what="a line")
    assert "disabled" in said[0]


def test_a_hangup_while_the_process_leaves_is_no_failure(own_server: Server) -> None:
    """Whoever renews a certificate does not know that somebody has just asked for the end."""
    assert own_server.process is not None
    own_server.signal(signal.SIGTERM)
    while own_server.process.poll() is None:
        own_server.signal(signal.SIGHUP)
        time.sleep(0.001)
    assert 0 == own_server.process.returncode


def test_a_certificate_is_read_again_at_a_hangup(tmp_path: Path) -> None:
    """New handshakes see the new one; a wrong one is one log line and the old one serves on."""
    with running(tmp_path / "server", tls=True) as server:
        before = certificate_of(server)
        (server.folder / "tls.pem").write_text("nothing of the kind")
        server.hangup()
        said = eventually(lambda: lines(server, "reload_failed"), what="the line about the certificate")
        assert "TOKEN_LEDGER_TLS_CERT: " in said[0]
        assert before == certificate_of(server)
        (server.folder / "tls.pem").unlink()
        (server.folder / "tls.key").unlink()
        write_certificate(server.folder / "tls.pem", server.folder / "tls.key")
        server.client_tls = ssl.create_default_context(cafile=server.folder / "tls.pem")
        server.hangup()
        eventually(lambda: certificate_of(server) != before, what="the new certificate")


def certificate_of(server: Server) -> str:
    return ssl.get_server_certificate(("127.0.0.1", server.port))


def test_a_key_ring_is_read_again_at_a_hangup(own_server: Server) -> None:
    """One that holds a key more is taken; one that lacks a key held before changes nothing."""
    ring = own_server.keys_file.read_bytes()
    assert 0 == own_server.command("keys", "rotate").returncode
    grown = own_server.keys_file.read_bytes()
    own_server.keys_file.write_bytes(ring)
    own_server.hangup()
    said = eventually(lambda: lines(own_server, "reload_failed"), what="the line about the key ring")
    assert "lacks key 2, which is in use" in said[0]
    own_server.keys_file.write_bytes(grown)
    own_server.hangup()
    eventually(lambda: [line for line in lines(own_server, "reloaded") if "ring" in line], what="the ring read again")
    assert 0 == own_server.command("keys", "activate", "2").returncode


def test_a_head_file_that_is_off_is_said_at_every_start(tmp_path: Path) -> None:
    """Whoever does without it is reminded."""
    with running(tmp_path / "server", settings={"HEAD_FILE": "off"}) as server:
        assert 1 == len(lines(server, "head_file_off"))
        server.restart()
        assert 2 == len(lines(server, "head_file_off"))
        assert not list(server.folder.glob("*.head"))


def test_a_store_that_no_power_cut_may_meet_is_said_at_every_start(tmp_path: Path, postgres: Postgres) -> None:
    """I-09: such as the trials' own PostgreSQL. SQLite's file always is on the disk."""
    url = postgres.over_tcp(postgres.create_database())
    with running(tmp_path / "server", settings={"DATABASE_URL": url}) as server:
        (told,) = lines(server, "store_not_durable")
        assert "off at this server: fsync, full_page_writes" in told
    with running(tmp_path / "alone") as server:
        assert not lines(server, "store_not_durable")


def test_a_restored_backup_waits_for_its_acknowledgement_beside_the_running_server(own_server: Server) -> None:
    """I-23: unready, every answer 503, nothing recorded; then it goes on without a restart, above what was lost."""
    lost = restored(own_server)
    own_server.start(wait=False)
    eventually(lambda: 200 == own_server.health("/healthz"), what="/healthz 200", within_seconds=20)
    assert 503 == own_server.health("/readyz")
    assert 503 == own_server.refresh("www", lost.refresh_token).status
    assert 2 == own_server.command("grants").returncode
    before = topics(own_server, "ledger")

    done = own_server.command("restore", "acknowledge", "--json")
    assert 0 == done.returncode, done
    report = json.loads(done.stdout)
    assert {"from_position": str, "lost_position": str} == {name: type(report[name]) for name in POSITIONS}
    assert int(report["lost_position"]) > int(report["from_position"])
    own_server.wait_ready()
    eventually(
        lambda: [*before, "ledger.restored", "ledger.started"] == topics(own_server, "ledger"),
        what="the start recorded",
    )
    assert 400 == own_server.refresh("www", lost.refresh_token).status
    assert 200 == own_server.refresh("www", own_server.issue("www").refresh_token).status
    assert 1 == own_server.command("restore", "acknowledge").returncode


def test_a_clients_file_that_is_wrong_keeps_a_restored_server_from_nothing_else(own_server: Server) -> None:
    """It is told; but the start is on record, and so is the end."""
    own_server.hangup("serial = 5\n" + clients_toml())
    eventually(lambda: lines(own_server, "clients_file"), what="the file applied")
    restored(own_server)
    own_server.write_clients("serial = 4\n" + clients_toml())
    own_server.start(wait=False)
    eventually(lambda: 200 == own_server.health("/healthz"), what="/healthz 200", within_seconds=20)
    before = topics(own_server, "ledger")
    assert 0 == own_server.command("restore", "acknowledge").returncode
    began = [*before, "ledger.restored", "ledger.started"]
    eventually(lambda: began == topics(own_server, "ledger"), what="the start recorded")
    assert "serial: 4 is lower than 5" in lines(own_server, "clients_file_not_applied")[-1]
    assert 0 == own_server.terminate()
    assert [*began, "ledger.stopped"] == topics(own_server, "ledger")


async def test_what_keeps_a_restored_server_from_beginning_is_told_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a disk that is full at that very moment: the server lives on for weeks."""
    monkeypatch.setattr(serving, "BEGIN_AGAIN_SECONDS", 0.0)
    begun: list[object] = []

    async def begin(ledger: object) -> None:
        begun.append(ledger)
        if len(begun) < 3:
            raise (Unavailable, ValueError)[len(begun) - 1]("not now")

    serves = Serving(Settings())
    monkeypatch.setattr(serves, "_begin", begin)
    ledger = SimpleNamespace(behind=None)
    with logged() as said:
        await serves._begin_after_restore(ledger)  # type: ignore[arg-type]  # all that it looks at
    assert [ledger] * 3 == begun
    assert ["not_begun"] * 2 == said.events


def restored(server: Server) -> Json:
    """Stop the server, put back a backup that is older than its last grant; that grant."""
    assert 0 == server.terminate()
    shutil.copyfile(server.database, server.folder / "backup.db")
    server.start()
    lost = server.issue("www")
    put_back(server)
    return lost


def put_back(server: Server) -> None:
    """Kill the server, put `backup.db` in its database's place."""
    time.sleep(1.5)  # the head file is written about once a second
    server.kill()
    for path in server.folder.glob("token-ledger.db*"):
        if path.suffix != ".lock":
            path.unlink()
    shutil.copyfile(server.folder / "backup.db", server.database)


def test_a_backup_beside_the_ring_of_today_knows_what_is_newer(own_server: Server) -> None:
    """I-15: so the guide leaves the ring where it is. Distrust is lost with the backup, and said to be repeated; no
    number of a key is given twice."""
    grant = own_server.issue("www")
    assert 0 == own_server.terminate()
    shutil.copyfile(own_server.database, own_server.folder / "backup.db")
    own_server.start()
    for act in (("rotate",), ("activate", "2"), ("distrust", "1")):
        assert 0 == own_server.command("keys", *act).returncode
    newer = own_server.refresh("www", grant.refresh_token).json()["refresh_token"]
    put_back(own_server)
    own_server.start(wait=False)
    eventually(lambda: 200 == own_server.health("/healthz"), what="/healthz 200", within_seconds=20)
    done = own_server.command("restore", "acknowledge")
    assert (0, "distrust" in str(done.stdout)) == (done.returncode, True)
    own_server.wait_ready()
    listed = json.loads(own_server.command("keys", "list", "--json").stdout)["keys"]
    assert {1: "verifying", 3: "active"} == {key["id"]: key["state"] for key in listed}
    assert "ahead" == json.loads(own_server.command("explain", "--json", stdin=newer).stdout)["verdict"]
    assert "suspended" == own_server.refresh("www", newer).json()["reason"]


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="there is no sqlite3 here to copy the database with")
def test_the_guides_copy_is_of_one_moment_beside_refreshes(own_server: Server, tmp_path: Path) -> None:
    """Of several megabytes, while each refresh changes the database: `.backup` alone would begin anew at each, and not
    end where there are many."""
    guide = (Path(api.__file__).parent / "docs" / "running.md").read_text("utf-8")
    (command,) = re.findall(r"^    (umask .*sqlite3 .*)$", guide, re.MULTILINE)
    assert 0 == own_server.terminate()
    asyncio.run(fill(own_server, 4_000))
    own_server.start()
    stop = threading.Event()

    def refresh(token: str) -> None:
        while not stop.is_set():
            token = own_server.refresh("www", token).json()["refresh_token"]

    with ThreadPoolExecutor() as pool:
        loads = [pool.submit(refresh, own_server.issue("www").refresh_token) for _ in range(4)]
        try:
            done = subprocess.run(["sh", "-c", command], cwd=own_server.folder, capture_output=True, timeout=20)
        finally:
            stop.set()
        for load in loads:
            load.result()
    assert 0 == done.returncode, done
    copied = own_server.folder / "copy.db"
    assert 0o600 == stat.S_IMODE(copied.stat().st_mode)
    with closing(sqlite3.connect(copied)) as connection:
        assert [(int(done.stdout),)] == connection.execute("SELECT max(position) FROM events").fetchall()
    place = Place(tmp_path / "elsewhere")
    shutil.move(copied, place.folder / "token-ledger.db")
    shutil.copy(own_server.keys_file, place.folder / "token-ledger.keys")
    assert 0 == place.here("rebuild").returncode


async def fill(server: Server, grants: int) -> None:
    """So many grants more in the database of a server that has ended."""
    head = server.keys_file.with_name(server.keys_file.name + ".head")
    settings = Settings(database_url=f"sqlite:///{server.database}", keys_file=server.keys_file, head_file=head)
    async with open_ledger(settings, create=False) as ledger:
        async for _ in issue_many(ledger, persons(grants, client_id="www", scope=("read",))):
            pass


def test_a_store_that_cannot_be_served_leaves_port_and_files_alone(tmp_path: Path) -> None:
    """Where the start fails halfway, all of it is given back."""
    server = Server(tmp_path / "server")
    server.start()
    assert 0 == server.terminate()
    ring = server.keys_file.read_bytes()
    server.keys_file.unlink()
    server.start(wait=False)
    assert server.process is not None
    assert 2 == server.process.wait(20)
    assert "there is no key ring here" in server.errors()
    server.keys_file.write_bytes(ring)
    server.keys_file.chmod(0o600)
    server.start()
    server.stop()


def test_a_store_that_failed_ends_the_server_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-12: after an input/output error no 200, exit code 2, and standard error says why; the next start serves."""
    faults = Faults(tmp_path, ".db-wal$")
    for name, value in faults.variables.items():
        monkeypatch.setenv(name, value)
    server = Server(tmp_path / "server")
    server.start()
    grant = server.issue("www")
    faults.fail_syncs(1, errno.EIO)
    assert 503 == server.refresh("www", grant.refresh_token).status
    assert server.process is not None
    assert 2 == server.process.wait(20)
    expected = "token-ledger: stopped, because the store failed: the database failed: SQLITE_IOERR_FSYNC\n"
    assert expected == server.errors()
    server.start()
    assert 200 == server.refresh("www", grant.refresh_token).status
    server.stop()


def test_a_folder_that_vanishes_ends_the_server_with_one_line(tmp_path: Path) -> None:
    """I-09: nothing is acknowledged that nobody finds again; once the folder is back the retry gets its successor."""
    folder = tmp_path / "data"
    folder.mkdir()
    settings = {"DATABASE_URL": f"sqlite:///{folder / 'ledger.db'}"}
    server = Server(tmp_path / "server", settings=settings)
    server.start()
    grant = server.issue("std")
    folder.rename(tmp_path / "elsewhere")
    assert 503 == server.refresh("std", grant.refresh_token).status
    assert server.process is not None
    assert 2 == server.process.wait(20)
    line = f"token-ledger: stopped, because the store failed: {folder / 'ledger.db'} is not there any more, or another"
    assert f"{line} file\n" == server.errors()
    (tmp_path / "elsewhere").rename(folder)
    server.start()
    assert 200 == server.refresh("std", grant.refresh_token).status
    server.stop()
