"""The evaluation against the same numbers made another way: from its own predictions, from raw
rows, from loops.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from longrec.config import EvaluateConfig, GateConfig, LengthConfig, ModelConfig, TrainConfig
from longrec.data.files import read_json, write_json
from longrec.data.histories import Histories
from longrec.data.loader import EncodedHistories
from longrec.errors import DataError
from longrec.evaluation import metrics, serving_checks
from longrec.evaluation.evaluate import EvaluationReport, evaluate
from longrec.evaluation.popularity import PRIOR_STRENGTH, PopularityScores
from longrec.evaluation.sample import draw_sample
from longrec.evaluation.serving_checks import request_rows
from longrec.schema import Schema
from longrec.scoring.bundle import Bundle
from longrec.scoring.scorer import Scorer
from longrec.training.loop import make_ranker
from longrec.training.train import train
from tests.longrec import small_histories
from tests.longrec.pages import text_of

CONFIG = EvaluateConfig(lengths=(0, 4, 16, 200, 1000), served_length=64, bootstrap_samples=40)
GATE = GateConfig(min_auc=0.6)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = small_histories.write(
        tmp_path_factory.mktemp("world") / "histories", num_users=60, requests_per_user=10
    )
    manifest = read_json(path / "manifest.json")
    facts = {
        "best_possible_auc": [{"length": 4, "auc": 0.8}, {"length": 16, "auc": 0.9}],
        "best_possible_auc_full": 0.92,
    }
    write_json(path / "manifest.json", {**manifest, "dataset": "small", "dataset_facts": facts})
    return path


@pytest.fixture(scope="module")
def bundle_dir(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    model = ModelConfig(
        width=16, num_layers=2, num_heads=2, id_dim=8, feature_dim=4, mixer_layers=1
    )
    config = TrainConfig(
        epochs=8,
        token_budget=600,
        max_requests_per_batch=16,
        learning_rate=5e-3,
        device="cpu",
        log_every=5,
    )
    train(
        directory,
        out,
        model,
        lengths=LengthConfig("full", maximum=64),
        train=config,
        served_length=64,
        seed=0,
    )
    return out


@pytest.fixture(scope="module")
def result(
    directory: Path, bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> EvaluationReport:
    return evaluate(
        bundle_dir,
        directory,
        tmp_path_factory.mktemp("out") / "evaluation",
        CONFIG,
        GATE,
        3,
        device="cpu",
    )


@pytest.fixture(scope="module")
def predictions(result: EvaluationReport) -> pa.Table:
    return pq.read_table(Path(result.path) / "predictions.parquet")


def test_predictions_are_the_evaluation_targets_in_time_order(
    directory: Path, predictions: pa.Table
) -> None:
    histories = Histories.open(directory)
    requests, targets, users = (
        histories.requests.to_pylist(),
        histories.targets.to_pylist(),
        histories.users.to_pylist(),
    )
    expected = []
    for request in (entry for entry in requests if entry["split"] == "eval"):
        for target in targets[request["target_start"] : request["target_end"]]:
            user = users[request["user_row"]]["user_id"]
            expected.append(
                (
                    request["request_id"],
                    user,
                    target["item_id"],
                    target["click"],
                    target["buy"],
                    request["event_end"] - request["event_start"],
                )
            )
    names = ("request_id", "user_id", "item_id", "click_label", "buy_label", "history_length")
    assert list(zip(*(predictions[name].to_pylist() for name in names), strict=True)) == expected
    assert predictions["timestamp"].type == pa.timestamp("ms", "UTC")


def test_scores_are_those_of_the_scorer_at_the_served_length(
    directory: Path, bundle_dir: Path, predictions: pa.Table, result: EvaluationReport
) -> None:
    histories, scorer = Histories.open(directory), Scorer.load(bundle_dir)
    rows = np.flatnonzero(np.asarray(histories.requests["split"]) == "eval")
    scores = np.concatenate(scorer.score([request_rows(histories, int(row)) for row in rows], 64))
    for column, task in enumerate(("click", "buy")):
        np.testing.assert_allclose(
            np.asarray(predictions[f"{task}_score"]), scores[:, column], atol=1e-6
        )
    assert result.parity_error < 1e-6


def test_metrics_are_those_of_the_predictions(
    predictions: pa.Table, result: EvaluationReport
) -> None:
    users = np.asarray(predictions["user_id"])
    for task in ("click", "buy"):
        labels, scores = (
            np.asarray(predictions[f"{task}_label"]),
            np.asarray(predictions[f"{task}_score"], np.float64),
        )
        found = result.metrics[task]
        assert found["auc"] == pytest.approx(roc_auc_score(labels, scores))
        assert found["auc_low"] < found["auc"] < found["auc_high"]
        assert found["logloss"] == pytest.approx(log_loss(labels, scores))
        assert found["gauc"] == pytest.approx(metrics.gauc(labels, scores, users))
        assert found["num_targets"] == len(labels) and found["num_positives"] == labels.sum()
    assert result.num_targets == len(users) and result.num_users == len(np.unique(users))
    assert result.num_requests == len(np.unique(np.asarray(predictions["request_id"])))


def test_the_curve_has_every_length_and_cuts_the_history(
    directory: Path, bundle_dir: Path, predictions: pa.Table, result: EvaluationReport
) -> None:
    histories, scorer = Histories.open(directory), Scorer.load(bundle_dir)
    rows = np.flatnonzero(np.asarray(histories.requests["split"]) == "eval")
    labels, lengths = (
        np.asarray(predictions["click_label"]),
        np.asarray(predictions["history_length"]),
    )
    assert [row["length"] for row in result.lengths] == [0, 4, 16, 64, 200, 1000]
    for row in result.lengths[:3]:
        scores = np.concatenate(
            scorer.score(
                [request_rows(histories, int(position)) for position in rows], row["length"]
            )
        )[:, 0]
        assert row["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    first = np.unique(np.asarray(predictions["request_id"]), return_index=True)[1]
    for row in result.lengths:
        assert row["mean_events"] == pytest.approx(np.minimum(lengths[first], row["length"]).mean())
    assert result.longest_history == lengths.max() < 64
    served = result.lengths[3]
    assert (served["auc"], served["auc_low"]) == (
        result.metrics["click"]["auc"],
        result.metrics["click"]["auc_low"],
    )
    assert [row["same_as"] for row in result.lengths] == [None, None, None, None, 64, 64]
    assert result.lengths[4]["auc"] == served["auc"]


def test_a_trained_ranker_gains_from_history_and_beats_popularity(
    result: EvaluationReport,
) -> None:
    assert result.metrics["click"]["auc"] > 0.7
    assert result.lengths[2]["auc"] > result.lengths[0]["auc"] + 0.08
    assert result.gain["click"]["low"] > 0.1
    assert result.gate.passed and len(result.gate.reasons) == 7


def test_popularity_equals_a_loop_and_is_the_better_of_two(
    directory: Path, predictions: pa.Table, result: EvaluationReport
) -> None:
    histories = Histories.open(directory)
    shown: dict[int, list[int]] = {}
    targets = histories.targets.to_pylist()
    for request in histories.requests.to_pylist():
        if request["split"] != "eval":
            for target in targets[request["target_start"] : request["target_end"]]:
                shown.setdefault(target["item_id"], []).append(target["click"])
    prior = sum(map(sum, shown.values())) / sum(map(len, shown.values()))
    strength = PRIOR_STRENGTH
    counts: dict[int, int] = {}
    for batch in histories.event_batches():
        for item, time in zip(
            batch.column("item_id").to_pylist(), batch.column("timestamp").to_pylist(), strict=True
        ):
            if time < histories.split_time_ms:
                counts[item] = counts.get(item, 0) + 1
    items, labels = predictions["item_id"].to_pylist(), np.asarray(predictions["click_label"])
    rates = [
        (sum(shown.get(item, [])) + strength * prior) / (len(shown.get(item, [])) + strength)
        for item in items
    ]
    aucs = {
        "rate": roc_auc_score(labels, rates),
        "count": roc_auc_score(labels, [counts.get(item, 0) for item in items]),
    }
    popularity = result.popularity["click"]
    assert popularity["name"] == max(aucs, key=aucs.__getitem__)
    assert popularity["auc"] == pytest.approx(max(aucs.values()))
    assert result.gain["click"]["value"] == pytest.approx(
        result.metrics["click"]["auc"] - max(aucs.values())
    )


def test_slices_part_the_targets_by_history(
    predictions: pa.Table, result: EvaluationReport
) -> None:
    lengths, labels = (
        np.asarray(predictions["history_length"]),
        np.asarray(predictions["click_label"]),
    )
    scores = np.asarray(predictions["click_score"])
    families = dict.fromkeys(row["family"] for row in result.slices)
    assert list(families) == ["history", "item age", "activity", "cold start"]
    for family in families:
        counted = sum(row["num_targets"] for row in result.slices if row["family"] == family)
        assert counted == len(lengths) * (
            2 if family == "cold start" else 1
        )  # users and items, each parted in two
    by_name = {row["name"]: row for row in result.slices if row["family"] == "history"}
    assert set(by_name) == {"0 events", "1 to 9 events", "10 to 99 events"}
    inside = (lengths >= 10) & (lengths < 100)
    row = by_name["10 to 99 events"]
    assert row["num_targets"] == inside.sum() and row["rate"] == pytest.approx(
        labels[inside].mean()
    )
    assert row["auc"] == pytest.approx(roc_auc_score(labels[inside], scores[inside]))
    assert row["calibration"] == pytest.approx(scores[inside].mean() / labels[inside].mean())


def test_the_directory_holds_everything(result: EvaluationReport) -> None:
    path = Path(result.path)
    assert sorted(entry.name for entry in path.iterdir()) == [
        "MODEL_CARD.md",
        "metrics.json",
        "predictions.parquet",
        "report.html",
    ]
    assert [entry.name for entry in path.parent.iterdir()] == [
        path.name
    ]  # nothing temporary is left beside it
    facts = json.loads(
        (path / "metrics.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
    )
    assert facts["metrics"]["click"]["auc"] == result.metrics["click"]["auc"]
    assert facts["gate"]["passed"] is True and facts["best_possible"] == [
        {"length": 4, "auc": 0.8},
        {"length": 16, "auc": 0.9},
    ]
    assert (
        facts["best_possible_full"] == 0.92
        and len(facts["training_curve"]) > 3
        and facts["versions"]["torch"]
    )
    text = text_of(path / "report.html")
    for word in (
        "gate passed",
        "History length",
        "Calibration",
        "best possible",
        "popularity",
        "training loss",
        "click",
        "buy",
    ):
        assert word in text


def test_the_metrics_are_of_the_served_length_whatever_else_is_on_the_curve(
    directory: Path, bundle_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(CONFIG, lengths=(2, 32), served_length=8)
    report = evaluate(bundle_dir, directory, tmp_path / "out", config, GATE, 3, device="cpu")
    assert "served at 64 events, but evaluated at 8" in caplog.text
    histories, scorer = Histories.open(directory), Scorer.load(bundle_dir)
    rows = np.flatnonzero(np.asarray(histories.requests["split"]) == "eval")
    scores = np.concatenate(scorer.score([request_rows(histories, int(row)) for row in rows], 8))
    written = pq.read_table(tmp_path / "out" / "predictions.parquet")
    np.testing.assert_allclose(np.asarray(written["click_score"]), scores[:, 0], atol=1e-6)
    curve = {row["length"]: row["auc"] for row in report.lengths}
    assert list(curve) == [2, 8, 32] and len(set(curve.values())) == 3
    assert (
        report.metrics["click"]["auc"] == curve[8] and report.gate.criteria[0]["value"] == curve[8]
    )


def test_equal_arguments_give_equal_results_and_the_seed_matters(
    directory: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, max_requests=50, lengths=(4,))
    first, again, other = (
        evaluate(bundle_dir, directory, tmp_path / name, config, GATE, seed, device="cpu")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    tables = [pq.read_table(tmp_path / name / "predictions.parquet") for name in "abc"]
    assert (
        first.num_requests == 50
        and tables[0].equals(tables[1])
        and not tables[0]["request_id"].equals(tables[2]["request_id"])
    )
    assert first.metrics == again.metrics != other.metrics
    times = np.asarray(tables[0]["timestamp"].cast(pa.int64()))
    assert (np.diff(times) >= 0).all()


def test_a_sample_larger_than_the_split_is_the_split(
    directory: Path, bundle_dir: Path, result: EvaluationReport, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, max_requests=10**6, lengths=(4,))
    assert (
        evaluate(bundle_dir, directory, tmp_path / "out", config, GATE, 3, device="cpu").metrics
        == result.metrics
    )


def _with_labels(directory: Path, out: Path, value: int) -> Path:
    shutil.copytree(directory, out)
    targets = pq.read_table(out / "targets.parquet")
    column = targets.column_names.index("click")
    pq.write_table(
        targets.set_column(column, "click", pa.array(np.full(targets.num_rows, value), pa.int8())),
        out / "targets.parquet",
    )
    return out


def test_labels_of_one_class_refuse_the_model_and_say_why(
    directory: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    report = evaluate(
        bundle_dir,
        _with_labels(directory, tmp_path / "one", 0),
        tmp_path / "out",
        CONFIG,
        GATE,
        0,
        device="cpu",
    )
    assert not report.gate.passed and report.metrics["click"]["auc"] is None
    assert any(
        "The AUC of click is not defined: all labels are 0" in reason
        for reason in report.gate.reasons
    )
    assert report.metrics["buy"]["auc"] is not None
    json.loads(
        (tmp_path / "out" / "metrics.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
    )
    assert "gate failed" in text_of(tmp_path / "out" / "report.html")


def test_scores_that_are_not_finite_refuse_the_model(
    directory: Path, bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "sigmoid", lambda logits: logits * math.nan)
    report = evaluate(bundle_dir, directory, tmp_path / "out", CONFIG, GATE, 0, device="cpu")
    assert not report.gate.passed
    assert any("scores are not finite" in reason for reason in report.gate.reasons)
    json.loads(
        (tmp_path / "out" / "metrics.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
    )


def test_a_difference_between_the_two_ways_to_score_is_seen(
    directory: Path, bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = serving_checks.request_rows
    monkeypatch.setattr(
        serving_checks,
        "request_rows",
        lambda histories, request: dataclasses.replace(
            right(histories, request), history=histories.events(0, 0)
        ),
    )
    report = evaluate(bundle_dir, directory, tmp_path / "out", CONFIG, GATE, 0, device="cpu")
    assert report.parity_error > 1e-3 and not report.gate.passed
    assert any("batches and raw rows" in reason for reason in report.gate.reasons)


def test_no_evaluation_request_is_an_error_and_nothing_is_left(
    directory: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(directory, tmp_path / "histories")
    path = tmp_path / "histories" / "requests.parquet"
    requests = pq.read_table(path)
    splits = pa.array(["train"] * requests.num_rows)
    pq.write_table(requests.set_column(requests.column_names.index("split"), "split", splits), path)
    with pytest.raises(DataError, match="no evaluation request"):
        evaluate(
            bundle_dir, tmp_path / "histories", tmp_path / "out", CONFIG, GATE, 0, device="cpu"
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["histories"]


def test_popularity_looks_at_nothing_from_the_evaluation(
    directory: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    """Other labels of later requests and other later events leave the popularity scores as they
    are.
    """
    histories, scorer = Histories.open(directory), Scorer.load(bundle_dir)
    encoded = EncodedHistories.make(histories, scorer.bundle.encoder, tmp_path / "encoded")
    sample = draw_sample(encoded, CONFIG, 0)
    labels = np.array(encoded.labels)
    labels[sample.target_positions] = 1 - labels[sample.target_positions]
    before = PopularityScores.compute(histories, encoded, sample)
    after = PopularityScores.compute(histories, dataclasses.replace(encoded, labels=labels), sample)
    np.testing.assert_array_equal(before.rates, after.rates)
    assert before.rates.std() > 0 and before.counts.std() > 0
    last = histories.batches[-1]
    times = np.asarray(last.column("timestamp")).copy()
    items = np.asarray(last.column("item_id")).copy()
    items[times >= histories.split_time_ms] = small_histories.FIRST_ID
    assert not np.array_equal(items, np.asarray(last.column("item_id")))
    changed = last.set_column(
        last.schema.get_field_index("item_id"), last.schema.field("item_id"), pa.array(items)
    )
    moved = dataclasses.replace(histories, batches=(*histories.batches[:-1], changed))
    np.testing.assert_array_equal(
        before.counts, PopularityScores.compute(moved, encoded, sample).counts
    )


def _changed(bundle_dir: Path, out: Path, change: Callable[[Bundle], Bundle]) -> Path:
    change(Bundle.load(bundle_dir)).save(out)
    return out


def _untrained(bundle: Bundle) -> Bundle:
    ranker = make_ranker(bundle.config, bundle.encoder, 7)
    with torch.no_grad():
        ranker.head.bias.copy_(bundle.ranker.head.bias)
    return dataclasses.replace(bundle, ranker=ranker.eval())


def _miscalibrated(bundle: Bundle) -> Bundle:
    with torch.no_grad():
        bundle.ranker.head.bias += 1.5
    return bundle


def _with_broken_encoder(bundle: Bundle) -> Bundle:
    """Every second item is unknown, and the rows of the others are those of wrong items."""
    kept = bundle.encoder.item_ids[::2]
    ids = np.concatenate(
        [kept, kept[-1] + 1_000 + np.arange(len(bundle.encoder.item_ids) - len(kept))]
    )
    return dataclasses.replace(bundle, encoder=dataclasses.replace(bundle.encoder, item_ids=ids))


LENIENT = GateConfig(
    min_auc=0.0,
    min_gain_over_popularity=-1,
    max_loss_to_champion=0.01,
    min_slice_targets=50,
    max_slice_loss=0.02,
)


def test_the_gate_refuses_a_worse_model_and_passes_a_better_one(
    directory: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    worse = _changed(bundle_dir, tmp_path / "worse", _untrained)
    refused = evaluate(
        worse, directory, tmp_path / "a", CONFIG, LENIENT, 3, champion_dir=bundle_dir, device="cpu"
    )
    passed = evaluate(
        bundle_dir, directory, tmp_path / "b", CONFIG, LENIENT, 3, champion_dir=worse, device="cpu"
    )
    assert not refused.gate.passed and passed.gate.passed, passed.gate.reasons
    broken = {entry["name"] for entry in refused.gate.criteria if not entry["passed"]}
    assert broken >= {"max_loss_to_champion", "max_slice_loss"}
    ours, theirs = passed.champion["differences"]["click"], refused.champion["differences"]["click"]
    assert ours["low"] > 0.1 and ours["value"] == pytest.approx(-theirs["value"])
    assert passed.champion["version"] == Bundle.load(worse).version
    assert "minus champion" in text_of(
        tmp_path / "b" / "report.html"
    ) and "AUC minus champion" in text_of(tmp_path / "a" / "report.html")


def test_a_model_equals_itself_as_champion(
    directory: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    report = evaluate(
        bundle_dir,
        directory,
        tmp_path / "out",
        CONFIG,
        dataclasses.replace(LENIENT, max_loss_to_champion=0.0),
        3,
        champion_dir=bundle_dir,
        device="cpu",
    )
    assert report.gate.passed
    assert all(
        (row["value"], row["low"], row["high"]) == (0.0, 0.0, 0.0)
        for row in report.champion["differences"].values()
    )


def test_the_gate_refuses_a_miscalibrated_model_whose_order_is_right(
    directory: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    wrong = _changed(bundle_dir, tmp_path / "wrong", _miscalibrated)
    gate = dataclasses.replace(LENIENT, max_calibration=1.25, min_calibration=0.8, max_ece=0.06)
    report = evaluate(
        wrong, directory, tmp_path / "out", CONFIG, gate, 3, champion_dir=bundle_dir, device="cpu"
    )
    broken = [entry["name"] for entry in report.gate.criteria if not entry["passed"]]
    assert set(broken) == {"calibration", "max_ece"} and any(
        "calibration of click" in reason for reason in report.gate.reasons
    )


def test_the_gate_refuses_a_broken_encoder(
    directory: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    wrong = _changed(bundle_dir, tmp_path / "wrong", _with_broken_encoder)
    gate = dataclasses.replace(LENIENT, max_unknown_item_share=0.05)
    report = evaluate(
        wrong, directory, tmp_path / "out", CONFIG, gate, 3, champion_dir=bundle_dir, device="cpu"
    )
    broken = {entry["name"] for entry in report.gate.criteria if not entry["passed"]}
    assert (
        broken >= {"max_loss_to_champion", "max_unknown_item_share"}
        and report.unknown_item_share > 0.3
    )


def test_a_champion_of_another_schema_refuses_with_its_reason(
    directory: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    other = small_histories.write(tmp_path / "other")
    manifest = read_json(other / "manifest.json")
    schema = {**manifest["schema"], "user": []}
    monkey = Bundle.load(bundle_dir)
    encoder = dataclasses.replace(
        monkey.encoder, schema=Schema.from_dict(schema), rules={**monkey.encoder.rules, "user": ()}
    )
    dataclasses.replace(
        monkey, encoder=encoder, ranker=make_ranker(monkey.config, encoder, 0)
    ).save(tmp_path / "champion")
    report = evaluate(
        bundle_dir,
        directory,
        tmp_path / "out",
        CONFIG,
        LENIENT,
        3,
        champion_dir=tmp_path / "champion",
        device="cpu",
    )
    assert (
        not report.gate.passed
        and len(report.gate.reasons) == 1
        and "another schema" in report.gate.reasons[0]
    )


def test_extrapolation_is_paired_with_the_trained_mean_length(
    directory: Path, bundle_dir: Path, result: EvaluationReport, tmp_path: Path
) -> None:
    trained = round(Bundle.load(bundle_dir).facts["mean_length"])
    assert result.extrapolation["trained_length"] == trained
    at = evaluate(
        bundle_dir,
        directory,
        tmp_path / "out",
        dataclasses.replace(CONFIG, lengths=(trained,)),
        GATE,
        3,
        device="cpu",
    )
    curve = {row["length"]: row for row in at.lengths}
    assert result.extrapolation["value"] == pytest.approx(curve[64]["auc"] - curve[trained]["auc"])
    assert result.extrapolation["cost"] == pytest.approx(
        curve[64]["mean_events"] / curve[trained]["mean_events"]
    )
    assert (
        result.extrapolation["low"] <= result.extrapolation["value"] <= result.extrapolation["high"]
    )
    assert trained not in [
        row["length"] for row in result.lengths
    ]  # it is measured, but is no point of the asked curve


def test_the_card_is_written_from_what_was_measured(
    result: EvaluationReport, bundle_dir: Path
) -> None:
    card = (Path(result.path) / "MODEL_CARD.md").read_text()
    bundle = Bundle.load(bundle_dir)
    for expected in (
        bundle.version,
        bundle.schema.fingerprint,
        f"{result.metrics['click']['auc']:.4f}",
        f"{result.metrics['buy']['ece']:.3f}",
        "It passed the gate",
        *result.gate.reasons,
        f"longest history measured has {result.longest_history}",
        "seed",
        "width 16",
    ):
        assert str(expected).lower() in card.lower(), expected
