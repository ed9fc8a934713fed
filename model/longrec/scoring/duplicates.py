"""Find equal events of a request: attention then reads each of them once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from longrec.nn.target_attention.cached import MIN_CHUNK_WORK, DuplicateEvents
from longrec.scoring.request import CachedEvents

MAX_DISTINCT_SHARE = 0.8
"""Largest share of distinct events at which deduplication pays."""


def find_duplicates(events: CachedEvents, work: int) -> DuplicateEvents | None:
    """Return which events are equal but for their times; None if deduplication does not pay.

    Args:
        events: events in host memory, with any times.
        work: targets times events times width of the attention over them.
    """
    if work < MIN_CHUNK_WORK:
        return None
    encoded = np.ascontiguousarray(events.encoded.numpy())
    # As rows of bytes: Arrow numbers the distinct ones with a hash table, without sorting.
    rows = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(encoded[0].nbytes),
        len(events),
        [None, pa.py_buffer(encoded)],
    )
    codes = rows.dictionary_encode()
    num_distinct = len(codes.dictionary)
    if num_distinct > MAX_DISTINCT_SHARE * len(events):
        return None
    inverse = codes.indices.to_numpy().astype(np.int64)
    first_index = np.empty(num_distinct, np.int64)
    # Written backwards, so the first of equal events is the last one written.
    first_index[inverse[::-1]] = np.arange(len(events) - 1, -1, -1)
    return DuplicateEvents(torch.from_numpy(first_index), torch.from_numpy(inverse))
