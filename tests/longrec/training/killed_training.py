"""A training that kills itself inside the n-th write of a checkpoint.

    python -m tests.longrec.training.killed_training HISTORIES OUT MOMENT NUMBER

It prints each step of the training curve. An empty MOMENT kills nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch

from longrec.config import TrainConfig
from longrec.data import files
from longrec.training.curve import CurveRow
from tests.longrec.training.small_training import train_small

CONFIG = TrainConfig(
    epochs=2,
    token_budget=300,
    max_requests_per_batch=16,
    learning_rate=5e-3,
    token_dropout=0.1,
    head_dropout=0.1,
    id_dropout=0.2,
    id_init="lsa",
    log_every=1,
    device="cpu",
    checkpoint_every=4,
    tensorboard=False,
)


class KilledCall:
    """A function that kills the process in its n-th call for a checkpoint.

    Args:
        function: the function.
        path_position: position of the path in its arguments.
        number: n.
        is_half_written: whether the process dies after the write, with half of the file lost.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        path_position: int,
        number: int,
        is_half_written: bool = False,
    ) -> None:
        self.function = function
        self.path_position = path_position
        self.number = number
        self.is_half_written = is_half_written
        self.num_calls = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        path = str(arguments[self.path_position])
        is_checkpoint = "step-" in path
        self.num_calls += is_checkpoint
        if is_checkpoint and self.num_calls == self.number:
            if self.is_half_written:
                self.function(*arguments, **options)
                size = Path(path).stat().st_size
                os.truncate(path, size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.function(*arguments, **options)


def kill_at(moment: str, number: int) -> None:
    """Replace the function that writes at some moment of a checkpoint."""
    if moment == "half of the tensors":
        safetensors.torch.save_file = KilledCall(
            safetensors.torch.save_file,
            path_position=-1,
            number=number,
            is_half_written=True,
        )
    elif moment == "no values yet":
        files.write_json = KilledCall(
            files.write_json,
            path_position=0,
            number=number,
        )
    elif moment == "not yet renamed":
        files.fsync_directory = KilledCall(
            files.fsync_directory,
            path_position=0,
            number=number,
        )
    elif moment == "old one not removed":
        shutil.rmtree = KilledCall(
            shutil.rmtree,
            path_position=0,
            number=number,
        )


def print_step(row: CurveRow, num_steps: int) -> None:
    print(row.step, flush=True)


def main() -> None:
    histories_dir, out_dir, moment, number = sys.argv[1:]
    kill_at(moment, int(number))
    train_small(
        Path(histories_dir),
        Path(out_dir),
        CONFIG,
        on_progress=print_step,
    )


if __name__ == "__main__":
    main()
