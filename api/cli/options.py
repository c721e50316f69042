"""What commands have in common: settings, `--json`, the way to the ledger, and what its answers come to."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import click

from api import logs
from api.cli.output import Failed
from api.local import Answer, Json, Local, reach
from api.settings import Settings, load

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Value = TypeVar("_Value")

PAGE_MAX = 1000
UNCHANGED: Mapping[str, str] = {}
NOTHING_MORE: Mapping[str, str | None] = {}
NOT_SO = frozenset({404, 409, 422})
"""Statuses that answer the question with no: exit code 1. Every other error is wrong use, or the ledger is away."""


def settings_option(command: _Command) -> _Command:
    """Give a command `--config` and its parameter `settings`."""
    return click.option(
        "--config",
        "settings",
        metavar="FILE.toml",
        type=click.Path(path_type=Path),
        callback=_settings,
        help="Read settings from this file; environment variables TOKEN_LEDGER_* win over it.",
    )(command)


def _settings(ctx: click.Context, _: click.Parameter, given: Path | None) -> Settings | None:
    if ctx.resilient_parsing:
        return None
    return load(os.environ, given or ctx.find_root().obj)


def json_option(command: _Command) -> _Command:
    """Give a command `--json` and its parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


@contextmanager
def reached(settings: Settings, *, to_heal: bool = False) -> Iterator[Local]:
    """Reach the ledger of these settings: its running server, else the store itself. Raises LedgerError.

    `to_heal`: also where the heads of clients, operators or keys are damaged; nothing but a rebuild is answered then.
    """
    from api.wiring import open_app

    logs.configure("warning", settings.log_format, sys.stderr)  # standard output is for the answer
    with reach(settings.sqlite_path, lambda: open_app(settings, to_heal=to_heal)) as local:
        yield local


def ask(
    local: Local,
    method: str,
    path: str,
    body: Json = None,
    *,
    headers: Mapping[str, str] | None = None,
    instead: Mapping[str, str] = UNCHANGED,
) -> Json:
    """Ask one question; return the answer's JSON. Raises Failed with what the ledger said against it, or with what the
    command says `instead` of it."""
    return accepted(local.request(method, path, body, headers=headers), instead).json()


def accepted(answer: Answer, instead: Mapping[str, str] = UNCHANGED) -> Answer:
    """Return an answer that is none of refusal. Raises Failed otherwise."""
    if answer.status < 400:
        return answer
    try:
        told = answer.json()
        message = told.get("error_description") or told["error"]
    except (ValueError, KeyError, AttributeError):
        message = f"the ledger answered {answer.status}"
    raise Failed(instead.get(str(message), str(message)), 1 if answer.status in NOT_SO else 2)


def pages(
    local: Local,
    path: str,
    query: Mapping[str, str | None],
    instead: Mapping[str, str] = UNCHANGED,
    first: Mapping[str, str | None] = NOTHING_MORE,
) -> Iterator[Json]:
    """Get every page of a list, one after the other. What is wrong with the question is raised at once; `first` is
    asked with the first page alone."""
    given = _given(query) | {"limit": str(PAGE_MAX)}

    def page(more: Mapping[str, str]) -> Json:
        return ask(local, "GET", f"{path}?{urlencode({**given, **more})}", instead=instead)

    return _followed(page, page(_given(first)))


def searched_grants(local: Local, body: Mapping[str, Json]) -> Iterator[Json]:
    """Get every page of a search for grants, whose question stands in the body because it names a person."""
    given = {**_given(body), "limit": PAGE_MAX}

    def page(cursor: Mapping[str, str]) -> Json:
        return ask(local, "POST", "/grants/search", {**given, **cursor})

    return _followed(page, page({}))


def _given(options: Mapping[str, _Value | None]) -> dict[str, _Value]:
    """The options that are given. One without a value is wrong: over HTTP it would count as left out (RFC 6749 3.1) or
    find nobody, and a script whose variable is empty would be told of everybody, or that there is nothing."""
    for name, value in options.items():
        if value == "":
            raise Failed(f"--{name.removesuffix('_id')} is given without a value", 2)
    return {name: value for name, value in options.items() if value is not None}


def _followed(page: Callable[[Mapping[str, str]], Json], found: Json) -> Iterator[Json]:
    yield found
    while "next_cursor" in found:
        found = page({"cursor": found["next_cursor"]})
        yield found
