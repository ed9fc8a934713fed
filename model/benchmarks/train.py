"""Time one training step of the ranker on a CPU against the matrix peak of the same run.

A step is lookup, forward, backward, clipping and both optimizers. The share of the peak counts only
the matrix FLOPs of STCA (docs/concepts/stca.md), three times the forward pass. Lookups, fusion,
head and optimizers are in the time and not in the FLOPs, so the share is a lower bound. For a GPU
see gpu_engine.py.

    longrec bench train
    longrec bench train --events 10240 --requests 2 --targets 32 --width 128 --layers 4
    longrec bench train --kind transformer --events 10240 --requests 1 --targets 32 --repeats 3
"""

from __future__ import annotations

import argparse
import os
import typing

import torch

from harness import results, timing, training_step
from longrec.config import ModelConfig
from longrec.nn.flops import stca_flops

CPU = torch.device("cpu")
KINDS_WITHOUT_BIAS = ("mean", "transformer", "hstu")
"""Models without attention logits, which a gap bias could be added to."""


def main() -> None:
    """Measure one shape and print its row."""
    options = _arguments()
    load = os.getloadavg()[0]
    if options.threads:
        torch.set_num_threads(options.threads)
    config = _model(options)
    batch = training_step.random_batch(options.requests, options.events, options.targets, CPU)
    ranker = training_step.make_ranker(config, CPU)
    step = training_step.make_step(ranker, batch, mixed=False)
    times = timing.timed(step, CPU, repeats=options.repeats)
    measured = _row(options, config, times, load)
    if not options.dry_run:
        results.append([measured])
    for name, value in measured.items():
        print(f"{name:<15}{value}")


def _model(options: argparse.Namespace) -> ModelConfig:
    recency: typing.Literal["token", "bias"] = "bias"
    if options.kind in KINDS_WITHOUT_BIAS:
        recency = "token"
    return ModelConfig(
        kind=options.kind,
        width=options.width,
        num_layers=options.layers,
        num_heads=options.heads,
        recency=recency,
    )


def _row(
    options: argparse.Namespace, config: ModelConfig, times: timing.Times, load: float
) -> results.Row:
    steps_per_second = 1e3 / times[1]
    events_per_second = options.requests * options.events * steps_per_second
    peak = timing.matmul_peak(CPU, torch.float32, size=2048)
    notes = (
        f"{events_per_second:,.0f} events/s; peak {peak / 1e9:.0f} GFLOP/s; "
        f"{torch.get_num_threads()} threads; load before {load:.1f}; "
        f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', '')}"
    )
    shape = (
        f"R{options.requests} L{options.events} m{options.targets} "
        f"d{config.width} h{config.num_heads} M{config.num_layers}"
    )
    claim = "CPU training step"
    flops = 0.0
    share = None
    if options.kind == "stca":
        flops = 3.0 * options.requests * stca_flops(config, options.events, options.targets).total
        share = flops * steps_per_second / peak
    else:
        claim += f" of {options.kind}"
    measured = results.row(claim, shape, "float32", times, flops=flops, share=share, notes=notes)
    measured["device"] = results.cpu_name()
    return measured


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="longrec bench train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, default, text in (
        ("requests", 4, "requests of the batch"),
        ("events", 2048, "events of a request"),
        ("targets", 16, "targets of a request"),
        ("width", 64, "d"),
        ("layers", 2, "M"),
        ("heads", 4, "h"),
        ("repeats", 20, "timed steps"),
        ("threads", 0, "CPU threads; 0 for PyTorch's choice"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{text} (default {default})"
        )
    parser.add_argument(
        "--kind",
        choices=typing.get_args(typing.get_type_hints(ModelConfig)["kind"]),
        default="stca",
        help="model.kind: how the history is read (default stca)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the row only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
