"""Whom another node has just come to know is not refused, and no failure: that is heard of before one counts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from api import clients_file
from ledger import hearing
from ledger.application import Ledger
from ledger.recorders.postgres_schema import LOCK
from tests.asking import ASKED, ISSUER_URL, Asking, asking_two
from tests.assertions import NOW
from tests.engines import url_of
from tests.ledgers import SECURITY
from tests.servers import FIXTURES
from tests.signers import Signer, derived_key

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres", "nobody_looks")]

ENTRY = '\n[[client]]\nid = "x"\nsecret = "{}"\nscope = "read openid profile"\n'
FAILED = "token_ledger_authentication_failures_total"
KIOSK = '\n[[operator]]\nname = "kiosk"\ntoken = "kiosk-token-6cc1"\nroles = ["issuer"]\n'


@asynccontextmanager
async def two_servers(folder: Path) -> AsyncIterator[tuple[Asking, Asking]]:
    """Two nodes of one store, both of which know of the clients of the transcripts."""
    async with asking_two(folder) as (here, there):
        await apply(here, "")
        await there.ledger.introspect(SECURITY, (await here.issue("www"))["access_token"])
        yield here, there


async def apply(server: Asking, more: str) -> None:
    wanted = clients_file.parsed(FIXTURES.read_text("utf-8") + more)
    await server.ledger.operators.apply(wanted.clients, wanted.operators)


def fields(token: str, secret: str) -> dict[str, str]:
    return {"grant_type": "refresh_token", "refresh_token": token, "client_id": "x", "client_secret": secret}


async def refused(server: Asking) -> float:
    """How many failed authentications a server has counted."""
    return sum(count for (name, _), count in (await server.scraped()).items() if name == FAILED)


async def _asked_at_the_other(folder: Path) -> list[int]:
    async with two_servers(folder) as (here, there):
        await apply(here, ENTRY.format("first-Secret"))
        token = (await here.issue("x"))["refresh_token"]
        new_client = await there.form("/token", fields(token, "first-Secret"))
        await apply(here, ENTRY.format("second-Secret"))
        token = new_client.json().get("refresh_token", token)
        changed_secret = await there.form("/token", fields(token, "second-Secret"))
        signer = Signer("x", derived_key("x"), ISSUER_URL)
        await apply(here, signer.toml())
        token = changed_secret.json().get("refresh_token", token)
        form = {"grant_type": "refresh_token", "refresh_token": token, **signer.form(now=NOW)}
        changed_method = await there.form("/token", form)
        await apply(here, signer.toml() + KIOSK)
        headers = {"Authorization": "Bearer kiosk-token-6cc1"}
        new_operator = await there.ask("POST", "/grants", headers=headers, json=ASKED)
        assert (await refused(there) > 0) == (new_client.status_code != 200)
        return [each.status_code for each in (new_client, changed_secret, changed_method, new_operator)]


async def test_what_was_applied_at_one_node_counts_at_every_other_from_then_on(tmp_path: Path) -> None:
    """A script that registers a client and uses it at once, through a balancer, is told of no invalid_client."""
    assert [200, 200, 200, 201] == await _asked_at_the_other(tmp_path)


async def test_a_node_that_hears_nothing_refuses_who_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin of the test above."""

    async def nothing(ledger: Ledger) -> bool:
        return False

    monkeypatch.setattr(Ledger, "hear", nothing)
    assert [400, 400, 400, 401] == await _asked_at_the_other(tmp_path)


async def test_who_is_known_nowhere_is_refused_and_counted_once(tmp_path: Path) -> None:
    """Also where what was heard of is something else."""
    async with two_servers(tmp_path) as (here, there):
        for more in ("", ENTRY.format("Secret")):
            await apply(here, more)
            before = await refused(there)
            answer = await there.form("/token", fields("rt1_nobody", "guess"))
            assert (400, "invalid_client") == (answer.status_code, answer.json()["error"])
            answer = await there.ask("GET", "/grants", headers={"Authorization": "Bearer guess"})
            assert 401 == answer.status_code
            assert before + 2 == await refused(there)


async def test_guesses_together_ask_once(tmp_path: Path) -> None:
    """Whoever guesses must not make the store busier than a batch at a time would."""
    async with two_servers(tmp_path) as (_, there):
        before = there.ledger.commits.batches
        await asyncio.gather(*(there.ledger.hear() for _ in range(1000)))
        assert before + 1 == there.ledger.commits.batches


async def test_a_store_that_does_not_answer_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known decides then, as it did before."""
    monkeypatch.setattr(hearing, "WAIT_SECONDS", 0.05)
    async with two_servers(tmp_path) as (_, there):
        url = url_of(there.opened.path)
        assert url is not None
        with psycopg.connect(url) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            answer = await there.ask("GET", "/grants", headers={"Authorization": "Bearer guess"})
            assert 401 == answer.status_code
        await there.issue("www")
