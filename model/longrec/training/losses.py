"""Losses of a request batch."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from longrec.config import TrainConfig
from longrec.data.batch import RequestBatch
from longrec.errors import DataError
from longrec.nn.ranker import RankerOutput


def binary_cross_entropy(
    logits: Float[Tensor, "N K"],
    labels: Float[Tensor, "N K"],
    target_offsets: Int[Tensor, " R1"],
    objective: Literal["request", "target"] = "request",
) -> Float[Tensor, ""]:
    """Returns the binary cross entropy, mean over tasks.

    Args:
        logits, labels: of packed targets.
        target_offsets: int64 [R+1].
        objective: `request` (mean over the targets of a request, then over requests) or `target`
            (mean over targets).

    Source: arXiv 2511.06077, RLB objective.
    """
    losses = functional.binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype), reduction="none"
    ).mean(dim=1)
    if objective == "target":
        return losses.mean()
    counts = target_offsets.diff()
    weights = (1.0 / counts.to(losses.dtype)).repeat_interleave(counts, output_size=losses.numel())
    return torch.dot(losses, weights) / counts.numel()


def total(output: RankerOutput, batch: RequestBatch, config: TrainConfig) -> Float[Tensor, ""]:
    """Returns the training loss: the tasks' cross entropy plus the weighted one of the auxiliary
    logits.

    Raises:
        DataError: the batch has no labels.
    """
    if batch.labels is None:
        raise DataError(
            "the batch has no labels",
            fix="Train on histories made by the pipeline's retrieve step.",
        )
    loss = binary_cross_entropy(output.logits, batch.labels, batch.target_offsets, config.loss)
    if output.aux_logits is not None and output.aux_weight:
        loss = loss + output.aux_weight * binary_cross_entropy(
            output.aux_logits, batch.labels, batch.target_offsets, config.loss
        )
    return loss
