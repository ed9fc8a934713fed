"""Several processes under torchrun train what one process trains.

A rank that dies ends the job until it is started again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
import yaml
from safetensors.torch import load_file

from longrec.config import TrainConfig
from longrec.errors import ConfigError
from longrec.nn.layers import FeatureEmbedding
from longrec.schema import Feature
from longrec.scoring.bundle import Bundle
from longrec.training import sharded_tables
from longrec.training.distributed import DistributedContext
from tests.longrec import small_histories
from tests.longrec.training.small_training import read_curve

Process: TypeAlias = subprocess.CompletedProcess[str]
CONFIG = {
    "seed": 3,
    "model": {
        "width": 16,
        "num_layers": 2,
        "num_heads": 2,
        "id_dim": 8,
        "feature_dim": 4,
        "mixer_layers": 1,
    },
    "lengths": {
        "distribution": "beta",
        "minimum": 0,
        "mean": 32,
        "maximum": 64,
    },
    "train": {
        "epochs": 1,
        "max_steps": 24,
        "token_budget": 60,
        "max_requests_per_batch": 16,
        "learning_rate": 5e-3,
        "log_every": 1,
        "device": "cpu",
        "checkpoint_every": 4,
        "tensorboard": False,
        "validate_every": 12,
    },
}
DYING_RANK = Path(__file__).with_name("dying_rank.py")
RECIPE = (
    "train.epochs=6",
    "train.token_budget=600",
    "train.accumulate_steps=3",
    "train.ema_decay=0.5",
    "train.redraw_ids=true",
    "train.id_weight_decay=1e-5",
    "train.feature_learning_rate=1e-2",
    "train.id_min_count=5",
    "train.schedule=constant",
)
"""Settings that change what a step does or keep a state between steps."""
ROW_WISE = "train.embedding_sharding=row_wise"
TIMEOUT_SECONDS = 800
LOSS_TOLERANCE = 1e-4
"""Relative, of a step's loss: sums in float32 come in another order."""
WEIGHT_TOLERANCE = 1e-3
"""Absolute, of a weight: AdamW's first steps are signs of such sums."""


@pytest.fixture(scope="module")
def histories_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small histories, next to the configuration of the training."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return small_histories.write(folder / "histories", validation_fraction=0.2)


def train_command(
    histories_dir: Path,
    out: Path,
    *overrides: str,
    num_processes: int,
    program: tuple[str, ...] = ("-m", "longrec"),
) -> list[str]:
    """Return the command of a training, under torchrun if it has several processes."""
    command = [sys.executable]
    if num_processes > 1:
        command += [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(num_processes),
        ]
    command += [
        *program,
        "train",
        str(histories_dir),
        str(out),
        "--config",
        str(histories_dir.with_name("config.yaml")),
    ]
    for override in overrides:
        command += ["--set", override]
    return command


def run(command: list[str], **environment: str) -> Process:
    return subprocess.run(
        command,
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=TIMEOUT_SECONDS,
    )


def train(
    histories_dir: Path,
    out: Path,
    *overrides: str,
    num_processes: int,
) -> Process:
    """Train in processes of their own; return the finished job, which has succeeded."""
    command = train_command(
        histories_dir,
        out,
        *overrides,
        num_processes=num_processes,
    )
    done = run(command)
    assert done.returncode == 0, done.stderr
    return done


def train_with_signal(
    histories_dir: Path,
    out: Path,
    *options: str,
    rank: int,
    step: int,
    num_processes: int = 2,
    number: signal.Signals = signal.SIGKILL,
) -> Process:
    """Train until one rank gets a signal after a step; return the job, which has failed."""
    command = train_command(
        histories_dir,
        out,
        num_processes=num_processes,
        program=(str(DYING_RANK),),
    )
    done = run([*command, *options], DYING_RANK=f"{rank} {step} {number.value}")
    assert done.returncode != 0
    return done


def facts_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "bundle.json").read_text())["facts"]


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def losses_of(out: Path) -> list[str]:
    return [row["loss"] for row in read_curve(out)]


