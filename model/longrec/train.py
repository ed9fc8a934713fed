"""train: histories in, bundle and training curve out."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow.compute as pc
import torch
from torch import nn

from longrec import losses, optim
from longrec.bundle import Bundle
from longrec.config import LengthConfig, ModelConfig, TrainConfig
from longrec.data import files
from longrec.data.batch import RequestBatch
from longrec.data.encode import Encoder, int64_column
from longrec.data.histories import Histories
from longrec.data.lengths import LengthLaw
from longrec.data.stream import EncodedHistories, RequestStream
from longrec.errors import ConfigError, DataError, LongrecError
from longrec.nn.ranker import Ranker
from longrec.schema import ITEM_ID, TIMESTAMP

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class CurveRow:
    """One row of training_curve.csv: the mean loss since the row before, and totals since the start."""

    step: int
    loss: float
    learning_rate: float
    events: int
    targets: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training run did.

    Args:
        version: of the bundle.
        num_steps: optimizer steps; num_requests, num_events, num_targets: seen in them (an epoch counts its own).
        seconds: of the training loop alone; total_seconds: with fitting and encoding.
        events_per_second, targets_per_second: of the training loop.
        mean_length: realised mean of events per request, after the length law.
        first_loss, final_loss: mean loss of the first and of the last log_every steps.
        num_parameters: of the ranker; num_table_parameters: of them, in tables with sparse gradients.
        device, precision: that were used.
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
    num_parameters: int
    num_table_parameters: int
    device: str
    precision: str


Progress = Callable[[CurveRow, int], None]
"""Called with each row of the training curve and the number of steps of the whole run."""


def train(histories_dir: str | Path, out_dir: str | Path, model: ModelConfig, lengths: LengthConfig, train: TrainConfig,
          served_length: int, seed: int, *, on_progress: Progress | None = None) -> TrainReport:
    """Returns the report of one training run, after writing a bundle and training_curve.csv to `out_dir` (replaced at once).

    On a CPU equal arguments give equal weights, bit for bit, for one number of threads.

    Args:
        histories_dir: made by `store.retrieve`.
        out_dir: of the bundle; training_curve.csv lies beside its files.
        model, lengths, train: sections of the configuration.
        served_length: most recent events that the bundle uses when it scores.
        seed: of initial weights, order of requests and lengths.
        on_progress: called at each row of the curve; None for a progress bar when stderr is a terminal.

    Raises:
        ConfigError: the device is not there, or a length law cannot be.
        DataError: the histories cannot be used, or have no training request.
        LongrecError: the loss is not finite; the batch is saved in out_dir/failed_batch.safetensors.
    """
    started = time.perf_counter()
    out_dir = Path(out_dir)
    device, _ = choose_device(train)
    histories = Histories.open(histories_dir)
    encoder = fit_encoder(histories)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}.encoded-", dir=out_dir.parent) as cache:
        encoded = EncodedHistories.make(histories, encoder, Path(cache) / "histories")
        ranker = make_ranker(model, encoder, seed).to(device)
        report, curve = fit(ranker, encoded, lengths, train, seed, out_dir, on_progress=on_progress)
    report = dataclasses.replace(report, total_seconds=time.perf_counter() - started)
    facts = {**dataclasses.asdict(report), "seed": seed, "lengths": dataclasses.asdict(lengths), "train": dataclasses.asdict(train),
             "split_moment_ms": histories.split_moment_ms, "torch": torch.__version__}
    with files.replacing(out_dir) as temporary:
        temporary.mkdir()
        version = Bundle(ranker, encoder, model, served_length, facts).write(temporary)
        _write_curve(temporary / "training_curve.csv", curve)
    log.info("trained %d steps in %.1f s, %.0f events/s, final loss %.4f", report.num_steps, report.seconds, report.events_per_second,
             report.final_loss)
    return dataclasses.replace(report, version=version)


def fit(ranker: Ranker, encoded: EncodedHistories, lengths: LengthConfig, train: TrainConfig, seed: int, out_dir: Path, *,
        on_progress: Progress | None = None) -> tuple[TrainReport, list[CurveRow]]:
    """Returns what happened and the training curve, after training `ranker` where it is; it is left in evaluation mode.

    Args:
        ranker: from `make_ranker`, on the device of the configuration.
        encoded: the histories.
        lengths, train, seed, on_progress: see `train`.
        out_dir: where a batch with a loss that is not finite is saved.

    Raises:
        ConfigError: `train.recompute` with a history reader that cannot.
    """
    _, precision = choose_device(train)
    if train.recompute:
        ranker.recompute()
    run = _Run(ranker, train, training_streams(encoded, LengthLaw(lengths, seed), train, seed), precision, out_dir)
    with _reporting(on_progress) as report_row:
        curve = run.loop(report_row)
    return run.report(run.seconds), curve


def choose_device(config: TrainConfig) -> tuple[torch.device, str]:
    """Returns (device, precision `float32` or `bfloat16`) of a configuration, `auto` resolved.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ConfigError("no GPU is available", found="train.device=cuda", expected="cpu or auto", fix="Set train.device=auto.")
    device = torch.device("cuda" if available and config.device != "cpu" else "cpu")
    precision = config.precision if config.precision != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    return device, precision


