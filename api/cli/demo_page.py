"""How the demo looks: steps with a few plain words, requests as cURL, answers as they came, tokens told apart."""

import json
import re
import textwrap
from typing import Any

from api.cli.curl import LINE_CHARACTERS_MAX, Answer, Request, typed
from api.cli.output import styled

Json = Any

_TOKEN = re.compile(r"\b[ra]t1_[A-Za-z0-9_-]{72}")
_COLOURS = ("cyan", "green", "yellow", "magenta", "blue")
_MARGIN = "   "


class Page:
    """Everything that was shown so far: refresh tokens are R0, R1, R2 … in the order in which they came."""

    def __init__(self, url: str, certificate: str) -> None:
        self._url = url
        self._certificate = certificate
        self._tokens: list[str] = []
        self._step = 0

    def title(self, text: str) -> None:
        """Print the first line of all."""
        print(styled(text, "bold"))

    def step(self, title: str, text: str) -> None:
        """Begin a step: its number, what it is about, and that in plain words."""
        print()
        print(styled(f"{self._step}  {title}", "bold"))
        self._step += 1
        print(_paragraph(text))

    def say(self, text: str) -> None:
        """Say something between two requests."""
        print()
        print(_paragraph(text))

    def conclude(self, text: str) -> None:
        """Say what the answer shows."""
        print()
        for line in _paragraph(text, "=> ").splitlines():
            print(styled(line, "bold"))

    def request(self, request: Request, what: str) -> None:
        """Show a request as a person would type it, under a comment that says what it is."""
        print()
        print(styled(f"# {what}", "dim"))
        for line in typed(request, self._url, self._certificate):
            print(self._marked(line))

    def answer(self, answer: Answer) -> None:
        """Show an answer: its status, then its JSON as it came, one member a line, new refresh tokens by name."""
        print()
        print(_MARGIN + styled(f"{answer.status} {answer.reason}", "green" if answer.status < 400 else "red"))
        for name, value in answer.body.items():
            label = self.name(value) if name == "refresh_token" else ""
            print(f"{label:{len(_MARGIN)}}{self._marked(f'{json.dumps(name)}: {json.dumps(value)}')}")

    def name(self, token: str) -> str:
        """The short name of a refresh token; one not seen before gets the next number."""
        if token not in self._tokens:
            self._tokens.append(token)
        return f"R{self._tokens.index(token)}"

    def _marked(self, line: str) -> str:
        return _TOKEN.sub(lambda found: styled(found[0], self._colour(found[0])), line)

    def _colour(self, token: str) -> str:
        return _COLOURS[int(self.name(token)[1:]) % len(_COLOURS)] if token.startswith("rt1_") else "dim"


def _paragraph(text: str, first: str = _MARGIN) -> str:
    lines = textwrap.wrap(" ".join(text.split()), LINE_CHARACTERS_MAX - len(_MARGIN))
    return first + f"\n{_MARGIN}".join(lines)
