"""The feature store with a real Feast: exact, strict, one version at a time; the offline and the online door show the same events."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from longrec.config import DataConfig
from longrec.data import features, history, store
from longrec.data.dataset import Dataset
from longrec.data.histories import Histories
from longrec.data.store import OnlineStore, RetrieveReport, publish, retrieve
from longrec.errors import DataError, SchemaMismatch, StoreError
from tests.longrec.data import random_log
from tests.longrec.data.random_log import HUGE, NO_EVENTS, NO_FEATURES, NOBODY, SCHEMA

REPO = Path(__file__).parents[3] / "feature_repo"
SMALL = DataConfig(shard_users=6, max_history=9, eval_fraction=0.3, warmup_fraction=0.1)


@dataclasses.dataclass(frozen=True)
class World:
    """A dataset that was built, published and retrieved."""

    root: Path
    source: Dataset
    report: RetrieveReport

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def histories(self) -> Histories:
        return Histories.open(self.root / "histories")

    def events(self) -> dict[int, list[dict[str, Any]]]:
        """Events of each user in order, times in ms."""
        rows: dict[int, list[dict[str, Any]]] = {}
        for part in self.source.event_parts():
            for row in part.set_column(2, "timestamp", part.column("timestamp").cast(pa.int64())).to_pylist():
                rows.setdefault(row["user_id"], []).append(row)
        return {user: sorted(events, key=lambda row: (row["timestamp"], row["event_seq"])) for user, events in rows.items()}

    def requests(self) -> list[dict[str, Any]]:
        """Targets of the dataset grouped by request, in the order of the histories."""
        rows: dict[int, dict[str, Any]] = {}
        for part in self.source.target_parts():
            for row in part.set_column(2, "timestamp", part.column("timestamp").cast(pa.int64())).to_pylist():
                request = rows.setdefault(row["request_id"], {**row, "targets": []})
                request["targets"].append((row["item_id"], row["click"], row["buy"]))
        return sorted(rows.values(), key=lambda row: (row["timestamp"], row["request_id"]))


def make(root: Path, *, seed: int = 0, data: DataConfig = SMALL, **options: Any) -> World:
    source = random_log.write(root / "data", seed=seed, **options)
    features.build(source.path, root / "features", data)
    publish(root / "features", root / "home", REPO)
    return World(root, source, retrieve(source.path, root / "home", REPO, root / "histories", data, seed))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(tmp_path_factory.mktemp("world"))


@pytest.fixture
def own_world(world: World, tmp_path: Path) -> World:
    """A published home that the test may change."""
    publish(world.root / "features", tmp_path / "home", REPO)
    for name in ("data", "features", "histories"):
        (tmp_path / name).symlink_to(world.root / name)
    return dataclasses.replace(world, root=tmp_path)


def check_against_brute_force(world: World, data: DataConfig) -> None:
    events, opened, requests = world.events(), world.histories, world.requests()
    rows = opened.requests.to_pylist()
    assert [row["request_id"] for row in rows] == [request["request_id"] for request in requests]
    for number, (row, request) in enumerate(zip(rows, requests, strict=True)):
        before = [event for event in events.get(request["user_id"], []) if event["timestamp"] < request["timestamp"]]
        expected = before[max(0, len(before) - data.max_history):]
        found = opened.history(number)
        for name in found.schema.names:
            assert repr(found.column(name).to_pylist()) == repr([event[name] for event in expected]), (row, name)
        assert opened.users.column("user_id")[row["user_row"]].as_py() == request["user_id"]
        targets = opened.targets.slice(row["target_start"], row["target_end"] - row["target_start"])
        assert list(zip(*targets.to_pydict().values(), strict=True)) == request["targets"]


def test_offline_histories_are_the_events_strictly_before(world: World) -> None:
    check_against_brute_force(world, SMALL)


@pytest.mark.parametrize("seed", [1, 2])
def test_offline_histories_of_other_worlds(tmp_path: Path, seed: int) -> None:
    data = DataConfig(shard_users=1 + 50 * (seed - 1), max_history=[3, 10_000][seed - 1], eval_fraction=0.5)
    check_against_brute_force(make(tmp_path, seed=seed, data=data, num_parts=seed, max_events=40), data)


def test_the_cases_that_leak_are_in_the_world_and_do_not(world: World) -> None:
    """Not a property of the code: the random world has ties, events at the moment, later events and baskets at the boundary."""
    events, opened = world.events(), world.histories
    at_moment = later = ties = 0
    for number, request in enumerate(opened.requests.to_pylist()):
        mine = events.get(opened.users.column("user_id")[request["user_row"]].as_py(), [])
        found = opened.history(number)
        siblings = {event["basket_id"] for event in mine if event["timestamp"] >= request["timestamp"]}
        assert not siblings & set(found.column("basket_id").to_pylist())
        assert all(time < request["timestamp"] for time in found.column("timestamp").to_pylist())
        at_moment += any(event["timestamp"] == request["timestamp"] for event in mine)
        later += any(event["timestamp"] > request["timestamp"] for event in mine)
        times = found.column("timestamp").to_pylist()
        ties += len(set(times)) < len(times)
    assert min(at_moment, later, ties) > 10


def test_users_and_items_come_back_exact(world: World) -> None:
    opened = world.histories
    assert opened.items.to_pylist() == world.source.items().to_pylist()
    known = {row["user_id"]: row for row in world.source.users().to_pylist()}
    for row in opened.users.to_pylist():
        expected = known.get(row["user_id"], dict.fromkeys(known[0]))
        assert {name: row[name] for name in ("inviter", "group", "age", "city")} == \
            {name: expected[name] for name in ("inviter", "group", "age", "city")}
        assert row["score"] == (0.1 if expected["score"] == 0.1 else None)
    assert {HUGE, -HUGE, None} == set(opened.users.column("inviter").to_pylist())
    assert HUGE + 1 in opened.users.column("group").to_pylist()
    assert [row["user_row"] for row in opened.users.to_pylist()] == list(range(opened.users.num_rows))


def test_the_split_is_in_time_and_complete(world: World) -> None:
    rows = world.histories.requests.to_pylist()
    moments = {name: [row["timestamp"] for row in rows if row["split"] == name] for name in ("warmup", "train", "eval")}
    assert max(moments["warmup"]) < min(moments["train"]) and max(moments["train"]) < min(moments["eval"])
    assert min(moments["eval"]) == world.histories.split_moment_ms == world.report.split_moment_ms
    report = world.report
    assert (report.num_warmup, report.num_train, report.num_eval) == tuple(len(part) for part in moments.values())
    assert report.num_requests == len(rows) == world.source.facts["num_requests"]
    assert report.num_targets == world.source.facts["num_targets"]


def test_the_report_counts_what_is_special(world: World) -> None:
    opened, report = world.histories, world.report
    kept = [row["event_end"] - row["event_start"] for row in opened.requests.to_pylist()]
    assert report.users_without_history == 2  # NO_EVENTS and NOBODY
    assert report.requests_without_history == kept.count(0) > 0
    assert report.longest_history == max(kept) == SMALL.max_history
    assert 0 < report.requests_at_the_bound <= kept.count(SMALL.max_history)
    assert report.num_events == sum(len(events) for events in world.events().values())


def test_online_histories_are_the_offline_ones_bit_for_bit(world: World) -> None:
    opened, online = world.histories, OnlineStore(world.home)
    requests = opened.requests.to_pylist()
    users = [opened.users.column("user_id")[row["user_row"]].as_py() for row in requests]
    for number, (row, answer) in enumerate(zip(requests, online.fetch(users), strict=True)):
        prefix = history.most_recent(history.prefix_before(answer.history, row["timestamp"]), SMALL.max_history)
        assert history.pack(prefix, SCHEMA) == history.pack(opened.history(number), SCHEMA)


def test_online_features_are_the_offline_ones(world: World) -> None:
    rows = world.histories.users.to_pylist()
    for row, answer in zip(rows, OnlineStore(world.home).fetch([row["user_id"] for row in rows]), strict=True):
        values = {feature.name: row[feature.name] for feature in SCHEMA.user}
        assert answer.user_id == row["user_id"]
        assert answer.features == (None if set(values.values()) == {None} else values)


def test_half_known_and_unknown_users_online(world: World) -> None:
    no_events, no_features, nobody, again = OnlineStore(world.home).fetch([NO_EVENTS, NO_FEATURES, 987_654_321, NO_EVENTS])
    assert no_events.history.num_rows == 0 and no_events.features is not None and no_events.features["group"] == HUGE + NO_EVENTS % 3
    assert no_features.history.num_rows > 0 and no_features.features is None
    assert nobody.history.equals(history.empty(SCHEMA)) and nobody.features is None
    assert again.features == no_events.features
    assert OnlineStore(world.home).fetch([]) == []


def test_many_users_are_asked_for_in_pieces(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    online, users = OnlineStore(world.home), [3, NOBODY, HUGE, 0, 3, *range(10), NO_EVENTS]
    whole = online.fetch(users)
    monkeypatch.setattr(store, "ONLINE_USERS", 3)
    pieces = online.fetch(users)
    assert [answer.user_id for answer in whole] == users and any(answer.history.num_rows for answer in whole)
    for mine, theirs in zip(pieces, whole, strict=True):
        assert (mine.user_id, mine.features) == (theirs.user_id, theirs.features)
        assert history.pack(mine.history, SCHEMA) == history.pack(theirs.history, SCHEMA)


def test_a_sample_of_requests_is_seeded_and_keeps_their_order(world: World, tmp_path: Path) -> None:
    data = dataclasses.replace(SMALL, max_requests=11)
    chosen = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        report = retrieve(world.source.path, world.home, REPO, tmp_path / name, data, seed)
        opened = Histories.open(tmp_path / name)
        chosen.append(opened.requests.column("request_id").to_pylist())
        assert report.num_requests == 11 and opened.targets.num_rows == report.num_targets
        for number, request in enumerate(opened.requests.to_pylist()):
            everything = next(row for row in world.requests() if row["request_id"] == request["request_id"])
            targets = opened.targets.slice(request["target_start"], request["target_end"] - request["target_start"])
            assert targets.column("item_id").to_pylist() == [item for item, _, _ in everything["targets"]]
            assert opened.history(number).num_rows <= 9
    assert chosen[0] == chosen[1] != chosen[2]


def test_shards_are_bounded_in_users_and_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SLICE_EVENTS", 10)
    lengths = np.array([3, 4, 3, 1, 50, 0, 0, 9, 2])
    assert list(store._shards(lengths, 100)) == [(0, 3), (3, 4), (4, 5), (5, 8), (8, 9)]
    assert list(store._shards(lengths, 2)) == [(0, 2), (2, 4), (4, 5), (5, 7), (7, 8), (8, 9)]


def test_time_slices_cover_every_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SLICE_BYTES", 100)
    rng = np.random.default_rng(0)
    for _ in range(200):
        times, sizes = rng.integers(0, 20, 30), rng.integers(1, 300 if rng.random() < 0.5 else 30, 30).astype(float)
        slices = list(store._time_slices(times, sizes))
        assert [sum(first <= time <= last for first, last in slices) for time in times] == [1] * len(times)
        assert all(a[1] < b[0] for a, b in itertools.pairwise(slices))


def test_the_online_store_is_filled_in_slices(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SLICE_BYTES", 5_000)
    report = publish(world.root / "features", tmp_path / "home", REPO)
    assert report.online_slices > 5
    users = list(world.events())
    for mine, theirs in zip(OnlineStore(tmp_path / "home").fetch(users), OnlineStore(world.home).fetch(users), strict=True):
        assert mine.history.num_rows and history.pack(mine.history, SCHEMA) == history.pack(theirs.history, SCHEMA)


def test_a_schema_without_user_and_item_features(tmp_path: Path) -> None:
    bare = dataclasses.replace(SCHEMA, item=SCHEMA.item[:1], user=(), event=(), has_baskets=False)
    world = make(tmp_path, schema=bare)
    check_against_brute_force(world, SMALL)
    assert world.histories.items.schema.names == ["item_id"]
    answer = OnlineStore(world.home).fetch([0])[0]
    assert answer.features is None and answer.history.num_rows == len(world.events()[0])


@contextlib.contextmanager
def killed(monkeypatch: pytest.MonkeyPatch, where: str) -> Iterator[None]:
    """Ends the block when `where` is reached, without the cleaning up that a killed process cannot do."""
    class Kill(BaseException):
        pass

    def kill(*_: Any, **__: Any) -> None:
        raise Kill

    with monkeypatch.context() as patch, pytest.raises(Kill):
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(store, where, kill)
        yield


STEPS = ("_write_settings", "_fill", "_declarations", "_materialize", "_verify", "_switch")


@pytest.mark.parametrize("step", STEPS)
def test_a_publish_killed_at_any_step_changes_nothing(world: World, own_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      step: str) -> None:
    other = random_log.write(tmp_path / "other", seed=9)
    features.build(other.path, tmp_path / "other_features", SMALL)
    with killed(monkeypatch, step):
        publish(tmp_path / "other_features", own_world.home, REPO)
    assert store.Published.open(own_world.home).manifest["dataset_hash"] == world.source.facts["content_hash"]
    users = list(world.events())
    for mine, expected in zip(OnlineStore(own_world.home).fetch(users), OnlineStore(world.home).fetch(users), strict=True):
        assert history.pack(mine.history, SCHEMA) == history.pack(expected.history, SCHEMA)
    report = retrieve(world.source.path, own_world.home, REPO, tmp_path / "again", SMALL, 0)
    assert report == world.report
    with killed(monkeypatch, step):
        publish(world.root / "features", tmp_path / "first", REPO)
    with pytest.raises(StoreError, match="no feature store"):
        OnlineStore(tmp_path / "first")
    assert publish(tmp_path / "other_features", own_world.home, REPO).num_verified > 0  # and the next one works
    left = {path.name for path in (own_world.home / "store").iterdir() if path.is_dir() and not path.is_symlink()}
    assert len(left) == 2  # the new one and the one before


def test_a_publish_killed_while_it_switches_leaves_one_version(own_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = random_log.write(tmp_path / "other", seed=9)
    features.build(other.path, tmp_path / "other_features", SMALL)
    replace, calls = os.replace, []
    for stop in range(4):
        def counting(source: Any, target: Any, stop: int = stop) -> None:
            calls.append(target)
            if len(calls) > stop:
                raise KeyboardInterrupt
            replace(source, target)
        calls.clear()
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", counting)
            publish(tmp_path / "other_features", own_world.home, REPO)
        published, online = store.Published.open(own_world.home), OnlineStore(own_world.home)
        assert online.version == published.path.name and online.fetch([0])[0].history.num_rows > 0
        assert (own_world.home / "feast").resolve().parent == (own_world.home / "features").resolve().parent == published.path


def test_an_open_reader_follows_a_new_version(own_world: World, tmp_path: Path) -> None:
    online = OnlineStore(own_world.home)
    before = {user: answer.history.num_rows for user, answer in zip(range(19), online.fetch(range(19)), strict=True)}
    other = random_log.write(tmp_path / "other", seed=9, num_users=10)
    features.build(other.path, tmp_path / "other_features", SMALL)
    publish(tmp_path / "other_features", own_world.home, REPO)
    after = {user: answer.history.num_rows for user, answer in zip(range(19), online.fetch(range(19)), strict=True)}
    assert before != after and all(after[user] > 0 for user in range(9))
    assert all(after[user] == 0 for user in range(9, 19))  # users of the version before are gone, not stale
    with pytest.raises(StoreError, match="features of another dataset"):
        retrieve(own_world.source.path, own_world.home, REPO, tmp_path / "x", SMALL, 0)
    assert not (tmp_path / "x").exists()


def test_two_publishes_at_once_are_refused(own_world: World) -> None:
    with store._locked(own_world.home), pytest.raises(StoreError, match="another publish"):
        publish(own_world.root / "features", own_world.home, REPO)


def test_changed_feature_tables_are_refused(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.root / "features", tmp_path / "features")
    part = tmp_path / "features" / "user_history" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"part-00000.parquet is missing or was changed"):
        publish(tmp_path / "features", tmp_path / "home", REPO)
    with pytest.raises(DataError, match=r"manifest.json does not exist"):
        publish(tmp_path / "nothing", tmp_path / "home", REPO)
    with pytest.raises(StoreError, match=r"no feature repository at .*; found no feature_store.yaml"):
        publish(world.root / "features", tmp_path / "home", tmp_path)


def test_nothing_published_is_said(tmp_path: Path, world: World) -> None:
    with pytest.raises(StoreError, match=r"no feature store at .*Publish feature tables first"):
        OnlineStore(tmp_path)
    with pytest.raises(StoreError, match="no feature store at"):
        retrieve(world.source.path, tmp_path, REPO, tmp_path / "out", SMALL, 0)


def test_a_lost_online_store_or_registry_is_said(own_world: World) -> None:
    feast = (own_world.home / "feast").resolve()
    database = (feast / "online.db").read_bytes()
    (feast / "online.db").unlink()
    with pytest.raises(StoreError, match="the online store is gone"):
        OnlineStore(own_world.home)
    assert not (feast / "online.db").exists()  # asking did not make an empty one
    (feast / "online.db").write_bytes(database[:4096])
    with pytest.raises(StoreError, match=r"online store cannot be read; found (Operational|Database)Error"):
        OnlineStore(own_world.home)
    (feast / "online.db").write_bytes(database)
    (feast / "registry.db").unlink()
    with pytest.raises(StoreError, match="cannot be opened; found"):
        OnlineStore(own_world.home)


def test_another_schema_is_refused(own_world: World, tmp_path: Path) -> None:
    other = dataclasses.replace(SCHEMA, event=SCHEMA.event[:1])
    with pytest.raises(SchemaMismatch, match=r"event.seconds: unexpected; event.source: unexpected"):
        OnlineStore(own_world.home, schema=other)
    assert OnlineStore(own_world.home, schema=SCHEMA).schema == SCHEMA
    source = random_log.write(tmp_path / "other", schema=other)
    with pytest.raises(SchemaMismatch, match=r"event.seconds: unexpected"):
        retrieve(source.path, own_world.home, REPO, tmp_path / "out", SMALL, 0)
    path = (own_world.home / "features" / "schema.json").resolve()
    path.write_text(path.read_text().replace('"random"', '"changed"'))
    with pytest.raises(StoreError, match="the registry was made for another schema"):
        OnlineStore(own_world.home)


def test_a_row_that_feast_loses_is_noticed(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from feast import FeatureStore

    original = FeatureStore.get_historical_features
    class Job:
        def __init__(self, job: Any) -> None:
            self.job = job

        def to_arrow(self) -> pa.Table:
            return self.job.to_arrow().slice(1)

    monkeypatch.setattr(FeatureStore, "get_historical_features", lambda *args, **options: Job(original(*args, **options)))
    with pytest.raises(StoreError, match="did not return one row per id; found 21 rows; expected 22 rows"):
        retrieve(world.source.path, world.home, REPO, tmp_path / "out", SMALL, 0)
    assert not (tmp_path / "out").exists()


def test_a_miss_is_told_by_value_whatever_the_status_says(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis answers PRESENT for a user that it does not have."""
    from feast import FeatureStore
    from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

    original = FeatureStore.get_online_features
    def present(*args: Any, **options: Any) -> Any:
        answer = original(*args, **options)
        for vector in answer.proto.results:
            vector.statuses[:] = [FieldStatus.PRESENT] * len(vector.statuses)
        return answer
    monkeypatch.setattr(FeatureStore, "get_online_features", present)
    answer = OnlineStore(world.home).fetch([NOBODY])[0]
    assert answer.history.num_rows == 0 and answer.features is None


def test_a_corrupted_history_online_is_an_error_not_a_wrong_history(own_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    with contextlib.closing(sqlite3.connect((own_world.home / "feast" / "online.db").resolve())) as database:
        select = "select rowid, value from longrec_user_history where feature_name = 'history' limit 1"
        row, value = database.execute(select).fetchone()
        damaged = bytearray(value)
        damaged[len(damaged) // 2] ^= 1
        database.execute("update longrec_user_history set value = ? where rowid = ?", (bytes(damaged), row))
        database.commit()
    with pytest.raises(DataError, match="not readable"):
        OnlineStore(own_world.home).fetch(list(own_world.events()))


def test_importing_the_store_is_cheap() -> None:
    """Feast, DuckDB and pandas are imported when something is published or read, not before."""
    code = "import sys, longrec.data.store; print([name for name in ('feast', 'duckdb', 'pandas', 'ibis') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
