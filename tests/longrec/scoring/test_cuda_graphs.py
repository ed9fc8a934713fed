"""Fixed buffers score what the scorer scores eagerly, whatever was in them before; on a CUDA device
as captured graphs.
"""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from longrec.errors import LongrecError
from longrec.scoring import cuda_graphs
from longrec.scoring.request import RequestRows
from longrec.scoring.scorer import Scorer
from longrec.serving import warm_up
from longrec.serving.engine import Engine
from tests.longrec import small_histories
from tests.longrec.nn.recorders import OperationRecorder, ValueReadRecorder
from tests.longrec.serving import small_scorer

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
LONGEST, MOST = 64, 16


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of 8, 16, 32, 64 events (the served length is 40) and 4, 8, 16 candidates."""
    monkeypatch.setattr(cuda_graphs, "MIN_EVENT_BUCKET", 8)
    monkeypatch.setattr(cuda_graphs, "MIN_TARGET_BUCKET", 4)
    monkeypatch.setattr(cuda_graphs, "MAX_TARGETS", MOST)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return small_scorer.make_scorer(tmp_path_factory.mktemp("world"))


def fixed(scorer: Scorer, max_cuda_graph_requests: int = 4) -> Scorer:
    """The same scorer, in fixed buffers."""
    return dataclasses.replace(scorer, max_cuda_graph_requests=max_cuda_graph_requests)


def request(num_events: int, num_targets: int, seed: int = 0) -> RequestRows:
    user = small_scorer.User(seed)
    user.append(num_events)
    newest = user.rows[-1][0] if user.rows else small_scorer.START_MS
    return user.request(user.timeline(), newest + 1_000 * (1 + 40 * seed), num_targets)


def both(scorer: Scorer, asked: RequestRows) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a request whose events are encoded on the way, and kept first."""
    kept = scorer.keys_values([asked.history], [asked.request_time_ms])
    return scorer.score([asked], 1_000)[0], scorer.score_cached([asked], kept)[0]


