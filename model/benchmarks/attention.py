"""Time one layer's attention in every order that the machine has, forward and backward.

    longrec bench attention
    longrec bench attention --events 10240 --requests 16 --targets 1 2 4 8 16 32 \\
        --width 256 --heads 8

A GPU has the fused orders too. FLOPs of a request with m targets and L events, three times the
forward pass: plain 3 (4 L d^2 + 4 L d m), reordered 3 (4 L d h m). The floor is the larger of FLOPs
over the matrix rate and bytes over the copy rate, both measured in the same run. Bytes: the events
are read forward and backward, and their gradient is written.
"""

from __future__ import annotations

import argparse
import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from harness import results, timing
from longrec.nn import target_attention
from longrec.nn.target_attention import AttentionInputs, Segments, fused, reference, reordered

Attend = Callable[[AttentionInputs], Tensor]


def available_orders(device: torch.device) -> dict[str, Attend]:
    """Return the orders that can run on the device, by name."""
    found: dict[str, Attend] = {"plain": reference.attend, "reordered": reordered.attend}
    if device.type == "cuda":
        for order in ("plain", "reordered"):
            found[f"fused {order}"] = functools.partial(_attend_fused, order)
    return found


def _attend_fused(order: str, values: AttentionInputs) -> Tensor:
    queries = values.scaled_queries().flatten(1)
    return fused.attention_source(values, order).attend(queries)


def random_inputs(
    options: argparse.Namespace, num_targets: int, device: torch.device, dtype: torch.dtype
) -> AttentionInputs:
    """Return random inputs of equal requests that require gradients."""
    requests = options.requests
    events = options.events
    width = options.width

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, device=device)).to(dtype).requires_grad_()

    ends = torch.arange(requests + 1, device=device)
    segments = Segments(
        ends * events, ends * num_targets, [events] * requests, [num_targets] * requests
    )
    w_q, w_k, w_v = (leaf(width, width, scale=width**-0.5) for _ in range(3))
    return AttentionInputs(
        leaf(requests * num_targets, width),
        leaf(requests * events, width),
        w_q,
        w_k,
        w_v,
        options.heads,
        segments,
        leaf(requests * events, options.heads),
    )


def forward_and_backward(attend: Attend, values: AttentionInputs) -> Callable[[], object]:
    """Return a function that computes the attention and its gradients."""
    leaves = [values.queries, values.tokens, values.w_q, values.w_k, values.w_v, values.bias]
    present = [leaf for leaf in leaves if leaf is not None]

    def work() -> object:
        output = attend(values)
        return torch.autograd.grad(output, present, torch.ones_like(output))

    return work


def main() -> None:
    """Measure every order for every number of targets."""
    options = _arguments()
    warnings.simplefilter("ignore")
    device = _device(options.device)
    is_cuda = device.type == "cuda"
    dtype = torch.bfloat16 if is_cuda else torch.float32
    matrix_rate = timing.matmul_peak(device, dtype, size=8192 if is_cuda else 2048)
    copy_rate = timing.copy_peak(device, size=1 << (30 if is_cuda else 27))
    print(f"matrix rate {matrix_rate / 1e12:.2f} TFLOP/s, copy {copy_rate / 1e9:.0f} GB/s")
    for num_targets in options.targets:
        values = random_inputs(options, num_targets, device, dtype)
        for name, attend in available_orders(device).items():
            work = forward_and_backward(attend, values)
            if name.startswith("fused"):
                work = timing.replayed(work)
            times = timing.timed(work, device, repeats=options.repeats)
            measured = _row(name, values, times, (matrix_rate, copy_rate))
            if not options.dry_run:
                results.append([measured], options.out)
            results.show(measured)


def _device(choice: str) -> torch.device:
    if choice == "auto":
        choice = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(choice)


def _row(
    name: str, values: AttentionInputs, times: timing.Times, rates: tuple[float, float]
) -> results.Row:
    num_events, width = values.tokens.shape
    heads = values.num_heads
    dtype = values.tokens.dtype
    num_requests = len(values.segments.num_events)
    num_targets = values.segments.num_targets[0]
    if name.endswith("reordered"):
        per_event = 4 * width * heads * num_targets
    else:
        per_event = 4 * width**2 + 4 * width * num_targets
    flops = 3.0 * num_events * per_event
    num_bytes = 3.0 * num_events * width * dtype.itemsize
    matrix_rate, copy_rate = rates
    floor_ms = max(flops / matrix_rate, num_bytes / copy_rate) * 1e3
    length = values.segments.num_events[0]
    measured = results.row(
        f"attention {name}",
        f"R{num_requests} L{length} m{num_targets} d{width} h{heads} M1",
        str(dtype).removeprefix("torch."),
        times,
        flops=flops,
        num_bytes=num_bytes,
        share=floor_ms / times[1],
        notes=f"one layer; by FLOPs {target_attention.cheaper_order(num_targets, width, heads)}",
    )
    if not values.tokens.is_cuda:
        measured["device"] = results.cpu_name()
    return measured


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
        default=results.RESULTS,
        help="file that gets the rows (default results.csv)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the rows only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
