"""Warm-up of an engine: one-time costs are paid before the first request.

Synthetic requests make torch allocate, compile and capture, and teach the cost model this
machine. They also check that CUDA graphs score as the model does without them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch

from longrec.data import history
from longrec.data.encoder import Encoder
from longrec.errors import LongrecError
from longrec.schema import ITEM_ID
from longrec.scoring.request import RequestRows
from longrec.scoring.scorer import MAX_CUDA_GRAPH_REQUESTS, Scorer
from longrec.serving.admission.cost_model import MANY_EVENTS, MANY_PAIRS
from longrec.serving.batch_scoring import BatchScorer
from longrec.serving.kv_cache import CacheCounts
from longrec.serving.requests import EncodedRequest

WARM_EVENTS = MANY_EVENTS
WARM_CANDIDATES = MANY_PAIRS // MANY_EVENTS
"""Size of the synthetic requests that measure the cost of events and pairs."""
FEW_EVENTS = 64
FEW_CANDIDATES = 8
"""Size of the synthetic requests that measure the cost of a request."""
MAX_CUDA_GRAPH_ERROR = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest difference of a probability that CUDA graphs may cause, by precision.

Rounding to bfloat16 caused 1.5e-2 (docs/log.md).
"""


@dataclasses.dataclass(frozen=True, slots=True)
class _Size:
    num_events: int
    num_candidates: int
    num_requests: int = 1


def warm_up(batches: BatchScorer) -> None:
    """Score synthetic requests until the scorer is fast and the cost model fits this machine.

    Raises:
        LongrecError: CUDA graphs do not score as the model does without them.
    """
    batches.scorer.warm_up()
    for size in _sizes_of_first_runs(batches.scorer):
        _score_synthetic(batches, size)
    # One-time work must not enter the cost model: it starts again from its defaults.
    batches.costs.forget()
    for num_events in (0, FEW_EVENTS):
        _score_synthetic(batches, _Size(num_events, FEW_CANDIDATES))
    large = _Size(WARM_EVENTS, WARM_CANDIDATES)
    for _ in range(2):  # a cost is the least of its measurements
        rows = _score_synthetic(batches, large)
    check_cuda_graphs(batches.scorer, rows)
    batches.cache.counts = CacheCounts()
    batches.mean_events = float(batches.scorer.bundle.served_length)


def check_cuda_graphs(scorer: Scorer, rows: RequestRows) -> None:
    """Compare the CUDA graphs of a scorer, if any, with its model in float32.

    Raises:
        LongrecError: a probability differs by more than MAX_CUDA_GRAPH_ERROR.
    """
    if scorer.cuda_graphs is None:
        return
    reference = dataclasses.replace(
        scorer,
        max_cuda_graph_requests=0,
        precision=torch.float32,
    )
    length = min(rows.history.num_rows, scorer.cuda_graphs.max_events)
    found = scorer.score([rows], length)[0]
    expected = reference.score([rows], length)[0]
    error = float(np.abs(found - expected).max())
    bound = MAX_CUDA_GRAPH_ERROR[scorer.precision]
    is_close = error <= bound  # false for NaN
    if not is_close:
        raise LongrecError(
            "CUDA graphs do not score as the model does",
            found=f"probabilities that differ by {error:.2g}",
            expected=f"{bound:g} at most",
            fix="Serve with LONGREC_DEVICE=cpu, or use another driver or torch version.",
        )


def _sizes_of_first_runs(scorer: Scorer) -> Iterator[_Size]:
    """Yield sizes that make every kernel compile."""
    yield _Size(0, FEW_CANDIDATES)
    yield _Size(FEW_EVENTS, FEW_CANDIDATES)
    if scorer.cuda_graphs is None:
        return
    # Batches of more requests than the graphs take use kernels that compile on first use.
    num_requests = MAX_CUDA_GRAPH_REQUESTS + 1
    # Different numbers of candidates and of events give the sizes that compile separately.
    for place, num_candidates in enumerate((8, 32, 64, WARM_CANDIDATES, 250)):
        num_events = WARM_EVENTS + 8 * (place % 2)
        yield _Size(num_events, num_candidates, num_requests)


def _score_synthetic(batches: BatchScorer, size: _Size) -> RequestRows:
    """Score equal synthetic requests in one batch; return the rows of one."""
    rows = RequestRows(
        history=_synthetic_history(batches.scorer.bundle.encoder, size.num_events),
        user_features=None,
        request_time_ms=size.num_events + 1,
        candidates=np.arange(size.num_candidates, dtype=np.int64),
    )
    request = EncodedRequest(rows, length=size.num_events)
    batches.rank([request] * size.num_requests)
    return rows


def _synthetic_history(encoder: Encoder, num_events: int) -> pa.RecordBatch:
    """Return a history with one event each millisecond.

    Its items differ as much as possible: equal events cost less than those of real histories.
    """
    row_numbers = pa.array(np.arange(num_events, dtype=np.int64))
    items = pa.array(np.resize(encoder.item_ids, num_events))
    fields = history.arrow_schema(encoder.schema)
    columns = []
    for field in fields:
        if field.nullable:
            columns.append(pa.nulls(num_events, field.type))
        elif field.name == ITEM_ID:
            columns.append(items)
        else:
            columns.append(row_numbers)
    return pa.record_batch(columns, schema=fields)
