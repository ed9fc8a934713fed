"""Products of the target with the user and with z, which the head would have to learn.

Shape letters: N targets, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longrec.nn.layers import linear


class Crosses(nn.Module):
    """u' = u + [u * t ; z * t] W_u and z' = z + [u * t ; z * t] W_z.

    Args:
        width: D.

    Source: the cross layer of DCN V2 (arXiv 2008.13535), between tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.part = linear(2 * width, 2 * width)

    def forward(
        self,
        user: Float[Tensor, "N D"],
        z: Float[Tensor, "N D"],
        targets: Float[Tensor, "N D"],
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens of the user and of z with the products added."""
        products = torch.cat([user * targets, z * targets], dim=1)
        user_part, z_part = self.part(products).chunk(2, dim=1)
        return user + user_part, z + z_part
