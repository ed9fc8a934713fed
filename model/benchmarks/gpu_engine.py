"""The engine on one GPU: share of the peak, gain of request level batching, memory, growth with the
history, other models.

    python model/benchmarks/gpu_engine.py                      all claims
    python model/benchmarks/gpu_engine.py --only step length   some of them
    python model/benchmarks/gpu_engine.py --out rows.csv       rows there instead of results.csv

Whole training steps unless said: lookup, forward, backward, clipping, both optimizers, bfloat16,
d=256, h=8, M=4, r=2, histories of
10,240 events, 32 targets. "eager" is the time in a Python loop, "device" that of a replayed graph
of the same step.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import _kernels
import _rows
import _world

from longrec.config import ModelConfig
from longrec.data.batch import RequestBatch
from longrec.nn import fused_paths
from longrec.nn.baselines.hstu import hstu
from longrec.nn.baselines.transformer import causal_transformer
from longrec.nn.ranker import Ranker
from longrec.nn.stca import STCA

DEVICE = torch.device("cuda")
EVENTS, TARGETS = 10_240, 32
CONFIG = ModelConfig(
    width=256,
    num_layers=4,
    num_heads=8,
    ffn_ratio=2,
)
Row = dict[str, str]


def make(
    config: ModelConfig,
    requests: int,
    events: int,
    targets: int,
) -> Callable[[], None]:
    """Returns a training step."""
    return _world.step(
        _world.ranker(config, DEVICE), _world.batch(requests, events, targets, DEVICE)
    )


def shape(
    requests: int,
    events: int,
    targets: int,
    width: int = CONFIG.width,
) -> str:
    return f"R{requests} L{events} m{targets} d{width} h8 M4 r2"


def claim_step() -> Iterator[Row]:
    """Share of the matrix peak of a whole step: the best few products of this run, on a cool
    device, before or after the step; and,
    in the notes, of the rate that products keep up right after the step for as long as the steps
    were timed."""
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
    best = peaks()[0]
    for config, requests, how in cases:
        work = make(config, requests, EVENTS, TARGETS)
        times = _rows.timed(_rows.replayed(work) if how == "device" else work, DEVICE, repeats=20)
        now, copy = peaks()
        kept_up = _rows.matmul_peak(DEVICE, torch.bfloat16, repeats=1000)
        best = max(best, now)
        size, rate = (config, requests, EVENTS, TARGETS), 1e3 / times[1]
        written, least = _world.written_flops(*size, order="plain"), _world.least_flops(*size)
        moved = _world.least_bytes(config, requests, EVENTS)
        notes = (
            f"{written * rate / 1e12:.0f} TFLOP/s of {best / 1e12:.0f} (right after the step {now / 1e12:.0f}, over a second "
            f"{kept_up / 1e12:.0f}: {written * rate / kept_up:.3f}); counting only the cheapest "
            f"exact orders {least * rate / 1e12:.0f} ({least * rate / best:.3f}); bytes alone take "
            f"{moved / copy * 1e3:.2f} ms; {requests * EVENTS * rate / 1e6:.1f} M events/s; {memory_gib():.1f} GiB"
        )
        name = f"step d={config.width} {how}{'' if config.fusion else ' without fusion'}"
        yield _rows.row(
            name,
            shape(requests, EVENTS, TARGETS, config.width),
            "bfloat16",
            times,
            flops=written,
            num_bytes=moved,
            share=written * rate / best,
            notes=notes,
        )
        del work
        free()


def claim_breakdown() -> Iterator[Row]:
    """What a step's time is spent on: its kernels, each with the least time that its FLOPs and
    bytes allow at this run's rates.
    """
    for width in (256, 512):
        config, requests = dataclasses.replace(CONFIG, width=width), 64
        work = make(config, requests, EVENTS, TARGETS)
        rates = peaks()
        where = shape(requests, EVENTS, TARGETS, width)
        lines = _kernels.profiled(work, _kernels.costs(config, requests * EVENTS, TARGETS))
        total, rest = sum(line.milliseconds for line in lines), 0.0
        for line in lines:
            if line.milliseconds < 0.01 * total:
                rest += line.milliseconds
                continue
            floor, known = line.floor(*rates), line.cost or (0.0, 0.0)
            notes = f"{line.milliseconds / total:.1%} of the kernels' {total:.2f} ms, {line.launches:g} launches"
            if floor is not None:
                notes += f"; FLOPs alone take {known[0] / rates[0] * 1e3:.2f} ms, bytes {known[1] / rates[1] * 1e3:.2f} ms"
            yield _rows.row(
                f"breakdown {line.name}",
                where,
                "bfloat16",
                (line.milliseconds,) * 3,
                flops=known[0],
                num_bytes=known[1],
                share=None if floor is None else floor / line.milliseconds,
                notes=notes,
            )
        yield _rows.row(
            "breakdown everything below 1 %",
            where,
            "bfloat16",
            (rest,) * 3,
            notes=f"{rest / total:.1%} of {total:.2f} ms",
        )
        del work
        free()


def claim_rlb() -> Iterator[Row]:
    """Gain of request level batching: time of one target, alone on its own copy of the history
    against with others on one copy.
    """
    requests = 48
    for order in ("auto", "plain"):
        config, alone = dataclasses.replace(CONFIG, attention=order), 0.0
        for targets in (1, 8, 32):
            times = _rows.timed(
                _rows.replayed(make(config, requests, EVENTS, targets)), DEVICE, repeats=15
            )
            each = times[1] / (requests * targets)
            alone = each if targets == 1 else alone
            stored = bytes_of(_world.batch(1, EVENTS, targets, DEVICE)) / targets
            notes = (
                f"{each * 1e3:.2f} us a target; gain {alone / each:.2f} = {alone / each / targets:.3f} m; "
                f"{stored:.0f} bytes of batch a target"
            )
            yield _rows.row(
                f"rlb m={targets} {order}",
                shape(requests, EVENTS, targets),
                "bfloat16",
                times,
                num_bytes=stored,
                notes=notes,
            )
            free()


def claim_host() -> Iterator[Row]:
    """The host's share: steps on next to no events, whose device work is hidden; steps of a Python
    loop never take less.
    """
    times = _rows.timed(make(CONFIG, 1, 1024, TARGETS), DEVICE, repeats=30, warm=10)
    yield _rows.row(
        "host's part of a step",
        shape(1, 1024, TARGETS),
        "bfloat16",
        times,
        notes="operations issued, one by one",
    )


def claim_memory() -> Iterator[Row]:
    """Longest history that trains within 16 GiB, with 32 targets on one copy against 32 copies,
    kept or recomputed.
    """
    model = _world.ranker(CONFIG, DEVICE)
    for name in ("kept", "recomputed"):
        cast("STCA", model.stca).recompute = name == "recomputed"
        shared = longest(model, lambda length: (1, length, TARGETS))
        copied = longest(model, lambda length: (TARGETS, length, 1))
        notes = (
            f"within {CAP_GIB} GiB, hidden rows {name}: {shared} events shared by {TARGETS} targets, {copied} copied for each: "
            f"{shared / copied:.1f} times as long"
        )
        yield _rows.row(
            f"longest history, {name}", f"m{TARGETS} d256 h8 M4 r2", "bfloat16", None, notes=notes
        )


CAP_GIB = 16


def longest(model: Ranker, sizes: Callable[[int], tuple[int, int, int]]) -> int:
    """Returns the most events of a training step within CAP_GIB, to 2 %."""
    low, high = 512, 1 << 20
    torch.cuda.set_per_process_memory_fraction(
        CAP_GIB * 2**30 / torch.cuda.get_device_properties(DEVICE).total_memory
    )
    while high - low > max(512, low // 50):
        middle = (low + high) // 2 // 512 * 512
        low, high = (middle, high) if fits(model, sizes(middle)) else (low, middle)
    torch.cuda.set_per_process_memory_fraction(1.0)
    return low


def fits(model: Ranker, sizes: tuple[int, int, int]) -> bool:
    """Returns whether two training steps find the memory they need."""
    found = _trains(model, sizes)
    model.zero_grad()
    free()
    return found


def _trains(model: Ranker, sizes: tuple[int, int, int]) -> bool:
    try:
        work = _world.step(model, _world.batch(*sizes, DEVICE))
        work()
        work()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return False
    return True


def claim_length() -> Iterator[Row]:
    """Step time against the length of the history, with a fitted line and parabola."""
    lengths, medians, requests = [1024, 2048, 5120, 10240, 20480, 51200, 102400], [], 8
    for length in lengths:
        times = _rows.timed(
            _rows.replayed(make(CONFIG, requests, length, TARGETS)), DEVICE, repeats=10
        )
        medians.append(times[1])
        yield _rows.row(
            "step against length",
            shape(requests, length, TARGETS),
            "bfloat16",
            times,
            notes=f"{times[1] * 1e6 / requests / length:.1f} ns an event; {memory_gib():.1f} GiB",
        )
        free()
    x, y = np.array(lengths) / lengths[-1], np.array(medians)
    line, parabola = np.polyfit(x, y, 1), np.polyfit(x, y, 2)
    explained = 1 - np.sum((y - np.polyval(line, x)) ** 2) / np.sum((y - y.mean()) ** 2)
    yield _rows.row(
        "linear in length",
        f"R{requests} L1024..102400 m{TARGETS} d256 h8 M4 r2",
        "bfloat16",
        None,
        notes=f"ms = {line[0]:.3f} L/102400 + {line[1]:.3f}, R^2 {explained:.6f}; with a square term {parabola[0]:.3f} "
        f"(L/102400)^2, {parabola[0] / y[-1]:+.4f} of the time at 102,400",
    )


def claim_models() -> Iterator[Row]:
    """The same ranker with a causal Transformer (flash attention) or HSTU (a Triton kernel) in the
    place of STCA, replayed graphs all;
    the others also with two heads, whose width suits their kernels best."""
    requests, base = 16, 0.0
    peers = [
        (name, kind, heads)
        for name, kind in (("causal transformer", causal_transformer), ("hstu", hstu))
        for heads in (8, 2)
    ]
    for name, kind, heads in (("stca", None, 8), *peers):
        model = _world.ranker(CONFIG, DEVICE)
        if kind is not None:
            model.stca = kind(dataclasses.replace(CONFIG, num_heads=heads)).to(DEVICE)
        work = _world.step(model, _world.batch(requests, EVENTS, TARGETS, DEVICE))
        times = _rows.timed(_rows.replayed(work), DEVICE, repeats=10 if kind is None else 4, warm=2)
        base = times[1] if kind is None else base
        yield _rows.row(
            f"model {name}",
            shape(requests, EVENTS, TARGETS).replace("h8", f"h{heads}"),
            "bfloat16",
            times,
            notes=f"{times[1] / base:.2f} times the step of STCA; {memory_gib():.1f} GiB",
        )
        del model, work
        free()


def claim_reference() -> Iterator[Row]:
    """The same step without the fused paths: the readable twins in eager PyTorch, as they run on
    any device.
    """
    work = make(CONFIG, 16, EVENTS, TARGETS)
    with fused_paths.reference_only():
        times = _rows.timed(work, DEVICE, repeats=5, warm=2)
    yield _rows.row(
        "step of the readable twins",
        shape(16, EVENTS, TARGETS),
        "bfloat16",
        times,
        notes=f"{memory_gib():.1f} GiB",
    )


def peaks() -> tuple[float, float]:
    """Returns (matrix rate, copy rate) of this run, measured now, FLOP/s and bytes/s."""
    return _rows.matmul_peak(DEVICE, torch.bfloat16), _rows.copy_peak(DEVICE, size=1 << 30)


def bytes_of(requests: RequestBatch) -> int:
    """Returns the bytes of the tensors of a batch."""
    values = [getattr(requests, field.name) for field in dataclasses.fields(requests)]
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def memory_gib() -> float:
    return torch.cuda.max_memory_allocated() / 2**30


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CLAIMS,
        default=list(CLAIMS),
    )
    warnings.simplefilter("ignore")  # PyTorch's remarks on sparse tensors
    parser.add_argument("--out", type=Path, default=_rows.RESULTS)
    arguments = parser.parse_args()
    peak, copy = peaks()
    print(
        f"{torch.cuda.get_device_name()}: bfloat16 product of 8192 {peak / 1e12:.0f} TFLOP/s, copy {copy / 1e12:.2f} TB/s",
        flush=True,
    )
    failures = []
    for name in arguments.only:
        try:
            for found in CLAIMS[name]():
                _rows.append([found], arguments.out)
                print(
                    *(
                        found[field]
                        for field in ("claim", "shape", "p50_ms", "share_of_floor", "notes")
                    ),
                    sep=" | ",
                    flush=True,
                )
        except RuntimeError as error:  # a claim that cannot be measured must not hide the others
            failures.append(name)
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
        free()
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
