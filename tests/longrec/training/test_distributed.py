"""Several processes under torchrun: what they train is what one trains, and one that dies ends the
job until it is started again.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    "lengths": {"distribution": "beta", "minimum": 0, "mean": 32, "maximum": 64},
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
    },
}
DIES = """
import os
from longrec.cli import main as cli
from longrec.training import trainer

rank, step, number = map(int, os.environ["DIES"].split())
go, taken = trainer.Trainer.step, []

def dies(self, *batch):
    if len(taken) == step and int(os.environ.get("RANK", "0")) == rank:
        os.kill(os.getpid(), number)
    taken.append(1)
    return go(self, *batch)

trainer.Trainer.step = dies
cli.main()
"""
"""The command `longrec`, in which a rank gets a signal after so many steps."""
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-4, 1e-3
"""Relative, of a step's loss; absolute, of a weight. Sums in float32 come in another order, and
AdamW's first steps are signs of them.
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    (root / "dies.py").write_text(DIES)
    (root / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return small_histories.write(root / "histories")


def command(
    directory: Path,
    out: Path,
    *sets: str,
    num_processes: int,
    program: tuple[str, ...] = ("-m", "longrec"),
) -> list[str]:
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
        if num_processes > 1
        else []
    )
    overrides = [word for entry in sets for word in ("--set", entry)]
    config = str(directory.parent / "config.yaml")
    return [
        sys.executable,
        *torchrun,
        *program,
        "train",
        str(directory),
        str(out),
        "--config",
        config,
        *overrides,
    ]


def run(
    directory: Path, out: Path, *sets: str, num_processes: int
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(directory, out, *sets, num_processes=num_processes),
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=800,
    )


def curve(out: Path) -> list[dict[str, str]]:
    with open(out / "training_curve.csv", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def report_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "bundle.json").read_text())["facts"]


