"""Check and time every kind of model on histories of different lengths, against STCA.

    longrec bench baselines
    longrec bench baselines --events 1000 --requests 16 --width 128

Lengths are drawn evenly from 0 to `--events`, targets from 1 to `--targets`. A step is lookup,
forward, backward, clipping and both optimizers, launched one after another as in a training. The
checks compare the kernels of causal attention with float64 and need a GPU. The exit status is 1
when one fails, or when a step takes longer than `--most` steps of STCA.
"""

from __future__ import annotations

import argparse
import dataclasses
import typing
import warnings
from pathlib import Path

import torch

from harness import results, timing, training_step
from harness.causal_check import check_causal_attention
from longrec.config import ModelConfig
from longrec.data.batch import RequestBatch

KINDS_WITHOUT_BIAS = ("mean", "transformer", "hstu")
"""Models without attention logits, which a gap bias could be added to."""
KINDS = typing.get_args(typing.get_type_hints(ModelConfig)["kind"])


def ragged_batch(options: argparse.Namespace, device: torch.device) -> RequestBatch:
    """Return a batch of requests with random numbers of events and targets."""
    generator = torch.Generator().manual_seed(0)
    requests = (options.requests,)
    num_events = torch.randint(0, options.events + 1, requests, generator=generator)
    num_targets = torch.randint(1, options.targets + 1, requests, generator=generator)
    sizes = (int(num_events.sum()), int(num_targets.sum()))
    one = training_step.random_batch(1, *sizes, device, num_items=options.items)
    return dataclasses.replace(
        one,
        event_offsets=_offsets(num_events, device),
        target_offsets=_offsets(num_targets, device),
        user_features=one.user_features.expand(options.requests, -1).contiguous(),
        request_timestamps=one.request_timestamps.expand(options.requests).contiguous(),
        host_counts=(num_events.tolist(), num_targets.tolist()),
    )


def _offsets(counts: torch.Tensor, device: torch.device) -> torch.Tensor:
    first = torch.zeros(1, dtype=torch.int64)
    return torch.cat([first, counts.cumsum(0)]).to(device)


def step_times(
    kind: str,
    options: argparse.Namespace,
    batch: RequestBatch,
) -> timing.Times:
    """Return the times of a training step of one kind of model."""
    device = batch.event_items.device
    config = ModelConfig(
        kind=kind,  # type: ignore[arg-type]
        width=options.width,
        num_layers=options.layers,
        num_heads=options.heads,
        recency="token" if kind in KINDS_WITHOUT_BIAS else "bias",
    )
    model = training_step.make_ranker(config, device, num_items=options.items)
    step = training_step.make_step(model, batch, mixed=device.type == "cuda")
    return timing.timed(step, device, repeats=options.repeats)


def failed_checks(device: torch.device) -> int:
    """Print every check and return how many failed; without a GPU there are none."""
    if device.type != "cuda":
        return 0
    failures = 0
    for name, passed, details in check_causal_attention(device):
        print(f"{'pass' if passed else 'FAIL'}  {name}: {details}", flush=True)
        failures += not passed
    return failures


def _row(
    kind: str,
    options: argparse.Namespace,
    times: timing.Times,
    ratio: float,
) -> results.Row:
    sizes = f"R{options.requests} L<={options.events} m<={options.targets}"
    measured = results.row(
        f"ragged step of {kind}",
        f"{sizes} d{options.width} h{options.heads} M{options.layers}",
        "bfloat16" if torch.cuda.is_available() else "float32",
        times,
        notes=f"{ratio:.2f} of STCA's time",
    )
    if not torch.cuda.is_available():
        measured["device"] = results.cpu_name()
    return measured


def main() -> None:
    """Run the checks, time every kind and print a table."""
    options = _arguments()
    warnings.simplefilter("ignore")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    failures = failed_checks(device)
    batch = ragged_batch(options, device)
    times = {kind: step_times(kind, options, batch) for kind in KINDS}
    ratios = {kind: times[kind][1] / times["stca"][1] for kind in KINDS}
    if not options.dry_run:
        rows = [_row(kind, options, times[kind], ratios[kind]) for kind in KINDS]
        results.append(rows, options.out)
    print(f"\n{'kind':<18}{'ms a step':>10}{'of STCA':>10}")
    for kind in KINDS:
        print(f"{kind:<18}{times[kind][1]:>10.2f}{ratios[kind]:>10.2f}")
    slow = [kind for kind in KINDS if ratios[kind] > options.most]
    print(f"failed checks: {failures}; above {options.most:g}: {', '.join(slow) or 'none'}")
    raise SystemExit(1 if failures or slow else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="longrec bench baselines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, default, text in (
        ("requests", 64, "requests of the batch"),
        ("events", 200, "most events of a request"),
        ("targets", 32, "most targets of a request"),
        ("width", 64, "d"),
        ("layers", 2, "M"),
        ("heads", 4, "h"),
        ("items", 100_000, "items of the table"),
        ("repeats", 50, "timed steps"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{text} (default {default})"
        )
    parser.add_argument(
        "--most", type=float, default=3.0, help="largest time over STCA's (default 3)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=results.RESULTS,
        help="file that gets the rows (default results.csv)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the table only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
