"""Measure the first task on validation requests while a ranker trains."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from longrec.config import EvaluateConfig, TrainConfig
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.data.loading.label_rates import log_odds
from longrec.data.loading.request_stream import RequestStream
from longrec.errors import LongrecError
from longrec.evaluation import metrics
from longrec.evaluation.sample import EvaluationSample, draw_sample
from longrec.training import resources
from longrec.training.curve import ValidationRow
from longrec.training.trainer import Trainer

CALIBRATION_REQUESTS = 10_000
"""Validation requests that decide the shifts of the logits."""
CALIBRATION_POSITIVES = 20.0
MAX_SHIFT = 10.0
NUM_BISECTIONS = 50


def draw_validation_sample(
    encoded: EncodedHistories,
    train: TrainConfig,
    seed: int,
    *,
    bootstrap_samples: int = 1,
) -> EvaluationSample | None:
    """Return a seeded sample of `train.validation_requests` requests; None without any.

    Args:
        encoded: the histories.
        train: settings of the training.
        seed: of the sample and of its resamples.
        bootstrap_samples: number of resamples of its users.
    """
    if not len(encoded.requests("validation")):
        return None
    config = EvaluateConfig(
        max_requests=train.validation_requests,
        bootstrap_samples=bootstrap_samples,
    )
    return draw_sample(encoded, config, seed, split="validation")


def logit_shifts(
    labels: npt.NDArray[Any],
    scores: npt.NDArray[Any],
) -> npt.NDArray[np.float64]:
    """Return the shift of each task's logit after which its mean score is its mean label.

    Few positives say little about a mean label: CALIBRATION_POSITIVES more that are as the scores
    expect hold the shift back.

    Args:
        labels: [N, K], 0 or 1.
        scores: [N, K], probabilities.
    """
    margin = metrics.PROBABILITY_MARGIN
    bounded = np.clip(scores.astype(np.float64), margin, 1 - margin)
    logits = log_odds(bounded)
    expected = bounded.sum(axis=0)
    positives = labels.sum(axis=0) + CALIBRATION_POSITIVES
    wanted = bounded.mean(axis=0) * positives / (expected + CALIBRATION_POSITIVES)
    lowest = np.full(scores.shape[1], -MAX_SHIFT)
    highest = -lowest
    for _ in range(NUM_BISECTIONS):
        middle = (lowest + highest) / 2
        is_low = (1 / (1 + np.exp(-logits - middle))).mean(axis=0) < wanted
        lowest = np.where(is_low, middle, lowest)
        highest = np.where(is_low, highest, middle)
    shifts: npt.NDArray[np.float64] = (lowest + highest) / 2
    return shifts


class Validator:
    """Measures a ranker on a fixed sample of the validation requests.

    Args:
        sample: the requests.
        stream: their batches, each request with its most recent events.
    """

    def __init__(
        self,
        sample: EvaluationSample,
        stream: RequestStream,
    ) -> None:
        self.stream = stream
        self.labels = sample.labels[:, 0]

    @classmethod
    def of(
        cls,
        encoded: EncodedHistories,
        train: TrainConfig,
        *,
        length: int,
        seed: int,
    ) -> Validator | None:
        """Return the validator of a training; None without validation requests.

        Args:
            encoded: the histories.
            train: settings of the training.
            length: number of most recent events of each request.
            seed: of the sample.
        """
        sample = draw_validation_sample(encoded, train, seed)
        if sample is None:
            return None
        stream = RequestStream.for_evaluation(
            encoded,
            sample.requests,
            length,
            token_budget=train.token_budget,
            max_requests=train.max_requests_per_batch,
        )
        return cls(sample, stream)

    def measure(self, trainer: Trainer) -> ValidationRow:
        """Return the metrics of the ranker after its last step, equal on all ranks.

        Every rank must call this together. Rank zero scores. The others take part where id tables
        are spread over the ranks, and wait elsewhere.

        Raises:
            LongrecError: a probability is not finite.
        """
        started = time.perf_counter()
        scores = np.zeros(0)
        if trainer.context.is_rank_zero or trainer.sharded is not None:
            scores = self._scores(trainer)
        return trainer.context.broadcast_object(lambda: self._row(trainer, scores, started))

    def _row(
        self,
        trainer: Trainer,
        scores: npt.NDArray[np.float64],
        started: float,
    ) -> ValidationRow:
        if not np.isfinite(scores).all():
            raise LongrecError(
                f"probabilities of the validation after step {trainer.state.step} are not finite",
                expected="numbers from 0 to 1",
                fix="Lower train.learning_rate or set train.precision=float32.",
            )
        auc = metrics.auc(self.labels, scores)
        return ValidationRow(
            step=trainer.state.step,
            auc=auc if np.isfinite(auc) else None,
            logloss=metrics.logloss(self.labels, scores),
            seconds=time.perf_counter() - started,
        )

    def _scores(self, trainer: Trainer) -> npt.NDArray[np.float64]:
        """Return the probabilities of the first task, float64 [N]; nan stays nan."""
        trainer.ranker.eval()
        parts = []
        with (
            trainer.evaluated_weights(),
            torch.no_grad(),
            resources.autocast(trainer.device, trainer.precision),
        ):
            for batch in self.stream:
                logits = trainer.ranker(batch.to(trainer.device)).logits
                parts.append(torch.sigmoid(logits[:, 0].float()).cpu())
        trainer.ranker.train()
        scores: npt.NDArray[np.float64] = torch.cat(parts).numpy().astype(np.float64)
        return scores
