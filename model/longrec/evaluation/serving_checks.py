"""Score single requests from raw rows, as a service does: parity with the batches, and latency.

This compares two ways within one process. `longrec.release.parity` also asks a served bento.
"""

from __future__ import annotations

import time
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from longrec.data.columns import int64_column
from longrec.data.histories import Histories
from longrec.evaluation.sample import EvaluationInputs
from longrec.schema import ITEM_ID, TIMESTAMP
from longrec.scoring.request import RequestRows

Array: TypeAlias = npt.NDArray[Any]

NUM_PARITY_REQUESTS = 16
NUM_LATENCY_REQUESTS = 24


def request_rows(histories: Histories, request: int) -> RequestRows:
    """Return the raw rows of one request, as the feature store would return them.

    Args:
        histories: raw rows.
        request: position of the request.
    """
    row = histories.requests.slice(request, 1).to_pylist()[0]
    user = histories.users.slice(row["user_row"], 1).to_pylist()[0]
    num_targets = row["target_end"] - row["target_start"]
    targets = histories.targets.slice(row["target_start"], num_targets)
    events = histories.events(row["event_start"], row["event_end"])
    return RequestRows(
        events,
        user,
        row[TIMESTAMP],
        int64_column(targets, ITEM_ID),
    )


def parity_error(inputs: EvaluationInputs, scores: Array) -> float | None:
    """Return the largest difference of a probability between batches and raw rows.

    A few requests of the sample are scored again. None if a score is not finite.

    Args:
        inputs: inputs of the evaluation.
        scores: float32 [N, K], scores of the batches at the served length.
    """
    sample = inputs.sample
    shuffled = np.random.default_rng(inputs.seed).permutation(sample.requests)
    chosen = shuffled[:NUM_PARITY_REQUESTS]
    rows = [request_rows(inputs.histories, int(request)) for request in chosen]
    raw_scores = inputs.scorer.score(rows, inputs.config.served_length)
    errors = []
    for request, expected in zip(chosen, raw_scores, strict=True):
        batch_scores = scores[sample.target_requests == request]
        errors.append(np.abs(batch_scores - expected).max())
    if not np.isfinite(errors).all():
        return None
    return float(np.max(errors))


def latency_ms(inputs: EvaluationInputs) -> dict[str, float]:
    """Return {"p50", "p95"}: milliseconds of scoring one request alone.

    The requests are those of the sample with the longest histories. One request is scored before
    the clock starts.
    """
    scorer = inputs.scorer
    length = inputs.config.served_length
    sample = inputs.sample
    by_length = np.argsort(-sample.request_lengths, kind="stable")
    longest = sample.requests[by_length[:NUM_LATENCY_REQUESTS]]
    rows = [request_rows(inputs.histories, int(request)) for request in longest]
    scorer.score(rows[:1], length)
    seconds = []
    for row in rows:
        started = time.perf_counter()
        scorer.score([row], length)
        seconds.append(time.perf_counter() - started)
    p50, p95 = np.percentile(seconds, [50, 95])
    return {"p50": float(p50) * 1e3, "p95": float(p95) * 1e3}
