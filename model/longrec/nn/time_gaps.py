"""Time-gap buckets: the time between an event and the request, on a logarithmic scale.

Shape letter: T events.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

NUM_GAP_BUCKETS = 32
"""Ranges of the time between event and request (gap_buckets)."""


def gap_buckets(
    request_times: Int[Tensor, " T"], timestamps: Int[Tensor, " T"]
) -> Int[Tensor, " T"]:
    """Return the bucket of each time gap, int64 [T].

    Bucket 0 holds gaps below one second, bucket k gaps from 2^(k-1) s to below 2^k s. The last one
    holds all longer gaps.

    Args:
        request_times: int64 [T], time of the request of each event, ms.
        timestamps: int64 [T], time of each event, ms; one after the request is in bucket 0.

    Source: time gap of arXiv 2511.06077, log-bucketed.
    """
    edges_ms = 1_000 << torch.arange(NUM_GAP_BUCKETS - 1, device=request_times.device)
    return torch.bucketize(request_times - timestamps, edges_ms, right=True)
