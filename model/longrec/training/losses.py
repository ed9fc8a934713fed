"""Losses of a request batch.

Shape letters: N packed targets, K tasks, R1 = requests + 1.
"""

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
    """Return the binary cross entropy, averaged over tasks.

    Args:
        logits: logits of packed targets.
        labels: labels of packed targets, 0 or 1.
        target_offsets: int64 [R+1].
        objective: `request` averages over the targets of a request, then over requests; `target`
            averages over targets.

    Source: arXiv 2511.06077, RLB objective.
    """
    losses = functional.binary_cross_entropy_with_logits(
        logits,
        labels.to(logits.dtype),
        reduction="none",
    )
    target_losses = losses.mean(dim=1)
    if objective == "target":
        return target_losses.mean()
    counts = target_offsets.diff()
    request_weights = 1.0 / counts.to(target_losses.dtype)
    weights = request_weights.repeat_interleave(counts, output_size=target_losses.numel())
    return torch.dot(target_losses, weights) / counts.numel()


def total(
    output: RankerOutput,
    batch: RequestBatch,
    config: TrainConfig,
) -> Float[Tensor, ""]:
    """Return the training loss: cross entropy of the tasks, plus the auxiliary loss if any.

    The auxiliary loss is the weighted cross entropy of the ranker's auxiliary logits.

    Raises:
        DataError: the batch has no labels.
    """
    if batch.labels is None:
        raise DataError(
            "the batch has no labels",
            fix="Train on histories made by the pipeline's retrieve step.",
        )
    loss = binary_cross_entropy(
        output.logits,
        batch.labels,
        batch.target_offsets,
        config.loss,
    )
    if output.aux_logits is None or not output.aux_loss_weight:
        return loss
    aux_loss = binary_cross_entropy(
        output.aux_logits,
        batch.labels,
        batch.target_offsets,
        config.loss,
    )
    return loss + output.aux_loss_weight * aux_loss
