"""Push: base and tail on both online stores, equal to the offline store and to sorted events."""

from __future__ import annotations

import dataclasses
import datetime
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.config import DataConfig
from longrec.data import features, history
from longrec.data.columns import HISTORY
from longrec.data.store import push as pushing
from longrec.data.store import tail_files
from longrec.data.store.feast_adapter import FeastAdapter
from longrec.data.store.publish import publish
from longrec.data.store.push import Pusher, push
from longrec.errors import DataError, StoreError
from tests.longrec.data import random_log, redis_server
from tests.longrec.data.random_log import HUGE, NOBODY, SCHEMA, live, table_of
from tests.longrec.data.store.published_log import (
    REPO,
    PublishedLog,
    assert_histories_are_sorted_events,
    make,
    with_events,
)

NEW_USER = 77_777
MIN_ID = -(2**63)
MAX_ID = 2**63 - 1


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server.running(tmp_path_factory.mktemp("redis")) as address:
        yield address


@pytest.fixture(params=["sqlite", "redis"])
def log(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> PublishedLog:
    address = None
    if request.param == "redis":
        address = request.getfixturevalue("redis")
    return make(tmp_path, monkeypatch, address)


@pytest.fixture
def short_tails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compact tails after four events."""
    monkeypatch.setattr(pushing, "MAX_TAIL_EVENTS", 4)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_pushes_in_any_order_with_repeats_give_the_sorted_events_in_both_stores(
    log: PublishedLog,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    monkeypatch.setattr(pushing, "MAX_TAIL_EVENTS", 6)  # some users compact several times
    monkeypatch.setattr(tail_files, "MAX_TAIL_FILES", 5)
    rng = np.random.default_rng(seed)
    users = [0, 1, 2, 3, 4, HUGE, NEW_USER, -1, MAX_ID, MIN_ID]
    events = live(rng, 70, users)
    twice = rng.integers(0, 70, 30)
    order = np.concatenate([rng.permutation(70), twice])
    pusher = Pusher(log.workdir)
    reports = []
    for rows in np.array_split(order, 9):
        stored_already = log.events.slice(int(rows[0]), 2)
        new = events.take(pa.array(rows))
        reports.append(pusher.push(pa.concat_tables([new, stored_already])))
    assert sum(report.num_new for report in reports) == 70
    assert sum(report.num_compacted for report in reports) > 3
    tails = log.workdir / "features" / "user_tail"
    assert len(list(tails.iterdir())) <= 5
    assert_histories_are_sorted_events(log, [events], [*users, 9, NOBODY], rng)
    again = pusher.push(events)
    assert again.num_events == 70
    assert (again.num_new, again.num_users, again.num_compacted) == (0, 0, 0)
    [new_user] = log.online().fetch([NEW_USER])
    assert new_user.features is None


def test_features_of_users_are_the_same_in_both_stores_after_a_push(log: PublishedLog) -> None:
    push(log.workdir, None, live(np.random.default_rng(3), 20, [0, 1, 5]))
    users = [*range(19), HUGE, NOBODY]
    online = log.online().fetch(users)
    offline = log.offline().fetch(users)
    for online_record, offline_record in zip(online, offline, strict=True):
        assert online_record.features == offline_record.features
        assert online_record.user_id == offline_record.user_id
    assert online[0].features is not None


@pytest.mark.usefixtures("short_tails")
def test_a_publish_carries_pushed_events_that_its_log_lacks(
    log: PublishedLog,
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(5)
    users = [0, 1, 2, NEW_USER]
    events = live(rng, 30, users)
    push(log.workdir, None, events)
    version = log.online().version
    assert log.publish_again() == 30
    assert log.online().version != version
    assert_histories_are_sorted_events(log, [events], users, rng, 20)

    # A log with half of the pushed events that has lost some old ones: the other pushed events
    # stay, the lost ones do not come back.
    half = [row for row in events.to_pylist() if row["event_seq"] % 2]
    not_lost = [row for row in log.events.to_pylist() if row["event_seq"] > 3]
    later_events = pa.Table.from_pylist(not_lost + half, schema=log.events.schema)
    later = with_events(log, tmp_path / "later", later_events)
    num_missing = 30 - len(half)
    assert publish(later.tables, log.workdir, REPO).num_carried == num_missing
    republished = dataclasses.replace(later, root=log.root)
    assert_histories_are_sorted_events(republished, [events], users, rng, 30)
    assert publish(later.tables, log.workdir, REPO).num_carried == num_missing


@pytest.mark.usefixtures("short_tails")
def test_materializing_after_pushes_restores_the_online_store(log: PublishedLog) -> None:
    """The tables on disk hold the bases and tails that are online."""
    rng = np.random.default_rng(6)
    users = [0, 1, 2, 3, NEW_USER]
    events = live(rng, 25, users)
    reports = [push(log.workdir, None, part) for part in (events.slice(0, 12), events.slice(12))]
    assert sum(report.num_compacted for report in reports) > 1
    feast = log.online()._adapter.feast
    empty_online_store(feast, log)
    with pytest.raises(StoreError, match="the online store has lost its rows"):
        log.online()
    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    end = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
    feast.materialize(start, end)
    assert_histories_are_sorted_events(log, [events], users, rng, 30)


def empty_online_store(feast: Any, log: PublishedLog) -> None:
    views = feast.list_feature_views()
    store = feast._get_provider().online_store
    store.teardown(feast.config, views, feast.list_entities())
    if log.redis_address is None:  # of SQLite, teardown removes the file, of Redis the keys
        store._conn = None
        store.update(feast.config, [], views, [], [], False)


def test_another_schema_does_not_take_over_pushed_events(
    log: PublishedLog,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    push(log.workdir, None, live(np.random.default_rng(5), 5, [0]))
    schema = dataclasses.replace(SCHEMA, event=SCHEMA.event[:1])
    other = random_log.write(tmp_path / "other", schema=schema)
    features.build_features(other.path, tmp_path / "other_features", DataConfig())
    report = publish(tmp_path / "other_features", log.workdir, REPO)
    assert report.num_carried == 0
    assert "pushed events of 1 users are not carried over" in caplog.text


@pytest.mark.usefixtures("short_tails")
@pytest.mark.parametrize(
    ("owner", "step", "is_complete"),
    [
        (tail_files, "write_tails", False),
        (FeastAdapter, "write_online", True),
        (tail_files, "record_online", True),
    ],
)
def test_a_push_killed_at_any_step_is_finished_by_the_next(
    log: PublishedLog,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    step: str,
    is_complete: bool,
) -> None:
    rng = np.random.default_rng(7)
    users = [0, 1, 2]
    first = live(rng, 8, users)
    killed = live(rng, 20, users, seq=200_000)
    third = live(rng, 3, [3], seq=300_000)
    push(log.workdir, None, first)

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, step, kill)
        push(log.workdir, None, killed)
    push(log.workdir, None, third)  # by somebody else; the killed push is not repeated
    stored = [first, third]
    if is_complete:
        stored.append(killed)
    assert_histories_are_sorted_events(log, stored, [0, 1, 2, 3], rng, 20)
    report = push(log.workdir, None, killed)
    assert report.num_new == (0 if is_complete else 20)
    assert_histories_are_sorted_events(log, [first, killed, third], [0, 1, 2, 3], rng, 20)


@pytest.mark.usefixtures("short_tails")
def test_a_base_that_is_older_than_its_tail_is_read_again(
    log: PublishedLog,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = log.online()._adapter
    [old_values] = adapter.read_online([0])
    events = live(np.random.default_rng(8), 9, [0])
    assert push(log.workdir, None, events).num_compacted == 1
    reads = []

    def first_base_is_old(users: list[int], answers: list[dict[str, Any]]) -> None:
        reads.append(users)
        if len(reads) == 1:  # the base was read before the compaction, the tail after it
            answers[0][HISTORY] = old_values[HISTORY]

    change_answers(monkeypatch, first_base_is_old)
    online = log.online()
    reads.clear()
    record, _ = online.fetch([0, 1])
    assert reads == [[0, 1], [0]]
    assert history.pack(record.history, SCHEMA) == log.expected([events], 0)

    def base_is_missing(users: list[int], answers: list[dict[str, Any]]) -> None:
        answers[0][HISTORY] = None

    change_answers(monkeypatch, base_is_missing)
    with pytest.raises(DataError, match="a tail without its base"):
        online.fetch([0])


def change_answers(
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[list[int], list[dict[str, Any]]], None],
) -> None:
    """Change what online reads return."""
    original = FeastAdapter.read_online

    def changed(self: FeastAdapter, users: list[int]) -> list[dict[str, Any]]:
        answers = original(self, users)
        change(users, answers)
        return answers

    monkeypatch.setattr(FeastAdapter, "read_online", changed)


def test_an_event_under_the_key_of_another_is_refused_and_nothing_is_written(
    log: PublishedLog,
) -> None:
    events = live(np.random.default_rng(9), 3, [0])
    push(log.workdir, None, events)
    first = events.slice(0, 1)
    [row] = first.to_pylist()
    changed = table_of([{**row, "action": "other"}])
    message = r"an event of user 0 has the key of another event; found .*action='other'"
    with pytest.raises(DataError, match=message):
        push(log.workdir, None, changed)
    of_another_user = live(np.random.default_rng(1), 1, [8], seq=5)
    with pytest.raises(DataError, match="has the key of another event"):
        push(log.workdir, None, pa.concat_tables([of_another_user, changed, first]))
    [record] = log.online().fetch([0])
    assert history.pack(record.history, SCHEMA) == log.expected([events], 0)


def test_an_event_that_splits_a_stored_basket_is_refused(log: PublishedLog) -> None:
    [stored] = log.events.slice(0, 1).to_pylist()
    later = {
        **stored,
        "timestamp": stored["timestamp"] + 1,
        "event_seq": 9_999,
    }
    with pytest.raises(DataError, match="events of one basket have different times"):
        push(log.workdir, None, table_of([later]))


@pytest.mark.slow
def test_two_processes_that_push_at_once_both_arrive(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = make(tmp_path, monkeypatch)
    rng = np.random.default_rng(2)
    code = (
        "import sys, pyarrow.parquet as pq; from longrec.data.store.push import Pusher\n"
        "pusher, table = Pusher(sys.argv[1]), pq.read_table(sys.argv[2])\n"
        "for row in range(0, table.num_rows, 5): pusher.push(table.slice(row, 5))"
    )
    parts = []
    processes = []
    for number in range(2):
        part = live(rng, 25, [0, 1], seq=1_000 * (number + 1))
        path = tmp_path / f"{number}.parquet"
        pq.write_table(part, path)
        parts.append(part)
        processes.append(subprocess.Popen([sys.executable, "-c", code, log.workdir, path]))
    assert [process.wait(600) for process in processes] == [0, 0]
    assert_histories_are_sorted_events(log, parts, [0, 1], rng, 10)
