"""Log lines on standard output: one event, one line, `key=value` for people or JSON for programs.

    log = logs.Log("api.token")
    log.info("reuse_detected", grant=grant_id, client=client_id, label="fork", event_id=event_id)

What others sent may stand in a field: control characters and line separators are escaped, so that nobody can forge a
line. What looks like a token or a credential is cut out of every line, whoever wrote it. That is a net, not a licence:
no caller passes one.
"""

import contextlib
import logging
import os
import re
import select
import stat
import sys
import time
import traceback
from datetime import UTC, datetime
from typing import Literal, TextIO

import msgspec

Value = str | int | float | bool | None
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["console", "json"]

# C0 and C1 controls, line and paragraph separators, what turns the direction of text, surrogates without their pair.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_PLAIN = re.compile(r"[^\s\"'\\=]+")
_SECRET = re.compile(
    r"\b((?:rt|at|ac)\d_)[A-Za-z0-9_-]{12,}"
    r"|\b(eyJ)[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.?[A-Za-z0-9_-]*"
    r"|\b((?:[Bb]asic|[Bb]earer|DPoP) +)[A-Za-z0-9._~+/-]{16,}=*"
)
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_RESERVED = frozenset({"at", "level", "logger", "event", "message", "exception"})
_OURS = "token_ledger"  # marks the handler that `configure` has set, so that it can be set again
_READER_WAITED_FOR_SECONDS = 1.0
_NOT_WAITED_AGAIN_SECONDS = 60.0
_PIECE_CHARACTERS = select.PIPE_BUF // 10  # none takes more bytes, whatever a terminal's encoding makes of it
_FOREIGN = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "asyncio")


def one_line(text: str) -> str:
    """Return the text with everything escaped that could end a line, forge one or hide in it."""
    return _UNSAFE.sub(lambda found: _ESCAPES.get(found[0]) or f"\\u{ord(found[0]):04x}", text)


def without_secrets(text: str) -> str:
    """Return the text with whatever looks like a token or a credential cut down to its prefix."""
    return _SECRET.sub(lambda found: (found[1] or found[2] or found[3]) + "***", text)


class Log:
    """Writes events of one part of the program. Fields that are None are left out."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def enabled(self, level: int) -> bool:
        """Tell whether a line of this level would be written, where making its fields costs something."""
        return self._logger.isEnabledFor(level)

    def debug(self, event: str, **fields: Value) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Value) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Value) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Value) -> None:
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, error: BaseException, **fields: Value) -> None:
        """Write an error with its traceback, which stands in the field `exception`, on the same line."""
        self._write(logging.ERROR, event, fields, error)

    def _write(self, level: int, event: str, fields: dict[str, Value], error: BaseException | None = None) -> None:
        if self._logger.isEnabledFor(level):
            assert not _RESERVED & fields.keys(), f"a field of {event} has a name of the line itself"
            self._logger.log(level, event, exc_info=error, extra={"fields": fields})


log = Log("api.logs")


def configure(level: LogLevel = "info", form: LogFormat = "console", stream: TextIO | None = None) -> None:
    """Send every log line of the process to standard output, uvicorn's and asyncio's too. May be called again."""
    stream = stream or sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character still gets its line
    handler = _Handler(stream)
    handler.set_name(_OURS)
    handler.setFormatter(_Json() if form == "json" else _Console())
    root = logging.getLogger()
    root.handlers = [kept for kept in root.handlers if kept.get_name() != _OURS] + [handler]
    root.setLevel(level.upper())
    for name in _FOREIGN:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(level.upper())


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines. One that cannot be written is lost, and whoever is served does not notice.

    That holds where whoever reads them has stopped doing so, too: writing would wait for it without end, and with it
    all that is served, and the end of the process. It is waited for once a minute at most; whenever else there is no
    room, lines are lost.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lost = 0
        self._torn = False
        self._waits_again_at = 0.0
        self._room: select.poll | None = None
        self._is_pipe = False
        with contextlib.suppress(AttributeError, OSError, ValueError):  # it is no file of the system's, or closed
            descriptor = stream.fileno()
            self._is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
            self._room = select.poll()
            self._room.register(descriptor, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, and before it how many were lost."""
        if self._lost and self._has_room():
            lost, self._lost = self._lost, 0
            log.error("lines_lost", lines=lost, why="nobody read them")
        try:
            line = ("\n" if self._torn else "") + self.format(record) + self.terminator
            for number, piece in enumerate(self._pieces(line)):
                if not self._has_room():
                    self._lost += 1
                    self._torn = self._torn or number > 0
                    return
                self.stream.write(piece)
                self.flush()
                self._torn = False
        except Exception:
            self.handleError(record)

    def _has_room(self) -> bool:
        """Whether a line can be written now, or once its reader was waited for. In a pipe: one of PIPE_BUF bytes."""
        if self._room is None or self._room.poll(0):
            return True
        if time.monotonic() < self._waits_again_at:
            return False
        if self._room.poll(_READER_WAITED_FOR_SECONDS * 1000):
            return True
        self._waits_again_at = time.monotonic() + _NOT_WAITED_AGAIN_SECONDS
        return False

    def _pieces(self, line: str) -> list[str]:
        """A line in pieces that go into a pipe which has any room; what is longer would wait for more of it."""
        if not self._is_pipe or len(line.encode(self.stream.encoding, "backslashreplace")) <= select.PIPE_BUF:
            return [line]
        return [line[at : at + _PIECE_CHARACTERS] for at in range(0, len(line), _PIECE_CHARACTERS)]

    def handleError(self, record: logging.LogRecord) -> None:
        """Whoever reads the log is gone, or its disk is full: a traceback for each line would help nobody."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


def _line_of(record: logging.LogRecord) -> dict[str, Value]:
    """Give a record's fields in the order they are written in; one from another library is an event `log`."""
    line: dict[str, Value] = {
        "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
    }
    fields: dict[str, Value] | None = getattr(record, "fields", None)
    if fields is None:
        line |= {"event": "log", "logger": record.name, "message": record.getMessage()}
    else:
        line["event"] = str(record.msg)
        line |= {name: value for name, value in fields.items() if value is not None}
    if record.exc_info and record.exc_info[1] is not None:
        line["exception"] = "".join(traceback.format_exception(record.exc_info[1]))
    return line


class _Console(logging.Formatter):
    """`at=… level=info event=… key=value`; a value that is not one plain word is quoted."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(" ".join(f"{name}={_shown(value)}" for name, value in _line_of(record).items()))


def _shown(value: Value) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if _PLAIN.fullmatch(text) and not _UNSAFE.search(text):
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{one_line(quoted)}"'


class _Json(logging.Formatter):
    """One JSON object a line; inside it, too, nothing that ends a line or turns text around stands unescaped."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
            for name, value in _line_of(record).items()
        }
        text = msgspec.json.encode(line).decode()
        return without_secrets(_UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))
