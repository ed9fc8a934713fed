"""Train a ranker: histories in, bundle and training curve out."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from longrec.config import LengthConfig, ModelConfig, TrainConfig
from longrec.data import files
from longrec.data.encoder import Encoder
from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.errors import ConfigError, DataError
from longrec.evaluation.sample import score_sample
from longrec.evaluation.served_length import BOOTSTRAP_SAMPLES, choose_served_length
from longrec.nn.ranker import Ranker
from longrec.scoring.bundle import CURVE_NAME, META_NAME, Bundle
from longrec.scoring.scorer import Scorer
from longrec.training import encoded_cache, loop
from longrec.training.checkpoint import Checkpoints
from longrec.training.curve import CurveRow, Listener, write_curve
from longrec.training.distributed import DistributedContext, process_group
from longrec.training.id_init import initialize_on_all_ranks
from longrec.training.memory import check_memory
from longrec.training.report import TrainReport
from longrec.training.resources import choose_device, explain_out_of_memory
from longrec.training.trainer import Trainer
from longrec.training.validation import (
    CALIBRATION_REQUESTS,
    draw_validation_sample,
    logit_shifts,
)

ENCODED_NAME = "encoded"
CHECKPOINTS_NAME = "checkpoints"
NON_SEMANTIC_KEYS = frozenset(
    {
        "precision",
        "device",
        "recompute",
        "checkpoint_every",
        "max_seconds",
        "num_workers",
        "tensorboard",
        "embedding_sharding",
    }
)
"""TrainConfig keys that do not affect results.