def assert_same_training(one: Path, other: Path) -> None:
    """Check that two trainings differ by rounding only."""
    rows = read_curve(one)
    other_rows = read_curve(other)
    assert len(rows) == len(other_rows) >= 10
    for row, other_row in zip(rows, other_rows, strict=True):
        for name in ("step", "events", "targets"):
            assert row[name] == other_row[name]
        loss = float(other_row["loss"])
        assert float(row["loss"]) == pytest.approx(loss, rel=LOSS_TOLERANCE)
        norm = float(other_row["gradient_norm"])
        assert float(row["gradient_norm"]) == pytest.approx(norm, rel=10 * LOSS_TOLERANCE)
    weights = weights_of(one)
    other_weights = weights_of(other)
    assert weights.keys() == other_weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(
            other_weights[name],
            tensor,
            rtol=0,
            atol=WEIGHT_TOLERANCE,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def assert_equal_training(one: Path, other: Path) -> None:
    """Check that two trainings are equal bit for bit."""
    weights = weights_of(one)
    other_weights = weights_of(other)
    for name, tensor in weights.items():
        assert torch.equal(tensor, other_weights[name])
    assert losses_of(one) == losses_of(other)


@pytest.fixture(scope="module")
def one(histories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a training by one process."""
    out = tmp_path_factory.mktemp("one") / "bundle"
    done = train(histories_dir, out, num_processes=1)
    assert "Warning" not in done.stderr
    return out


@pytest.fixture(scope="module")
def two(histories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a training by two processes."""
    out = tmp_path_factory.mktemp("two") / "bundle"
    done = train(histories_dir, out, num_processes=2)
    assert "Warning" not in done.stderr.replace("OMP_NUM_THREADS", "")
    return out


def test_two_processes_train_what_one_trains(one: Path, two: Path) -> None:
    assert_same_training(one, two)
    # no lock, cache or checkpoint of any rank is left
    assert [path.name for path in two.parent.iterdir()] == ["bundle"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("train.loss=target", "train.recompute=true"),
        ("model.kind=transformer", "model.recency=token"),
        ("model.crosses=true", "train.id_dropout=0.3"),
        # Later steps differ more: a weight that starts at 0 moves by the sign of such sums.
        ("model.item_rates=true", "train.max_steps=10"),
        (*RECIPE, "train.max_steps=10"),
    ],
)
def test_so_do_they_with_other_losses_and_models(
    histories_dir: Path,
    tmp_path: Path,
    overrides: tuple[str, ...],
) -> None:
    train(
        histories_dir,
        tmp_path / "one",
        *overrides,
        num_processes=1,
    )
    train(
        histories_dir,
        tmp_path / "three",
        *overrides,
        num_processes=3,
    )
    assert_same_training(tmp_path / "one", tmp_path / "three")


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_and_the_same_command_resumes(
    histories_dir: Path,
    two: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "bundle"
    text = train_with_signal(
        histories_dir,
        out,
        rank=1,
        step=6,
    ).stderr
    assert not out.exists()
    assert "rank      : 1" in text
    assert "Signal 9 (SIGKILL)" in text.partition("Root Cause")[2]
    done = train(histories_dir, out, num_processes=2)
    assert "resuming after step" in done.stderr
    assert_equal_training(out, two)


@pytest.mark.slow
def test_so_does_one_with_a_moving_average_and_a_schedule_of_validations(
    histories_dir: Path,
    tmp_path: Path,
) -> None:
    settings = (*RECIPE, "train.schedule=plateau", "train.patience=0", "train.max_steps=0")
    train(histories_dir, tmp_path / "whole", *settings, num_processes=2)
    options = [word for setting in settings for word in ("--set", setting)]
    out = tmp_path / "bundle"
    train_with_signal(histories_dir, out, *options, rank=1, step=14)
    done = train(histories_dir, out, *settings, num_processes=2)
    assert "resuming after step 12" in done.stderr
    assert_equal_training(out, tmp_path / "whole")


@pytest.mark.slow
def test_sigterm_on_one_rank_stops_all_after_the_same_step(
    histories_dir: Path,
    two: Path,
    tmp_path: Path,
) -> None:
    """As when Kubernetes removes one node of a job."""
    out = tmp_path / "bundle"
    text = train_with_signal(
        histories_dir,
        out,
        rank=1,
        step=6,
        number=signal.SIGTERM,
    ).stderr
    steps = set()
    for line in text.splitlines():
        if "SIGTERM stopped the training" in line:
            after = line.partition("found step ")[2]
            steps.add(after.partition(" ")[0])
    assert len(steps) == 1, text
    assert "exitcode  : 143" in text, text
    done = train(histories_dir, out, num_processes=2)
    assert f"resuming after step {steps.pop()}" in done.stderr
    assert_equal_training(out, two)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "reason"),
    [("train.patience=1", "patience"), ("train.max_seconds=1", "time")],
)
def test_all_ranks_stop_early_after_the_same_step(
    histories_dir: Path,
    tmp_path: Path,
    override: str,
    reason: str,
) -> None:
    out = tmp_path / "bundle"
    overrides = ("train.max_steps=0", "train.epochs=90", "train.validate_every=2", override)
    train(
        histories_dir,
        out,
        *overrides,
        num_processes=2,
    )
    facts = facts_of(out)
    assert facts["stopped_by"] == reason
    assert facts["validation"]["curve"][-1]["step"] == facts["num_steps"]


