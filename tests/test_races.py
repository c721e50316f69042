"""Many at once: refreshes of one token, and refreshes against every kind of revocation (I-01, I-03, I-05, I-06)."""

import hashlib
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest

from tests.histories import check_history, stored_bytes
from tests.pairs import EACH, Pair, serving
from tests.servers import CALLBACK, Grant, Server
from tests.wire import Answer, Connection, Json

AT_ONCE = 100
REFRESHERS = 4
SEED = 20_261_125
BUYS = ("grant.issued", "grant.token_redeemed", "grant.token_rotated", "grant.retry_served")


@pytest.fixture(scope="module", params=EACH)
def racing_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the races alone: a client-wide revocation ends nobody else's grants. It is one process, or two whose
    grants are touched by both in turn."""
    postgres = None if request.param == "sqlite" else request.getfixturevalue("postgres")
    with serving(tmp_path_factory.mktemp("races"), postgres, {"LOG_LEVEL": "info"}) as server:
        yield server


@pytest.fixture
def count(count: Callable[[int, int], int], racing_server: Server) -> Callable[[int, int], int]:
    """As everywhere; by default fewer over two nodes, which decide by the same rules."""
    return count if not isinstance(racing_server, Pair) else lambda default, in_full: count(-(-default // 4), in_full)


def all_at_once(server: Server, connections: Sequence[Connection], raw: bytes) -> list[Answer]:
    """Send the same request over every connection at the same moment."""
    answers: list[Answer] = []
    gate = threading.Barrier(len(connections))

    def send(connection: Connection) -> None:
        gate.wait(30)
        answers.append(connection.exchange(raw))

    threads = [threading.Thread(target=send, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(connections) == len(answers)
    return [server.checked(raw, answer) for answer in answers]


def test_a_hundred_refreshes_of_one_token_buy_one_successor(
    racing_server: Server, count: Callable[[int, int], int]
) -> None:
    """I-03: every 200 carries the same tokens, and the successor redeems; 20 rounds in the full tier."""
    with ExitStack() as stack:
        connections = [stack.enter_context(racing_server.connect()) for _ in range(AT_ONCE)]
        for _ in range(count(3, 20)):
            grant = racing_server.issue("std")
            answers = all_at_once(racing_server, connections, racing_server.refresh_request("std", grant.refresh_token))
            assert {200: AT_ONCE} == Counter(answer.status for answer in answers)
            assert 1 == len({answer.json()["access_token"] for answer in answers})
            (successor,) = {answer.json()["refresh_token"] for answer in answers}
            assert 1 == len({answer.header("Ledger-Position") for answer in answers})
            assert 200 == racing_server.refresh("std", successor).status
            events = racing_server.events(grant.grant_id)
            check_history(events)
            assert 2 == sum(event["topic"] == "grant.token_rotated" for event in events)
            assert 1 >= sum(event["topic"] == "grant.retry_served" for event in events), "I-21"


def test_without_a_window_one_of_a_hundred_succeeds_and_the_rest_are_reuse(
    racing_server: Server, count: Callable[[int, int], int]
) -> None:
    """Under `strict` the losers of a race are late retries and act: one 200, one reuse on record, the family ends."""
    with ExitStack() as stack:
        connections = [stack.enter_context(racing_server.connect()) for _ in range(AT_ONCE)]
        for _ in range(count(3, 20)):
            grant = racing_server.issue("www")
            answers = all_at_once(racing_server, connections, racing_server.refresh_request("www", grant.refresh_token))
            assert {200: 1, 400: AT_ONCE - 1} == Counter(answer.status for answer in answers)
            (winner,) = [answer.json() for answer in answers if answer.status == 200]
            assert {"reuse_detected"} == {answer.json()["reason"] for answer in answers if answer.status == 400}
            events = racing_server.events(grant.grant_id)
            check_history(events)
            topics = [event["topic"] for event in events]
            assert [
                "grant.issued",
                "grant.token_redeemed",
                "grant.token_rotated",
                "grant.reuse_detected",
                "grant.revoked",
            ] == topics[:5]
            assert "late_retry" == events[3]["data"]["label"]
            assert {"grant.presentations_counted"} >= set(topics[5:])
            assert 400 == racing_server.refresh("www", winner["refresh_token"]).status
            assert {"active": False} == racing_server.introspect(winner["access_token"])


# -- revocations ------------------------------------------------------------------------------------------------------


def revoke_one_by_one(server: Server, grants: Sequence[Grant]) -> None:
    for grant in grants:
        assert 200 == server.operator("admin", "POST", f"/grants/{grant.grant_id}/revoke", {"reason": "race"}).status


def revoke_the_person(server: Server, grants: Sequence[Grant]) -> None:
    body = {"subject": grants[0].subject, "reason": "race"}
    told = server.operator("security", "POST", "/subjects/revoke", body)
    assert (200, True) == (told.status, told.json()["known"])


def revoke_the_client(server: Server, grants: Sequence[Grant]) -> None:
    told = server.operator("admin", "POST", f"/clients/{grants[0].client}/revoke", {"reason": "race"})
    assert (200, grants[0].client) == (told.status, told.json()["client_id"])


class Refresher(threading.Thread):
    """A client that refreshes without pause until it is refused, over each of its connections in turn; it knows when
    each of its requests began."""

    def __init__(
        self, server: Server, connections: Sequence[Connection], grant: Grant, acknowledged: threading.Event
    ) -> None:
        super().__init__()
        self.server, self.grant, self.acknowledged = server, grant, acknowledged
        self.turns = itertools.cycle(connections)
        self.done: list[tuple[float, bool, Answer]] = []

    def run(self) -> None:
        token, last = self.grant.refresh_token, False
        while not last:
            last = self.acknowledged.is_set()  # one more request that begins after the acknowledgement
            began = time.monotonic()
            answer = self.server.refresh(self.grant.client, token, over=next(self.turns))
            self.done.append((began, last, answer))
            if answer.status == 200:
                token = answer.json()["refresh_token"]


def faults_of_round(server: Server, refreshers: Sequence[Refresher], acknowledged_at: float) -> list[str]:
    """Name each refresh that succeeded though its grant's end was acknowledged, or stands before it in the log."""
    faults = []
    for refresher in refreshers:
        grant_id = refresher.grant.grant_id
        for began, _, answer in refresher.done:
            if answer.status not in (200, 400):
                faults.append(f"{grant_id}: {answer.status} {answer.body!r}")
            elif answer.status == 200 and began > acknowledged_at:
                faults.append(f"{grant_id}: a refresh begun {began - acknowledged_at:.4f} s after the end succeeded")
        events = server.events(grant_id)
        check_history(events)
        faults += [f"{grant_id}: {fault}" for fault in bought_after_the_end(events)]
        won = sum(answer.status == 200 for _, _, answer in refresher.done)
        kept = sum(event["topic"] == "grant.token_rotated" for event in events)
        if won != kept:
            faults.append(f"{grant_id}: {won} refreshes answered, {kept} on record")
    return faults


