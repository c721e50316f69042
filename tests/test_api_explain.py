"""`/explain` over HTTP: the shape, the white space it ignores, and that reading is recorded."""

from pathlib import Path

import pytest

from tests.asking import asking


async def test_a_token_is_explained_in_one_word_and_in_plain_words(tmp_path: Path) -> None:
    """Refresh and access tokens, white space around them ignored here and nowhere else."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        for kind, verdict in [("refresh_token", "current"), ("access_token", "access_token_active")]:
            answer = await ledger.operator("security", "POST", "/explain", {"token": f"\n {issued[kind]}\r\n"})
            told = answer.json()
            assert (200, verdict, issued["grant_id"]) == (answer.status_code, told["verdict"], told["grant_id"])
            assert told["text"].endswith(".")
        assert 400 == (await ledger.refresh("www", f"{issued['refresh_token']}\n")).status_code
        assert [("explain", issued["grant_id"], "operator:soc")] * 2 == ledger.asked()


async def test_a_retired_token_says_since_when_and_by_which_event(tmp_path: Path) -> None:
    """Whoever answers the phone sees what happened."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        ledger.clock.pass_seconds(9)
        await ledger.refresh("www", issued["refresh_token"])
        told = (await ledger.operator("admin", "POST", "/explain", {"token": issued["refresh_token"]})).json()
        assert ("retired", 0, 1, "rotated", "2026-11-25T10:00:09.000000Z") == tuple(
            told[name] for name in ("verdict", "generation", "current_generation", "reason", "at")
        )


@pytest.mark.parametrize("token", ["", "nope", "rt1_" + "A" * 72, "é"])
async def test_what_is_no_token_of_ours_is_unknown(tmp_path: Path, token: str) -> None:
    """200: the question was a good one."""
    async with asking(tmp_path) as ledger:
        answer = await ledger.operator("admin", "POST", "/explain", {"token": token})
        assert (200, "unknown") == (answer.status_code, answer.json()["verdict"])
        assert token == "" or token not in answer.text
