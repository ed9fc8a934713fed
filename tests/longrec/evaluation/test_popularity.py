"""Compare the popularity baseline with loops over raw rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.evaluation.evaluate import EvaluationReport
from longrec.evaluation.popularity import PRIOR_STRENGTH, PopularityScores, smoothed_rates
from longrec.evaluation.sample import draw_sample
from longrec.scoring.scorer import Scorer
from tests.longrec import small_histories
from tests.longrec.evaluation.evaluations import CONFIG


def test_popularity_equals_a_loop_and_is_the_better_of_two(
    histories_dir: Path, predictions: pa.Table, report: EvaluationReport
) -> None:
    histories = Histories.open(histories_dir)
    clicks = clicks_by_item(histories)
    counts = events_by_item(histories)
    num_impressions = sum(len(labels) for labels in clicks.values())
    prior = sum(map(sum, clicks.values())) / num_impressions
    rates = []
    for item in predictions["item_id"].to_pylist():
        shown = clicks.get(item, [])
        smoothed = sum(shown) + PRIOR_STRENGTH * prior
        rates.append(smoothed / (len(shown) + PRIOR_STRENGTH))
    labels = np.asarray(predictions["click_label"])
    item_counts = [counts.get(item, 0) for item in predictions["item_id"].to_pylist()]
    aucs = {
        "rate": roc_auc_score(labels, rates),
        "count": roc_auc_score(labels, item_counts),
    }
    popularity = report.popularity["click"]
    assert popularity["name"] == max(aucs, key=aucs.__getitem__)
    assert popularity["auc"] == pytest.approx(max(aucs.values()))
    gain = report.metrics["click"]["auc"] - max(aucs.values())
    assert report.gain["click"]["value"] == pytest.approx(gain)


def clicks_by_item(histories: Histories) -> dict[int, list[int]]:
    """Return the labels of each item before the evaluation split."""
    clicks: dict[int, list[int]] = {}
    targets = histories.targets.to_pylist()
    for request in histories.requests.to_pylist():
        if request["split"] == "eval":
            continue
        for target in targets[request["target_start"] : request["target_end"]]:
            clicks.setdefault(target["item_id"], []).append(target["click"])
    return clicks


def events_by_item(histories: Histories) -> dict[int, int]:
    """Return the number of events of each item before the split time."""
    counts: dict[int, int] = {}
    for batch in histories.event_batches():
        items = batch.column("item_id").to_pylist()
        times = batch.column("timestamp").to_pylist()
        for item, time in zip(items, times, strict=True):
            if time < histories.split_time_ms:
                counts[item] = counts.get(item, 0) + 1
    return counts


def test_popularity_uses_nothing_from_the_evaluation(
    histories_dir: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    """Other labels of later requests and other later events leave the scores as they are."""
    histories = Histories.open(histories_dir)
    encoder = Scorer.load(bundle_dir).bundle.encoder
    encoded = EncodedHistories.encode(
        histories,
        encoder,
        tmp_path / "encoded",
    )
    sample = draw_sample(encoded, CONFIG, 0)
    before = PopularityScores.compute(histories, encoded, sample)
    assert before.rates.std() > 0
    assert before.counts.std() > 0

    labels = np.array(encoded.labels)
    labels[sample.target_positions] = 1 - labels[sample.target_positions]
    relabeled = dataclasses.replace(encoded, labels=labels)
    after = PopularityScores.compute(histories, relabeled, sample)
    np.testing.assert_array_equal(before.rates, after.rates)

    changed = _with_other_later_events(histories)
    after = PopularityScores.compute(changed, encoded, sample)
    np.testing.assert_array_equal(before.counts, after.counts)


def _with_other_later_events(histories: Histories) -> Histories:
    """Return the histories with one item in all events of the last batch after the split."""
    *earlier, last = histories.batches
    times = np.asarray(last.column("timestamp"))
    items = np.asarray(last.column("item_id")).copy()
    items[times >= histories.split_time_ms] = small_histories.FIRST_ID
    assert not np.array_equal(items, np.asarray(last.column("item_id")))
    place = last.schema.get_field_index("item_id")
    changed = last.set_column(
        place,
        last.schema.field("item_id"),
        pa.array(items),
    )
    return dataclasses.replace(histories, batches=(*earlier, changed))


def test_smoothed_rates_by_hand() -> None:
    items = np.array([0, 0, 0, 1])
    rates = smoothed_rates(items, np.array([1, 1, 0, 0]), 3, strength=2.0)
    np.testing.assert_allclose(rates, [(2 + 1) / 5, (0 + 1) / 3, 0.5])
    nothing = smoothed_rates(np.array([], np.int64), np.array([]), 2)
    assert nothing.tolist() == [0.5, 0.5]
