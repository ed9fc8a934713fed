"""Where a training step's time goes: its kernels by torch.profiler, each beside the least time that
its FLOPs and bytes allow.

Matrix products (aten::mm and its like) are told apart by the shapes of their operands, our kernels
by their names; an operation's floor is
the larger of FLOPs over the matrix rate and bytes over the copy rate, each operand read once and
each result written once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

from longrec.config import ModelConfig
from longrec.nn import fused_swiglu

PRODUCTS = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::addmm_",
    "aten::_grouped_mm",
)
Cost = tuple[float, float]
"""FLOPs and bytes of one step."""


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One kind of work of a step: milliseconds and launches a step, and its (FLOPs, bytes) where
    they are known.
    """

    name: str
    milliseconds: float
    launches: float
    cost: Cost | None = None

    def floor(self, matrix_rate: float, copy_rate: float) -> float | None:
        """Returns the least milliseconds."""
        return (
            None
            if self.cost is None
            else 1e3 * max(self.cost[0] / matrix_rate, self.cost[1] / copy_rate)
        )


def profiled(work: Callable[[], object], costs: dict[str, Cost], *, steps: int = 5) -> list[Line]:
    """Returns the device's work of one call, the longest first. `costs`: of our kernels by name,
    all launches of a step together.
    """
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):
        work()
    torch.cuda.synchronize()
    with profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True
    ) as record:
        for _ in range(steps):
            work()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = {}
    products: dict[str, Cost] = {}
    for event in record.events() or []:
        for name, microseconds in _device_work(event):
            total = found.setdefault(name, [0.0, 0.0])
            total[0] += microseconds / 1e3 / steps
            total[1] += 1 / steps
        if event.kernels and event.name in PRODUCTS:
            cost = _product_cost(event.name, event.input_shapes)
            before = products.get(_name(event), (0.0, 0.0))
            products[_name(event)] = (before[0] + cost[0] / steps, before[1] + cost[1] / steps)
    lines = [
        Line(name, time, launches, costs.get(name, products.get(name)))
        for name, (time, launches) in found.items()
    ]
    return sorted(lines, key=lambda line: -line.milliseconds)


def _device_work(event: Any) -> list[tuple[str, float]]:
    """Returns (name, microseconds); our kernels from the device's side, since their launches may
    belong to no operation of PyTorch.
    """
    if event.device_type.name != "CPU":
        return [(event.name, event.device_time_total)] if event.name.startswith("_") else []
    return [
        (_name(event), kernel.duration)
        for kernel in event.kernels
        if not kernel.name.startswith("_")
    ]


def _name(event: Any) -> str:
    if event.name in PRODUCTS:
        operands = (
            "x".join(map(str, sizes)) for sizes in _operands(event.name, event.input_shapes)
        )
        return " ".join([event.name.removeprefix("aten::"), *operands])
    return str(event.name)


def _operands(name: str, shapes: list[list[int]]) -> list[list[int]]:
    return shapes[1:3] if "add" in name else shapes[:2]


def _product_cost(name: str, shapes: list[list[int]]) -> Cost:
    left, right = _operands(name, shapes)
    result = [*left[:-1], right[-1]]
    sizes = sum(math.prod(shape) for shape in (left, right, result))
    return 2.0 * math.prod(left) * right[-1], 2.0 * sizes


def costs(config: ModelConfig, events: int, targets: int) -> dict[str, Cost]:
    """Returns (FLOPs, bytes) of the kernels of longrec.nn.kernels in one training step: rows of 16
    bits, each read and written once.

    Args:
        events: T, of the batch.
        targets: m, of one request.
    """
    width, layers = config.width, config.num_layers
    hidden, row, wide = config.ffn_ratio * width, 2.0 * events, width == fused_swiglu.WIDE_WIDTH
    fusion = 1 if config.fusion else 0
    product, narrow = (
        2.0 * events * hidden * width,
        2.0 * events * fused_swiglu.NARROW_INPUT_WIDTH * (2 * hidden + width),
    )
    attention = 2.0 * events * width * targets * layers
    return {
        "_gate_project": (layers * product, layers * row * ((3 if wide else 2) * hidden + width)),
        "_narrow_gate_project": (
            fusion * (product + narrow),
            fusion * row * (fused_swiglu.NARROW_INPUT_WIDTH + width + (0 if wide else 2 * hidden)),
        ),
        "_project_normalize_backward": (layers * 4.0 * events * width**2, layers * row * 4 * width),
        "_project_gate_backward": (
            (layers + fusion) * 2 * product,
            (layers + fusion) * row * (4 * hidden + width),
        ),
        "_wide_gate_backward": (
            layers * product + fusion * (product + narrow),
            layers * row * (4 * hidden + width)
            + fusion * row * (3 * hidden + width + fused_swiglu.NARROW_INPUT_WIDTH),
        ),
        "_rows_product": (layers * 4.0 * events * width**2, layers * row * 3 * width),
        "_normalize_backward": (0.0, layers * row * 3 * width),
        "_forward": (2 * attention, layers * row * (2 * width + 2 * config.num_heads)),
        "_backward": (5 * attention, layers * row * (4 * width + 4 * config.num_heads)),
    }
