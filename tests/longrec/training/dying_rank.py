"""The command `longrec`, with one rank that gets a signal after some steps.

The variable DYING_RANK is "RANK STEP SIGNAL".
"""

from __future__ import annotations

import os
from typing import Any

from longrec.cli.main import main
from longrec.training.trainer import Trainer

RANK, STEP, SIGNAL = map(int, os.environ["DYING_RANK"].split())
OWN_RANK = int(os.environ.get("RANK", "0"))
take_step = Trainer.step
num_steps = 0


def take_step_or_die(trainer: Trainer, *batches: Any) -> Any:
    global num_steps
    if num_steps == STEP and OWN_RANK == RANK:
        os.kill(os.getpid(), SIGNAL)
    num_steps += 1
    return take_step(trainer, *batches)


Trainer.step = take_step_or_die
main()
