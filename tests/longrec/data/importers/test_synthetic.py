"""The synthetic dataset: seeded, drawn from its ground truth, and better with longer histories."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from longrec.data.dataset import Dataset
from longrec.data.importers.ground_truth import GroundTruth
from longrec.data.importers.synthetic import synthesize
from longrec.errors import ConfigError

SMALL = {
    "num_users": 40,
    "events_per_user": 64,
    "num_items": 60,
    "num_topics": 4,
    "requests_per_user": 5,
    "targets_per_request": 6,
}


def test_equal_seeds_give_equal_files_and_other_seeds_others(tmp_path: Path) -> None:
    first = synthesize(tmp_path / "a", **SMALL, seed=1).facts["content_hash"]
    second = synthesize(tmp_path / "b", **SMALL, seed=1).facts["content_hash"]
    other = synthesize(tmp_path / "c", **SMALL, seed=2).facts["content_hash"]
    assert first == second
    assert second != other


def test_several_parts_hold_the_same_kind_of_data(tmp_path: Path) -> None:
    report = synthesize(tmp_path / "d", **SMALL, rows_per_part=500)
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.num_parts == 4
    assert report.num_requests == 200
    assert report.num_targets == 1_200
    ids = np.concatenate([part["request_id"].to_numpy() for part in dataset.target_parts()])
    sequence = np.concatenate([part["event_seq"].to_numpy() for part in dataset.event_parts()])
    assert len(np.unique(ids)) == 200
    assert np.array_equal(np.sort(sequence), np.arange(report.num_events))
    events_per_user = dataset.facts["events_per_user"]
    assert dataset.facts["num_users"] == 40
    assert 32 <= events_per_user["p10"] <= events_per_user["max"] <= 64
    shortest = dataset.facts["history_length"]["p10"]
    assert shortest >= 64 / 2 * 0.3, "every request has a long history"


def test_best_possible_auc_equals_a_brute_force_posterior(tmp_path: Path) -> None:
    seed = 5
    lengths = [0, 1, 4, 16, 64]
    report = synthesize(tmp_path / "d", **SMALL, seed=seed, lengths=lengths)
    truth = GroundTruth.draw(
        60, 4, like_rate=report.like_rate, base_p1=0.88, base_p0=0.12, seed=seed
    )
    dataset = Dataset.open(tmp_path / "d")
    events = dataset.events(0).to_pylist()
    targets = dataset.targets(0).to_pylist()
    topics = {row["item_id"]: row["topic"] for row in dataset.items().to_pylist()}
    request_times = sorted({row["request_id"]: row["timestamp"] for row in targets}.values())
    first_measured = request_times[-len(request_times) // 5]
    measured = [row for row in targets if row["timestamp"] >= first_measured]
    for length, row in zip(lengths, report.best_possible_auc, strict=True):
        scores: dict[int, list[float]] = {0: [], 1: []}
        for target in measured:
            score = _posterior(target, events, topics, truth, length)
            scores[target["label"]].append(score)
        pairs = [
            (high > low) + 0.5 * (high == low)
            for high, low in itertools.product(scores[1], scores[0])
        ]
        assert row["length"] == length
        assert row["auc"] == pytest.approx(np.mean(pairs), abs=1e-9)
    assert report.best_possible_auc_full == report.best_possible_auc[-1]["auc"]


def _posterior(
    target: dict,
    events: list[dict],
    topics: dict[int, int],
    truth: GroundTruth,
    length: int,
) -> float:
    """Return the probability of label 1 given the last events, one event after another."""
    history = [
        event
        for event in events
        if event["user_id"] == target["user_id"] and event["timestamp"] < target["timestamp"]
    ]
    topic = topics[target["item_id"]]
    num_seen = min(length, len(history))
    seen = history[len(history) - num_seen :]
    num_unseen = len(history) - num_seen
    sees_like = any(
        event["action"] == "like" and topics[event["item_id"]] == topic for event in seen
    )
    share = sum(value == topic for value in topics.values()) / len(topics)
    p_unseen_like = 1 - (1 - truth.like_rate * share) ** num_unseen
    p_like = 1.0 if sees_like else p_unseen_like
    return p_like * truth.p1[topic] + (1 - p_like) * truth.p0[topic]


def test_labels_follow_the_ground_truth(tmp_path: Path) -> None:
    report = synthesize(
        tmp_path / "d",
        num_users=300,
        events_per_user=200,
        num_items=50,
        num_topics=5,
        requests_per_user=10,
        targets_per_request=20,
        p1=0.8,
        p0=0.3,
    )
    truth = GroundTruth.draw(50, 5, like_rate=report.like_rate, base_p1=0.8, base_p0=0.3, seed=0)
    dataset = Dataset.open(tmp_path / "d")
    topics = dataset.items()["topic"].to_numpy()
    events = dataset.events(0).to_pandas()
    targets = dataset.targets(0).to_pandas()
    likes = events[events.action == "like"]
    likes = likes.assign(topic=topics[likes.item_id])
    first_likes = likes.groupby(["user_id", "topic"]).timestamp.min()
    target_topics = topics[targets.item_id]
    pairs = list(zip(targets.user_id, target_topics, strict=True))
    liked_before = first_likes.reindex(pairs).to_numpy() < targets.timestamp.to_numpy()
    for topic, has_like in itertools.product(range(5), (True, False)):
        labels = targets.label[(target_topics == topic) & (liked_before == has_like)]
        expected = (truth.p1 if has_like else truth.p0)[topic]
        tolerance = 4 * np.sqrt(0.25 / len(labels))
        assert abs(labels.mean() - expected) < tolerance, (topic, has_like)
    assert abs(events.action.eq("like").mean() - report.like_rate) < 0.01


def test_longer_histories_help_and_half_of_them_decide(tmp_path: Path) -> None:
    report = synthesize(tmp_path / "d")
    aucs = [row["auc"] for row in report.best_possible_auc]
    lengths = [row["length"] for row in report.best_possible_auc]
    assert lengths == [32, 64, 128, 256, 512, 1024]
    assert aucs == sorted(aucs)
    assert min(np.diff(aucs)) > 0.01
    assert aucs[0] < 0.63
    assert 0.85 < report.best_possible_auc_full < 0.92
    assert aucs[-1] == report.best_possible_auc_full
    assert 0.45 < report.liked_topic_share < 0.55


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_users": 0}, "num_users"),
        ({"events_per_user": -5}, "events_per_user"),
        ({"num_topics": 99}, "num_topics"),
        ({"like_rate": 1.5}, "like_rate"),
        ({"p0": 0.9}, "p0"),
        ({"lengths": []}, "lengths"),
        ({"num_users": 10**8, "events_per_user": 10**6}, "10\\^10"),
        ({"targets_per_request": 10**9}, "targets_per_request"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(
    tmp_path: Path,
    change: dict[str, object],
    words: str,
) -> None:
    with pytest.raises(ConfigError, match=words):
        synthesize(tmp_path / "d", **{**SMALL, **change})
    assert not list(tmp_path.iterdir())