def bought_after_the_end(events: Sequence[Json]) -> list[str]:
    """Return what a grant's token bought at a place of the log behind the event that ended it."""
    end = next(
        (n for n, e in enumerate(events) if e["topic"] in ("grant.revoked", "subject.revoked", "client.revoked")), None
    )
    if end is None:
        return ["no end in the history"]
    return [f"{event['topic']} at {event['position']}" for event in events[end:] if event["topic"] in BUYS]


@pytest.mark.parametrize("revoke", [revoke_one_by_one, revoke_the_person, revoke_the_client])
def test_no_refresh_succeeds_once_the_revocation_is_acknowledged(
    racing_server: Server, count: Callable[[int, int], int], revoke: Callable[[Server, Sequence[Grant]], None]
) -> None:
    """I-06: none begun after the acknowledgement, and none behind the end in log order; 500 rounds in the full tier."""
    chance = random.Random(SEED)
    faults: list[str] = []
    client = "oth" if revoke is revoke_the_client else "std"
    with ExitStack() as stack:
        connections = [[stack.enter_context(racing_server.connect()) for _ in range(2)] for _ in range(REFRESHERS)]
        for _ in range(count(17, 167)):
            person = racing_server.new_subject()
            grants = [racing_server.issue(client, subject=person) for _ in connections]
            acknowledged = threading.Event()
            refreshers = [
                Refresher(racing_server, both, grant, acknowledged)
                for both, grant in zip(connections, grants, strict=True)
            ]
            for refresher in refreshers:
                refresher.start()
            time.sleep(chance.uniform(0, 0.03))
            revoke(racing_server, grants)
            acknowledged_at = time.monotonic()
            acknowledged.set()
            for refresher in refreshers:
                refresher.join()
            faults += faults_of_round(racing_server, refreshers, acknowledged_at)
    assert [] == faults


