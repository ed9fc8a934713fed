"""The synthetic dataset: the same for one seed, and a Bayes AUC that is right and rises with the
length.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from longrec.data.dataset import Dataset
from longrec.data.importers.synthetic import _world, synthesize
from longrec.errors import ConfigError

SMALL = {
    "num_users": 40,
    "events_per_user": 64,
    "num_items": 60,
    "num_topics": 4,
    "requests_per_user": 5,
    "targets_per_request": 6,
}


def test_same_seed_same_files_other_seed_other_files(tmp_path: Path) -> None:
    hashes = [
        synthesize(tmp_path / name, **SMALL, seed=seed).facts["content_hash"]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_several_parts_hold_the_same_kind_of_world(tmp_path: Path) -> None:
    report = synthesize(tmp_path / "d", **SMALL, rows_per_part=500)
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.num_parts == 4 and report.num_requests == 200 and report.num_targets == 1_200
    ids = np.concatenate([part["request_id"].to_numpy() for part in dataset.target_parts()])
    sequence = np.concatenate([part["event_seq"].to_numpy() for part in dataset.event_parts()])
    assert len(np.unique(ids)) == 200 and np.array_equal(
        np.sort(sequence), np.arange(report.num_events)
    )
    lengths = dataset.facts["events_per_user"]
    assert dataset.facts["num_users"] == 40 and 32 <= lengths["p10"] <= lengths["max"] <= 64
    assert dataset.facts["history_length"]["p10"] >= 64 / 2 * 0.3, (
        "every request has a long history"
    )


def test_bayes_auc_is_that_of_a_brute_force_posterior(tmp_path: Path) -> None:
    seed, lengths = 5, [0, 1, 4, 16, 64]
    report = synthesize(tmp_path / "d", **SMALL, seed=seed, lengths=lengths)
    world = _world(60, 4, report.like_rate, 0.88, 0.12, seed)
    dataset = Dataset.open(tmp_path / "d")
    events = dataset.events(0).to_pylist()
    targets = dataset.targets(0).to_pylist()
    request_times = sorted({row["request_id"]: row["timestamp"] for row in targets}.values())
    measured = [
        row for row in targets if row["timestamp"] >= request_times[-len(request_times) // 5]
    ]
    topics = dict(
        zip(
            dataset.items()["item_id"].to_pylist(),
            dataset.items()["topic"].to_pylist(),
            strict=True,
        )
    )
    for length, row in zip(lengths, report.best_possible_auc, strict=True):
        scores = []
        for target in measured:
            history = [
                event
                for event in events
                if event["user_id"] == target["user_id"]
                and event["timestamp"] < target["timestamp"]
            ]
            topic = topics[target["item_id"]]
            seen, unseen = (
                history[len(history) - min(length, len(history)) :],
                max(len(history) - length, 0),
            )
            liked = any(
                event["action"] == "like" and topics[event["item_id"]] == topic for event in seen
            )
            share = sum(value == topic for value in topics.values()) / len(topics)
            chance = 1.0 if liked else 1 - (1 - report.like_rate * share) ** unseen
            scores.append(chance * world.p1[topic] + (1 - chance) * world.p0[topic])
        positive, negative = (
            [
                score
                for score, target in zip(scores, measured, strict=True)
                if target["label"] == label
            ]
            for label in (1, 0)
        )
        pairs = [
            (high > low) + 0.5 * (high == low)
            for high, low in itertools.product(positive, negative)
        ]
        assert row["length"] == length and row["auc"] == pytest.approx(np.mean(pairs), abs=1e-9)
    assert report.best_possible_auc_full == report.best_possible_auc[-1]["auc"]


def test_labels_follow_the_planted_rule(tmp_path: Path) -> None:
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
    world = _world(50, 5, report.like_rate, 0.8, 0.3, 0)
    dataset = Dataset.open(tmp_path / "d")
    topics = dataset.items()["topic"].to_numpy()
    events, targets = dataset.events(0).to_pandas(), dataset.targets(0).to_pandas()
    likes = (
        events[events.action == "like"]
        .assign(topic=lambda table: topics[table.item_id])
        .groupby(["user_id", "topic"])
        .timestamp.min()
    )
    first = likes.reindex(
        list(zip(targets.user_id, topics[targets.item_id], strict=True))
    ).to_numpy()
    liked = first < targets.timestamp.to_numpy()
    for topic, has_like in itertools.product(range(5), (True, False)):
        group = targets.label[(topics[targets.item_id] == topic) & (liked == has_like)]
        expected = (world.p1 if has_like else world.p0)[topic]
        assert abs(group.mean() - expected) < 4 * np.sqrt(0.25 / len(group)), (topic, has_like)
    assert abs(events.action.eq("like").mean() - report.like_rate) < 0.01


def test_longer_histories_help_and_half_of_them_decide(tmp_path: Path) -> None:
    report = synthesize(tmp_path / "d")
    aucs = [row["auc"] for row in report.best_possible_auc]
    assert [row["length"] for row in report.best_possible_auc] == [32, 64, 128, 256, 512, 1024]
    assert aucs == sorted(aucs) and min(np.diff(aucs)) > 0.01
    assert (
        aucs[0] < 0.63
        and 0.85 < report.best_possible_auc_full < 0.92
        and aucs[-1] == report.best_possible_auc_full
    )
    assert 0.45 < report.full_share < 0.55


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
def test_silly_arguments_are_refused_at_once(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        synthesize(tmp_path / "d", **{**SMALL, **change})
    assert not list(tmp_path.iterdir())
