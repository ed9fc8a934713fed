"""Requests are divided into warm-up, training, validation and evaluation."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrec.config import DataConfig
from longrec.data.histories import Histories, count_parts
from longrec.data.histories_writer import MIN_VALIDATION_REQUESTS, RequestSplit, split_requests
from longrec.errors import ConfigError
from longrec.training.encoded_cache import fit_encoder
from tests.longrec import small_histories

BY_TIME = DataConfig(warmup_fraction=0.1, validation_fraction=0.15, eval_fraction=0.2)
BY_USER = DataConfig(split="user", leave_last=2)
ORDER = ("warmup", "train", "validation", "eval")


def split(
    times: list[int],
    data: DataConfig,
    *,
    users: list[int] | None = None,
    num_targets: list[int] | None = None,
) -> RequestSplit:
    ones = [1] * len(times)
    return split_requests(
        np.array(times, np.int64),
        np.array(users or ones, np.int64),
        np.array(num_targets or ones, np.int64),
        data,
    )


def test_distinct_times_are_split_by_their_shares() -> None:
    found = split(list(range(0, 700, 7)), BY_TIME)
    parts = ["warmup"] * 10 + ["train"] * 55 + ["validation"] * 15 + ["eval"] * 20
    assert list(found.names) == parts
    assert (found.warmup_end, found.train_end, found.eval_start) == (70, 455, 560)
    assert not found.note


def test_without_validation_the_training_reaches_up_to_the_evaluation() -> None:
    data = dataclasses.replace(BY_TIME, validation_fraction=0.0)
    found = split(list(range(100)), data)
    assert list(found.names) == ["warmup"] * 10 + ["train"] * 70 + ["eval"] * 20
    assert found.train_end == found.eval_start == 80


def test_shares_can_count_targets() -> None:
    data = dataclasses.replace(BY_TIME, share_of="targets", warmup_fraction=0.0)
    # the early half of the requests has nine times as many targets
    num_targets = [9] * 500 + [1] * 500
    found = split(list(range(1000)), data, num_targets=num_targets)
    targets: Counter[str] = Counter()
    for name, count in zip(found.names, num_targets, strict=True):
        targets[name] += count
    assert targets["eval"] == pytest.approx(0.2 * 5000, abs=9)
    assert targets["validation"] == pytest.approx(0.15 * 5000, abs=9)
    assert found.names.count("eval") > 500


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=120),
    st.floats(0, 0.3),
    st.floats(0, 0.3),
    st.floats(0, 0.3),
)
def test_requests_of_one_time_are_in_one_part(
    values: list[int],
    warmup: float,
    validation: float,
    evaluation: float,
) -> None:
    times = sorted(values)
    data = DataConfig(
        warmup_fraction=warmup,
        validation_fraction=validation,
        eval_fraction=evaluation,
    )
    found = split(times, data)
    parts_of_times = set(zip(times, found.names, strict=True))
    assert len(parts_of_times) == len(set(values))
    positions = [ORDER.index(name) for name in found.names]
    assert positions == sorted(positions)
    assert found.names.count("eval") >= round(len(times) * evaluation)
    num_validation = found.names.count("validation")
    assert num_validation == 0 or num_validation >= MIN_VALIDATION_REQUESTS
    if num_validation:
        assert "train" in found.names
        assert not found.note


@pytest.mark.parametrize(
    ("times", "note"),
    [
        (list(range(40)), "6 requests to validate on, below 10"),
        ([1] * 50 + [2] * 12, "no request would be left to train on"),
        ([1] * 50, "0 requests to validate on"),
    ],
)
def test_a_small_log_has_no_validation_and_the_reason_is_stated(
    times: list[int],
    note: str,
) -> None:
    data = dataclasses.replace(BY_TIME, warmup_fraction=0.0)
    found = split(times, data)
    assert "validation" not in found.names
    assert found.note.startswith(note)


def test_the_last_requests_of_each_user_are_held_out() -> None:
    users = [user for _ in range(6) for user in range(20)]
    found = split(list(range(120)), BY_USER, users=users)
    for user in range(20):
        own = [name for name, owner in zip(found.names, users, strict=True) if owner == user]
        assert own == ["train"] * 2 + ["validation"] * 2 + ["eval"] * 2
    assert (found.train_end, found.eval_start) == (40, 80)


def test_a_user_with_too_few_requests_is_only_trained_on() -> None:
    users = [user for _ in range(6) for user in range(20)] + [99] * 4
    found = split(list(range(124)), BY_USER, users=users)
    assert found.names[-4:] == ("train",) * 4


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=150))
def test_within_a_user_no_part_overlaps_a_later_one(requests: list[tuple[int, int]]) -> None:
    ordered = sorted(requests)
    times = [time for time, _ in ordered]
    users = [user for _, user in ordered]
    found = split(times, BY_USER, users=users)
    last: dict[int, tuple[int, int]] = {}
    for time, user, name in zip(times, users, found.names, strict=True):
        part = ORDER.index(name)
        last_time, last_part = last.get(user, (-1, 0))
        assert part >= last_part
        assert part == last_part or last_time < time or last_time == -1
        last[user] = (time, part)


def test_fractions_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(ConfigError, match="no request is left to train on"):
        DataConfig(eval_fraction=0.5, validation_fraction=0.5)
    DataConfig(eval_fraction=0.9, split="user")


def test_the_parts_are_counted_by_requests_targets_and_users(tmp_path: Path) -> None:
    histories = Histories.open(small_histories.write(tmp_path / "h", validation_fraction=0.2))
    parts = count_parts(histories.requests)
    assert list(parts) == list(ORDER)
    rows = histories.requests.to_pylist()
    for name, counts in parts.items():
        own = [row for row in rows if row["split"] == name]
        assert counts == {
            "requests": len(own),
            "targets": sum(row["target_end"] - row["target_start"] for row in own),
            "users": len({row["user_row"] for row in own}),
        }
    assert parts["validation"]["requests"] > 50


@pytest.mark.parametrize("split_kind", ["time", "user"])
def test_the_training_window_ends_before_the_first_held_out_request(
    tmp_path: Path,
    split_kind: str,
) -> None:
    path = small_histories.write(tmp_path / "h", validation_fraction=0.2, split=split_kind)
    histories = Histories.open(path)
    ends: dict[int, int] = {}
    for row in histories.requests.to_pylist():
        if row["split"] in ("validation", "eval"):
            owner = row["user_row"] if split_kind == "user" else -1
            ends[owner] = min(ends.get(owner, row["timestamp"]), row["timestamp"])
    expected = []
    for user in range(histories.users.num_rows):
        end = ends.get(user if split_kind == "user" else -1, 2**62)
        times = histories.timeline(user).column("timestamp").to_pylist()
        expected += [time for time in times if time < end]
    found = [
        time for batch in histories.training_events() for time in batch["timestamp"].to_pylist()
    ]
    assert found == expected
    assert 0 < len(found) < histories.num_events
    assert fit_encoder(histories).fingerprint
