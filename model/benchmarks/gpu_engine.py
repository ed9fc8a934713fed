"""Measure training on one GPU: share of the peak, request level batching, memory, length, models.

    python model/benchmarks/gpu_engine.py                      all claims
    python model/benchmarks/gpu_engine.py --only step length   some of them
    python model/benchmarks/gpu_engine.py --out rows.csv       rows go there, not to results.csv

Unless a claim says otherwise: whole training steps (lookup, forward, backward, clipping, both
optimizers), bfloat16, d=256, h=8, M=4, r=2, histories of 10,240 events, 32 targets. "eager" is the
time in a Python loop, "device" that of a replayed CUDA graph of the same step.
"""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from harness import kernel_profile, results, timing, training_step
from harness.longest_history import LIMIT_GIB, free_memory, longest_history, peak_gib
from harness.results import Row
from longrec.config import ModelConfig
from longrec.data.batch import RequestBatch
from longrec.nn.baselines.hstu import hstu
from longrec.nn.baselines.transformer import causal_transformer
from longrec.nn.fused import paths as fused_paths
from longrec.nn.stca import STCA

DEVICE = torch.device("cuda")
EVENTS = 10_240
TARGETS = 32
NUM_ITEMS = training_step.NUM_ITEMS
CONFIG = ModelConfig(width=256, num_layers=4, num_heads=8, ffn_ratio=2)
SMALL_SHARE = 0.01
"""Kernels below this share of a step are summed."""
LENGTHS = [1024, 2048, 5120, 10240, 20480, 51200, 102400]


def make_step(
    config: ModelConfig, num_requests: int, num_events: int, num_targets: int
) -> Callable[[], None]:
    """Return a whole training step of a new ranker."""
    ranker = training_step.make_ranker(config, DEVICE, num_items=NUM_ITEMS)
    return training_step.make_step(ranker, random_batch(num_requests, num_events, num_targets))


def random_batch(num_requests: int, num_events: int, num_targets: int) -> RequestBatch:
    """Return a random batch on the device."""
    return training_step.random_batch(
        num_requests, num_events, num_targets, DEVICE, num_items=NUM_ITEMS
    )


def shape_of(
    num_requests: int, num_events: int, num_targets: int, width: int = CONFIG.width
) -> str:
    """Return the shape column of a row."""
    return f"R{num_requests} L{num_events} m{num_targets} d{width} h8 M4 r2"


def peak_rates() -> tuple[float, float]:
    """Return the matrix rate in FLOP/s and the copy rate in bytes/s, measured now."""
    matrix_rate = timing.matmul_peak(DEVICE, torch.bfloat16)
    return matrix_rate, timing.copy_peak(DEVICE, size=1 << 30)


def claim_step() -> Iterator[Row]:
    """Yield the share of the matrix peak of whole steps.

    The share is of the best few products of this run, on a cool device, before or after the step.
    The notes add the rate that products sustain for a second right after the step.
    """
    wide = dataclasses.replace(CONFIG, width=512)
    cases = [
        (CONFIG, 16, "device"),
        (CONFIG, 64, "device"),
        (CONFIG, 64, "eager"),
        (CONFIG, 128, "device"),
        (CONFIG, 128, "eager"),
        (wide, 16, "device"),
        (wide, 64, "device"),
        (wide, 64, "eager"),
        (dataclasses.replace(CONFIG, fusion=False), 128, "device"),
        (CONFIG, 256, "eager"),
    ]
    best_rate = peak_rates()[0]
    for config, num_requests, mode in cases:
        step = make_step(config, num_requests, EVENTS, TARGETS)
        work = timing.replayed(step) if mode == "device" else step
        times = timing.timed(work, DEVICE, repeats=20)
        rates = peak_rates()
        sustained_rate = timing.matmul_peak(DEVICE, torch.bfloat16, repeats=1000)
        best_rate = max(best_rate, rates[0])
        yield _step_row(config, num_requests, mode, times, (best_rate, *rates, sustained_rate))
        del step, work
        free_memory()


