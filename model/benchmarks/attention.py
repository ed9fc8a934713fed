"""Attention of one layer, forward and backward from encoded events, in every order that the machine
has (on a GPU the fused ones too).

    longrec bench attention
    longrec bench attention --events 10240 --requests 16 --targets 1 2 4 8 16 32 --width 256 --heads
    8

FLOPs of a request with m targets and L events, three times the forward pass: plain 3 (4 L d^2 + 4 L
d m), reordered 3 (4 L d h m). The
floor is the larger of these over the matrix rate and of the bytes over the copy rate, both measured
in the same run; bytes: the events
read forward and backward and their gradient written.
"""

from __future__ import annotations

import argparse
import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import _rows
import torch
from torch import Tensor

from longrec.nn import target_attention
from longrec.nn.target_attention import AttentionInputs, Segments, fused, reference, reordered

Attend = Callable[[AttentionInputs], Tensor]


def orders(device: torch.device) -> dict[str, Attend]:
    """Returns the orders that can run on the device."""
    found: dict[str, Attend] = {"plain": reference.attend, "reordered": reordered.attend}
    if device.type == "cuda":
        for order in ("plain", "reordered"):
            found[f"fused {order}"] = functools.partial(_fused, order)
    return found


def _fused(order: str, values: AttentionInputs) -> Tensor:
    return fused.attention_source(values, order).attend(values.scaled_queries().flatten(1))


def inputs(
    requests: int,
    events: int,
    targets: int,
    width: int,
    heads: int,
    device: torch.device,
    dtype: torch.dtype,
) -> AttentionInputs:
    """Returns random inputs of equal requests that want gradients."""

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, device=device)).to(dtype).requires_grad_()

    ends = torch.arange(requests + 1, device=device)
    segments = Segments(ends * events, ends * targets, [events] * requests, [targets] * requests)
    w_q, w_k, w_v = (leaf(width, width, scale=width**-0.5) for _ in range(3))
    return AttentionInputs(
        leaf(requests * targets, width),
        leaf(requests * events, width),
        w_q,
        w_k,
        w_v,
        heads,
        segments,
        leaf(requests * events, heads),
    )


def both_ways(attend: Attend, values: AttentionInputs) -> Callable[[], object]:
    """Returns a function that attends and goes back through it."""
    leaves = [values.queries, values.tokens, values.w_q, values.w_k, values.w_v, values.bias]

    def work() -> object:
        output = attend(values)
        return torch.autograd.grad(
            output, [leaf for leaf in leaves if leaf is not None], torch.ones_like(output)
        )

    return work


def main() -> None:
    chosen = _arguments()
    warnings.simplefilter("ignore")
    device = torch.device(
        "cuda"
        if chosen.device == "auto" and torch.cuda.is_available()
        else chosen.device.replace("auto", "cpu")
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size = 8192 if device.type == "cuda" else 2048
    matrix, copy = (
        _rows.matmul_peak(device, dtype, size=size),
        _rows.copy_peak(device, size=1 << (30 if device.type == "cuda" else 27)),
    )
    print(f"matrix rate {matrix / 1e12:.2f} TFLOP/s, copy {copy / 1e9:.0f} GB/s", flush=True)
    for targets in chosen.targets:
        values = inputs(
            chosen.requests, chosen.events, targets, chosen.width, chosen.heads, device, dtype
        )
        for name, attend in orders(device).items():
            work = both_ways(attend, values)
            times = _rows.timed(
                _rows.replayed(work) if name.startswith("fused") else work,
                device,
                repeats=chosen.repeats,
            )
            row = _row(name, values, times, matrix, copy)
            if not chosen.dry_run:
                _rows.append([row], chosen.out)
            print(
                *(row[field] for field in ("claim", "shape", "p50_ms", "share_of_floor", "notes")),
                sep=" | ",
                flush=True,
            )


def _row(
    name: str, values: AttentionInputs, times: _rows.Times, matrix: float, copy: float
) -> dict[str, str]:
    (events, width), segments, heads = values.tokens.shape, values.segments, values.num_heads
    requests, targets, dtype = (
        len(segments.num_events),
        segments.num_targets[0],
        values.tokens.dtype,
    )
    per_event = (
        4 * width * heads * targets
        if name.endswith("reordered")
        else 4 * width**2 + 4 * width * targets
    )
    flops, moved = 3.0 * events * per_event, 3.0 * events * width * dtype.itemsize
    row = _rows.row(
        f"attention {name}",
        f"R{requests} L{segments.num_events[0]} m{targets} d{width} h{heads} M1",
        str(dtype).removeprefix("torch."),
        times,
        flops=flops,
        num_bytes=moved,
        share=max(flops / matrix, moved / copy) * 1e3 / times[1],
        notes=f"one layer; by FLOPs {target_attention.cheaper_order(targets, width, heads)}",
    )
    if not values.tokens.is_cuda:
        row["device"] = _rows.cpu_name()
    return row


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="longrec bench attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, default, text in (
        ("requests", 4, "requests of the batch"),
        ("events", 2048, "events of a request"),
        ("width", 64, "d"),
        ("heads", 4, "h"),
        ("repeats", 10, "timed calls"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{text} (default {default})"
        )
    parser.add_argument(
        "--targets",
        type=int,
        nargs="+",
        default=[1, 8, 32],
        help="targets of a request (default 1 8 32)",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
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
