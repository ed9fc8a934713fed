"""One user's rows in the KV cache.

Shape letters: M layers, L rows, D width, F event features.
"""

from __future__ import annotations

import dataclasses
import time

import pyarrow as pa
import torch

from longrec.scoring.request import CachedEvents

MIN_FREE_ROWS = 16
"""Smallest number of rows that a new entry leaves free for later events."""
FREE_FRACTION = 1 / 8
"""Free rows of a long new entry, as a fraction of its events."""


@dataclasses.dataclass(slots=True)
class CacheEntry:
    """Keys and values of one user's events, in buffers with free rows at the end.

    Args:
        events: events of rows start:end of the buffers, oldest first.
        layers: [M, capacity, 2 D].
        encoded: int32 [capacity, 1 + F].
        timestamps: int64 [capacity], ms.
        start, end: rows in use.
        encoded_at: monotonic seconds of the last encoding.
    """

    events: pa.RecordBatch
    layers: torch.Tensor
    encoded: torch.Tensor
    timestamps: torch.Tensor
    start: int
    end: int
    encoded_at: float

    @classmethod
    def allocate(cls, events: pa.RecordBatch, example: CachedEvents) -> CacheEntry:
        """Return an entry with uninitialised rows.

        Args:
            events: events of the rows, oldest first.
            example: any rows; they give dtype, device and widths of the buffers.
        """
        num_events = events.num_rows
        num_free = max(MIN_FREE_ROWS, int(FREE_FRACTION * num_events))
        capacity = num_events + num_free
        num_layers = len(example.layers)
        width = example.layers[0].shape[-1]
        return cls(
            events=events,
            layers=example.layers[0].new_empty((num_layers, capacity, width)),
            encoded=example.encoded.new_empty((capacity, example.encoded.shape[1])),
            timestamps=example.timestamps.new_empty(capacity),
            start=0,
            end=num_events,
            encoded_at=time.monotonic(),
        )

    @property
    def num_events(self) -> int:
        """Number of rows in use."""
        return int(self.events.num_rows)

    @property
    def num_free(self) -> int:
        """Number of free rows at the end."""
        return int(self.layers.shape[1]) - self.end

    @property
    def num_bytes(self) -> int:
        """Size of the buffers and of the events."""
        tensors = (self.layers, self.encoded, self.timestamps)
        num_tensor_bytes = sum(tensor.nbytes for tensor in tensors)
        return num_tensor_bytes + int(self.events.get_total_buffer_size())

    def view(self, start: int, count: int) -> CachedEvents:
        """Return `count` rows from row `start` of `events` on, without a copy."""
        first = self.start + start
        rows = slice(first, first + count)
        return CachedEvents(
            layers=list(self.layers[:, rows].unbind()),
            encoded=self.encoded[rows],
            timestamps=self.timestamps[rows],
        )

    def write(self, row: int, part: CachedEvents) -> None:
        """Write rows into the buffers, from `row` on."""
        rows = slice(row, row + len(part))
        with torch.inference_mode():
            for buffer, layer in zip(self.layers, part.layers, strict=True):
                buffer[rows] = layer
            self.encoded[rows] = part.encoded
            self.timestamps[rows] = part.timestamps

    def append(self, part: CachedEvents, events: pa.RecordBatch) -> None:
        """Write new rows into the free ones; views of earlier rows stay valid.

        Args:
            part: the new rows, at most `num_free`.
            events: events of all rows afterwards; rows of missing oldest events are dropped.
        """
        num_dropped = self.num_events + len(part) - events.num_rows
        self.write(self.end, part)
        self.end += len(part)
        self.start += num_dropped
        self.events = events
        self.encoded_at = time.monotonic()
