"""Histories through a real Feast: exactly the events strictly before, users and items as they were,
nothing lost.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from longrec.config import DataConfig
from longrec.data.histories import Histories
from longrec.data.store import timeline_sources
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.push import push
from longrec.data.store.retrieve import retrieve
from longrec.errors import StoreError
from tests.longrec.data.random_log import HUGE, SCHEMA, live
from tests.longrec.data.store.worlds import REPO, SMALL, World, make


def check_against_brute_force(world: World, data: DataConfig) -> None:
    events, opened, requests = world.events(), world.histories, world.requests()
    rows = opened.requests.to_pylist()
    assert [row["request_id"] for row in rows] == [request["request_id"] for request in requests]
    for number, (row, request) in enumerate(zip(rows, requests, strict=True)):
        before = [
            event
            for event in events.get(request["user_id"], [])
            if event["timestamp"] < request["timestamp"]
        ]
        expected = before[max(0, len(before) - data.max_history) :]
        found = opened.history(number)
        for name in found.schema.names:
            assert repr(found.column(name).to_pylist()) == repr(
                [event[name] for event in expected]
            ), (row, name)
        assert opened.users.column("user_id")[row["user_row"]].as_py() == request["user_id"]
        targets = opened.targets.slice(row["target_start"], row["target_end"] - row["target_start"])
        assert list(zip(*targets.to_pydict().values(), strict=True)) == request["targets"]


def test_offline_histories_are_the_events_strictly_before(world: World) -> None:
    check_against_brute_force(world, SMALL)


@pytest.mark.parametrize("seed", [1, 2])
def test_offline_histories_of_other_worlds(tmp_path: Path, seed: int) -> None:
    data = DataConfig(
        shard_users=1 + 50 * (seed - 1), max_history=[3, 10_000][seed - 1], eval_fraction=0.5
    )
    check_against_brute_force(
        make(tmp_path, seed=seed, data=data, num_parts=seed, max_events=40), data
    )


def test_the_cases_that_leak_are_in_the_world_and_do_not(world: World) -> None:
    """Not a property of the code: the random world has ties, events at the moment, later events and
    baskets at the boundary.
    """
    events, opened = world.events(), world.histories
    at_moment = later = ties = 0
    for number, request in enumerate(opened.requests.to_pylist()):
        mine = events.get(opened.users.column("user_id")[request["user_row"]].as_py(), [])
        found = opened.history(number)
        siblings = {
            event["basket_id"] for event in mine if event["timestamp"] >= request["timestamp"]
        }
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
        assert {name: row[name] for name in ("inviter", "group", "age", "city")} == {
            name: expected[name] for name in ("inviter", "group", "age", "city")
        }
        assert row["score"] == (0.1 if expected["score"] == 0.1 else None)
    assert {HUGE, -HUGE, None} == set(opened.users.column("inviter").to_pylist())
    assert HUGE + 1 in opened.users.column("group").to_pylist()
    assert [row["user_row"] for row in opened.users.to_pylist()] == list(
        range(opened.users.num_rows)
    )


def test_the_split_is_in_time_and_complete(world: World) -> None:
    rows = world.histories.requests.to_pylist()
    request_times = {
        name: [row["timestamp"] for row in rows if row["split"] == name]
        for name in ("warmup", "train", "eval")
    }
    assert max(request_times["warmup"]) < min(request_times["train"]) and max(
        request_times["train"]
    ) < min(request_times["eval"])
    assert min(request_times["eval"]) == world.histories.split_time_ms == world.report.split_time_ms
    report = world.report
    assert (report.num_warmup, report.num_train, report.num_eval) == tuple(
        len(part) for part in request_times.values()
    )
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


def test_a_sample_of_requests_is_seeded_and_keeps_their_order(world: World, tmp_path: Path) -> None:
    data = dataclasses.replace(SMALL, max_requests=11)
    chosen = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        report = retrieve(world.source.path, world.workdir, REPO, tmp_path / name, data, seed)
        opened = Histories.open(tmp_path / name)
        chosen.append(opened.requests.column("request_id").to_pylist())
        assert report.num_requests == 11 and opened.targets.num_rows == report.num_targets
        for number, request in enumerate(opened.requests.to_pylist()):
            everything = next(
                row for row in world.requests() if row["request_id"] == request["request_id"]
            )
            targets = opened.targets.slice(
                request["target_start"], request["target_end"] - request["target_start"]
            )
            assert targets.column("item_id").to_pylist() == [
                item for item, _, _ in everything["targets"]
            ]
            assert opened.history(number).num_rows <= 9
    assert chosen[0] == chosen[1] != chosen[2]


def test_groups_are_bounded_in_users_and_events_and_are_of_one_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timeline_sources, "MAX_GROUP_EVENTS", 10)
    lengths = np.array([3, 4, 3, 1, 50, 0, 0, 9, 2])
    one, two = np.zeros(9, np.int64), np.array([0, 0, 1, 1, 1, 1, 1, 3, 3])
    assert list(timeline_sources._user_groups(lengths, one, 100)) == [
        (0, 3),
        (3, 4),
        (4, 5),
        (5, 8),
        (8, 9),
    ]
    assert list(timeline_sources._user_groups(lengths, one, 2)) == [
        (0, 2),
        (2, 4),
        (4, 5),
        (5, 7),
        (7, 8),
        (8, 9),
    ]
    assert list(timeline_sources._user_groups(lengths, two, 100)) == [
        (0, 2),
        (2, 4),
        (4, 5),
        (5, 7),
        (7, 8),
        (8, 9),
    ]


def test_a_schema_without_user_and_item_features(tmp_path: Path) -> None:
    bare = dataclasses.replace(SCHEMA, item=SCHEMA.item[:1], user=(), event=(), has_baskets=False)
    world = make(tmp_path, schema=bare)
    check_against_brute_force(world, SMALL)
    assert world.histories.items.schema.names == ["item_id"]
    answer = OnlineStore(world.workdir).fetch([0])[0]
    assert answer.features is None and answer.history.num_rows == len(world.events()[0])


def test_a_row_that_feast_loses_is_noticed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from feast import FeatureStore

    original = FeatureStore.get_historical_features

    class Job:
        def __init__(self, job: Any) -> None:
            self.job = job

        def to_arrow(self) -> pa.Table:
            return self.job.to_arrow().slice(1)

    monkeypatch.setattr(
        FeatureStore,
        "get_historical_features",
        lambda *args, **options: Job(original(*args, **options)),
    )
    with pytest.raises(
        StoreError, match="did not return one row per id; found 21 rows; expected 22 rows"
    ):
        retrieve(world.source.path, world.workdir, REPO, tmp_path / "out", SMALL, 0)
    assert not (tmp_path / "out").exists()


def test_the_same_tables_published_again_give_the_same_files(
    world: World, own_world: World, tmp_path: Path
) -> None:
    push(
        own_world.workdir, None, live(np.random.default_rng(0), 5, [0, 1])
    )  # is not in what is trained on
    retrieve(world.source.path, own_world.workdir, REPO, tmp_path / "again", SMALL, 0)
    for path in (world.root / "histories").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
