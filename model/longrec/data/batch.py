"""RequestBatch: R requests packed without padding, each with one history and its targets.

    requests          r0              r1      r2
    events   T   | e e e e e e |             | e e e |     one history per request, oldest first
    event_offsets  0             6             6       9   length R+1; r1 has an empty history
    targets  N   | t t t | t t | t |
    target_offsets 0       3     5   6                     length R+1; every request has a target

Shape letters: R requests, T packed events, N packed targets, A event features, U user
features, K tasks, C columns of the item table, S statistics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longrec.errors import DataError


@dataclasses.dataclass(frozen=True, slots=True)
class GlobalBatch:
    """Sizes of the batch of one step over all ranks; each rank holds its share as a RequestBatch.

    Args:
        num_requests, num_events, num_targets: over all ranks.
        is_placeholder: whether this rank has no request left. It then repeats one with weight 0,
            so that all ranks take the same number of steps.
    """

    num_requests: int
    num_events: int
    num_targets: int
    is_placeholder: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class RequestBatch:
    """The input of the ranker. The Encoder made all indices; times are int64 milliseconds.

    Args:
        event_items: int [T], row of the item table; 0 is the unknown item.
        event_features: int [T, A], index of each event feature in its own table (0 is missing).
        event_timestamps: int64 [T].
        event_offsets: int64 [R+1]; events of request r are event_offsets[r]:event_offsets[r+1].
        target_items: int [N], row of the item table.
        target_offsets: int64 [R+1].
        user_features: int [R, U], index of each user feature in its own table.
        request_timestamps: int64 [R].
        labels: float32 [N, K], or None when scoring.
        target_rates: float32 [N, C, S], statistics of the items of training targets, as known
            before their requests (longrec.data.loading.item_rates). None reads those that the
            model holds.
        host_counts: (events, targets) of each request as Python integers. `to` computes them, so
            no kernel on the device waits for the offsets to be copied back.
        global_batch: sizes over all ranks, where several processes train together.
    """

    event_items: Int[Tensor, " T"]
    event_features: Int[Tensor, "T A"]
    event_timestamps: Int[Tensor, " T"]
    event_offsets: Int[Tensor, " R1"]
    target_items: Int[Tensor, " N"]
    target_offsets: Int[Tensor, " R1"]
    user_features: Int[Tensor, "R U"]
    request_timestamps: Int[Tensor, " R"]
    labels: Float[Tensor, "N K"] | None = None
    target_rates: Float[Tensor, "N C S"] | None = None
    host_counts: tuple[list[int], list[int]] | None = dataclasses.field(
        default=None,
        repr=False,
        compare=False,
    )
    global_batch: GlobalBatch | None = None

    @property
    def num_requests(self) -> int:
        """Number of requests, R."""
        return self.event_offsets.numel() - 1

    @property
    def num_events(self) -> int:
        """Number of packed events, T."""
        return self.event_items.numel()

    @property
    def num_targets(self) -> int:
        """Number of packed targets, N."""
        return self.target_items.numel()

    def to(
        self,
        device: torch.device | str,
        *,
        non_blocking: bool = False,
    ) -> RequestBatch:
        """Return the batch on a device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        copy = self._map(move)
        return dataclasses.replace(copy, host_counts=self._counts())

    def pin_memory(self) -> RequestBatch:
        """Return the batch in page-locked host memory, with its counts."""
        copy = self._map(lambda tensor: tensor.pin_memory())
        return dataclasses.replace(copy, host_counts=self._counts())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of a CUDA batch allocated until `stream` has used it."""
        for tensor in self._tensors().values():
            tensor.record_stream(stream)

    def validate(self, *, num_items: int | None = None) -> RequestBatch:
        """Return self after checking shapes and offsets.

        Args:
            num_items: rows of the item table; None to accept any row.

        Raises:
            DataError: an offset array does not fit its values, a request has no target, or an
                item row is out of range.
        """
        _check_offsets("event", self.event_offsets, self.num_events)
        if num_items is not None:
            _check_item_rows("event", self.event_items, num_items)
        _check_offsets("target", self.target_offsets, self.num_targets)
        if num_items is not None:
            _check_item_rows("target", self.target_items, num_items)
        self._check_sizes()
        num_targets = self.target_offsets.diff()
        if bool((num_targets == 0).any()):
            raise DataError(
                "a request has no target",
                fix="Drop requests without candidates before batching.",
            )
        return self

    def _check_sizes(self) -> None:
        expected = {
            "event_features": self.num_events,
            "event_timestamps": self.num_events,
            "user_features": self.num_requests,
            "request_timestamps": self.num_requests,
            "target_offsets": self.num_requests + 1,
            "labels": self.num_targets,
            "target_rates": self.num_targets,
        }
        for name, size in expected.items():
            tensor = getattr(self, name)
            if tensor is None:  # neither labels nor rates when scoring
                continue
            found = tensor.shape[0]
            if found != size:
                raise DataError(
                    f"{name} does not fit the batch",
                    found=found,
                    expected=size,
                )

    def _counts(self) -> tuple[list[int], list[int]] | None:
        """Return (events, targets) of each request.

        None if the offsets are on a device, because reading them would wait for it.
        """
        is_on_host = self.event_offsets.device.type == "cpu"
        if self.host_counts is not None or not is_on_host:
            return self.host_counts
        num_events = self.event_offsets.diff().tolist()
        num_targets = self.target_offsets.diff().tolist()
        return num_events, num_targets

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                tensors[field.name] = value
        return tensors

    def _map(self, change: Callable[[Tensor], Tensor]) -> RequestBatch:
        changes: dict[str, Any] = {}
        for name, tensor in self._tensors().items():
            changes[name] = change(tensor)
        return dataclasses.replace(self, **changes)


def _check_offsets(
    name: str,
    offsets: Tensor,
    num_values: int,
) -> None:
    if offsets.numel() < 2:
        raise DataError(
            "the batch is empty",
            found=f"{name}_offsets of length {offsets.numel()}",
            expected="at least one request",
        )
    first = int(offsets[0])
    last = int(offsets[-1])
    lengths = offsets.diff()
    is_falling = bool((lengths < 0).any())
    if first != 0 or last != num_values or is_falling:
        raise DataError(
            f"{name}_offsets do not fit",
            found=f"{first}..{last} for {num_values} values",
            expected="0, never falling, ending at the number of values",
        )


def _check_item_rows(
    name: str,
    rows: Tensor,
    num_items: int,
) -> None:
    if not rows.numel():
        return
    low = int(rows.min())
    high = int(rows.max())
    if low < 0 or high >= num_items:
        raise DataError(
            f"{name}_items out of range",
            found=f"{low}..{high}",
            expected=f"0..{num_items - 1}",
        )
