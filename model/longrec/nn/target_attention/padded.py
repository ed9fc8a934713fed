"""The reordered attention of many short histories: histories of similar length share one product.

A history of a few dozen events costs less to compute than to launch on a CPU. Lengths of one group
differ by less than a factor of two, so padding at most doubles the sums. The values are those of
longrec.nn.target_attention.reordered.

Shape letters: G requests of one group, T packed events, N packed targets, L events and M targets of
the longest request of a group, D width, H heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from longrec.nn.target_attention.inputs import AttentionInputs, softmax
from longrec.nn.target_attention.reordered import lift_queries, project_values

MAX_MEAN_EVENTS = 256
"""Mean length of a history from which one request at a time is as fast."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of the packed events or targets of the requests of a group.

    Args:
        index: int64 [G, L or M]; padding repeats the last row of its request.
        is_real: whether a row is no padding.
    """

    index: npt.NDArray[np.int64]
    is_real: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, counts: npt.NDArray[np.int64], requests: npt.NDArray[np.int64]) -> _Rows:
        ends = np.cumsum(counts)[requests, None]
        own_counts = counts[requests, None]
        position = np.arange(own_counts.max())
        index = ends - own_counts + np.minimum(position, own_counts - 1)
        return cls(index, position < own_counts)


def usable(inputs: AttentionInputs) -> bool:
    """Return whether requests are many and short enough on a CPU.

    Without any pair of a target and an event it is not: `attend` would give the weights no
    gradient, and other processes of a training wait for those of every rank.
    """
    segments = inputs.segments
    num_requests = len(segments.num_events)
    if inputs.tokens.device.type != "cpu" or num_requests < 2:
        return False
    return segments.num_pairs > 0 and inputs.tokens.shape[0] <= MAX_MEAN_EVENTS * num_requests


def attend(inputs: AttentionInputs) -> Float[Tensor, "N D"]:
    """Return the output of the reordered attention, heads side by side.

    Targets of an empty history get zeros. There must be a pair of a target and an event.

    Source: arXiv 2511.06077, order of computation.
    """
    lifted_NHD = lift_queries(inputs.scaled_queries(), inputs.w_k)
    parts = []
    rows = []
    num_events = np.array(inputs.segments.num_events)
    num_targets = np.array(inputs.segments.num_targets)
    for requests in _groups(num_events, num_targets):
        targets = _Rows.of(num_targets, requests)
        events = _Rows.of(num_events, requests)
        mixed_GMHD = _attend_group(lifted_NHD[torch.from_numpy(targets.index)], events, inputs)
        real = torch.from_numpy(np.flatnonzero(targets.is_real))
        parts.append(mixed_GMHD.flatten(0, 1).index_select(0, real))
        rows.append(targets.index[targets.is_real])
    all_rows = torch.from_numpy(np.concatenate(rows))
    mixed_NHD = torch.zeros_like(lifted_NHD).index_copy(0, all_rows, torch.cat(parts))
    return project_values(mixed_NHD, inputs.w_v)


def _groups(
    num_events: npt.NDArray[np.int64], num_targets: npt.NDArray[np.int64]
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the requests with events and targets, those of similar numbers of events together."""
    has_pairs = (num_events > 0) & (num_targets > 0)
    # Lengths from 2^(k-1) to 2^k - 1 have k digits.
    _, num_digits = np.frexp(num_events)
    for digits in np.unique(num_digits[has_pairs]):
        yield np.flatnonzero(has_pairs & (num_digits == digits))


def _attend_group(
    lifted_GMHD: Tensor,
    events: _Rows,
    inputs: AttentionInputs,
) -> Tensor:
    index = torch.from_numpy(events.index)
    is_padding = torch.from_numpy(~events.is_real)
    tokens_GLD = inputs.tokens[index]
    logits = lifted_GMHD.flatten(1, 2) @ tokens_GLD.transpose(1, 2)
    logits_GMHL = logits.unflatten(1, lifted_GMHD.shape[1:3])
    if inputs.bias is not None:
        bias_GHL = inputs.bias[index].transpose(1, 2)
        logits_GMHL = logits_GMHL + bias_GHL.unsqueeze(1)
    masked = logits_GMHL.masked_fill(is_padding[:, None, None], -torch.inf)
    weights = softmax(masked, inputs.dropout).flatten(1, 2)
    mixed: Tensor = (weights @ tokens_GLD).unflatten(1, lifted_GMHD.shape[1:3])
    return mixed
