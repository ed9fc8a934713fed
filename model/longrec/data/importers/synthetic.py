"""A synthetic dataset: a data set whose labels depend on rare, old events, with the best AUC that any
model can reach at each length.

Every event is an item drawn uniformly; with a small probability (`like_rate`) it is a "like",
otherwise a "view". An item has
one topic. The label of a target is 1 with probability `p1` if its user liked any item of the
target's topic strictly before
the request, else with `p0` (both shifted by a small bias of the topic, on the logit scale). Nothing
else matters. Likes are so
rare that about half of the (user, topic) pairs have one in a full history: who sees only the last
events is left guessing.

What is best: given the last l of n events, with or without a like on the topic among them,
P(y = 1) = p1 where there is one, else p1 - (p1 - p0) (1 - rho)^(n - l), rho = like_rate * share of
the topic. Its AUC is exact
up to the sampling of the labels it is measured on: the targets of the latest `EVAL_FRACTION` of the
requests.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.data.dataset import (
    ROWS_PER_PART,
    TIMESTAMP_TYPE,
    DatasetWriter,
    history_lengths,
    part_of,
    parts_for,
)
from longrec.errors import ConfigError
from longrec.schema import synthetic_schema

EVAL_FRACTION = 0.2
START_MS = 1_704_067_200_000
"""2024-01-01 UTC; timelines last `DURATION_MS` from it, requests lie in the second half."""
DURATION_MS = 90 * 86_400_000
NUM_REGIONS = 8
TOPIC_BIAS = 0.4
"""Standard deviation of the topics' biases, in logits."""

_BOUNDS = {"num_topics": 100_000, "num_users": 100_000_000}
"""Largest counts; 10 million for the others."""

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class SynthReport:
    """What `synthesize` wrote.

    Args:
        path: the dataset directory.
        num_users, num_events, num_items, num_requests, num_targets: counts.
        like_rate: share of events that are likes.
        full_share: share of the measured targets whose user liked the topic before the request.
        best_possible_auc: rows {"length", "auc"}, by length.
        best_possible_auc_full: the best AUC that sees every event.
        facts: of dataset.json.
    """

    path: str
    num_users: int
    num_events: int
    num_items: int
    num_requests: int
    num_targets: int
    like_rate: float
    full_share: float
    best_possible_auc: list[dict[str, float]]
    best_possible_auc_full: float
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """The rules of one synthetic dataset.

    Args:
        topics: int64 [num_items], topic of item i (item ids are 0..num_items-1).
        shares: float64 [T], share of the items in each topic.
        like_rate: share of events that are likes.
        p1, p0: float64 [T], P(y = 1) with and without a like on the topic.
    """

    topics: Int64
    shares: Float64
    like_rate: float
    p1: Float64
    p0: Float64

    def posterior(
        self, topics: Int64, since_like: Int64, num_events: Int64, length: int
    ) -> Float64:
        """Returns P(y = 1 | the last `length` events, and how many there are), float64 [N].

        Args:
            topics: int64 [N], of the targets.
            since_like: int64 [N], place from the end of the last like on the topic (1 = last
                event); 0 where there is none.
            num_events: int64 [N], events before the request.
            length: events seen.
        """
        unseen = np.maximum(num_events - length, 0)
        none_unseen = (1 - self.like_rate * self.shares[topics]) ** unseen
        seen = (since_like > 0) & (since_like <= length)
        return np.where(
            seen, self.p1[topics], self.p1[topics] - (self.p1 - self.p0)[topics] * none_unseen
        )


