"""RequestBatch: R requests packed without padding, each with one history and some targets.

    requests          r0              r1      r2
    events   T   | e e e e e e |             | e e e |        a history per request, oldest event first
    event_offsets  0             6             6       9        length R+1; r1 has an empty history
    targets  N   | t t t | t t | t |
    target_offsets 0       3     5   6                          length R+1; every request has at least one target

Shape letters: R requests, T packed events, N packed targets, A action features of an event, U user features, K tasks.
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
class Whole:
    """The batch of one step over all processes, of which a RequestBatch is the part of one of them.

    Args:
        num_requests, num_events, num_targets: of the whole.
        is_stand_in: whether the part is a request of another process, which counts for nothing:
            there were fewer requests than processes.
    """

    num_requests: int
    num_events: int
    num_targets: int
    is_stand_in: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class RequestBatch:
    """What the ranker reads. All indices were made by the Encoder; times are int64 milliseconds.

    Args:
        event_items: int [T], row of the item table; 0 is the unknown item.
        event_features: int [T, A], index of each action feature in its own table (0 is missing).
        event_timestamps: int64 [T].
        event_offsets: int64 [R+1]; events of request r are event_offsets[r]:event_offsets[r+1].
        target_items: int [N], row of the item table.
        target_offsets: int64 [R+1].
        user_features: int [R, U], index of each user feature in its own table.
        request_timestamps: int64 [R].
        labels: float32 [N, K], or None when scoring.
        host_counts: (events, targets) of each request as Python numbers, which `to` keeps of a
            batch that it moves to another device,
            so that nothing there waits for the offsets to come back.
        whole: what this is a part of, where several processes train together.
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
    host_counts: tuple[list[int], list[int]] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )
    whole: Whole | None = None

    @property
    def num_requests(self) -> int:
        return self.event_offsets.numel() - 1

    @property
    def num_events(self) -> int:
        return self.event_items.numel()

    @property
    def num_targets(self) -> int:
        return self.target_items.numel()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> RequestBatch:
        """Returns the batch on `device`."""
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return dataclasses.replace(moved, host_counts=self._counted())

    def pin_memory(self) -> RequestBatch:
        """Returns the batch in page-locked host memory, its counts taken."""
        return dataclasses.replace(
            self._map(lambda tensor: tensor.pin_memory()), host_counts=self._counted()
        )

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keeps the memory of a batch on a CUDA device from being used again before what `stream`
        has been given is done.
        """
        for tensor in (getattr(self, field.name) for field in dataclasses.fields(self)):
            if isinstance(tensor, Tensor):
                tensor.record_stream(stream)

    def _counted(self) -> tuple[list[int], list[int]] | None:
        if self.host_counts is None and self.event_offsets.device.type == "cpu":
            return self.event_offsets.diff().tolist(), self.target_offsets.diff().tolist()
        return self.host_counts

    def _map(self, change: Callable[[Tensor], Tensor]) -> RequestBatch:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed: dict[str, Any] = {
            name: change(value) for name, value in values.items() if isinstance(value, Tensor)
        }
        return dataclasses.replace(self, **changed)

    def validate(self, *, num_items: int | None = None) -> RequestBatch:
        """Returns self after checking shapes and offsets; called once, at the border.

        Raises:
            DataError: an offset array does not fit its values, a request has no target, or an item
                row is out of range.
        """
        for name, values in (("event", self.event_items), ("target", self.target_items)):
            offsets = getattr(self, f"{name}_offsets")
            if offsets.numel() < 2:
                raise DataError(
                    "the batch is empty",
                    found=f"{name}_offsets of length {offsets.numel()}",
                    expected="at least one request",
                )
            if (
                int(offsets[0]) != 0
                or int(offsets[-1]) != values.shape[0]
                or bool((offsets[1:] < offsets[:-1]).any())
            ):
                raise DataError(
                    f"{name}_offsets do not fit",
                    found=f"{offsets[0]}..{offsets[-1]} for {values.shape[0]} values",
                    expected="0, never falling, ending at the number of values",
                )
            if num_items is not None and values.numel():
                low, high = int(values.min()), int(values.max())
                if low < 0 or high >= num_items:
                    raise DataError(
                        f"{name}_items out of range",
                        found=f"{low}..{high}",
                        expected=f"0..{num_items - 1}",
                    )
        sizes = {
            "event_features": (self.event_features, self.num_events),
            "event_timestamps": (self.event_timestamps, self.num_events),
            "user_features": (self.user_features, self.num_requests),
            "request_timestamps": (self.request_timestamps, self.num_requests),
            "target_offsets": (self.target_offsets, self.num_requests + 1),
        }
        if self.labels is not None:
            sizes["labels"] = (self.labels, self.num_targets)
        for name, (tensor, size) in sizes.items():
            if tensor.shape[0] != size:
                raise DataError(
                    f"{name} does not fit the batch", found=tensor.shape[0], expected=size
                )
        if bool((self.target_offsets[1:] == self.target_offsets[:-1]).any()):
            raise DataError(
                "a request has no target", fix="Drop requests without candidates before batching."
            )
        return self
