"""The pages at `/docs`: the OpenAPI document for people to read, and the guides, text files shown as they are written.

They fetch nothing from anywhere, and a browser is told to allow nothing but their one style. Their links are relative:
where the issuer has a path, a proxy takes it off before a request comes here, and who reads has it before each page.
"""

from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any, Final

from api.answers import Answer, Header, with_body
from api.openapi import document
from api.reference import reference
from ledger.refusals import Refusal, Refused

GUIDES: Final[dict[str, str]] = {
    "discovery": "Look up where the endpoints are and what they take (RFC 8414)",
    "authentication": "Say who you are: secrets, assertions that you sign (RFC 7523), certificates, public clients",
    "browsers": "Refresh from a page in a browser (CORS)",
    "clients": "Refresh as a client: requests, answers, errors, retries",
    "certificates": "Sign in with a certificate, bind tokens to it (RFC 8705); behind nginx, Envoy and HAProxy",
    "dpop": "Show a key with each request (DPoP, RFC 9449)",
    "libraries": "Libraries that refresh here, what each does and which settings suit it",
    "sign-in": "Sign people in: the authorization code flow with your own login page (RFC 6749 4.1, RFC 7636)",
    "operating": "Issue, look at and end grants; roles, audit, erasure",
    "resource-servers": "Check access tokens: ask, or check a JWT yourself; audiences; keys",
    "postgresql": "Keep the store on PostgreSQL: workers, nodes, fail-over, backups",
    "high-availability": "Keep refreshing when a database server dies: replication with Patroni",
    "scaling": "From a million grants to a thousand million: what each costs, and how to part them",
    "running": "Run the server: files, backups, keys, health, metrics",
}
"""Every guide by its place under `/docs/`, with its line in the list."""

STYLE: Final = (
    "body{max-width:60rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 system-ui,sans-serif;color-scheme:light dark}"
    "pre{white-space:pre-wrap}pre,code{overflow-wrap:anywhere;font:0.95rem/1.5 ui-monospace,monospace}"
    "table{border-collapse:collapse;width:100%;margin:.5rem 0}h3{margin:2rem 0 0}"
    "th,td{border-bottom:1px solid #8884;padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}"
)

HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/html; charset=utf-8"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'sha256-%b'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        % b64encode(sha256(STYLE.encode("utf-8")).digest()),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


_INDEX: Final = ""  # no guide has this name


class Guides:
    """The pages. Each is made when it is first asked for, and kept."""

    def __init__(self) -> None:
        self._pages: dict[str, Answer] = {}

    async def index(self, scope: Any) -> Answer:
        """The list of guides, and the reference."""
        found = self._pages.get(_INDEX)
        if found is None:
            items = "".join(f'<li><a href="docs/{name}">{escape(line)}</a></li>' for name, line in GUIDES.items())
            body = f"<h1>Token ledger</h1><ul>{items}</ul>{reference(document())}"
            found = self._pages[_INDEX] = _page("Token ledger", body)
        return found

    async def page(self, scope: Any) -> Answer:
        """One guide. Raises Refused (NOT_FOUND)."""
        name = scope["path_params"]["name"]
        if name not in GUIDES:
            raise Refused(Refusal.NOT_FOUND)
        found = self._pages.get(name)
        if found is None:
            text = files("api").joinpath("docs", f"{name}.md").read_text("utf-8")
            body = f'<p><a href="../docs">All guides</a></p><pre>{escape(text)}</pre>'
            found = self._pages[name] = _page(GUIDES[name], body)
        return found


def _page(title: str, body: str) -> Answer:
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>{body}</body></html>'
    )
    return with_body(200, page.encode("utf-8"), HEADERS)
