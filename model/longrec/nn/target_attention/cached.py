"""Attention over cached keys and values: a cache stores them for every event of a user.

With cached events the plain order is the cheapest for any number of targets: 4 L d m FLOPs a layer,
where the reordered one takes 4 L d h m. K and V are computed once per event, not per request.
Caching X_i instead would halve the bytes. Each request would then take the reordered order, or
4 L d^2 FLOPs to compute K and V again.

Duplicate events (same item, same features, other times) have equal keys and values, so their
weights add up. A request attends to each distinct event once, with the log-sum-exp of the
duplicates' biases as its bias. This is exact, and shortens a history by its repetitions.

Shape letters: R requests, T packed events, N packed targets, L events (U distinct ones) and
M targets of one request, C chunks, F layers times heads, G gap buckets, D width, H heads,
K head width.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longrec.nn import parallel
from longrec.nn.target_attention import fused
from longrec.nn.target_attention.inputs import Segments, softmax

ATTENTION_CHUNK_EVENTS = 1_024
"""Events of a chunk: their keys and values stay in a core's cache while all targets pass over."""
MIN_CHUNK_WORK = 1 << 22
"""Smallest chunk, as targets times events times width.

Smaller work ends before a helper thread has woken up.
"""

ChunkResult: TypeAlias = tuple[Tensor, Tensor]
"""Attention to a chunk of events [H, M, K], and its log-sum-exp [H, M]."""


@dataclasses.dataclass(frozen=True, slots=True)
class DuplicateEvents:
    """Which events of a request are equal but for their times.

    The fields are named like the results of numpy.unique.

    Args:
        first_index: int64 [U], row of the first of each group of duplicates.
        inverse: int64 [L], group of each event.
    """

    first_index: Int[Tensor, " U"]
    inverse: Int[Tensor, " L"]

    def bias(
        self,
        table: Float[Tensor, "F G"],
        gaps: Int[Tensor, " L"] | None,
    ) -> Float[Tensor, "F U"]:
        """Return the bias of each distinct event: the log-sum-exp of its duplicates' biases.

        Args:
            table: bias by gap bucket; zeros for a model without.
            gaps: gap bucket of each event, or None if all are in bucket 0.
        """
        # Counts of every pair of distinct event and gap bucket turn the sum over duplicates into
        # one small product.
        num_buckets = table.shape[1]
        bins = self.inverse * num_buckets
        if gaps is not None:
            bins = bins + gaps
        num_bins = len(self.first_index) * num_buckets
        counts_UG = torch.bincount(bins, minlength=num_bins).view(-1, num_buckets)
        largest = table.max(dim=1, keepdim=True).values
        sums_FU = torch.exp(table - largest) @ counts_UG.t().to(table.dtype)
        # A distinct event occurs at least once, but exp may underflow to 0.
        smallest = torch.finfo(sums_FU.dtype).tiny
        return largest + torch.log(sums_FU.clamp_min(smallest))


