"""Draw the evaluated requests and score them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from longrec.config import EvaluateConfig, GateConfig
from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories, Split
from longrec.data.loading.request_stream import RequestStream
from longrec.errors import DataError
from longrec.evaluation.bootstrap import Resamples
from longrec.scoring.scorer import Scorer
from longrec.scoring.suffixes import score_suffixes

Array: TypeAlias = npt.NDArray[Any]
Int: TypeAlias = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationSample:
    """The evaluated requests and their targets, in time order.

    Shape letters: R requests, N targets, K tasks.

    Args:
        requests: int64 [R], positions of the requests in the encoded histories.
        target_positions: int64 [N], positions of the targets.
        target_requests: int64 [N], the request of each target.
        labels: int8 [N, K].
        history_lengths: int64 [N], events before the request of each target.
        resamples: bootstrap resamples of the users of the targets.
    """

    requests: Int
    target_positions: Int
    target_requests: Int
    labels: Array
    history_lengths: Int
    resamples: Resamples

    @property
    def request_lengths(self) -> Int:
        """Events before each request, int64 [R]."""
        _, first_target = np.unique(self.target_requests, return_index=True)
        return self.history_lengths[first_target]


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationInputs:
    """Everything that an evaluation reads.

    Args:
        scorer: scorer of the evaluated bundle.
        histories: raw rows.
        encoded: the same histories, encoded by the bundle's encoder.
        sample: evaluated requests.
        config: lengths, sample size, resamples.
        gate: bounds of the verdict.
        seed: of the sample and of the resamples.
    """

    scorer: Scorer
    histories: Histories
    encoded: EncodedHistories
    sample: EvaluationSample
    config: EvaluateConfig
    gate: GateConfig
    seed: int

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the K tasks."""
        return self.histories.schema.task_names


def draw_sample(
    encoded: EncodedHistories,
    config: EvaluateConfig,
    seed: int,
    split: Split = "eval",
) -> EvaluationSample:
    """Return the requests of a part; a seeded sample if there are more than `max_requests`.

    Args:
        encoded: the histories.
        config: size of the sample, number of resamples.
        seed: of both.
        split: the evaluated part.

    Raises:
        DataError: the part has no request.
    """
    requests = encoded.requests(split)
    if not len(requests):
        raise DataError(
            f"the histories hold no request of the part {split}",
            fix=f"Raise data.{split}_fraction or use more requests.",
        )
    if 0 < config.max_requests < len(requests):
        generator = np.random.default_rng(seed)
        requests = np.sort(
            generator.choice(
                requests,
                config.max_requests,
                replace=False,
            )
        )
    target_positions, target_requests = encoded.targets_of(requests)
    ends = encoded.event_ends[target_requests]
    lengths = ends - encoded.event_starts[target_requests]
    user_ids = encoded.request_users[target_requests]
    return EvaluationSample(
        requests=requests,
        target_positions=target_positions,
        target_requests=target_requests,
        labels=encoded.labels[target_positions],
        history_lengths=np.asarray(lengths, np.int64),
        resamples=Resamples.of_users(
            user_ids,
            config.bootstrap_samples,
            seed,
        ),
    )


def score_sample(
    scorer: Scorer,
    encoded: EncodedHistories,
    sample: EvaluationSample,
    length: int,
) -> Array:
    """Return the probabilities of the targets, float32 [N, K].

    Args:
        scorer: scorer of a bundle.
        encoded: histories, encoded by that bundle's encoder.
        sample: requests to score.
        length: served length, the number of most recent events.
    """
    stream = _batches(scorer, encoded, sample, length)
    return np.concatenate(list(scorer.score_batches(stream)))


def score_sample_at(
    scorer: Scorer,
    encoded: EncodedHistories,
    sample: EvaluationSample,
    lengths: Sequence[int],
) -> list[Array]:
    """Return the probabilities of the targets at several served lengths, float32 [N, K] each.

    If the model encodes events on their own (`Scorer.is_cacheable`), each one is encoded once.

    Args:
        scorer, encoded, sample: as for `score_sample`.
        lengths: served lengths, rising.
    """
    if len(lengths) == 1 or not scorer.is_cacheable:
        return [score_sample(scorer, encoded, sample, length) for length in lengths]
    stream = _batches(scorer, encoded, sample, lengths[-1])
    by_batch = list(score_suffixes(scorer, stream, lengths))
    return [np.concatenate(scores) for scores in zip(*by_batch, strict=True)]


def _batches(
    scorer: Scorer,
    encoded: EncodedHistories,
    sample: EvaluationSample,
    length: int,
) -> RequestStream:
    return RequestStream.for_evaluation(
        encoded,
        sample.requests,
        length,
        token_budget=scorer.token_budget,
        max_requests=scorer.max_requests,
    )
