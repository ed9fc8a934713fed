"""Compare the three ways to score the same requests.

    training forward   the ranker on the encoded stream, in evaluation mode
    Scorer             raw rows of the histories
    HTTP               POST /rank to an exported bento, served on loopback; its rows come from the
                       online feature store

Shape letters: R requests, m candidates of a request, K tasks.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from longrec.data.histories import Histories
from longrec.data.store.versions import PublishedVersion
from longrec.errors import StoreError
from longrec.release.bento_server import PackagingError, post_rank, serve_bento

log = logging.getLogger(__name__)

NUM_PARITY_REQUESTS = 24
MAX_CANDIDATES = 2_048
"""Most candidates that the service accepts in one request."""
TOKEN_BUDGET = 65_536
"""Events per batch of the training forward."""
REQUESTS_PER_BATCH = 64
SERVICE_VARIABLES = {
    "LONGREC_FOLLOW": "0",
    "LONGREC_TIMEOUT_MS": "60000",
    "LONGREC_STORE_TIMEOUT_MS": "20000",
    "LONGREC_DEVICE": "cpu",
}
"""Environment of the served bento.

Only scores are compared: the limits are long, for a busy machine, and the CPU gives float32.
"""
STORE_DIGEST_VARIABLE = "LONGREC_STORE_DIGEST"
"""Digest of the published version that a service reads; unset to follow the current one."""

Int: TypeAlias = npt.NDArray[np.int64]
Scores: TypeAlias = list[npt.NDArray[np.float32]]
"""Probabilities of each request, float32 [m, K]."""


@dataclasses.dataclass(frozen=True, slots=True)
class ParityReport:
    """Largest absolute differences of a probability to the training forward.

    Args:
        num_requests, num_scores: compared.
        longest_history: events.
        scorer_error: difference of the Scorer on raw rows.
        http_error: difference of the served bento.
        bound: largest difference that passes.
        problems: degraded answers, and answers from another number of events.
        passed: whether both errors are within the bound and there is no problem.
        ready_seconds: time from the start of the server until it was ready.
        answer_ms: median time of an answer.
    """

    num_requests: int
    num_scores: int
    longest_history: int
    scorer_error: float
    http_error: float
    bound: float
    problems: tuple[str, ...]
    passed: bool
    ready_seconds: float
    answer_ms: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Served:
    """The answers of a served bento.

    Args:
        answers: JSON form, in the order of the requests.
        seconds: time of each answer.
        ready_seconds: time until the server was ready.
    """

    answers: tuple[Mapping[str, Any], ...]
    seconds: tuple[float, ...]
    ready_seconds: float


def check_parity(
    bundle_dir: str | Path,
    histories_dir: str | Path,
    bento_dir: str | Path,
    *,
    workdir: str | Path,
    bound: float,
    seed: int,
) -> ParityReport:
    """Return how far training forward, Scorer and the served bento are apart.

    Args:
        bundle_dir: the ranker.
        histories_dir: requests of its split `eval` are sampled, each at its own request time.
        bento_dir: an exported bento; it is served on loopback, without a BentoML store.
        workdir: LONGREC_HOME.
        bound: largest difference of a probability that passes.
        seed: of the sample.
    """
    from longrec.evaluation.serving_checks import request_rows
    from longrec.scoring.scorer import Scorer

    scorer = Scorer.load(bundle_dir)
    histories = Histories.open(histories_dir)
    requests = sample_requests(histories, seed)
    rows = [_with_few_candidates(request_rows(histories, row)) for row in requests.tolist()]
    users = _user_ids(histories, requests)
    served = _rank_over_http(
        Path(bento_dir).resolve(),
        workdir,
        str(histories.manifest["store_version"]),
        _bodies(users, rows),
    )
    expected = training_forward(scorer, histories, requests)
    scorer_error = _largest_difference(expected, scorer.score(rows))
    http_scores = _scores_of(served.answers, scorer.task_names)
    http_error = _largest_difference(expected, http_scores)
    served_length = scorer.bundle.served_length
    num_events = [min(row.history.num_rows, served_length) for row in rows]
    problems = tuple(_find_problems(users, num_events, served.answers))
    is_close = max(scorer_error, http_error) <= bound
    return ParityReport(
        num_requests=len(rows),
        num_scores=sum(scores.size for scores in expected),
        longest_history=max(num_events),
        scorer_error=scorer_error,
        http_error=http_error,
        bound=bound,
        problems=problems,
        passed=is_close and not problems,
        ready_seconds=round(served.ready_seconds, 2),
        answer_ms=round(float(np.median(served.seconds)) * 1e3, 2),
    )


def sample_requests(
    histories: Histories,
    seed: int,
    count: int = NUM_PARITY_REQUESTS,
) -> Int:
    """Return rows of evaluation requests, int64, rising.

    The sample is seeded and always holds the longest and the shortest history.

    Args:
        histories: with an evaluation split.
        seed: of the sample.
        count: number of drawn requests; the longest and the shortest come on top.

    Raises:
        PackagingError: the histories hold no evaluation request.
    """
    table = histories.requests
    requests = np.flatnonzero(np.asarray(table.column("split")) == "eval")
    if not len(requests):
        raise PackagingError(
            "the histories hold no evaluation request",
            fix="Raise data.eval_fraction or use more requests.",
        )
    starts = np.asarray(table.column("event_start"))[requests]
    ends = np.asarray(table.column("event_end"))[requests]
    lengths = ends - starts
    extremes = requests[[np.argmax(lengths), np.argmin(lengths)]]
    drawn = np.random.default_rng(seed).permutation(requests)[:count]
    return np.unique(np.concatenate([extremes, drawn])).astype(np.int64)


def training_forward(
    scorer: Any,
    histories: Histories,
    requests: Int,
) -> Scores:
    """Return the probabilities that the ranker gives on the encoded stream.

    Args:
        scorer: with the bundle.
        histories: raw rows.
        requests: int64 [R], positions of the requests.

    Returns:
        float32 [m, K] of each request, with m at most MAX_CANDIDATES.
    """
    import torch

    from longrec.data.loading.encoded_histories import EncodedHistories
    from longrec.data.loading.request_stream import RequestStream

    bundle = scorer.bundle
    ranker = bundle.ranker.eval()
    with tempfile.TemporaryDirectory(prefix="longrec-parity-") as cache, torch.no_grad():
        encoded = EncodedHistories.encode(
            histories,
            bundle.encoder,
            Path(cache) / "encoded",
        )
        stream = RequestStream.for_evaluation(
            encoded,
            requests,
            bundle.served_length,
            token_budget=TOKEN_BUDGET,
            max_requests=REQUESTS_PER_BATCH,
        )
        batches = [torch.sigmoid(ranker(batch).logits).numpy() for batch in stream]
        scores = np.concatenate(batches)
        target_requests = np.array(stream.target_requests)
    return [scores[target_requests == request][:MAX_CANDIDATES] for request in requests]


def _with_few_candidates(row: Any) -> Any:
    return dataclasses.replace(row, candidates=row.candidates[:MAX_CANDIDATES])


def _user_ids(histories: Histories, requests: Int) -> list[int]:
    user_rows = histories.requests.column("user_row").take(requests)
    ids: list[int] = histories.users.column("user_id").take(user_rows).to_pylist()
    return ids


def _bodies(users: Sequence[int], rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the JSON form of each request."""
    bodies = []
    for user, row in zip(users, rows, strict=True):
        body = {
            "user_id": user,
            "candidates": row.candidates.tolist(),
            "request_time": row.request_time_ms,
        }
        bodies.append(body)
    return bodies


