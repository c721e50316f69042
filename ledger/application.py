"""The ledger as its endpoints know it: one method a client's request; load → decide → append → answer. What operators
ask, and the commands beside the store, is `Ledger.operators`.

Every answer is given after the commit it stands on, and says what was true in the transaction it was decided in. All
methods raise `Refused` (nothing to do with the store) or `Unavailable` (nothing may be concluded: ask again).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from ledger import codes, exchanging, introspecting, operating, redeeming, revoking, tokens
from ledger.afterwards import Afterwards
from ledger.answering import Unmade, signed
from ledger.answers import Caller, Introspection, Source, TokenAnswer
from ledger.archiving import Archiving
from ledger.authority import Authority
from ledger.batch import Batch
from ledger.clients import Operator
from ledger.commits import Commits
from ledger.decisions import Decisions
from ledger.events import LedgerStarted, LedgerStopped, ReuseDetected, Words
from ledger.failed_batches import NEVER_COMMITTED
from ledger.head_file import Acknowledged, HeadFile
from ledger.hearing import Hearing
from ledger.keyring import KeyNotHeld, KeyRing
from ledger.log_end import LogEnd
from ledger.memory import Memory
from ledger.operators import Operators
from ledger.presentations import Bursts
from ledger.presenting import Desk, parse_access
from ledger.private import subject_lookup
from ledger.randomness import Randomness
from ledger.recorders.errors import HeadMissing, HistoryBroken, PositionsSpent, StoreError
from ledger.recorders.reading import LAST_POSITION_MAX
from ledger.recorders.store import Store
from ledger.refreshing import Refreshing
from ledger.refusals import LedgerError, Refusal, Refused, Unavailable
from ledger.ring_file import RingFile

log = logging.getLogger("ledger")

TICK_SECONDS = 1.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the operating side may set about decisions and commits. `issuer` is what the ledger calls itself in JWTs."""

    issuer: str = "https://localhost:8443"
    request_timeout_seconds: float = 10
    clock_skew_seconds: int = 10
    refresh_burst: int = 10
    refresh_per_second: float = 1