The precision does, but `auto` is resolved first: the identity holds the resolved one. A bound in
seconds may change when a training resumes.
"""
log = logging.getLogger(__name__)


def train(
    histories_dir: str | Path,
    out_dir: str | Path,
    model: ModelConfig,
    *,
    lengths: LengthConfig,
    train: TrainConfig,
    served_lengths: Sequence[int],
    seed: int,
    checkpoint_dir: str | Path | None = None,
    log_dir: str | Path | None = None,
    on_progress: Listener | None = None,
) -> TrainReport:
    """Train a ranker and write its bundle and training_curve.csv; return a report.

    On a CPU, equal arguments and an equal number of threads give equal weights, bit for bit. An
    interrupted training resumes from its last checkpoint and gives the same weights. While it runs,
    `.<name>.work` next to `out_dir` holds encoded histories and checkpoints. `<name>.tensorboard`
    next to `out_dir` stays.

    Args:
        histories_dir: made by `store.retrieve`.
        out_dir: folder of the bundle and its training_curve.csv, replaced in one step.
        model: configuration of the ranker.
        lengths: the training length distribution.
        train: the `train` section of the configuration.
        served_lengths: numbers of most recent events that the bundle may score with. Validation
            requests choose one of them (longrec.evaluation.served_length).
        seed: of initial weights, order of requests and lengths.
        checkpoint_dir: folder of checkpoints (longrec.training.checkpoint), for example on a volume
            that outlives the process. A finished training removes its own. None for
            `.<name>.work/checkpoints`.
        log_dir: folder of TensorBoard's files, below which each training has its own. None for
            `<name>.tensorboard` next to `out_dir`.
        on_progress: called with each row of the curve; None for a progress bar on a terminal.

    Raises:
        ConfigError: the device is missing, memory ran out or cannot suffice, a training length
            distribution cannot be drawn from, or another training is writing `out_dir`.
        OSError: a folder of the outputs cannot be written; found before the training.
        DataError: the histories cannot be used, or have no training request; or `out_dir` holds
            something that is no bundle.
        LongrecError: the loss is not finite; its batch is in out_dir/failed_batch.safetensors.
    """
    start = time.perf_counter()
    out_dir = Path(out_dir)
    settings = _Settings(model, lengths, train, seed)
    # Kubeflow Pipelines carries every number as a double.
    served_lengths = [int(length) for length in served_lengths]
    device, precision = choose_device(train)
    histories = Histories.open(histories_dir)
    check_memory(model, train, lengths, histories, device=device)
    with process_group(device) as context, _work_dir(out_dir, context) as work_dir:
        checkpoint_dir = Path(checkpoint_dir or work_dir / CHECKPOINTS_NAME)
        log_dir = _tensorboard_dir(log_dir, out_dir)
        if context.is_rank_zero:
            _check_outputs(out_dir, checkpoint_dir, log_dir)
        encoded_dir = work_dir / ENCODED_NAME
        encoder, encoded = context.rank_zero_first(
            lambda: encoded_cache.encode(histories, encoded_dir, train.id_min_count),
            lambda: encoded_cache.open_encoded(histories, encoded_dir),
        )
        check_memory(
            model,
            train,
            lengths,
            histories,
            device=context.device,
            table_rows=_num_table_rows(encoder, train, context),
        )
        ranker = _make_ranker(
            model,
            encoder,
            seed,
            context.device,
        )
        if train.id_init == "lsa":
            initialize_on_all_ranks(
                ranker,
                encoder,
                encoded,
                seed=seed,
                directory=encoded_dir,
                context=context,
            )
        data_digest = context.broadcast_object(lambda: encoded_cache.digest_of(encoded_dir))
        checkpoints = Checkpoints(
            checkpoint_dir,
            settings.identity(data_digest, precision),
        )
        trainer = loop.fit(
            ranker,
            encoded,
            lengths,
            train,
            seed=seed,
            out_dir=out_dir,
            checkpoints=checkpoints,
            log_dir=log_dir / checkpoints.fingerprint,
            on_progress=on_progress,
            context=context,
        )
        report = dataclasses.replace(
            TrainReport.from_trainer(trainer),
            total_seconds=time.perf_counter() - start,
        )
        bundle = Bundle(
            ranker,
            encoder,
            model,
            max(served_lengths),
            settings.facts(report, histories),
        )

        def choose_and_write() -> str:
            chosen = settings.choose_length(bundle, trainer, encoded, served_lengths)
            if train.calibrate:
                chosen = settings.calibrate(chosen, trainer, encoded)
            return _write(out_dir, chosen, trainer.state.curve)

        version = context.broadcast_object(choose_and_write)
        if context.is_rank_zero:
            checkpoints.remove()
    _log_report(report)
    return dataclasses.replace(report, version=version)


@dataclasses.dataclass(frozen=True, slots=True)
class _Settings:
    """The settings of one training.

    Args:
        model: configuration of the ranker.
        lengths: the training length distribution.
        train: settings of the training.
        seed: of initial weights, order of requests and lengths.
    """

    model: ModelConfig
    lengths: LengthConfig
    train: TrainConfig
    seed: int

    def identity(
        self,
        data_digest: str,
        precision: str,
    ) -> dict[str, Any]:
        """Return all that affects the results of the training.

        Args:
            data_digest: digest of the encoded histories.
            precision: `float32` or `bfloat16`.
        """
        semantic = {}
        for key, value in dataclasses.asdict(self.train).items():
            if key not in NON_SEMANTIC_KEYS:
                semantic[key] = value
        semantic["precision"] = precision
        return {
            "data": data_digest,
            "seed": self.seed,
            "model": dataclasses.asdict(self.model),
            "lengths": dataclasses.asdict(self.lengths),
            "train": semantic,
        }

    def facts(
        self,
        report: TrainReport,
        histories: Histories,
    ) -> dict[str, Any]:
        """Return the facts about the training that a bundle holds."""
        return {
            **dataclasses.asdict(report),
            "seed": self.seed,
            "lengths": dataclasses.asdict(self.lengths),
            "train": dataclasses.asdict(self.train),
            "split_time_ms": histories.split_time_ms,
            "torch": torch.__version__,
        }

    def choose_length(
        self,
        bundle: Bundle,
        trainer: Trainer,
        encoded: EncodedHistories,
        served_lengths: Sequence[int],
    ) -> Bundle:
        """Return the bundle with its served length, and with the facts of the validation."""
        sample = draw_validation_sample(
            encoded,
            self.train,
            self.seed,
            bootstrap_samples=BOOTSTRAP_SAMPLES,
        )
        scorer = self._scorer(bundle, trainer)
        choice = choose_served_length(scorer, encoded, sample, served_lengths)
        validation = {
            "curve": [dataclasses.asdict(row) for row in trainer.state.validations],
            "served_length": choice.to_dict(),
        }
        facts = {**bundle.facts, "validation": validation}
        return dataclasses.replace(bundle, served_length=choice.length, facts=facts)

    def calibrate(
        self,
        bundle: Bundle,
        trainer: Trainer,
        encoded: EncodedHistories,
    ) -> Bundle:
        """Return the bundle after a shift of its logits (longrec.training.validation).

        Without validation requests nothing changes.
        """
        sample = draw_validation_sample(
            encoded,
            dataclasses.replace(self.train, validation_requests=CALIBRATION_REQUESTS),
            self.seed,
        )
        if sample is None:
            return bundle
        scorer = self._scorer(bundle, trainer)
        scores = score_sample(scorer, encoded, sample, bundle.served_length)
        shifts = logit_shifts(sample.labels, scores)
        with torch.no_grad():
            bias = bundle.ranker.head.bias
            bias.add_(torch.from_numpy(shifts).to(bias))
        by_task = dict(zip(bundle.schema.task_names, shifts.tolist(), strict=True))
        return dataclasses.replace(bundle, facts={**bundle.facts, "logit_shifts": by_task})

    def _scorer(self, bundle: Bundle, trainer: Trainer) -> Scorer:
        return Scorer(
            bundle,
            trainer.device,
            self.train.token_budget,
            self.train.max_requests_per_batch,
            max_cuda_graph_requests=0,
        )


def _make_ranker(
    model: ModelConfig,
    encoder: Encoder,
    seed: int,
    device: torch.device,
) -> Ranker:
    """Return a new ranker on a device.

    Raises:
        ConfigError: memory ran out.
    """
    with explain_out_of_memory("the ranker", loop.RANKER_MEMORY_FIX):
        ranker = loop.make_ranker(model, encoder, seed)
        return ranker.to(device)


def _num_table_rows(
    encoder: Encoder,
    train: TrainConfig,
    context: DistributedContext,
) -> int:
    """Return the rows of the tables of ids on this rank."""
    num_rows = 0
    for group, encoders in encoder.feature_encoders.items():
        features = getattr(encoder.schema, group)
        for feature, fitted in zip(features, encoders, strict=True):
            num_rows += fitted.num_indices if feature.kind == "id" else 0
    is_sharded = train.embedding_sharding == "row_wise"
    return num_rows // context.num_ranks if is_sharded else num_rows


def _check_outputs(
    out_dir: Path,
    checkpoint_dir: Path,
    log_dir: Path,
) -> None:
    """Check that the outputs of a training can be written, before it takes hours.

    Raises:
        DataError: `out_dir` holds something else, which would be lost.
        OSError: a folder cannot be written.
    """
    for folder in (out_dir, checkpoint_dir, log_dir):
        files.check_writable(folder)
    if not out_dir.is_dir():
        return
    has_failed = any(out_dir.glob(f"{loop.FAILED_BATCH_NAME}*"))
    if not has_failed and not files.is_empty_or_has(out_dir, META_NAME):
        raise DataError(
            f"{out_dir} does not hold a bundle and will not be replaced",
            fix="Choose an empty or new directory.",
        )


def _log_report(report: TrainReport) -> None:
    log.info(
        "trained %d steps in %.1f s, %.0f events/s, final loss %.4f",
        report.num_steps,
        report.seconds,
        report.events_per_second,
        report.final_loss,
    )


def _tensorboard_dir(log_dir: str | Path | None, out_dir: Path) -> Path:
    """Return the folder of TensorBoard's files."""
    if log_dir:
        return Path(log_dir)
    return out_dir.with_name(f"{out_dir.name}.tensorboard")