def _rank_over_http(
    bento_dir: Path,
    workdir: str | Path,
    digest: str,
    bodies: Sequence[Mapping[str, Any]],
) -> _Served:
    """Serve a bento and return its answers to the requests.

    Args:
        bento_dir: the exported bento.
        workdir: LONGREC_HOME.
        digest: of the published version that the histories were read from.
        bodies: JSON form of the requests.
    """
    variables = {**SERVICE_VARIABLES, **_store_variables(workdir, digest)}
    answers = []
    seconds = []
    started = time.perf_counter()
    with serve_bento(bento_dir, workdir=workdir, variables=variables) as (host, port):
        ready_seconds = time.perf_counter() - started
        for body in bodies:
            sent = time.perf_counter()
            answers.append(post_rank(host, port, body))
            seconds.append(time.perf_counter() - sent)
    return _Served(tuple(answers), tuple(seconds), ready_seconds)


def _store_variables(workdir: str | Path, digest: str) -> dict[str, str]:
    """Return the variable that lets a service read one published version, if it is there.

    A refresh may publish another one while a run trains. Long after the run the version is gone:
    then the current one is compared.
    """
    try:
        PublishedVersion.open(workdir, digest)
    except StoreError as error:
        log.warning("scores are compared with the current features: %s", error)
        return {}
    return {STORE_DIGEST_VARIABLE: digest}


def _scores_of(answers: Sequence[Mapping[str, Any]], task_names: Sequence[str]) -> Scores:
    scores = []
    for answer in answers:
        columns = [answer["scores"][task] for task in task_names]
        scores.append(np.array(columns, np.float32).T)
    return scores


def _largest_difference(expected: Scores, found: Scores) -> float:
    """Return the largest absolute difference; infinite if a value is missing or not finite."""
    largest = 0.0
    for wanted, given in zip(expected, found, strict=True):
        if wanted.shape != given.shape or not np.isfinite(given).all():
            return float("inf")
        differences = np.abs(wanted.astype(np.float64) - given)
        largest = max(largest, float(differences.max(initial=0.0)))
    return largest


def _find_problems(
    users: Sequence[int],
    num_events: Sequence[int],
    answers: Sequence[Mapping[str, Any]],
) -> Iterator[str]:
    """Yield a sentence for each answer that is degraded or used another number of events."""
    for user, expected, answer in zip(users, num_events, answers, strict=True):
        used = answer["history_length"]
        if answer["degraded"]:
            yield f"user {user}: the service could not read the feature store"
        elif used != expected:
            yield f"user {user}: the service used {used} events, expected {expected}"
