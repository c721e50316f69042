"""Figures of several processes as one: what adds up, what does not, and what outlives a process."""

import os
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
            histogram,
            InfoMetricFamily("token_ledger", "Release.", value={"version": "0.1.0"}),
        ]


def shared(folder: Path, pid: int, figures: Figures, monkeypatch: pytest.MonkeyPatch) -> Shared:
    monkeypatch.setattr(os, "getpid", lambda: pid)
    return Shared(folder, figures)


def lines(of: Shared) -> set[str]:
    return {line for line in generate_latest(of).decode().splitlines() if not line.startswith("#")}


def test_counters_add_up_and_gauges_as_they_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums; but ready where all are, the position of who is furthest, one release. Own figures are of this moment."""
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
