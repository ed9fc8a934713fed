"""Attention over kept keys and values: a cache holds them for every event of a user, and a request
attends to a stretch of it.

With kept events the plain order is the cheapest for every number of targets: 4 L d m FLOPs a layer,
where the reordered one needs
4 L d h m; forming K and V was paid once per event. Kept X_i would halve the bytes and cost h times
as much, or 4 L d^2 again.

Equal events (same item, same features, other times) have equal keys and values, so their weights
add up: a request attends to each kind of
event once, its bias the logarithm of the sum of what theirs are raised to. Exact, and shorter by as
much as a history repeats itself.

Shape letters: R requests, T packed events, L events (U that differ) and m targets of one request, N
packed targets, D width, H heads, K
width of one.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longrec.nn import parallel
from longrec.nn.target_attention import fused
from longrec.nn.target_attention.inputs import Segments, softmax

EVENTS = 1_024
"""Of a piece of attention: keys and values of so many stay in a core's cache while all targets pass
over them.
"""
SMALL = 1 << 22
"""Targets times events times width that a piece has at least: less is done before another thread
has woken up.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Repeats:
    """Which events of a request are equal but for their times.

    Args:
        first: int64 [U], row of the first event of each kind.
        kinds: int64 [L], kind of each event.
    """

    first: Int[Tensor, " U"]
    kinds: Int[Tensor, " L"]

    def bias(
        self, table: Float[Tensor, "B G"], gaps: Int[Tensor, " L"] | None
    ) -> Float[Tensor, "B U"]:
        """Returns the bias of each kind from that of each time gap: log sum_j exp(table[b,
        gaps[j]]) over its events j.

        Args:
            table: bias by gap; zeros where there is none.
            gaps: bucket of the time gap of each event, None for 0.
        """
        places = self.kinds * table.shape[1] if gaps is None else self.kinds * table.shape[1] + gaps
        counts_UG = torch.bincount(places, minlength=len(self.first) * table.shape[1]).view(
            -1, table.shape[1]
        )
        largest = table.max(dim=1, keepdim=True).values
        sums = torch.exp(table - largest) @ counts_UG.t().to(table.dtype)
        return largest + torch.log(sums.clamp_min(torch.finfo(sums.dtype).tiny))


