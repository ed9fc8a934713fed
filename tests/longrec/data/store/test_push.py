"""Live events: base and tail, on both online stores, equal to the offline side and to sorting all
events by hand.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from longrec.config import DataConfig
from longrec.data import features, history
from longrec.data.columns import HISTORY
from longrec.data.dataset import Dataset
from longrec.data.store import push as pushing
from longrec.data.store import tail_files
from longrec.data.store.feast_adapter import FeastAdapter, ViewByViewReader, _parse_value
from longrec.data.store.offline_store import OfflineStore
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import publish, redis_project
from longrec.data.store.push import Pusher, push
from longrec.errors import DataError, StoreError
from tests.longrec.data import random_log, redis_server
from tests.longrec.data.random_log import HUGE, NOBODY, SCHEMA, START_MS, live, table_of

REPO = Path(__file__).parents[4] / "feature_repo"
KINDS = ["sqlite", "redis"]
NEW_USER = 77_777


@dataclasses.dataclass(frozen=True)
class World:
    """A published home, its events, and what a person would say the histories are: a set of events,
    sorted.
    """

    root: Path
    events: pa.Table
    address: str | None = None

    @property
    def workdir(self) -> Path:
        return self.root / "home"

    def expected(
        self, pushes: list[pa.Table], user: int, before_ms: int, max_history: int
    ) -> bytes:
        rows = {}
        for table in [self.events, *pushes]:
            mine = table.filter(pc.equal(table["user_id"], user))
            for row in mine.to_pylist():
                rows.setdefault((row["timestamp"], row["event_seq"], row["item_id"]), row)
        chosen = [rows[key] for key in sorted(rows) if key[0] < before_ms][-max_history:]
        return history.pack(table_of(chosen), SCHEMA)


def all_events(source: Dataset) -> pa.Table:
    table = pa.concat_tables(source.event_parts())
    place = table.schema.get_field_index("timestamp")
    table = table.set_column(place, "timestamp", table["timestamp"].cast(pa.int64()))
    return table.select(["user_id", *history.arrow_schema(SCHEMA).names])


def make(
    root: Path, kind: str, address: str | None, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> World:
    select(kind, address, monkeypatch)
    source = random_log.write(root / "data", **options)
    features.build_features(source.path, root / "features", DataConfig(shard_users=7))
    publish(root / "features", root / "home", REPO)
    return World(root, all_events(source), address)


def select(kind: str, address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "redis":
        monkeypatch.setenv("LONGREC_FEATURE_OVERLAY", "redis")
        monkeypatch.setenv("LONGREC_REDIS", str(address))


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server.running(tmp_path_factory.mktemp("redis")) as address:
        yield address


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    address = request.getfixturevalue("redis") if request.param == "redis" else None
    return make(tmp_path, request.param, address, monkeypatch)


def same_at(
    world: World,
    pushes: list[pa.Table],
    users: list[int],
    rng: np.random.Generator,
    count: int = 60,
) -> None:
    """Compares both doors with the events sorted by hand, bit for bit, for random (user, moment)
    pairs.
    """
    doors = OnlineStore(world.workdir), OfflineStore(world.workdir)
    whole = [{row.user_id: row.history for row in door.fetch(users)} for door in doors]
    for number in range(count):
        user, before, length = (
            int(rng.choice(np.array(users))),
            START_MS + int(rng.integers(-1, 90)),
            int(rng.choice([3, 10, 10_000])),
        )
        expected = world.expected(pushes, user, before, length)
        for door, answers in zip(doors, whole, strict=True):
            found = history.most_recent(history.events_before(answers[user], before), length)
            assert history.pack(found, SCHEMA) == expected, (type(door), user, before)
            if not number:
                cut = door.fetch([user], before_ms=before, max_history=length)[0].history
                assert history.pack(cut, SCHEMA) == expected


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_pushes_in_any_order_with_repeats_give_the_sorted_events_in_both_doors(
    world: World, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(
        pushing, "MAX_TAIL_EVENTS", 6
    )  # some users fold, several times, and some do not
    monkeypatch.setattr(tail_files, "MAX_TAIL_FILES", 5)
    rng, users = (
        np.random.default_rng(seed),
        [0, 1, 2, 3, 4, HUGE, NEW_USER, -1, 2**63 - 1, -(2**63)],
    )
    events = live(rng, 70, users)
    order = np.concatenate(
        [rng.permutation(70), rng.integers(0, 70, 30)]
    )  # out of order, a third delivered twice
    pusher, reports = Pusher(world.workdir), []
    for rows in np.array_split(order, 9):
        reports.append(
            pusher.push(
                pa.concat_tables([events.take(pa.array(rows)), world.events.slice(int(rows[0]), 2)])
            )
        )
    assert (
        sum(report.num_new for report in reports) == 70
        and sum(report.num_compacted for report in reports) > 3
    )
    assert len(list((world.workdir / "features" / "user_tail").iterdir())) <= 5
    same_at(world, [events], [*users, 9, NOBODY], rng)
    again = pusher.push(events)
    assert (again.num_events, again.num_new, again.num_users, again.num_compacted) == (70, 0, 0, 0)
    assert OnlineStore(world.workdir).fetch([NEW_USER])[0].features is None


def test_features_of_users_are_the_same_in_both_doors_after_a_push(world: World) -> None:
    push(world.workdir, None, live(np.random.default_rng(3), 20, [0, 1, 5]))
    users = [*range(19), HUGE, NOBODY]
    for mine, theirs in zip(
        OnlineStore(world.workdir).fetch(users),
        OfflineStore(world.workdir).fetch(users),
        strict=True,
    ):
        assert mine.features == theirs.features and mine.user_id == theirs.user_id
    assert OnlineStore(world.workdir).fetch([0])[0].features is not None


def test_a_publish_carries_pushed_events_that_its_log_lacks(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "MAX_TAIL_EVENTS", 4)
    rng, users = np.random.default_rng(5), [0, 1, 2, NEW_USER]
    events = live(rng, 30, users)
    push(world.workdir, None, events)
    before = OnlineStore(world.workdir).version
    first = publish(world.root / "features", world.workdir, REPO)
    assert first.num_carried == 30 and OnlineStore(world.workdir).version != before
    same_at(world, [events], users, rng, 20)
    # a log that holds half of them by now, and has lost some old events: what it lacks of the
    # pushed ones stays, nothing else does
    half = [row for row in events.to_pylist() if row["event_seq"] % 2]
    log = pa.Table.from_pylist(
        [row for row in world.events.to_pylist() if row["event_seq"] > 3] + half,
        schema=world.events.schema,
    )
    other = dataclasses.replace(world, events=log, root=tmp_path / "other")
    rewrite(world.root / "data", other.root / "data", log)
    features.build_features(other.root / "data", other.root / "features", DataConfig(shard_users=7))
    assert publish(other.root / "features", world.workdir, REPO).num_carried == 30 - len(half)
    same_at(dataclasses.replace(other, root=world.root), [events], users, rng, 30)
    third = publish(other.root / "features", world.workdir, REPO)
    assert third.num_carried == 30 - len(half)  # and again


def rewrite(source: Path, target: Path, events: pa.Table) -> None:
    """Writes the dataset anew with other events."""
    from longrec.data.dataset import event_schema
    from longrec.data.dataset_writer import DatasetWriter
    from longrec.data.shards import part_of

    opened = Dataset.open(source)
    sorted_events = events.sort_by(
        [(name, "ascending") for name in ("user_id", "timestamp", "event_seq")]
    )
    place = sorted_events.schema.get_field_index("timestamp")
    times = sorted_events["timestamp"].cast(pa.timestamp("ms", tz="UTC"))
    table = (
        sorted_events.set_column(place, "timestamp", times)
        .select(event_schema(SCHEMA).names)
        .cast(event_schema(SCHEMA))
    )
    with DatasetWriter(target, SCHEMA, name="random", source={"seed": 0}, num_parts=2) as writer:
        for part, targets in enumerate(opened.target_parts()):
            rows = [
                row
                for row, user in enumerate(table["user_id"].to_pylist())
                if part_of(np.array([user]), 2)[0] == part
            ]
            writer.write_part(part, table.take(pa.array(rows, pa.int64())), targets)
        writer.write_entities(opened.items(), opened.users())


def test_materializing_after_pushes_gives_what_was_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `feast materialize` does: the tables on disk hold bases and tails as they are online."""
    import datetime

    monkeypatch.setattr(pushing, "MAX_TAIL_EVENTS", 4)
    rng, users = np.random.default_rng(6), [0, 1, 2, 3, NEW_USER]
    events = live(rng, 25, users)
    assert (
        sum(
            push(world.workdir, None, part).num_compacted
            for part in (events.slice(0, 12), events.slice(12))
        )
        > 1
    )
    feast = OnlineStore(world.workdir)._adapter.feast
    feast._get_provider().online_store.teardown(
        feast.config, feast.list_feature_views(), feast.list_entities()
    )
    if world.address is None:  # teardown of SQLite removes the file, of Redis the keys
        feast._get_provider().online_store._conn = None
        feast._get_provider().online_store.update(
            feast.config, [], feast.list_feature_views(), [], [], False
        )
    assert all(
        value is None for value in OnlineStore(world.workdir)._adapter.read_online([0])[0].values()
    )
    feast.materialize(
        datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC),
        datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC),
    )
    same_at(world, [events], users, rng, 30)