def fit_encoder(histories: Histories) -> Encoder:
    """Returns the encoder of the training window: events strictly before the split moment, and the training targets."""
    requests, target_ids = histories.requests, int64_column(histories.targets, ITEM_ID)
    trained = np.asarray(pc.equal(requests.column("split"), "train"))
    owned = np.zeros(len(target_ids) + 1, np.int64)
    for name, change in (("target_start", 1), ("target_end", -1)):
        np.add.at(owned, int64_column(requests, name)[trained], change)
    window = (batch.filter(pc.less(batch.column(TIMESTAMP), histories.split_moment_ms)) for batch in histories.event_batches())
    return Encoder.fit(histories.schema, histories.items, histories.users, window, [target_ids[np.cumsum(owned)[:-1] > 0]])


def training_streams(encoded: EncodedHistories, law: LengthLaw, config: TrainConfig, seed: int) -> list[RequestStream]:
    """Returns one stream of batches per epoch.

    Raises:
        DataError: there is no training request.
    """
    if not len(encoded.requests("train")):
        raise DataError("the histories have no training request", found=f"{encoded.num_requests} requests of other splits",
                        fix="Lower data.eval_fraction or data.warmup_fraction, or use a larger log.")
    return [RequestStream.training(encoded, law, token_budget=config.token_budget, max_requests=config.max_requests_per_batch, seed=seed,
                                   epoch=epoch) for epoch in range(config.epochs)]


