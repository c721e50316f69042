"""The bare endpoint with one durable transaction in each request: the rows of one refresh, made before. No rule."""

import os
from collections import deque
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.benchmarks import bare
from tests.benchmarks.latency_rows import Rows, bare_on

DATABASE, ROWS = "BARE_DATABASE", "BARE_ROWS"
"""Where to write, a file or a URL, and the file of what is written."""


def made() -> Starlette:
    """Make the application. It writes on the event loop, for it serves one after the other, as long as there are
    rows."""
    store = bare_on(os.environ[DATABASE])
    rows = deque(msgspec.msgpack.decode(Path(os.environ[ROWS]).read_bytes(), type=list[Rows]))

    async def token(request: Request) -> JSONResponse:
        answer = await bare.token(request)
        store.write(rows.popleft())
        return answer

    return Starlette(routes=[Route(bare.PATH, token, methods=["POST"])])
