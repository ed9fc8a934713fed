"""One training step of the ranker (lookup, forward, backward, optimizer) against the matrix peak measured in the same run.

The share of the peak counts only the matrix FLOPs of STCA (spec section 2; three times the forward pass for a training step);
lookups, fusion, the head and the optimizer are in the time and not in the FLOPs, so it is a lower bound.

    longrec bench train
    longrec bench train --events 10240 --requests 2 --targets 32 --width 128 --layers 4
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from longrec import losses, optim
from longrec.config import ModelConfig, TrainConfig
from longrec.data.batch import RequestBatch
from longrec.nn.flops import stca_flops
from longrec.nn.ranker import Ranker
from longrec.schema import planted

RESULTS = Path(__file__).parent / "results.csv"
NUM_ITEMS = 10_000
FIELDS = ("time", "benchmark", "commit", "device", "threads", "dtype", "shape", "ms_p20", "ms_p50", "ms_p80", "events_per_second", "gflop",
          "peak_gflops", "share_of_peak", "torch", "command")


def make_batch(num_requests: int, num_events: int, num_targets: int, device: torch.device) -> RequestBatch:
    """Returns a batch of equal requests with random content, in the schema of the planted world."""
    generator = torch.Generator().manual_seed(0)

    def indices(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    events, targets = num_requests * num_events, num_requests * num_targets
    batch = RequestBatch(
        event_items=indices(NUM_ITEMS + 1, events), event_features=indices(4, events, 1),
        event_timestamps=indices(10**9, events).sort().values, event_offsets=torch.arange(num_requests + 1) * num_events,
        target_items=indices(NUM_ITEMS + 1, targets), target_offsets=torch.arange(num_requests + 1) * num_targets,
        user_features=indices(10, num_requests, 1), request_timestamps=torch.full((num_requests,), 10**9 + 1),
        labels=indices(2, targets, 1).float())
    return batch.validate(num_items=NUM_ITEMS + 1).to(device)


def make_step(model: ModelConfig, batch: RequestBatch, precision: str) -> Callable[[], None]:
    """Returns a function that does one training step."""
    schema, train = planted(), TrainConfig()
    item_table = torch.stack([torch.arange(NUM_ITEMS + 1), torch.arange(NUM_ITEMS + 1) % 20], dim=1).int()
    device = batch.event_items.device
    ranker = Ranker(model, schema, {"item": (NUM_ITEMS + 2, 22), "user": (12,), "event": (6,)}, item_table).to(device)
    optimizers = optim.build(ranker, train)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            output = ranker(batch)
        loss = losses.total(output, batch, train)
        optimizers.zero_grad()
        loss.backward()
        optimizers.step(1.0)

    return step


def milliseconds(work: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """Returns the time of each repeat after two that are not counted."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - started) * 1e3)
    return times[2:]


def peak_gflops(width: int, rows: int, dtype: torch.dtype, device: torch.device) -> float:
    """Returns the best rate of a plain matrix product: of 2048 x 2048 and of the shape that the model's FFN has."""
    rates = []
    for a, b, c in ((2048, 2048, 2048), (rows, width, 2 * width)):
        left, right = torch.rand(a, b, dtype=dtype, device=device), torch.rand(b, c, dtype=dtype, device=device)
        rates.append(2 * a * b * c / min(milliseconds(lambda x=left, y=right: x @ y, 10, device)) / 1e6)
    return max(rates)


def main() -> None:
    arguments = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() and arguments.device != "cpu" else "cpu")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    precision = "bfloat16" if device.type == "cuda" else "float32"
    model = ModelConfig(width=arguments.width, num_layers=arguments.layers, num_heads=arguments.heads)
    batch = make_batch(arguments.requests, arguments.events, arguments.targets, device)
    times = milliseconds(make_step(model, batch, precision), arguments.repeats, device)
    peak = peak_gflops(model.width, batch.num_events, torch.bfloat16 if precision == "bfloat16" else torch.float32, device)
    low, middle, high = np.quantile(times, [0.2, 0.5, 0.8])
    gflop = 3 * arguments.requests * stca_flops(model, arguments.events, arguments.targets).total / 1e9
    shape = f"R{arguments.requests} L{arguments.events} m{arguments.targets} d{model.width} h{model.num_heads} M{model.num_layers}"
    row = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "benchmark": "train_step", "commit": _commit(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else _cpu(),
        "threads": torch.get_num_threads(), "dtype": precision, "shape": shape, "ms_p20": f"{low:.2f}", "ms_p50": f"{middle:.2f}",
        "ms_p80": f"{high:.2f}", "events_per_second": f"{batch.num_events / middle * 1e3:.0f}", "gflop": f"{gflop:.2f}",
        "peak_gflops": f"{peak:.1f}", "share_of_peak": f"{gflop / middle * 1e3 / peak:.3f}", "torch": torch.__version__,
        "command": shlex.join(["longrec", "bench", "train", *sys.argv[1:]])}
    if not arguments.dry_run:
        _append(row)
    for name, value in row.items():
        print(f"{name:<18}{value}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="longrec bench train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (("requests", 4, "requests of the batch"), ("events", 2048, "events of a request"),
                                ("targets", 16, "targets of a request"), ("width", 64, "d"), ("layers", 2, "M"), ("heads", 4, "h"),
                                ("repeats", 20, "timed steps"), ("threads", 0, "CPU threads; 0 for PyTorch's choice")):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--dry-run", action="store_true", help="print the row, do not append it to results.csv")
    return parser.parse_args()


def _append(row: dict[str, object]) -> None:
    is_new = not RESULTS.exists()
    with open(RESULTS, "a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, FIELDS)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return found.stdout.strip() or os.environ.get("LONGREC_COMMIT", "")


def _cpu() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
