"""One training step of the ranker on a CPU (lookup, forward, backward, clipping, both optimizers)
against the matrix peak of the same run.

The share of the peak counts only the matrix FLOPs of STCA (spec section 2; three times the forward
pass for a training step):
lookups, fusion, the head and the optimizers are in the time and not in the FLOPs, so it is a lower
bound. For a GPU: gpu_engine.

    longrec bench train
    longrec bench train --events 10240 --requests 2 --targets 32 --width 128 --layers 4
    longrec bench train --kind transformer --events 10240 --requests 1 --targets 32 --repeats 3
"""

from __future__ import annotations

import argparse
import os
import typing

import _rows
import _world
import torch

from longrec.config import ModelConfig
from longrec.nn.flops import stca_flops

CPU = torch.device("cpu")


def main() -> None:
    chosen, load = _arguments(), os.getloadavg()[0]
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    recency: typing.Literal["token", "bias"] = (
        "token" if chosen.kind in ("mean", "transformer", "hstu") else "bias"
    )
    model = ModelConfig(
        kind=chosen.kind,
        width=chosen.width,
        num_layers=chosen.layers,
        num_heads=chosen.heads,
        recency=recency,
    )
    batch = _world.batch(chosen.requests, chosen.events, chosen.targets, CPU)
    times = _rows.timed(
        _world.step(_world.ranker(model, CPU), batch, mixed=False), CPU, repeats=chosen.repeats
    )
    flops = 3.0 * chosen.requests * stca_flops(model, chosen.events, chosen.targets).total
    peak = _rows.matmul_peak(CPU, torch.float32, size=2048)
    events = chosen.requests * chosen.events / times[1] * 1e3
    notes = (
        f"{events:,.0f} events/s; peak {peak / 1e9:.0f} GFLOP/s; {torch.get_num_threads()} threads; load before {load:.1f}; "
        f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', '')}"
    )
    shape = f"R{chosen.requests} L{chosen.events} m{chosen.targets} d{model.width} h{model.num_heads} M{model.num_layers}"
    name, counted = (
        ("CPU training step", True)
        if chosen.kind == "stca"
        else (f"CPU training step of {chosen.kind}", False)
    )
    row = _rows.row(
        name,
        shape,
        "float32",
        times,
        flops=flops if counted else 0,
        share=flops / times[1] * 1e3 / peak if counted else None,
        notes=notes,
    )
    row["device"] = _rows.cpu_name()
    if not chosen.dry_run:
        _rows.append([row])
    for name, value in row.items():
        print(f"{name:<15}{value}")


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
    parser.add_argument(
        "--dry-run", action="store_true", help="print the row, do not append it to results.csv"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
