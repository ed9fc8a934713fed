"""Compare the evaluation with the same numbers from its predictions, raw rows and loops."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from longrec.data.histories import Histories
from longrec.errors import DataError
from longrec.evaluation import length_curve, metrics, serving_checks
from longrec.evaluation.evaluate import EvaluationReport
from longrec.evaluation.serving_checks import request_rows
from longrec.scoring.bundle import Bundle
from longrec.scoring.scorer import Scorer
from tests.longrec.evaluation.evaluations import CONFIG, refuse_constant, run_evaluation
from tests.longrec.pages import text_of

PREDICTION_COLUMNS = (
    "request_id",
    "user_id",
    "item_id",
    "click_label",
    "buy_label",
    "history_length",
)


def score_raw_rows(
    bundle_dir: Path,
    histories_dir: Path,
    length: int,
) -> np.ndarray:
    """Return the scores of all evaluation requests from raw rows, [N, K]."""
    histories = Histories.open(histories_dir)
    scorer = Scorer.load(bundle_dir)
    is_eval = np.asarray(histories.requests["split"]) == "eval"
    rows = [request_rows(histories, int(row)) for row in np.flatnonzero(is_eval)]
    return np.concatenate(scorer.score(rows, length))


def column(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name])


def read_strict_json(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=refuse_constant)


def test_predictions_are_the_evaluation_targets_in_time_order(
    histories_dir: Path, predictions: pa.Table
) -> None:
    histories = Histories.open(histories_dir)
    targets = histories.targets.to_pylist()
    users = histories.users.to_pylist()
    expected = []
    for request in histories.requests.to_pylist():
        if request["split"] != "eval":
            continue
        user_id = users[request["user_row"]]["user_id"]
        history_length = request["event_end"] - request["event_start"]
        for target in targets[request["target_start"] : request["target_end"]]:
            row = (
                request["request_id"],
                user_id,
                target["item_id"],
                target["click"],
                target["buy"],
                history_length,
            )
            expected.append(row)
    columns = [predictions[name].to_pylist() for name in PREDICTION_COLUMNS]
    assert list(zip(*columns, strict=True)) == expected
    assert predictions["timestamp"].type == pa.timestamp("ms", "UTC")


def test_scores_are_those_of_the_scorer_at_the_served_length(
    histories_dir: Path, bundle_dir: Path, predictions: pa.Table, report: EvaluationReport
) -> None:
    scores = score_raw_rows(bundle_dir, histories_dir, 64)
    np.testing.assert_allclose(
        column(predictions, "click_score"),
        scores[:, 0],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        column(predictions, "buy_score"),
        scores[:, 1],
        atol=1e-6,
    )
    assert report.parity_error < 1e-6


@pytest.mark.parametrize("task", ["click", "buy"])
def test_metrics_are_those_of_the_predictions(
    task: str, predictions: pa.Table, report: EvaluationReport
) -> None:
    users = column(predictions, "user_id")
    labels = column(predictions, f"{task}_label")
    scores = column(predictions, f"{task}_score").astype(np.float64)
    found = report.metrics[task]
    assert found["auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert found["auc_low"] < found["auc"] < found["auc_high"]
    assert found["logloss"] == pytest.approx(log_loss(labels, scores))
    assert found["gauc"] == pytest.approx(metrics.gauc(labels, scores, users))
    assert found["num_targets"] == len(labels)
    assert found["num_positives"] == labels.sum()


def test_sizes_are_those_of_the_predictions(
    predictions: pa.Table, report: EvaluationReport
) -> None:
    assert report.num_targets == predictions.num_rows
    assert report.num_users == len(np.unique(column(predictions, "user_id")))
    assert report.num_requests == len(np.unique(column(predictions, "request_id")))


def test_the_curve_has_every_length_and_cuts_the_history(
    histories_dir: Path, bundle_dir: Path, predictions: pa.Table, report: EvaluationReport
) -> None:
    labels = column(predictions, "click_label")
    lengths = column(predictions, "history_length")
    assert [row["length"] for row in report.lengths] == [0, 4, 16, 64, 200, 1000]
    for row in report.lengths[:3]:
        scores = score_raw_rows(bundle_dir, histories_dir, row["length"])
        expected = roc_auc_score(labels, scores[:, 0])
        assert row["auc"] == pytest.approx(expected, abs=1e-6)
    request_ids = column(predictions, "request_id")
    _, first_targets = np.unique(request_ids, return_index=True)
    for row in report.lengths:
        served = np.minimum(lengths[first_targets], row["length"])
        assert row["mean_events"] == pytest.approx(served.mean())
    assert report.longest_history == lengths.max() < 64


def test_the_curve_holds_the_served_metrics_and_repeats_no_scores(
    report: EvaluationReport,
) -> None:
    served = report.lengths[3]
    assert served["auc"] == report.metrics["click"]["auc"]
    assert served["auc_low"] == report.metrics["click"]["auc_low"]
    assert [row["same_as"] for row in report.lengths] == [None, None, None, None, 64, 64]
    assert report.lengths[4]["auc"] == served["auc"]


def test_a_trained_ranker_gains_from_history_and_beats_popularity(
    report: EvaluationReport,
) -> None:
    assert report.metrics["click"]["auc"] > 0.7
    assert report.lengths[2]["auc"] > report.lengths[0]["auc"] + 0.08
    assert report.gain["click"]["low"] > 0.1
    assert report.gate.passed
    assert len(report.gate.reasons) == 9


def test_every_baseline_stands_beside_the_ranker_with_a_paired_interval(
    report: EvaluationReport,
) -> None:
    for task, rows in report.baselines.items():
        auc = report.metrics[task]["auc"]
        assert len(rows) == 8
        assert rows[0]["auc"] == max(row["auc"] for row in rows)
        for row in rows:
            assert row["difference"] == pytest.approx(auc - row["auc"])
            assert row["difference_low"] < row["difference"] < row["difference_high"]
    rates = [row for row in report.baselines["click"] if row["name"] in ("item rate", "item count")]
    assert report.popularity["click"]["auc"] == max(row["auc"] for row in rates)
    assert report.gain["click"]["value"] == min(row["difference"] for row in rates)


def test_every_family_of_slices_holds_all_targets(
    predictions: pa.Table, report: EvaluationReport
) -> None:
    families = dict.fromkeys(row["family"] for row in report.slices)
    assert list(families) == ["history", "item age", "activity", "cold start"]
    for family in families:
        sizes = [row["num_targets"] for row in report.slices if row["family"] == family]
        # Cold start splits the targets twice: by user and by item.
        num_splits = 2 if family == "cold start" else 1
        assert sum(sizes) == predictions.num_rows * num_splits


def test_a_slice_holds_the_metrics_of_its_targets(
    predictions: pa.Table, report: EvaluationReport
) -> None:
    by_name = {row["name"]: row for row in report.slices if row["family"] == "history"}
    assert set(by_name) == {"0 events", "1 to 9 events", "10 to 99 events"}
    lengths = column(predictions, "history_length")
    inside = (lengths >= 10) & (lengths < 100)
    labels = column(predictions, "click_label")[inside]
    scores = column(predictions, "click_score")[inside]
    row = by_name["10 to 99 events"]
    assert row["num_targets"] == inside.sum()
    assert row["rate"] == pytest.approx(labels.mean())
    assert row["auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert row["calibration"] == pytest.approx(scores.mean() / labels.mean())


def test_the_folder_holds_everything_and_nothing_temporary(report: EvaluationReport) -> None:
    path = Path(report.path)
    assert sorted(entry.name for entry in path.iterdir()) == [
        "MODEL_CARD.md",
        "metrics.json",
        "predictions.parquet",
        "report.html",
    ]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_metrics_json_holds_the_report_and_its_provenance(report: EvaluationReport) -> None:
    results = read_strict_json(Path(report.path) / "metrics.json")
    assert results["metrics"]["click"]["auc"] == report.metrics["click"]["auc"]
    assert results["gate"]["passed"] is True
    assert results["best_possible"] == [
        {"length": 4, "auc": 0.8},
        {"length": 16, "auc": 0.9},
    ]
    assert results["best_possible_full"] == 0.92
    assert len(results["training_curve"]) > 3
    assert results["versions"]["torch"]


@pytest.mark.parametrize(
    "words",
    [
        "gate passed",
        "Served length",
        "Calibration",
        "best possible",
        "best baseline",
        "boosted trees",
        "training loss",
        "click",
        "buy",
    ],
)
def test_the_page_shows_every_section(words: str, report: EvaluationReport) -> None:
    assert words in text_of(Path(report.path) / "report.html")


def test_without_a_length_of_its_own_it_follows_the_bundle(
    histories_dir: Path,
    bundle_dir: Path,
    tmp_path: Path,
    report: EvaluationReport,
) -> None:
    config = dataclasses.replace(CONFIG, served_length=0)
    followed = run_evaluation(bundle_dir, histories_dir, tmp_path / "out", config=config)
    assert followed.served_length == 64
    assert followed.metrics == report.metrics


def test_the_metrics_are_of_the_served_length_whatever_else_is_on_the_curve(
    histories_dir: Path, bundle_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(CONFIG, lengths=(2, 32), served_length=8)
    report = run_evaluation(
        bundle_dir,
        histories_dir,
        tmp_path / "out",
        config=config,
    )
    assert "served at 64 events, but evaluated at 8" in caplog.text
    scores = score_raw_rows(bundle_dir, histories_dir, 8)
    written = pq.read_table(tmp_path / "out" / "predictions.parquet")
    np.testing.assert_allclose(
        column(written, "click_score"),
        scores[:, 0],
        atol=1e-6,
    )
    curve = {row["length"]: row["auc"] for row in report.lengths}
    assert list(curve) == [2, 8, 32]
    assert len(set(curve.values())) == 3
    assert report.metrics["click"]["auc"] == curve[8]
    assert report.gate.criteria[0]["value"] == curve[8]


def test_equal_arguments_give_equal_results_and_the_seed_matters(
    histories_dir: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, max_requests=50, lengths=(4,))
    reports = []
    tables = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out_dir = tmp_path / name
        report = run_evaluation(
            bundle_dir,
            histories_dir,
            out_dir,
            config=config,
            seed=seed,
        )
        reports.append(report)
        tables.append(pq.read_table(out_dir / "predictions.parquet"))
    assert reports[0].num_requests == 50
    assert tables[0].equals(tables[1])
    assert not tables[0]["request_id"].equals(tables[2]["request_id"])
    assert reports[0].metrics == reports[1].metrics != reports[2].metrics
    times = np.asarray(tables[0]["timestamp"].cast(pa.int64()))
    assert (np.diff(times) >= 0).all()


def test_a_sample_larger_than_the_split_is_the_split(
    histories_dir: Path, bundle_dir: Path, report: EvaluationReport, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, max_requests=10**6, lengths=(4,))
    other = run_evaluation(
        bundle_dir,
        histories_dir,
        tmp_path / "out",
        config=config,
    )
    assert other.metrics == report.metrics


def test_extrapolation_is_paired_with_the_trained_mean_length(
    histories_dir: Path, bundle_dir: Path, report: EvaluationReport, tmp_path: Path
) -> None:
    trained = round(Bundle.load(bundle_dir).facts["mean_length"])
    config = dataclasses.replace(CONFIG, lengths=(trained,))
    other = run_evaluation(
        bundle_dir,
        histories_dir,
        tmp_path / "out",
        config=config,
    )
    curve = {row["length"]: row for row in other.lengths}
    found = report.extrapolation
    assert found["trained_length"] == trained
    assert found["value"] == pytest.approx(curve[64]["auc"] - curve[trained]["auc"])
    cost = curve[64]["mean_events"] / curve[trained]["mean_events"]
    assert found["cost"] == pytest.approx(cost)
    assert found["low"] <= found["value"] <= found["high"]
    # It is measured, but it is no point of the curve that was asked for.
    assert trained not in [row["length"] for row in report.lengths]


def test_rows_never_refer_to_the_trained_length_without_a_row(
    histories_dir: Path,
    bundle_dir: Path,
    report: EvaluationReport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained = report.longest_history
    monkeypatch.setattr(length_curve, "_trained_length", lambda scorer: trained)
    other = run_evaluation(bundle_dir, histories_dir, tmp_path / "out")
    assert trained not in [row["length"] for row in other.lengths]
    assert [row["same_as"] for row in other.lengths] == [None, None, None, None, 64, 64]


def test_labels_of_one_class_fail_the_gate_with_the_reason(
    histories_dir: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    one_class = _with_labels(histories_dir, tmp_path / "one", 0)
    out_dir = tmp_path / "out"
    report = run_evaluation(bundle_dir, one_class, out_dir, seed=0)
    assert not report.gate.passed
    assert report.metrics["click"]["auc"] is None
    reason = "The AUC of click is not defined: all labels are 0"
    assert any(reason in sentence for sentence in report.gate.reasons)
    assert report.metrics["buy"]["auc"] is not None
    read_strict_json(out_dir / "metrics.json")
    assert "gate failed" in text_of(out_dir / "report.html")


def _with_labels(
    histories_dir: Path,
    out_dir: Path,
    value: int,
) -> Path:
    """Return a copy of the histories whose clicks all have one label."""
    shutil.copytree(histories_dir, out_dir)
    path = out_dir / "targets.parquet"
    targets = pq.read_table(path)
    place = targets.column_names.index("click")
    labels = pa.array(np.full(targets.num_rows, value), pa.int8())
    pq.write_table(targets.set_column(place, "click", labels), path)
    return out_dir


def test_scores_that_are_not_finite_fail_the_gate(
    histories_dir: Path, bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "sigmoid", lambda logits: logits * math.nan)
    report = run_evaluation(
        bundle_dir,
        histories_dir,
        tmp_path / "out",
        seed=0,
    )
    assert not report.gate.passed
    assert any("scores are not finite" in reason for reason in report.gate.reasons)
    read_strict_json(tmp_path / "out" / "metrics.json")


def test_a_difference_between_batches_and_raw_rows_fails_the_gate(
    histories_dir: Path, bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_history(histories: Histories, request: int) -> Any:
        rows = request_rows(histories, request)
        return dataclasses.replace(rows, history=histories.events(0, 0))

    monkeypatch.setattr(serving_checks, "request_rows", without_history)
    report = run_evaluation(
        bundle_dir,
        histories_dir,
        tmp_path / "out",
        seed=0,
    )
    assert report.parity_error > 1e-3
    assert not report.gate.passed
    assert any("batches and raw rows" in reason for reason in report.gate.reasons)


def test_no_evaluation_request_is_an_error_and_nothing_is_left(
    histories_dir: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "histories"
    shutil.copytree(histories_dir, copy)
    path = copy / "requests.parquet"
    requests = pq.read_table(path)
    place = requests.column_names.index("split")
    splits = pa.array(["train"] * requests.num_rows)
    pq.write_table(requests.set_column(place, "split", splits), path)
    with pytest.raises(DataError, match="no request of the part eval"):
        run_evaluation(bundle_dir, copy, tmp_path / "out", seed=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["histories"]


def test_the_model_card_holds_what_was_measured(report: EvaluationReport, bundle_dir: Path) -> None:
    card = (Path(report.path) / "MODEL_CARD.md").read_text()
    bundle = Bundle.load(bundle_dir)
    for expected in (
        bundle.version,
        bundle.schema.fingerprint,
        f"{report.metrics['click']['auc']:.4f}",
        f"{report.metrics['buy']['ece']:.3f}",
        "It passed the gate",
        *report.gate.reasons,
        f"longest history measured has {report.longest_history}",
        "seed",
        "width 16",
    ):
        assert str(expected).lower() in card.lower(), expected