@pytest.mark.slow
def test_a_job_that_sigterm_stops_ends_with_its_exit_code(
    histories_dir: Path,
    tmp_path: Path,
) -> None:
    done = train_with_signal(
        histories_dir,
        tmp_path / "bundle",
        rank=0,
        step=3,
        num_processes=1,
        number=signal.SIGTERM,
    )
    assert done.returncode == 143
    last_line = done.stderr.splitlines()[-1]
    assert last_line.startswith("longrec: SIGTERM stopped the training"), done.stderr
    checkpoints = tmp_path.glob(".bundle.work/checkpoints/*/step-*")
    assert len(list(checkpoints)) >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "num_processes"),
    [
        ((), (), 1),
        ((ROW_WISE,), (), 1),
        ((ROW_WISE,), (ROW_WISE,), 2),
    ],
)
def test_any_number_of_processes_resumes_where_two_stopped(
    histories_dir: Path,
    one: Path,
    tmp_path: Path,
    first: tuple[str, ...],
    second: tuple[str, ...],
    num_processes: int,
) -> None:
    if first:
        pytest.importorskip("torchrec")
    out = tmp_path / "bundle"
    checkpoints = tmp_path / "checkpoints"
    volume = ["--checkpoint-dir", str(checkpoints)]
    options = [word for override in first for word in ("--set", override)]
    train_with_signal(
        histories_dir,
        out,
        *options,
        *volume,
        rank=0,
        step=10,
    )
    assert len(list(checkpoints.glob("*/step-*"))) == 2
    command = train_command(
        histories_dir,
        out,
        *second,
        num_processes=num_processes,
    )
    done = run([*command, *volume])
    assert done.returncode == 0, done.stderr
    assert "resuming after step 8" in done.stderr, done.stderr
    assert_same_training(one, out)
    ranker = Bundle.load(out).ranker
    num_parameters = facts_of(one)["num_parameters"]
    assert sum(parameter.numel() for parameter in ranker.parameters()) == num_parameters
    assert facts_of(out)["num_parameters"] == num_parameters


def id_features() -> FeatureEmbedding:
    return FeatureEmbedding(
        [Feature("item_id", "id")],
        [5],
        id_dim=4,
        feature_dim=4,
    )


def test_without_torchrec_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchrec", None)
    config = TrainConfig(embedding_sharding="row_wise")
    message = r"needs TorchRec.*pip install --no-deps -c constraints.txt torchrec fbgemm-gpu-cpu"
    with pytest.raises(ConfigError, match=message):
        sharded_tables.shard(id_features(), config, DistributedContext(0, 2))


def test_one_process_logs_that_it_shards_nothing(caplog: pytest.LogCaptureFixture) -> None:
    features = id_features()
    config = TrainConfig(embedding_sharding="row_wise")
    assert sharded_tables.shard(features, config, DistributedContext()) is None
    assert not features.is_sharded
    assert "this one holds its id tables whole" in caplog.text


@pytest.mark.slow
def test_a_mistake_is_one_line_of_each_rank_that_made_it(
    histories_dir: Path,
    tmp_path: Path,
) -> None:
    command = train_command(
        histories_dir.with_name("nowhere"),
        tmp_path / "bundle",
        num_processes=2,
    )
    done = run(command)
    assert done.returncode != 0
    lines = []
    for line in done.stderr.splitlines():
        if line.startswith("longrec [rank"):
            lines.append(line)
    assert lines
    assert all("nowhere" in line for line in lines)
