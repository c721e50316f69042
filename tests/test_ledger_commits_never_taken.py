"""One request that the store never takes, because something in it stands in its way: others are served (I-24)."""

import asyncio
from pathlib import Path

import pytest

from ledger import failed_batches
from ledger.waiting import Line
from tests.committing import grants, unavailable, until
from tests.engines import alter
from tests.ledgers import OPTIONS, Opened, open_ledger

pytestmark = pytest.mark.anyio

IN_THE_WAY = {
    "sqlite": "INSERT INTO private_reasons VALUES ('grant:{}/2', x'00', 'altered')",
    "postgres": "INSERT INTO private_reasons (stream, v, salt, text) VALUES ('{}', 2, '', 'altered')",
}
"""The row of a grant's next reason is there already: its revocation meets a key, however often it is decided."""


async def revoked_in_vain(opened: Opened, store: str) -> "asyncio.Task[None]":
    """The revocation of a grant that the store never takes, on its way."""
    grant = await opened.issue("in-the-way")
    alter(opened.path, IN_THE_WAY[store].format(grant.grant_id))
    revoking = asyncio.create_task(opened.act("revoke", grant.grant_id, reason="because"))
    await asyncio.sleep(0.05)
    return revoking


async def test_what_the_store_never_takes_is_given_up_soon(
    tmp_path: Path, each_store: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No race lasts for five decisions: whoever always meets a key is told long before their deadline, one line says
    which key it was, and the store, which is well, is ready again."""
    async with open_ledger(tmp_path) as opened:
        issued = await grants(opened, 5)
        revoking = await revoked_in_vain(opened, each_store)
        await asyncio.gather(*map(opened.refresh, issued))
        async with asyncio.timeout(OPTIONS.request_timeout_seconds / 2):
            await unavailable(revoking)
            await until(lambda: opened.ledger.commits.stalled_seconds == 0)
        (told,) = [record for record in caplog.records if record.getMessage() == "never_written"]
        assert "private_reasons" in told.__dict__["fields"]["problem"]
        assert [] == opened.fatal
        opened.check_memory()


async def refreshed_beside(folder: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refreshes beside a request that is not given up before its deadline. Raises TimeoutError."""
    monkeypatch.setattr(failed_batches, "LOST_ALONE_MAX", 10**9)
    async with open_ledger(folder) as opened:
        newest = await grants(opened, 5)
        revoking = await revoked_in_vain(opened, store)
        try:
            async with asyncio.timeout(OPTIONS.request_timeout_seconds / 4):
                for _ in range(3):
                    newest = list(await asyncio.gather(*map(opened.refresh, newest)))
            assert not revoking.done()
        finally:
            revoking.cancel()


async def test_beside_what_the_store_never_takes_others_are_served(
    tmp_path: Path, each_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-24: one altered row is in nobody's way but its own grant's."""
    await refreshed_beside(tmp_path, each_store, monkeypatch)


async def test_whoever_is_always_first_keeps_everybody_waiting(
    tmp_path: Path, each_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin of the test above: who is decided alone goes before all others each time."""
    monkeypatch.setattr(Line, "others_next", property(lambda self: False, lambda self, value: None))
    with pytest.raises(TimeoutError):
        await refreshed_beside(tmp_path, each_store, monkeypatch)