def _step_row(
    config: ModelConfig,
    num_requests: int,
    mode: str,
    times: timing.Times,
    rates: tuple[float, float, float, float],
) -> Row:
    """Return the row of a step.

    Args:
        config: of the ranker.
        num_requests: of the batch.
        mode: `device` or `eager`.
        times: of the step.
        rates: best, current, copy and sustained rate.
    """
    best_rate, current_rate, copy_rate, sustained_rate = rates
    sizes = (config, num_requests, EVENTS, TARGETS)
    steps_per_second = 1e3 / times[1]
    written = training_step.written_flops(*sizes, order="plain")
    written_rate = written * steps_per_second
    least_rate = training_step.least_flops(*sizes) * steps_per_second
    num_bytes = training_step.least_bytes(config, num_requests, EVENTS)
    event_rate = num_requests * EVENTS * steps_per_second
    notes = (
        f"{written_rate / 1e12:.0f} TFLOP/s of {best_rate / 1e12:.0f} "
        f"(right after the step {current_rate / 1e12:.0f}, "
        f"over a second {sustained_rate / 1e12:.0f}: {written_rate / sustained_rate:.3f}); "
        f"counting only the cheapest exact orders {least_rate / 1e12:.0f} "
        f"({least_rate / best_rate:.3f}); bytes alone take {num_bytes / copy_rate * 1e3:.2f} ms; "
        f"{event_rate / 1e6:.1f} M events/s; {peak_gib():.1f} GiB"
    )
    suffix = "" if config.fusion else " without fusion"
    return results.row(
        f"step d={config.width} {mode}{suffix}",
        shape_of(num_requests, EVENTS, TARGETS, config.width),
        "bfloat16",
        times,
        flops=written,
        num_bytes=num_bytes,
        share=written_rate / best_rate,
        notes=notes,
    )


def claim_breakdown() -> Iterator[Row]:
    """Yield the kernels of a step, each with its least time at the rates of this run."""
    num_requests = 64
    for width in (256, 512):
        config = dataclasses.replace(CONFIG, width=width)
        step = make_step(config, num_requests, EVENTS, TARGETS)
        rates = peak_rates()
        shape = shape_of(num_requests, EVENTS, TARGETS, width)
        costs = kernel_profile.kernel_costs(config, num_requests * EVENTS, TARGETS)
        lines = kernel_profile.profile_kernels(step, costs)
        total_ms = sum(line.milliseconds for line in lines)
        small = [line for line in lines if line.milliseconds < SMALL_SHARE * total_ms]
        for line in lines:
            if line not in small:
                yield _kernel_row(line, total_ms, rates, shape)
        small_ms = sum(line.milliseconds for line in small)
        yield results.row(
            "breakdown everything below 1 %",
            shape,
            "bfloat16",
            (small_ms, small_ms, small_ms),
            notes=f"{small_ms / total_ms:.1%} of {total_ms:.2f} ms",
        )
        del step
        free_memory()


def _kernel_row(
    line: kernel_profile.KernelLine, total_ms: float, rates: tuple[float, float], shape: str
) -> Row:
    milliseconds = line.milliseconds
    matrix_rate, copy_rate = rates
    flops, num_bytes = line.cost or (0.0, 0.0)
    floor_ms = line.floor_ms(matrix_rate, copy_rate)
    notes = (
        f"{milliseconds / total_ms:.1%} of the kernels' {total_ms:.2f} ms, "
        f"{line.launches:g} launches"
    )
    share = None
    if floor_ms is not None:
        share = floor_ms / milliseconds
        notes += (
            f"; FLOPs alone take {flops / matrix_rate * 1e3:.2f} ms, "
            f"bytes {num_bytes / copy_rate * 1e3:.2f} ms"
        )
    return results.row(
        f"breakdown {line.name}",
        shape,
        "bfloat16",
        (milliseconds, milliseconds, milliseconds),
        flops=flops,
        num_bytes=num_bytes,
        share=share,
        notes=notes,
    )


