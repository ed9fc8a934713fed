"""Fixtures of this folder: small histories, a ranker trained on them, and its evaluation."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.config import LengthConfig, ModelConfig, TrainConfig
from longrec.data.files import read_json, write_json
from longrec.evaluation.evaluate import EvaluationReport
from tests.longrec import small_histories
from tests.longrec.evaluation.evaluations import run_evaluation


@pytest.fixture(scope="package")
def histories_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Histories of 60 users whose manifest knows the best possible AUC."""
    folder = tmp_path_factory.mktemp("data")
    path = small_histories.write(
        folder / "histories",
        num_users=60,
        requests_per_user=10,
    )
    manifest = read_json(path / "manifest.json")
    manifest["dataset"] = "small"
    manifest["dataset_facts"] = {
        "best_possible_auc": [{"length": 4, "auc": 0.8}, {"length": 16, "auc": 0.9}],
        "best_possible_auc_full": 0.92,
    }
    write_json(path / "manifest.json", manifest)
    return path


@pytest.fixture(scope="package")
def bundle_dir(histories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ranker, trained on the histories."""
    from longrec.training.train import train

    out_dir = tmp_path_factory.mktemp("bundle") / "bundle"
    model = ModelConfig(
        width=16,
        num_layers=2,
        num_heads=2,
        id_dim=8,
        feature_dim=4,
        mixer_layers=1,
    )
    settings = TrainConfig(
        epochs=8,
        token_budget=600,
        max_requests_per_batch=16,
        learning_rate=5e-3,
        device="cpu",
        log_every=5,
    )
    train(
        histories_dir,
        out_dir,
        model,
        lengths=LengthConfig("full", maximum=64),
        train=settings,
        served_lengths=[64],
        seed=0,
    )
    return out_dir


@pytest.fixture(scope="package")
def report(
    histories_dir: Path,
    bundle_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> EvaluationReport:
    """The evaluation of the ranker with CONFIG and GATE."""
    out_dir = tmp_path_factory.mktemp("out") / "evaluation"
    return run_evaluation(bundle_dir, histories_dir, out_dir)


@pytest.fixture(scope="package")
def predictions(report: EvaluationReport) -> pa.Table:
    """The predictions that the evaluation wrote."""
    return pq.read_table(Path(report.path) / "predictions.parquet")
