"""The ledger as its endpoints and commands know it: one method a request; load → decide → append → answer.

Every answer is given after the commit it stands on, and says what was true in the transaction it was decided in. All
methods raise `Refused` (nothing to do with the store) or `Unavailable` (nothing may be concluded: ask again).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from ledger import (
    access_tokens,
    authorizing,
    codes,
    exchanging,
    explaining,
    introspecting,
    issuing,
    jwt_access_tokens,
    operating,
    presenting,
    revoking,
    subjects,
    times,
    tokens,
)
from ledger.acts import Act
from ledger.afterwards import Afterwards
from ledger.answers import (
    AuthorizationAnswer,
    AuthorizationRequest,
    Caller,
    EpochAnswer,
    Explanation,
    GrantAct,
    Introspection,
    IssueRequest,
    KeyView,
    RestoreReport,
    Source,
    TokenAnswer,
)
from ledger.authority import Authority
from ledger.batch import Batch, Memory
from ledger.changes import ApplyReport
from ledger.clients import ClientSpec, Operator, OperatorSpec
from ledger.commits import Commits
from ledger.events import KeyEvent, LedgerStarted, LedgerStopped, ReuseDetected, Words
from ledger.head_file import Head, HeadFile
from ledger.keyring import Alg, KeyNotHeld, KeyRing
from ledger.keys import Keys
from ledger.log_end import LogEnd
from ledger.presentations import Bursts
from ledger.presenting import Desk
from ledger.private import is_subject
from ledger.randomness import Randomness
from ledger.recorders.errors import StoreError
from ledger.recorders.store import Store
from ledger.refusals import LedgerError, Refusal, Refused, Unavailable
from ledger.ring_file import RingFile
from ledger.single_use import SingleUse, spending

log = logging.getLogger("ledger")

T = TypeVar("T")

TICK_SECONDS = 1.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the operating side may set about decisions and commits. `issuer` is what the ledger calls itself in JWTs."""

    issuer: str = "https://localhost:8443"
    request_timeout_seconds: float = 10
    clock_skew_seconds: int = 10
    refresh_burst: int = 10
    refresh_per_second: float = 1


