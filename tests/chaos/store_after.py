"""A store that was found after a power cut: whether everything that was acknowledged is in it, and still works."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from api import wiring
from api.settings import Settings
from ledger.answers import Caller, Source
from ledger.application import Ledger
from ledger.refusals import LedgerError, Refused
from tests.ledger_check import check_ledger

CALLER = Caller(client_id="www", authenticated=True, auth_method="client_secret_post")
HOME = Source("198.51.100.7", "app/1")


def settings_of(folder: Path) -> Settings:
    """The settings of a ledger that has all its files in one folder."""
    return Settings(
        database_url=f"sqlite:///{folder / 'ledger.db'}",
        keys_file=folder / "ledger.keys",
        head_file=folder / "ledger.head",
        refresh_per_second=0,
    )


@dataclass
class Told:
    """What was acknowledged until some moment: each live grant's newest token, each ended grant's last one."""

    live: dict[str, str] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def take(self, line: bytes) -> None:
        """Learn one more acknowledgement of `store_worker`."""
        said = json.loads(line)
        self.count += 1
        if "ended" in said:
            self.ended[said["ended"]] = said["token"]
            self.live.pop(said["ended"], None)
        else:
            self.live[said["grant"]] = said["token"]


def check_found(folder: Path, told: Told) -> None:
    """Assert that a found store opens, holds together and honours what was told (I-09). Raises AssertionError."""
    try:
        asyncio.run(_check(folder, told))
    except LedgerError as error:
        raise AssertionError(f"it does not open: {error}") from None
    check_ledger(folder / "ledger.db")


async def _check(folder: Path, told: Told) -> None:
    async with wiring.open_ledger(settings_of(folder), create=True) as ledger:
        assert ledger.behind is None, f"the log is behind the head file, {ledger.behind}"
        lost = [each for each in await asyncio.gather(*_asked(ledger, told)) if each]
        assert not lost, f"{len(lost)} acknowledgements lost of {told.count}: {lost[:5]}"


def _asked(ledger: Ledger, told: Told) -> Iterable["asyncio.Future[str | None]"]:
    for grant_id, token in told.live.items():
        yield asyncio.ensure_future(_current(ledger, grant_id, token))
    for grant_id, token in told.ended.items():
        yield asyncio.ensure_future(_over(ledger, grant_id, token))


async def _current(ledger: Ledger, grant_id: str, token: str) -> str | None:
    """A token that was told as the newest: it buys a successor, and a retry buys the same one."""
    try:
        first, again = [await ledger.refresh(CALLER, HOME, token, None, None) for _ in range(2)]
        third = await ledger.refresh(CALLER, HOME, first.refresh_token or "", None, None)
    except Refused as refusal:
        return f"{grant_id}: {refusal.refusal.name}"
    if first.refresh_token != again.refresh_token or third.refresh_token == first.refresh_token:
        return f"{grant_id}: two successors"
    return None


async def _over(ledger: Ledger, grant_id: str, token: str) -> str | None:
    """A token of a grant whose end was told."""
    try:
        await ledger.refresh(CALLER, HOME, token, None, None)
    except Refused as refusal:
        return None if refusal.refusal.name == "REVOKED_BY_OPERATOR" else f"{grant_id}: {refusal.refusal.name}"
    return f"{grant_id}: lives again"
