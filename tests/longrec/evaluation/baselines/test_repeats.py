"""Compare the repeats of targets with loops over the raw rows of their histories."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from longrec.config import EvaluateConfig
from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.evaluation.baselines.features import TargetFeatures
from longrec.evaluation.baselines.repeats import HistorySpans, find_repeats
from longrec.evaluation.sample import draw_sample
from longrec.training.encoded_cache import fit_encoder
from tests.longrec import small_histories


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> Histories:
    folder = tmp_path_factory.mktemp("data")
    return Histories.open(small_histories.write(folder / "histories", num_users=20))


def features_of(histories: Histories, folder: Path) -> tuple[TargetFeatures, np.ndarray]:
    """Return the features of the evaluation targets, and their positions."""
    encoded = EncodedHistories.encode(histories, fit_encoder(histories), folder / "encoded")
    sample = draw_sample(encoded, EvaluateConfig(bootstrap_samples=2), 0)
    positions = sample.target_positions
    features = TargetFeatures.compute(histories, encoded, positions, sample.target_requests)
    return features, positions


def feature_values(histories: Histories, name: str) -> dict[int, object]:
    """Return the value of a feature by item id; the item itself for `item_id`."""
    items = histories.items
    return dict(zip(items["item_id"].to_pylist(), items[name].to_pylist(), strict=True))


@pytest.mark.parametrize("name", ["item_id", "topic"])
def test_repeats_equal_a_loop_over_raw_events(
    name: str, histories: Histories, tmp_path: Path
) -> None:
    features, positions = features_of(histories, tmp_path)
    found = dict(zip(positions.tolist(), zip(*features.repeats[name], strict=True), strict=True))
    values = feature_values(histories, name)
    items = histories.targets["item_id"].to_pylist()
    num_repeated = 0
    for row, request in enumerate(histories.requests.to_pylist()):
        if request["split"] != "eval":
            continue
        events = histories.history(row).to_pylist()
        for target in range(request["target_start"], request["target_end"]):
            item = items[target]
            value = values.get(item, item if name == "item_id" else None)
            times = [
                event["timestamp"]
                for event in events
                if value is not None
                and values.get(event["item_id"], event["item_id"] if name == "item_id" else None)
                == value
            ]
            count, gap = found[target]
            assert count == len(times)
            if times:
                last = max(
                    time.timestamp() if hasattr(time, "timestamp") else time for time in times
                )
                asked = request["timestamp"]
                assert gap == pytest.approx((asked - last) / 1_000)
                num_repeated += 1
            else:
                assert np.isnan(gap)
    assert num_repeated > 10


def test_numbers_have_no_repeats(histories: Histories, tmp_path: Path) -> None:
    features, _ = features_of(histories, tmp_path)
    assert list(features.repeats) == ["item_id", "topic"]


def test_a_missing_value_matches_nothing() -> None:
    spans = HistorySpans(
        event_times=np.array([1_000, 2_000]),
        starts=np.array([0, 0]),
        ends=np.array([2, 2]),
        request_times=np.array([5_000, 5_000]),
    )
    counts, gaps = find_repeats(np.array([-1, 7]), np.array([-1, 7]), spans)
    assert counts.tolist() == [0, 1]
    assert np.isnan(gaps[0])
    assert gaps[1] == 3.0


def test_events_outside_of_the_span_are_no_repeats() -> None:
    spans = HistorySpans(
        event_times=np.array([1, 2, 3, 4]),
        starts=np.array([1, 4, 0]),
        ends=np.array([3, 4, 4]),
        request_times=np.array([9, 9, 9]),
    )
    counts, _ = find_repeats(np.zeros(4, np.int32), np.zeros(3, np.int32), spans)
    assert counts.tolist() == [2, 0, 4]


def test_without_events_nothing_repeats() -> None:
    nothing = np.zeros(0, np.int64)
    spans = HistorySpans(nothing, np.array([0]), np.array([0]), np.array([9]))
    counts, gaps = find_repeats(np.zeros(0, np.int32), np.array([3]), spans)
    assert counts.tolist() == [0]
    assert np.isnan(gaps).all()


def test_nothing_after_the_split_counts_for_the_items(histories: Histories, tmp_path: Path) -> None:
    encoded = EncodedHistories.encode(histories, fit_encoder(histories), tmp_path / "encoded")
    sample = draw_sample(encoded, EvaluateConfig(bootstrap_samples=2), 0)
    rows = (sample.target_positions, sample.target_requests)
    before = TargetFeatures.compute(histories, encoded, *rows)
    assert before.item_counts.std() > 0
    labels = np.array(encoded.labels)
    labels[sample.target_positions] = 1 - labels[sample.target_positions]
    relabeled = dataclasses.replace(encoded, labels=labels)
    after = TargetFeatures.compute(histories, relabeled, *rows)
    np.testing.assert_array_equal(after.item_rates, before.item_rates)
    np.testing.assert_array_equal(after.user_rates, before.user_rates)
    changed = with_other_later_events(histories)
    after = TargetFeatures.compute(changed, encoded, *rows)
    np.testing.assert_array_equal(after.item_counts, before.item_counts)


def with_other_later_events(histories: Histories) -> Histories:
    """Return the histories with one item in all events of the last batch after the split."""
    *earlier, last = histories.batches
    times = np.asarray(last.column("timestamp"))
    items = np.asarray(last.column("item_id")).copy()
    items[times >= histories.split_time_ms] = small_histories.FIRST_ID
    assert not np.array_equal(items, np.asarray(last.column("item_id")))
    place = last.schema.get_field_index("item_id")
    changed = last.set_column(place, last.schema.field("item_id"), pa.array(items))
    return dataclasses.replace(histories, batches=(*earlier, changed))
