"""Run the transcripts: requests as they are sent, what must come back, and a few steps between.

A transcript is a text file. `== V1 · TE-9 · title` opens a vector, `#` starts a remark, `-- ...` is a step (`STEPS`),
lines after `>` are one request, byte for byte, lines after `<` what its answer must be: a status, then headers, then
the body as JSON. `H` after the status stands for the headers of every answer that carries or judges a token; `...` as a
member allows further ones, a `?` after a member's name lets it be absent; a header that is `(none)` must not be there.
Between `{{` and `}}` stand

    in requests     a name, `base64 TEXT`, `length` (of the body), `byte ff`, `repeat 9 TEXT`, `fields 9`, `flip NAME`,
                    `operator ROLE` (its bearer token), `proof KEY` (of DPoP, made now; see `proofs.written`),
                    `assertion CLIENT` (signed now; see `signers.written`)
    in answers      `new NAME` (remember it; it differs from all that was remembered before), a name (the same value
                    again), `text`, `int`, `1..300`, `this|that`
"""

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from joserfc.jwk import Key

from tests import proofs, signers
from tests.server_process import eventually
from tests.servers import OPERATORS, VERIFIER, Server
from tests.vectors import Expected, Step, Vector, expectations
from tests.wire import INTROSPECT_PATH, TOKEN_PATH, Answer, Json

_PLACE = re.compile(r"\{\{(.*?)\}\}")