def test_another_schema_does_not_take_over_pushed_events(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    push(world.workdir, None, live(np.random.default_rng(5), 5, [0]))
    other = random_log.write(
        tmp_path / "other", schema=dataclasses.replace(SCHEMA, event=SCHEMA.event[:1])
    )
    features.build_features(other.path, tmp_path / "other_features", DataConfig())
    assert publish(tmp_path / "other_features", world.workdir, REPO).num_carried == 0
    assert "pushed events of 1 users are not carried over" in caplog.text


@pytest.mark.parametrize("step", ["write_tails", "write_online", "record_online"])
def test_a_push_killed_at_any_step_is_finished_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(pushing, "MAX_TAIL_EVENTS", 4)
    rng, users = np.random.default_rng(7), [0, 1, 2]
    first, second, third = (
        live(rng, 8, users),
        live(rng, 20, users, seq=200_000),
        live(rng, 3, [3], seq=300_000),
    )
    push(world.workdir, None, first)

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FeastAdapter if step == "write_online" else tail_files, step, kill)
        push(world.workdir, None, second)
    push(world.workdir, None, third)  # by somebody else; the killed one is not repeated
    complete = step != "write_tails"
    same_at(world, [first, third, *([second] if complete else [])], [0, 1, 2, 3], rng, 20)
    assert push(world.workdir, None, second).num_new == (0 if complete else 20)
    same_at(world, [first, second, third], [0, 1, 2, 3], rng, 20)


