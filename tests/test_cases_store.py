"""What went wrong for others with lists, connections and the store, each as a trial against a real server."""

import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.histories import check_history
from tests.servers import OPERATORS, Grant, Server, running
from tests.wire import Answer, Json, request_bytes

ISSUERS = 8
HOLD_SECONDS = 8.0
HOLDER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
connection.rollback()
connection.close()
"""


# -- idle connections -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patient_server(tmp_path_factory: pytest.TempPathFactory, full: bool) -> Iterator[Server]:
    """A server whose idle connections last 75 s, the default, in the full tier, and 3 s in the other."""
    settings = {} if full else {"KEEP_ALIVE_SECONDS": "3"}
    with running(tmp_path_factory.mktemp("patient"), settings=settings) as server:
        yield server


@pytest.mark.timeout(180)
@pytest.mark.parametrize("part_of_75", [15, 65])
def test_a_refresh_after_an_idle_while_is_served(patient_server: Server, full: bool, part_of_75: int) -> None:
    """Servers that end idle connections before the balancer does make a refresh meet a closing one now and then."""
    token = patient_server.issue("std").refresh_token
    with patient_server.connect() as connection:
        for _ in range(2):
            answer = patient_server.refresh("std", token, over=connection)
            assert 200 == answer.status
            token = answer.json()["refresh_token"]
            time.sleep(part_of_75 if full else part_of_75 / 25)
        assert 200 == patient_server.refresh("std", token, over=connection).status


@pytest.mark.timeout(180)
def test_a_connection_idle_for_longer_than_allowed_is_closed(patient_server: Server, full: bool) -> None:
    """The end of an idle connection comes when it was said, and between two requests."""
    idle_seconds = 75 if full else 3
    with patient_server.connect() as connection:
        assert 200 == patient_server.exchange(request_bytes("GET", "/healthz"), over=connection).status
        assert not connection.closed_by_peer(idle_seconds - 1)
        assert connection.closed_by_peer(5)


# -- long lists -------------------------------------------------------------------------------------------------------


def issue_many(server: Server, number: int, client: str, subject: str) -> list[str]:
    """Issue grants over several connections at once; return their ids."""
    wish = json.dumps({"client_id": client, "subject": subject, "scope": "read"}).encode()
    headers = {"Authorization": f"Bearer {OPERATORS['issuer']}", "Content-Type": "application/json"}
    raw = request_bytes("POST", "/grants", headers=headers, body=wish)
    found: list[str] = []

    def issue(times: int) -> None:
        with server.connect() as connection:
            for _ in range(times):
                answer = connection.exchange(raw)
                assert 201 == answer.status, answer.body
                found.append(answer.json()["grant_id"])

    shares = [number // ISSUERS + (place < number % ISSUERS) for place in range(ISSUERS)]
    threads = [threading.Thread(target=issue, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert number == len(found)
    return found


def resident_bytes(server: Server) -> int:
    """Return the server's resident memory."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])


def pages(ask: Callable[[str], Answer]) -> Iterator[Json]:
    """Follow a list to its end."""
    cursor = ""
    while True:
        page = ask(cursor).json()
        yield page
        if "next_cursor" not in page:
            return
        assert page["cursor"] == page["next_cursor"]
        assert cursor != page["cursor"], "a page that leads to itself"
        cursor = page["cursor"]


@pytest.mark.timeout(3600)
def test_a_client_with_very_many_grants_is_listed_in_constant_memory(
    own_server: Server, count: Callable[[int, int], int]
) -> None:
    """200,000 tokens of one person: the list loads all and the server dies. Here pages are bounded everywhere."""
    number = count(3_000, 200_000)
    issued = issue_many(own_server, number, "std", "collector")
    own_server.operator("auditor", "GET", "/grants?client_id=std&limit=1000")
    before = resident_bytes(own_server)

    def listed(cursor: str) -> Answer:
        further = f"&cursor={cursor}" if cursor else ""
        return own_server.operator("auditor", "GET", f"/grants?client_id=std&limit=5000{further}")

    def searched(cursor: str) -> Answer:
        further = {"cursor": cursor} if cursor else {}
        return own_server.operator("security", "POST", "/grants/search", {"subject": "collector", **further})

    for ask, size in ((listed, 1000), (searched, 100)):
        seen: list[Json] = []
        for page in pages(ask):
            assert len(page["grants"]) <= size
            seen += [(grant["issued_at"], grant["grant_id"]) for grant in page["grants"]]
        assert Counter(issued) == Counter(grant_id for _, grant_id in seen), "each grant once"
        assert sorted(at for at, _ in seen) == [at for at, _ in seen], "in log order"
    growth = resident_bytes(own_server) - before
    assert growth < 32 * 2**20, f"the lists cost {growth / 2**20:.0f} MiB"


