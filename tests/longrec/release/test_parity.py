"""Test the parity check: the sample, the training forward, and answers that differ."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from longrec.data.histories import Histories
from longrec.release import parity
from longrec.scoring.request import RequestRows
from longrec.scoring.scorer import Scorer
from tests.conftest import LENGTH, ServedWorld
from tests.longrec import small_histories

FAULTY_ANSWER = 5
"""Number of the answer that gets the fault, counted from 1."""


@pytest.fixture()
def histories(tmp_path: Path) -> Histories:
    return Histories.open(small_histories.write(tmp_path / "histories"))


@pytest.mark.parametrize("seed", range(5))
def test_the_sample_holds_the_longest_and_the_shortest_history(
    seed: int, histories: Histories
) -> None:
    requests = histories.requests
    lengths = np.asarray(requests.column("event_end")) - np.asarray(requests.column("event_start"))
    is_eval = np.asarray(requests.column("split")) == "eval"
    chosen = parity.sample_requests(histories, seed, count=6)
    assert is_eval[chosen].all()
    assert 6 <= len(chosen) <= 8
    assert (np.diff(chosen) > 0).all()
    assert lengths[chosen].max() == lengths[is_eval].max()
    assert lengths[chosen].min() == 0


def test_the_sample_is_that_of_its_seed(histories: Histories) -> None:
    first = parity.sample_requests(histories, 0, count=6)
    second = parity.sample_requests(histories, 1, count=6)
    assert not np.array_equal(first, second)
    whole = parity.sample_requests(histories, 1)
    assert np.array_equal(whole, parity.sample_requests(histories, 1))


def test_the_largest_difference_is_infinite_without_finite_scores() -> None:
    long = np.ones((3, 2), np.float32)
    short = np.ones((2, 2), np.float32)
    assert parity._largest_difference([long, short], [long, short - 0.25]) == 0.25
    assert parity._largest_difference([long], [short]) == float("inf")
    assert parity._largest_difference([long], [long * np.nan]) == float("inf")


def test_the_training_forward_gives_the_scores_of_the_evaluation(
    served_world: ServedWorld,
) -> None:
    scorer = Scorer.load(served_world.path / "bundle")
    histories = Histories.open(served_world.path / "histories")
    requests = parity.sample_requests(histories, 3)
    forward = parity.training_forward(scorer, histories, requests)
    predictions = pq.read_table(served_world.path / "evaluation" / "predictions.parquet")
    predicted = predictions.to_pandas()
    request_ids = histories.requests.column("request_id")
    for row, scores in zip(requests.tolist(), forward, strict=True):
        own = predicted[predicted.request_id == request_ids[row].as_py()]
        np.testing.assert_allclose(scores[:, 0], own.label_score, atol=2e-6)


def change_last_score(answer: dict[str, Any]) -> None:
    answer["scores"]["label"][-1] += 2e-4


def reverse_scores(answer: dict[str, Any]) -> None:
    answer["scores"]["label"].reverse()


def drop_score(answer: dict[str, Any]) -> None:
    answer["scores"]["label"].pop()


def make_score_nan(answer: dict[str, Any]) -> None:
    answer["scores"]["label"][0] = float("nan")


def count_one_event_more(answer: dict[str, Any]) -> None:
    answer["history_length"] += 1


def mark_degraded(answer: dict[str, Any]) -> None:
    answer["degraded"] = True


FAULTS = {
    "none": lambda answer: None,
    "one score is off": change_last_score,
    "candidates in another order": reverse_scores,
    "a score is missing": drop_score,
    "a score is NaN": make_score_nan,
    "one event more": count_one_event_more,
    "degraded": mark_degraded,
}


class LocalService:
    """Answers requests from the histories; one answer has a fault."""

    def __init__(self, world: ServedWorld, fault: str) -> None:
        self.scorer = Scorer.load(world.path / "bundle")
        self.histories = Histories.open(world.path / "histories")
        self.users = {user["user_id"]: user for user in self.histories.users.to_pylist()}
        self.fault = fault
        self.num_answers = 0

    def post_rank(
        self,
        host: str,
        port: int,
        body: dict[str, Any],
    ) -> dict[str, Any]:
        user = self.users[body["user_id"]]
        request_time = body["request_time"]
        timeline = self.histories.timeline(user["user_row"])
        candidates = np.array(body["candidates"])
        rows = RequestRows(timeline, user, request_time, candidates)
        is_earlier = np.asarray(rows.history.column("timestamp")) < request_time
        answer = {
            "scores": {"label": self.scorer.score([rows])[0][:, 0].tolist()},
            "history_length": min(int(is_earlier.sum()), LENGTH),
            "degraded": False,
        }
        self.num_answers += 1
        if self.num_answers == FAULTY_ANSWER:
            FAULTS[self.fault](answer)
        return answer


@pytest.mark.parametrize("fault", FAULTS)
def test_parity_passes_only_equal_answers(
    fault: str, served_world: ServedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = LocalService(served_world, fault)
    address = contextlib.nullcontext(("127.0.0.1", 1))
    monkeypatch.setattr(parity, "serve_bento", lambda *_, **__: address)
    monkeypatch.setattr(parity, "post_rank", service.post_rank)
    report = parity.check_parity(
        served_world.path / "bundle",
        served_world.path / "histories",
        tmp_path,
        workdir=tmp_path,
        bound=1e-4,
        seed=0,
    )
    assert report.passed == (fault == "none")
    assert report.scorer_error <= 2e-6
    assert service.num_answers == report.num_requests >= 24
    assert bool(report.problems) == (fault in ("one event more", "degraded"))
