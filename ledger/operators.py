"""What operators ask of the ledger, and what the commands beside its store do: one method a request or command.

All raise `Refused` (nothing to do with the store) or `Unavailable` (nothing may be concluded: ask again), and what they
change is durable when they return.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from ledger import authorizing, codes, explaining, issuing, operating, subjects, times, tokens
from ledger.acts import Act
from ledger.answering import signed
from ledger.answers import (
    AuthorizationAnswer,
    AuthorizationRequest,
    EpochAnswer,
    Explanation,
    GrantAct,
    IssueRequest,
    KeyView,
    RestoreReport,
    TokenAnswer,
)
from ledger.changes import ApplyReport
from ledger.clients import ClientSpec, Operator, OperatorSpec
from ledger.commits import Commits
from ledger.decisions import Decisions
from ledger.events import KeyEvent
from ledger.keyring import Alg
from ledger.keys import Keys
from ledger.log_end import LogEnd
from ledger.presenting import Desk, parse_access
from ledger.private import is_subject
from ledger.recorders.errors import StoreError
from ledger.recorders.store import Store
from ledger.refusals import Refusal, Refused, Unavailable
from ledger.ring_file import RingFile

CLEARING_TRIES_MAX = 100
CLEARING_PAUSE_SECONDS = 0.05


class Operators:
    """The operators' side of one `Ledger`."""

    def __init__(
        self,
        store: Store,
        commits: Commits,
        decisions: Decisions,
        desk: Desk,
        log_end: LogEnd,
        ring_file: RingFile,
    ) -> None:
        self._store = store
        self._commits = commits
        self._decisions = decisions
        self._desk = desk
        self._log_end = log_end
        self._ring_file = ring_file
        self._acknowledging = asyncio.Lock()

    async def issue(
        self, operator: Operator, request: IssueRequest, idempotency_key: str | None, body: bytes
    ) -> TokenAnswer:
        """A new grant, or the one that this Idempotency-Key made before. `body` is the request's canonical JSON."""
        _check_subject(request.subject)
        answer = await self._decisions.decided(
            lambda batch: issuing.issue(batch, self._desk, operator, request, idempotency_key, body),
            by=operator.requested_by,
        )
        return signed(self._desk.ring, answer)

    async def authorize(self, operator: Operator, request: AuthorizationRequest) -> AuthorizationAnswer:
        """Put a person's consent on record; the code that the client exchanges (RFC 6749 4.1.2). Durable on return."""
        _check_subject(request.subject)
        return await self._decisions.decided(
            lambda batch: authorizing.authorize(batch, self._desk, operator, request), by=operator.requested_by
        )

    async def act_on_grant(
        self, operator: Operator, grant_id: str, act: GrantAct, reason: str | None, trust: str | None = None
    ) -> None:
        """Revoke, suspend or reinstate a grant. After it returns no refresh against it succeeds (I-06)."""
        await self._decisions.decided(
            lambda batch: operating.act_on_grant(batch, self._desk, operator, grant_id, act, reason, trust),
            by=operator.requested_by,
        )

    async def revoke_subject(
        self, operator: Operator, subject: str, reason: str | None, before: int | None
    ) -> EpochAnswer:
        """End all grants of a person at once (I-06)."""
        return await self._decisions.decided(
            lambda batch: operating.revoke_subject(batch, self._desk, operator, subject, reason, before),
            by=operator.requested_by,
        )

    async def revoke_client(
        self, operator: Operator, client_id: str, reason: str | None, before: int | None
    ) -> EpochAnswer:
        """End all grants of a client at once (I-06)."""
        return await self._decisions.decided(
            lambda batch: operating.revoke_client(batch, operator, client_id, reason, before), by=operator.requested_by
        )

    async def explain(self, token: str) -> Explanation:
        """What a token or code is and, if it is not good, when, why and by whom it ended. White space around it is
        ignored."""
        token = token.strip()
        try:
            presented, access = self._ring_file.read(tokens.parse, token), self._ring_file.read(parse_access, token)
            code = self._ring_file.read(codes.parse, token)
        except Refused:
            return explaining.UNKNOWN
        if presented is not None:
            return await self._decisions.decided(lambda batch: explaining.explain(batch, self._desk, presented))
        if access is not None:
            return await self._decisions.decided(lambda batch: explaining.explain_access(batch, self._desk, access))
        if code is not None:
            return await self._decisions.decided(lambda batch: explaining.explain_code(batch, self._desk, code))
        return explaining.UNKNOWN

    async def record_read(self, operator: Operator, question: str, grant_id: str | None = None) -> None:
        """Record that an operator asked a question."""
        await self._decisions.decided(
            lambda batch: operating.record_read(batch, operator, question, grant_id), by=operator.requested_by
        )

    async def subject_id(self, subject: str) -> str | None:
        """What events call a person; None: never seen, or erased."""
        return await self._decisions.decided(lambda batch: subjects.subject_id_of(batch, self._desk.ring, subject))

    async def erase(self, operator: Operator, subject: str) -> bool:
        """Remove a person's data; False: never seen. What was erased has left the file and its log on return."""
        known = await self._decisions.decided(
            lambda batch: subjects.erase(batch, self._desk.ring, subject, operator.requested_by),
            by=operator.requested_by,
        )
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
        return await self._decisions.decided(
            lambda batch: operating.apply(batch, self._desk, clients, operators, serial=serial, dry_run=dry_run),
            ours=True,
        )

    # ------------------------------------------------------------ keys and restores

    def keys_list(self) -> list[KeyView]:
        """The keys that the log knows, oldest first."""
        keys = self._desk.authority.keys
        return [
            KeyView(id=key_id, state=keys.state(key_id), created_at=times.text(at))
            for key_id, at in sorted(keys.created_at.items())
        ]

    async def keys_rotate(self, alg: Alg | None = None) -> int:
        """Add a key that verifies only; its id. It will sign JWTs by `alg`, or as the active key does. The ring's file
        is durable before the event."""
        self._log_end.check_whole()  # a key that no event will name would cost one of 255 ids
        key_id = await self._ring_file.grow(alg)
        await self._decide_keys(operating.rotation(self._desk.ring, key_id))
        return key_id

    async def keys_activate(self, key_id: int) -> None:
        """Let a key sign from here on."""
        if key_id not in self._desk.ring.keys:
            self._ring_file.reread()
        if key_id in self._ring_file.lacking:
            raise Refused(Refusal.CONFLICT, detail=f"the key ring of this node lacks key {key_id}")
        await self._decide_keys(lambda keys, act: keys.decide_activation(key_id, act))

    async def keys_distrust(self, key_id: int) -> None:
        """Trust a key no more."""
        await self._decide_keys(lambda keys, act: keys.decide_distrust(key_id, act))

    async def _decide_keys(self, decide: Callable[[Keys, Act], KeyEvent | None]) -> None:
        await self._decisions.decided(lambda batch: operating.decide_keys(batch, decide), ours=True)

    async def restore_acknowledge(self) -> RestoreReport | None:
        """Go on after an older backup was put back knowingly; None where the log is not behind the head file."""
        async with self._acknowledging:  # a second one, meanwhile, has nothing left to acknowledge
            behind = self._log_end.behind
            if behind is None:
                return None
            key_id = await self._ring_file.grow()
            ring = self._desk.ring
            report = await self._commits.submit(
                lambda batch: operating.record_restore(batch, ring, behind.position, times.text(behind.at), key_id),
                ours=True,
            )
            self._log_end.not_behind()
            self._log_end.write()
            return report

    async def _truncated(self) -> bool:
        if self._store.optimistic:
            return await asyncio.to_thread(self._store.truncate_log)
        return await self._commits.exclusively(self._store.truncate_log)

    async def _truncate_log(self) -> None:
        """Readers that look at an older moment keep the log; they are short, so try again for a while."""
        for _ in range(CLEARING_TRIES_MAX):
            with contextlib.suppress(StoreError):
                if await self._truncated():
                    return
            await asyncio.sleep(CLEARING_PAUSE_SECONDS)
        raise Unavailable(
            "erased, but an older reader, such as a dump, still sees it; repeat the command once that ended"
        )


def _check_subject(subject: str) -> None:
    if not is_subject(subject):
        raise Refused(Refusal.INVALID_REQUEST, detail="subject: 1 to 255 characters without control characters")
