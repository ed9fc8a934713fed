"""Report of a training: counts, speed and losses."""

from __future__ import annotations

import dataclasses
from statistics import fmean

from longrec.nn.ranker import Ranker
from longrec.training.curve import best_of, expected_gain
from longrec.training.optimizers import sparse_tables
from longrec.training.trainer import Trainer


@dataclasses.dataclass(frozen=True, slots=True)
class TrainReport:
    """Summary of a training.

    Args:
        version: version of the bundle; empty for a training without one.
        num_steps: number of optimizer steps.
        num_requests: requests read in them; each epoch counts its own.
        num_events: events read.
        num_targets: targets read.
        seconds: time of the training loop alone, over all starts.
        total_seconds: time of the last start, with fitting the encoder and encoding.
        events_per_second: of the training loop.
        targets_per_second: of the training loop.
        mean_length: mean number of events per request after its length was drawn.
        first_loss: mean loss of the first log_every steps.
        final_loss: mean loss of the last log_every steps.
        memory_bytes: peak memory of the device (on a CPU: of the process).
        stopped_by: what ended the training: `steps` (the last one), `patience` or `time`.
        best_step: step of the packaged weights.
        num_validations: number of measurements on validation requests.
        validation_auc: AUC of the packaged weights there, of the first task; None without any.
        validation_logloss: their log loss there.
        expected_gain: AUC that training twice as long is expected to gain
            (longrec.training.curve.expected_gain); None if unknown.
        mfu: model FLOPs utilization, a lower bound of the share of `peak_flops` (see CurveRow);
            None on a CPU.
        peak_flops: measured peak matrix rate, FLOP/s; None on a CPU.
        num_parameters: number of the ranker's parameters.
        num_table_parameters: number of those in tables with sparse gradients.
        device: device that was used.
        precision: precision that was used.
    """

    version: str
    num_steps: int
    num_requests: int
    num_events: int
    num_targets: int
    seconds: float
    total_seconds: float
    events_per_second: float
    targets_per_second: float
    mean_length: float
    first_loss: float
    final_loss: float
    memory_bytes: int
    stopped_by: str
    best_step: int
    num_validations: int
    validation_auc: float | None
    validation_logloss: float | None
    expected_gain: float | None
    mfu: float | None
    peak_flops: float | None
    num_parameters: int
    num_table_parameters: int
    device: str
    precision: str

    @classmethod
    def from_trainer(cls, trainer: Trainer) -> TrainReport:
        """Return the report of a trainer after its last step.

        It has no version, and its `total_seconds` are those of the training loop: the caller
        replaces them.
        """
        state = trainer.state
        best = best_of(state.validations)
        peak_flops = trainer.peak_flops or None
        mfu = None
        if peak_flops is not None:
            mfu = state.flops / state.seconds / peak_flops
        return cls(
            version="",
            num_steps=state.step,
            num_requests=state.num_requests,
            num_events=state.num_events,
            num_targets=state.num_targets,
            seconds=state.seconds,
            total_seconds=state.seconds,
            events_per_second=state.num_events / state.seconds,
            targets_per_second=state.num_targets / state.seconds,
            mean_length=state.num_events / state.num_requests,
            first_loss=fmean(state.first_losses),
            final_loss=fmean(state.last_losses),
            memory_bytes=state.curve[-1].memory_bytes,
            stopped_by=_stopped_by(trainer),
            best_step=state.step if best is None else best.step,
            num_validations=len(state.validations),
            validation_auc=None if best is None else best.auc,
            validation_logloss=None if best is None else best.logloss,
            expected_gain=expected_gain(state.validations),
            mfu=mfu,
            peak_flops=peak_flops,
            num_parameters=_num_parameters(trainer.ranker),
            num_table_parameters=_num_table_parameters(trainer.ranker),
            device=trainer.device.type,
            precision=trainer.precision,
        )


def _stopped_by(trainer: Trainer) -> str:
    if trainer.is_out_of_time:
        return "time"
    return "steps" if trainer.state.step == trainer.num_steps else "patience"


def _num_parameters(ranker: Ranker) -> int:
    return sum(parameter.numel() for parameter in ranker.parameters())


def _num_table_parameters(ranker: Ranker) -> int:
    """Return the number of parameters in tables with sparse gradients."""
    return sum(table.numel() for table in sparse_tables(ranker))
