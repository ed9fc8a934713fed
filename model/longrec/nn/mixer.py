"""RankMixer: the head that mixes the tokens of one target.

Shape letters: N targets, S tokens, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class MixerBlock(nn.Module):
    """Y = LN(TokenMix(X) + X); X' = LN(PFFN(Y) + Y).

    TokenMix splits each of S tokens into S slices ("heads" in the paper) and transposes: token s of
    the output is slice s of every token. PFFN is a two-layer GELU MLP with its own weights for each
    token.

    Args:
        num_tokens: S.
        width: D; a multiple of S.
        ratio: hidden width of the MLP over D.

    Source: arXiv 2507.15551 (RankMixer), token mixing and per-token FFN.
    """

    def __init__(
        self,
        num_tokens: int,
        width: int,
        ratio: int,
    ) -> None:
        super().__init__()
        hidden = ratio * width
        self.num_tokens = num_tokens
        self.norm_mix = nn.LayerNorm(width)
        self.norm_ffn = nn.LayerNorm(width)
        self.w_in = nn.Parameter(torch.empty(num_tokens, width, hidden))
        self.w_out = nn.Parameter(torch.empty(num_tokens, hidden, width))
        self.b_in = nn.Parameter(torch.zeros(num_tokens, 1, hidden))
        self.b_out = nn.Parameter(torch.zeros(num_tokens, 1, width))
        nn.init.normal_(self.w_in, std=width**-0.5)
        nn.init.normal_(self.w_out, std=hidden**-0.5)

    def forward(self, tokens: Float[Tensor, "N S D"]) -> Float[Tensor, "N S D"]:
        """Return the mixed tokens of each target."""
        slices = tokens.unflatten(2, (self.num_tokens, -1))
        mixed = slices.transpose(1, 2).flatten(2)
        y = self.norm_mix(mixed + tokens)
        # baddbmm batches over the tokens: each has its own weights.
        inputs = y.transpose(0, 1)
        hidden = functional.gelu(torch.baddbmm(self.b_in, inputs, self.w_in))
        outputs = torch.baddbmm(self.b_out, hidden, self.w_out)
        normed: Tensor = self.norm_ffn(outputs.transpose(0, 1) + y)
        return normed


class RankMixer(nn.Module):
    """Mean over the tokens after all blocks.

    Args:
        num_layers: blocks.
        num_tokens, width, ratio: of each block.

    Source: arXiv 2507.15551.
    """

    def __init__(
        self,
        num_layers: int,
        num_tokens: int,
        width: int,
        ratio: int,
    ) -> None:
        super().__init__()
        blocks = [MixerBlock(num_tokens, width, ratio) for _ in range(num_layers)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, tokens: Float[Tensor, "N S D"]) -> Float[Tensor, "N D"]:
        """Return one row per target."""
        mixed: Tensor = self.blocks(tokens)
        return mixed.mean(dim=1)
