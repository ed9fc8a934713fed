"""Item rates: what training targets say of items, without a target's own label."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.data.loading.item_rates import ItemRates
from longrec.data.loading.label_rates import PRIOR_STRENGTH
from tests.longrec.data.loading.streams import FULL, training_stream

NUM_TOPICS = 3


@pytest.fixture(scope="module")
def values(encoded: EncodedHistories) -> np.ndarray:
    """Return the values of two columns: each item, and a topic of every third item."""
    items = np.arange(encoded.target_items.max() + 1)
    return np.stack([items, items % NUM_TOPICS], axis=1)


def compute(encoded: EncodedHistories, values: np.ndarray) -> ItemRates:
    return ItemRates.compute(encoded, values, (len(values), NUM_TOPICS))


def log_odds(rate: float) -> float:
    return math.log(rate / (1 - rate))


def test_rates_equal_a_loop_over_earlier_training_targets(
    encoded: EncodedHistories, values: np.ndarray
) -> None:
    rates = compute(encoded, values)
    train = encoded.requests("train")
    rows = [
        (encoded.request_timestamps[request], target)
        for request in train
        for target in range(encoded.target_starts[request], encoded.target_ends[request])
    ]
    for time, target in rows[:: len(rows) // 60]:
        for column in range(2):
            value = values[encoded.target_items[target], column]
            before = [row for earlier, row in rows if earlier < time]
            same = [row for row in before if values[encoded.target_items[row], column] == value]
            labels = encoded.labels[:, 0]
            prior = np.clip(labels[before].mean(), 1e-3, 1 - 1e-3) if before else 0.5
            positives = labels[same].sum() + PRIOR_STRENGTH * prior
            rate = positives / (len(same) + PRIOR_STRENGTH)
            found = rates.of_targets[target, column]
            assert found[0] == pytest.approx(log_odds(rate) - log_odds(prior), abs=1e-5)
            share = len(same) / (len(same) + PRIOR_STRENGTH)
            assert found[-1] == pytest.approx(share, abs=1e-5)


def test_no_target_sees_its_own_label(encoded: EncodedHistories, values: np.ndarray) -> None:
    before = compute(encoded, values).of_targets
    train = encoded.requests("train")
    last = train[-1]
    targets = slice(encoded.target_starts[last], encoded.target_ends[last])
    labels = np.array(encoded.labels)
    labels[targets] = 1 - labels[targets]
    after = compute(dataclasses.replace(encoded, labels=labels), values)
    np.testing.assert_array_equal(after.of_targets[targets], before[targets])


def test_labels_after_the_training_change_nothing(
    encoded: EncodedHistories, values: np.ndarray
) -> None:
    before = compute(encoded, values)
    labels = np.array(encoded.labels)
    for request in encoded.requests("eval"):
        targets = slice(encoded.target_starts[request], encoded.target_ends[request])
        labels[targets] = 1 - labels[targets]
    after = compute(dataclasses.replace(encoded, labels=labels), values)
    np.testing.assert_array_equal(after.of_targets, before.of_targets)
    np.testing.assert_array_equal(after.of_values, before.of_values)


def test_the_rates_of_values_know_all_training_targets(
    encoded: EncodedHistories, values: np.ndarray
) -> None:
    rates = compute(encoded, values)
    train = encoded.requests("train")
    num_targets = (encoded.target_ends - encoded.target_starts)[train].sum()
    shares = rates.of_values[:, -1].astype(np.float64)
    shown = PRIOR_STRENGTH * shares / (1 - shares)
    assert shown[len(values) :].sum() == pytest.approx(num_targets, rel=1e-3)
    assert shown[: len(values)].sum() == pytest.approx(num_targets, rel=1e-3)


def test_a_value_that_no_training_target_has_is_neutral(
    encoded: EncodedHistories, values: np.ndarray
) -> None:
    wider = ItemRates.compute(encoded, values, (len(values) + 1, NUM_TOPICS))
    assert (wider.of_values[len(values)] == 0).all()


def test_batches_hold_the_rates_of_their_targets(
    encoded: EncodedHistories, values: np.ndarray
) -> None:
    rates = compute(encoded, values)
    with_rates = dataclasses.replace(encoded, target_rates=rates.of_targets)
    stream = training_stream(with_rates, FULL)
    for batch, positions in zip(stream, _positions_of_batches(stream), strict=True):
        batch.validate()
        assert batch.target_rates is not None
        np.testing.assert_array_equal(batch.target_rates.numpy(), rates.of_targets[positions])


def _positions_of_batches(stream) -> list[np.ndarray]:  # type: ignore[no-untyped-def]
    encoded = stream.encoded
    positions = []
    for number in stream.batch_numbers:
        requests = stream.requests[stream.bounds[number] : stream.bounds[number + 1]]
        spans = zip(encoded.target_starts[requests], encoded.target_ends[requests], strict=True)
        positions.append(np.concatenate([np.arange(*span) for span in spans]))
    return positions
