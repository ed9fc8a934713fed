"""Slices against loops over the raw rows."""

from __future__ import annotations

import numpy as np
import pytest

from longrec.config import EvaluateConfig
from longrec.data.histories import Histories
from longrec.data.loader import EncodedHistories
from longrec.evaluation import slices
from longrec.evaluation.sample import EvaluationSample, draw_sample
from longrec.training.encoded_cache import fit_encoder
from tests.longrec import small_histories

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Histories, EncodedHistories, EvaluationSample]:
    folder = tmp_path_factory.mktemp("world")
    histories = Histories.open(small_histories.write(folder / "histories", num_users=30))
    encoded = EncodedHistories.make(histories, fit_encoder(histories), folder / "encoded")
    return histories, encoded, draw_sample(encoded, EvaluateConfig(bootstrap_samples=2), 0)


def rows(histories: Histories) -> list[tuple[int, int, int, int]]:
    """(request row, item, moment, user) of every evaluated target."""
    items, requests = histories.targets["item_id"].to_pylist(), histories.requests.to_pylist()
    return [
        (place, item, request["timestamp"], request["user_row"])
        for place, request in enumerate(requests)
        if request["split"] == "eval"
        for item in items[request["target_start"] : request["target_end"]]
    ]


def test_item_age_is_the_time_since_its_first_event(
    world: tuple[Histories, EncodedHistories, EvaluationSample],
) -> None:
    histories, encoded, sample = world
    first: dict[int, int] = {}
    for batch in histories.event_batches():
        for item, time in zip(
            batch["item_id"].to_pylist(), batch["timestamp"].to_pylist(), strict=True
        ):
            first[item] = min(time, first.get(item, time))
    expected = [
        (request_time - first[item]) // DAY_MS
        if first.get(item, request_time) < request_time
        else -1
        for _, item, request_time, _ in rows(histories)
    ]
    np.testing.assert_array_equal(slices.item_ages(encoded, sample), expected)


def test_activity_counts_the_last_days(
    world: tuple[Histories, EncodedHistories, EvaluationSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    histories, encoded, sample = world
    monkeypatch.setattr(slices, "DAY_MS", 100_000)
    expected = [
        sum(
            time >= request_time - 28 * 100_000
            for time in histories.history(place)["timestamp"].to_pylist()
        )
        for place, _, request_time, _ in rows(histories)
    ]
    found = slices.user_activity(encoded, sample)
    np.testing.assert_array_equal(found, expected)
    assert (
        0
        < found.min() + 1
        <= found.max()
        < max(len(histories.history(place)) for place in range(5, 50)) + 60
    )


def test_cold_start_is_what_training_did_not_see(
    world: tuple[Histories, EncodedHistories, EvaluationSample],
) -> None:
    histories, encoded, sample = world
    requests, targets = histories.requests.to_pylist(), histories.targets["item_id"].to_pylist()
    trained = [request for request in requests if request["split"] == "train"]
    last = max(request["timestamp"] for request in trained)
    users = {request["user_row"] for request in trained}
    items = {
        item
        for request in trained
        for item in targets[request["target_start"] : request["target_end"]]
    }
    for batch in histories.event_batches():
        items |= {
            item
            for item, time in zip(
                batch["item_id"].to_pylist(), batch["timestamp"].to_pylist(), strict=True
            )
            if time <= last
        }
    known = set(histories.items["item_id"].to_pylist())
    user, item = slices.seen_in_training(encoded, sample)
    np.testing.assert_array_equal(user, [row[3] in users for row in rows(histories)])
    np.testing.assert_array_equal(
        item, [row[1] in items or (row[1] not in known and 42 in items) for row in rows(histories)]
    )


def test_every_family_parts_the_targets(
    world: tuple[Histories, EncodedHistories, EvaluationSample],
) -> None:
    _, encoded, sample = world
    found = list(slices.iterate_slices(encoded, sample, 32))
    for family in ("history", "item age", "activity"):
        masks = np.stack([mask for name, _, mask in found if name == family])
        assert (masks.sum(0) == 1).all()
    assert all(mask.any() for _, _, mask in found) and len(
        {(family, name) for family, name, _ in found}
    ) == len(found)
