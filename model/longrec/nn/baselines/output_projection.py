"""Output projection of the pooling baselines: their interest vector and the target become z."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longrec.config import ModelConfig
from longrec.nn.layers import SwiGLUFFN, linear


class OutputProjection(nn.Module):
    """z = SwiGLUFFN([o | x_t] W_Z), the output of a one-layer STCA.

    Models then differ only in how they read the history. Its `join` holds W_Z, like `join` of STCA;
    in a baseline `join` is this whole module. Shape letters: N targets, D width.

    Args:
        config: width and FFN ratio.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.join = linear(2 * config.width, config.width)
        self.out = SwiGLUFFN(config.width, config.ffn_ratio)

    def forward(
        self,
        interest: Float[Tensor, "N D"],
        targets: Float[Tensor, "N D"],
    ) -> Float[Tensor, "N D"]:
        """Return z of every target.

        Args:
            interest: o, the pooled history of every target.
            targets: x_t.
        """
        joined = self.join(torch.cat([interest, targets], dim=1))
        z: Tensor = self.out(joined)
        return z
