# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Kernel that sums the gradient of the gap bias by bucket, without sorting.

Shape letters: T packed events, H heads, B gap buckets (G in other files).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _sum_by_bucket(
    dbias,
    gaps,
    sums,
    num_events,
    num_buckets,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Write the sums of one block of events by bucket: [programs, BLOCK_B, HEADS].

    Events come in time order, so a block has few buckets and its loop is short. HEADS is the least
    power of two that is at least H.
    """
    program = tl.program_id(0)
    events = program * BLOCK_L + tl.arange(0, BLOCK_L)
    heads = tl.arange(0, HEADS)
    buckets = tl.arange(0, BLOCK_B)
    inside = events < num_events
    bucket = tl.load(gaps + events, mask=inside, other=0)
    value = tl.load(
        dbias + heads[:, None] * num_events + events[None, :],
        mask=inside[None, :] & (heads < H)[:, None],
        other=0.0,
    )
    lowest = tl.min(tl.where(inside, bucket, num_buckets), 0)
    highest = tl.max(bucket, 0)
    total = tl.zeros((BLOCK_B, HEADS), tl.float32)
    for b in range(lowest, highest + 1):
        is_in_bucket = inside & (bucket == b)
        per_head = tl.sum(tl.where(is_in_bucket[None, :], value, 0.0), 1)
        total += tl.where((buckets == b)[:, None], per_head[None, :], 0.0)
    start = sums + program * BLOCK_B * HEADS
    tl.store(start + buckets[:, None] * HEADS + heads[None, :], total)


def sum_by_bucket(
    dbias: Tensor,
    gaps: Tensor,
    num_buckets: int,
    *,
    block_l: int = 1024,
) -> Tensor:
    """Return the sums over the events of each bucket, float32 [B, H].

    Args:
        dbias: float32 [H, T].
        gaps: int32 [T], bucket of each event.
        num_buckets: B.
        block_l: events of one program.
    """
    heads, num_events = dbias.shape
    block_b = triton.next_power_of_2(num_buckets)
    block_h = triton.next_power_of_2(heads)
    programs = triton.cdiv(num_events, block_l)
    sums = torch.empty(
        (programs, block_b, block_h),
        dtype=torch.float32,
        device=dbias.device,
    )
    _sum_by_bucket[(programs,)](
        dbias,
        gaps,
        sums,
        num_events,
        num_buckets,
        H=heads,
        HEADS=block_h,
        BLOCK_L=block_l,
        BLOCK_B=block_b,
    )
    return sums.sum(0)[:num_buckets, :heads]