def claim_rlb() -> Iterator[Row]:
    """Yield the gain of request level batching.

    The time of a target alone on its own copy of the history is compared with that of a target that
    shares one copy with others.
    """
    num_requests = 48
    for order in ("auto", "plain"):
        config = dataclasses.replace(CONFIG, attention=order)
        alone_ms = 0.0
        for num_targets in (1, 8, 32):
            step = timing.replayed(make_step(config, num_requests, EVENTS, num_targets))
            times = timing.timed(step, DEVICE, repeats=15)
            target_ms = times[1] / (num_requests * num_targets)
            if num_targets == 1:
                alone_ms = target_ms
            gain = alone_ms / target_ms
            bytes_per_target = bytes_of(random_batch(1, EVENTS, num_targets)) / num_targets
            notes = (
                f"{target_ms * 1e3:.2f} us a target; gain {gain:.2f} = "
                f"{gain / num_targets:.3f} m; {bytes_per_target:.0f} bytes of batch a target"
            )
            yield results.row(
                f"rlb m={num_targets} {order}",
                shape_of(num_requests, EVENTS, num_targets),
                "bfloat16",
                times,
                num_bytes=bytes_per_target,
                notes=notes,
            )
            del step
            free_memory()


def claim_host() -> Iterator[Row]:
    """Yield the host's time of a step: steps on few events, whose device work is hidden.

    Steps of a Python loop never take less.
    """
    times = timing.timed(make_step(CONFIG, 1, 1024, TARGETS), DEVICE, repeats=30, warm=10)
    yield results.row(
        "host's part of a step",
        shape_of(1, 1024, TARGETS),
        "bfloat16",
        times,
        notes="operations issued, one by one",
    )


def claim_memory() -> Iterator[Row]:
    """Yield the longest histories that train within the limit of memory.

    32 targets share one copy of the history, or have one copy each; hidden rows are stored or
    recomputed.
    """
    model = training_step.make_ranker(CONFIG, DEVICE, num_items=NUM_ITEMS)
    for mode in ("stored", "recomputed"):
        cast("STCA", model.stca).recompute = mode == "recomputed"
        shared = longest_history(model, lambda length: (1, length, TARGETS), DEVICE)
        copied = longest_history(model, lambda length: (TARGETS, length, 1), DEVICE)
        notes = (
            f"within {LIMIT_GIB} GiB, hidden rows {mode}: {shared} events shared by {TARGETS} "
            f"targets, {copied} copied for each: {shared / copied:.1f} times as long"
        )
        shape = f"m{TARGETS} d256 h8 M4 r2"
        yield results.row(f"longest history, {mode}", shape, "bfloat16", None, notes=notes)


def claim_length() -> Iterator[Row]:
    """Yield step times against the length of the history, then a fitted line and parabola."""
    num_requests = 8
    medians = []
    for length in LENGTHS:
        step = timing.replayed(make_step(CONFIG, num_requests, length, TARGETS))
        times = timing.timed(step, DEVICE, repeats=10)
        medians.append(times[1])
        ns_per_event = times[1] * 1e6 / num_requests / length
        yield results.row(
            "step against length",
            shape_of(num_requests, length, TARGETS),
            "bfloat16",
            times,
            notes=f"{ns_per_event:.1f} ns an event; {peak_gib():.1f} GiB",
        )
        del step
        free_memory()
    yield results.row(
        "linear in length",
        f"R{num_requests} L1024..102400 m{TARGETS} d256 h8 M4 r2",
        "bfloat16",
        None,
        notes=_fit(np.array(LENGTHS), np.array(medians)),
    )


