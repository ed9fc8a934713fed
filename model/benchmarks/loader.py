"""Packed batches from mapped timelines on disk: events/s by number of workers, against a copy of
the same bytes and a GPU's appetite.

Writes synthetic encoded timelines (the files that training maps), then packs one epoch of whole
histories in shuffled order. The copy
is what one thread of this machine copies, in pieces of a batch's size, from the page cache; its
time over the packing's is the share.
From the disk: the first epoch after the files were dropped from the cache. On a machine with a GPU
batches are pinned and copied to it;
its appetite is the training step of `_world` on a batch that is there already, and the trainer is
run on the files, in the same run.

    longrec bench loader
    longrec bench loader --users 400 --events 10000 --workers 1 2
    longrec bench loader --users 4000 --workers 1 2 4 8 --device cuda
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

import _rows
import _world
import numpy as np
import torch

from longrec.config import LengthConfig, ModelConfig, TrainConfig
from longrec.data import files
from longrec.data.batch import RequestBatch
from longrec.data.length_sampler import LengthSampler
from longrec.data.loader import EncodedHistories, RequestStream, moved, prefetch
from longrec.training.trainer import Trainer

ENGINE = ModelConfig(
    width=256,
    num_layers=4,
    num_heads=8,
)
TARGETS, EVENT_BYTES = 32, 16


def write(
    directory: Path,
    num_users: int,
    num_events: int,
    num_targets: int,
) -> None:
    """Writes encoded histories of the synthetic dataset's schema: one request a user, all of equal
    size.
    """
    rng = np.random.default_rng(0)
    total, users = num_users * num_events, np.arange(num_users, dtype=np.int64)
    ages = np.sort(rng.integers(0, _world.SPAN_MS, num_events))[::-1]
    arrays = {
        "event_items": (rng.random(total, np.float32) ** 3 * _world.NUM_ITEMS).astype(np.int32),
        "event_features": rng.integers(0, 8, (total, 1), dtype=np.int32),
        "event_timestamps": np.tile(_world.NOW_MS - ages, num_users),
        "target_items": rng.integers(
            0, _world.NUM_ITEMS + 1, num_users * num_targets, dtype=np.int32
        ),
        "labels": rng.integers(0, 2, (num_users * num_targets, 1), dtype=np.int8),
        "user_features": rng.integers(0, 9, (num_users, 1), dtype=np.int32),
        "request_ids": users,
        "request_users": users,
        "request_timestamps": np.full(num_users, _world.NOW_MS, np.int64),
        "splits": np.ones(num_users, np.int8),
        "event_starts": users * num_events,
        "event_ends": (users + 1) * num_events,
        "target_starts": users * num_targets,
        "target_ends": (users + 1) * num_targets,
    }
    for name, array in arrays.items():
        np.save(directory / f"{name}.npy", array, allow_pickle=False)
    files.write_json(directory / "meta.json", {"encoder_fingerprint": "benchmark"})
    files.sync(directory)


def tensors_of(batch: RequestBatch) -> list[torch.Tensor]:
    values = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    return [value for value in values if isinstance(value, torch.Tensor)]


def seconds(batches: Iterable[object]) -> float:
    """Returns the time that taking all batches takes, ready on their device."""
    started = time.perf_counter()
    for _ in batches:
        pass
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def packing(stream: RequestStream, num_workers: int, device: torch.device) -> float:
    """Returns the time of one epoch."""
    pin = device.type == "cuda"
    with contextlib.closing(prefetch([stream], num_workers=num_workers, pin=pin)) as batches:
        return seconds(moved(batches, device))


def plain_copy(stream: RequestStream) -> float:
    """Returns the time that one thread needs to copy the event arrays, in pieces of a batch, each
    into new memory as a batch is.
    """
    encoded = stream.encoded
    bounds = np.append(
        np.arange(0, len(encoded.event_items), stream.num_events // len(stream)),
        len(encoded.event_items),
    )
    started = time.perf_counter()
    for array in (encoded.event_items, encoded.event_features, encoded.event_timestamps):
        for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            array[start:end].copy()
    return time.perf_counter() - started


def forget(directory: Path) -> None:
    """Drops the files of a directory from the page cache."""
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def pace(steps: Iterable[Callable[[], object]], batches: Iterable[RequestBatch]) -> float:
    """Returns the events/s of steps, each of its batch, after the first ten."""
    events, started = 0, 0.0
    for number, (step, batch) in enumerate(zip(steps, batches, strict=True)):
        if number == 10:
            torch.cuda.synchronize()
            events, started = 0, time.perf_counter()
        step()
        events += batch.num_events
    torch.cuda.synchronize()
    return events / (time.perf_counter() - started)


def paces(
    stream: RequestStream, num_workers: int, device: torch.device
) -> tuple[float, float, float]:
    """Returns the events/s of (the bare step, the trainer on the same batch, the trainer fed from
    the files), medians of three turns.

    In turns, since the host that issues the operations is not equally fast all the time.
    """
    config = TrainConfig(num_workers=num_workers, device=device.type)
    trainer = Trainer(
        _world.ranker(ENGINE, device),
        config,
        num_steps=1 << 20,
        precision="bfloat16",
        failed_batch=Path("failed"),
    )
    host = stream.batch(0)
    batch = host.to(device)
    bare = _world.step(_world.ranker(ENGINE, device), batch)
    trainer.start()
    found = []
    for _ in range(3):
        same = [batch] * 60
        alone = pace([bare] * 60, same), pace([lambda: trainer.step(host, batch)] * 60, same)
        with contextlib.closing(prefetch([stream], num_workers=num_workers, pin=True)) as packed:
            fresh, again = itertools.tee(moved(itertools.islice(packed, 60), device))
            found.append(
                (
                    *alone,
                    pace(
                        (lambda pair=pair: trainer.step(*pair) for pair in fresh),
                        (moving for _, moving in again),
                    ),
                )
            )
    bare_pace, trainer_pace, fed_pace = np.median(found, axis=0).tolist()
    return bare_pace, trainer_pace, fed_pace


def epochs(
    directory: Path, chosen: argparse.Namespace, num_workers: int
) -> tuple[float, list[float]]:
    """Returns the time of an epoch from the disk, and of `repeats` from the page cache; nothing
    else may map the files.
    """
    forget(directory)
    stream = open_stream(directory, chosen)
    cold = packing(stream, num_workers, torch.device(chosen.device))
    return cold, [
        packing(stream, num_workers, torch.device(chosen.device)) for _ in range(chosen.repeats)
    ]


def open_stream(directory: Path, chosen: argparse.Namespace) -> RequestStream:
    encoded = EncodedHistories.open(directory)
    return RequestStream.training(
        encoded,
        LengthSampler(LengthConfig("full")),
        token_budget=chosen.budget,
        max_requests=64,
        seed=0,
    )


def measure(chosen: argparse.Namespace, directory: Path) -> list[dict[str, str]]:
    """Returns the rows of results.csv."""
    device, rows, load = torch.device(chosen.device), [], os.getloadavg()[0]
    write(directory, chosen.users, chosen.events, TARGETS)
    measured = {workers: epochs(directory, chosen, workers) for workers in chosen.workers}
    stream = open_stream(directory, chosen)
    num_bytes = sum(
        tensor.numel() * tensor.element_size() for batch in stream for tensor in tensors_of(batch)
    )
    copied = (
        float(np.median([plain_copy(stream) for _ in range(chosen.repeats)]))
        * num_bytes
        / stream.num_events
        / EVENT_BYTES
    )
    for workers, (cold, times) in measured.items():
        rate, slow = stream.num_events / float(np.median(times)), stream.num_events / cold
        notes = [
            f"{rate / 1e6:.1f} M events/s, {slow / 1e6:.1f} from the disk",
            f"{num_bytes / stream.num_events:.2f} bytes/event",
            f"one thread copies {num_bytes / copied / 1e9:.1f} GB/s",
            f"load before {load:.1f}",
        ]
        if device.type == "cuda":
            wanted, alone, fed = paces(stream, workers, device)
            notes.append(
                f"{rate / wanted:.1f} (from the disk {slow / wanted:.1f}) times the step's {wanted / 1e6:.2f} M events/s"
            )
            notes.append(
                f"the trainer runs at {fed / wanted:.3f} of it, on one batch at {alone / wanted:.3f}"
            )
        quantiles = tuple(
            float(value) for value in np.quantile(times, [0.2, 0.5, 0.8]) * 1e3 / len(stream)
        )
        claim = f"Loader, {workers} workers{', to the GPU' if device.type == 'cuda' else ''}"
        shape = f"L{chosen.events} m{TARGETS} T{chosen.budget}"
        rows.append(
            _rows.row(
                claim,
                shape,
                "int32",
                quantiles,
                num_bytes=num_bytes / len(stream),
                share=copied / float(np.median(times)),
                notes="; ".join(notes),
            )
        )
    return rows


def main() -> None:
    chosen = _arguments()
    with tempfile.TemporaryDirectory(dir=chosen.directory) as folder:
        rows = measure(chosen, Path(folder))
    if not chosen.dry_run:
        _rows.append(rows, chosen.out)
    for row in rows:
        print(f"{row['claim']:<28} {row['shape']}  {row['p50_ms']} ms a batch  {row['notes']}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="longrec bench loader",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--users", type=int, default=2000, help="users, one request each (default 2000)"
    )
    parser.add_argument(
        "--events", type=int, default=10_000, help="events of a request (default 10000)"
    )
    parser.add_argument(
        "--budget", type=int, default=163_840, help="events of a batch at most (default 163840)"
    )
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers (default 1 2)"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="epochs timed (default 5)",
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
        default=_rows.RESULTS,
        help="file that the rows are appended to (default results.csv)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the rows, append nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
