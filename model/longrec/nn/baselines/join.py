"""What the pooling baselines share: their interest vector and the target become z just as STCA's
outputs do.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longrec.config import ModelConfig
from longrec.nn.layers import SwiGLUFFN, linear


class Join(nn.Module):
    """z = SwiGLUFFN([o | x_t] W_Z): the output of a one-layer STCA, so that models differ in how
    they read the history only.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.join = linear(2 * config.width, config.width)
        self.out = SwiGLUFFN(config.width, config.ffn_ratio)

    def forward(
        self, interest: Float[Tensor, "N D"], targets: Float[Tensor, "N D"]
    ) -> Float[Tensor, "N D"]:
        """Returns z of every target."""
        z: Tensor = self.out(self.join(torch.cat([interest, targets], dim=1)))
        return z
