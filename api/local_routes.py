"""What only commands may ask: endpoints of the socket beside the database, never of the port that clients reach.

The socket carries every endpoint of the public routes too, each call as the operator `local`. Bodies and answers are
JSON like there. An answer of lines is `application/x-ndjson`: progress as it happens, the result last.

    POST /local/apply                {"clients": [ClientSpec], "operators": [OperatorSpec], "serial"?, "dry_run"?}
                                     -> ApplyReport
    GET  /local/keys                 -> {"keys": [{"id", "state", "created_at"}], "ids_left"}
    POST /local/keys/rotate          {"alg"?} -> the new key; it only verifies
    POST /local/keys/{id}/activate   -> the key
    POST /local/keys/{id}/distrust   -> the key
    POST /local/rebuild              -> lines: {"done", "total"} …, then
                                        {"differences": [{"table", "key", "column", "problem"}], "healed", …}
    POST /local/archive              {"after_days"?} -> lines: {"moved"} …, then
                                        {"events", "pieces", "segments", "bytes", "foreign",
                                        "withheld"}
    POST /local/erase                {"subject"} -> {"known"}
    POST /local/restore/acknowledge  -> RestoreReport; 409 where no restore is to be acknowledged
"""

import time
from contextlib import suppress
from functools import partial
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.answers import Answer, BadRequest, json_answer
from api.archiver import Archiver
from api.endpoint import Call
from api.reading import Reading
from api.rebuilding import Lines, Rebuilding
from api.settings import DAYS_MAX
from api.shapes import Request, Subject, given
from ledger.answers import KeyView
from ledger.application import Ledger
from ledger.changes import Difference
from ledger.clients import ClientSpec, OperatorSpec
from ledger.keyring import Alg
from ledger.keys import KEY_ID_MAX
from ledger.refusals import LedgerError, Refusal, Refused, Unavailable
from projections.grant_views import live_count

COUNT_SECONDS_MAX: Final = 5.0
"""So long the live grants of clients that come or go are counted, of all of them together; then the answer goes without
the numbers that are lacking."""


class ApplyBody(Request, frozen=True, kw_only=True):
    """What a clients file says, secrets included: they leave the process as hashes only."""

    clients: list[ClientSpec]
    operators: list[OperatorSpec]
    serial: int | None = None
    dry_run: bool = False


class RotateBody(Request, frozen=True, kw_only=True):
    """How the new key shall sign JWTs; left out: as the active key does."""

    alg: Alg | UnsetType = UNSET


class EraseBody(Request, frozen=True, kw_only=True):
    """Whose data is to go."""

    subject: Subject


class ArchiveBody(Request, frozen=True, kw_only=True):
    """What happened longer ago than so many days may move; left out: than ARCHIVE_AFTER_DAYS."""

    after_days: Annotated[int, Meta(ge=1, le=DAYS_MAX)] | UnsetType = UNSET


class LocalRoutes:
    """The endpoints. Whoever reaches them is the operator `local`."""

    def __init__(self, ledger: Ledger, reading: Reading, archiver: Archiver) -> None:
        self._ledger = ledger
        self._archiver = archiver
        self._reading = reading
        self._rebuilding = Rebuilding(ledger)

    async def apply(self, call: Call) -> Answer:
        """Make clients and operators as a file says, and tell the difference."""
        body = await call.json(ApplyBody)
        try:
            report = await self._ledger.operators.apply(
                body.clients, body.operators, serial=body.serial, dry_run=body.dry_run
            )
        except LedgerError as error:
            raise BadRequest(str(error)) from None
        until = time.monotonic() + COUNT_SECONDS_MAX
        differences = [await self._with_live_grants(each, until) for each in report.differences]
        members = msgspec.structs.asdict(report) | {"differences": differences}
        return json_answer(200, {name: value for name, value in members.items() if value is not None})

    async def _with_live_grants(self, difference: Difference, until: float) -> dict[str, object]:
        """With the number of live grants that it takes along, where that is found before `until` (monotonic). What was
        asked for is done by now, so nothing that keeps from counting may make an error of it."""
        members = msgspec.structs.asdict(difference)
        if difference.kind == "client" and difference.change in ("disabled", "returned"):
            now = self._ledger.memory.clock()
            count = partial(live_count, client_id=difference.name, at=now, go_on=lambda: time.monotonic() < until)
            with suppress(Unavailable):
                members["live_grants"] = await self._reading.ask(count)
        return {name: value for name, value in members.items() if value is not None}

    async def keys(self, call: Call) -> Answer:
        """List the keys, and how many more the ring can be given."""
        return json_answer(
            200, {"keys": self._ledger.operators.keys_list(), "ids_left": self._ledger.desk.ring.ids_left}
        )

    async def rotate(self, call: Call) -> Answer:
        """Add a key that only verifies."""
        body = await call.json_if_any(RotateBody)
        try:
            return json_answer(200, self._key(await self._ledger.operators.keys_rotate(given(body.alg))))
        except LedgerError as error:
            raise BadRequest(str(error)) from None

    async def activate(self, call: Call) -> Answer:
        """Let a key sign from now on."""
        return await self._turn(call, "activate")

    async def distrust(self, call: Call) -> Answer:
        """Trust a key no more."""
        return await self._turn(call, "distrust")

    async def _turn(self, call: Call, act: Literal["activate", "distrust"]) -> Answer:
        text = call.path("key_id")
        key_id = int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else 0
        if not 1 <= key_id <= KEY_ID_MAX:
            raise Refused(Refusal.NOT_FOUND, detail=f"a key id is a number from 1 to {KEY_ID_MAX}")
        if act == "activate":
            await self._ledger.operators.keys_activate(key_id)
        else:
            await self._ledger.operators.keys_distrust(key_id)
        return json_answer(200, self._key(key_id))

    def _key(self, key_id: int) -> KeyView:
        return next(key for key in self._ledger.operators.keys_list() if key.id == key_id)

    async def rebuild(self, call: Call) -> Lines:
        """Prove projections and snapshots against a replay, and heal them."""
        return self._rebuilding.start()

    async def archive(self, call: Call) -> Lines:
        """Move what is over into the archive."""
        body = await call.json(ArchiveBody)
        return Lines(self._archiver.after(given(body.after_days)))

    async def erase(self, call: Call) -> Answer:
        """Remove a person's data."""
        body = await call.json(EraseBody)
        return json_answer(200, {"known": await self._ledger.operators.erase(call.operator, body.subject)})

    async def acknowledge(self, call: Call) -> Answer:
        """Say on record that an older backup was put back."""
        try:
            report = await self._ledger.operators.restore_acknowledge()
        except LedgerError as error:
            raise BadRequest(str(error)) from None
        if report is None:
            raise Refused(Refusal.CONFLICT, detail="the log has lost nothing that it had acknowledged")
        members = msgspec.structs.asdict(report)
        members |= {name: str(members[name]) for name in ("from_position", "lost_position")}  # as in every answer
        return json_answer(200, {name: value for name, value in members.items() if value is not None})
