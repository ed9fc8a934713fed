"""Attention over kept keys and values: a cache holds them for every event of a user, and a request attends to a stretch of it.

With kept events the plain order is the cheapest for every number of targets: 4 L d m FLOPs a layer, where the reordered one needs
4 L d h m; forming K and V was paid once per event. Kept X_i would halve the bytes and cost h times as much, or 4 L d^2 again.

Shape letters: R requests, T packed events, L events and m targets of one request, N packed targets, D width, H heads, K head width.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longrec.nn import pieces
from longrec.nn.target_attention import fused
from longrec.nn.target_attention.inputs import Segments, softmax

BLOCK = 64
"""Targets that torch's kernel takes at a time; a cut between them costs nothing."""
SMALL = 1 << 22
"""Targets times events times width up to which cutting a request costs about what a second thread brings."""


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
        heads, blocks = self._cut(queries)
        split = zip(queries.split(list(self.num_targets)), self.parts, self.biases, strict=True)
        cut = [_pieces(*part, self.num_heads, heads, blocks) for part in split]
        found = iter(pieces.run([piece for request in cut for piece in request]))
        return torch.cat([_joined([next(found) for _ in request], self.num_heads // heads) for request in cut])

    def _cut(self, queries: Tensor) -> tuple[int, int]:
        """Returns how each request is cut for several threads: heads of a piece, and parts of its targets; small or many stay whole."""
        threads, requests = pieces.num_threads(queries), len(self.parts)
        work = queries.shape[1] * sum(len(part) * count for part, count in zip(self.parts, self.num_targets, strict=True))
        if threads == 1 or work < SMALL * requests or requests >= 4 * threads:
            return self.num_heads, 1
        return 1, math.ceil(threads / (requests * self.num_heads))

    def weights(self, queries: Float[Tensor, "N D"]) -> list[Tensor]:
        """Returns what each target of each request attends to: the softmax itself, in float32, R of [H, m, L]."""
        return [softmax(_logits(query.float(), part.float(), bias, self.num_heads))
                for query, part, bias in zip(queries.split(list(self.num_targets)), self.parts, self.biases, strict=True)]

    def _on_device(self) -> fused.KeysValues:
        """Returns the same for the kernels of a CUDA device, which read one tensor; a single request is not copied."""
        kv = self.parts[0] if len(self.parts) == 1 else torch.cat(list(self.parts))
        segments = self.segments or Segments.counted([len(part) for part in self.parts], self.num_targets, kv.device)
        biases = [bias.float() for bias in self.biases if bias is not None]
        bias = (biases[0] if len(biases) == 1 else torch.cat(biases, dim=1)).contiguous() if biases else None
        return fused.KeysValues(kv.contiguous(), self.num_heads, segments, bias)


def _pieces(queries_MD: Tensor, kv_LD2: Tensor, bias_HL: Tensor | None, num_heads: int, heads: int,
            blocks: int) -> list[Callable[[], Tensor]]:
    """Returns the attention of one request in pieces of `heads` heads and about 1/`blocks` of the targets, each [m', heads K] once run."""
    if not kv_LD2.shape[0]:
        return [functools.partial(torch.zeros_like, part) for part in queries_MD.split(heads * queries_MD.shape[1] // num_heads, dim=1)]
    queries_HMK, (keys_HLK, values_HLK) = _by_head(queries_MD, num_heads), _keys_values(kv_LD2, num_heads)
    biases = [None] * (num_heads // heads) if bias_HL is None else bias_HL.to(queries_MD.dtype).split(heads)
    by_heads = zip(queries_HMK.split(heads), keys_HLK.split(heads), values_HLK.split(heads), biases, strict=True)
    size = BLOCK * max(1, math.ceil(queries_MD.shape[0] / (BLOCK * blocks)))
    return [functools.partial(_attend, block, *rest) for queries, *rest in by_heads for block in queries.split(size, dim=1)]


def _attend(queries_HMK: Tensor, keys_HLK: Tensor, values_HLK: Tensor, bias_HL: Tensor | None) -> Tensor:
    mask = None if bias_HL is None else bias_HL[None, :, None].expand(1, -1, queries_HMK.shape[1], -1)
    output = scaled_dot_product_attention(queries_HMK[None], keys_HLK[None], values_HLK[None], attn_mask=mask, scale=1.0)
    attended: Tensor = output[0].transpose(0, 1).flatten(1)
    return attended


def _joined(parts: list[Tensor], num_groups: int) -> Tensor:
    """Returns the attention of one request, [m, D], from its pieces: of each group of heads all blocks of targets."""
    blocks = len(parts) // num_groups
    groups = [torch.cat(parts[start:start + blocks]) if blocks > 1 else parts[start] for start in range(0, len(parts), blocks)]
    return groups[0] if num_groups == 1 else torch.cat(groups, dim=1)


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