def _fit(lengths: np.ndarray, milliseconds: np.ndarray) -> str:
    """Return a description of the fitted line and parabola."""
    x = lengths / lengths[-1]
    slope, constant = np.polyfit(x, milliseconds, 1)
    square, *_ = np.polyfit(x, milliseconds, 2)
    residuals = milliseconds - (slope * x + constant)
    explained = 1 - np.sum(residuals**2) / np.sum((milliseconds - milliseconds.mean()) ** 2)
    return (
        f"ms = {slope:.3f} L/102400 + {constant:.3f}, R^2 {explained:.6f}; "
        f"with a square term {square:.3f} (L/102400)^2, "
        f"{square / milliseconds[-1]:+.4f} of the time at 102,400"
    )


def claim_models() -> Iterator[Row]:
    """Yield steps of the same ranker with STCA, a causal Transformer or HSTU as its history reader.

    All are replayed graphs. The Transformer uses flash attention, HSTU a Triton kernel. Both also
    run with two heads, the number that suits their kernels best.
    """
    cases = [
        ("stca", None, 8),
        ("causal transformer", causal_transformer, 8),
        ("causal transformer", causal_transformer, 2),
        ("hstu", hstu, 8),
        ("hstu", hstu, 2),
    ]
    num_requests = 16
    stca_ms = 0.0
    for name, make_reader, num_heads in cases:
        model = training_step.make_ranker(CONFIG, DEVICE, num_items=NUM_ITEMS)
        if make_reader is not None:
            config = dataclasses.replace(CONFIG, num_heads=num_heads)
            model.stca = make_reader(config).to(DEVICE)
        batch = random_batch(num_requests, EVENTS, TARGETS)
        step = timing.replayed(training_step.make_step(model, batch))
        times = timing.timed(step, DEVICE, repeats=10 if make_reader is None else 4, warm=2)
        if make_reader is None:
            stca_ms = times[1]
        shape = shape_of(num_requests, EVENTS, TARGETS).replace("h8", f"h{num_heads}")
        notes = f"{times[1] / stca_ms:.2f} times the step of STCA; {peak_gib():.1f} GiB"
        yield results.row(f"model {name}", shape, "bfloat16", times, notes=notes)
        del model, step
        free_memory()


def claim_reference() -> Iterator[Row]:
    """Yield the step of the reference implementation in eager PyTorch, as on any device."""
    step = make_step(CONFIG, 16, EVENTS, TARGETS)
    with fused_paths.reference_only():
        times = timing.timed(step, DEVICE, repeats=5, warm=2)
    yield results.row(
        "step of the reference implementation",
        shape_of(16, EVENTS, TARGETS),
        "bfloat16",
        times,
        notes=f"{peak_gib():.1f} GiB",
    )


def bytes_of(requests: RequestBatch) -> int:
    """Return the bytes of the tensors of a batch."""
    values = [getattr(requests, field.name) for field in dataclasses.fields(requests)]
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


CLAIMS = {
    "step": claim_step,
    "breakdown": claim_breakdown,
    "models": claim_models,
    "rlb": claim_rlb,
    "host": claim_host,
    "length": claim_length,
    "memory": claim_memory,
    "reference": claim_reference,
}


def main() -> None:
    """Measure the chosen claims; a claim that fails does not hide the others."""
    options = _arguments()
    warnings.simplefilter("ignore")  # PyTorch's remarks on sparse tensors
    matrix_rate, copy_rate = peak_rates()
    print(
        f"{torch.cuda.get_device_name()}: bfloat16 product of 8192 {matrix_rate / 1e12:.0f} "
        f"TFLOP/s, copy {copy_rate / 1e12:.2f} TB/s",
        flush=True,
    )
    failures = []
    for name in options.only:
        try:
            for measured in CLAIMS[name]():
                results.append([measured], options.out)
                results.show(measured)
        except RuntimeError as error:
            failures.append(name)
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
        free_memory()
    raise SystemExit(1 if failures else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CLAIMS, default=list(CLAIMS))
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