def test_a_base_that_is_older_than_its_tail_is_read_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "MAX_TAIL_EVENTS", 4)
    rng = np.random.default_rng(8)
    door, old = (
        OnlineStore(world.workdir)._adapter,
        OnlineStore(world.workdir)._adapter.read_online([0]),
    )
    events = live(rng, 9, [0])
    assert push(world.workdir, None, events).num_compacted == 1
    original, reads = FeastAdapter.read_online, []

    def torn(self: Any, users: list[int]) -> Any:
        reads.append(users)
        answers = original(self, users)
        if len(reads) == 1:  # the base was read before the fold, the tail after it
            answers[0][HISTORY] = old[0][HISTORY]
        return answers

    monkeypatch.setattr(FeastAdapter, "read_online", torn)
    assert door is not None and OnlineStore.fetch
    opened = OnlineStore(world.workdir)
    reads.clear()
    found = opened.fetch([0, 1])[0].history
    assert reads == [[0, 1], [0]] and history.pack(found, SCHEMA) == world.expected(
        [events], 0, 2**62, 10_000
    )
    monkeypatch.setattr(
        FeastAdapter,
        "read_online",
        lambda self, users: [{**original(self, users)[0], HISTORY: None}],
    )
    with pytest.raises(StoreError, match="a tail without its base"):
        opened.fetch([0])


def test_an_event_under_the_key_of_another_is_refused_and_nothing_is_written(world: World) -> None:
    events = live(np.random.default_rng(9), 3, [0])
    push(world.workdir, None, events)
    rows = events.to_pylist()
    changed = table_of([{**rows[0], "action": "other"}])
    with pytest.raises(
        DataError, match=r"an event of user 0 has the key of another event; found .*action='other'"
    ):
        push(world.workdir, None, changed)
    with pytest.raises(DataError, match="has the key of another event"):
        push(
            world.workdir,
            None,
            pa.concat_tables(
                [live(np.random.default_rng(1), 1, [8], seq=5), changed, events.slice(0, 1)]
            ),
        )
    assert history.pack(OnlineStore(world.workdir).fetch([0])[0].history, SCHEMA) == world.expected(
        [events], 0, 2**62, 10_000
    )
    stored = world.events.slice(0, 1).to_pylist()[0]
    with pytest.raises(DataError, match="events of one basket have different times"):
        push(
            world.workdir,
            None,
            table_of([{**stored, "timestamp": stored["timestamp"] + 1, "event_seq": 9_999}]),
        )


