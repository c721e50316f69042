"""A world for one grant at a time, that two readings of the rules judge: the aggregate, and the model beside it.

Each command goes to both, and their answers, events and the states that follow must be the same. Around the grant
stand a wall clock that may be put anywhere, a client whose rules change, keys, epochs, and a log that can be cut back
to an earlier commit, as a restored backup is, while holders keep what they were given.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ledger import commands, events, history, times
from ledger.commands import ClientRules, Decision, EpochEnd, Presenter, Rules
from ledger.epochs import Epoch, Raise, first_hit
from ledger.events import ClientRevoked, GrantEvent, SubjectRevoked, Words
from ledger.grant import Grant, StateMayBeStale
from ledger.policy import Policy
from ledger.refusals import Refusal, Refused
from ledger.times import SECOND
from tests.model import decide
from tests.model_answers import Answer
from tests.model_checker import Handed, Recorded, Token, check
from tests.model_compare import agree, compare_served, compare_states
from tests.model_history import History, micros

GRANT_ID = "0192f4a0b1c27def8a9b0123456789ab"
SUBJECT = "5b" * 16
START = times.micros("2026-11-25T12:00:00.250000Z")
CLIENT_SCOPE = ("read", "openid", "profile", "write", "offline_access")
RESOURCES = ("https://a.example", "https://b.example")
CALLBACK = "https://app.example/callback"
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
CONTEXTS = {"owner": "c0" * 32, "thief": "c1" * 32, "another": "c2" * 32}
SNAPSHOT_EVERY_COMMANDS = 3


class World:
    """One client, one subject, and one grant of theirs after another."""

    def __init__(self, kind: str, policy: Policy, resource: Words) -> None:
        self.now, self.commands, self.control = START, 0, 1
        self.active_key, self.keys, self.distrusted = 1, 1, dict[int, str]()
        self.raises: list[Raise] = []  # of both streams, in log order
        self.enabled, self.bound = True, {"key-bound": "jkt", "certificate-bound": "x5t_s256"}.get(kind)
        self.client = ClientRules(
            client_id="www",
            v=1,
            scope=CLIENT_SCOPE,
            resource=resource,
            policy=policy,
            authenticates=kind == "confidential",
            dpop_bound=self.bound == "jkt",
            certificate_bound=self.bound == "x5t_s256",
            grant_types=("authorization_code", "refresh_token"),
            redirect_uris=(CALLBACK,),
        )
        self.forget_grant()

    def new_grant_id(self) -> str:
        """The id of the next grant; the one before it is forgotten."""
        return GRANT_ID

    def forget_grant(self) -> None:
        self.grant_id = self.new_grant_id()
        self.grant, self.history, self.log = Grant(), History(), list[GrantEvent]()
        self.entries: list[Recorded | Handed] = []
        self.commits: list[tuple[int, int]] = []  # events and entries at each commit
        self.held: dict[str, list[Token]] = {"owner": [], "thief": []}

    @property
    def stream(self) -> str:
        return f"grant:{self.grant_id}"

    # ------------------------------------------------------------ what stands outside the grant

    def change_client(self, **settings: Any) -> None:
        self.control += 1
        self.client = msgspec.structs.replace(self.client, v=self.client.v + 1, **settings)

    def change_policy(self, **fields: Any) -> None:
        self.change_client(policy=msgspec.structs.replace(self.client.policy, **fields))

    def activate_new_key(self, *, distrust: bool = False) -> None:
        before, self.control, self.keys = self.active_key, self.control + 1, self.keys + 1
        self.active_key = self.keys
        if distrust:
            self.distrusted = {**self.distrusted, before: f"keys/{self.control}"}

    def raise_epoch(self, whose: str, before: int | None, reason_class: str) -> None:
        """End all grants of the client or the subject, or those issued earlier than `before`."""
        self.control += 1
        kind = ClientRevoked if whose == "client" else SubjectRevoked
        mine = [raised for raised in self.raises if isinstance(raised, kind)]
        at = max([self.now, *(times.micros(raised.at) for raised in mine)])
        members: dict[str, Any] = {"client_id": "www"} if whose == "client" else {"subject_id": SUBJECT}
        members |= {"stream": "client:www" if whose == "client" else f"subject:{SUBJECT}", "v": 2 + len(mine)}
        members |= {"before": None if before is None else times.text(before), "reason_class": reason_class}
        members |= {"at": times.text(at), "command_id": f"{self.control:032x}", "requested_by": "operator:desk"}
        self.raises.append(kind(**members, epoch=1 + len(mine)))

    def epoch_end(self) -> EpochEnd | None:
        """The first raise that ends the grant; what finds it in constant time, and by stream, must agree."""
        if not self.history.events:
            return None
        issued = self.history.issued
        issued_at, hit, found = times.micros(issued["at"]), False, dict[str, EpochEnd]()
        numbers: dict[type[Raise], int] = {
            ClientRevoked: issued["client_epoch"],
            SubjectRevoked: issued["subject_epoch"],
        }
        for kind, number in numbers.items():
            mine, epoch = [raised for raised in self.raises if isinstance(raised, kind)], Epoch()
            for raised in mine:
                epoch.evolve(raised)
            end, hit = first_hit(mine, number, issued_at), hit or epoch.hits(number, issued_at)
            found |= {} if end is None else {end.event_id: end}
        ending = [
            raised.event_id
            for raised in self.raises
            if raised.epoch > numbers[type(raised)]
            and (raised.before is None or times.micros(raised.before) > issued_at)
        ]
        agree("ended by epoch", bool(ending), hit)
        return found[ending[0]] if ending else None

    def rules(self) -> Rules:
        numbers = {
            kind: max([0, *(raised.epoch for raised in self.raises if isinstance(raised, kind))])
            for kind in (ClientRevoked, SubjectRevoked)
        }
        return Rules(
            control=self.control,
            client=self.client if self.enabled else None,
            client_epoch=numbers[ClientRevoked],
            subject_epoch=numbers[SubjectRevoked],
            epoch_end=self.epoch_end(),
            active_key_id=self.active_key,
            distrusted=self.distrusted,
        )

    def status(self) -> str:
        return self.history.judge(self.now, self.epoch_end()).status if self.history.events else "none"

    def over(self) -> bool:
        return self.status() in ("none", "revoked", "expired")

    def lives(self) -> bool:
        """Whether presenting a refresh token may still do something."""
        return self.status() == "active" and self.history.current is not None

    def moments(self) -> dict[str, int]:
        """The moments that the history has frozen: ends, ends of windows, and where the clock counts as fallen."""
        idle, absolute = self.history.expiry()
        made = self.history.made(self.history.current or 0)
        token = [event for event in self.history.events if "access_token_expires_at" in event][-1]
        moments = {
            "idle": idle,
            "absolute": absolute,
            **{name: micros(made, f"{name}_until") for name in ("concurrent", "retry", "unconfirmed")},
            "access token": micros(token, "access_token_expires_at"),
            "issued ahead": times.micros(token["access_token_issued_at"]) - 10 * SECOND,
            "behind": self.history.at - 10 * SECOND,
        }
        return {name: moment for name, moment in moments.items() if moment is not None}

    # ------------------------------------------------------------ one command, both readings

    def command(self) -> dict[str, Any]:
        """What every command says; now and then the grant is read back from its snapshot first."""
        self.commands += 1
        if self.commands % SNAPSHOT_EVERY_COMMANDS == 0:
            self.grant = msgspec.msgpack.decode(msgspec.msgpack.encode(self.grant), type=Grant)
        return {"at": self.now, "command_id": f"{self.commands:032x}"}

    def submit(self, command: commands.GrantCommand) -> Answer:
        """Let both decide, hold their answers against each other, and fold what was recorded into both."""
        rules, before = self.rules(), msgspec.msgpack.encode(self.grant)
        expected, told = decide(self.history, command, rules), None
        try:
            decision = self.decided(command, rules)
        except StateMayBeStale:
            agree("read anew", expected.stale, True)
            assert isinstance(command, commands.RedeemToken)
            return self.submit(msgspec.structs.replace(command, fresh=True))
        except Refused as refused:
            told = refused
        agree("decide moves nothing", before, msgspec.msgpack.encode(self.grant))
        agree("read anew", expected.stale, False)
        if told is not None:
            agree("nothing recorded", expected.events, [])
            agree("refused", expected.refused, told.refusal)
            agree("why", (expected.event_id, expected.counts), (told.event_id, told.counts))
            agree("come again", told.refusal is Refusal.TOO_FAST, told.retry_after_seconds is not None)
            return expected
        agree("events", expected.events, [json.loads(events.encode(event)) for event in decision.events])
        agree("ends the subject", expected.ends_subject, decision.ends_subject)
        self.append(decision.events)
        if isinstance(decision.outcome, commands.RefusedOutcome):
            reason = decision.outcome.refusal, decision.outcome.event_id
            agree("refused", (expected.refused, expected.event_id), reason)
        else:
            agree("refused", expected.refused, None)
            compare_served(self.history, expected, decision.outcome)
        return expected

    def decided(self, command: commands.GrantCommand, rules: Rules) -> Decision:
        """What the aggregate says. Raises Refused, StateMayBeStale."""
        return self.grant.decide(command, rules)

    def append(self, made: Sequence[GrantEvent]) -> None:
        """Fold what was stored, never what was decided."""
        for event in made:
            stored = events.encode(event)
            again: Any = events.decode(stored)
            self.grant.evolve(again)
            self.log.append(again)
            self.history.append(json.loads(stored))
            self.entries.append(Recorded(self.history.events[-1], set(self.client.scope)))
        if made:
            self.commits.append((len(self.log), len(self.entries)))

    def compare_states(self) -> None:
        compare_states(self.history, self.grant, self.log, self.now, self.rules())

    # ------------------------------------------------------------ a grant, and what is done with it

    def begins(self, scope: Words, resource: Words | None) -> dict[str, Any]:
        """What every command that begins a grant says; the grant before it is forgotten."""
        self.forget_grant()
        befores = [times.micros(raised.before) for raised in self.raises if raised.before is not None]
        return {
            **self.command(),
            "grant_id": self.grant_id,
            "client_id": "www",
            "subject_id": SUBJECT,
            "scope": scope,
            "resource": resource,
            "nonce_sha256": "0e" * 32,
            "issued_by": "operator:login",
            "issued_at_least": max([0, *befores]),
            "auth_time": 1_764_000_000,
        }

    def issue(self, scope: Words, resource: Words | None, idle_seconds: int | None, life_seconds: int | None) -> None:
        command = commands.IssueGrant(
            **self.begins(scope, resource),
            refresh_token_ttl_seconds=idle_seconds,
            grant_ttl_seconds=life_seconds,
            bound_jkt="right" if self.bound == "jkt" else None,
            bound_x5t_s256="right" if self.bound == "x5t_s256" else None,
        )
        served = self.submit(command).served
        if served is not None and served.generation is not None:
            self.held["owner"].append((0, served.key_id))

    def sign_in(self, scope: Words, resource: Words | None, meanwhile: Callable[[], None] | None = None) -> None:
        """A grant that begins with a code, tried in vain and then exchanged; `meanwhile` comes before that."""
        command = commands.AuthorizeGrant(
            **self.begins(scope, resource),
            redirect_uri=CALLBACK,
            challenge=CHALLENGE,
        )
        if self.submit(command).refused is not None:
            return
        self.present_code(challenge="x" * 43)
        self.present_code(redirect_uri=CALLBACK + "?x")
        if meanwhile is not None:
            meanwhile()
        served = self.present_code(resource=resource[:1] if resource else None).served
        # Nobody restores a log between the two.
        self.commits = self.commits[-1:]
        if served is not None and served.generation is not None:
            self.held["owner"].append((0, served.key_id))

    def try_to_sign_in(
        self, scope: Words, resource: Words | None, ceiling: Words, seconds: int, end: str, again: Sequence[str | None]
    ) -> None:
        """A grant of which only the sign-in, the exchange and what follows at once are looked at: the client's scope
        may shrink in between, time pass, and the person, the client or an operator end it; then the code comes again,
        with each of these keys."""
        kept = self.grant_id, self.grant, self.history, self.log, self.entries, self.commits, self.held
        outside = self.client, self.raises, self.now

        def meanwhile() -> None:
            self.change_client(scope=ceiling)
            self.now += seconds * SECOND
            if end in ("client", "subject"):
                self.raises = [*self.raises]
                self.raise_epoch(end, None, "withdrawal")
            elif end == "of older ones":
                self.raises = [*self.raises]
                self.raise_epoch("client", START - 1, "termination")
            elif end == "operator":
                said: dict[str, Any] = {"reason": None, "requested_by": "operator:desk", "reason_class": "withdrawal"}
                self.submit(commands.RevokeGrant(**self.command(), **said))

        self.sign_in(scope, resource, meanwhile)
        if self.log:
            for proof in again:
                self.present_code(challenge="x" * 43, proof=proof)
                self.present_code(proof=proof)
            check(self.entries)
        if self.history.of("issued"):
            self.compare_states()
        self.grant_id, self.grant, self.history, self.log, self.entries, self.commits, self.held = kept
        self.client, self.raises, self.now = outside
        self.control += 1

    def present_code(
        self,
        *,
        challenge: str = CHALLENGE,
        redirect_uri: str = CALLBACK,
        resource: Words | None = None,
        proof: str | None = None,
    ) -> Answer:
        """The grant's code is presented, by its client and with the key that it always shows, or another."""
        authorized = self.log[0]
        assert isinstance(authorized, events.GrantAuthorized)
        command = commands.ExchangeCode(
            **self.command(),
            presenter=self.presenter("owner", proof),
            authorized=authorized,
            key_id=authorized.key_id,
            challenge=challenge,
            redirect_uri=redirect_uri,
            resource=resource,
            reuse_reason="0d" * 32,
        )
        return self.submit(command)

    def presenter(self, context: str, proof: str | None) -> Presenter:
        """The client, with the key `proof`, or by default the one that its grants are bound to, if they are."""
        return Presenter(
            client_id="www",
            authenticated=self.client.authenticates,
            auth_method="client_secret_post" if self.client.authenticates else "none",
            context=CONTEXTS[context],
            **{f"proof_{self.bound or 'jkt'}": None if proof == "none" else proof or (self.bound and "right")},
        )

    def try_to_issue(
        self, scope: Words, resource: Words | None, idle_seconds: int | None, life_seconds: int | None
    ) -> None:
        """A grant of which only the issuance is looked at."""
        kept = self.grant_id, self.grant, self.history, self.log, self.entries, self.commits, self.held
        self.issue(scope, resource, idle_seconds, life_seconds)
        self.compare_states()
        self.grant_id, self.grant, self.history, self.log, self.entries, self.commits, self.held = kept

    def present(
        self,
        token: Token,
        holder: str,
        context: str,
        *,
        scope: Words | None = None,
        resource: Words | None = None,
        proof: str | None = None,
        retry_after_seconds: int | None = None,
        lost: bool = False,
    ) -> Answer:
        """A holder presents a token of the grant, genuine in tag and secret, and shows a key: `proof`, or by default
        the one that the grant is bound to, if it is. `lost`: the answer reaches nobody."""
        presenter = self.presenter(context, proof)
        first = None
        if token[0] <= (self.history.current or 0) - 2:
            first = history.first_redemption(self, self.stream, len(self.log), token[0])
            agree("first redemption", self.history.first_redemption(token[0]), first)
        command = commands.RedeemToken(
            **self.command(),
            presenter=presenter,
            generation=token[0],
            key_id=token[1],
            scope=scope,
            resource=resource,
            first_redemption=first,
            retry_after_seconds=retry_after_seconds,
        )
        answer = self.submit(command)
        if answer.ends_subject:
            self.raise_epoch("subject", None, "reuse")
        if answer.served is not None and answer.served.generation is not None:
            given = answer.served.generation, answer.served.key_id
            minted_v, at = answer.served.minted_v, max(self.now, self.history.at)
            scopes = set(self.history.events[minted_v - 1]["scope"]), set(self.client.scope)
            self.entries.append(Handed(token, given, minted_v, *scopes, at))
            if answer.events:  # what was given belongs to its commit
                self.commits[-1] = len(self.log), len(self.entries)
            if not lost and given not in self.held[holder]:
                self.held[holder].append(given)
        return answer

    def event_at(self, name: str, v: int) -> events.AnyEvent:
        """The history as the ledger's own search asks for it."""
        agree("stream", self.stream, name)
        return self.log[v - 1]

    def give_back_access_token(self, v: int) -> None:
        """As the revocation endpoint does: what has expired needs no event."""
        if self.enabled and max(self.now, self.history.at) < self.history.access_token(v).expires_at:
            self.submit(commands.RevokeAccessToken(**self.command(), issued_v=v, client_id="www"))

    def count_presentations(self, number: int, *, at_stop: bool) -> None:
        members: dict[str, Any] = {"last_generation": 0, "last_context": CONTEXTS["thief"], "at_stop": at_stop}
        members |= {"first_at": self.now, "last_at": self.now}
        self.submit(commands.CountPresentations(**self.command(), count=number, **members))

    def another_client_presents(self, token: Token) -> Answer:
        presenter = Presenter(
            client_id="oth", authenticated=True, auth_method="client_secret_basic", context=CONTEXTS["thief"]
        )
        self.submit(commands.RecordForeignClient(**self.command(), presenter=presenter, generation=token[0]))
        self.submit(commands.RevokeByClient(**self.command(), client_id="oth"))
        self.submit(commands.RevokeAccessToken(**self.command(), client_id="oth", issued_v=1))
        members: dict[str, Any] = {"generation": token[0], "key_id": token[1], "scope": None, "resource": None}
        return self.submit(commands.RedeemToken(**self.command(), presenter=presenter, **members))

    # ------------------------------------------------------------ the store

    def restore(self, commits_lost: int) -> None:
        """The log loses its last commits; holders keep what they were given."""
        self.check_whole()
        self.commits = self.commits[: max(1, len(self.commits) - commits_lost)]
        kept, entries = self.commits[-1]
        self.log, self.entries = self.log[:kept], self.entries[:entries]
        self.history = History(self.history.events[:kept])
        self.grant = self.folded()

    def folded(self) -> Grant:
        grant = Grant()
        for event in self.log:
            grant.evolve(event)
        return grant

    def check_whole(self) -> None:
        """What must hold of all that happened to this grant, and that a replay of it comes to the same (I-13)."""
        check(self.entries)
        agree("replay", msgspec.msgpack.encode(self.folded()), msgspec.msgpack.encode(self.grant))
