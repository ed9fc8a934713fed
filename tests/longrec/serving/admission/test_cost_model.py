"""What the cost model learns from batches, and what it forgets."""

from __future__ import annotations

from longrec.serving.admission.cost_model import (
    FEW_PAIRS,
    MANY_EVENTS,
    MANY_PAIRS,
    NUM_MEASUREMENTS,
    PAIR_SECONDS,
    REQUEST_SECONDS,
    CostModel,
)


def test_a_slow_batch_changes_nothing() -> None:
    costs = CostModel()
    costs.learn_scoring(num_requests=16, num_pairs=0, seconds=0.016)
    before = costs.estimate(20, 200, 0)
    costs.learn_scoring(num_requests=1, num_pairs=0, seconds=10.0)
    assert costs.estimate(20, 200, 0) == before


def test_slow_batches_are_forgotten_with_the_first_fast_one() -> None:
    costs = CostModel()
    for _ in range(NUM_MEASUREMENTS):
        costs.learn_scoring(num_requests=1, num_pairs=0, seconds=10.0)
    assert costs.request.seconds == 10.0
    costs.learn_scoring(num_requests=1, num_pairs=0, seconds=0.001)
    assert costs.request.seconds == 0.001


def test_a_model_that_became_slower_is_known_after_some_batches() -> None:
    costs = CostModel()
    costs.learn_encoding(MANY_EVENTS, 0.02)
    for _ in range(NUM_MEASUREMENTS):
        costs.learn_encoding(MANY_EVENTS, 0.2)
    assert costs.event.seconds == 0.2 / MANY_EVENTS


def test_a_batch_teaches_the_cost_that_dominates_it() -> None:
    costs = CostModel()
    costs.learn_scoring(num_requests=2, num_pairs=FEW_PAIRS - 1, seconds=0.04)
    assert costs.request.seconds == 0.02
    assert costs.pair.seconds == PAIR_SECONDS
    costs = CostModel()
    costs.learn_scoring(num_requests=2, num_pairs=MANY_PAIRS, seconds=10.0)
    assert costs.pair.seconds > PAIR_SECONDS
    assert costs.request.seconds == REQUEST_SECONDS


def test_a_batch_without_pairs_or_events_teaches_nothing_of_them() -> None:
    costs = CostModel()
    costs.learn_encoding(0, 1.0)
    costs.learn_scoring(num_requests=1, num_pairs=FEW_PAIRS, seconds=1.0)
    assert costs.estimate(0, 0, 0) == REQUEST_SECONDS