def make_ranker(config: ModelConfig, encoder: Encoder, seed: int) -> Ranker:
    """Returns a ranker with initial weights drawn from `seed`; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Ranker(config, encoder.schema, encoder.sizes, torch.from_numpy(encoder.item_table))


class _Run:
    """The training loop and what it counts."""

    def __init__(self, ranker: Ranker, config: TrainConfig, streams: list[RequestStream], precision: str, out_dir: Path) -> None:
        self.ranker, self.config, self.streams, self.precision, self.out_dir = ranker, config, streams, precision, out_dir
        self.device = next(ranker.parameters()).device
        self.num_steps = sum(map(len, streams))
        if config.max_steps:
            self.num_steps = min(self.num_steps, config.max_steps)
        self.num_requests = self.num_events = self.num_targets = 0
        self.seconds = 0.0
        self.losses: list[float] = []

    def loop(self, on_row: Callable[[CurveRow, int], None]) -> list[CurveRow]:
        """Trains; returns the training curve."""
        optimizers = optim.build(self.ranker, self.config)
        self.ranker.train()
        curve: list[CurveRow] = []
        started = time.perf_counter()
        for step, batch in enumerate(self._batches()):
            scale = optim.schedule(step, num_steps=self.num_steps, warmup_fraction=self.config.warmup_fraction)
            self.losses.append(self._step(optimizers, batch, scale, step))
            self.num_requests += batch.num_requests
            self.num_events += batch.num_events
            self.num_targets += batch.num_targets
            self.seconds = time.perf_counter() - started
            if (step + 1) % self.config.log_every == 0 or step + 1 == self.num_steps:
                recent = self.losses[curve[-1].step if curve else 0:]
                rate = self.config.learning_rate * scale
                curve.append(CurveRow(step + 1, fmean(recent), rate, self.num_events, self.num_targets, self.seconds))
                on_row(curve[-1], self.num_steps)
        self.ranker.eval()
        return curve

    def _batches(self) -> Iterator[RequestBatch]:
        """Yields the batches of all epochs, at most num_steps of them."""
        return itertools.islice(itertools.chain.from_iterable(self.streams), self.num_steps)

    def _step(self, optimizers: optim.Optimizers, batch: RequestBatch, scale: float, step: int) -> float:
        """Updates the weights by one batch; returns its loss."""
        on_device = batch.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else batch
        with torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bfloat16" else contextlib.nullcontext():
            output = self.ranker(on_device)
        loss = losses.total(output, on_device, self.config)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._not_finite(batch, value, step)
        optimizers.zero_grad()
        torch.autograd.backward(loss)
        optimizers.step(scale)
        return value

    def _not_finite(self, batch: RequestBatch, value: float, step: int) -> LongrecError:
        """Returns the error after saving the batch for inspection."""
        from safetensors.torch import save_file

        path = self.out_dir / "failed_batch.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
        return LongrecError(f"the training loss is {value} at step {step + 1}", expected="a finite number",
                            fix=f"Lower train.learning_rate or set train.precision=float32; the batch is in {path}.")

    def report(self, total_seconds: float) -> TrainReport:
        """Returns what happened."""
        in_tables = sum(module.weight.numel() for module in self.ranker.modules() if isinstance(module, nn.Embedding) and module.sparse)
        log_every = self.config.log_every
        return TrainReport(
            version="", num_steps=self.num_steps, num_requests=self.num_requests, num_events=self.num_events, num_targets=self.num_targets,
            seconds=self.seconds, total_seconds=total_seconds, events_per_second=self.num_events / self.seconds,
            targets_per_second=self.num_targets / self.seconds, mean_length=self.num_events / self.num_requests,
            first_loss=fmean(self.losses[:log_every]), final_loss=fmean(self.losses[-log_every:]),
            num_parameters=sum(parameter.numel() for parameter in self.ranker.parameters()), num_table_parameters=in_tables,
            device=self.device.type, precision=self.precision)


def _write_curve(path: Path, curve: list[CurveRow]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in dataclasses.fields(CurveRow)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in curve)


@contextlib.contextmanager
def _reporting(on_progress: Progress | None) -> Iterator[Progress]:
    """Yields what is called with each row of the curve: the caller's function, a progress bar on a terminal, or the log."""
    if on_progress is not None:
        yield on_progress
    elif sys.stderr.isatty():
        with _progress_bar() as update:
            yield update
    else:
        yield _log_row


def _log_row(row: CurveRow, num_steps: int) -> None:
    log.info("step %d/%d loss %.4f, %d events, %d targets, %.1f s", row.step, num_steps, row.loss, row.events, row.targets, row.seconds)


@contextlib.contextmanager
def _progress_bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
               TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} events/s"), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=None, loss=math.nan, rate=0.0)

        def update(row: CurveRow, num_steps: int) -> None:
            bar.update(task, total=num_steps, completed=row.step, loss=row.loss, rate=row.events / max(row.seconds, 1e-9))

        yield update