def test_a_list_gone_through_can_be_gone_on_with_tomorrow(own_server: Server) -> None:
    """The last page has a cursor too: what comes later is found from there, nothing twice, nothing missed."""
    first = [own_server.issue("std", subject="collector").grant_id for _ in range(3)]
    page = own_server.operator("auditor", "GET", "/grants?client_id=std&limit=3").json()
    assert first == [grant["grant_id"] for grant in page["grants"]]
    assert "next_cursor" not in page
    later = own_server.issue("std").grant_id
    page = own_server.operator("auditor", "GET", f"/grants?client_id=std&limit=3&cursor={page['cursor']}").json()
    assert [later] == [grant["grant_id"] for grant in page["grants"]]


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=ten", "limit=1&limit=2", "cursor=nowhere", "state=x"])
def test_a_list_asked_for_wrongly_is_told_so(shared_server: Server, query: str) -> None:
    """`limit` is 1 to 1000, more is clamped, anything else 400."""
    answer = shared_server.operator("auditor", "GET", f"/grants?client_id=std&{query}")
    assert (400, "invalid_request") == (answer.status, answer.json()["error"])


def test_the_command_lists_every_grant_of_a_client(own_server: Server) -> None:
    """Access reviews walk what was granted: `grants --client` goes through all pages, `--json` in the same shape."""
    issued = issue_many(own_server, 1_234, "std", "collector")
    told = own_server.command("grants", "--client", "std", "--json")
    assert 0 == told.returncode, told.stderr
    assert set(issued) <= set(re.findall(r"\b[0-9a-f]{32}\b", told.stdout.decode()))


# -- a store that cannot answer ---------------------------------------------------------------------------------------


def hold_write_lock(database: Path, seconds: float) -> "subprocess.Popen[bytes]":
    """Let another process hold the database's write lock for a while; return once it does."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(database), str(seconds)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert b"held\n" == holder.stdout.readline()
    holder.stdout.close()
    return holder


def test_a_write_lock_held_elsewhere_makes_unready_and_heals(own_server: Server) -> None:
    """Readiness lies, never recovers, or hangs: here both health paths answer within 1 s whatever the store does.

    `/readyz` is 503 at latest 5 s after a commit was asked for and none succeeded, and 200 within 10 s of the release;
    no refresh is answered 500, no family dies, and versions, links and generations have no gap afterwards (I-12, I-24).
    """
    grants = [own_server.issue("std") for _ in range(4)]
    holder = hold_write_lock(own_server.database, HOLD_SECONDS)
    released_at = time.monotonic() + HOLD_SECONDS
    stop = threading.Event()
    told: list[tuple[Grant, Answer]] = []

    def keep_asking(grant: Grant) -> None:
        while not stop.is_set():
            answer = own_server.refresh("std", grant.refresh_token)
            told.append((grant, answer))
            stop.wait(0.2)

    threads = [threading.Thread(target=keep_asking, args=(grant,)) for grant in grants]
    asked_at = time.monotonic()
    for thread in threads:
        thread.start()
    health = _watch_health(own_server, until=released_at + 10)
    stop.set()
    for thread in threads:
        thread.join()
    assert 0 == holder.wait()

    assert all(took_seconds < 1 for _, _, _, took_seconds in health), "a health path was slow"
    assert {200} == {status for path, _, status, _ in health if path == "/healthz"}
    ready = [(at, status) for path, at, status, _ in health if path == "/readyz"]
    assert {503} == {status for at, status in ready if asked_at + 6 < at < released_at - 0.3}
    assert 200 == ready[-1][1], "it does not heal"
    for grant, answer in told:
        assert answer.status in (200, 503), answer.body
        if answer.status == 503:
            assert "temporarily_unavailable" == answer.json()["error"]
            assert int(answer.header("Retry-After") or "0") >= 1
        assert answer.status == 503 or grant.refresh_token != answer.json()["refresh_token"]
    for grant in grants:
        successors = {a.json()["refresh_token"] for g, a in told if g is grant and a.status == 200}
        assert 1 == len(successors), "one successor, whatever was unknown on the way"
        assert 200 == own_server.refresh("std", successors.pop()).status
        check_history(own_server.events(grant.grant_id))
        assert "grant.reuse_detected" not in own_server.topics(grant.grant_id)
    rebuilt = own_server.command("rebuild")
    assert 0 == rebuilt.returncode, rebuilt.stdout + rebuilt.stderr


def _watch_health(server: Server, until: float) -> list[tuple[str, float, int | None, float]]:
    """Ask both health paths until they are well again, or until the time is up: (path, when, status, seconds)."""
    seen: list[tuple[str, float, int | None, float]] = []
    while time.monotonic() < until:
        for path in ("/healthz", "/readyz"):
            started = time.monotonic()
            seen.append((path, started, server.health(path), time.monotonic() - started))
        if any(status == 503 for _, _, status, _ in seen) and seen[-1][2] == 200:
            break
        time.sleep(0.1)
    return seen
