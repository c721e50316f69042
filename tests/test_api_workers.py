"""WORKERS=2 behind one port on PostgreSQL: signals, deaths, an end that loses nothing begun, one sum of figures."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.chaos.chains import chains_of, faults_of
from tests.chaos.load import Load
from tests.postgres import Server as Postgres
from tests.server_process import eventually
from tests.servers import Server, clients_toml
from tests.wire import Answer, request_bytes

MORE = '[[client]]\nid = "more"\nsecret = "M0re!"\nscope = "read"\n'


class Together(Server):
    """A server of two workers."""

    def workers(self) -> list[int]:
        """The processes that serve, oldest first."""
        assert self.process is not None
        with suppress(FileNotFoundError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
            return [int(pid) for pid in children.split()]
        return []

    def both_serve(self) -> bool:
        """Whether two workers listen: each has a line in the log that says so."""
        return len(self.workers()) == 2 and self.log().count(" event=serving ") >= 2

    def serving(self, number: int) -> None:
        """Wait until so many have said, over time, that they serve."""
        eventually(lambda: self.log().count(" event=serving ") >= number, what=f"worker {number}")

    def over_each(self, ask: Callable[["Together"], Answer], times: int = 12) -> set[tuple[int, str]]:
        """Ask over so many connections that both workers have answered; every answer's status and error."""
        answers = [ask(self) for _ in range(times)]
        return {(each.status, each.json().get("error", "")) for each in answers}

    def figures(self) -> dict[str, float]:
        """All figures without labels, as whichever worker was asked tells them."""
        text = self.exchange(request_bytes("GET", "/metrics")).body.decode()
        lines = (line.split() for line in text.splitlines() if line and line[0] != "#" and "{" not in line)
        return {name: float(value) for name, value, *_ in lines}


def runs(pid: int) -> bool:
    """Whether a process does anything: one that ended and that nobody has asked after has no command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except FileNotFoundError:
        return False


@pytest.fixture
def together(tmp_path: Path, postgres_url: str, postgres: Postgres) -> Iterator[Together]:
    settings = {"DATABASE_URL": postgres.over_tcp(postgres_url), "WORKERS": "2", "LOG_LEVEL": "info"}
    server = Together(tmp_path, clients=clients_toml(), settings=settings)
    server.secrets.append(postgres.password)
    server.start()
    eventually(server.both_serve, what="both workers")
    yield server
    server.stop()


def test_both_serve_one_store_and_one_is_enough(together: Together) -> None:
    """Connections are spread over both; while one is frozen the other serves those that it has."""
    grant = together.issue()
    token = grant.refresh_token
    for _ in range(12):
        answer = together.refresh("www", token)
        assert 200 == answer.status
        token = answer.json()["refresh_token"]
    frozen = together.workers()[1]
    os.kill(frozen, signal.SIGSTOP)
    try:
        heard = [together.health("/readyz", timeout_seconds=1.0) for _ in range(12)]
        assert {200, None} == set(heard), "one worker has all connections"
    finally:
        os.kill(frozen, signal.SIGCONT)
    together.over_each(lambda server: server.refresh("www", server.issue().refresh_token), 2)


def test_an_end_that_one_acknowledged_stops_the_other(together: Together) -> None:
    """I-06: revoked, disabled and registered over one connection, it holds over all."""
    grant = together.issue()
    together.refresh("www", grant.refresh_token)
    asked = {"subject": grant.subject, "reason": "left"}
    assert 200 == together.operator("issuer", "POST", "/subjects/revoke", asked).status
    assert {(400, "invalid_grant")} == together.over_each(lambda server: server.refresh("www", grant.refresh_token))


def test_a_guess_counts_whichever_worker_it_reached(together: Together) -> None:
    """TE-8: nine failures over both, then the tenth and whatever comes waits, on both."""
    source, fields = together.new_address(), {"grant_type": "refresh_token", "refresh_token": "x", "client_id": "www"}
    guess = {**fields, "client_secret": "Gu3ss!"}
    errors = [together.form("/token", guess, source=source).json()["error"] for _ in range(14)]
    assert ["invalid_client"] * 9 + ["temporarily_unavailable"] * 5 == errors


def test_a_hangup_reaches_every_worker(together: Together) -> None:
    """The clients file is read again by all; who is new in it is known over every connection."""
    together.hangup(clients_toml(more=MORE))
    eventually(lambda: together.log().count('event=reloaded what="key ring"') == 2, what="two reloads")
    eventually(lambda: together.operator("admin", "GET", "/grants?client_id=more").status == 200)
    together.secrets.append("M0re!")

    def ask(server: Together) -> Answer:
        fields = {"grant_type": "refresh_token", "refresh_token": "rt1_x", "client_id": "more"}
        return server.form("/token", {**fields, "client_secret": "M0re!"})

    eventually(lambda: {(400, "invalid_grant")} == together.over_each(ask), what="the client on both workers")


def test_figures_add_up_and_outlive_a_worker(together: Together) -> None:
    """Each scrape tells the sum of both, whoever answers; a killed worker's counts stay, and it is started again."""
    token = together.issue().refresh_token
    for _ in range(10):
        token = together.refresh("www", token).json()["refresh_token"]
    eventually(lambda: 10 == together.figures()["token_ledger_refreshes_total"], what="ten refreshes")
    assert 1 == together.figures()["token_ledger_ready"]
    time.sleep(1.2)  # so that both have written what they counted
    before = together.workers()
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: len(together.workers()) == 2 and before[0] not in together.workers(), what="another worker")
    seen = [together.figures()["token_ledger_refreshes_total"] for _ in range(8)]
    assert {10} == set(seen)
    for _ in range(6):
        token = together.refresh("www", token).json()["refresh_token"]
    eventually(lambda: 16 == together.figures()["token_ledger_refreshes_total"], what="sixteen")
    assert 1 == together.log().count("event=worker_ended")


