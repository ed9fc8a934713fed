# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Rows of requests in the kernels of causal attention: packed events first, then packed targets.

A request is a sequence of its events and then its targets. Position p is event p, or target p -
(number of events). In memory the events of all requests precede the targets of all requests, so
that nothing is copied into the order of the sequences.

Shape letters: S packed events and targets, H heads, K head width.
"""

from __future__ import annotations

import dataclasses

import triton
import triton.language as tl
from torch import Tensor

from longrec.nn.target_attention import Segments

BLOCK_QUERIES = 128
BLOCK_EVENTS = 64
EVENT_KERNEL_QUERIES = 64
"""Queries of a tile in the kernel of dk and dv: fewer, since it holds two accumulators."""


@dataclasses.dataclass(frozen=True, slots=True)
class CausalInputs:
    """Queries, keys and values of the events and targets of all requests.

    Args:
        q, k, v: [S, H, K], events first; views of one tensor, so that they share their strides.
        segments: rows of each request.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    segments: Segments

    def sizes(self) -> dict[str, int]:
        """Return the arguments of a kernel that do not vary with its block."""
        _, heads, width = self.q.shape
        return {"H": heads, "K": width, "STRIDE": self.q.stride(0)}

    def query_grid(self) -> tuple[int, int, int]:
        """Return the programs of a kernel over blocks of events and targets."""
        counts = zip(self.segments.num_events, self.segments.num_targets, strict=True)
        longest = max((events + targets for events, targets in counts), default=0)
        return self._grid(longest, BLOCK_QUERIES)

    def event_grid(self) -> tuple[int, int, int]:
        """Return the programs of a kernel over blocks of events."""
        return self._grid(max(self.segments.num_events, default=0), BLOCK_EVENTS)

    def _grid(self, longest: int, block: int) -> tuple[int, int, int]:
        num_blocks = max(1, triton.cdiv(longest, block))  # CUDA refuses an empty grid
        return num_blocks, self.q.shape[1], len(self.segments.num_events)


@triton.jit
def request_bounds(event_offsets, target_offsets):
    """Return (row of the first event, of position 0 if it were a target, events, positions)."""
    request = tl.program_id(2)
    first_event = tl.load(event_offsets + request)
    num_events = (tl.load(event_offsets + request + 1) - first_event).to(tl.int32)
    first_target = tl.load(target_offsets + request)
    num_targets = (tl.load(target_offsets + request + 1) - first_target).to(tl.int32)
    num_all_events = tl.load(event_offsets + tl.num_programs(2))
    origin = num_all_events + first_target - num_events
    return first_event, origin, num_events, num_events + num_targets


@triton.jit
def row_numbers(
    positions,
    first_event,
    origin,
    num_events,
):
    """Return the packed row of each position, int64."""
    return tl.where(positions < num_events, first_event, origin) + positions


@triton.jit
def load_rows(
    pointer,
    rows,
    is_real,
    STRIDE: tl.constexpr,
    K: tl.constexpr,
):
    """Return rows [BLOCK, K] of one head; zeros where a row is not real."""
    offsets = rows[:, None] * STRIDE + tl.program_id(1) * K + tl.arange(0, K)[None, :]
    return tl.load(pointer + offsets, mask=is_real[:, None], other=0.0)


@triton.jit
def store_rows(
    pointer,
    rows,
    is_stored,
    values,
    STRIDE: tl.constexpr,
    K: tl.constexpr,
):
    """Write rows [BLOCK, K] of one head."""
    offsets = rows[:, None] * STRIDE + tl.program_id(1) * K + tl.arange(0, K)[None, :]
    tl.store(pointer + offsets, values, mask=is_stored[:, None])


@triton.jit
def row_dot(left, right):
    """Return the product of each row with its counterpart, float32 [BLOCK]."""
    return tl.sum(left.to(tl.float32) * right.to(tl.float32), axis=1)
