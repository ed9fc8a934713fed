"""Compare rankers with a champion: worse, equal, miscalibrated and broken ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from longrec.data.files import read_json
from longrec.schema import Schema
from longrec.scoring.bundle import Bundle
from longrec.training.loop import make_ranker
from tests.longrec import small_histories
from tests.longrec.evaluation.evaluations import (
    LENIENT_GATE,
    failed_criteria,
    run_evaluation,
)
from tests.longrec.pages import text_of


def save_changed(
    bundle_dir: Path,
    out_dir: Path,
    change: Callable[[Bundle], Bundle],
) -> Path:
    change(Bundle.load(bundle_dir)).save(out_dir)
    return out_dir


def untrained(bundle: Bundle) -> Bundle:
    ranker = make_ranker(bundle.config, bundle.encoder, 7)
    with torch.no_grad():
        ranker.head.bias.copy_(bundle.ranker.head.bias)
    return dataclasses.replace(bundle, ranker=ranker.eval())


def miscalibrated(bundle: Bundle) -> Bundle:
    with torch.no_grad():
        bundle.ranker.head.bias += 1.5
    return bundle


def with_broken_encoder(bundle: Bundle) -> Bundle:
    """Make every second item unknown, and give the others the rows of wrong items."""
    item_ids = bundle.encoder.item_ids
    known = item_ids[::2]
    num_unknown = len(item_ids) - len(known)
    unknown = known[-1] + 1_000 + np.arange(num_unknown)
    ids = np.concatenate([known, unknown])
    encoder = dataclasses.replace(bundle.encoder, item_ids=ids)
    return dataclasses.replace(bundle, encoder=encoder)


def without_user_features(bundle: Bundle, histories_dir: Path) -> Bundle:
    """Return an untrained bundle of another schema."""
    manifest = read_json(histories_dir / "manifest.json")
    schema = Schema.from_dict({**manifest["schema"], "user": []})
    feature_encoders = {**bundle.encoder.feature_encoders, "user": ()}
    encoder = dataclasses.replace(bundle.encoder, schema=schema, feature_encoders=feature_encoders)
    ranker = make_ranker(bundle.config, encoder, 0)
    return dataclasses.replace(bundle, encoder=encoder, ranker=ranker)


def test_the_gate_fails_a_worse_model_and_passes_a_better_one(
    histories_dir: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    worse_dir = save_changed(bundle_dir, tmp_path / "worse", untrained)
    worse = run_evaluation(
        worse_dir,
        histories_dir,
        tmp_path / "a",
        gate=LENIENT_GATE,
        champion_dir=bundle_dir,
    )
    better = run_evaluation(
        bundle_dir,
        histories_dir,
        tmp_path / "b",
        gate=LENIENT_GATE,
        champion_dir=worse_dir,
    )
    assert not worse.gate.passed
    assert better.gate.passed, better.gate.reasons
    assert failed_criteria(worse) >= {"max_loss_to_champion", "max_slice_loss"}
    ours = better.champion["differences"]["click"]
    theirs = worse.champion["differences"]["click"]
    assert ours["low"] > 0.1
    assert ours["value"] == pytest.approx(-theirs["value"])
    assert better.champion["version"] == Bundle.load(worse_dir).version
    assert "minus champion" in text_of(tmp_path / "b" / "report.html")
    assert "AUC minus champion" in text_of(tmp_path / "a" / "report.html")


def test_a_model_equals_itself_as_champion(
    histories_dir: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    report = run_evaluation(
        bundle_dir,
        histories_dir,
        tmp_path / "out",
        gate=dataclasses.replace(LENIENT_GATE, max_loss_to_champion=0.0),
        champion_dir=bundle_dir,
    )
    assert report.gate.passed
    for row in report.champion["differences"].values():
        assert (row["value"], row["low"], row["high"]) == (0.0, 0.0, 0.0)


def test_the_gate_fails_a_miscalibrated_model_whose_order_is_right(
    histories_dir: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    gate = dataclasses.replace(
        LENIENT_GATE,
        max_calibration=1.25,
        min_calibration=0.8,
        max_ece=0.06,
    )
    report = run_evaluation(
        save_changed(bundle_dir, tmp_path / "wrong", miscalibrated),
        histories_dir,
        tmp_path / "out",
        gate=gate,
        champion_dir=bundle_dir,
    )
    assert failed_criteria(report) == {"max_calibration", "max_ece"}
    assert any("calibration of click" in reason for reason in report.gate.reasons)


def test_the_gate_fails_a_broken_encoder(
    histories_dir: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    report = run_evaluation(
        save_changed(bundle_dir, tmp_path / "wrong", with_broken_encoder),
        histories_dir,
        tmp_path / "out",
        gate=dataclasses.replace(LENIENT_GATE, max_unknown_item_share=0.05),
        champion_dir=bundle_dir,
    )
    assert failed_criteria(report) >= {"max_loss_to_champion", "max_unknown_item_share"}
    assert report.unknown_item_share > 0.3


def test_a_champion_of_another_schema_fails_the_gate_with_its_reason(
    histories_dir: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    other_dir = small_histories.write(tmp_path / "other")
    champion = without_user_features(Bundle.load(bundle_dir), other_dir)
    champion.save(tmp_path / "champion")
    report = run_evaluation(
        bundle_dir,
        histories_dir,
        tmp_path / "out",
        gate=LENIENT_GATE,
        champion_dir=tmp_path / "champion",
    )
    assert not report.gate.passed
    assert len(report.gate.reasons) == 1
    assert "another schema" in report.gate.reasons[0]
