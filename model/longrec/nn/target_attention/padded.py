"""The reordered attention of many short histories: histories of similar length share one product.

A history of a few dozen events costs less to compute than to launch on a CPU. The values are those
of longrec.nn.target_attention.reordered.

Shape letters: G requests of one group, T packed events, N packed targets, L events and M targets of
the longest request of a group, D width, H heads.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from longrec.nn.padding import PaddedRows, scatter_groups, similar_requests
from longrec.nn.target_attention.inputs import AttentionInputs, softmax
from longrec.nn.target_attention.reordered import lift_queries, project_values

MAX_MEAN_EVENTS = 256
"""Mean length of a history from which one request at a time is as fast."""


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
    groups = []
    num_events = np.array(inputs.segments.num_events)
    num_targets = np.array(inputs.segments.num_targets)
    has_pairs = (num_events > 0) & (num_targets > 0)
    for requests in similar_requests(num_events, has_pairs):
        targets = PaddedRows.of(num_targets, requests, lifted_NHD.device)
        events = PaddedRows.of(num_events, requests, lifted_NHD.device)
        mixed_GMHD = _attend_group(targets.gather(lifted_NHD), events, inputs)
        parts.append(targets.unpad(mixed_GMHD))
        groups.append(targets)
    mixed_NHD = scatter_groups(parts, groups, lifted_NHD)
    return project_values(mixed_NHD, inputs.w_v)


def _attend_group(
    lifted_GMHD: Tensor,
    events: PaddedRows,
    inputs: AttentionInputs,
) -> Tensor:
    tokens_GLD = events.gather(inputs.tokens)
    logits = lifted_GMHD.flatten(1, 2) @ tokens_GLD.transpose(1, 2)
    logits_GMHL = logits.unflatten(1, lifted_GMHD.shape[1:3])
    if inputs.bias is not None:
        bias_GHL = events.gather(inputs.bias).transpose(1, 2)
        logits_GMHL = logits_GMHL + bias_GHL.unsqueeze(1)
    masked = logits_GMHL.masked_fill(~events.is_real[:, None, None], -torch.inf)
    weights = softmax(masked, inputs.dropout).flatten(1, 2)
    mixed: Tensor = (weights @ tokens_GLD).unflatten(1, lifted_GMHD.shape[1:3])
    return mixed
