"""Scores that enter the histogram of a worker."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from longrec.serving.metrics import NUM_SAMPLED_SCORES, PrometheusMetrics
from longrec.serving.requests import RankResult


@pytest.mark.parametrize("num_candidates", [1, NUM_SAMPLED_SCORES, 15, 100])
def test_sampled_scores_reach_from_the_first_candidate_to_the_last(num_candidates: int) -> None:
    registry = CollectorRegistry()
    metrics = PrometheusMetrics(["like"], registry)
    scores = np.zeros((num_candidates, 1), np.float32)
    scores[-1] = 0.5
    result = RankResult(scores, num_events=0, num_unknown=0, unknown_events={}, newest_ms=None)
    metrics._observe_scores(result)
    labels = {"task": "like"}
    count = registry.get_sample_value("longrec_score_count", labels)
    assert count == min(num_candidates, NUM_SAMPLED_SCORES)
    assert registry.get_sample_value("longrec_score_sum", labels) == 0.5
