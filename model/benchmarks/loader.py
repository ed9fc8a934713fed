"""Measure packed batches per second from mapped timelines on disk, by number of workers.

    longrec bench loader
    longrec bench loader --users 400 --events 10000 --workers 1 2
    longrec bench loader --users 4000 --workers 1 2 4 8 --device cuda

Random encoded timelines are written, then one epoch of whole histories is packed in shuffled order.
The share is the time of a plain copy over that of packing: one thread copies the same bytes from
the page cache, in chunks of a batch's size. "From the disk" is the first epoch after the files were
dropped from the page cache.

On a machine with a GPU, batches are pinned and copied to it. The rate is then compared with a
training step on a batch that is on the GPU already, and with the trainer fed from the files.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from harness import encoded_files, results, training_step
from longrec.config import LengthConfig, ModelConfig, TrainConfig
from longrec.data.batch import RequestBatch
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.data.loading.length_sampler import LengthSampler
from longrec.data.loading.prefetch import prefetch, prefetch_to_device
from longrec.data.loading.request_stream import RequestStream
from longrec.training.trainer import Trainer

MODEL = ModelConfig(width=256, num_layers=4, num_heads=8)
BYTES_PER_EVENT = 16
NUM_WARM_STEPS = 10
NUM_STEPS = 60
NUM_TURNS = 3


@dataclasses.dataclass(frozen=True)
class Epochs:
    """Seconds of epochs with one number of workers.

    Args:
        from_disk: of the first epoch, with files that are not in the page cache.
        from_cache: of the later ones.
    """

    from_disk: float
    from_cache: list[float]


@dataclasses.dataclass(frozen=True)
class TrainingRates:
    """Events per second of training steps: medians of three turns.

    Args:
        bare_step: of the step alone, on a batch that is on the device.
        trainer: of the trainer on that batch.
        trainer_from_files: of the trainer fed from the files.
    """

    bare_step: float
    trainer: float
    trainer_from_files: float


def seconds_of(batches: Iterable[object]) -> float:
    """Return the time until all batches are ready on their device."""
    started = time.perf_counter()
    for _ in batches:
        pass
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def pack_epoch(stream: RequestStream, num_workers: int, device: torch.device) -> float:
    """Return the seconds of one epoch."""
    pin = device.type == "cuda"
    with contextlib.closing(prefetch([stream], num_workers=num_workers, pin=pin)) as batches:
        return seconds_of(prefetch_to_device(batches, device))


def copy_epoch(stream: RequestStream) -> float:
    """Return the seconds in which one thread copies the event arrays, a batch at a time.

    Each copy goes into new memory, as a batch does.
    """
    encoded = stream.encoded
    total = len(encoded.event_items)
    events_per_batch = stream.num_events // len(stream)
    bounds = [*range(0, total, events_per_batch), total]
    started = time.perf_counter()
    for array in (encoded.event_items, encoded.event_features, encoded.event_timestamps):
        for start, end in itertools.pairwise(bounds):
            array[start:end].copy()
    return time.perf_counter() - started


def drop_from_page_cache(directory: Path) -> None:
    """Drop the files of a directory from the page cache."""
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def event_rate(steps: Iterable[Callable[[], object]], batches: Iterable[RequestBatch]) -> float:
    """Return the events/s of steps on their batches, after the first ten."""
    events = 0
    started = 0.0
    for number, (step, batch) in enumerate(zip(steps, batches, strict=True)):
        if number == NUM_WARM_STEPS:
            torch.cuda.synchronize()
            events = 0
            started = time.perf_counter()
        step()
        events += batch.num_events
    torch.cuda.synchronize()
    return events / (time.perf_counter() - started)


def training_rates(stream: RequestStream, num_workers: int, device: torch.device) -> TrainingRates:
    """Return the rates of training steps on the same batches.

    They are measured in turns: the host that issues the operations is not always equally fast.
    """
    trainer = Trainer(
        training_step.make_ranker(MODEL, device),
        TrainConfig(num_workers=num_workers, device=device.type),
        num_steps=1 << 20,
        precision="bfloat16",
        failed_batch=Path("failed"),
    )
    host_batch = stream.batch(0)
    batch = host_batch.to(device)
    bare_step = training_step.make_step(training_step.make_ranker(MODEL, device), batch)
    trainer.start()
    same_batches = [batch] * NUM_STEPS
    turns = []
    for _ in range(NUM_TURNS):
        bare = event_rate([bare_step] * NUM_STEPS, same_batches)
        trained = event_rate(
            [lambda: trainer.step([(host_batch, batch)])] * NUM_STEPS, same_batches
        )
        turns.append((bare, trained, _rate_from_files(trainer, stream, num_workers, device)))
    return TrainingRates(*np.median(turns, axis=0).tolist())


def _rate_from_files(
    trainer: Trainer, stream: RequestStream, num_workers: int, device: torch.device
) -> float:
    with contextlib.closing(prefetch([stream], num_workers=num_workers, pin=True)) as packed:
        pairs = prefetch_to_device(itertools.islice(packed, NUM_STEPS), device)
        stepped, counted = itertools.tee(pairs)
        steps = (lambda pair=pair: trainer.step([pair]) for pair in stepped)
        return event_rate(steps, (batch for _, batch in counted))


def measure_epochs(directory: Path, options: argparse.Namespace, num_workers: int) -> Epochs:
    """Return the times of epochs; nothing else may map the files."""
    device = torch.device(options.device)
    drop_from_page_cache(directory)
    stream = open_stream(directory, options)
    from_disk = pack_epoch(stream, num_workers, device)
    from_cache = [pack_epoch(stream, num_workers, device) for _ in range(options.repeats)]
    return Epochs(from_disk, from_cache)


def open_stream(directory: Path, options: argparse.Namespace) -> RequestStream:
    """Return the stream of whole histories that training reads."""
    return RequestStream.for_training(
        EncodedHistories.open(directory),
        LengthSampler(LengthConfig("full")),
        token_budget=options.budget,
        max_requests=64,
        seed=0,
    )


def measure(options: argparse.Namespace, directory: Path) -> list[results.Row]:
    """Return the rows of results.csv."""
    load = os.getloadavg()[0]
    encoded_files.write_encoded_histories(directory, options.users, options.events)
    epochs = {workers: measure_epochs(directory, options, workers) for workers in options.workers}
    stream = open_stream(directory, options)
    num_bytes = sum(_num_bytes(batch) for batch in stream)
    bytes_per_event = num_bytes / stream.num_events
    median_copy = float(np.median([copy_epoch(stream) for _ in range(options.repeats)]))
    # The copy moves the arrays of events only; a batch has somewhat more bytes.
    copy_seconds = median_copy * bytes_per_event / BYTES_PER_EVENT
    rows = []
    for num_workers, times in epochs.items():
        median = float(np.median(times.from_cache))
        rate = stream.num_events / median
        disk_rate = stream.num_events / times.from_disk
        notes = [
            f"{rate / 1e6:.1f} M events/s, {disk_rate / 1e6:.1f} from the disk",
            f"{bytes_per_event:.2f} bytes/event",
            f"one thread copies {num_bytes / copy_seconds / 1e9:.1f} GB/s",
            f"load before {load:.1f}",
        ]
        claim = f"Loader, {num_workers} workers"
        if options.device == "cuda":
            claim += ", to the GPU"
            rates = training_rates(stream, num_workers, torch.device(options.device))
            notes += _compare(rates, rate, disk_rate)
        quantiles = np.quantile(times.from_cache, [0.2, 0.5, 0.8]) * 1e3 / len(stream)
        p20, p50, p80 = quantiles.tolist()
        measured = results.row(
            claim,
            f"L{options.events} m{encoded_files.TARGETS_PER_REQUEST} T{options.budget}",
            "int32",
            (p20, p50, p80),
            num_bytes=num_bytes / len(stream),
            share=copy_seconds / median,
            notes="; ".join(notes),
        )
        rows.append(measured)
    return rows


def _num_bytes(batch: RequestBatch) -> int:
    values = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def _compare(rates: TrainingRates, rate: float, disk_rate: float) -> list[str]:
    bare = rates.bare_step
    return [
        f"{rate / bare:.1f} (from the disk {disk_rate / bare:.1f}) times the step's "
        f"{bare / 1e6:.2f} M events/s",
        f"the trainer runs at {rates.trainer_from_files / bare:.3f} of it, "
        f"on one batch at {rates.trainer / bare:.3f}",
    ]


def main() -> None:
    """Measure every number of workers."""
    options = _arguments()
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        rows = measure(options, Path(folder))
    if not options.dry_run:
        results.append(rows, options.out)
    for row in rows:
        print(f"{row['claim']:<28} {row['shape']}  {row['p50_ms']} ms a batch  {row['notes']}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="longrec bench loader",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, default, text in (
        ("users", 2000, "users, one request each"),
        ("events", 10_000, "events of a request"),
        ("budget", 163_840, "maximum number of events of a batch"),
        ("repeats", 5, "timed epochs"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{text} (default {default})"
        )
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers (default 1 2)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--directory",
        default=None,
        help="a folder on the disk to be read (default the system's temporary one)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=results.RESULTS,
        help="file that gets the rows (default results.csv)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the rows only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
