"""The shadow compares the challenger with the champion, and delays nobody."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from longrec.serving.rollout import shadow as shadow_module
from longrec.serving.rollout.shadow import Shadow, rank_correlation
from longrec.serving.rollout.worker_reports import shadow_report
from tests.longrec.serving.rollout.fake_engines import FakeRollout, decide

NUMBERS = [0.1, 0.2, 0.4]
SLOW_MS = 1e6


def mirror(
    shadow: Shadow,
    version: str = "a",
    champion_ms: float = 2.0,
) -> None:
    """Mirror a request that the champion answered with its own numbers."""
    shadow.mirror(
        NUMBERS,
        version,
        [np.array(NUMBERS)],
        champion_ms,
    )


def compare_next(shadow: Shadow) -> None:
    """Score the next copy, as the thread of the shadow does."""
    shadow._compare_scores(shadow._queue.get())


def start_comparison(rollout: FakeRollout, mirror_share: float = 1.0):
    decide(rollout.workdir, champion="a", challenger="b", mirror_share=mirror_share)
    manager = rollout.start_worker()
    manager.sync_with_registry()
    return manager


def test_scores_and_latencies_are_compared(rollout: FakeRollout) -> None:
    manager = start_comparison(rollout)
    mirror(manager.shadow, "a", SLOW_MS)
    mirror(manager.shadow, "other", SLOW_MS)  # answered by a version that was replaced
    compare_next(manager.shadow)
    assert manager.shadow._queue.empty()
    report = shadow_report(rollout.workdir)
    assert report is not None
    assert report["compared"] == 0  # not written yet
    manager._write_report()
    report = shadow_report(rollout.workdir)
    counts = [report[key] for key in ("compared", "dropped", "failed", "is_enough")]
    assert counts == [1, 0, 0, False]
    assert report["rank_correlation"] == pytest.approx(-1)
    assert report["mean_difference"] == pytest.approx(2 * np.mean(NUMBERS))
    assert report["largest_difference"] == pytest.approx(0.8)
    assert report["champion_ms"] == SLOW_MS
    assert report["latency_ratio"] < 1


def test_copies_that_would_wait_too_long_are_dropped(rollout: FakeRollout) -> None:
    shadow = start_comparison(rollout).shadow
    for _ in range(shadow_module.MAX_MIRROR_QUEUE + 5):  # waiting would last for ever
        mirror(shadow)
    assert shadow.comparison.num_dropped == 5


def test_a_copy_that_the_former_champion_answered_is_not_compared(rollout: FakeRollout) -> None:
    manager = start_comparison(rollout)
    mirror(manager.shadow, "a")
    decide(rollout.workdir, champion="c")
    manager.sync_with_registry()
    mirror(manager.shadow, "c")
    compare_next(manager.shadow)
    assert manager.shadow.comparison.num_compared == 0
    compare_next(manager.shadow)
    assert manager.shadow.comparison.num_compared == 1


def test_errors_of_the_challenger_are_only_counted(
    rollout: FakeRollout,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shadow = start_comparison(rollout).shadow
    mirror(shadow)
    monkeypatch.setattr(shadow, "_score", lambda engine, request: 1 / 0)
    compare_next(shadow)
    assert shadow.comparison.num_failed == 1


def test_the_mirrored_share_of_requests_is_copied(rollout: FakeRollout) -> None:
    shadow = start_comparison(rollout, mirror_share=0.2).shadow
    for _ in range(2_000):
        mirror(shadow)
    num_mirrored = shadow.comparison.num_dropped + shadow._queue.qsize()
    assert 300 < num_mirrored < 500


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    for size in (2, 3, 50):
        a = rng.integers(0, 5 * size, size).astype(float)
        b = rng.random(size).round(1)
        if np.ptp(a) and np.ptp(b):
            expected = spearmanr(a, b).statistic
            assert rank_correlation(a, b) == pytest.approx(expected)
    assert rank_correlation(np.ones(3), rng.random(3)) is None