def _write(
    out_dir: Path,
    bundle: Bundle,
    curve: Sequence[CurveRow],
) -> str:
    """Replace `out_dir` by the bundle and the curve in one step; return the bundle's version."""
    with files.atomic_replace(out_dir) as temporary:
        temporary.mkdir()
        version = bundle.write(temporary)
        write_curve(temporary / CURVE_NAME, curve)
    return version


@contextlib.contextmanager
def _work_dir(out_dir: Path, context: DistributedContext) -> Iterator[Path]:
    """Yield `.<name>.work` next to `out_dir`, locked against other trainings.

    Rank zero locks it for all ranks. At the end only checkpoints stay in it. Without any it is
    removed.

    Raises:
        ConfigError: another training has locked it.
    """
    work_dir = out_dir.parent / f".{out_dir.name}.work"
    if not context.is_rank_zero:
        yield work_dir
        return
    work_dir.mkdir(parents=True, exist_ok=True)
    busy = ConfigError(
        f"another training is writing {out_dir}", fix="Wait for it, or choose another output."
    )
    with files.locked(work_dir / ".lock", busy):
        try:
            yield work_dir
        finally:
            _clean_up(work_dir)


def _clean_up(work_dir: Path) -> None:
    """Remove the encoded histories, and the whole folder if it has no checkpoints."""
    shutil.rmtree(work_dir / ENCODED_NAME, ignore_errors=True)
    checkpoints = (work_dir / CHECKPOINTS_NAME).glob("*/step-*")
    if not any(checkpoints):
        shutil.rmtree(work_dir, ignore_errors=True)
