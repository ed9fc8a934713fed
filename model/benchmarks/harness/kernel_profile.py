"""Kernels of a training step by torch.profiler, each with the least time that it could take.

Matrix products (aten::mm and its like) are told apart by the shapes of their operands, our kernels
by their names. The least time is the larger of FLOPs over the matrix rate and bytes over the copy
rate. Each operand counts as read once, each result as written once.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from longrec.config import ModelConfig
from longrec.nn.fused import swiglu as fused_swiglu

PRODUCTS = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::addmm_",
    "aten::_grouped_mm",
)
BYTES_PER_NUMBER = 2.0
Cost = tuple[float, float]
"""FLOPs and bytes of one step."""


@dataclasses.dataclass(frozen=True, slots=True)
class KernelLine:
    """One kind of work in a step.

    Args:
        name: of the kernel, or of the product with the shapes of its operands.
        milliseconds: per step.
        launches: per step.
        cost: FLOPs and bytes, if known.
    """

    name: str
    milliseconds: float
    launches: float
    cost: Cost | None = None

    def floor_ms(self, matrix_rate: float, copy_rate: float) -> float | None:
        """Return the least time in ms."""
        if self.cost is None:
            return None
        flops, num_bytes = self.cost
        return 1e3 * max(flops / matrix_rate, num_bytes / copy_rate)


def profile_kernels(
    work: Callable[[], object], costs: dict[str, Cost], *, steps: int = 5
) -> list[KernelLine]:
    """Return the work of the device in one call, the longest first.

    Args:
        work: one training step.
        costs: of our kernels by name; all launches of a step together.
        steps: number of profiled calls.
    """
    milliseconds: dict[str, float] = defaultdict(float)
    launches: dict[str, float] = defaultdict(float)
    product_flops: dict[str, float] = defaultdict(float)
    product_bytes: dict[str, float] = defaultdict(float)
    for event in _profile(work, steps):
        for name, microseconds in _device_work(event):
            milliseconds[name] += microseconds / 1e3 / steps
            launches[name] += 1 / steps
        if event.kernels and event.name in PRODUCTS:
            flops, num_bytes = product_cost(event.name, event.input_shapes)
            product_flops[_name(event)] += flops / steps
            product_bytes[_name(event)] += num_bytes / steps
    known = {name: (flops, product_bytes[name]) for name, flops in product_flops.items()} | costs
    lines = [
        KernelLine(name, time, launches[name], known.get(name))
        for name, time in milliseconds.items()
    ]
    return sorted(lines, key=lambda line: -line.milliseconds)


def _profile(work: Callable[[], object], steps: int) -> Any:
    """Return the profiler's events of `steps` calls, after three others."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):
        work()
    torch.cuda.synchronize()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities, record_shapes=True) as record:
        for _ in range(steps):
            work()
        torch.cuda.synchronize()
    return record.events() or []


def _device_work(event: Any) -> list[tuple[str, float]]:
    """Return (name, microseconds) of the kernels of an event.

    Our kernels are counted on the device's side: their launches may belong to no operation.
    """
    if event.device_type.name != "CPU":
        return [(event.name, event.device_time_total)] if event.name.startswith("_") else []
    return [
        (_name(event), kernel.duration)
        for kernel in event.kernels
        if not kernel.name.startswith("_")
    ]


def _name(event: Any) -> str:
    if event.name not in PRODUCTS:
        return str(event.name)
    operands = _operands(event.name, event.input_shapes)
    shapes = ("x".join(map(str, sizes)) for sizes in operands)
    return " ".join([event.name.removeprefix("aten::"), *shapes])


def _operands(name: str, shapes: list[list[int]]) -> list[list[int]]:
    return shapes[1:3] if "add" in name else shapes[:2]


def product_cost(name: str, shapes: list[list[int]]) -> Cost:
    """Return FLOPs and bytes of a matrix product in 16 bits."""
    left, right = _operands(name, shapes)
    result = [*left[:-1], right[-1]]
    numbers = sum(math.prod(shape) for shape in (left, right, result))
    return 2.0 * math.prod(left) * right[-1], BYTES_PER_NUMBER * numbers


def kernel_costs(config: ModelConfig, num_events: int, num_targets: int) -> dict[str, Cost]:
    """Return FLOPs and bytes of our kernels in one training step, by kernel name.

    Args:
        config: of the ranker.
        num_events: T, of the batch.
        num_targets: m, of one request.
    """
    width = config.width
    layers = config.num_layers
    hidden = config.ffn_ratio * width
    narrow_width = fused_swiglu.NARROW_INPUT_WIDTH
    is_wide = width == fused_swiglu.WIDE_WIDTH
    row = BYTES_PER_NUMBER * num_events
    num_fusions = 1 if config.fusion else 0
    product = 2.0 * num_events * hidden * width
    narrow = 2.0 * num_events * narrow_width * (2 * hidden + width)
    square = 4.0 * num_events * width**2
    attention = 2.0 * num_events * width * num_targets * layers
    gate_rows = (3 if is_wide else 2) * hidden + width
    narrow_rows = narrow_width + width + (0 if is_wide else 2 * hidden)
    wide_backward_rows = 3 * hidden + width + narrow_width
    num_ffns = layers + num_fusions
    return {
        "_gate_project": (layers * product, layers * row * gate_rows),
        "_narrow_gate_project": (num_fusions * (product + narrow), num_fusions * row * narrow_rows),
        "_project_normalize_backward": (layers * square, layers * row * 4 * width),
        "_project_gate_backward": (num_ffns * 2 * product, num_ffns * row * (4 * hidden + width)),
        "_wide_gate_backward": (
            layers * product + num_fusions * (product + narrow),
            layers * row * (4 * hidden + width) + num_fusions * row * wide_backward_rows,
        ),
        "_rows_product": (layers * square, layers * row * 3 * width),
        "_normalize_backward": (0.0, layers * row * 3 * width),
        "_forward": (2 * attention, layers * row * (2 * width + 2 * config.num_heads)),
        "_backward": (5 * attention, layers * row * (4 * width + 4 * config.num_heads)),
    }
