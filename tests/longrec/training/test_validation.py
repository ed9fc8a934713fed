"""A training is measured on validation requests, stops early and keeps its best weights."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from longrec.config import EvaluateConfig, TrainConfig
from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.errors import ConfigError, Stopped
from longrec.evaluation import metrics
from longrec.evaluation.sample import score_sample
from longrec.scoring.bundle import Bundle
from longrec.scoring.scorer import Scorer
from longrec.training import progress
from longrec.training.curve import NO_ROW, CurveRow, ValidationRow, expected_gain
from longrec.training.report import TrainReport
from longrec.training.validation import draw_validation_sample, logit_shifts
from tests.longrec import small_histories
from tests.longrec.training.small_training import LENGTHS, SEED, read_curve, train_small

CONFIG = TrainConfig(
    epochs=6,
    token_budget=300,
    max_requests_per_batch=16,
    learning_rate=5e-2,
    embedding_learning_rate=2.0,
    log_every=7,
    device="cpu",
    checkpoint_every=9,
    tensorboard=False,
    validate_every=10,
    patience=0,
    ema_decay=0.5,
)
"""It learns the training requests by heart, so its best weights are not the last ones."""


@pytest.fixture(scope="module")
def histories_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validated")
    return small_histories.write(folder / "histories", validation_fraction=0.2)


@dataclasses.dataclass(frozen=True)
class Whole:
    """A training that nothing interrupted."""

    out: Path
    report: TrainReport


@pytest.fixture(scope="module")
def whole(histories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    out = tmp_path_factory.mktemp("whole") / "bundle"
    return Whole(out, train_small(histories_dir, out, CONFIG))


def validations_of(out: Path) -> list[dict[str, Any]]:
    facts = json.loads((out / "bundle.json").read_text())["facts"]
    return [
        {name: row[name] for name in ("step", "auc", "logloss")}
        for row in facts["validation"]["curve"]
    ]


def best_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return max(rows, key=lambda row: row["auc"])


def test_it_is_measured_every_few_steps_after_each_epoch_and_at_the_end(whole: Whole) -> None:
    num_steps = whole.report.num_steps
    steps = [row["step"] for row in validations_of(whole.out)]
    assert steps == sorted(set(steps))
    assert set(range(10, num_steps + 1, 10)) < set(steps)
    assert steps[-1] == num_steps
    assert len(steps) == whole.report.num_validations
    # epochs end between those
    assert any(step % 10 for step in steps[:-1])


def test_the_packaged_weights_are_the_best_ones(whole: Whole, histories_dir: Path) -> None:
    best = best_of(validations_of(whole.out))
    assert whole.report.best_step == best["step"] < whole.report.num_steps
    assert whole.report.validation_auc == best["auc"]
    scorer = Scorer.load(whole.out)
    histories = Histories.open(histories_dir)
    encoder = scorer.bundle.encoder
    encoded = EncodedHistories.encode(histories, encoder, whole.out.parent / "encoded")
    sample = draw_validation_sample(encoded, CONFIG, SEED)
    assert sample is not None
    splits = np.asarray(histories.requests["split"])
    assert sample.requests.tolist() == np.flatnonzero(splits == "validation").tolist()
    scores = score_sample(scorer, encoded, sample, LENGTHS.maximum)[:, 0]
    labels = sample.labels[:, 0]
    # targets with nearly equal scores may change places
    assert metrics.auc(labels, scores) == pytest.approx(best["auc"], abs=1e-3)
    assert metrics.logloss(labels, scores) == pytest.approx(best["logloss"], abs=1e-6)


def test_measuring_does_not_change_the_training(
    whole: Whole,
    histories_dir: Path,
    tmp_path: Path,
) -> None:
    seldom = dataclasses.replace(CONFIG, validate_every=0, validation_requests=5)
    train_small(histories_dir, tmp_path / "seldom", seldom)
    losses = {row["step"]: row["loss"] for row in read_curve(tmp_path / "seldom")}
    often = {row["step"]: row["gradient_norm"] for row in read_curve(whole.out)}
    for row in read_curve(tmp_path / "seldom"):
        assert often[row["step"]] == row["gradient_norm"]
    assert len(losses) > 12


def test_the_curve_shows_the_newest_measurement(whole: Whole) -> None:
    measured = {row["step"]: row["auc"] for row in validations_of(whole.out)}
    newest = ""
    for row in read_curve(whole.out):
        newest = str(measured.get(int(row["step"]), newest))
        assert row["validation_auc"] == newest
    assert float(row["seconds_left"]) == 0
    assert newest


@pytest.mark.parametrize("patience", [1, 3])
def test_it_stops_when_patience_runs_out(
    whole: Whole,
    histories_dir: Path,
    tmp_path: Path,
    patience: int,
) -> None:
    config = dataclasses.replace(CONFIG, patience=patience)
    report = train_small(histories_dir, tmp_path / "bundle", config)
    rows = validations_of(whole.out)
    num_useless = 0
    best = -1.0
    expected = []
    for row in rows:
        num_useless = 0 if row["auc"] > best else num_useless + 1
        best = max(best, row["auc"])
        expected.append(row)
        if num_useless == patience:
            break
    assert len(expected) < len(rows)
    assert validations_of(tmp_path / "bundle") == expected
    assert report.stopped_by == "patience"
    assert report.num_steps == expected[-1]["step"]
    assert report.best_step == best_of(expected)["step"]
    assert report.expected_gain == 0.0


def stop_by_error(out: Path, histories_dir: Path, at_step: int) -> None:
    def listen(row: CurveRow, _: int) -> None:
        if row.step == at_step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_small(histories_dir, out, CONFIG, on_progress=listen)


def stop_by_sigterm(out: Path, histories_dir: Path, at_step: int) -> None:
    """SIGTERM comes before the step, which is done but not measured."""

    def listen(row: CurveRow, _: int) -> None:
        if row.step == at_step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    config = dataclasses.replace(CONFIG, log_every=1)
    with pytest.raises(Stopped, match=f"found step {at_step} of"):
        train_small(histories_dir, out, config, on_progress=listen)


@pytest.mark.parametrize(
    ("stop", "at_step"),
    [
        (stop_by_error, 20),
        (stop_by_error, 49),
        (stop_by_error, 84),
    ],
)
def test_a_resumed_training_has_the_same_weights_and_measurements(
    whole: Whole,
    histories_dir: Path,
    tmp_path: Path,
    stop: Callable[[Path, Path, int], None],
    at_step: int,
) -> None:
    out = tmp_path / "bundle"
    stop(out, histories_dir, at_step)
    report = train_small(histories_dir, out, CONFIG)
    assert validations_of(out) == validations_of(whole.out)
    assert report.best_step == whole.report.best_step
    assert (out / "model.safetensors").read_bytes() == (
        whole.out / "model.safetensors"
    ).read_bytes()


def test_after_sigterm_the_resumed_training_measures_first(
    whole: Whole,
    histories_dir: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "bundle"
    stop_by_sigterm(out, histories_dir, 20)
    train_small(histories_dir, out, dataclasses.replace(CONFIG, log_every=1))
    assert validations_of(out) == validations_of(whole.out)
    tensors = load_file(out / "model.safetensors")
    for name, tensor in load_file(whole.out / "model.safetensors").items():
        assert tensor.equal(tensors[name])


def test_a_bound_in_seconds_ends_it_with_the_best_weights(
    histories_dir: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "bundle"
    config = dataclasses.replace(CONFIG, epochs=400, max_seconds=2.0)
    rows: list[CurveRow] = []
    report = train_small(histories_dir, out, config, on_progress=lambda row, _: rows.append(row))
    assert report.stopped_by == "time"
    measured = validations_of(out)
    assert measured[-1]["step"] == report.num_steps
    assert report.best_step == best_of(measured)["step"]
    assert rows[-1].step == report.num_steps
    assert rows[0].seconds_left is not None
    assert 0 <= rows[0].seconds_left <= 2.0


def test_without_validation_requests_nothing_is_measured(tmp_path: Path) -> None:
    histories_dir = small_histories.write(tmp_path / "histories")
    config = dataclasses.replace(CONFIG, epochs=1)
    report = train_small(histories_dir, tmp_path / "bundle", config)
    assert report.num_validations == 0
    assert report.validation_auc is None
    assert report.best_step == report.num_steps
    assert report.expected_gain is None
    assert "validation_auc" not in read_curve(tmp_path / "bundle")[0]


@pytest.mark.parametrize("name", ["validate_every", "patience", "max_seconds"])
def test_negative_bounds_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"train.{name} must not be negative"):
        TrainConfig(**{name: -1})


def test_the_bundle_has_the_served_length_that_validation_chose(
    histories_dir: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "bundle"
    config = dataclasses.replace(CONFIG, epochs=1)
    # A pipeline passes whole numbers as floats.
    train_small(histories_dir, out, config, served_lengths=(2.0, 16.0, 32.0, 64.0))
    bundle = Bundle.load(out)
    assert isinstance(bundle.served_length, int)
    choice = bundle.facts["validation"]["served_length"]
    assert bundle.served_length == choice["length"]
    assert [row["length"] for row in choice["curve"]] == [2, 16, 32, 64]
    level = [row["length"] for row in choice["curve"] if row["difference_high"] >= 0]
    assert bundle.served_length == level[0]


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        ({}, (500, 1_000, 2_000, 5_000, 10_000)),
        ({"lengths": (50, 0, 10)}, (10, 50)),
        ({"lengths": (50, 0, 10), "served_length": 7}, (7,)),
    ],
)
def test_a_length_of_0_is_evaluated_but_not_served(
    settings: dict[str, Any],
    lengths: tuple[int, ...],
) -> None:
    assert EvaluateConfig(**settings).served_lengths == lengths
    with pytest.raises(ConfigError, match="Name a length above 0"):
        EvaluateConfig(lengths=(0,))


def rows_of(*aucs: float | None) -> list[ValidationRow]:
    """Return validations after 100, 200, 400, ... steps."""
    return [ValidationRow(100 * 2**index, auc, 0.5, 1.0) for index, auc in enumerate(aucs)]


@pytest.mark.parametrize(
    ("aucs", "gain"),
    [
        ((0.6, 0.7, 0.72), 0.02),
        ((0.5, 0.6, 0.61, 0.62), 0.01),
        ((0.6, 0.7, 0.69), 0.0),
        ((0.7, 0.7), 0.0),
        ((0.7,), None),
        ((None, None), None),
        ((), None),
    ],
)
def test_the_gain_of_longer_training_continues_the_trend(
    aucs: tuple[float | None, ...],
    gain: float | None,
) -> None:
    found = expected_gain(rows_of(*aucs))
    assert found == (None if gain is None else pytest.approx(gain))


def test_close_measurements_are_not_extrapolated_one_by_one() -> None:
    aucs = [0.70, 0.71, 0.70, 0.71, 0.70, 0.75]
    rows = [ValidationRow(100 + 20 * index, auc, 0.5, 1.0) for index, auc in enumerate(aucs)]
    gain = expected_gain(rows)
    assert gain is not None
    assert 0 < gain < 0.05


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_redirected_console_gets_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    caplog.set_level(logging.INFO, "longrec")
    with progress.progress_reporter(None) as reporter:
        for step in range(1, 101):
            clock.now += 0.5
            row = dataclasses.replace(
                NO_ROW,
                step=step,
                loss=0.5,
                validation_auc=0.75 if step >= 30 else None,
                validation_logloss=0.4 if step >= 30 else None,
                seconds_left=(100 - step) / 2,
            )
            if step % 8:
                reporter.tick(lambda row=row: row, 100)
            else:
                reporter.show(row, 100)
    lines = [record.getMessage() for record in caplog.records]
    steps = [int(line.split()[1].partition("/")[0]) for line in lines]
    assert steps == [20, 32, 52, 72, 92]
    assert lines[1].startswith("step 32/100 loss 0.5000, validation AUC 0.7500, ")
    assert lines[1].endswith(", 34 s left")


def test_shifts_make_mean_scores_equal_mean_labels() -> None:
    rng = np.random.default_rng(0)
    scores = rng.beta(1, 9, (20_000, 2))
    labels = rng.random((20_000, 2)) < scores * [2.0, 0.5]
    shifts = logit_shifts(labels, scores)
    shifted = 1 / (1 + np.exp(-np.log(scores / (1 - scores)) - shifts))
    np.testing.assert_allclose(shifted.mean(axis=0), labels.mean(axis=0), rtol=0.02)
    assert shifts[0] > 0 > shifts[1]


def test_few_positives_hardly_shift_a_logit() -> None:
    scores = np.full((100, 1), 0.01)
    none, one = np.zeros((100, 1)), np.eye(100, 1)
    assert logit_shifts(one, scores)[0] == pytest.approx(0, abs=1e-6)
    assert -0.1 < logit_shifts(none, scores)[0] < 0


def test_a_calibrated_bundle_differs_in_its_shifts_alone(
    whole: Whole, histories_dir: Path, tmp_path: Path
) -> None:
    train_small(histories_dir, tmp_path / "bundle", dataclasses.replace(CONFIG, calibrate=True))
    weights = load_file(tmp_path / "bundle" / "model.safetensors")
    before = load_file(whole.out / "model.safetensors")
    shift = (weights.pop("head.bias") - before.pop("head.bias")).numpy()
    assert all(np.array_equal(weights[name], value) for name, value in before.items())
    bundle = Bundle.load(tmp_path / "bundle")
    assert list(bundle.facts["logit_shifts"].values()) == pytest.approx(shift.tolist(), abs=1e-5)
    encoded = EncodedHistories.encode(
        Histories.open(histories_dir), bundle.encoder, tmp_path / "encoded"
    )
    sample = draw_validation_sample(encoded, CONFIG, SEED)
    assert sample is not None
    scores = score_sample(Scorer.load(tmp_path / "bundle"), encoded, sample, bundle.served_length)
    calibration = scores.mean() / sample.labels.mean()
    assert calibration == pytest.approx(1, abs=0.1)
