"""The guides at `/docs`: text files shown as they are written, in pages that fetch nothing from anywhere."""

from html import escape
from importlib.resources import files
from typing import Any, Final

from api.answers import Answer, Header, with_body
from ledger.refusals import Refusal, Refused

GUIDES: Final[dict[str, str]] = {
    "clients": "Refresh as a client: requests, answers, errors, retries",
    "libraries": "Libraries that refresh here, what each does and which settings suit it",
    "operating": "Issue, look at and end grants; roles, audit, erasure",
    "running": "Run the server: files, backups, keys, health, metrics",
}
"""Every guide by its place under `/docs/`, with its line in the list."""

HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

_STYLE: Final = (
    "body{max-width:52rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 system-ui,sans-serif;color-scheme:light dark}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;font:0.95rem/1.5 ui-monospace,monospace}"
)


class Guides:
    """The pages. Each is made when it is first asked for, and kept."""

    def __init__(self) -> None:
        self._pages: dict[str, Answer] = {}

    async def index(self, scope: Any) -> Answer:
        """The list of guides."""
        items = "".join(
            f'<li><a href="{escape(path)}">{escape(line)}</a></li>'
            for path, line in {
                **{f"/docs/{name}": line for name, line in GUIDES.items()},
                "/openapi.json": "The OpenAPI 3.1 document",
            }.items()
        )
        return _page("Token ledger", f"<h1>Token ledger</h1><ul>{items}</ul>")

    async def page(self, scope: Any) -> Answer:
        """One guide. Raises Refused (NOT_FOUND)."""
        name = scope["path_params"]["name"]
        if name not in GUIDES:
            raise Refused(Refusal.NOT_FOUND)
        found = self._pages.get(name)
        if found is None:
            text = files("api").joinpath("docs", f"{name}.md").read_text("utf-8")
            body = f'<p><a href="/docs">All guides</a></p><pre>{escape(text)}</pre>'
            found = self._pages[name] = _page(GUIDES[name], body)
        return found


def _page(title: str, body: str) -> Answer:
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>{body}</body></html>'
    )
    return with_body(200, page.encode("utf-8"), HEADERS)
