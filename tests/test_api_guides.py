"""The guides: every one is there, says what is there, and fetches nothing."""

import base64
import hashlib
import re
from html import unescape
from pathlib import Path
from urllib.parse import urljoin

import pytest

import api
from api.errors import TABLE
from api.guides import GUIDES
from api.openapi import document
from api.settings import Settings
from ledger.policy import PRESETS, Policy
from projections.grant_views import CLIENT_DISABLED, GrantView
from tests.asking import Served, asking

FOLDER = Path(api.__file__).parent / "docs"
HOUSE = FOLDER.parent.parent


@pytest.mark.parametrize("path", ["/docs", *(f"/docs/{name}" for name in GUIDES)])
async def test_each_page_is_html_that_fetches_nothing(tmp_path: Path, path: str) -> None:
    """No script, no style, no font, no image from anywhere; links stay in the house, and under the issuer's path where
    it has one and a proxy takes it off."""
    async with asking(tmp_path) as ledger:
        page = await ledger.ask("GET", path)
        assert (200, "text/html; charset=utf-8") == (page.status_code, page.headers["content-type"])
        style = re.findall("<style>(.*?)</style>", page.text, re.DOTALL)
        hashed = base64.b64encode(hashlib.sha256("".join(style).encode()).digest()).decode()
        assert 1 == len(style)
        assert page.headers["content-security-policy"] == (
            f"default-src 'none'; style-src 'sha256-{hashed}'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        assert not re.search(r"\son\w+=|style=|javascript:", page.text)
        assert not re.search(r"<(script|link|img|iframe|object)|url\(|@import", page.text)
        for link in re.findall(r'href="([^"]*)"', page.text):
            place, _, anchor = link.partition("#")
            assert not anchor or f'id="{anchor}"' in page.text
            there = urljoin(f"/tokens{path}", place)
            assert there.startswith("/tokens/")
            assert 200 == (await ledger.ask("GET", there.removeprefix("/tokens"))).status_code


async def test_the_list_names_every_guide_that_there_is(tmp_path: Path) -> None:
    """A file that is not on the list would be found by nobody."""
    assert {file.stem for file in FOLDER.iterdir()} == set(GUIDES)
    async with asking(tmp_path) as ledger:
        text = (await ledger.ask("GET", "/docs")).text
        assert all(f'href="docs/{name}"' in text for name in GUIDES)


@pytest.mark.parametrize("name", GUIDES)
async def test_a_guide_is_shown_as_it_is_written(tmp_path: Path, name: str) -> None:
    """Nothing of the text is taken for markup."""
    async with asking(tmp_path) as ledger:
        page = (await ledger.ask("GET", f"/docs/{name}")).text
        shown = unescape(re.sub(r"<[^>]+>", "", page[page.index("<pre>") : page.index("</pre>")]))
        assert (FOLDER / f"{name}.md").read_text("utf-8") == shown


@pytest.mark.parametrize("name", ["nothing", "..%2fapp.py", "clients.md", "%00"])
async def test_what_is_no_guide_is_404(tmp_path: Path, name: str) -> None:
    """No name leads to another file."""
    async with asking(tmp_path) as ledger:
        assert 404 == (await ledger.ask("GET", f"/docs/{name}")).status_code


def test_guides_name_every_error_and_only_paths_that_are_served() -> None:
    """What a reader is told is true of the program that serves it."""
    text = "\n".join(file.read_text("utf-8") for file in FOLDER.iterdir())
    clients = (FOLDER / "clients.md").read_text("utf-8")
    for kind, (_, code) in TABLE.items():
        if code == "invalid_grant" and kind.value != "unknown_token":
            assert kind.value in clients
    paths = {path.replace("{grant_id}", "{id}") for path in document()["paths"]}
    named = set(re.findall(r"(?:GET|POST) +(/[\w/{}-]+)", text))
    assert named <= paths, named - paths


def test_the_guide_for_running_has_every_field_of_every_preset() -> None:
    """The table of policies is that of the code; a cell that is empty is as in `standard`."""
    lines = (FOLDER / "running.md").read_text("utf-8").splitlines()
    head = next(line for line in lines if line.split() == list(PRESETS))
    begins = {name: re.search(rf"\b{name}\b", head) for name in PRESETS}
    at = [found.start() for found in begins.values() if found is not None]
    ends = [*at[1:], at[-1] + 9]
    first = lines.index(head) + 1
    rows = {line.split()[0]: line for line in lines[first : lines.index("", first)]}
    assert list(Policy.__struct_fields__) == list(rows)
    for field, line in rows.items():
        cells = [line[begin:end].strip() for begin, end in zip(at, ends, strict=True)]
        standard = cells[list(PRESETS).index("standard")]
        told = {name: cell or standard for name, cell in zip(PRESETS, cells, strict=True)}
        assert {name: str(getattr(policy, field)) for name, policy in PRESETS.items()} == told, field


def test_the_guide_for_running_tells_each_line_of_the_log_that_warns() -> None:
    """Whoever is woken by one finds it there."""
    guide = (FOLDER / "running.md").read_text("utf-8")
    section = guide[guide.index("## The log\n") : guide.index("## Certificates and updates\n")]
    told = set(re.findall(r"[a-z_]+", section))
    says = re.compile(r'\blog\.(?:warning|error|critical|exception)\(\s*"(\w+)"')
    sources = [file.read_text("utf-8") for folder in ("api", "ledger") for file in (HOUSE / folder).rglob("*.py")]
    warned = {name for source in sources for name in says.findall(source)}
    assert {"reuse_detected", "store_broken", "request_failed"} < warned
    assert warned <= told, warned - told
    assert {"unknown_grant", "wrong_secret", "ahead_of_log"} <= told


async def test_guides_name_only_metrics_and_settings_that_there_are(tmp_path: Path) -> None:
    """A rule for an alarm, or a setting, is copied from there."""
    text = "\n".join(file.read_text("utf-8") for file in FOLDER.iterdir())
    async with asking(tmp_path, server=Served(0)) as ledger:
        families = set(re.findall(r"^# TYPE (\w+) ", (await ledger.ask("GET", "/metrics")).text, re.MULTILINE))
    metrics = set(re.findall(r"\btoken_ledger_\w+", text))
    assert metrics <= families, metrics - families
    settings = {name.removeprefix("TOKEN_LEDGER_").lower() for name in re.findall(r"\bTOKEN_LEDGER_[A-Z_]+", text)}
    assert settings <= set(Settings.__dataclass_fields__), settings - set(Settings.__dataclass_fields__)


def test_the_guide_for_operators_tells_each_member_of_a_grant_that_explains_its_status() -> None:
    """Who tries to reinstate a grant that stays suspended finds there what blocks it."""
    guide = (FOLDER / "operating.md").read_text("utf-8")
    assert "blocked_by" in GrantView.__struct_fields__
    assert f"`blocked_by` (`{CLIENT_DISABLED}`)" in guide