def test_a_worker_that_was_told_to_end_is_followed_by_one_that_hears(together: Together) -> None:
    """One ends in order, alone: its socket hears nobody meanwhile, and its successor everybody."""
    first = together.workers()[0]
    os.kill(first, signal.SIGTERM)
    eventually(lambda: together.log().count(" event=serving ") >= 3, what="the next")
    assert first not in together.workers()
    assert {200} == {together.health("/readyz") for _ in range(12)}


def test_who_comes_is_served_while_a_worker_cannot_be_started_again(
    together: Together, postgres: Postgres, postgres_url: str
) -> None:
    """One was killed and its successors are not let into the store: nobody waits at its socket. Later it is there."""
    postgres.let_in(postgres_url, who_comes=False)
    try:
        os.kill(together.workers()[0], signal.SIGKILL)
        eventually(lambda: together.log().count("event=worker_ended") >= 3, what="two that did not live")
        assert {200} == {together.health("/readyz", timeout_seconds=1.0) for _ in range(24)}
        token = together.issue().refresh_token
        for _ in range(8):
            token = together.refresh("www", token).json()["refresh_token"]
    finally:
        postgres.let_in(postgres_url, who_comes=True)
    eventually(lambda: together.log().count(" event=serving ") >= 3, within_seconds=20.0, what="the next")
    assert {200} == {together.health("/readyz", timeout_seconds=1.0) for _ in range(24)}


