"""Measure several GPUs of one machine against one: losses, step time, share of events.

    torchrun --nproc-per-node 2 model/benchmarks/gpu_ddp.py
    torchrun --nproc-per-node 2 model/benchmarks/gpu_ddp.py --out rows.csv --sharding row_wise
    torchrun --nproc-per-node 2 model/benchmarks/gpu_ddp.py --device cpu --events 32 \\
        --budget 256 --items 500 --width 16 --heads 2

The trainer itself steps (longrec.training.trainer: DDP, exchanged table rows, token-balanced parts)
on the same global batches of ragged histories, which are on the device already. `--sharding
row_wise` shards the id tables with TorchRec. "scaling" is the time on one GPU over the time on n,
and over n: 1 would be perfect. The exit status is 1 when a loss differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import tempfile
import warnings
from pathlib import Path

import torch

from harness import encoded_files, results, timing, training_step
from longrec.config import LengthConfig, ModelConfig, TrainConfig
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.data.loading.length_sampler import LengthSampler
from longrec.data.loading.request_stream import RequestStream
from longrec.training import distributed
from longrec.training.distributed import DistributedContext
from longrec.training.trainer import Trainer

MAX_LOSS_DIFFERENCE = {"cuda": 1e-2, "cpu": 1e-4}
"""Largest relative difference of a loss, in bfloat16 and in float32."""
NUM_LAYERS = 4


@dataclasses.dataclass(frozen=True)
class Measured:
    """Result of one training.

    Args:
        losses: of the first steps.
        times: of the later steps.
        num_events: events of this rank in each batch.
    """

    losses: list[float]
    times: timing.Times
    num_events: list[int]


def train(directory: Path, context: DistributedContext, options: argparse.Namespace) -> Measured:
    """Train by these ranks on the first batches of the files."""
    stream = _stream(directory, context, options)
    num_batches = min(len(stream), options.batches)
    host_batches = [stream.batch(number) for number in range(num_batches)]
    pairs = [(host, host.to(context.device)) for host in host_batches]
    trainer = _trainer(context, options)
    trainer.start()
    for host, batch in pairs:
        trainer.step([(host, batch)])
    trainer.flush()
    losses = [row.loss for row in trainer.state.curve]
    endless = itertools.cycle(pairs)
    times = timing.timed(
        lambda: trainer.step([next(endless)]),
        context.device,
        repeats=options.repeats * num_batches,
        warm=num_batches,
    )
    trainer.flush()
    return Measured(losses, times, [batch.num_events for _, batch in pairs])


def _stream(
    directory: Path, context: DistributedContext, options: argparse.Namespace
) -> RequestStream:
    lengths = LengthConfig("beta", 0, options.events // 2, options.events)
    return RequestStream.for_training(
        EncodedHistories.open(directory),
        LengthSampler(lengths),
        token_budget=options.budget,
        max_requests=10_000,
        seed=0,
        num_ranks=context.num_ranks,
        rank=context.rank,
    )


def _trainer(context: DistributedContext, options: argparse.Namespace) -> Trainer:
    sharding = options.sharding if context.num_ranks > 1 else "data_parallel"
    device = context.device
    model = ModelConfig(width=options.width, num_layers=NUM_LAYERS, num_heads=options.heads)
    return Trainer(
        training_step.make_ranker(model, device, num_items=options.items),
        TrainConfig(device=device.type, log_every=1, embedding_sharding=sharding),
        num_steps=1_000,
        context=context,
        failed_batch=Path("failed"),
        precision="bfloat16" if device.type == "cuda" else "float32",
    )


def make_rows(
    alone: Measured,
    together: Measured,
    num_events: list[list[int]],
    options: argparse.Namespace,
) -> list[results.Row]:
    """Return the rows of results.csv.

    Args:
        alone: by one process.
        together: by all processes.
        num_events: events of each rank in each batch.
        options: of the command.
    """
    num_ranks = len(num_events)
    per_batch = list(zip(*num_events, strict=True))
    events = sum(per_batch[0])
    busiest = max(max(parts) * num_ranks / sum(parts) for parts in per_batch)
    speed_up = alone.times[1] / together.times[1]
    notes = (
        f"{speed_up:.2f} times as fast as one, scaling {speed_up / num_ranks:.3f}; "
        f"losses of {len(alone.losses)} steps differ by "
        f"{loss_difference(alone, together):.1e} at most; "
        f"the busiest rank has {busiest:.4f} of its share of events; "
        f"{_event_rate(events, together)}; tables {options.sharding}"
    )
    shape = (
        f"T{events} L<={options.events} m{encoded_files.TARGETS_PER_REQUEST} "
        f"d{options.width} h{options.heads} M{NUM_LAYERS}"
    )
    dtype = "bfloat16" if options.device == "cuda" else "float32"
    rows = [
        results.row(
            "step on 1 process of several",
            shape,
            dtype,
            alone.times,
            notes=_event_rate(events, alone),
        ),
        results.row(
            f"step on {num_ranks} processes",
            shape,
            dtype,
            together.times,
            share=speed_up / num_ranks,
            notes=notes,
        ),
    ]
    launcher = f"torchrun --nproc-per-node {num_ranks} "
    for row in rows:
        row["command"] = row["command"].replace("python ", launcher, 1)
        if options.device == "cpu":
            row["device"] = results.cpu_name()
    return rows


def loss_difference(alone: Measured, together: Measured) -> float:
    """Return the largest relative difference of a loss."""
    pairs = zip(alone.losses, together.losses, strict=True)
    return max(abs(one - several) / abs(one) for one, several in pairs)


def _event_rate(num_events: int, measured: Measured) -> str:
    return f"{num_events / measured.times[1] / 1e3:.2f} M events/s"


def main() -> None:
    """Train with all processes, then with one, and compare."""
    warnings.simplefilter("ignore")  # PyTorch's remarks on sparse tensors
    options = _arguments()
    differs = False
    with (
        distributed.process_group(torch.device(options.device)) as context,
        tempfile.TemporaryDirectory() as folder,
    ):
        if context.num_ranks == 1:
            raise SystemExit("only one process: start it with torchrun --nproc-per-node 2")
        directory = Path(context.broadcast_object(lambda: folder))
        num_users = options.batches * (2 * options.budget // options.events + 1)
        context.rank_zero_first(
            lambda: encoded_files.write_encoded_histories(
                directory, num_users, options.events, num_items=options.items
            ),
            lambda: None,
        )
        together = train(directory, context, options)
        gc.collect()
        num_events: list[list[int]] = [[] for _ in range(context.num_ranks)]
        torch.distributed.all_gather_object(num_events, together.num_events, context.host_group)
        alone = context.rank_zero_first(
            lambda: train(directory, DistributedContext(device=context.device), options),
            lambda: together,
        )
        if context.is_rank_zero:
            differs = loss_difference(alone, together) > MAX_LOSS_DIFFERENCE[options.device]
            rows = make_rows(alone, together, num_events, options)
            results.append(rows, options.out)
            for row in rows:
                results.show(row)
    raise SystemExit("the losses do not agree" if differs else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default, text in (
        ("events", 10_240, "events of the longest history; half of it on average"),
        ("items", 1_000_000, "items"),
        ("budget", 1_310_720, "maximum number of events of a batch, over all processes"),
        ("width", 256, "d"),
        ("batches", 4, "different batches"),
        ("heads", 8, "h"),
        ("repeats", 5, "times each batch is timed"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{text} (default {default})"
        )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--sharding",
        choices=["data_parallel", "row_wise"],
        default="data_parallel",
        help="train.embedding_sharding",
    )
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
