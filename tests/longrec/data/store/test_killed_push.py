"""A push that was killed between disk and online store: readers finish it, or say why not."""

from __future__ import annotations

import contextlib
import errno
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from longrec.data import history
from longrec.data.store import online_store, tail_files
from longrec.data.store import push as pushing
from longrec.data.store.feast_adapter import FeastAdapter
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.workdir import write_lock
from longrec.errors import StoreError
from tests.longrec.data.random_log import SCHEMA, live
from tests.longrec.data.store.published_log import PublishedLog, make

NEW_EVENTS = live(np.random.default_rng(1), 6, [0])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublishedLog]:
    with pytest.MonkeyPatch.context() as patch:
        yield make(tmp_path_factory.mktemp("published"), patch)


@pytest.fixture
def log(published: PublishedLog, tmp_path: Path) -> PublishedLog:
    shutil.copytree(published.workdir, tmp_path / "workdir", symlinks=True)
    return PublishedLog(tmp_path, published.events)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each read try to catch up."""
    monkeypatch.setattr(online_store, "CATCH_UP_SECONDS", 0.0)


def kill(*_: Any) -> None:
    raise KeyboardInterrupt


def kill_push(log: PublishedLog, owner: Any, step: str) -> None:
    """Push events and end at a step, as a kill would."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, step, kill)
        pushing.push(log.workdir, None, NEW_EVENTS)


def packed(reader: OnlineStore) -> bytes:
    [record] = reader.fetch([0])
    return history.pack(record.history, SCHEMA)


@pytest.mark.parametrize("max_tail", [2, 100])
@pytest.mark.parametrize(
    ("owner", "step"),
    [(FeastAdapter, "write_online"), (tail_files, "record_online")],
)
def test_readers_of_both_kinds_finish_a_push_that_is_complete_on_disk(
    log: PublishedLog,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    step: str,
    max_tail: int,
) -> None:
    monkeypatch.setattr(pushing, "MAX_TAIL_EVENTS", max_tail)
    opened_before = log.online()
    before = packed(opened_before)
    kill_push(log, owner, step)
    expected = log.expected([NEW_EVENTS], 0)
    assert packed(opened_before) == expected != before
    assert opened_before.behind == ""
    assert packed(log.online()) == expected
    assert pushing.push(log.workdir, None, NEW_EVENTS).num_new == 0


def test_a_reader_drops_a_push_that_is_not_complete_on_disk(log: PublishedLog) -> None:
    reader = log.online()
    before = packed(reader)
    kill_push(log, tail_files, "write_tails")
    assert packed(reader) == before
    assert not tail_files.is_behind(log.workdir)
    assert pushing.push(log.workdir, None, NEW_EVENTS).num_new == 6


def test_a_new_reader_finishes_a_push_that_was_killed_without_a_word(log: PublishedLog) -> None:
    kill_push(log, FeastAdapter, "write_online")
    tail_files.end_push(log.workdir)  # as an older version of longrec left it
    assert packed(log.online()) == log.expected([NEW_EVENTS], 0)


def test_a_reader_that_may_not_write_says_that_it_is_behind(
    log: PublishedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = log.online()
    before = packed(reader)
    kill_push(log, FeastAdapter, "write_online")
    refused = OSError(errno.EROFS, "Read-only file system")
    with monkeypatch.context() as patch:
        patch.setattr(online_store, "write_lock", raising(refused))
        assert packed(reader) == before
        assert "a push was killed and cannot be finished" in reader.behind
        assert "Read-only file system" in reader.behind
    assert packed(reader) != before
    assert reader.behind == ""


def raising(error: Exception) -> Any:
    @contextlib.contextmanager
    def raise_error(*_: Any) -> Iterator[None]:
        raise error
        yield

    return raise_error


def test_an_online_store_that_cannot_be_written_is_read_on(
    log: PublishedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = log.online()
    before = packed(reader)

    def fail(*_: Any) -> None:
        raise StoreError("the online store cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr(FeastAdapter, "write_online", fail)
        with pytest.raises(StoreError):
            pushing.push(log.workdir, None, NEW_EVENTS)
        assert packed(reader) == before
        assert "cannot be written" in reader.behind
    assert packed(reader) == log.expected([NEW_EVENTS], 0)


def test_a_reader_waits_for_a_running_push_and_reports_one_that_hangs(
    log: PublishedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = log.online()
    before = packed(reader)
    kill_push(log, FeastAdapter, "write_online")
    with write_lock(log.workdir):
        assert packed(reader) == before
        assert reader.behind == ""
        monkeypatch.setattr(online_store, "MAX_PUSH_SECONDS", 0.0)
        assert packed(reader) == before
        assert "a push has been running for" in reader.behind
    assert packed(reader) == log.expected([NEW_EVENTS], 0)


def test_attempts_are_not_made_at_every_read(
    log: PublishedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_store, "CATCH_UP_SECONDS", 1_000.0)
    reader = log.online()
    kill_push(log, FeastAdapter, "write_online")
    with write_lock(log.workdir):
        before = packed(reader)
    assert packed(reader) == before  # the next attempt is due later


@pytest.mark.slow
def test_a_push_that_was_killed_by_a_signal_is_finished(log: PublishedLog, tmp_path: Path) -> None:
    pq.write_table(NEW_EVENTS, tmp_path / "events.parquet")
    code = (
        "import os, signal, sys, pyarrow.parquet as pq\n"
        "from longrec.data.store.feast_adapter import FeastAdapter\n"
        "from longrec.data.store.push import push\n"
        "FeastAdapter.write_online = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "push(sys.argv[1], None, pq.read_table(sys.argv[2]))"
    )
    reader = log.online()
    before = packed(reader)
    arguments = [sys.executable, "-c", code, log.workdir, tmp_path / "events.parquet"]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert packed(reader) == log.expected([NEW_EVENTS], 0) != before
