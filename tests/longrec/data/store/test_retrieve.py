"""Retrieve with a real Feast: exactly the events strictly before, exact features, nothing lost."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from longrec.config import DataConfig
from longrec.data.histories import Histories, count_parts
from longrec.data.store import timeline_sources
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.push import push
from longrec.data.store.retrieve import retrieve
from longrec.errors import StoreError
from tests.longrec.data.random_log import HUGE, SCHEMA, live
from tests.longrec.data.store.published_store import REPO, SMALL, PublishedStore, make


def check_against_brute_force(store: PublishedStore, data: DataConfig) -> None:
    events = store.events()
    opened = store.histories
    requests = store.requests()
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


def test_offline_histories_are_the_events_strictly_before(store: PublishedStore) -> None:
    check_against_brute_force(store, SMALL)


@pytest.mark.parametrize("seed", [1, 2])
def test_offline_histories_of_other_datasets(tmp_path: Path, seed: int) -> None:
    data = DataConfig(
        shard_users=1 + 50 * (seed - 1), max_history=[3, 10_000][seed - 1], eval_fraction=0.5
    )
    check_against_brute_force(
        make(
            tmp_path,
            seed=seed,
            data=data,
            num_parts=seed,
            max_events=40,
        ),
        data,
    )


def test_the_dataset_holds_the_cases_that_could_leak(store: PublishedStore) -> None:
    """The random dataset has ties, events at the request time, later events and split baskets."""
    events = store.events()
    opened = store.histories
    at_request_time = later = ties = 0
    for number, request in enumerate(opened.requests.to_pylist()):
        own = events.get(opened.users.column("user_id")[request["user_row"]].as_py(), [])
        found = opened.history(number)
        siblings = {
            event["basket_id"] for event in own if event["timestamp"] >= request["timestamp"]
        }
        assert not siblings & set(found.column("basket_id").to_pylist())
        assert all(time < request["timestamp"] for time in found.column("timestamp").to_pylist())
        at_request_time += any(event["timestamp"] == request["timestamp"] for event in own)
        later += any(event["timestamp"] > request["timestamp"] for event in own)
        times = found.column("timestamp").to_pylist()
        ties += len(set(times)) < len(times)
    assert min(at_request_time, later, ties) > 10


def test_users_and_items_come_back_exact(store: PublishedStore) -> None:
    opened = store.histories
    assert opened.items.to_pylist() == store.source.items().to_pylist()
    known = {row["user_id"]: row for row in store.source.users().to_pylist()}
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


def test_the_split_is_in_time_and_complete(store: PublishedStore) -> None:
    rows = store.histories.requests.to_pylist()
    request_times = {
        name: [row["timestamp"] for row in rows if row["split"] == name]
        for name in ("warmup", "train", "validation", "eval")
    }
    for earlier, later in itertools.pairwise(request_times.values()):
        assert max(earlier) < min(later)
    assert min(request_times["eval"]) == store.histories.split_time_ms == store.report.split_time_ms
    report = store.report
    counts = (report.num_warmup, report.num_train, report.num_validation, report.num_eval)
    assert counts == tuple(len(part) for part in request_times.values())
    assert (
        store.histories.manifest["parts"] == report.parts == count_parts(store.histories.requests)
    )
    assert report.num_requests == len(rows) == store.source.facts["num_requests"]
    assert report.num_targets == store.source.facts["num_targets"]


def test_the_report_counts_what_is_special(store: PublishedStore) -> None:
    opened = store.histories
    report = store.report
    lengths = [row["event_end"] - row["event_start"] for row in opened.requests.to_pylist()]
    assert report.users_without_history == 2  # NO_EVENTS and NOBODY
    assert report.requests_without_history == lengths.count(0) > 0
    assert report.longest_history == max(lengths) == SMALL.max_history
    assert 0 < report.requests_at_the_bound <= lengths.count(SMALL.max_history)
    assert report.num_events == sum(len(events) for events in store.events().values())


def test_a_sample_of_requests_is_seeded_and_keeps_their_order(
    store: PublishedStore, tmp_path: Path
) -> None:
    data = dataclasses.replace(SMALL, max_requests=11)
    chosen = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        report = retrieve(
            store.source.path,
            store.workdir,
            REPO,
            tmp_path / name,
            data,
            seed,
        )
        opened = Histories.open(tmp_path / name)
        chosen.append(opened.requests.column("request_id").to_pylist())
        assert report.num_requests == 11
        assert opened.targets.num_rows == report.num_targets
        for number, request in enumerate(opened.requests.to_pylist()):
            everything = next(
                row for row in store.requests() if row["request_id"] == request["request_id"]
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
    one = np.zeros(9, np.int64)
    two = np.array([0, 0, 1, 1, 1, 1, 1, 3, 3])
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
    bare = dataclasses.replace(
        SCHEMA,
        item=SCHEMA.item[:1],
        user=(),
        event=(),
        has_baskets=False,
    )
    store = make(tmp_path, schema=bare)
    check_against_brute_force(store, SMALL)
    assert store.histories.items.schema.names == ["item_id"]
    answer = OnlineStore(store.workdir).fetch([0])[0]
    assert answer.features is None
    assert answer.history.num_rows == len(store.events()[0])


def test_a_row_that_feast_loses_is_noticed(
    store: PublishedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        retrieve(
            store.source.path,
            store.workdir,
            REPO,
            tmp_path / "out",
            SMALL,
            0,
        )
    assert not (tmp_path / "out").exists()


def test_the_same_tables_published_again_give_the_same_files(
    store: PublishedStore, private_store: PublishedStore, tmp_path: Path
) -> None:
    push(
        private_store.workdir, None, live(np.random.default_rng(0), 5, [0, 1])
    )  # is not in what is trained on
    retrieve(
        store.source.path,
        private_store.workdir,
        REPO,
        tmp_path / "again",
        SMALL,
        0,
    )
    for path in (store.root / "histories").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