def test_two_versions_share_one_redis_and_a_removed_one_leaves_no_key(
    redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import redis as client_library

    world = make(tmp_path, "redis", redis, monkeypatch)
    host, port = redis.split(":")
    client, versions = client_library.Redis(host, int(port)), []
    reader = OnlineStore(world.workdir)
    for _ in range(3):
        versions.append((world.workdir / "store" / "current").resolve())
        publish(world.root / "features", world.workdir, REPO)
    counts = [
        sum(1 for _ in client.scan_iter(b"*" + redis_project(version).encode()))
        for version in versions
    ]
    assert counts[0] == counts[1] == 0 and counts[2] > 10
    assert reader.fetch([0])[0].history.num_rows > 0
    monkeypatch.delenv("LONGREC_REDIS")
    with pytest.raises(
        StoreError, match=r"the address of the online store is not set; found .*Set LONGREC_REDIS"
    ):
        OnlineStore(world.workdir)
    monkeypatch.setenv("LONGREC_REDIS", "127.0.0.1:1")
    with pytest.raises(StoreError, match="the online store cannot be read"):
        OnlineStore(world.workdir)


@pytest.mark.slow
def test_two_processes_that_push_at_once_both_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make(tmp_path, "sqlite", None, monkeypatch)
    rng, parts = np.random.default_rng(2), []
    for number in range(2):
        parts.append(live(rng, 25, [0, 1], seq=1_000 * (number + 1)))
        pq.write_table(parts[-1], tmp_path / f"{number}.parquet")
    code = (
        "import sys, pyarrow.parquet as pq; from longrec.data.store.push import Pusher\n"
        "pusher, table = Pusher(sys.argv[1]), pq.read_table(sys.argv[2])\n"
        "for row in range(0, table.num_rows, 5): pusher.push(table.slice(row, 5))"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, world.workdir, tmp_path / f"{number}.parquet"]
        )
        for number in range(2)
    ]
    assert [process.wait(600) for process in running] == [0, 0]
    same_at(world, parts, [0, 1], rng, 10)


def test_one_question_for_all_views_answers_as_feast_does_view_by_view(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "MAX_TAIL_EVENTS", 4)
    rng = np.random.default_rng(4)
    push(
        world.workdir, None, live(rng, 30, [0, 1, 2, NEW_USER])
    )  # folds, tails, a tail without a base
    push(world.workdir, None, live(rng, 3, [3], seq=200_000))
    opened, users = (
        OnlineStore(world.workdir)._adapter,
        [0, 1, 2, 3, 4, 3, *range(5, 19), HUGE, NEW_USER, NOBODY, -1, 2**63 - 1, -(2**63)],
    )
    views = [
        (
            opened.feast.get_feature_view(view.name),
            [feature.name for feature in view.features if not feature.name.endswith("_length")],
        )
        for view in opened.service.feature_view_projections
    ]
    slow, fast = ViewByViewReader(opened.feast, views)(users), opened.read_online(users)
    assert fast == slow and [opened.read_online([user])[0] for user in users] == slow
    assert all(
        type(a[name]) is type(b[name]) for a, b in zip(fast, slow, strict=True) for name in a
    )
    assert sum(row["history_tail"] is not None for row in fast) > 3 and any(
        row["city"] for row in fast
    )


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2**21 - 1, 2**21])
def test_stored_bytes_are_read_without_parsing(size: int) -> None:
    from feast.protos.feast.types.Value_pb2 import Value

    value = np.random.default_rng(size).bytes(size)
    stored = Value(bytes_val=value).SerializeToString()
    assert _parse_value(stored) == value
    if (
        size
    ):  # what is not one whole field is left to protobuf, which refuses it or knows what it means
        with pytest.raises(Exception, match="parsing"):
            _parse_value(stored[:-1])
    twice = stored + Value(int64_val=7).SerializeToString()
    assert _parse_value(twice) == 7 and _parse_value(b"") is None and _parse_value(None) is None
