"""Checkpoints: a training that is killed at any moment and started again ends with the bytes of one
that was not.
"""

from __future__ import annotations

import csv
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

import pytest
import safetensors
import safetensors.torch
import torch

from longrec import errors
from longrec.config import LengthConfig, ModelConfig, TrainConfig
from longrec.errors import ConfigError, DataError
from longrec.training import train as training
from longrec.training.checkpoint import Checkpoint, Checkpoints
from longrec.training.trainer import CurveRow
from tests.longrec import small_histories

MODEL = ModelConfig(width=16, num_layers=2, num_heads=2, id_dim=8, feature_dim=4, mixer_layers=1)
LENGTHS = LengthConfig("beta", 0, 32, 64)
TRAIN = TrainConfig(
    epochs=2,
    token_budget=300,
    max_requests_per_batch=16,
    learning_rate=5e-3,
    log_every=1,
    device="cpu",
    checkpoint_every=4,
    tensorboard=False,
)
TIMES = {"seconds", "events_per_second", "targets_per_second", "memory_bytes"}

CHILD = """
import os, shutil, signal, sys
from pathlib import Path
import safetensors.torch
from longrec.training import train as training
from longrec.data import files
from tests.longrec.training.test_checkpoint import LENGTHS, MODEL, TRAIN

moment, number, calls = sys.argv[3], int(sys.argv[4]), 0

def deadly(function, *, half=False):
    def wrapped(*arguments, **options):
        global calls
        place = str(arguments[-1] if function is save else arguments[0])
        calls += "step-" in place
        if calls == number and "step-" in place:
            if half:
                function(*arguments, **options)
                os.truncate(place, os.path.getsize(place) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return wrapped

save = safetensors.torch.save_file
if moment == "half of the tensors":
    safetensors.torch.save_file = deadly(save, half=True)
elif moment == "no values yet":
    files.write_json = deadly(files.write_json)
elif moment == "not yet renamed":
    files.sync = deadly(files.sync)
elif moment == "old one not removed":
    shutil.rmtree = deadly(shutil.rmtree)

training.train(sys.argv[1], sys.argv[2], MODEL, LENGTHS, TRAIN, 64, 3, on_progress=lambda row, _: print(row.step, flush=True))
"""


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_histories.write(tmp_path_factory.mktemp("world") / "histories")


