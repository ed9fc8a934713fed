"""RankMixer: the head that mixes the tokens of one target. Shape letters: N targets, S tokens, D
width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class MixerBlock(nn.Module):
    """S = LN(TokenMix(X) + X); X' = LN(PFFN(S) + S), with a two-layer GELU MLP of its own for each
    token.

    TokenMix splits each of S tokens in S heads and transposes: token s of the output is head s of
    every token.

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
        self.norm_mix, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.w_in, self.w_out = (
            nn.Parameter(torch.empty(num_tokens, width, hidden)),
            nn.Parameter(torch.empty(num_tokens, hidden, width)),
        )
        self.b_in, self.b_out = (
            nn.Parameter(torch.zeros(num_tokens, 1, hidden)),
            nn.Parameter(torch.zeros(num_tokens, 1, width)),
        )
        for weight in (self.w_in, self.w_out):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def forward(self, tokens: Float[Tensor, "N S D"]) -> Float[Tensor, "N S D"]:
        mixed = tokens.unflatten(2, (self.num_tokens, -1)).transpose(1, 2).flatten(2)
        state = self.norm_mix(mixed + tokens)
        hidden = functional.gelu(torch.baddbmm(self.b_in, state.transpose(0, 1), self.w_in))
        output: Tensor = self.norm_ffn(
            torch.baddbmm(self.b_out, hidden, self.w_out).transpose(0, 1) + state
        )
        return output


class RankMixer(nn.Module):
    """Mean over tokens after the blocks: float [N, D]. Source: arXiv 2507.15551."""

    def __init__(
        self,
        num_layers: int,
        num_tokens: int,
        width: int,
        ratio: int,
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(MixerBlock(num_tokens, width, ratio) for _ in range(num_layers))
        )

    def forward(self, tokens: Float[Tensor, "N S D"]) -> Float[Tensor, "N D"]:
        mixed: Tensor = self.blocks(tokens)
        return mixed.mean(dim=1)
