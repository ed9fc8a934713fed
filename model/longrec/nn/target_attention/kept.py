"""Attention over kept keys and values: a cache holds them for every event of a user, and a request attends to a stretch of it.

With kept events the plain order is the cheapest for every number of targets: 4 L d m FLOPs a layer, where the reordered one needs
4 L d h m; forming K and V was paid once per event. Kept X_i would halve the bytes and cost h times as much, or 4 L d^2 again.

Shape letters: R requests, T packed events, L events and m targets of one request, N packed targets, D width, H heads, K head width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from longrec.nn.target_attention import fused
from longrec.nn.target_attention.inputs import Segments, softmax


@dataclasses.dataclass(frozen=True, slots=True)
class KeptKeysValues:
    """Keys and values of each request's events in one layer, wherever they lie.

    Args:
        parts: R of [L, 2 D], keys and values of each event side by side in each head, [H, 2, K]; rows may have any stride.
        biases: R of [H, L], added to the logits, or None for each.
        num_heads: H.
        num_targets: m of each request.
        segments: of the parts side by side on their device, made once for all layers; None to make them when they are needed.
        seen: gets what `attend` weighs the events by, R of [H, m, L] each time; None to note nothing.
    """

    parts: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    num_heads: int
    num_targets: Sequence[int]
    segments: Segments | None = None
    seen: list[list[Tensor]] | None = None

    def attend(self, queries: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Returns softmax(q K^T + bias) V, heads side by side; zeros for an empty history. Queries are q W_Q / sqrt(d_h)."""
        if self.seen is not None:
            self.seen.append(self.weights(queries))
        if fused.usable(queries, self.num_heads):
            return self._on_device().attend(queries)
        split = zip(queries.split(list(self.num_targets)), self.parts, self.biases, strict=True)
        return torch.cat([self._one_request(*part) for part in split])

    def weights(self, queries: Float[Tensor, "N D"]) -> list[Tensor]:
        """Returns what each target of each request attends to: the softmax itself, in float32, R of [H, m, L]."""
        return [softmax(_logits(query.float(), part.float(), bias, self.num_heads))
                for query, part, bias in zip(queries.split(list(self.num_targets)), self.parts, self.biases, strict=True)]

    def _one_request(self, queries_MD: Tensor, kv_LD2: Tensor, bias_HL: Tensor | None) -> Tensor:
        if not kv_LD2.shape[0]:
            return torch.zeros_like(queries_MD)
        queries_HMK, (keys_HLK, values_HLK) = _by_head(queries_MD, self.num_heads), _keys_values(kv_LD2, self.num_heads)
        mask = None if bias_HL is None else bias_HL.to(queries_MD.dtype)[None, :, None].expand(1, -1, queries_MD.shape[0], -1)
        output = functional.scaled_dot_product_attention(queries_HMK[None], keys_HLK[None], values_HLK[None], attn_mask=mask, scale=1.0)
        attended: Tensor = output[0].transpose(0, 1).flatten(1)
        return attended

    def _on_device(self) -> fused.KeysValues:
        """Returns the same for the kernels of a CUDA device, which read one tensor; a single request is not copied."""
        kv = self.parts[0] if len(self.parts) == 1 else torch.cat(list(self.parts))
        segments = self.segments or Segments.counted([len(part) for part in self.parts], self.num_targets, kv.device)
        biases = [bias.float() for bias in self.biases if bias is not None]
        bias = (biases[0] if len(biases) == 1 else torch.cat(biases, dim=1)).contiguous() if biases else None
        return fused.KeysValues(kv.contiguous(), self.num_heads, segments, bias)


def _by_head(rows: Tensor, num_heads: int) -> Tensor:
    by_head: Tensor = rows.unflatten(1, (num_heads, -1)).transpose(0, 1)
    return by_head


def _keys_values(kv_LD2: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Returns keys and values, each [H, L, K]."""
    keys_HLK, values_HLK = kv_LD2.unflatten(1, (num_heads, 2, -1)).permute(2, 1, 0, 3)
    return keys_HLK, values_HLK


def _logits(queries_MD: Tensor, kv_LD2: Tensor, bias_HL: Tensor | None, num_heads: int) -> Tensor:
    logits_HML = _by_head(queries_MD, num_heads) @ _keys_values(kv_LD2, num_heads)[0].transpose(1, 2)
    return logits_HML if bias_HL is None else logits_HML + bias_HL[:, None]
