"""Log lines: one event, one line, whatever others sent; no token and no credential in any of them."""

import io
import json
import logging
import os
import threading
import time
from collections.abc import Iterator

import pytest

from api import logs

NASTY = 'a\nb\r\x00\x1b[31m\u2028c\u2029d\x85e\u202ef\ud800g"h\\i'
TOKEN = "rt1_" + "A" * 72


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    kept = {name: logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio")}
    before = (root.handlers[:], root.level, {name: (log.handlers[:], log.level) for name, log in kept.items()})
    yield
    root.handlers, root.level = before[0], before[1]
    for name, log in kept.items():
        log.handlers, log.level = before[2][name]


def written(form: logs.LogFormat, level: logs.LogLevel = "debug") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(level, form, stream)
    return stream


def test_a_console_line_is_an_event_with_its_fields() -> None:
    """`event=reuse_detected` can be searched for with any tool."""
    stream = written("console")
    logs.Log("api.token").info("reuse_detected", grant="018f", client="www", live=True, count=3, label=None)
    at, rest = stream.getvalue().split(" ", 1)
    assert at.startswith("at=2")
    assert at.endswith("Z")
    assert len("at=2026-01-01T00:00:00.000000Z") == len(at)
    assert "level=info event=reuse_detected grant=018f client=www live=true count=3\n" == rest


def test_a_json_line_is_one_object() -> None:
    """The same fields for programs; numbers stay numbers."""
    stream = written("json")
    logs.Log("api.token").warning("reuse_detected", grant="018f", count=3, live=False)
    line = json.loads(stream.getvalue())
    line.pop("at")
    assert {"level": "warning", "event": "reuse_detected", "grant": "018f", "count": 3, "live": False} == line


@pytest.mark.parametrize("form", ["console", "json"])
def test_what_others_sent_cannot_end_a_line_or_forge_one(form: logs.LogFormat) -> None:
    """ASVS 16.4.1: controls, separators and direction marks are escaped; one fact stays on one line."""
    stream = written(form)
    logs.Log("api.token").info("refused", agent=NASTY)
    text = stream.getvalue()
    assert text.endswith("\n")
    assert 1 == len(text.splitlines())
    assert text[:-1].isprintable()


def test_json_gives_back_what_was_sent() -> None:
    """Escaping loses nothing but the surrogate without its pair, which no UTF-8 can carry."""
    stream = written("json")
    logs.Log("api.token").info("refused", agent=NASTY)
    assert NASTY.replace("\ud800", "\\ud800") == json.loads(stream.getvalue())["agent"]


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_traceback_stays_on_the_line_of_its_event(form: logs.LogFormat) -> None:
    """An unforeseen error is one line too."""
    stream = written(form)
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        logs.Log("api.server").exception("request_failed", error, path="/token")
    assert 1 == len(stream.getvalue().splitlines())
    assert "ValueError" in stream.getvalue()


@pytest.mark.parametrize("form", ["console", "json"])
@pytest.mark.parametrize(
    "text",
    [
        f"got {TOKEN}.",
        f"got {TOKEN.replace('rt1', 'at1')}",
        "Authorization: Basic d3d3OlNlY3IzdCE6b3RoZXI=",
        "Authorization: Bearer AAAAAAAAAAAAAAAAAAAAAAAA",
        "eyJhbGciOiJFUzI1NiJ9.AAAAAAAAAAAAAAAAAAAAAAAA.AAAA",
    ],
)
def test_what_looks_like_a_token_is_cut_out_of_every_line(form: logs.LogFormat, text: str) -> None:
    """I-20: the net below all callers, libraries included."""
    stream = written(form)
    logs.Log("api.server").error("odd", text=text)
    logging.getLogger("some.library").error(text)
    for line in stream.getvalue().splitlines():
        assert "AAAAAAAAAAAA" not in line
        assert "d3d3OlNl" not in line
        assert "***" in line


@pytest.mark.parametrize("text", ["Basic authentication failed", "bearer of news", "grant:018f/2", "start1_of_words"])
def test_ordinary_words_are_left_alone(text: str) -> None:
    """The net has a mesh."""
    assert text == logs.without_secrets(text)


def test_only_lines_of_the_level_and_above_are_written() -> None:
    """LOG_LEVEL rules libraries as well."""
    stream = written("console", "warning")
    logs.Log("api.server").info("request")
    logging.getLogger("uvicorn.error").info("Started")
    logs.Log("api.server").warning("kept")
    assert 1 == len(stream.getvalue().splitlines())
    assert not logs.Log("api.server").enabled(logging.INFO)


def test_the_servers_own_loggers_come_through_the_same_lines() -> None:
    """Another library's text is the event `log` with its message; its own handlers are taken away."""
    stray = logging.StreamHandler(io.StringIO())
    logging.getLogger("uvicorn.error").addHandler(stray)
    stream = written("json")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP\nrequest %s", "received")
    line = json.loads(stream.getvalue())
    assert ("log", "uvicorn.error", "Invalid HTTP\nrequest received") == (
        line["event"],
        line["logger"],
        line["message"],
    )
    assert stray not in logging.getLogger("uvicorn.error").handlers


def test_configuring_again_replaces_the_handler() -> None:
    """A second configuration does not write each line twice."""
    first, second = written("console"), written("console")
    logs.Log("api.server").info("once")
    assert "" == first.getvalue()
    assert 1 == len(second.getvalue().splitlines())


def test_a_field_cannot_take_the_place_of_the_lines_own() -> None:
    """A field named `event` would make two."""
    written("console")
    with pytest.raises(AssertionError, match="refused"):
        logs.Log("api.server").info("refused", level="info")


def test_a_terminal_without_unicode_still_gets_its_line() -> None:
    """What the terminal cannot show is escaped, not lost with the line."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    logs.configure("info", "console", stream)
    logs.Log("api.server").info("odd", name="Zoë")
    assert b"name=Zo\\xeb\n" in raw.getvalue()


class Gone(io.StringIO):
    """What nothing can be written to."""

    def __init__(self, why: Exception) -> None:
        super().__init__()
        self.why = why

    def write(self, text: str) -> int:
        raise self.why


def test_a_line_that_cannot_be_written_is_lost_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    """Its reader is gone, its disk is full: standard error gets no traceback for each line. A defect is told."""
    logs.configure("debug", "console", Gone(BrokenPipeError(32, "Broken pipe")))
    logs.Log("api.token").info("reuse_detected", grant="018f")
    assert "" == capsys.readouterr().err
    logs.configure("debug", "console", Gone(ZeroDivisionError()))
    logs.Log("api.token").info("reuse_detected", grant="018f")
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_reader_that_stopped_reading_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that is full: it is waited for once, then lines are lost, and how many is told once there is room."""
    monkeypatch.setattr(logs, "_READER_WAITED_FOR_SECONDS", 0.05)
    reading, writing = os.pipe()
    with os.fdopen(reading) as reader:
        with os.fdopen(writing, "w") as stream:
            logs.configure("info", "console", stream)
            writes = threading.Thread(target=write_lines, args=(3000,), daemon=True)
            writes.start()
            writes.join(10)
            assert not writes.is_alive()
            read = os.read(reading, 1 << 20).decode()
            write_lines(1)
            logs.configure("info", "console", io.StringIO())
        first, second = reader.read().splitlines()
    assert f'level=error event=lines_lost lines={3000 - read.count(" event=odd ")} why="nobody read them"' in first
    assert "event=odd number=0" in second


def test_a_line_longer_than_the_room_that_a_pipe_has_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback, where its reader stops in the midst of it: what is left of it is lost, and the next line begins on a
    line of its own. Until the pipe is full, and where somebody reads, it is written whole."""
    monkeypatch.setattr(logs, "_READER_WAITED_FOR_SECONDS", 0.05)
    reading, writing = os.pipe()
    with os.fdopen(reading) as reader:
        with os.fdopen(writing, "w") as stream:
            logs.configure("info", "console", stream)
            writes = threading.Thread(target=write_long_lines, args=(10,), daemon=True)
            writes.start()
            writes.join(10)
            assert not writes.is_alive()
            *whole, torn = os.read(reading, 1 << 20).decode().splitlines()
            write_lines(1)
            logs.configure("info", "console", io.StringIO())
        nothing, first, second = reader.read().splitlines()
    assert 1 < len(whole) == sum(line.endswith(f'{"é" * 5000}"') for line in whole)
    assert torn.endswith("é")
    assert "" == nothing
    assert f"event=lines_lost lines={10 - len(whole)} " in first
    assert "event=odd number=0" in second


def test_a_reader_that_is_too_slow_is_not_waited_for_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a page whenever it was given up: each time that would cost all that is served another second."""
    monkeypatch.setattr(logs, "_READER_WAITED_FOR_SECONDS", 0.2)
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as stream:
        logs.configure("info", "console", stream)
        write_lines(2000)
        began = time.monotonic()
        for _ in range(20):
            os.read(reading, 4096)
            write_lines(100)
        assert time.monotonic() - began < 2
        logs.configure("info", "console", io.StringIO())


def write_long_lines(count: int) -> None:
    for number in range(count):
        logs.Log("api.server").info("odd", number=number, name=" " + "é" * 5000)


def write_lines(count: int) -> None:
    for number in range(count):
        logs.Log("api.server").info("odd", number=number)