@pytest.mark.parametrize(
    ("clients", "why"),
    [(clients_toml(more='[[client]]\nid = "new"\ncolour = "red"\n'), "colour"), ("serial = 1", "serial")],
)
def test_a_clients_file_that_is_wrong_costs_no_worker(together: Together, clients: str, why: str) -> None:
    """Whoever follows one that was killed serves by what the store holds, and says so; also where both were. Only the
    server as a whole does not start on it."""
    together.hangup("serial = 2\n" + clients_toml())
    eventually(lambda: together.log().count('event=reloaded what="key ring"') == 2, what="two reloads")
    together.hangup(clients)
    eventually(lambda: together.log().count("event=reload_failed") == 2, what="two that did not take it")
    for number in (1, 2):
        serving = together.log().count(" event=serving ") + number
        for pid in together.workers()[:number]:
            os.kill(pid, signal.SIGKILL)
        together.serving(serving)
        assert {200} == {together.health("/readyz") for _ in range(12)}
        assert 200 == together.refresh("www", together.issue().refresh_token).status
    said = [line for line in together.log().splitlines() if "event=clients_file_not_applied" in line]
    assert 3 == len(said)
    assert all("level=error" in line and "clients.toml: " in line and why in line for line in said)
    assert 0 == together.terminate()
    done = together.command("serve")
    assert (2, 1) == (done.returncode, done.stderr.count(b"\n"))
    assert why.encode() in done.stderr


def test_workers_go_on_when_a_command_has_acknowledged_a_restore(together: Together) -> None:
    """I-23: what the head file knows is not in the log. Both say so, until the command beside them; then both serve."""
    token = together.issue().refresh_token
    assert 0 == together.terminate()
    head_file = together.keys_file.with_name(together.keys_file.name + ".head")
    head = json.loads(head_file.read_bytes())
    head_file.write_text(json.dumps({**head, "position": str(int(head["position"]) + 2**40)}))
    together.start(wait=False)
    eventually(lambda: together.log().count(" event=log_behind_head_file ") >= 2, what="both workers")
    eventually(lambda: {503} == {together.health("/readyz") for _ in range(12)}, what="both unready")
    assert 503 == together.refresh("www", token).status
    done = together.command("restore", "acknowledge")
    assert 0 == done.returncode, done
    assert f"key 2 signs now: copy {together.keys_file} to every node" in done.stdout.decode()
    eventually(lambda: {200} == {together.health("/readyz") for _ in range(24)}, what="both ready")
    for _ in range(12):
        token = together.refresh("www", token).json()["refresh_token"]
    assert 1 == together.command("restore", "acknowledge").returncode


def test_sigterm_under_load_leaves_no_begun_request_unanswered(
    together: Together, count: Callable[[int, int], int]
) -> None:
    """Connections end only between requests, none is answered 503, and the exit code is 0."""
    for _ in range(count(2, 10)):
        chains = chains_of(together, 24)
        with Load(chains, until_closed=True) as load:
            time.sleep(0.4)
            code = together.terminate()
            load.stop()
        assert 0 == code, together.tail()
        assert [] == faults_of(chains)
        assert [] == [chain for chain in chains if chain.unanswered or chain.statuses[503]]
        assert load.refreshes > 0
        together.start()


def test_an_end_while_a_worker_is_still_starting_is_in_order(together: Together) -> None:
    """Told to end as soon as the first one is ready: the exit code is 0, whatever became of the other."""
    for _ in range(3):
        assert 0 == together.terminate(), together.tail()
        together.start()


def test_workers_do_not_outlive_their_parent(together: Together) -> None:
    """Killed without a word: the workers see it and end in order."""
    pids = together.workers()
    together.kill()
    eventually(lambda: not any(map(runs, pids)), what="the end of both")
    together.start()


def test_what_keeps_them_from_starting_is_said_once(together: Together, postgres: Postgres) -> None:
    """A taken port, and a store that refuses: one line, exit code 2, nobody is started again."""
    done = together.command("serve")
    taken = b"taken: another process listens there; stop it, or set TOKEN_LEDGER_PORT\n"
    assert (2, taken) == (done.returncode, done.stderr.partition(b" is ")[2])
    assert done.stderr.startswith(b"token-ledger: ")
    wrong = postgres.url("nothere", tcp=True)
    done = together.command("serve", PORT="0", DATABASE_URL=wrong)
    assert (2, 1) == (done.returncode, done.stderr.count(b"\n"))
    assert b'database "nothere" does not exist' in done.stderr