@dataclasses.dataclass(frozen=True, slots=True)
class KeptKeysValues:
    """Keys and values of each request's events in one layer, wherever they lie.

    Args:
        parts: R of [L, 2 D], keys and values of each event side by side in each head, [H, 2, K];
            rows may have any stride.
        biases: R of [H, L], or of [H, U] where rows are chosen, added to the logits; None for none.
        num_heads: H.
        num_targets: m of each request.
        segments: of the parts side by side on their device, made once for all layers; None to make
            them when they are needed.
        rows: R of int64 [U], rows of the part that are attended to, None for all of them; None for
            all of each.
        seen: gets what `attend` weighs the events by, R of [H, m, L] each time; None to note
            nothing.
    """

    parts: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    num_heads: int
    num_targets: Sequence[int]
    segments: Segments | None = None
    rows: Sequence[Tensor | None] | None = None
    seen: list[list[Tensor]] | None = None

    def attend(self, queries: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Returns softmax(q K^T + bias) V, heads side by side; zeros for an empty history. Queries
        are q W_Q / sqrt(d_h).
        """
        if self.seen is not None:
            self.seen.append(self.weights(queries))
        if fused.usable(queries, self.num_heads):
            return self._on_device().attend(queries)
        rows = self.rows or [None] * len(self.parts)
        split = zip(
            queries.split(list(self.num_targets)), self.parts, rows, self.biases, strict=True
        )
        cut = [_pieces(*part, self.num_heads) for part in split]
        found = iter(parallel.run([piece for request in cut for piece in request]))
        return torch.cat([_merged([next(found) for _ in request]) for request in cut])

    def weights(self, queries: Float[Tensor, "N D"]) -> list[Tensor]:
        """Returns what each target of each request attends to: the softmax itself, in float32, R of
        [H, m, L or U].
        """
        return [
            softmax(_logits(query.float(), part.float(), bias, self.num_heads))
            for query, part, bias in zip(
                queries.split(list(self.num_targets)), self._chosen(), self.biases, strict=True
            )
        ]

    def _chosen(self) -> list[Tensor]:
        """Returns the rows of each request that are attended to."""
        rows = self.rows or [None] * len(self.parts)
        return [
            part if chosen is None else part.index_select(0, chosen)
            for part, chosen in zip(self.parts, rows, strict=True)
        ]

    def _on_device(self) -> fused.KeysValues:
        """Returns the same for the kernels of a CUDA device, which read one tensor; a single
        request is not copied.
        """
        parts = self._chosen()
        kv = parts[0] if len(parts) == 1 else torch.cat(parts)
        segments = self.segments or Segments.counted(
            [len(part) for part in parts], self.num_targets, kv.device
        )
        biases = [bias.float() for bias in self.biases if bias is not None]
        bias = (
            (biases[0] if len(biases) == 1 else torch.cat(biases, dim=1)).contiguous()
            if biases
            else None
        )
        return fused.KeysValues(kv.contiguous(), self.num_heads, segments, bias)


def _pieces(
    queries_MD: Tensor,
    kv_LD2: Tensor,
    rows_U: Tensor | None,
    bias_HU: Tensor | None,
    num_heads: int,
) -> list[Callable[[], tuple[Tensor, Tensor]]]:
    """Returns the attention of one request in pieces, each `_attend` of all heads and targets to a
    stretch of its events once run; many
    more of them than threads, so that a core that is slow for a while takes fewer. The cut depends
    on the request alone."""
    queries_HMK, num_events = (
        _by_head(queries_MD, num_heads),
        kv_LD2.shape[0] if rows_U is None else rows_U.shape[0],
    )
    if not num_events:
        return [
            lambda: (torch.zeros_like(queries_HMK), queries_HMK.new_zeros(queries_HMK.shape[:2]))
        ]
    size = (
        EVENTS * math.ceil(SMALL / (EVENTS * queries_MD.numel()))
        if queries_MD.device.type == "cpu"
        else num_events
    )
    stretches = (
        zip(kv_LD2.split(size), itertools.repeat(None))
        if rows_U is None
        else zip(itertools.repeat(kv_LD2), rows_U.split(size))
    )
    biases = (
        itertools.repeat(None)
        if bias_HU is None
        else bias_HU.to(queries_MD.dtype).split(size, dim=1)
    )
    return [
        functools.partial(_attend, queries_HMK, *stretch, bias)
        for stretch, bias in zip(stretches, biases, strict=False)
    ]


def _attend(
    queries_HMK: Tensor, kv_LD2: Tensor, rows_U: Tensor | None, bias_HU: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns the attention to a stretch of events, [H, m, K], and the logarithm of the sum of its
    weights, [H, m]; 0 off the CPU, where a
    stretch is all there is."""
    keys_HUK, values_HUK = _keys_values(
        kv_LD2 if rows_U is None else kv_LD2.index_select(0, rows_U), queries_HMK.shape[0]
    )
    mask = (
        None if bias_HU is None else bias_HU[None, :, None].expand(1, -1, queries_HMK.shape[1], -1)
    )
    inputs = queries_HMK[None], keys_HUK[None], values_HUK[None]
    if queries_HMK.device.type != "cpu":
        return scaled_dot_product_attention(*inputs, attn_mask=mask, scale=1.0)[
            0
        ], queries_HMK.new_zeros(queries_HMK.shape[:2])
    output, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *inputs, attn_mask=mask, scale=1.0
    )  # the same, and the sums
    return output[0], sums[0]


def _merged(stretches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Returns the attention of one request, [m, D], from that to stretches of its events: their
    mean by the sums of their weights.
    """
    outputs_SHMK, sums_SHM = (torch.stack(parts) for parts in zip(*stretches, strict=True))
    merged = (
        outputs_SHMK[0]
        if len(stretches) == 1
        else (outputs_SHMK * torch.softmax(sums_SHM, 0)[..., None]).sum(0)
    )
    attended: Tensor = merged.to(outputs_SHMK.dtype).transpose(0, 1).flatten(1)
    return attended


def _by_head(rows: Tensor, num_heads: int) -> Tensor:
    by_head: Tensor = rows.unflatten(1, (num_heads, -1)).transpose(0, 1)
    return by_head


def _keys_values(kv_LD2: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Returns keys and values, each [H, L, K]."""
    keys_HLK, values_HLK = kv_LD2.unflatten(1, (num_heads, 2, -1)).permute(2, 1, 0, 3)
    return keys_HLK, values_HLK


def _logits(
    queries_MD: Tensor,
    kv_LD2: Tensor,
    bias_HL: Tensor | None,
    num_heads: int,
) -> Tensor:
    logits_HML = _by_head(queries_MD, num_heads) @ _keys_values(kv_LD2, num_heads)[0].transpose(
        1, 2
    )
    return logits_HML if bias_HL is None else logits_HML + bias_HL[:, None]