@pytest.mark.parametrize("recency", ["bias", "none", "token"])
def test_fixed_buffers_score_as_a_batch_does_whoever_used_them_before(
    tmp_path: Path, recency: str
) -> None:
    """Sizes at the borders and between them, each after longer requests of other users and
    moments.
    """
    eager = small_scorer.make_scorer(tmp_path, recency)
    scorer = fixed(eager)
    for seed, (num_events, num_targets) in enumerate(
        [
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
    ):
        asked = request(num_events, num_targets, seed)
        expected = eager.score([asked], 1_000)[0]
        for found in both(scorer, asked):
            assert found.shape == expected.shape == (num_targets, 2)
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_what_lies_behind_a_request_has_no_weight(plain: Scorer) -> None:
    scorer, asked = fixed(plain), request(11, 3)
    before = both(scorer, asked)
    assert scorer.cuda_graphs is not None
    with torch.inference_mode():
        scorer.cuda_graphs._layers[:, 11:] = 50.0
        scorer.cuda_graphs._buffers.timestamps[11:] = asked.request_time_ms - 1
    for a, b in zip(before, both(scorer, asked), strict=True):
        assert np.array_equal(a, b)


def test_unknown_users_and_items_score_as_in_a_batch(plain: Scorer) -> None:
    scorer = fixed(plain)
    both(scorer, request(60, 16))
    candidates = np.array([small_histories.FIRST_ID, -1, 999], np.int64)
    for features in (None, {}, {"region": "nowhere"}):
        asked = dataclasses.replace(request(20, 3), user_features=features, candidates=candidates)
        for found in both(scorer, asked):
            np.testing.assert_allclose(found, plain.score([asked])[0], rtol=0, atol=2e-6)
            assert found[1] == pytest.approx(found[2], abs=2e-6)


@pytest.mark.parametrize(("num_events", "num_targets"), [(0, 3), (LONGEST + 1, 3), (5, MOST + 1)])
def test_what_does_not_fit_is_scored_as_a_batch(
    plain: Scorer, num_events: int, num_targets: int
) -> None:
    scorer, asked, beside = fixed(plain), request(num_events, num_targets), request(12, 2, 1)
    both(scorer, request(60, 16, 2))
    assert scorer.cuda_graphs is not None and not scorer.cuda_graphs.fits(num_events, num_targets)
    for found, expected in zip(both(scorer, asked), both(plain, asked), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    for found, expected in zip(
        scorer.score([asked, beside], 1_000), plain.score([asked, beside], 1_000), strict=True
    ):
        assert np.array_equal(found, expected)


def test_kept_rows_are_the_callers_own(plain: Scorer) -> None:
    scorer, asked = fixed(plain), request(20, 3)
    kept, same = (
        each.keys_values([asked.history], [asked.request_time_ms])[0] for each in (scorer, plain)
    )
    both(scorer, request(60, 16, 1))
    for a, b in zip(
        (*kept.layers, kept.timestamps, kept.encoded),
        (*same.layers, same.timestamps, same.encoded),
        strict=True,
    ):
        assert a.dtype == b.dtype and torch.allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(
        scorer.score_cached([asked], [kept])[0], plain.score([asked])[0], rtol=0, atol=2e-6
    )


def test_few_requests_go_one_after_another_and_more_as_a_batch(
    plain: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, asked = (
        fixed(plain, max_cuda_graph_requests=2),
        [request(10 + seed, 2, seed) for seed in range(3)],
    )
    asked.insert(1, dataclasses.replace(asked[0], candidates=asked[0].candidates[:0]))
    alone = [plain.score([each])[0] for each in asked]
    assert scorer.cuda_graphs is not None
    runs, run = list[tuple[int, ...]](), scorer.cuda_graphs._run
    monkeypatch.setattr(
        scorer.cuda_graphs, "_run", lambda work, *size: (runs.append(size), run(work, *size))
    )
    for few, expected in ((asked[:3], [(16,), (16, 4)] * 2), (asked, [])):
        runs.clear()
        for a, b in zip(scorer.score(few), alone, strict=False):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
        assert runs == expected


def test_threads_take_turns(plain: Scorer) -> None:
    scorer, wrong = fixed(plain), list[float]()

    def work(seed: int) -> None:
        asked = request(20 + 10 * seed, 5, seed)
        expected = plain.score([asked])[0]
        for _ in range(40):
            wrong.append(float(np.abs(scorer.score([asked])[0] - expected).max()))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 120 and max(wrong) < 2e-6


def test_only_models_that_can_use_fixed_buffers_do(plain: Scorer, tmp_path: Path) -> None:
    assert plain.cuda_graphs is None and plain.warm_up() is None  # on a CPU a batch is faster
    assert fixed(small_scorer.make_scorer(tmp_path / "a", matches=True)).cuda_graphs is None
    assert fixed(small_scorer.make_scorer(tmp_path / "b", "none", kind="din")).cuda_graphs is None


@pytest.mark.parametrize("broken", [0.01, float("nan"), 0.0])
def test_an_engine_does_not_start_with_graphs_that_score_otherwise(
    plain: Scorer, broken: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_up, "WARM_EVENTS", 32)
    monkeypatch.setattr(warm_up, "WARM_CANDIDATES", MOST)
    scorer, of = fixed(plain), cuda_graphs.CudaGraphScorer._score
    monkeypatch.setattr(
        cuda_graphs.CudaGraphScorer,
        "_score",
        lambda self, count, asked: of(self, count, asked) + np.float32(broken),
    )
    if broken == 0.0:
        Engine(scorer).close()
        return
    with pytest.raises(
        LongrecError,
        match=r"captured graphs do not score as the model does; found .* differ by (0.01|nan)",
    ):
        Engine(scorer)


@pytest.mark.parametrize("recency", ["bias", "token"])
def test_what_is_captured_asks_the_device_for_no_value(tmp_path: Path, recency: str) -> None:
    """What would end a capture: a value read, or a tensor that is made on the host."""
    found = fixed(small_scorer.make_scorer(tmp_path, recency)).cuda_graphs
    assert found is not None
    with torch.inference_mode(), ValueReadRecorder() as values, OperationRecorder() as recorder:
        found._encode_bucket(16)
        found._score_bucket(16, 4)
    assert not values.reads
    assert not [
        line
        for line in recorder.operations
        if any(word in line for word in ("_local_scalar_dense", "lift_fresh", "nonzero"))
    ]


@ON_GPU
@pytest.mark.parametrize(("precision", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-3)])
def test_graphs_score_as_a_batch_does(tmp_path: Path, precision: torch.dtype, bound: float) -> None:
    on_cpu = small_scorer.make_scorer(tmp_path, width=64)
    bundle = dataclasses.replace(on_cpu.bundle, ranker=on_cpu.bundle.ranker.cuda())
    scorer = Scorer(bundle, torch.device("cuda"), precision=precision)
    eager = dataclasses.replace(scorer, max_cuda_graph_requests=0)
    scorer.warm_up()
    assert scorer.cuda_graphs is not None and scorer.cuda_graphs.num_graphs == 4 * (1 + 3)
    for seed, (num_events, num_targets) in enumerate([(64, 16), (9, 5), (1, 1), (32, 9)]):
        asked = request(num_events, num_targets, seed)
        for found in both(scorer, asked):
            np.testing.assert_allclose(found, eager.score([asked], 1_000)[0], rtol=0, atol=bound)
    assert scorer.cuda_graphs.num_graphs == 16