def assert_same_training(one: Path, two: Path) -> None:
    left, right = curve(one), curve(two)
    assert len(left) == len(right) >= 10
    for a, b in zip(left, right, strict=True):
        assert (a["step"], a["events"], a["targets"]) == (b["step"], b["events"], b["targets"])
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=LOSS_TOLERANCE)
        assert float(a["gradient_norm"]) == pytest.approx(
            float(b["gradient_norm"]), rel=10 * LOSS_TOLERANCE
        )
    weights, others = (load_file(out / "model.safetensors") for out in (one, two))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(
            others[name],
            tensor,
            rtol=0,
            atol=WEIGHT_TOLERANCE,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.fixture(scope="module")
def one(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "bundle"
    done = run(directory, out, num_processes=1)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def two(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two") / "bundle"
    done = run(directory, out, num_processes=2)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr.replace("OMP_NUM_THREADS", "")
    return out


def test_two_processes_train_what_one_trains(one: Path, two: Path) -> None:
    assert_same_training(one, two)
    assert sorted(path.name for path in two.parent.iterdir()) == [
        "bundle"
    ]  # no lock, cache or checkpoint of any rank is left


@pytest.mark.slow
@pytest.mark.parametrize(
    "sets",
    [
        ("train.loss=target", "train.recompute=true"),
        ("model.kind=transformer", "model.recency=token"),
    ],
)
def test_so_do_they_with_other_losses_and_models(
    directory: Path, tmp_path: Path, sets: tuple[str, ...]
) -> None:
    for name, num_processes in (("one", 1), ("three", 3)):
        done = run(directory, tmp_path / name, *sets, num_processes=num_processes)
        assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path / "one", tmp_path / "three")


def dying(
    directory: Path,
    out: Path,
    *options: str,
    rank: int,
    step: int,
    num_processes: int = 2,
    number: signal.Signals = signal.SIGKILL,
) -> subprocess.CompletedProcess[str]:
    """Returns a job of which one rank got a signal after a step; the job has ended by itself then,
    with a failure.
    """
    words = command(
        directory, out, num_processes=num_processes, program=(str(directory.parent / "dies.py"),)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DIES": f"{rank} {step} {number.value}"}
    done = subprocess.run(
        [*words, *options],
        text=True,
        capture_output=True,
        check=False,
        timeout=800,
        env=environment,
    )
    assert done.returncode != 0
    return done


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_and_the_same_command_goes_on(
    directory: Path, two: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    text = dying(directory, out, rank=1, step=6).stderr
    assert not out.exists()
    assert "rank      : 1" in text and "Signal 9 (SIGKILL)" in text.partition("Root Cause")[2]
    done = run(directory, out, num_processes=2)
    assert done.returncode == 0 and "going on after step" in done.stderr
    weights, uninterrupted = (
        load_file(out / "model.safetensors"),
        load_file(two / "model.safetensors"),
    )
    assert all(torch.equal(weights[name], uninterrupted[name]) for name in weights)
    assert [row["loss"] for row in curve(out)] == [row["loss"] for row in curve(two)]


@pytest.mark.slow
def test_one_rank_that_is_told_to_stop_stops_all_after_the_same_step(
    directory: Path, two: Path, tmp_path: Path
) -> None:
    """As when Kubernetes takes one node of a job away."""
    out = tmp_path / "bundle"
    text = dying(directory, out, rank=1, step=6, number=signal.SIGTERM).stderr
    steps = {
        line.partition("found step ")[2].partition(" ")[0]
        for line in text.splitlines()
        if "told to stop" in line
    }
    assert len(steps) == 1 and "exitcode  : 143" in text, text
    done = run(directory, out, num_processes=2)
    assert done.returncode == 0 and f"going on after step {steps.pop()}" in done.stderr
    weights, uninterrupted = (
        load_file(out / "model.safetensors"),
        load_file(two / "model.safetensors"),
    )
    assert all(torch.equal(weights[name], uninterrupted[name]) for name in weights)


@pytest.mark.slow
def test_a_job_that_is_told_to_stop_ends_with_the_exit_code_of_it(
    directory: Path, tmp_path: Path
) -> None:
    job = dying(
        directory, tmp_path / "bundle", rank=0, step=3, num_processes=1, number=signal.SIGTERM
    )
    assert job.returncode == 143
    assert job.stderr.splitlines()[-1].startswith(
        "longrec: the training was told to stop (SIGTERM)"
    ), job.stderr
    assert len(list(tmp_path.glob(".bundle.work/checkpoints/*/step-*"))) >= 1


ROW_WISE = "train.embedding_sharding=row_wise"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "num_processes"),
    [((), (), 1), ((ROW_WISE,), (), 1), ((ROW_WISE,), (ROW_WISE,), 2)],
)
def test_any_number_of_processes_goes_on_where_two_stopped(
    directory: Path,
    one: Path,
    tmp_path: Path,
    first: tuple[str, ...],
    second: tuple[str, ...],
    num_processes: int,
) -> None:
    if first:
        pytest.importorskip("torchrec")
    out, volume = tmp_path / "bundle", ["--checkpoint-dir", str(tmp_path / "checkpoints")]
    dying(
        directory,
        out,
        *(word for entry in first for word in ("--set", entry)),
        *volume,
        rank=0,
        step=10,
    )
    assert len(list((tmp_path / "checkpoints").glob("*/step-*"))) == 2
    done = subprocess.run(
        [*command(directory, out, *second, num_processes=num_processes), *volume],
        text=True,
        capture_output=True,
        check=False,
        timeout=800,
    )
    assert done.returncode == 0 and "going on after step 8" in done.stderr, done.stderr
    assert_same_training(one, out)
    assert (
        sum(parameter.numel() for parameter in Bundle.load(out).ranker.parameters())
        == report_of(one)["num_parameters"]
    )
    assert report_of(out)["num_parameters"] == report_of(one)["num_parameters"]


def test_without_torchrec_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchrec", None)
    features = FeatureEmbedding([Feature("item_id", "id")], [5], id_dim=4, feature_dim=4)
    config = TrainConfig(embedding_sharding="row_wise")
    with pytest.raises(
        ConfigError,
        match=r"needs TorchRec.*pip install --no-deps -c constraints.txt torchrec fbgemm-gpu-cpu",
    ):
        sharded_tables.shard(features, config, DistributedContext(0, 2))


def test_one_process_says_that_it_shards_nothing(caplog: pytest.LogCaptureFixture) -> None:
    features = FeatureEmbedding([Feature("item_id", "id")], [5], id_dim=4, feature_dim=4)
    assert (
        sharded_tables.shard(
            features, TrainConfig(embedding_sharding="row_wise"), DistributedContext()
        )
        is None
    )
    assert not features.is_sharded and "this one holds its id tables whole" in caplog.text


@pytest.mark.slow
def test_a_mistake_is_one_line_of_each_rank_that_made_it(directory: Path, tmp_path: Path) -> None:
    done = run(directory.parent / "nowhere", tmp_path / "bundle", num_processes=2)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("longrec [rank")]
    assert lines and all("nowhere" in line for line in lines)