def synthesize(
    out_dir: str | Path,
    *,
    num_users: int = 400,
    events_per_user: int = 1_024,
    num_items: int = 2_000,
    num_topics: int = 8,
    requests_per_user: int = 8,
    targets_per_request: int = 16,
    like_rate: float | None = None,
    p1: float = 0.88,
    p0: float = 0.12,
    lengths: Sequence[int] | None = None,
    seed: int = 0,
    rows_per_part: int = ROWS_PER_PART,
) -> SynthReport:
    """Writes a synthetic data set to `out_dir` (replacing it at once) and returns what is in it.

    Args:
        out_dir: the dataset directory.
        num_users: users; each has between half of `events_per_user` and all of it, uniformly.
        events_per_user: most events of one user.
        num_items, num_topics: size of the catalogue.
        requests_per_user: requests of each user, at uniform moments in the second half of the time.
        targets_per_request: candidates of each, items drawn uniformly.
        like_rate: share of events that are likes; None for the one that makes half of the full
            histories hold one on a given topic.
        p1, p0: P(y = 1) with and without a like on the topic, before the topics' biases.
        lengths: where the Bayes AUC is measured; None for events_per_user halved down to 1/32.
        seed: same seed and arguments, same files.
        rows_per_part: events per part file.

    Raises:
        ConfigError: an argument is out of its bounds.
    """
    counts = {
        "num_users": num_users,
        "events_per_user": events_per_user,
        "num_items": num_items,
        "num_topics": num_topics,
        "requests_per_user": requests_per_user,
        "targets_per_request": targets_per_request,
    }
    _check(counts, like_rate, p1, p0, lengths)
    world = _world(
        num_items,
        num_topics,
        _like_rate(events_per_user, num_topics) if like_rate is None else like_rate,
        p1,
        p0,
        seed,
    )
    lengths = _halvings(events_per_user) if lengths is None else sorted(set(lengths))
    num_parts = parts_for(num_users * events_per_user * 3 // 4, rows_per_part)
    source = {
        "kind": "synth",
        **counts,
        "like_rate": world.like_rate,
        "p1": p1,
        "p0": p0,
        "seed": seed,
    }
    users, collected = np.arange(num_users, dtype=np.int64), _Collected()
    with DatasetWriter(
        out_dir, synthetic_schema(), name="synthetic", source=source, num_parts=num_parts
    ) as writer:
        for part in range(num_parts):
            mine = users[part_of(users, num_parts) == part]
            writer.write_part(
                part, *_part(world, mine, counts, np.random.default_rng([seed, 1, part]), collected)
            )
        items = pa.table({"item_id": np.arange(num_items, dtype=np.int64), "topic": world.topics})
        regions = np.random.default_rng([seed, 2]).integers(0, NUM_REGIONS, num_users)
        writer.write_entities(items, pa.table({"user_id": users, "region": regions}))
        writer.extra_facts = collected.measure(world, lengths)
    facts = writer.facts
    return SynthReport(
        path=str(out_dir),
        num_users=num_users,
        num_events=facts["num_events"],
        num_items=num_items,
        num_requests=facts["num_requests"],
        num_targets=facts["num_targets"],
        like_rate=world.like_rate,
        full_share=facts["bayes_full_share"],
        best_possible_auc=facts["best_possible_auc"],
        best_possible_auc_full=facts["best_possible_auc_full"],
        facts=facts,
    )


class _Collected:
    """What the Bayes AUC needs of every target: moment, topic, place of the last like, events,
    label.
    """

    def __init__(self) -> None:
        self.num_events = self.num_requests = 0
        self.rows: list[tuple[Int64, ...]] = []

    def measure(self, world: World, lengths: Sequence[int]) -> dict[str, Any]:
        """Returns the facts: Bayes AUC at each length and at full length, on the latest
        requests.
        """
        requests, request_times, topics, since, available, labels = (
            np.concatenate(parts) for parts in zip(*self.rows, strict=True)
        )
        _, first = np.unique(requests, return_index=True)
        latest = np.sort(request_times[first])[-max(1, round(EVAL_FRACTION * len(first)))]
        kept = request_times >= latest
        topics, since, available, labels = topics[kept], since[kept], available[kept], labels[kept]

        def auc(length: int) -> float:
            return _auc(labels, world.posterior(topics, since, available, length))

        return {
            "best_possible_auc": [
                {"length": int(length), "auc": auc(length)} for length in lengths
            ],
            "best_possible_auc_full": auc(int(available.max())),
            "bayes_num_targets": len(labels),
            "bayes_full_share": float(np.mean(since > 0)),
        }


def _part(
    world: World,
    users: Int64,
    counts: dict[str, int],
    rng: np.random.Generator,
    collected: _Collected,
) -> tuple[pa.Table, pa.Table]:
    """Returns the events and the targets of some users, sorted as a part is."""
    owners = np.repeat(
        users,
        rng.integers(-(-counts["events_per_user"] // 2), counts["events_per_user"] + 1, len(users)),
    )
    times = (
        START_MS
        + np.sort(owners * DURATION_MS + rng.integers(0, DURATION_MS, len(owners))) % DURATION_MS
    )
    items = rng.integers(0, len(world.topics), len(owners))
    likes = rng.random(len(owners)) < world.like_rate
    request_times = (
        START_MS
        + DURATION_MS // 2
        + rng.integers(0, DURATION_MS // 2, (len(users), counts["requests_per_user"]))
    )
    request_times = np.sort(request_times, axis=1).ravel()
    askers = np.repeat(users, counts["requests_per_user"])
    available = history_lengths(owners, times, askers, request_times)
    shape = (len(askers), counts["targets_per_request"])
    candidates = rng.integers(0, len(world.topics), shape)
    topics = world.topics[candidates]
    since = _since_like(
        owners,
        world.topics[items],
        likes,
        np.repeat(askers, shape[1]),
        topics.ravel(),
        np.repeat(available, shape[1]),
    )
    labels = (
        rng.random(shape) < np.where(since.reshape(shape) > 0, world.p1[topics], world.p0[topics])
    ).astype(np.int8)
    requests = collected.num_requests + np.arange(len(askers), dtype=np.int64)
    sequence = collected.num_events + np.arange(len(owners), dtype=np.int64)
    per_target = [
        np.repeat(column, shape[1]) for column in (requests, askers, request_times, available)
    ]
    collected.rows.append(
        (
            per_target[0],
            per_target[2],
            topics.ravel(),
            since,
            per_target[3],
            labels.ravel().astype(np.int64),
        )
    )
    collected.num_requests, collected.num_events = (
        collected.num_requests + len(askers),
        collected.num_events + len(owners),
    )
    actions = pa.DictionaryArray.from_arrays(
        pa.array(likes.astype(np.int8)), pa.array(["view", "like"])
    ).cast(pa.string())
    return (
        pa.table(
            {
                "user_id": owners,
                "item_id": items,
                "timestamp": _times(times),
                "event_seq": sequence,
                "action": actions,
            }
        ),
        pa.table(
            {
                "request_id": per_target[0],
                "user_id": per_target[1],
                "timestamp": _times(per_target[2]),
                "item_id": candidates.ravel(),
                "label": labels.ravel(),
            }
        ),
    )


def _since_like(
    owners: Int64,
    topics: Int64,
    likes: npt.NDArray[np.bool_],
    askers: Int64,
    asked: Int64,
    available: Int64,
) -> Int64:
    """Returns, per target, the place from the end of its last like on the topic within its history,
    int64; 0 where there is none.

    Args:
        owners, topics, likes: user, topic and like of each event, sorted by (user, time).
        askers, asked, available: user, topic and number of events before the request of each
            target.
    """
    users = np.unique(askers)
    places = np.arange(len(owners)) - np.searchsorted(owners, owners)
    span = int(max(places.max(initial=0), available.max(initial=0))) + 1
    num_topics = int(max(topics.max(initial=0), asked.max(initial=0))) + 1
    keys = np.sort(((np.searchsorted(users, owners) * num_topics + topics) * span + places)[likes])
    group = np.searchsorted(users, askers) * num_topics + asked
    found = np.searchsorted(keys, group * span + available) - 1
    last = keys[np.maximum(found, 0)] if len(keys) else np.full(len(group), -1)
    hit = (found >= 0) & (last // span == group)
    return np.where(hit, available - last % span, 0).astype(np.int64)


def _world(
    num_items: int, num_topics: int, like_rate: float, p1: float, p0: float, seed: int
) -> World:
    rng = np.random.default_rng([seed, 0])
    topics = rng.permutation(np.arange(num_items, dtype=np.int64) % num_topics)
    bias = rng.normal(0, TOPIC_BIAS, num_topics)
    high, low = (1 / (1 + np.exp(-(math.log(p / (1 - p)) + bias))) for p in (p1, p0))
    return World(
        topics, np.bincount(topics, minlength=num_topics) / num_items, like_rate, high, low
    )


def _like_rate(events_per_user: int, num_topics: int) -> float:
    """Returns the rate at which half of the histories of the latest requests hold a like on a given
    topic.
    """
    return min(0.5, num_topics * math.log(2) / (0.7 * events_per_user))


def _halvings(longest: int) -> list[int]:
    return sorted({max(1, longest >> shift) for shift in range(6)})


def _times(values: Int64) -> pa.Array:
    return pa.array(values, pa.int64()).cast(pa.timestamp("ms")).cast(TIMESTAMP_TYPE)


def _auc(labels: Int64, scores: Float64) -> float:
    """Returns the AUC (ties count half); 0.5 where one class is absent."""
    positives = int(labels.sum())
    if positives in (0, len(labels)):
        return 0.5
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    total = float(ranks[inverse][labels == 1].sum())
    return (total - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))


def _check(
    counts: dict[str, int],
    like_rate: float | None,
    p1: float,
    p0: float,
    lengths: Sequence[int] | None,
) -> None:
    for name, value in counts.items():
        if not 1 <= value <= _BOUNDS.get(name, 10_000_000):
            raise ConfigError(
                f"{name} is out of its bounds",
                found=value,
                expected=f"1 to {_BOUNDS.get(name, 10_000_000):,}",
            )
    events, targets = (
        counts["num_users"] * counts["events_per_user"],
        counts["num_users"] * counts["requests_per_user"] * counts["targets_per_request"],
    )
    for name, value in (
        ("num_users x events_per_user", events),
        ("num_users x requests_per_user x targets_per_request", targets),
    ):
        if value > 10_000_000_000:
            raise ConfigError(
                f"{name} is too much to write", found=f"{value:,}", expected="at most 10^10"
            )
    if counts["num_topics"] > counts["num_items"]:
        raise ConfigError(
            "num_topics must not be above num_items",
            found=f"{counts['num_topics']} topics, {counts['num_items']} items",
        )
    if like_rate is not None and not 0 < like_rate < 1:
        raise ConfigError("like_rate must be between 0 and 1", found=like_rate)
    if not 0 < p0 < p1 < 1:
        raise ConfigError("p0 and p1 must be 0 < p0 < p1 < 1", found=f"p0 {p0}, p1 {p1}")
    if lengths is not None and (not lengths or min(lengths) < 0):
        raise ConfigError("lengths must be one or more lengths of at least 0", found=list(lengths))