def test_a_hundred_exchanges_of_one_code_issue_once(racing_server: Server, count: Callable[[int, int], int]) -> None:
    """V80, PK-3: one 200, and the first of the others ends the grant; a tenth of them in the default tier."""
    at_once = count(10, 100)
    with ExitStack() as stack:
        connections = [stack.enter_context(racing_server.connect()) for _ in range(at_once)]
        for client in ("code", "native"):
            for _ in range(count(3, 20)):
                uri = "http://127.0.0.1:51004/callback" if client == "native" else CALLBACK
                code = racing_server.authorize(client, redirect_uri=uri)["code"]
                raw = racing_server.exchange_request(client, code, redirect_uri=uri)
                answers = all_at_once(racing_server, connections, raw)
                assert {200: 1, 400: at_once - 1} == Counter(answer.status for answer in answers)
                (event_id,) = {answer.json()["event_id"] for answer in answers if answer.status == 400}
                (winner,) = [answer.json() for answer in answers if answer.status == 200]
                dead = racing_server.refresh(client, winner["refresh_token"])
                assert ("reuse_detected", event_id) == (dead.json()["reason"], dead.json()["event_id"])
                events = racing_server.events(event_id.removeprefix("grant:").partition("/")[0])
                check_history(events)
                assert ["grant.authorized", "grant.issued", "grant.revoked"] == [
                    event["topic"] for event in events if event["topic"] != "grant.presentations_counted"
                ]


class Exchanger(threading.Thread):
    """Exchanges one code after a while, and refreshes what it bought once the end of its person is acknowledged."""

    def __init__(self, server: Server, connection: Connection, code: str, wait: float, end: threading.Event) -> None:
        super().__init__()
        self.server, self.connection, self.code, self.wait, self.end = server, connection, code, wait, end
        self.began = 0.0
        self.answers: list[Answer] = []

    def run(self) -> None:
        time.sleep(self.wait)
        self.began = time.monotonic()
        raw = self.server.exchange_request("code", self.code)
        self.answers.append(self.server.exchange(raw, over=self.connection))
        self.end.wait(30)
        if self.answers[0].status == 200:
            token = self.answers[0].json()["refresh_token"]
            self.answers.append(self.server.refresh("code", token, over=self.connection))


