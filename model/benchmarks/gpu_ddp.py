"""Several GPUs of one machine against one: the same global batches, their losses, the time of a
step, how evenly events are shared.

    torchrun --nproc-per-node 2 model/benchmarks/gpu_ddp.py
    torchrun --nproc-per-node 2 model/benchmarks/gpu_ddp.py --out rows.csv --sharding row_wise
    id tables by TorchRec
    torchrun --nproc-per-node 2 model/benchmarks/gpu_ddp.py --device cpu --events 32 --budget 256
    --items 500 --width 16 --heads 2

The trainer itself steps (longrec.training.trainer: DDP, exchanged table rows, token-balanced
parts), on batches that are on the device already, of
ragged histories. "scaling" is the time on one GPU over the time on n, and over n: 1 would be
perfect. Exit status 1 where a loss differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import sys
import tempfile
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import _rows
import _world
import loader

from longrec.config import LengthConfig, ModelConfig, TrainConfig
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.data.loading.length_sampler import LengthSampler
from longrec.data.loading.request_stream import RequestStream
from longrec.training import distributed
from longrec.training.distributed import DistributedContext
from longrec.training.trainer import Trainer

LOSS_BARS = {"cuda": 1e-2, "cpu": 1e-4}
"""Largest relative difference of a loss, in bfloat16 and in float32."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """Losses of the first steps, times of the later ones, events of this rank in each of the
    batches.
    """

    losses: list[float]
    times: _rows.Times
    events: list[int]


def measured(directory: Path, context: DistributedContext, chosen: argparse.Namespace) -> Seen:
    """Returns what a training by these ranks does on the first batches of the files."""
    lengths = LengthConfig("beta", 0, chosen.events // 2, chosen.events)
    stream = RequestStream.for_training(
        EncodedHistories.open(directory),
        LengthSampler(lengths),
        token_budget=chosen.budget,
        max_requests=10_000,
        seed=0,
        num_ranks=context.num_ranks,
        rank=context.rank,
    )
    batches = [
        (host, host.to(context.device))
        for host in (stream.batch(number) for number in range(min(len(stream), chosen.batches)))
    ]
    sharding = chosen.sharding if context.num_ranks > 1 else "data_parallel"
    config = TrainConfig(
        device=context.device.type,
        log_every=1,
        embedding_sharding=sharding,
    )
    model = ModelConfig(
        width=chosen.width,
        num_layers=4,
        num_heads=chosen.heads,
    )
    trainer = Trainer(
        _world.ranker(model, context.device),
        config,
        num_steps=1_000,
        context=context,
        failed_batch=Path("failed"),
        precision="bfloat16" if context.device.type == "cuda" else "float32",
    )
    trainer.start()
    for host, batch in batches:
        trainer.step(host, batch)
    trainer.flush()
    losses, again = [row.loss for row in trainer.state.curve], itertools.cycle(batches)
    times = _rows.timed(
        lambda: trainer.step(*next(again)),
        context.device,
        repeats=chosen.repeats * len(batches),
        warm=len(batches),
    )
    trainer.flush()
    return Seen(losses, times, [batch.num_events for _, batch in batches])


def rows(
    alone: Seen, together: Seen, events: list[list[int]], chosen: argparse.Namespace, kind: str
) -> tuple[list[dict[str, str]], bool]:
    """Returns the rows of results.csv, and whether the losses agree."""
    count, whole = len(events), [sum(parts) for parts in zip(*events, strict=True)]
    apart = max(abs(a - b) / abs(a) for a, b in zip(alone.losses, together.losses, strict=True))
    uneven = max(max(parts) * count / sum(parts) for parts in zip(*events, strict=True))
    gain = alone.times[1] / together.times[1]
    shape = f"T{whole[0]} L<={chosen.events} m{loader.TARGETS} d{chosen.width} h{chosen.heads} M4"
    dtype = "bfloat16" if kind == "cuda" else "float32"
    slow, fast = (f"{whole[0] / seen.times[1] / 1e3:.2f} M events/s" for seen in (alone, together))
    notes = (
        f"{gain:.2f} times as fast as one, scaling {gain / count:.3f}; losses of {len(alone.losses)} steps differ by {apart:.1e} at "
        f"most; the busiest rank has {uneven:.4f} of its share of events; {fast}; tables {chosen.sharding}"
    )
    found = [
        _rows.row("step on 1 process of several", shape, dtype, alone.times, notes=slow),
        _rows.row(
            f"step on {count} processes",
            shape,
            dtype,
            together.times,
            share=gain / count,
            notes=notes,
        ),
    ]
    for row in found:
        row["command"] = row["command"].replace("python ", f"torchrun --nproc-per-node {count} ", 1)
        row["device"] = row["device"] if kind == "cuda" else _rows.cpu_name()
    return found, apart <= LOSS_BARS[kind]


def main() -> None:
    warnings.simplefilter("ignore")  # PyTorch's remarks on sparse tensors
    chosen, agree = _arguments(), True
    _world.NUM_ITEMS, _world.SIZES = chosen.items, {**_world.SIZES, "item": (chosen.items + 1, 64)}
    with (
        distributed.process_group(torch.device(chosen.device)) as context,
        tempfile.TemporaryDirectory() as folder,
    ):
        if context.num_ranks == 1:
            raise SystemExit("one process alone: start it with torchrun --nproc-per-node 2")
        directory = Path(context.broadcast_object(lambda: folder))
        users = chosen.batches * (2 * chosen.budget // chosen.events + 1)
        context.rank_zero_first(
            lambda: loader.write(directory, users, chosen.events, loader.TARGETS), lambda: None
        )
        together = measured(directory, context, chosen)
        gc.collect()
        events: list[list[int]] = [[] for _ in range(context.num_ranks)]
        torch.distributed.all_gather_object(events, together.events, context.host_group)
        alone = context.rank_zero_first(
            lambda: measured(directory, DistributedContext(device=context.device), chosen),
            lambda: together,
        )
        if context.is_rank_zero:
            found, agree = rows(alone, together, events, chosen, context.device.type)
            _rows.append(found, chosen.out)
            for row in found:
                print(
                    *(
                        row[field]
                        for field in ("claim", "shape", "p50_ms", "share_of_floor", "notes")
                    ),
                    sep=" | ",
                    flush=True,
                )
    raise SystemExit(0 if agree else "the losses do not agree")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default, text in (
        ("events", 10_240, "events of the longest history; half of it on average"),
        ("items", 1_000_000, "items"),
        ("budget", 1_310_720, "events of a batch of all processes together, at most"),
        ("width", 256, "d"),
        ("batches", 4, "different batches"),
        ("heads", 8, "h"),
        ("repeats", 5, "times each is timed"),
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
    parser.add_argument("--out", type=Path, default=_rows.RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