class Ledger:
    """One store, served by this process. Made by `open` inside a running event loop, ended by `close`."""

    def __init__(
        self,
        store: Store,
        ring: KeyRing,
        keys_path: Path,
        head_file: HeadFile,
        options: Options,
        *,
        clock: Callable[[], int],
        randomness: Randomness,
        on_fatal: Callable[[str], None],
    ) -> None:
        self.store = store
        self.options = options
        self.authority = Authority(store.within, clock_skew_seconds=options.clock_skew_seconds)
        self.memory = Memory(store, self.authority, clock=clock, randomness=randomness)
        bursts = Bursts(options.refresh_burst, options.refresh_per_second)
        self.desk = Desk(ring, self.authority, bursts, options.issuer)
        self.refreshed = 0
        self.reuse_detected = {"late_retry": 0, "fork": 0}
        self.codes = {"exchanged": 0, "reused": 0}
        self._acknowledging = asyncio.Lock()
        self.log_end = LogEnd(head_file, store.within(), store.end)
        self._ring_file = RingFile(keys_path, self.desk, self.authority, clock)
        self._on_fatal = on_fatal
        self._ticker: asyncio.Task[None] | None = None
        self._commits = Commits(
            store,
            self.memory,
            deadline_seconds=options.request_timeout_seconds,
            on_acknowledged=self.log_end.acknowledge,
            on_broken=self._broken,
        )
        self.afterwards = Afterwards(self._commits, self.desk)

    @classmethod
    async def open(
        cls,
        store: Store,
        ring: KeyRing,
        keys_path: Path,
        head_file: HeadFile,
        options: Options,
        *,
        clock: Callable[[], int],
        randomness: Randomness,
        on_fatal: Callable[[str], None] = lambda line: None,
    ) -> "Ledger":
        """Serve an opened store. A new one is given the ring's keys; one whose log ends before the head file's position
        stays unready, and records nothing, until `restore_acknowledge`. `on_fatal` is called when the process must end.

        Raises LedgerError, Unavailable; the store is the caller's again then.
        """
        head_file.check_writable()
        ledger = cls(store, ring, keys_path, head_file, options, clock=clock, randomness=randomness, on_fatal=on_fatal)
        ledger.authority.reload(store.within(), store.control()[0])
        try:
            ledger.log_end.compare()
            if ledger.behind is None and not ledger.authority.keys.created_at:
                await ledger._commits.submit(ledger._first_keys)
        except BaseException:
            await ledger._commits.close()
            raise
        ledger._ticker = asyncio.get_running_loop().create_task(ledger._tick())
        return ledger

    async def close(self) -> None:
        """Answer who is in line, flush what was counted, write the head file, give the store back."""
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
        await self._write_what_is_left()
        ended = await self._commits.close()
        if self._commits.broken is None:
            with contextlib.suppress(LedgerError):
                self.log_end.write()
        if ended:  # else the disk hangs, and whoever touched the connection would hang with it
            self.store.close()

    # ------------------------------------------------------------ clients

    def is_refresh_token(self, token: str) -> bool:
        """Whether a text is a refresh token of ours by its shape and tag, which costs no look-up. Whether it is worth
        anything is not judged."""
        try:
            return self._parsed(token) is not None
        except Refused:
            return False

    def is_token(self, text: str) -> bool:
        """Whether a text is a refresh or access token of ours by its shape, and its tag or signature."""
        try:
            return self._parsed(text) is not None or self._parsed_access(text) is not None
        except Refused:
            return False

    def is_code(self, text: str) -> bool:
        """Whether a text is an authorization code of ours by its shape and tag, as `is_refresh_token`."""
        try:
            return self._read(codes.parse, text) is not None
        except Refused:
            return False

    async def refresh(
        self, caller: Caller, source: Source, token: str, scope: Words | None, resource: Words | None
    ) -> TokenAnswer:
        """Exchange a refresh token for its successor (RFC 6749 6). Durable when it returns.

        Raises Refused: an owner's reason only for the owner, UNKNOWN_TOKEN for everyone else.
        """
        presented = self.desk.handed_out.pop(token, None) or await self._presented(token, caller)

        def redeem(batch: Batch) -> TokenAnswer:
            return presenting.redeem(batch, self.desk, caller, source, presented, scope, resource)

        try:
            if caller.single_use or self.behind is not None:
                answer = await self._decided(redeem, caller.single_use)
            else:
                answer = await self._commits.submit(redeem)
        except Refused as refusal:
            if refusal.reuse is not None:
                self._tell_reuse(refusal.reuse, caller.client_id)
            if self.desk.foreign:
                self.afterwards.record_foreign_soon()
            raise
        self.refreshed += 1
        return answer if answer.unsigned is None else self._signed(answer)

    async def _presented(self, token: str, caller: Caller) -> tokens.Presented:
        """Read a refresh token. Raises Refused for what is none of ours."""
        try:
            presented = self._parsed(token)
            if presented is not None:
                return presented
            raise Refused(Refusal.UNKNOWN_TOKEN)
        except Refused:
            await self._spend(caller)
            raise

    def _tell_reuse(self, event: ReuseDetected, client_id: str) -> None:
        self.reuse_detected[event.label] += 1
        fields = {
            "grant": event.stream.removeprefix("grant:"),
            "client": client_id,
            "label": event.label,
            "action": event.action,
            "event_id": event.event_id,
        }
        log.warning("reuse_detected", extra={"fields": fields})

    async def exchange(
        self,
        caller: Caller,
        source: Source,
        code: str,
        *,
        verifier: str | None,
        redirect_uri: str | None,
        resource: Words | None,
    ) -> TokenAnswer:
        """Exchange an authorization code for a grant's first tokens, once (RFC 6749 4.1.3). Durable when it returns.

        A second exchange ends the grant. Raises Refused as `refresh` does.
        """
        try:
            presented = self._read(codes.parse, code)
            if presented is None:
                raise Refused(Refusal.UNKNOWN_TOKEN)
        except Refused:
            await self._spend(caller)
            raise
        challenge = exchanging.challenge_of(verifier)
        try:
            answer = await self._decided(
                lambda batch: exchanging.exchange(
                    batch, self.desk, caller, source, presented, challenge, redirect_uri, resource
                ),
                caller.single_use,
            )
        except Refused as refusal:
            if refusal.refusal is Refusal.REUSE_DETECTED and not refusal.counts:
                self.codes["reused"] += 1
                fields = {"grant": presented.grant_id, "client": caller.client_id, "event_id": refusal.event_id}
                log.warning("code_reused", extra={"fields": fields})
            raise
        self.codes["exchanged"] += 1
        return self._signed(answer)

    async def revoke_token(self, caller: Caller, source: Source, token: str) -> None:
        """Give a refresh or access token back (RFC 7009). Unknown ones are no error; another client's is refused, and
        so is one under a key that this node does not hold: whoever sent it would believe it dead."""
        try:
            presented, access = self._parsed(token), self._parsed_access(token)
        except Refused:
            await self._spend(caller)
            raise
        if presented is not None:
            await self._decided(
                lambda batch: revoking.revoke(batch, self.desk, caller, source, presented), caller.single_use
            )
        elif access is not None:
            await self._decided(
                lambda batch: revoking.revoke_access(batch, self.desk, caller, access), caller.single_use
            )
        else:
            await self._spend(caller)

    async def introspect(self, asker: Caller | Operator, token: str) -> Introspection | None:
        """What an active token is worth (RFC 7662); None: inactive, or not for this asker."""
        own, spends = (asker, asker.single_use) if isinstance(asker, Caller) else (None, ())
        presented = access = None
        with contextlib.suppress(Refused):
            presented, access = self._parsed(token), self._parsed_access(token)
        if presented is not None:
            return await self._decided(lambda batch: introspecting.introspect(batch, self.desk, own, presented), spends)
        if access is not None:
            return await self._decided(
                lambda batch: introspecting.introspect_access(batch, self.desk, own, access), spends
            )
        if own is not None:
            await self._spend(own)
        return None

    # ------------------------------------------------------------ operators

    async def issue(
        self, operator: Operator, request: IssueRequest, idempotency_key: str | None, body: bytes
    ) -> TokenAnswer:
        """A new grant, or the one that this Idempotency-Key made before. `body` is the request's canonical JSON."""
        _check_subject(request.subject)
        return self._signed(
            await self._decided(lambda batch: issuing.issue(batch, self.desk, operator, request, idempotency_key, body))
        )

    async def authorize(self, operator: Operator, request: AuthorizationRequest) -> AuthorizationAnswer:
        """Put a person's consent on record; the code that the client exchanges (RFC 6749 4.1.2). Durable on return."""
        _check_subject(request.subject)
        return await self._decided(lambda batch: authorizing.authorize(batch, self.desk, operator, request))

    async def act_on_grant(
        self, operator: Operator, grant_id: str, act: GrantAct, reason: str | None, trust: str | None = None
    ) -> None:
        """Revoke, suspend or reinstate a grant. After it returns no refresh against it succeeds (I-06)."""
        await self._decided(
            lambda batch: operating.act_on_grant(batch, self.desk, operator, grant_id, act, reason, trust)
        )

    async def revoke_subject(
        self, operator: Operator, subject: str, reason: str | None, before: int | None
    ) -> EpochAnswer:
        """End all grants of a person at once (I-06)."""
        return await self._decided(
            lambda batch: operating.revoke_subject(batch, self.desk, operator, subject, reason, before)
        )

    async def revoke_client(
        self, operator: Operator, client_id: str, reason: str | None, before: int | None
    ) -> EpochAnswer:
        """End all grants of a client at once (I-06)."""
        return await self._decided(lambda batch: operating.revoke_client(batch, operator, client_id, reason, before))

    async def explain(self, token: str) -> Explanation:
        """What a token or code is and, if it is not good, when, why and by whom it ended. White space around it is
        ignored."""
        token = token.strip()
        try:
            presented, access = self._parsed(token), self._parsed_access(token)
            code = self._read(codes.parse, token)
        except Refused:
            return explaining.UNKNOWN
        if presented is not None:
            return await self._decided(lambda batch: explaining.explain(batch, self.desk, presented))
        if access is not None:
            return await self._decided(lambda batch: explaining.explain_access(batch, self.desk, access))
        if code is not None:
            return await self._decided(lambda batch: explaining.explain_code(batch, self.desk, code))
        return explaining.UNKNOWN

    async def record_read(self, operator: Operator, question: str, grant_id: str | None = None) -> None:
        """Record that an operator asked a question."""
        await self._decided(lambda batch: operating.record_read(batch, operator, question, grant_id))

    async def subject_id(self, subject: str) -> str | None:
        """What events call a person; None: never seen, or erased."""
        return await self._decided(lambda batch: subjects.subject_id_of(batch, self.desk.ring, subject))

    async def erase(self, operator: Operator, subject: str) -> bool:
        """Remove a person's data; False: never seen. What was erased has left the file and its log on return."""
        known = await self._decided(lambda batch: subjects.erase(batch, self.desk.ring, subject, operator.requested_by))
        await self._truncate_log()  # also where nobody is known any more: the command before may have broken off here
        return known

    async def apply(
        self,
        clients: Sequence[ClientSpec],
        operators: Sequence[OperatorSpec],
        *,
        serial: int | None = None,
        dry_run: bool = False,
    ) -> ApplyReport:
        """Make clients and operators as a file says, an event for each change; they bind at once (I-06).

        Raises LedgerError where the file breaks a rule; nothing is recorded then.
        """
        return await self._decided(
            lambda batch: operating.apply(batch, self.desk, clients, operators, serial=serial, dry_run=dry_run)
        )

    # ------------------------------------------------------------ keys and restores

    def keys_list(self) -> list[KeyView]:
        """The keys that the log knows, oldest first."""
        keys = self.authority.keys
        return [
            KeyView(id=key_id, state=keys.state(key_id), created_at=times.text(at))
            for key_id, at in sorted(keys.created_at.items())
        ]

    async def keys_rotate(self, alg: Alg | None = None) -> int:
        """Add a key that verifies only; its id. It will sign JWTs by `alg`, or as the active key does. The ring's file
        is durable before the event."""
        self._check_whole()  # a key that no event will name would cost one of 255 ids
        key_id = await self._ring_file.grow(alg)
        await self._decide_keys(_rotation(key_id))
        return key_id

    async def keys_activate(self, key_id: int) -> None:
        """Let a key sign from here on."""
        if key_id not in self.desk.ring.keys:
            self._ring_file.reread()
        if key_id in self._ring_file.lacking:
            raise Refused(Refusal.CONFLICT, detail=f"the key ring of this node lacks key {key_id}")
        await self._decide_keys(lambda keys, act: keys.decide_activation(key_id, act))

    async def keys_distrust(self, key_id: int) -> None:
        """Trust a key no more."""
        await self._decide_keys(lambda keys, act: keys.decide_distrust(key_id, act))

    async def _decide_keys(self, decide: Callable[[Keys, Act], KeyEvent | None]) -> None:
        await self._decided(lambda batch: operating.decide_keys(batch, "operator:local", decide))

    async def restore_acknowledge(self) -> RestoreReport | None:
        """Go on after an older backup was put back knowingly; None where the log is not behind the head file."""
        async with self._acknowledging:  # a second one, meanwhile, has nothing left to acknowledge
            behind = self.behind
            if behind is None:
                return None
            key_id = await self._ring_file.grow()
            report = await self._commits.submit(
                lambda batch: operating.record_restore(batch, behind.position, times.text(behind.at), key_id)
            )
            self.log_end.behind = None
            self.log_end.write()
            return report

    # ------------------------------------------------------------ standing

    def readiness(self) -> str | None:
        """Why the ledger is not ready; None where it is. Never waits for the store."""
        if self._commits.broken is not None:
            return "the store failed"
        if self.behind is not None:
            return "the log is behind the head file: a backup was restored; see `token-ledger restore acknowledge`"
        if lacking := self._ring_file.lacking:
            return f"the key ring lacks key {min(lacking)}, which the log names"
        if not self._commits.ready:
            return self._commits.last_error or "no commit has succeeded for 5 seconds"
        return None

    @property
    def behind(self) -> Head | None:
        """What the head file says where the log ends before it; then nothing is answered and nothing recorded."""
        return self.log_end.behind

    @property
    def acknowledged_position(self) -> int:
        """The last position whose events are durable and answered for."""
        return self.log_end.position

    @property
    def commits(self) -> Commits:
        """The line in front of the store, for its figures and for `rebuild`."""
        return self._commits

    async def started(self) -> None:
        """Record that a server serves this store. Where JWTs are signed what that needs is loaded first: it takes as
        long as a thousand refreshes."""
        clients = self.authority.clients.values()
        if any(client.settings.policy.access_token_format == "jwt" for client in clients):
            with contextlib.suppress(KeyNotHeld):
                self.desk.ring.signing_key(self.authority.keys.active_id)
        if self.behind is None:  # else its position would be one that the lost log has used
            await self._commits.submit(lambda batch: operating.record_life(batch, LedgerStarted))

    async def stopped(self) -> None:
        """Record that a server ceases to: its last word, so what was counted comes before it."""
        if self.behind is None:
            await self._write_what_is_left()
            with contextlib.suppress(Unavailable):
                await self._commits.submit(lambda batch: operating.record_life(batch, LedgerStopped))

    # ------------------------------------------------------------ parts

    async def _decided(self, decide: Callable[[Batch], T], spends: tuple[SingleUse, ...] = ()) -> T:
        self._check_whole()
        if spends:
            decide = spending(self.desk.ring, spends, decide)
        try:
            return await self._commits.submit(decide)
        finally:
            if self.desk.foreign:
                self.afterwards.record_foreign_soon()

    async def _spend(self, caller: Caller) -> None:
        """What was asked needs no store to be answered; what the caller may use once is used all the same."""
        if caller.single_use:
            await self._decided(lambda batch: None, caller.single_use)

    def _check_whole(self) -> None:
        """Raises Unavailable while the log has lost what it had acknowledged (I-23)."""
        if self.behind is not None:
            raise Unavailable("the log is behind the head file", retry_after_seconds=60)

    def _parsed(self, token: str) -> tokens.Presented | None:
        return self._read(tokens.parse, token)

    def _parsed_access(self, token: str) -> presenting.PresentedAccess | None:
        return self._read(access_tokens.parse, token) or self._read(jwt_access_tokens.parse, token)

    def _signed(self, answer: TokenAnswer) -> TokenAnswer:
        """Sign the answer's JWT, now that its event is durable: nobody else waits in the transaction meanwhile."""
        if answer.unsigned is None:
            return answer
        access_token = jwt_access_tokens.sign(self.desk.ring, answer.unsigned)
        return msgspec.structs.replace(answer, access_token=access_token, unsigned=None)

    def _read(self, parse: Callable[[KeyRing, str], T | None], token: str) -> T | None:
        """Read a token; where it names a key that the ring lacks, the ring's file may have it by now.

        Raises Refused where it has not: the token may be ours, so nobody may be told that it is nothing.
        """
        try:
            return parse(self.desk.ring, token)
        except KeyNotHeld:
            self._ring_file.reread()
        try:
            return parse(self.desk.ring, token)
        except KeyNotHeld:
            raise Refused(Refusal.UNKNOWN_TOKEN) from None

    def _first_keys(self, batch: Batch) -> None:
        by, ids = "operator:local", sorted(self.desk.ring.keys)
        for key_id in ids:
            operating.decide_keys(batch, by, _rotation(key_id))
        operating.decide_keys(batch, by, lambda keys, act: keys.decide_activation(ids[-1], act))

    def _broken(self, error: StoreError) -> None:
        log.critical("store_broken", extra={"fields": {"problem": str(error)}})
        self._on_fatal(str(error))

    async def _truncate_log(self) -> None:
        """Readers that look at an older moment keep the log; they are short, so try again for a while."""
        for _ in range(100):
            with contextlib.suppress(StoreError):
                if await self._commits.exclusively(self.store.truncate_log):
                    return
            await asyncio.sleep(0.05)
        raise Unavailable("erased, but the write-ahead log is still being read; repeat the command")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                if self._ring_file.lacking:
                    self._ring_file.reread()
                if self.behind is None and self._commits.broken is None:
                    self.log_end.write()
                    await self.afterwards.flush_presentations(self.memory.clock())
            except (LedgerError, Unavailable) as error:
                log.error("upkeep_failed", extra={"fields": {"problem": str(error)}})
            except Exception as error:  # a defect in one round must not end all later ones: nobody would notice
                log.error("upkeep_failed", exc_info=error)

    async def _write_what_is_left(self) -> None:
        self.afterwards.record_foreign()
        await self.afterwards.flush_presentations(self.memory.clock(), at_stop=True)


def _check_subject(subject: str) -> None:
    if not is_subject(subject):
        raise Refused(Refusal.INVALID_REQUEST, detail="subject: 1 to 255 characters without control characters")


def _rotation(key_id: int) -> Callable[[Keys, Act], KeyEvent]:
    return lambda keys, act: keys.decide_rotation(key_id, act)
