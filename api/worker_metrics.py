"""What several workers of one server count, added up: whichever of them is scraped answers for all.

Each worker writes its figures to a file of its own once a second; who is scraped reads those of the others and adds
them to its own, which are of this moment. A worker that ended leaves its counters behind, so that no sum ever falls
because of it; what it counted in its last second is lost where it was killed. The folder is the parent's, mode 0700.
It lies where the system keeps what is temporary, and a server runs for years: where somebody has cleared that away it
is made again, and what ended workers had counted is lost.
"""

import asyncio
import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Protocol

import msgspec
from prometheus_client.core import Metric
from prometheus_client.samples import Sample

from api.logs import Log

SAVE_SECONDS: Final = 1.0
ENDED: Final = "ended"
_LIVE: Final = "live-"
# How the gauges of several processes become one; all others add up.
_LEAST: Final = frozenset(
    {
        "token_ledger_ready",
        "token_ledger_tls_certificate_expires_timestamp_seconds",
        "process_start_time_seconds",
        "process_max_fds",
    }
)
_GREATEST: Final = frozenset({"token_ledger_position"})
_SAME: Final = "info"

log = Log("api.worker_metrics")


class Collects(Protocol):
    """A registry, or one of its collectors."""

    def collect(self) -> Iterable[Metric]: ...


class _Sample(msgspec.Struct, frozen=True, array_like=True):
    name: str
    labels: dict[str, str]
    value: float


class Family(msgspec.Struct, frozen=True, array_like=True):
    """A metric with its samples, as it stands in a file."""

    name: str
    text: str
    kind: str
    samples: list[_Sample]


_decoder: Final = msgspec.json.Decoder(list[Family])


def families_of(metrics: Iterable[Metric]) -> list[Family]:
    """What a registry collects, as plain values."""
    return [
        Family(
            each.name,
            each.documentation,
            each.type,
            [_Sample(sample.name, dict(sample.labels), sample.value) for sample in each.samples],
        )
        for each in metrics
    ]


def added(those: Iterable[Iterable[Family]]) -> list[Family]:
    """Families of several processes as one: counters, histograms and most gauges add up."""
    found: dict[str, Family] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for families in those:
        for family in families:
            found.setdefault(family.name, family)
            sums = values.setdefault(family.name, {})
            together = _together(family)
            for each in family.samples:
                key = each.name, tuple(each.labels.items())
                sums[key] = together(sums[key], each.value) if key in sums else each.value
    return [
        Family(name, family.text, family.kind, [_Sample(key[0], dict(key[1]), value) for key, value in sums.items()])
        for (name, family), sums in zip(found.items(), values.values(), strict=True)
    ]


def _together(family: Family) -> Callable[[float, float], float]:
    if family.name in _LEAST:
        return min
    if family.name in _GREATEST or family.kind == _SAME:
        return max
    return lambda one, other: one + other


class Shared:
    """One worker's share of the figures: stands where a registry can."""

    def __init__(self, folder: Path, own: Collects) -> None:
        self._folder = folder
        self._own = own
        self._file = folder / f"{_LIVE}{os.getpid()}"
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Write the figures now and once a second from now on, in the running loop."""
        self._have_folder()
        self.save()
        self._timer = asyncio.get_running_loop().call_later(SAVE_SECONDS, self.begin)

    def end(self) -> None:
        """Write the figures a last time."""
        if self._timer is not None:
            self._timer.cancel()
        self.save()

    def _have_folder(self) -> None:
        with contextlib.suppress(OSError):  # another worker was faster, or nobody can make it
            if not self._folder.exists():
                self._folder.mkdir(mode=0o700)
                log.warning("figures_lost", why=f"{self._folder} was removed")

    def _is_ours(self) -> bool:
        """Whether the folder is there, and no other user's: its name is known, once it was removed."""
        try:
            found = self._folder.lstat()
        except OSError:
            return False
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077

    def _others(self) -> list[Path]:
        with contextlib.suppress(OSError):
            if self._is_ours():
                return [path for path in self._folder.iterdir() if path != self._file and not path.suffix]
        return []

    def save(self) -> None:
        """Write the figures; the parent, and with it the folder, may be gone."""
        with contextlib.suppress(OSError):
            if self._is_ours():
                _write(self._file, families_of(self._own.collect()))

    def collect(self) -> Iterator[Metric]:
        """The figures of all workers, or where the folder has just been removed its own. Called at each scrape."""
        for family in added([families_of(self._own.collect()), *(_read(path) for path in self._others())]):
            metric = Metric(family.name, family.text, family.kind)
            metric.samples = [Sample(each.name, each.labels, each.value) for each in family.samples]
            yield metric


def keep_ended(folder: Path, pid: int) -> None:
    """Add the counters of a worker that ended to those of all that ended before it; its gauges end with it.

    Called by the parent alone. A scrape at this very moment may not see them, once. Raises OSError where they cannot be
    read or written; then they are lost.
    """
    live, ended = folder / f"{_LIVE}{pid}", folder / ENDED
    try:
        counted = [each for each in _read(live) if each.kind in ("counter", "histogram")]
    finally:
        live.unlink(missing_ok=True)  # before anything is written: where no room is left, this makes some
    if counted:
        _write(ended, added([_read(ended), counted]))


def _read(path: Path) -> list[Family]:
    try:
        return _decoder.decode(path.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return []


def _write(path: Path, families: list[Family]) -> None:
    aside = path.with_suffix(".new")
    aside.write_bytes(msgspec.json.encode(families))
    aside.replace(path)  # whoever reads finds all of it, or what was there before