@dataclasses.dataclass(frozen=True, slots=True)
class CachedKeysValues:
    """Cached keys and values of each request's events in one layer, an attention source.

    Args:
        parts: R of [L, 2 D], keys and values of each event side by side in each head, [H, 2, K];
            rows may have any stride.
        biases: R of [H, L], or of [H, U] with `rows`, added to the logits; None for no bias.
        num_heads: H.
        num_targets: targets of each request.
        segments: of the parts one after another, already on the device; None makes them when they
            are needed.
        rows: R of int64 [U], rows of each part to attend to; None for all of them.
        recorded_weights: `attend` appends its weights, R of [H, M, L]; None records nothing.
    """

    parts: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    num_heads: int
    num_targets: Sequence[int]
    segments: Segments | None = None
    rows: Sequence[Tensor | None] | None = None
    recorded_weights: list[list[Tensor]] | None = None

    def attend(self, queries: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Return softmax(q K^T + bias) V, heads side by side; zeros for an empty history.

        Args:
            queries: [N, D], q W_Q / sqrt(d_h).
        """
        if self.recorded_weights is not None:
            self.recorded_weights.append(self.weights(queries))
        if fused.usable(queries, self.num_heads):
            return self._fused_source().attend(queries)
        requests = zip(
            queries.split(list(self.num_targets)),
            self.parts,
            self._rows(),
            self.biases,
            strict=True,
        )
        chunks: list[Callable[[], ChunkResult]] = []
        num_chunks = []
        for request in requests:
            chunks_of_request = _attention_chunks(*request, self.num_heads)
            chunks += chunks_of_request
            num_chunks.append(len(chunks_of_request))
        results = iter(parallel.run_chunks(chunks))
        outputs = [_merge_chunks(list(itertools.islice(results, count))) for count in num_chunks]
        return torch.cat(outputs)

    def weights(self, queries: Float[Tensor, "N D"]) -> list[Tensor]:
        """Return the attention weights of each request, R of float32 [H, M, L or U].

        This is the readable reference of `attend`, up to the product with the values.
        """
        requests = zip(
            queries.split(list(self.num_targets)),
            self._attended_parts(),
            self.biases,
            strict=True,
        )
        return [
            softmax(_logits(query.float(), part.float(), bias, self.num_heads))
            for query, part, bias in requests
        ]

    def _rows(self) -> Sequence[Tensor | None]:
        return self.rows or [None] * len(self.parts)

    def _attended_parts(self) -> list[Tensor]:
        """Return the keys and values of each request that are attended to."""
        pairs = zip(self.parts, self._rows(), strict=True)
        return [_select(part, rows) for part, rows in pairs]

    def _fused_source(self) -> fused.KeysValues:
        """Return the same source for the kernels of a CUDA device, which read one tensor."""
        parts = self._attended_parts()
        kv = parts[0] if len(parts) == 1 else torch.cat(parts)  # one request is not copied
        segments = self.segments
        if segments is None:
            num_events = [len(part) for part in parts]
            segments = Segments.from_counts(num_events, self.num_targets, kv.device)
        biases = [bias.float() for bias in self.biases if bias is not None]
        bias = None
        if biases:
            joined = biases[0] if len(biases) == 1 else torch.cat(biases, dim=1)
            bias = joined.contiguous()
        return fused.KeysValues(kv.contiguous(), self.num_heads, segments, bias)


def _attention_chunks(
    queries_MD: Tensor,
    kv_LD2: Tensor,
    rows_U: Tensor | None,
    bias_HU: Tensor | None,
    num_heads: int,
) -> list[Callable[[], ChunkResult]]:
    """Return the attention of one request as tasks, one for each chunk of its events.

    There are many more chunks than threads, so a core that is slow for a while takes fewer. The
    cut depends on the request alone.
    """
    queries_HMK = _by_head(queries_MD, num_heads)
    num_events = len(kv_LD2) if rows_U is None else len(rows_U)
    if num_events == 0:
        return [functools.partial(_attend_nothing, queries_HMK)]
    chunk_events = num_events
    if queries_MD.device.type == "cpu":
        chunk_events = _chunk_events(queries_MD.numel())
    if bias_HU is not None:
        bias_HU = bias_HU.to(queries_MD.dtype)
    # Chosen rows are gathered inside of a chunk, so the threads share this work, too.
    chunks: list[Callable[[], ChunkResult]] = []
    for start in range(0, num_events, chunk_events):
        events = slice(start, start + chunk_events)
        chunk = functools.partial(
            _attend_chunk,
            queries_HMK,
            kv_LD2 if rows_U is not None else kv_LD2[events],
            None if rows_U is None else rows_U[events],
            None if bias_HU is None else bias_HU[:, events],
        )
        chunks.append(chunk)
    return chunks


def _chunk_events(query_elements: int) -> int:
    """Return the events of a chunk: whole multiples of ATTENTION_CHUNK_EVENTS, enough work."""
    work = ATTENTION_CHUNK_EVENTS * query_elements
    return ATTENTION_CHUNK_EVENTS * math.ceil(MIN_CHUNK_WORK / work)


def _attend_nothing(queries_HMK: Tensor) -> ChunkResult:
    """Return zeros as the only chunk of a request: its log-sum-exp is not read."""
    log_sum_exp_HM = queries_HMK.new_zeros(queries_HMK.shape[:2])
    return torch.zeros_like(queries_HMK), log_sum_exp_HM


def _attend_chunk(
    queries_HMK: Tensor,
    kv_LD2: Tensor,
    rows_U: Tensor | None,
    bias_HU: Tensor | None,
) -> ChunkResult:
    """Return the attention to one chunk of events, and its log-sum-exp.

    The log-sum-exp is 0 off the CPU, where a request has a single chunk.
    """
    num_heads, num_targets, _ = queries_HMK.shape
    keys_HUK, values_HUK = _keys_values(_select(kv_LD2, rows_U), num_heads)
    bias = None
    if bias_HU is not None:
        bias = bias_HU[None, :, None].expand(1, -1, num_targets, -1)
    inputs = (queries_HMK[None], keys_HUK[None], values_HUK[None])
    if queries_HMK.device.type != "cpu":
        output = scaled_dot_product_attention(*inputs, attn_mask=bias, scale=1.0)
        return output[0], queries_HMK.new_zeros((num_heads, num_targets))
    # The kernel behind scaled_dot_product_attention, called directly for its log-sum-exp.
    output, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *inputs,
        attn_mask=bias,  # a float mask is added to the logits
        scale=1.0,
    )
    return output[0], log_sum_exp[0]


def _merge_chunks(chunks: list[ChunkResult]) -> Tensor:
    """Return the attention of one request, [M, D]: its chunks weighted by their softmax sums."""
    outputs_CHMK = torch.stack([output for output, _ in chunks])
    merged = outputs_CHMK[0]
    if len(chunks) > 1:
        log_sum_exps_CHM = torch.stack([log_sum_exp for _, log_sum_exp in chunks])
        shares_CHM = torch.softmax(log_sum_exps_CHM, 0)
        merged = (outputs_CHMK * shares_CHM[..., None]).sum(0)
    # The shares may be float32, whatever the dtype of the outputs is.
    attended: Tensor = merged.to(outputs_CHMK.dtype).transpose(0, 1).flatten(1)
    return attended


def _select(kv_LD2: Tensor, rows_U: Tensor | None) -> Tensor:
    return kv_LD2 if rows_U is None else kv_LD2.index_select(0, rows_U)


def _by_head(rows_MD: Tensor, num_heads: int) -> Tensor:
    by_head: Tensor = rows_MD.unflatten(1, (num_heads, -1)).transpose(0, 1)
    return by_head


def _keys_values(kv_LD2: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Return keys and values, each [H, L, K]."""
    by_head_LH2K = kv_LD2.unflatten(1, (num_heads, 2, -1))
    keys_HLK, values_HLK = by_head_LH2K.permute(2, 1, 0, 3)
    return keys_HLK, values_HLK


def _logits(
    queries_MD: Tensor,
    kv_LD2: Tensor,
    bias_HL: Tensor | None,
    num_heads: int,
) -> Tensor:
    keys_HLK, _ = _keys_values(kv_LD2, num_heads)
    logits_HML = _by_head(queries_MD, num_heads) @ keys_HLK.transpose(1, 2)
    return logits_HML if bias_HL is None else logits_HML + bias_HL[:, None]
