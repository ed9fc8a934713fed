"""Fixed buffers score what a batch scores, whatever was in them before; on a GPU as CUDA graphs."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longrec.errors import LongrecError
from longrec.scoring import cuda_graphs
from longrec.scoring.cuda_graphs import CudaGraphScorer
from longrec.scoring.request import RequestRows
from longrec.scoring.scorer import Scorer
from longrec.serving import warm_up
from longrec.serving.engine import Engine
from tests.longrec import small_histories
from tests.longrec.nn.recorders import OperationRecorder, ValueReadRecorder
from tests.longrec.serving import small_scorer

NEEDS_GPU = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="this machine has no GPU",
)
MAX_EVENTS = 64
MAX_TARGETS = 16
LENGTH = 1_000
"""Longer than any history here."""
TOLERANCE = 2e-6
SIZES = [
    (64, 16),
    (9, 5),
    (8, 4),
    (7, 1),
    (63, 16),
    (1, 1),
    (33, 8),
    (32, 9),
    (17, 15),
    (16, 3),
    (2, 16),
    (40, 2),
]
"""(events, candidates) at the borders of buckets and between them."""


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of 8, 16, 32, 64 events (the served length is 40) and 4, 8, 16 candidates."""
    monkeypatch.setattr(cuda_graphs, "MIN_EVENT_BUCKET", 8)
    monkeypatch.setattr(cuda_graphs, "MIN_TARGET_BUCKET", 4)
    monkeypatch.setattr(cuda_graphs, "MAX_TARGETS", MAX_TARGETS)


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """A scorer on a CPU, which scores every call as a batch."""
    return small_scorer.make_scorer(tmp_path_factory.mktemp("eager"))


def in_buffers(
    scorer: Scorer,
    max_requests: int = 4,
) -> Scorer:
    """Return the same scorer in fixed buffers."""
    return dataclasses.replace(scorer, max_cuda_graph_requests=max_requests)


def graphs_of(scorer: Scorer) -> CudaGraphScorer:
    assert scorer.cuda_graphs is not None
    return scorer.cuda_graphs


def request(
    num_events: int,
    num_targets: int,
    seed: int = 0,
) -> RequestRows:
    """Return a request some time after the last event of a random user."""
    user = small_scorer.User(seed)
    user.append(num_events)
    newest = user.rows[-1][0] if user.rows else small_scorer.START_MS
    request_time_ms = newest + 1_000 * (1 + 40 * seed)
    return user.request(user.timeline(), request_time_ms, num_targets)


