"""Checkpoints: a training that is killed and started again ends with the bytes of one that was not.

`Stop` interrupts a training within this process; killed ones run in processes of their own.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from longrec.config import TrainConfig
from longrec.errors import ConfigError, DataError, Stopped
from longrec.training import resources
from longrec.training.checkpoint import Checkpoint, Checkpoints
from longrec.training.curve import CurveRow
from longrec.training.trainer import Trainer
from tests.longrec.training.killed_training import CONFIG
from tests.longrec.training.small_training import read_curve, train_small

ROOT = Path(__file__).parents[3]
TIME_COLUMNS = {
    "seconds",
    "events_per_second",
    "targets_per_second",
    "memory_bytes",
    "seconds_left",
}
TIMEOUT_SECONDS = 600
SLOW = pytest.mark.slow


class Stop(Exception):
    """Interrupts a training."""


@pytest.fixture(scope="module")
def whole(histories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a training that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "bundle"
    train_small(histories_dir, out, CONFIG)
    return out


def stop(
    histories_dir: Path,
    out: Path,
    config: TrainConfig = CONFIG,
    *,
    at_step: int,
    **options: Any,
) -> None:
    """Train until the row of a step is reported."""

    def listen(row: CurveRow, _: int) -> None:
        if row.step == at_step:
            raise Stop

    with pytest.raises(Stop):
        train_small(
            histories_dir,
            out,
            config,
            on_progress=listen,
            **options,
        )


def losses_of(bundle_dir: Path) -> list[dict[str, str]]:
    """Return the curve without times: log_every is 1, so it has the loss of every step."""
    rows = read_curve(bundle_dir)
    for row in rows:
        for name in TIME_COLUMNS:
            row.pop(name, None)
    return rows


def version_of(bundle_dir: Path) -> str:
    meta = json.loads((bundle_dir / "bundle.json").read_text())
    return meta["version"]


def assert_equal(bundle_dir: Path, whole: Path) -> None:
    """Check that two bundles are equal, and that the first has no other file next to it."""
    name = "model.safetensors"
    assert (bundle_dir / name).read_bytes() == (whole / name).read_bytes()
    assert losses_of(bundle_dir) == losses_of(whole)
    assert len(losses_of(whole)) > 40
    assert version_of(bundle_dir) == version_of(whole)
    assert [path.name for path in bundle_dir.parent.iterdir()] == [bundle_dir.name]


def checkpoints_of(out: Path) -> list[Path]:
    """Return the checkpoints next to a bundle, the oldest first."""
    folder = out.with_name(f".{out.name}.work") / "checkpoints"
    return sorted(folder.glob("*/step-*"))


def start(
    histories_dir: Path,
    out: Path,
    moment: str = "",
    number: int = 0,
) -> subprocess.Popen[str]:
    """Start a training in a process of its own; see killed_training."""
    module = "tests.longrec.training.killed_training"
    arguments = [str(histories_dir), str(out), moment, str(number)]
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )


def train_with_kills(histories_dir: Path, out: Path, seed: int, num_kills: int) -> None:
    """Train in processes that are killed some rows after their first, and then to the end."""
    rng = random.Random(seed)
    for _ in range(num_kills):
        with start(histories_dir, out) as process:
            assert process.stdout is not None
            for _ in range(rng.randint(1, 12)):
                process.stdout.readline()
            time.sleep(rng.random() * 0.05)
            process.kill()
    with start(histories_dir, out) as process:
        _, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 0, stderr


def test_killed_at_a_random_moment_it_ends_with_the_same_bytes(
    histories_dir: Path,
    whole: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "bundle"
    train_with_kills(
        histories_dir,
        out,
        seed=0,
        num_kills=1,
    )
    assert_equal(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_killed_at_many_random_moments_it_ends_with_the_same_bytes(
    histories_dir: Path,
    whole: Path,
    tmp_path: Path,
    seed: int,
) -> None:
    out = tmp_path / "bundle"
    train_with_kills(
        histories_dir,
        out,
        seed=seed,
        num_kills=5,
    )
    assert_equal(out, whole)


@pytest.mark.parametrize(
    "moment",
    [
        "half of the tensors",
        pytest.param("no values yet", marks=SLOW),
        pytest.param("not yet renamed", marks=SLOW),
        pytest.param("old one not removed", marks=SLOW),
    ],
)
def test_killed_inside_a_write_it_ends_with_the_same_bytes(
    histories_dir: Path,
    whole: Path,
    tmp_path: Path,
    moment: str,
) -> None:
    out = tmp_path / "bundle"
    with start(histories_dir, out, moment, 3) as process:
        _, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == -signal.SIGKILL, stderr
    assert not (out / "bundle.json").exists()
    train_small(histories_dir, out, CONFIG)
    assert_equal(out, whole)


@pytest.mark.parametrize(
    "at_step",
    [
        5,
        30,
        pytest.param(1, marks=SLOW),
        pytest.param(4, marks=SLOW),
        pytest.param(25, marks=SLOW),
    ],
)
def test_stopped_at_a_step_it_ends_with_the_same_bytes(
    histories_dir: Path,
    whole: Path,
    tmp_path: Path,
    at_step: int,
) -> None:
    out = tmp_path / "bundle"
    stop(histories_dir, out, at_step=at_step)
    # settings that only change the speed may change
    other_speed = dataclasses.replace(
        CONFIG,
        num_workers=3,
        checkpoint_every=7,
    )
    train_small(histories_dir, out, other_speed)
    assert_equal(out, whole)


def test_sigterm_ends_it_between_two_steps_and_it_resumes_from_there(
    histories_dir: Path,
    whole: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "bundle"
    steps = []

    def listen(row: CurveRow, _: int) -> None:
        steps.append(row.step)
        if row.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    message = (
        r"SIGTERM stopped the training; found step 7 of \d+\. Run the same command again: the"
        r" training resumes from there"
    )
    with pytest.raises(Stopped, match=message):
        train_small(
            histories_dir,
            out,
            CONFIG,
            on_progress=listen,
        )
    # step 7 was under way, and no checkpoint was due there
    assert steps[-1] == 7
    assert signal.getsignal(signal.SIGTERM) is before
    train_small(
        histories_dir,
        out,
        CONFIG,
        on_progress=listen,
    )
    assert steps[7] == 8
    assert_equal(out, whole)


def test_a_resumed_training_does_not_start_at_the_beginning(
    histories_dir: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "bundle"
    stop(histories_dir, out, at_step=10)
    steps: list[int] = []
    train_small(
        histories_dir,
        out,
        CONFIG,
        on_progress=lambda row, _: steps.append(row.step),
    )
    # from the checkpoint of step 8: the next one was never written
    assert steps[0] == 9
    assert len(steps) == steps[-1] - 8


@pytest.mark.parametrize(
    "damage",
    [
        "truncated tensors",
        "empty values",
        pytest.param("a flipped byte", marks=SLOW),
        pytest.param("truncated values", marks=SLOW),
        pytest.param("no tensors", marks=SLOW),
    ],
)
def test_a_damaged_checkpoint_is_left_out_with_a_warning(
    histories_dir: Path,
    whole: Path,
    tmp_path: Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "bundle"
    stop(histories_dir, out, at_step=14)
    paths = checkpoints_of(out)
    assert [path.name for path in paths] == ["step-0000000008", "step-0000000012"]
    tensors = paths[-1] / "state.safetensors"
    values = paths[-1] / "state.json"
    if damage == "truncated tensors":
        os.truncate(tensors, tensors.stat().st_size // 2)
    elif damage == "a flipped byte":
        content = bytearray(tensors.read_bytes())
        content[-5] ^= 1
        tensors.write_bytes(content)
    elif damage == "truncated values":
        os.truncate(values, 40)
    elif damage == "no tensors":
        tensors.unlink()
    else:
        values.write_text("[]")
    with caplog.at_level(logging.WARNING):
        train_small(histories_dir, out, CONFIG)
    assert "step-0000000012 is damaged and skipped" in caplog.text
    assert "resuming after step 8 of" in caplog.text
    assert_equal(out, whole)


def test_trainings_may_share_a_volume_of_checkpoints(
    histories_dir: Path,
    whole: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    volume = tmp_path / "volume"
    other = dataclasses.replace(CONFIG, learning_rate=1e-3)
    for name, config in (("first", CONFIG), ("second", other)):
        stop(
            histories_dir,
            tmp_path / name / "bundle",
            config,
            at_step=6,
            checkpoint_dir=volume,
        )
    assert "of 1 others, the newest differs: train.learning_rate 0.005, here 0.001" in caplog.text
    assert len(list(volume.iterdir())) == 2
    # another output, as a retried step gets
    retried = tmp_path / "retried" / "bundle"
    train_small(
        histories_dir,
        retried,
        CONFIG,
        checkpoint_dir=volume,
    )
    assert_equal(retried, whole)
    # its own checkpoints are gone, the other's are not
    assert len(list(volume.iterdir())) == 1


def test_a_checkpoint_of_another_training_is_refused(histories_dir: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    out = tmp_path / "bundle"
    stop(
        histories_dir,
        out,
        at_step=6,
        checkpoint_dir=volume,
    )
    [own] = volume.iterdir()
    stop(
        histories_dir,
        out,
        dataclasses.replace(CONFIG, epochs=3),
        at_step=6,
        checkpoint_dir=volume,
    )
    [other] = [path for path in volume.iterdir() if path != own]
    shutil.rmtree(own)
    other.rename(own)
    message = r"of another training; found train.epochs 3, here 2"
    with pytest.raises(DataError, match=message) as caught:
        train_small(
            histories_dir,
            out,
            CONFIG,
            checkpoint_dir=volume,
        )
    assert "\n" not in str(caught.value)
    assert own.exists()


def test_a_checkpoint_of_an_unknown_format_is_refused_by_name(
    histories_dir: Path,
    whole: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "bundle"
    stop(histories_dir, out, at_step=6)
    [path] = checkpoints_of(out)
    values = path / "state.json"
    content = json.loads(values.read_text())
    values.write_text(json.dumps({**content, "format_version": 99}))
    message = (
        r"step-0000000004 has an unknown format version; found 99; expected 1\. Delete the folder"
        r" .* and run the same command again: longrec train starts anew"
    )
    with pytest.raises(DataError, match=message) as caught:
        train_small(histories_dir, out, CONFIG)
    assert "\n" not in str(caught.value)
    assert values.exists()
    shutil.rmtree(path.parent)
    train_small(histories_dir, out, CONFIG)
    assert_equal(out, whole)


def test_two_trainings_of_one_output_are_refused(histories_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"

    def train_again(row: CurveRow, _: int) -> None:
        train_small(histories_dir, out, CONFIG)

    with pytest.raises(ConfigError, match="another training is writing"):
        train_small(
            histories_dir,
            out,
            CONFIG,
            on_progress=train_again,
        )


def test_without_checkpoints_it_starts_anew(
    histories_dir: Path,
    whole: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "bundle"
    config = dataclasses.replace(CONFIG, checkpoint_every=0)
    stop(
        histories_dir,
        out,
        config,
        at_step=20,
    )
    assert not list(tmp_path.iterdir())
    train_small(histories_dir, out, CONFIG)
    assert_equal(out, whole)


def test_a_checkpoint_of_another_ranker_is_one_line(histories_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    stop(histories_dir, out, at_step=6)
    [path] = checkpoints_of(out)
    identity = json.loads((path / "state.json").read_text())["identity"]
    checkpoints = Checkpoints(path.parents[1], identity)
    latest = checkpoints.latest()
    assert latest is not None
    tensors = dict(latest.tensors)
    del tensors["ranker.head.bias"]
    tensors["ranker.head.weight"] = torch.zeros(1, 1)
    checkpoints.save(Checkpoint(5, tensors, latest.values))
    with pytest.raises(DataError, match="a checkpoint does not fit this ranker") as caught:
        train_small(histories_dir, out, CONFIG)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(
    histories_dir: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The writes of steps 8 and 12 fail."""
    out = tmp_path / "bundle"
    save_file = safetensors.torch.save_file
    errors = {
        2: OSError(errno.ENOSPC, "No space left on device"),
        3: safetensors.SafetensorError("IoError"),
    }
    calls = []

    def failing_save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "step-" in str(path):
            calls.append(path)
            if len(calls) in errors:
                raise errors[len(calls)]
        save_file(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", failing_save_file)
    stop(histories_dir, out, at_step=14)
    assert "checkpoint of step 8 could not be written" in caplog.text
    assert "no space is left" in caplog.text
    # nothing half-written stays
    assert [path.name for path in checkpoints_of(out)] == ["step-0000000004"]
    train_small(histories_dir, out, CONFIG)
    assert_equal(out, whole)


def test_a_resumed_training_states_the_same_work_per_row(
    histories_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MFU times seconds are the FLOPs of a row; the checkpoint is between two rows."""
    monkeypatch.setattr(resources, "measure_peak_flops", lambda device, precision: 1.0)
    # Batches for a CPU do not have the counts that the FLOPs are made of.
    monkeypatch.setattr(Trainer, "_step_flops", lambda trainer, batch: float(batch.num_events))
    config = dataclasses.replace(CONFIG, log_every=4, checkpoint_every=6)
    train_small(histories_dir, tmp_path / "whole", config)
    stop(histories_dir, tmp_path / "stopped", config, at_step=8)
    train_small(histories_dir, tmp_path / "stopped", config)
    flops_whole = flops_per_row(tmp_path / "whole")
    assert min(flops_whole) > 0
    assert flops_per_row(tmp_path / "stopped") == pytest.approx(flops_whole)


def flops_per_row(bundle_dir: Path) -> list[float]:
    """Return the FLOPs of each row of a curve with a peak of one FLOP per second."""
    flops = []
    last_seconds = 0.0
    for row in read_curve(bundle_dir):
        seconds = float(row["seconds"])
        flops.append(float(row["mfu"]) * (seconds - last_seconds))
        last_seconds = seconds
    return flops