@pytest.fixture(scope="module")
def whole(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a training that nothing interrupted."""
    return run(directory, tmp_path_factory.mktemp("whole") / "bundle")


def run(
    directory: Path, out: Path, config: TrainConfig = TRAIN, *, stop_at: int = 0, **options
) -> Path:
    """Returns `out` after training; raises Stopped when the row of step `stop_at` is told."""

    def listen(row: CurveRow, _: int) -> None:
        if row.step == stop_at:
            raise Stopped

    training.train(directory, out, MODEL, LENGTHS, config, 64, 3, on_progress=listen, **options)
    return out


def curve(bundle: Path) -> list[dict[str, str]]:
    with open(bundle / "training_curve.csv", encoding="utf-8") as stream:
        return [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in csv.DictReader(stream)
        ]


def assert_equal(bundle: Path, whole: Path) -> None:
    assert (bundle / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (
        curve(bundle) == curve(whole) and len(curve(whole)) > 40
    )  # log_every is 1: these are all losses
    versions = [
        json.loads((path / "bundle.json").read_text())["version"] for path in (bundle, whole)
    ]
    assert versions[0] == versions[1]
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def start(
    directory: Path, out: Path, request_time: str = "", number: int = 0
) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", CHILD, str(directory), str(out), request_time, str(number)]
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )


def killed_at_random(directory: Path, out: Path, seed: int, kills: int) -> None:
    """Trains in processes that are killed some rows after their first, `kills` times, and then to
    the end.
    """
    rng = random.Random(seed)
    for _ in range(kills):
        with start(directory, out) as process:
            assert process.stdout is not None
            for _ in range(rng.randint(1, 12)):
                process.stdout.readline()
            time.sleep(rng.random() * 0.05)
            process.kill()
    with start(directory, out) as process:
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors


def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    directory: Path, whole: Path, tmp_path: Path
) -> None:
    killed_at_random(directory, tmp_path / "bundle", seed=0, kills=1)
    assert_equal(tmp_path / "bundle", whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_killed_at_many_random_moments_it_ends_with_the_same_bytes(
    directory: Path, whole: Path, tmp_path: Path, seed: int
) -> None:
    killed_at_random(directory, tmp_path / "bundle", seed=seed, kills=5)
    assert_equal(tmp_path / "bundle", whole)


@pytest.mark.parametrize(
    "request_time",
    [
        "half of the tensors",
        *(
            pytest.param(request_time, marks=pytest.mark.slow)
            for request_time in ("no values yet", "not yet renamed", "old one not removed")
        ),
    ],
)
def test_killed_inside_a_write_it_ends_with_the_same_bytes(
    directory: Path, whole: Path, tmp_path: Path, request_time: str
) -> None:
    out = tmp_path / "bundle"
    with start(directory, out, request_time, 3) as process:
        _, errors = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL, errors
    assert not (out / "bundle.json").exists()
    run(directory, out)
    assert_equal(out, whole)


@pytest.mark.parametrize(
    "stop_at", [5, 30, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 4, 25))]
)
def test_stopped_at_a_step_it_ends_with_the_same_bytes(
    directory: Path, whole: Path, tmp_path: Path, stop_at: int
) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(Stopped):
        run(directory, out, stop_at=stop_at)
    run(
        directory, out, dataclasses.replace(TRAIN, num_workers=3, checkpoint_every=7)
    )  # what only changes the pace may change
    assert_equal(out, whole)


def test_told_to_stop_it_ends_between_two_steps_and_goes_on_from_there(
    directory: Path, whole: Path, tmp_path: Path
) -> None:
    out, told = tmp_path / "bundle", []

    def listen(row: CurveRow, _: int) -> None:
        told.append(row.step)
        if row.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        errors.Stopped,
        match=r"told to stop \(SIGTERM\); found step 7 of \d+\. Start the same command again",
    ):
        training.train(directory, out, MODEL, LENGTHS, TRAIN, 64, 3, on_progress=listen)
    assert (
        told[-1] == 7 and signal.getsignal(signal.SIGTERM) is before
    )  # the step that was under way, and no checkpoint was due there
    training.train(directory, out, MODEL, LENGTHS, TRAIN, 64, 3, on_progress=listen)
    assert told[7] == 8
    assert_equal(out, whole)


def test_a_resumed_training_does_not_start_at_the_beginning(
    directory: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        run(directory, tmp_path / "bundle", stop_at=10)
    told: list[int] = []
    training.train(
        directory,
        tmp_path / "bundle",
        MODEL,
        LENGTHS,
        TRAIN,
        64,
        3,
        on_progress=lambda row, _: told.append(row.step),
    )
    assert (
        told[0] == 9 and len(told) == told[-1] - 8
    )  # the checkpoint of step 8; that of step 10 was never written


@pytest.mark.parametrize(
    "wound",
    [
        "truncated tensors",
        "empty values",
        *(
            pytest.param(wound, marks=pytest.mark.slow)
            for wound in ("a flipped byte", "truncated values", "no tensors")
        ),
    ],
)
def test_a_damaged_checkpoint_is_left_out_with_a_warning(
    directory: Path, whole: Path, tmp_path: Path, wound: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(Stopped):
        run(directory, out, stop_at=14)
    steps = sorted((tmp_path / ".bundle.work" / "checkpoints").glob("*/step-*"))
    assert [path.name for path in steps] == ["step-0000000008", "step-0000000012"]
    tensors, values = steps[-1] / "state.safetensors", steps[-1] / "state.json"
    if wound == "truncated tensors":
        os.truncate(tensors, tensors.stat().st_size // 2)
    elif wound == "a flipped byte":
        content = bytearray(tensors.read_bytes())
        content[-5] ^= 1
        tensors.write_bytes(content)
    elif wound == "truncated values":
        os.truncate(values, 40)
    elif wound == "no tensors":
        tensors.unlink()
    else:
        values.write_text("[]")
    with caplog.at_level(logging.WARNING):
        run(directory, out)
    assert (
        "step-0000000012 is damaged and left out" in caplog.text
        and "going on after step 8 of" in caplog.text
    )
    assert_equal(out, whole)


def test_checkpoints_may_lie_on_a_volume_that_trainings_share(
    directory: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume = tmp_path / "volume"
    other = dataclasses.replace(TRAIN, learning_rate=1e-3)
    for out, config in (("first", TRAIN), ("second", other)):
        with pytest.raises(Stopped):
            run(directory, tmp_path / out / "bundle", config, stop_at=6, checkpoint_dir=volume)
    assert "of 1 others, the newest differs: train.learning_rate 0.005, here 0.001" in caplog.text
    assert len(list(volume.iterdir())) == 2
    run(
        directory, tmp_path / "retried" / "bundle", checkpoint_dir=volume
    )  # another output, as a retried step gets
    assert_equal(tmp_path / "retried" / "bundle", whole)
    assert len(list(volume.iterdir())) == 1  # its own are gone, the other's are not


def test_a_checkpoint_of_another_training_is_refused(directory: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    with pytest.raises(Stopped):
        run(directory, tmp_path / "bundle", stop_at=6, checkpoint_dir=volume)
    [mine] = volume.iterdir()
    with pytest.raises(Stopped):
        run(
            directory,
            tmp_path / "bundle",
            dataclasses.replace(TRAIN, epochs=3),
            stop_at=6,
            checkpoint_dir=volume,
        )
    [other] = [path for path in volume.iterdir() if path != mine]
    shutil.rmtree(mine)
    other.rename(mine)
    with pytest.raises(
        DataError, match=r"of another training; found train.epochs 3, here 2"
    ) as caught:
        run(directory, tmp_path / "bundle", checkpoint_dir=volume)
    assert "\n" not in str(caught.value) and mine.exists()


def test_two_trainings_of_one_output_are_refused(directory: Path, tmp_path: Path) -> None:
    def second(row: CurveRow, _: int) -> None:
        run(directory, tmp_path / "bundle")

    with pytest.raises(ConfigError, match="another training is writing"):
        training.train(
            directory, tmp_path / "bundle", MODEL, LENGTHS, TRAIN, 64, 3, on_progress=second
        )


def test_without_checkpoints_it_starts_anew(directory: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(
            directory,
            tmp_path / "bundle",
            dataclasses.replace(TRAIN, checkpoint_every=0),
            stop_at=20,
        )
    assert not list(tmp_path.iterdir())
    assert_equal(run(directory, tmp_path / "bundle"), whole)


def test_a_checkpoint_of_another_version_is_one_line(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(directory, tmp_path / "bundle", stop_at=6)
    [step] = (tmp_path / ".bundle.work" / "checkpoints").glob("*/step-*")
    identity = json.loads((step / "state.json").read_text())["identity"]
    checkpoints = Checkpoints(step.parents[1], identity)
    found = checkpoints.latest()
    assert found is not None
    tensors = {name: tensor for name, tensor in found.tensors.items() if name != "ranker.head.bias"}
    checkpoints.save(
        Checkpoint(5, {**tensors, "ranker.head.weight": torch.zeros(1, 1)}, found.values)
    )
    with pytest.raises(DataError, match="a checkpoint does not fit this ranker") as caught:
        run(directory, tmp_path / "bundle")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(
    directory: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    right, calls = safetensors.torch.save_file, []

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "step-" in str(path):
            calls.append(path)
            if len(calls) in (2, 3):
                raise [
                    OSError(errno.ENOSPC, "No space left on device"),
                    safetensors.SafetensorError("IoError"),
                ][len(calls) - 2]
        right(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(Stopped):
        run(directory, tmp_path / "bundle", stop_at=14)
    assert (
        "checkpoint of step 8 could not be written" in caplog.text
        and "no space is left" in caplog.text
    )
    steps = sorted(path.name for path in (tmp_path / ".bundle.work" / "checkpoints").glob("*/*"))
    assert steps == ["step-0000000004"]  # that of step 12 failed too; nothing half-written stays
    run(directory, tmp_path / "bundle")
    assert_equal(tmp_path / "bundle", whole)
