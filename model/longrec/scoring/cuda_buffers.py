"""Fixed buffers that CUDA graphs read and write."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from longrec.nn.ranker import Ranker

NUM_REQUEST_FIELDS = 3
"""Numbers in front of the user features: request time, 0, number of events.

The last two are the event offsets of a batch of one request.
"""
REQUEST_TIME = slice(0, 1)
EVENT_OFFSETS = slice(1, 3)


@dataclasses.dataclass(frozen=True, slots=True)
class RequestBuffers:
    """Tensors that are copied between host and device for one request.

    Shape letters: E events, N candidates, A action features of an event, U user features, K tasks.

    Args:
        items: int32 [E], rows of the item table.
        features: int32 [E, A], action features.
        timestamps: int64 [E], ms.
        request: int64 [3 + U + N]: request time in ms, 0, number of events, user features,
            candidates.
        scores: float32 [N, K], probabilities.
    """

    items: Tensor
    features: Tensor
    timestamps: Tensor
    request: Tensor
    scores: Tensor

    @classmethod
    def allocate(
        cls,
        ranker: Ranker,
        num_events: int,
        num_targets: int,
        device: torch.device,
    ) -> RequestBuffers:
        """Return zeroed buffers of the largest size on `device`."""
        num_features = len(ranker.actions.sizes)
        num_user_features = len(ranker.users.sizes)
        request_size = NUM_REQUEST_FIELDS + num_user_features + num_targets
        shapes = {
            "items": (num_events,),
            "features": (num_events, num_features),
            "timestamps": (num_events,),
            "request": (request_size,),
            "scores": (num_targets, ranker.head.out_features),
        }
        dtypes = {
            "items": torch.int32,
            "features": torch.int32,
            "timestamps": torch.int64,
            "request": torch.int64,
            "scores": torch.float32,
        }
        tensors = {
            name: torch.zeros(
                shape,
                dtype=dtypes[name],
                device=device,
            )
            for name, shape in shapes.items()
        }
        return cls(**tensors)

    def allocate_pinned(self) -> RequestBuffers:
        """Return zeroed buffers of the same shapes in page-locked host memory."""
        tensors = {}
        for field in dataclasses.fields(self):
            tensor = getattr(self, field.name)
            tensors[field.name] = torch.zeros(
                tensor.shape,
                dtype=tensor.dtype,
                pin_memory=True,
            )
        return RequestBuffers(**tensors)


def allocate_layers(
    ranker: Ranker,
    num_events: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return a zeroed buffer for keys and values of the events in each layer, [M, E, 2 D]."""
    config = ranker.config
    return torch.zeros(
        config.num_layers,
        num_events,
        2 * config.width,
        dtype=dtype,
        device=device,
    )
