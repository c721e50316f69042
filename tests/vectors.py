"""Vectors as the transcripts have them (`transcripts.py` says how): what is sent, and what must come back."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("transcripts")
H = {"Content-Type": "application/json", "Cache-Control": "no-store", "Pragma": "no-cache"}
_STATUS = re.compile(r"(?:(?P<count>\d+) x )?(?P<statuses>\d{3}(?: \| \d{3})*)(?P<h> H)?")


@dataclass(frozen=True)
class Expected:
    """One kind of answer: how many of them, with which status, headers and body."""

    count: int
    statuses: frozenset[int]
    headers: tuple[tuple[str, str], ...]
    body: str


@dataclass(frozen=True)
class Step:
    """A step, or a request with the answers it must get."""

    line: int
    words: str = ""
    request: str = ""
    answer: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vector:
    """One vector of a transcript."""

    number: str
    title: str
    place: str
    steps: tuple[Step, ...]

    @property
    def restarts(self) -> bool:
        """Whether it ends the server's process or changes its clients, and so needs one of its own."""
        return any(step.words.startswith(("kill", "register")) for step in self.steps)


def load(is_step: Callable[[str], bool], folder: Path = FOLDER) -> list[Vector]:
    """Return the vectors of all transcripts in a folder; a line that no rule knows is an error that names it."""
    texts = {path.name: path.read_text("utf-8") for path in sorted(folder.glob("*.txt"))}
    return [vector for name, text in texts.items() for vector in parse(text, name, is_step)]


def parse(text: str, name: str, is_step: Callable[[str], bool]) -> list[Vector]:
    """Return the vectors of one transcript; `is_step` tells whether words are a step that somebody can do."""
    vectors: list[Vector] = []
    steps: list[Step] = []
    blocks = [(number, line) for number, line in enumerate(text.split("\n"), 1) if not line.startswith("#")]
    while blocks:
        number, line = blocks.pop(0)
        if line.startswith("== "):
            label, _, title = line[3:].partition(" · ")
            steps = []
            vectors.append(Vector(label, title, f"{name}:{number}", ()))
        elif line.startswith("-- "):
            answer = _block(blocks, "<") if line.startswith("-- history") else []
            steps.append(Step(number, words=line[3:], answer=tuple(answer)))
            assert is_step(line[3:]), f"{name}:{number}: no such step: {line}"
        elif line.startswith(">"):
            blocks.insert(0, (number, line))
            request = "\r\n".join(_block(blocks, ">"))
            steps.append(Step(number, request=request, answer=tuple(_block(blocks, "<"))))
        else:
            assert not line.strip(), f"{name}:{number}: neither step, request nor answer: {line}"
            continue
        assert vectors, f"{name}:{number}: no vector is open"
        vectors[-1] = Vector(vectors[-1].number, vectors[-1].title, vectors[-1].place, tuple(steps))
    return vectors


def _block(blocks: list[tuple[int, str]], mark: str) -> list[str]:
    lines = []
    while blocks and blocks[0][1].startswith(mark):
        lines.append(blocks.pop(0)[1][1:].removeprefix(" "))
    return lines


def expectations(lines: tuple[str, ...]) -> list[Expected]:
    """Return what an answer block asks for: one kind of answer, or several with their counts."""
    kinds: list[tuple[re.Match[str], list[str]]] = []
    for line in lines:
        head = _STATUS.fullmatch(line)
        if head:
            kinds.append((head, []))
        else:
            kinds[-1][1].append(line)
    found = []
    for head, rest in kinds:
        start = next((place for place, line in enumerate(rest) if line == "" or line.startswith("{")), len(rest))
        pairs = [(line.partition(": ")[0], line.partition(": ")[2]) for line in rest[:start]]
        statuses = frozenset(int(status) for status in head["statuses"].split(" | "))
        headers = [*H.items(), *pairs] if head["h"] else pairs
        found.append(Expected(int(head["count"] or 1), statuses, tuple(headers), "\n".join(rest[start:]).strip()))
    return found
