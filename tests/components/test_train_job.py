"""The step that has a TrainJob train: its bundle and metrics are those of the job."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from components.train_job import train_job
from longrec.config_file import load_config
from longrec.scoring.bundle import Bundle
from longrec.training.train import train
from pipelines import kubeflow_trainer
from pipelines.platform_config import PlatformConfig
from tests.longrec import small_histories


def test_the_bundle_and_the_metrics_are_the_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = small_histories.write(tmp_path / "histories")
    client = types.SimpleNamespace(
        list_jobs=lambda: [], get_job=lambda name: types.SimpleNamespace(status="Complete")
    )

    def submit(client: Any, job: kubeflow_trainer.TrainingJob, platform: PlatformConfig) -> str:
        """Does what the nodes do with what the step left for them."""
        settings = load_config(job.folder / "config.yaml")
        assert platform.trainer.num_nodes == 2
        expected = kubeflow_trainer.prepare(histories, settings, platform, code_key="key")
        assert job.fingerprint == expected.fingerprint
        assert job.arguments[2:4] == [
            str(job.folder / "histories"),
            str(job.bundle),
        ]
        train(
            job.folder / "histories",
            job.bundle,
            settings.model,
            lengths=settings.lengths,
            train=settings.train,
            served_lengths=settings.evaluate.served_lengths,
            seed=settings.seed,
        )
        return "job"

    monkeypatch.setattr(kubeflow_trainer, "_client", lambda platform: client)
    monkeypatch.setattr(kubeflow_trainer, "submit", submit)
    bundle, metrics = (
        dsl.Model(uri=str(tmp_path / "out" / "bundle")),
        dsl.Metrics(uri=str(tmp_path / "out" / "metrics")),
    )
    train_job.python_func(
        histories=dsl.Dataset(uri=str(histories)),
        histories_report=dsl.HTML(uri="report"),
        code_key="key",
        served_lengths=[64],
        seed=3,
        model={"width": 16, "num_heads": 2, "id_dim": 8, "feature_dim": 4, "mixer_layers": 1},
        lengths={"maximum": 64, "mean": 32},
        training={"max_steps": 3, "token_budget": 300, "device": "cpu", "tensorboard": False},
        platform={
            "workdir": str(tmp_path / "workdir"),
            "trainer": {"engine": "kubeflow", "num_nodes": 2},
        },
        bundle=bundle,
        metrics=metrics,
    )
    assert Bundle.load(bundle.path).served_length == 64
    assert bundle.metadata["checked_by"] == "report"
    assert json.loads(Path(metrics.path).read_text())["num_steps"] == 3
    assert not list((tmp_path / "workdir" / "train-jobs").iterdir())