def score_both_ways(
    scorer: Scorer,
    asked: RequestRows,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of a request, and its scores over cached events."""
    cached = scorer.keys_values([asked.history], [asked.request_time_ms])
    [scores] = scorer.score([asked], LENGTH)
    [cached_scores] = scorer.score_cached([asked], cached)
    return scores, cached_scores


def assert_close(
    scores: np.ndarray,
    expected: np.ndarray,
    bound: float = TOLERANCE,
) -> None:
    np.testing.assert_allclose(
        scores,
        expected,
        rtol=0,
        atol=bound,
    )


@pytest.mark.parametrize("recency", ["bias", "none", "token"])
def test_fixed_buffers_score_as_a_batch_does_whoever_used_them_before(
    tmp_path: Path,
    recency: str,
) -> None:
    """Each request comes after one of another user and time, often a longer one."""
    eager = small_scorer.make_scorer(tmp_path, recency)
    scorer = in_buffers(eager)
    for seed, (num_events, num_targets) in enumerate(SIZES):
        asked = request(num_events, num_targets, seed)
        [expected] = eager.score([asked], LENGTH)
        for scores in score_both_ways(scorer, asked):
            assert scores.shape == expected.shape == (num_targets, 2)
            assert_close(scores, expected)


def test_rows_behind_a_request_have_no_weight(eager: Scorer) -> None:
    scorer = in_buffers(eager)
    asked = request(11, 3)
    before = score_both_ways(scorer, asked)
    graphs = graphs_of(scorer)
    with torch.inference_mode():
        graphs._kv_buffer[:, 11:] = 50.0
        graphs._buffers.timestamps[11:] = asked.request_time_ms - 1
    after = score_both_ways(scorer, asked)
    for scores, expected in zip(after, before, strict=True):
        assert np.array_equal(scores, expected)


def test_unknown_users_and_items_score_as_in_a_batch(eager: Scorer) -> None:
    scorer = in_buffers(eager)
    score_both_ways(scorer, request(60, 16))
    candidates = np.array([small_histories.FIRST_ID, -1, 999], np.int64)
    for features in (None, {}, {"region": "nowhere"}):
        asked = dataclasses.replace(
            request(20, 3),
            user_features=features,
            candidates=candidates,
        )
        [expected] = eager.score([asked])
        for scores in score_both_ways(scorer, asked):
            assert_close(scores, expected)
            assert scores[1] == pytest.approx(scores[2], abs=TOLERANCE)


@pytest.mark.parametrize(
    ("num_events", "num_targets"),
    [
        (0, 3),
        (MAX_EVENTS + 1, 3),
        (5, MAX_TARGETS + 1),
    ],
)
def test_a_request_that_does_not_fit_is_scored_as_a_batch(
    eager: Scorer,
    num_events: int,
    num_targets: int,
) -> None:
    scorer = in_buffers(eager)
    asked = request(num_events, num_targets)
    other = request(12, 2, 1)
    score_both_ways(scorer, request(60, 16, 2))
    assert not graphs_of(scorer).fits(num_events, num_targets)
    expected = score_both_ways(eager, asked)
    for scores, expected_scores in zip(score_both_ways(scorer, asked), expected, strict=True):
        assert_close(scores, expected_scores)
    together = scorer.score([asked, other], LENGTH)
    expected_together = eager.score([asked, other], LENGTH)
    for scores, expected_scores in zip(together, expected_together, strict=True):
        assert np.array_equal(scores, expected_scores)


def test_cached_events_are_copies(eager: Scorer) -> None:
    scorer = in_buffers(eager)
    asked = request(20, 3)
    [cached] = scorer.keys_values([asked.history], [asked.request_time_ms])
    [expected] = eager.keys_values([asked.history], [asked.request_time_ms])
    score_both_ways(scorer, request(60, 16, 1))
    pairs = [
        *zip(cached.layers, expected.layers, strict=True),
        (cached.timestamps, expected.timestamps),
        (cached.encoded, expected.encoded),
    ]
    for tensor, expected_tensor in pairs:
        assert tensor.dtype == expected_tensor.dtype
        assert torch.allclose(tensor, expected_tensor, atol=1e-6)
    [scores] = scorer.score_cached([asked], [cached])
    assert_close(scores, eager.score([asked])[0])


def test_few_requests_are_scored_one_by_one_and_more_as_a_batch(
    eager: Scorer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scorer = in_buffers(eager, max_requests=2)
    asked = [request(10 + seed, 2, seed) for seed in range(3)]
    without_candidates = dataclasses.replace(asked[0], candidates=asked[0].candidates[:0])
    asked.insert(1, without_candidates)
    alone = [eager.score([each])[0] for each in asked]
    graphs = graphs_of(scorer)
    run = graphs._run
    sizes: list[tuple[int, ...]] = []

    def recorded_run(
        work: Callable[..., None],
        *size: int,
    ) -> None:
        sizes.append(size)
        run(work, *size)

    monkeypatch.setattr(graphs, "_run", recorded_run)
    runs_of_two = [(16,), (16, 4)] * 2
    for requests, expected_sizes in ((asked[:3], runs_of_two), (asked, [])):
        sizes.clear()
        for scores, expected in zip(scorer.score(requests), alone, strict=False):
            assert_close(scores, expected)
        assert sizes == expected_sizes


def test_threads_take_turns(eager: Scorer) -> None:
    scorer = in_buffers(eager)
    errors: list[float] = []

    def work(seed: int) -> None:
        asked = request(20 + 10 * seed, 5, seed)
        [expected] = eager.score([asked])
        for _ in range(40):
            [scores] = scorer.score([asked])
            errors.append(float(np.abs(scores - expected).max()))

    threads = []
    for seed in range(3):
        threads.append(
            threading.Thread(
                target=work,
                args=(seed,),
            )
        )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 120
    assert max(errors) < TOLERANCE


def test_only_models_that_can_use_fixed_buffers_do(
    eager: Scorer,
    tmp_path: Path,
) -> None:
    # on a CPU a batch is faster
    assert eager.cuda_graphs is None
    assert eager.warm_up() is None
    with_matches = small_scorer.make_scorer(tmp_path / "a", matches=True)
    assert in_buffers(with_matches).cuda_graphs is None
    din = small_scorer.make_scorer(tmp_path / "b", "none", kind="din")
    assert in_buffers(din).cuda_graphs is None


@pytest.mark.parametrize("error", [0.01, float("nan"), 0.0])
def test_an_engine_does_not_start_with_graphs_that_score_otherwise(
    eager: Scorer,
    error: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(warm_up, "WARM_EVENTS", 32)
    monkeypatch.setattr(warm_up, "WARM_CANDIDATES", MAX_TARGETS)
    scorer = in_buffers(eager)
    score = CudaGraphScorer._score

    def wrong_score(
        graphs: CudaGraphScorer,
        *arguments: Any,
    ) -> np.ndarray:
        return score(graphs, *arguments) + np.float32(error)

    monkeypatch.setattr(CudaGraphScorer, "_score", wrong_score)
    if error == 0.0:
        Engine(scorer).close()
        return
    message = r"CUDA graphs do not score as the model does; found .* differ by (0.01|nan)"
    with pytest.raises(LongrecError, match=message):
        Engine(scorer)


@pytest.mark.parametrize("recency", ["bias", "token"])
def test_captured_work_reads_no_value_from_the_device(
    tmp_path: Path,
    recency: str,
) -> None:
    """A value that is read, or a tensor that is made on the host, would end a capture."""
    scorer = in_buffers(small_scorer.make_scorer(tmp_path, recency))
    graphs = graphs_of(scorer)
    with torch.inference_mode(), ValueReadRecorder() as values, OperationRecorder() as recorder:
        graphs._encode_bucket(16)
        graphs._score_bucket(16, 4)
    assert not values.reads
    forbidden = ("_local_scalar_dense", "lift_fresh", "nonzero")
    for operation in recorder.operations:
        assert not any(word in operation for word in forbidden)


@NEEDS_GPU
@pytest.mark.parametrize(
    ("precision", "bound"),
    [
        (torch.float32, 1e-4),
        (torch.bfloat16, 5e-3),
    ],
)
def test_graphs_score_as_a_batch_does(
    tmp_path: Path,
    precision: torch.dtype,
    bound: float,
) -> None:
    on_cpu = small_scorer.make_scorer(tmp_path, width=64)
    ranker = on_cpu.bundle.ranker.cuda()
    bundle = dataclasses.replace(on_cpu.bundle, ranker=ranker)
    scorer = Scorer(
        bundle,
        torch.device("cuda"),
        precision=precision,
    )
    eager = dataclasses.replace(scorer, max_cuda_graph_requests=0)
    scorer.warm_up()
    # 4 buckets of events, each with its encoding and 3 buckets of candidates
    num_graphs = 4 * (1 + 3)
    assert graphs_of(scorer).num_graphs == num_graphs
    for seed, (num_events, num_targets) in enumerate([(64, 16), (9, 5), (1, 1), (32, 9)]):
        asked = request(num_events, num_targets, seed)
        [expected] = eager.score([asked], LENGTH)
        for scores in score_both_ways(scorer, asked):
            assert_close(scores, expected, bound)
    assert graphs_of(scorer).num_graphs == num_graphs