@dataclass
class Run:
    """One vector on its way: what it has remembered, who is calling, what holds for the next request."""

    server: Server
    names: dict[str, str]
    source: str
    sendings: int = 1
    at_once: bool = False
    until_generation: str = ""
    marked: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    keys: dict[str, Key] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)

    def step(self, step: Step) -> None:
        """Do one step or one exchange."""
        if step.request:
            self._exchange(step)
            return
        for pattern, act in STEPS:
            if match := pattern.fullmatch(step.words):
                act(self, {key: value or "" for key, value in match.groupdict().items()}, step.answer)
                return

    # -- requests ----------------------------------------------------------------------------------------------------

    def bytes_of(self, request: str) -> bytes:
        """Return a request as it goes out; its length is counted last."""
        head, gap, body = request.partition("\r\n\r\n")
        content = self._fill(body)
        return self._fill(head.replace("{{length}}", str(len(content)))) + (gap.encode() or b"\r\n\r\n") + content

    def _fill(self, text: str) -> bytes:
        parts = _PLACE.split(text)
        return b"".join(self._place(part) if number % 2 else part.encode() for number, part in enumerate(parts))

    def _place(self, words: str) -> bytes:
        word, _, rest = words.partition(" ")
        if word == "base64":
            return base64.b64encode(rest.encode())
        if word == "byte":
            return bytes.fromhex(rest)
        if word == "repeat":
            times, _, what = rest.partition(" ")
            return int(times) * what.encode()
        if word == "fields":
            return "&".join(f"field{number}=1" for number in range(int(rest))).encode()
        if word == "flip":
            token = self.names[rest]
            return (token[:40] + ("A" if token[40] != "A" else "B") + token[41:]).encode()
        if word == "operator":
            return OPERATORS[rest].encode()
        if word == "assertion":
            return signers.written(rest, self.server.issuer).encode()
        if word == "proof":
            return proofs.written(rest, self.keys, self.names, self.server.issuer + TOKEN_PATH).encode()
        return self.names[words].encode()

    def _exchange(self, step: Step) -> None:
        raw = self.bytes_of(step.request)
        if self.until_generation:
            self._send_and_cut(raw)
            return
        if self.at_once:
            self.answers = self._all_at_once(raw)
        else:
            self.answers = [self.server.exchange(raw, source=self.source) for _ in range(self.sendings)]
        kinds = expectations(step.answer)
        if len(kinds) == 1 and self.sendings > 1 and kinds[0].count == 1:
            kinds = [Expected(self.sendings, kinds[0].statuses, kinds[0].headers, kinds[0].body)]
        self.sendings, self.at_once = 1, False
        self._judge(kinds)

    def _all_at_once(self, raw: bytes) -> list[Answer]:
        """Open every connection and send every head first, then release the bodies together."""
        head, gap, body = raw.partition(b"\r\n\r\n")
        connections = [self.server.connect(source=self.source) for _ in range(self.sendings)]
        answers: list[Answer] = []
        gate = threading.Barrier(self.sendings)

        def send(number: int) -> None:
            with connections[number] as connection:
                connection.send(head + gap)
                gate.wait(30)
                connection.send(body)
                answers.append(connection.answer())

        threads = [threading.Thread(target=send, args=(number,)) for number in range(self.sendings)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert self.sendings == len(answers), f"{len(answers)} answers to {self.sendings} requests"
        return [self.server.checked(raw, answer) for answer in answers]

    def _send_and_cut(self, raw: bytes) -> None:
        grant_id, generation = self.names[self.until_generation.split()[0]], int(self.until_generation.split()[1])
        self.until_generation = ""
        connection = self.server.connect(source=self.source)
        connection.send(raw)
        eventually(lambda: self.server.look(grant_id)["generation"] == generation, what="the commit")
        connection.cut()

    # -- answers -----------------------------------------------------------------------------------------------------

    def _judge(self, kinds: list[Expected]) -> None:
        told = [f"{answer.status} {answer.body[:200].decode('utf-8', 'replace')}" for answer in self.answers]
        counts = {kind.statuses: kind.count for kind in kinds}
        for statuses, count in counts.items():
            assert count == sum(answer.status in statuses for answer in self.answers), (
                f"not {count} x {sorted(statuses)}: {told}"
            )
        assert sum(counts.values()) == len(self.answers), told
        self.fresh = set()
        for answer in self.answers:
            kind = next(kind for kind in kinds if answer.status in kind.statuses)
            for name, wanted in kind.headers:
                self._same(None if wanted == "(none)" else wanted, answer.header(name), f"header {name}")
            if kind.body == "(empty)":
                assert b"" == answer.body
            elif kind.body:
                self._same(json.loads(kind.body), answer.json(), "body")

    def _same(self, wanted: Json, found: Json, where: str) -> None:
        if isinstance(wanted, dict):
            self._same_members(wanted, found, where)
        elif isinstance(wanted, list):
            assert len(wanted) == len(found), f"{where}: {found}"
            for place, (item, other) in enumerate(zip(wanted, found, strict=True)):
                self._same(item, other, f"{where}[{place}]")
        elif isinstance(wanted, str) and "{{" in wanted:
            self._same_text(wanted, found, where)
        else:
            assert wanted == found, f"{where}: {found!r}, not {wanted!r}"
            assert type(wanted) is type(found), f"{where}: {found!r} has another type than {wanted!r}"

    def _same_members(self, wanted: dict[str, Json], found: Json, where: str) -> None:
        assert isinstance(found, dict), f"{where}: {found!r} is no object"
        members = {name.removesuffix("?"): value for name, value in wanted.items() if name != "..."}
        missing = {name for name in members if f"{name}?" not in wanted} - set(found)
        assert not missing, f"{where}: {sorted(missing)} missing in {sorted(found)}"
        assert "..." in wanted or set(found) <= set(members), (
            f"{where}: {sorted(set(found) - set(members))} not expected"
        )
        for name, value in members.items():
            if name in found:
                self._same(value, found[name], f"{where}.{name}")

    def _same_text(self, wanted: str, found: Json, where: str) -> None:
        whole = _PLACE.fullmatch(wanted)
        if whole and (bounds := re.fullmatch(r"(\d+)\.\.(\d+)", whole[1])):
            assert type(found) is int, f"{where}: {found!r} is no integer"
            assert int(bounds[1]) <= found <= int(bounds[2]), f"{where}: {found} outside {whole[1]}"
            return
        assert isinstance(found, str), f"{where}: {found!r} is no string"
        names: list[str] = []
        parts = _PLACE.split(wanted)
        pattern = "".join(self._pattern(p, names) if n % 2 else re.escape(p) for n, p in enumerate(parts))
        match = re.fullmatch(pattern, found, re.DOTALL)
        assert match, f"{where}: {found!r} does not match {wanted!r}"
        for name, value in zip(names, match.groups(), strict=True):
            assert value.isdigit() or value not in self.names.values(), f"{where}: {name} is not new"
            self.names[name] = value
            self.fresh.add(name)

    def _pattern(self, words: str, names: list[str]) -> str:
        if words == "text":
            return ".*"
        if words == "int":
            return r"\d+"
        if "|" in words:
            return "(?:" + "|".join(map(re.escape, words.split("|"))) + ")"
        name = words.removeprefix("new ")
        if name == words or name in self.fresh:  # all answers to requests sent at once share what is new in them
            return re.escape(self.names[name])
        names.append(name)
        return "(.+)"


Groups = Mapping[str, str]
Act = Callable[[Run, Groups, tuple[str, ...]], None]


def _issue(run: Run, words: Groups, _: tuple[str, ...]) -> None:
    members = json.loads(run._fill(words["members"] or "{}"))
    if words["subject"]:
        members["subject"] = run.names.setdefault(words["subject"], run.server.new_subject())
    grant = run.server.issue(words["client"].strip('"'), **members)
    values = (grant.grant_id, grant.refresh_token, grant.access_token)
    run.names.update(zip((words["names"] or "GRANT RT0 AT0").split(), values, strict=True))


def _sign_in(run: Run, words: Groups, _: tuple[str, ...]) -> None:
    run.names["CODE"] = run.server.authorize(words["client"], **json.loads(run._fill(words["members"] or "{}")))["code"]


def _wait(run: Run, words: Groups, _: tuple[str, ...]) -> None:
    filled = _PLACE.sub(lambda match: run.names[match[1]], words["seconds"])
    seconds = float(sum(float(term.replace(" ", "")) for term in re.findall(r"[+-]? ?[\d.]+", filled)))
    start = run.marked if words["marked"] else time.monotonic()
    time.sleep(max(0.0, start + seconds - time.monotonic()))


def _mark(run: Run, _: Groups, __: tuple[str, ...]) -> None:
    run.marked = time.monotonic()


def _lives(run: Run, words: Groups, _: tuple[str, ...]) -> None:
    answer = run.server.refresh(words["client"].strip('"'), run.names[words["token"]], source=run.server.new_address())
    assert 200 == answer.status, f"{words['token']} is dead: {answer.body!r}"
    if words["scope"]:
        assert words["scope"] == answer.json()["scope"]
    if words["successor"]:
        run.names[words["successor"]] = answer.json()["refresh_token"]


def _dead(run: Run, words: Groups, _: tuple[str, ...]) -> None:
    answer = run.server.refresh(words["client"].strip('"'), run.names[words["token"]], source=run.server.new_address())
    assert 400 == answer.status, f"{words['token']} lives"
    assert "invalid_grant" == answer.json()["error"]
    assert words["reason"] == answer.json().get("reason")


def _access(run: Run, words: Groups, _: tuple[str, ...]) -> None:
    told = run.server.introspect(run.names[words["token"]])
    if words["state"] == "active":
        assert told.get("active") is True
    else:
        assert {"active": False} == told


def _history(run: Run, words: Groups, lines: tuple[str, ...]) -> None:
    grant_id = run.names[words["grant"]]
    wanted = [line.split()[0] for line in lines]

    def told() -> list[Json]:
        # What was counted is written when a second has passed somewhere: no request of the transcript brings it about.
        return [each for each in run.server.events(grant_id) if each["topic"] != "grant.presentations_counted"]

    eventually(lambda: len(told()) >= len(wanted), within_seconds=5, what=f"a history of {len(wanted)} events")
    events = told()
    found = sorted(event["topic"] for event in events)
    assert sorted(wanted) == found, f"the history holds {found}"
    # The order of commands is told; what one command recorded together is compared in the order of the transcript.
    first = {event["command_id"]: place for place, event in reversed(list(enumerate(events)))}
    events.sort(key=lambda event: (first[event["command_id"]], wanted.index(event["topic"])))
    assert wanted == [event["topic"] for event in events]
    for line, event in zip(lines, events, strict=True):
        for name, value in re.findall(r"(\w+)=((?:\{\{.*?\}\}|\S)+)", line):
            run._same(value, _plain(event["data"].get(name, "absent")), f"{event['topic']} {name}")


def _plain(value: Json) -> str:
    if isinstance(value, list):
        return ",".join(value)
    return value if isinstance(value, str) else json.dumps(value)


def _new_key(run: Run, words: Groups, _: tuple[str, ...]) -> None:
    run.keys[words["key"]] = key = proofs.new_key()
    run.names[f"jkt {words['key']}"] = proofs.thumbprint(key)


def _sendings(run: Run, words: Groups, _: tuple[str, ...]) -> None:
    run.sendings, run.at_once = int(words["count"]), words["how"] == "at once"


def _cut(run: Run, words: Groups, _: tuple[str, ...]) -> None:
    run.until_generation = f"{words['grant']} {words['generation']}"


def _other_address(run: Run, _: Groups, __: tuple[str, ...]) -> None:
    run.source = run.server.new_address()


def _from_address(run: Run, words: Groups, __: tuple[str, ...]) -> None:
    run.source = words["address"]


def _kill(run: Run, _: Groups, __: tuple[str, ...]) -> None:
    run.server.restart(kill=True)


def _register(run: Run, words: Groups, _: tuple[str, ...]) -> None:
    client, word, kid = words["client"], words["word"], words["kid"]
    renewed = signers.Signer(client, signers.derived_key(word), run.server.issuer, kid=kid)
    before = signers.inline(signers.registered(client, run.server.issuer).public_jwk())
    text = run.server.clients_file.read_text("utf-8")
    assert 1 == text.count(before)
    run.server.hangup(text.replace(before, signers.inline(renewed.public_jwk())))

    def known() -> bool:
        fields = {"token": "none", **renewed.form()}
        return run.server.form(INTROSPECT_PATH, fields, source=run.server.new_address()).status == 200

    eventually(known, what=f"the key of {word}")


def _remember_body(run: Run, _: Groups, __: tuple[str, ...]) -> None:
    run.names["the body"] = run.answers[-1].body.decode()


def _same_body(run: Run, _: Groups, __: tuple[str, ...]) -> None:
    assert run.names["the body"] == run.answers[-1].body.decode()


_CLIENT = r'(?P<client>"[^"]+"|[\w-]+)'
STEPS: list[tuple[re.Pattern[str], Act]] = [
    (re.compile(pattern), act)
    for pattern, act in (
        (rf"issue to {_CLIENT}( for (?P<subject>\w+))?( with (?P<members>\{{.*\}}))?( as (?P<names>.+))?", _issue),
        (rf"sign in to {_CLIENT}( with (?P<members>\{{.*\}}))?", _sign_in),
        (r"wait (until )?(?P<seconds>[\d.{}\w +-]+?) s(?P<marked> after the mark)?", _wait),
        (r"mark", _mark),
        (rf'(?P<token>\w+) lives for {_CLIENT}( with scope "(?P<scope>[^"]*)")?( as (?P<successor>\w+))?', _lives),
        (rf"(?P<token>\w+) is dead for {_CLIENT}: (?P<reason>\w+)", _dead),
        (r"(?P<token>\w+) is (?P<state>active|inactive)", _access),
        (r"history of (?P<grant>\w+)", _history),
        (r"(?P<key>\w+) is a new key", _new_key),
        (r"(?P<count>\d+) (?P<how>at once|in turn)", _sendings),
        (r"cut the connection, nothing read, once (?P<grant>\w+) is at generation (?P<generation>\d+)", _cut),
        (r"from another address", _other_address),
        (r"from (?P<address>[\d.]+)", _from_address),
        (r"kill the server, start it again", _kill),
        (r"register (?P<client>[\w-]+) with the key of (?P<word>\w+) as (?P<kid>\w+)", _register),
        (r"remember the body", _remember_body),
        (r"the body is the remembered one", _same_body),
    )
]


def is_step(words: str) -> bool:
    """Whether a transcript may ask for this."""
    return any(pattern.fullmatch(words) for pattern, _ in STEPS)


def run_vector(vector: Vector, server: Server, figures: Mapping[str, str]) -> None:
    """Run one vector from an address of its own; a failure says at which line of which transcript."""
    names = {"host": f"localhost:{server.port}", "verifier": VERIFIER, **figures}
    run = Run(server, names, server.new_address())
    for step in vector.steps:
        try:
            run.step(step)
        except (AssertionError, KeyError, OSError) as error:
            place = f"{vector.place.partition(':')[0]}:{step.line}"
            raise AssertionError(f"{vector.number}, {place}: {error or repr(error)}") from error
