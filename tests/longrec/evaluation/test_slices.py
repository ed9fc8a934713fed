"""Compare slices with loops over the raw rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from longrec.config import EvaluateConfig
from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.evaluation import slices
from longrec.evaluation.sample import EvaluationSample, draw_sample
from longrec.training.encoded_cache import fit_encoder
from tests.longrec import small_histories

DAY_MS = 86_400_000
UNKNOWN_ITEM = 42
"""Item of a target that the item table does not hold."""


class Sampled(NamedTuple):
    histories: Histories
    encoded: EncodedHistories
    sample: EvaluationSample


class Target(NamedTuple):
    request: int
    item: int
    request_time: int
    user_row: int


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    folder = tmp_path_factory.mktemp("data")
    path = small_histories.write(folder / "histories", num_users=30)
    histories = Histories.open(path)
    encoder = fit_encoder(histories)
    encoded = EncodedHistories.encode(histories, encoder, folder / "encoded")
    sample = draw_sample(encoded, EvaluateConfig(bootstrap_samples=2), 0)
    return Sampled(histories, encoded, sample)


def evaluated_targets(histories: Histories) -> list[Target]:
    """Return every evaluated target."""
    items = histories.targets["item_id"].to_pylist()
    targets = []
    for place, request in enumerate(histories.requests.to_pylist()):
        if request["split"] != "eval":
            continue
        for item in items[request["target_start"] : request["target_end"]]:
            targets.append(
                Target(
                    place,
                    item,
                    request["timestamp"],
                    request["user_row"],
                )
            )
    return targets


def events(histories: Histories) -> list[tuple[int, int]]:
    """Return item and time of every event."""
    pairs = []
    for batch in histories.event_batches():
        items = batch["item_id"].to_pylist()
        times = batch["timestamp"].to_pylist()
        pairs += zip(items, times, strict=True)
    return pairs


def test_item_age_is_the_time_since_its_first_event(sampled: Sampled) -> None:
    first: dict[int, int] = {}
    for item, time in events(sampled.histories):
        first[item] = min(time, first.get(item, time))
    expected = []
    for target in evaluated_targets(sampled.histories):
        first_time = first.get(target.item, target.request_time)
        is_known = first_time < target.request_time
        age = (target.request_time - first_time) // DAY_MS
        expected.append(age if is_known else -1)
    found = slices.item_ages(sampled.encoded, sampled.sample)
    np.testing.assert_array_equal(found, expected)


def test_activity_counts_the_last_days(sampled: Sampled, monkeypatch: pytest.MonkeyPatch) -> None:
    day_ms = 100_000
    monkeypatch.setattr(slices, "DAY_MS", day_ms)
    histories = sampled.histories
    expected = []
    for target in evaluated_targets(histories):
        times = histories.history(target.request)["timestamp"].to_pylist()
        earliest = target.request_time - 28 * day_ms
        expected.append(sum(time >= earliest for time in times))
    found = slices.user_activity(sampled.encoded, sampled.sample)
    np.testing.assert_array_equal(found, expected)
    longest = max(len(histories.history(place)) for place in range(5, 50))
    assert 0 < found.min() + 1 <= found.max() < longest + 60


def test_cold_start_is_what_training_did_not_see(sampled: Sampled) -> None:
    histories = sampled.histories
    requests = histories.requests.to_pylist()
    target_items = histories.targets["item_id"].to_pylist()
    trained = [request for request in requests if request["split"] == "train"]
    last = max(request["timestamp"] for request in trained)
    users = {request["user_row"] for request in trained}
    items = {item for item, time in events(histories) if time <= last}
    for request in trained:
        items.update(target_items[request["target_start"] : request["target_end"]])
    item_table = set(histories.items["item_id"].to_pylist())
    expected_users = []
    expected_items = []
    for target in evaluated_targets(histories):
        expected_users.append(target.user_row in users)
        # All items outside the table share one row of the encoder.
        is_unknown = target.item not in item_table
        is_seen = target.item in items or (is_unknown and UNKNOWN_ITEM in items)
        expected_items.append(is_seen)
    found_users, found_items = slices.seen_in_training(sampled.encoded, sampled.sample)
    np.testing.assert_array_equal(found_users, expected_users)
    np.testing.assert_array_equal(found_items, expected_items)


@pytest.mark.parametrize("family", ["history", "item age", "activity"])
def test_every_target_is_in_one_slice_of_a_family(family: str, sampled: Sampled) -> None:
    found = list(slices.iterate_slices(sampled.encoded, sampled.sample, 32))
    masks = [part.mask for part in found if part.family == family]
    assert (np.stack(masks).sum(0) == 1).all()


def test_no_slice_is_empty_and_every_name_is_unique(sampled: Sampled) -> None:
    found = list(slices.iterate_slices(sampled.encoded, sampled.sample, 32))
    assert all(part.mask.any() for part in found)
    names = {(part.family, part.name) for part in found}
    assert len(names) == len(found)
