"""Stack of layers that events and targets pass together, for models that are quadratic in length.

Shape letters: T packed events, N packed targets, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from longrec.config import ModelConfig
from longrec.nn.target_attention import Segments

SequenceLayer: TypeAlias = Callable[[Tensor, Tensor, Segments], tuple[Tensor, Tensor]]
"""(events, targets, segments) to (events, targets) of the next layer."""


class CausalSequenceModel(nn.Module):
    """z of every target; called like STCA, with gaps unused.

    Each target acts as the last token of its request: it sees the history, but no other target.

    Args:
        config: number of layers, width.
        layer: makes one SequenceLayer.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: Callable[[ModelConfig], nn.Module],
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(layer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self,
        targets: Float[Tensor, "N D"],
        events: Float[Tensor, "T D"],
        segments: Segments,
        gaps: Int[Tensor, " T"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Return z; arguments as in STCA.forward."""
        for block in self.blocks:
            events, targets = cast("SequenceLayer", block)(events, targets, segments)
        z: Tensor = self.norm(targets)
        return z