def test_no_code_buys_once_the_end_of_its_person_is_acknowledged(
    racing_server: Server, count: Callable[[int, int], int]
) -> None:
    """I-06: no exchange begun later succeeds, none stands behind the end in the log, and what was bought is dead."""
    chance = random.Random(SEED)
    bought = 0
    with ExitStack() as stack:
        connections = [stack.enter_context(racing_server.connect()) for _ in range(REFRESHERS)]
        for _ in range(count(17, 167)):
            person = racing_server.new_subject()
            codes = [racing_server.authorize("code", subject=person)["code"] for _ in connections]
            acknowledged = threading.Event()
            exchangers = [
                Exchanger(racing_server, connection, code, chance.uniform(0, 0.03), acknowledged)
                for connection, code in zip(connections, codes, strict=True)
            ]
            for exchanger in exchangers:
                exchanger.start()
            time.sleep(chance.uniform(0, 0.03))
            answer = racing_server.operator("security", "POST", "/subjects/revoke", {"subject": person, "reason": "x"})
            acknowledged_at = time.monotonic()
            assert 200 == answer.status
            acknowledged.set()
            for exchanger in exchangers:
                exchanger.join()
                first, *later = exchanger.answers
                assert first.status == 400 or exchanger.began < acknowledged_at
                assert {400} >= {each.status for each in later}
                bought += first.status == 200
            found = racing_server.operator("security", "POST", "/grants/search", {"subject": person}).json()["grants"]
            assert len(codes) == len(found)
            assert {"revoked"} == {grant["status"] for grant in found}
            for grant in found:
                events = racing_server.events(grant["grant_id"])
                check_history(events)
                assert [] == bought_after_the_end(events)
    assert bought, "no exchange came before an end: the race was none"


def test_a_purchase_behind_the_end_is_caught() -> None:
    """The broken twin of the check above: a rotation that stands behind the epoch in the log."""
    lawful = [{"topic": topic, "position": str(n)} for n, topic in enumerate(("grant.issued", "grant.token_redeemed"))]
    end, late = {"topic": "subject.revoked", "position": "7"}, {"topic": "grant.token_rotated", "position": "8"}
    assert [] == bought_after_the_end([*lawful, end])
    assert ["grant.token_rotated at 8"] == bought_after_the_end([*lawful, end, late])
    assert ["no end in the history"] == bought_after_the_end(lawful)


def history_of(*facts: tuple[str, Json]) -> list[Json]:
    """Link facts into a history as the ledger tells it."""
    events: list[Json] = []
    for v, (topic, data) in enumerate(facts, 1):
        event = {"topic": topic, "stream": "grant:1", "v": v, "at": f"2026-11-25T17:00:0{v}.000000Z", "data": data}
        event |= {"event_id": f"grant:1/{v}", "position": str(10 * v), "command_id": f"c{v}"}
        if events:
            event["prev"] = hashlib.sha256(stored_bytes(events[-1])).hexdigest()
        events.append(event)
    return events


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        ([("grant.token_redeemed", {"generation": 0}), ("grant.token_rotated", {"generation": 2})], "generation"),
        ([("grant.token_redeemed", {"generation": 1})], "retired"),
        ([("grant.revoked", {}), ("grant.token_redeemed", {"generation": 0})], "after the end"),
        ([("grant.retry_served", {"presented_generation": 0})], "older generation"),
    ],
)
def test_a_history_that_breaks_the_rules_is_caught(facts: list[tuple[str, Json]], fault: str) -> None:
    """I-01, I-04 and I-07: the broken twins of `check_history`."""
    with pytest.raises(AssertionError, match=fault):
        check_history(history_of(("grant.issued", {"scope": ["read"]}), *facts))


def test_a_history_with_a_changed_dropped_or_swapped_event_is_caught() -> None:
    """I-14: what was stored is what the links say."""
    rotation = [("grant.token_redeemed", {"generation": 0}), ("grant.token_rotated", {"generation": 1})]
    lawful = history_of(("grant.issued", {"scope": ["read"]}), *rotation, ("grant.revoked", {"reason_class": "reuse"}))
    check_history(lawful)
    changed = [lawful[0] | {"data": {"scope": ["write"]}}, *lawful[1:]]
    for twin in (changed, lawful[:1] + lawful[2:], [lawful[0], lawful[2], lawful[1], lawful[3]]):
        with pytest.raises(AssertionError):
            check_history(twin)
