"""The markup of the demo's pages: no script, nothing fetched from anywhere, and whatever somebody sent is escaped."""

import hashlib
from base64 import b64encode
from html import escape
from typing import Final

from api.answers import NOT_STORED, Answer, Header, with_body

_STYLE: Final = (
    "body{max-width:52rem;margin:0 auto 3rem;padding:0 1rem;font:1rem/1.5 system-ui,sans-serif;color-scheme:light dark}"
    "header{margin:0 -1rem 1.5rem;padding:.5rem 1rem;background:#f2c200;color:#111;font-weight:600}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;font:.85rem/1.5 ui-monospace,monospace;padding:.6rem;"
    "border:1px solid #8886;border-radius:.3rem}"
    "button{font:inherit;padding:.35rem .8rem;margin:.2rem .3rem .2rem 0}"
    "input[type=text]{font:inherit;padding:.3rem}label{display:block;margin:.3rem 0}"
    "ol{padding-left:1.4rem}code{font:.85rem ui-monospace,monospace;overflow-wrap:anywhere}"
)
_STYLE_HASH: Final = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/html; charset=utf-8"),
    (
        b"content-security-policy",
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'".encode(),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),  # an address with a code in it is told to nobody
    *NOT_STORED,
)


def page(title: str, *parts: str, status: int = 200, cookie: Header | None = None) -> Answer:
    """Return a whole page of parts that are markup already, under a line that says what this is."""
    markup = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><style>{_STYLE}</style>'
        f"</head><body><header>Demo: no real sign-in, no real data. Never do it this way.</header>"
        f"<h1>{escape(title)}</h1>{''.join(parts)}</body></html>"
    )
    return with_body(status, markup.encode("utf-8"), (*HEADERS, *([cookie] if cookie else ())))


def redirect(to: str, cookie: Header | None = None) -> Answer:
    """Return a redirect that is followed with GET (RFC 9110 15.4.4), so that going back sends no form again."""
    assert to.isascii()
    assert to.isprintable(), "this goes into a header"
    headers = (*NOT_STORED, (b"referrer-policy", b"no-referrer"), *([cookie] if cookie else ()))
    return with_body(303, b"", ((b"location", to.encode("ascii")), *headers))


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(' '.join(text.split()))}</p>"


def listing(text: str) -> str:
    """Text as it stands, such as a request or its answer."""
    return f"<pre>{escape(text)}</pre>"


def hidden(name: str, value: str) -> str:
    """A field that goes along with a form."""
    return f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'


def button(name: str, value: str, text: str) -> str:
    """A button that sends its form with this field."""
    return f'<button name="{escape(name)}" value="{escape(value)}">{escape(text)}</button>'


def form(action: str, *parts: str) -> str:
    """A form that is posted."""
    return f'<form method="post" action="{escape(action)}">{"".join(parts)}</form>'
