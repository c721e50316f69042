"""Figures of several processes as one: what adds up, what does not, and what outlives a process."""

import asyncio
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.core import HistogramMetricFamily, InfoMetricFamily, Metric

from api.metrics import counter, gauge
from api.worker_metrics import ENDED, Shared, keep_ended


class Figures:
    """What one process counts."""

    def __init__(self, counted: float, *, ready: float = 1, position: float = 0) -> None:
        self.counted = counted
        self.ready = ready
        self.position = position

    def collect(self) -> Iterable[Metric]:
        histogram = HistogramMetricFamily("token_ledger_seconds", "How long.")
        histogram.add_metric([], [("0.1", self.counted), ("+Inf", self.counted + 1)], self.counted / 10)
        return [
            counter("refreshes", "Refreshes.", ("kind",), {("a",): self.counted, ("b",): 1}),
            gauge("ready", "Ready.", self.ready),
            gauge("position", "Position.", self.position),
            gauge("connections", "Open.", 5),
            gauge("tls_certificate_expires_timestamp_seconds", "Its end.", 1000 + self.counted),
            histogram,
            InfoMetricFamily("token_ledger", "Release.", value={"version": "0.1.0"}),
        ]


def shared(folder: Path, pid: int, figures: Figures, monkeypatch: pytest.MonkeyPatch) -> Shared:
    monkeypatch.setattr(os, "getpid", lambda: pid)
    return Shared(folder, figures)


def lines(of: Shared) -> set[str]:
    return {line for line in generate_latest(of).decode().splitlines() if not line.startswith("#")}


def test_counters_add_up_and_gauges_as_they_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums; but ready where all are, the position of who is furthest, one release, the certificate that ends first. Own
    figures are of this moment."""
    mine = Figures(0, position=7)
    one = shared(tmp_path, 1, mine, monkeypatch)
    shared(tmp_path, 2, Figures(4, ready=0, position=9), monkeypatch).save()
    one.save()
    mine.counted = 3
    assert {
        'token_ledger_refreshes_total{kind="a"} 7.0',
        'token_ledger_refreshes_total{kind="b"} 2.0',
        "token_ledger_ready 0.0",
        "token_ledger_position 9.0",
        "token_ledger_connections 10.0",
        "token_ledger_tls_certificate_expires_timestamp_seconds 1003.0",
        'token_ledger_seconds_bucket{le="0.1"} 7.0',
        'token_ledger_seconds_bucket{le="+Inf"} 9.0',
        "token_ledger_seconds_count 9.0",
        "token_ledger_seconds_sum 0.7",
        'token_ledger_info{version="0.1.0"} 1.0',
    } == lines(one)


def test_who_ended_leaves_counters_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ended: one file holds what they counted, and none of their gauges."""
    one = shared(tmp_path, 1, Figures(1), monkeypatch)
    for pid in (2, 3, 4):
        shared(tmp_path, pid, Figures(10, ready=0, position=99), monkeypatch).save()
        keep_ended(tmp_path, pid)
        keep_ended(tmp_path, pid)
    assert [ENDED] == [path.name for path in tmp_path.iterdir()]
    told = {'token_ledger_refreshes_total{kind="a"} 31.0', "token_ledger_ready 1.0", "token_ledger_position 0.0"}
    assert told < lines(one)


def test_counters_that_cannot_be_kept_leave_no_gauges_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever called is told; the worker's own file has gone before, and made room where it was the last there was."""
    one = shared(tmp_path, 1, Figures(1), monkeypatch)
    shared(tmp_path, 2, Figures(10, ready=0), monkeypatch).save()
    in_the_way = tmp_path / f"{ENDED}.new"
    in_the_way.mkdir()
    with pytest.raises(IsADirectoryError):
        keep_ended(tmp_path, 2)
    assert [in_the_way] == list(tmp_path.iterdir())
    assert {'token_ledger_refreshes_total{kind="a"} 1.0', "token_ledger_ready 1.0"} < lines(one)


def test_a_file_that_is_not_whole_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody was killed while writing, or another is writing now: the sum is of the rest."""
    one = shared(tmp_path, 1, Figures(1), monkeypatch)
    (tmp_path / "live-9").write_bytes(b'[["token_')
    (tmp_path / "live-8.new").write_bytes(b"[]")
    assert 'token_ledger_refreshes_total{kind="a"} 1.0' in lines(one)


def test_a_folder_that_was_cleared_away_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies among what is temporary, and a server lives for years: until it is there again each tells of itself."""
    folder = tmp_path / "figures"
    folder.mkdir(mode=0o700)
    both = [shared(folder, pid, Figures(pid), monkeypatch) for pid in (1, 2)]
    shutil.rmtree(folder)
    assert 'token_ledger_refreshes_total{kind="a"} 1.0' in lines(both[0])

    async def begun() -> None:
        for each in both:
            each.begin()

    asyncio.run(begun())
    assert 0o700 == folder.stat().st_mode & 0o777
    for each in both:
        assert 'token_ledger_refreshes_total{kind="a"} 3.0' in lines(each)


def test_a_folder_that_may_be_somebody_elses_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was faster to make it would else tell figures in our name."""
    folder = tmp_path / "figures"
    folder.mkdir(mode=0o700)
    one = shared(folder, 1, Figures(1), monkeypatch)
    shared(folder, 2, Figures(2), monkeypatch).save()
    folder.chmod(0o750)
    one.save()
    assert ["live-2"] == os.listdir(folder)
    assert 'token_ledger_refreshes_total{kind="a"} 1.0' in lines(one)
