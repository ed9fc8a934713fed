"""Bounds of an engine."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds of one engine.

    Args:
        cache_bytes: bytes of the history KV cache.
        batch_events: events in one batch; a larger request is scored alone.
        batch_requests: requests in one batch.
        queue_seconds: seconds of estimated work in progress.
    """

    cache_bytes: int = 1 << 30
    batch_events: int = 65_536
    batch_requests: int = 32
    queue_seconds: float = 1.0