class Ledger:
    """One store, served by this process. Made by `open` inside a running event loop, ended by `close`.

    Clients' requests are methods of its own; `operators` has those of operators, and the local commands.
    """

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
        self.log_end = LogEnd(head_file, store.within(), store.end)
        self.memory.holds_all = self.log_end.meet
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
        self.afterwards = Afterwards(self._commits, self.desk, self.log_end)
        self._decisions = Decisions(self._commits, self.desk, self.log_end, self.afterwards)
        self._hearing = Hearing(self._commits, self.authority)
        self.archiving = Archiving(store, self._decisions, self.desk)
        self.operators = Operators(store, self._commits, self._decisions, self.desk, self.log_end, self._ring_file)

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
        to_heal: bool = False,
    ) -> "Ledger":
        """Serve an opened store. A new one is given the ring's keys; one whose log ends before the head file's position
        stays unready, and records nothing, until `restore_acknowledge`. `on_fatal` is called when the process must end.
        `to_heal`: also where nobody can make out who there is; a rebuild runs, and all else is refused until it has put
        that right.

        Raises LedgerError, StoreError; the store is the caller's again then.
        """
        head_file.check_writable()
        ledger = cls(store, ring, keys_path, head_file, options, clock=clock, randomness=randomness, on_fatal=on_fatal)
        try:
            new = ledger._read_authority(to_heal)
            ledger.log_end.compare()
            if new and ledger.behind is None:
                await ledger._commits.submit(lambda batch: operating.first_keys(batch, ring), ours=True)
            ledger._ring_file.disown()
        except Unavailable as error:
            await ledger._commits.close()
            raise StoreError(ledger._commits.last_error or str(error)) from None
        except BaseException:
            await ledger._commits.close()
            raise
        ledger._ticker = asyncio.get_running_loop().create_task(ledger._tick())
        return ledger

    def _read_authority(self, to_heal: bool) -> bool:
        """Learn who there is; whether the log is new. Raises HistoryBroken, unless that is `to_heal`, where nobody can
        tell; also of a log that is not new and names no key: to give it the ring's once more would be to trust again
        what it had distrusted."""
        reads = self.store.within()
        try:
            self.authority.reload(reads, self.store.control()[0])
            if self.store.end() > LAST_POSITION_MAX:
                raise PositionsSpent
            for name in reads.headless_persons():
                raise HeadMissing(name)
            if self.authority.keys.created_at:
                return False
            if not reads.select("SELECT 1 FROM events UNION ALL SELECT 1 FROM archived LIMIT 1"):
                return True
            problem = HistoryBroken("keys: the log holds events, and no head names a key; rebuild tells more")
        except HistoryBroken as error:
            problem = error
        except msgspec.DecodeError:
            problem = HistoryBroken("of clients, operators or keys an event is not as recorded; rebuild names it")
        if not to_heal:
            raise problem
        self.authority.distrust()  # until it is healed each batch reads it anew, and is refused
        return False

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

    async def hear(self) -> bool:
        """Whether other nodes have changed who there is, and how they show it, and that was not known here yet. To be
        asked before somebody is refused for it. False at once where nobody else writes to the store."""
        return self.store.optimistic and await self._hearing.hear()

    def lookup(self, subject: str) -> bytes:
        """The key of a person's row."""
        return subject_lookup(self.desk.ring, subject)

    def is_refresh_token(self, token: str) -> bool:
        """Whether a text is a refresh token of ours by its shape and tag, which costs no look-up. Whether it is worth
        anything is not judged."""
        try:
            return self._ring_file.read(tokens.parse, token) is not None
        except Refused:
            return False

    def is_token(self, text: str) -> bool:
        """Whether a text is a refresh or access token of ours by its shape, and its tag or signature."""
        try:
            read = self._ring_file.read
            return read(tokens.parse, text) is not None or read(parse_access, text) is not None
        except Refused:
            return False

    def is_code(self, text: str) -> bool:
        """Whether a text is an authorization code of ours by its shape and tag, as `is_refresh_token`."""
        try:
            return self._ring_file.read(codes.parse, text) is not None
        except Refused:
            return False

    async def refresh(
        self, caller: Caller, source: Source, token: str, scope: Words | None, resource: Words | None
    ) -> TokenAnswer:
        """Exchange a refresh token for its successor (RFC 6749 6). Durable when it returns.

        Raises Refused: an owner's reason only for the owner, UNKNOWN_TOKEN for everyone else.
        """
        presented = await self._presented(token, caller)

        def redeem(batch: Batch) -> Unmade:
            return redeeming.redeem(batch, self.desk, caller, source, presented, scope, resource)

        answer: TokenAnswer
        try:
            if caller.single_use or self.behind is not None:
                answer = await self._decisions.decided(
                    redeem, caller.single_use, about=presented.stream, by=caller.stream
                )
            else:
                answer = await self._commits.submit(redeem, about=presented.stream, by=caller.stream)
        except Refused as refusal:
            self.not_refreshed(refusal, caller)
            raise
        return self.answered(answer)

    def refresh_soon(
        self,
        caller: Caller,
        source: Source,
        token: str,
        tell: Callable[[TokenAnswer | BaseException], None],
        prepare: Callable[[TokenAnswer], None],
    ) -> bool:
        """As `refresh`, without anybody waiting: `tell`, which may not raise, is called once with the answer or with
        what `refresh` would raise. False: not this one, and nothing happened. `token` is ASCII.

        `prepare` is shown the answer before, while its batch is being made durable: nobody may be told yet. It may not
        come to that, or not with this answer; and a JWT is not signed then, nor the position sure.
        """
        if self.behind is not None or caller.single_use:
            return False
        desk = self.desk
        try:
            presented = desk.made(token) or tokens.parse(desk.ring, token)
        except tokens.KeyNotHeld:  # the ring's file may have it by now
            return False
        if presented is None:
            return False
        refreshing = Refreshing(self, caller, source, presented, tell, prepare)
        self._commits.put(refreshing.redeem, refreshing, about=presented.stream, by=caller.stream)
        return True

    def answered(self, answer: TokenAnswer) -> TokenAnswer:
        """Count a refresh that is durable, and sign its JWT, if any. Raises what signing raises."""
        self.refreshed += 1
        return answer if answer.unsigned is None else signed(self.desk.ring, answer)

    def not_refreshed(self, refusal: Refused, caller: Caller) -> None:
        """Tell and note what a refused refresh has shown: a reuse, a foreign client."""
        if refusal.reuse is not None:
            self._tell_reuse(refusal.reuse, caller.client_id)
        if self.desk.foreign:
            self.afterwards.record_foreign_soon()

    async def _presented(self, token: str, caller: Caller) -> tokens.Presented:
        """Read a refresh token. Raises Refused for what is none of ours."""
        try:
            presented = self.desk.made(token) if token.isascii() else None
            presented = presented or self._ring_file.read(tokens.parse, token)
            if presented is not None:
                return presented
            raise Refused(Refusal.UNKNOWN_TOKEN)
        except Refused:
            await self._decisions.spend(caller)
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
            presented = self._ring_file.read(codes.parse, code)
            if presented is None:
                raise Refused(Refusal.UNKNOWN_TOKEN)
        except Refused:
            await self._decisions.spend(caller)
            raise
        challenge = exchanging.challenge_of(verifier)
        try:
            answer = await self._decisions.decided(
                lambda batch: exchanging.exchange(
                    batch, self.desk, caller, source, presented, challenge, redirect_uri, resource
                ),
                caller.single_use,
                by=caller.stream,
            )
        except Refused as refusal:
            if refusal.refusal is Refusal.REUSE_DETECTED and not refusal.counts:
                self.codes["reused"] += 1
                fields = {"grant": presented.grant_id, "client": caller.client_id, "event_id": refusal.event_id}
                log.warning("code_reused", extra={"fields": fields})
            raise
        self.codes["exchanged"] += 1
        return signed(self.desk.ring, answer)

    async def revoke_token(self, caller: Caller, source: Source, token: str) -> None:
        """Give a refresh or access token back (RFC 7009). Unknown ones are no error; another client's is refused, and
        so is one under a key that this node does not hold: whoever sent it would believe it dead."""
        try:
            presented, access = self._ring_file.read(tokens.parse, token), self._ring_file.read(parse_access, token)
        except Refused:
            await self._decisions.spend(caller)
            raise
        if presented is not None:
            await self._decisions.decided(
                lambda batch: revoking.revoke(batch, self.desk, caller, source, presented),
                caller.single_use,
                about=presented.stream,
                by=caller.stream,
            )
        elif access is not None:
            await self._decisions.decided(
                lambda batch: revoking.revoke_access(batch, self.desk, caller, access),
                caller.single_use,
                by=caller.stream,
            )
        else:
            await self._decisions.spend(caller)

    async def introspect(self, asker: Caller | Operator, token: str) -> Introspection | None:
        """What an active token is worth (RFC 7662); None: inactive, or not for this asker."""
        own, spends = (asker, asker.single_use) if isinstance(asker, Caller) else (None, ())
        by = asker.stream if isinstance(asker, Caller) else asker.requested_by
        presented = access = None
        with contextlib.suppress(Refused):
            presented, access = self._ring_file.read(tokens.parse, token), self._ring_file.read(parse_access, token)
        if presented is not None:
            return await self._decisions.decided(
                lambda batch: introspecting.introspect(batch, self.desk, own, presented),
                spends,
                about=presented.stream,
                by=by,
            )
        if access is not None:
            return await self._decisions.decided(
                lambda batch: introspecting.introspect_access(batch, self.desk, own, access),
                spends,
                about=f"grant:{access.grant_id}",
                by=by,
            )
        if own is not None:
            await self._decisions.spend(own)
        return None

    # ------------------------------------------------------------ standing

    def readiness(self) -> str | None:
        """Why the ledger is not ready; None where it is. Never waits for the store."""
        if self._commits.broken is not None:
            return "the store failed"
        if self.behind is not None:
            return "the log lacks what was acknowledged: an older copy serves; see `token-ledger restore acknowledge`"
        if lacking := self._ring_file.lacking:
            return f"the key ring lacks key {min(lacking)}, which the log names"
        if not self._commits.ready:
            return self._commits.last_error or NEVER_COMMITTED
        return None

    @property
    def behind(self) -> Acknowledged | None:
        """What was acknowledged last where the log lacks it; then nothing is answered and nothing recorded."""
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
            await self._commits.submit(lambda batch: operating.record_life(batch, LedgerStarted), ours=True)

    async def stopped(self) -> None:
        """Record that a server ceases to: its last word, so what was counted comes before it."""
        if self.behind is None:
            await self._write_what_is_left()
            with contextlib.suppress(Unavailable):
                await self._commits.submit(lambda batch: operating.record_life(batch, LedgerStopped), ours=True)

    def read_ring(self) -> None:
        """Use the key ring as its file has it now. Raises LedgerError, and then nothing has changed."""
        self._ring_file.take()

    # ------------------------------------------------------------ parts

    def _broken(self, error: StoreError) -> None:
        log.critical("store_broken", extra={"fields": {"problem": str(error)}})
        self._on_fatal(str(error))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                self._ring_file.disown()
                if self._ring_file.lacking:
                    self._ring_file.reread()
                if self.store.optimistic:
                    self._commits.look(lambda batch: self.log_end.look_again(batch.store.within()))
                if self._commits.broken is None:
                    self.log_end.write()
                    await self.afterwards.flush_presentations(self.memory.clock())
            except (LedgerError, Unavailable) as error:
                log.error("upkeep_failed", extra={"fields": {"problem": str(error)}})
            except Exception as error:  # a defect in one round must not end all later ones: nobody would notice
                log.error("upkeep_failed", exc_info=error)

    async def _write_what_is_left(self) -> None:
        self.afterwards.record_foreign()
        await self.afterwards.flush_presentations(self.memory.clock(), at_stop=True)
