"""Test the log of requests: it holds a share of them, stays bounded and never waits."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from longrec.release import request_log
from longrec.release.request_log import RequestLog, log_files

LONG = 80
"""Candidates of a request, more than are logged."""


def add_request(log: RequestLog, num_candidates: int = LONG) -> None:
    log.add(
        1,
        1,
        list(range(num_candidates)),
        {"label": np.full(num_candidates, 0.5)},
        history_length=1,
        model_version="v",
        degraded=False,
    )


def test_a_log_of_no_requests_writes_nothing(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, 0.0)
    log.add(1, 1, [1], {"label": [0.5]})
    log.stop()
    assert not (tmp_path / "requests").exists()


def test_the_log_holds_a_share_in_the_newest_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_log, "MAX_FILES", 3)
    for _ in range(6):
        log = RequestLog(tmp_path, 0.5)
        for _ in range(400):
            add_request(log)
        log.stop()
    paths = log_files(tmp_path)
    assert len(paths) == 3
    requests: set[int] = set()
    for path in paths:
        rows = pq.read_table(path)
        requests.update(rows.column("request_id").to_pylist())
        assert rows.num_rows % request_log.MAX_LOGGED_CANDIDATES == 0
    assert 450 < len(requests) < 750, "half of 3 x 400"


def test_answers_are_dropped_if_too_many_are_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_log, "MAX_PENDING", 10)
    log = RequestLog(tmp_path, 1.0)
    for _ in range(10):
        add_request(log, 50)
    assert log.num_dropped > 5
    log.stop()


def test_rows_that_come_during_the_last_write_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_writing = threading.Event()
    may_write = threading.Event()
    write_table = pq.write_table

    def write_slowly(*arguments: Any) -> None:
        is_writing.set()
        may_write.wait(60)
        write_table(*arguments)

    monkeypatch.setattr(pq, "write_table", write_slowly)
    monkeypatch.setattr(request_log, "FILE_ROWS", 1)
    log = RequestLog(tmp_path, 1.0)
    add_request(log, 1)
    assert is_writing.wait(60)
    add_request(log, 1)
    threading.Timer(0.2, may_write.set).start()
    log.stop()
    num_rows = sum(pq.read_table(path).num_rows for path in log_files(tmp_path))
    assert num_rows == 2
