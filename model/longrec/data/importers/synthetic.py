"""Synthetic dataset with a known ground truth: labels depend on rare, old events.

Each event shows an item, drawn uniformly. With a small probability (`like_rate`) the event is a
"like", otherwise a "view". Each item has one topic. The label of a target is 1 with probability
`p1` if its user liked an item of the same topic before the request. Otherwise the probability is
`p0`. A small bias of the topic shifts both, on the logit scale. Nothing else matters.

Likes are rare: about half of the (user, topic) pairs have one in a full history. A model that
sees only the last events must guess, so longer histories provably help.

Because the probabilities are known, so is the best AUC that any model can reach at each history
length (see `ground_truth`). It is measured on the targets of the latest requests, the share
`EVAL_FRACTION` of all. It is exact up to the sampling of these labels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longrec.data.columns import Int64, timestamp_column
from longrec.data.dataset_writer import DatasetWriter
from longrec.data.importers.ground_truth import (
    GroundTruth,
    auc,
    default_like_rate,
    find_last_likes,
)
from longrec.data.shards import ROWS_PER_PART, num_parts_for, part_of
from longrec.data.timelines import Mask, history_lengths
from longrec.errors import ConfigError
from longrec.schema import synthetic_schema

EVAL_FRACTION = 0.2
START_MS = 1_704_067_200_000
"""2024-01-01 UTC, the start of all timelines."""
DURATION_MS = 90 * 86_400_000
"""Duration of a timeline; requests are in its second half."""
NUM_REGIONS = 8
PART_STREAM = 1
"""Number of the random streams of the parts; `ground_truth.TOPIC_STREAM` is 0."""
REGION_STREAM = 2
"""Number of the random stream of the users' regions."""
NUM_DEFAULT_LENGTHS = 6
"""Number of default lengths: the longest history, its half, and so on down to 1/32."""
MAX_COUNT = 10_000_000
MAX_COUNTS = {"num_topics": 100_000, "num_users": 100_000_000}
"""Largest counts other than `MAX_COUNT`."""
MAX_ROWS = 10_000_000_000
ACTIONS = ["view", "like"]


@dataclasses.dataclass(frozen=True, slots=True)
class SyntheticReport:
    """Contents of a synthetic dataset.

    Args:
        path: the dataset directory.
        num_users, num_events, num_items, num_requests, num_targets: sizes.
        like_rate: share of events that are likes.
        liked_topic_share: share of the measured targets with an earlier like on the topic.
        best_possible_auc: rows {"length", "auc"}, by length.
        best_possible_auc_full: best possible AUC with every event.
        facts: facts in dataset.json.
    """

    path: str
    num_users: int
    num_events: int
    num_items: int
    num_requests: int
    num_targets: int
    like_rate: float
    liked_topic_share: float
    best_possible_auc: list[dict[str, float]]
    best_possible_auc_full: float
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)


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
) -> SyntheticReport:
    """Write a synthetic dataset to a directory, replaced at once; return its contents.

    Args:
        out_dir: the dataset directory.
        num_users: number of users. Each has at least half of `events_per_user` events, uniformly.
        events_per_user: largest number of events of one user.
        num_items, num_topics: sizes of the catalogue.
        requests_per_user: number of requests of each user, at uniform times.
        targets_per_request: number of candidates of each request, drawn uniformly from the items.
        like_rate: share of events that are likes; None for the rate at which half of the full
            histories hold a like on a given topic.
        p1, p0: probability of label 1 with and without a like, before the topic's bias.
        lengths: history lengths at which the best possible AUC is measured; None for
            events_per_user and its halves down to 1/32.
        seed: the same seed and arguments give the same files.
        rows_per_part: number of events per part file.

    Raises:
        ConfigError: an argument is out of range.
    """
    sizes = _Sizes(
        num_users=num_users,
        events_per_user=events_per_user,
        num_items=num_items,
        num_topics=num_topics,
        requests_per_user=requests_per_user,
        targets_per_request=targets_per_request,
    )
    _check_probabilities(like_rate, p1, p0)
    measured_lengths = _measured_lengths(lengths, events_per_user)
    if like_rate is None:
        like_rate = default_like_rate(events_per_user, num_topics)
    truth = GroundTruth.draw(
        num_items,
        num_topics,
        like_rate=like_rate,
        base_p1=p1,
        base_p0=p0,
        seed=seed,
    )
    # Users have half to all of `events_per_user`, three quarters on average.
    num_parts = num_parts_for(num_users * events_per_user * 3 // 4, rows_per_part)
    simulation = _Simulation(truth, sizes, seed)
    with DatasetWriter(
        out_dir,
        synthetic_schema(),
        name="synthetic",
        source={
            "kind": "synth",
            **dataclasses.asdict(sizes),
            "like_rate": like_rate,
            "p1": p1,
            "p0": p0,
            "seed": seed,
        },
        num_parts=num_parts,
    ) as writer:
        simulation.write(writer)
        writer.extra_facts = simulation.best_possible_facts(measured_lengths)
    return _report(out_dir, num_users, like_rate, writer.facts)


@dataclasses.dataclass(frozen=True, slots=True)
class _Sizes:
    """Sizes of a synthetic dataset; see `synthesize`."""

    num_users: int
    events_per_user: int
    num_items: int
    num_topics: int
    requests_per_user: int
    targets_per_request: int

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            maximum = MAX_COUNTS.get(name, MAX_COUNT)
            if not 1 <= value <= maximum:
                raise ConfigError(
                    f"{name} is out of range",
                    found=value,
                    expected=f"1 to {maximum:,}",
                )
        num_requests = self.num_users * self.requests_per_user
        _check_num_rows("num_users x events_per_user", self.num_users * self.events_per_user)
        _check_num_rows(
            "num_users x requests_per_user x targets_per_request",
            num_requests * self.targets_per_request,
        )
        if self.num_topics > self.num_items:
            raise ConfigError(
                "num_topics must not be above num_items",
                found=f"{self.num_topics} topics, {self.num_items} items",
            )


@dataclasses.dataclass(frozen=True, slots=True)
class _Events:
    """Events of some users, sorted by (user, time): [E] each."""

    users: Int64
    times: Int64
    items: Int64
    is_like: Mask

    def table(self, first_sequence: int) -> pa.Table:
        """Return the part of events/."""
        codes = pa.array(self.is_like.astype(np.int8))
        actions = pa.DictionaryArray.from_arrays(codes, pa.array(ACTIONS))
        columns = {
            "user_id": self.users,
            "item_id": self.items,
            "timestamp": timestamp_column(self.times),
            "event_seq": first_sequence + np.arange(len(self.users), dtype=np.int64),
            "action": actions.cast(pa.string()),
        }
        return pa.table(columns)


@dataclasses.dataclass(frozen=True, slots=True)
class _Targets:
    """Targets of some requests and the facts that their best prediction needs: int64 [N] each.

    Args:
        requests, users, request_times: request, its user and its time.
        items, topics: candidate and its topic.
        num_events: number of events before the request.
        last_likes: the last like on the topic, see `ground_truth.find_last_likes`.
        labels: 0 or 1.
    """

    requests: Int64
    users: Int64
    request_times: Int64
    items: Int64
    topics: Int64
    num_events: Int64
    last_likes: Int64
    labels: Int64

    def table(self) -> pa.Table:
        """Return the part of targets/."""
        columns = {
            "request_id": self.requests,
            "user_id": self.users,
            "timestamp": timestamp_column(self.request_times),
            "item_id": self.items,
            "label": self.labels.astype(np.int8),
        }
        return pa.table(columns)

    def filter(self, mask: Mask) -> _Targets:
        """Return the masked targets."""
        columns = [getattr(self, field.name)[mask] for field in dataclasses.fields(self)]
        return _Targets(*columns)

    @classmethod
    def concatenate(cls, parts: Sequence[_Targets]) -> _Targets:
        """Return the targets of all parts."""
        columns = {}
        for field in dataclasses.fields(cls):
            columns[field.name] = np.concatenate([getattr(part, field.name) for part in parts])
        return cls(**columns)


class _Simulation:
    """Simulation of users, events and requests, one part at a time; it collects the targets."""

    def __init__(
        self,
        truth: GroundTruth,
        sizes: _Sizes,
        seed: int,
    ) -> None:
        self.truth = truth
        self.sizes = sizes
        self.seed = seed
        self.num_events = 0
        self.num_requests = 0
        self.targets: list[_Targets] = []

    def write(self, writer: DatasetWriter) -> None:
        """Write all parts, the items and the users."""
        users = np.arange(self.sizes.num_users, dtype=np.int64)
        for part in range(writer.num_parts):
            rng = np.random.default_rng([self.seed, PART_STREAM, part])
            users_of_part = users[part_of(users, writer.num_parts) == part]
            events = self._draw_events(users_of_part, rng)
            targets = self._draw_targets(users_of_part, events, rng)
            writer.write_part(
                part,
                events.table(self.num_events),
                targets.table(),
            )
            self.num_events += len(events.users)
            self.num_requests += len(users_of_part) * self.sizes.requests_per_user
            self.targets.append(targets)
        item_ids = np.arange(self.sizes.num_items, dtype=np.int64)
        rng = np.random.default_rng([self.seed, REGION_STREAM])
        regions = rng.integers(0, NUM_REGIONS, self.sizes.num_users)
        items = pa.table({"item_id": item_ids, "topic": self.truth.topics})
        writer.write_entities(items, pa.table({"user_id": users, "region": regions}))

    def best_possible_facts(self, lengths: Sequence[int]) -> dict[str, Any]:
        """Return the best possible AUC at each length and with every event."""
        targets = _latest(_Targets.concatenate(self.targets))
        by_length = [
            {"length": int(length), "auc": self._auc(targets, length)} for length in lengths
        ]
        return {
            "best_possible_auc": by_length,
            "best_possible_auc_full": self._auc(targets, int(targets.num_events.max())),
            "best_possible_num_targets": len(targets.labels),
            "liked_topic_share": float(np.mean(targets.last_likes > 0)),
        }

    def _auc(self, targets: _Targets, length: int) -> float:
        scores = self.truth.posterior(
            targets.topics,
            targets.last_likes,
            targets.num_events,
            length,
        )
        return auc(targets.labels, scores)

    def _draw_events(self, users: Int64, rng: np.random.Generator) -> _Events:
        most = self.sizes.events_per_user
        fewest = math.ceil(most / 2)
        owners = np.repeat(users, rng.integers(fewest, most + 1, len(users)))
        ages = rng.integers(0, DURATION_MS, len(owners))
        # Sorting users and times as one number sorts the times of each user.
        times = START_MS + np.sort(owners * DURATION_MS + ages) % DURATION_MS
        return _Events(
            users=owners,
            times=times,
            items=rng.integers(0, self.sizes.num_items, len(owners)),
            is_like=rng.random(len(owners)) < self.truth.like_rate,
        )

    def _draw_targets(
        self,
        users: Int64,
        events: _Events,
        rng: np.random.Generator,
    ) -> _Targets:
        per_user = self.sizes.requests_per_user
        per_request = self.sizes.targets_per_request
        half = DURATION_MS // 2
        request_times = START_MS + half + rng.integers(0, half, (len(users), per_user))
        request_times = np.sort(request_times, axis=1).ravel()
        request_users = np.repeat(users, per_user)
        num_events = history_lengths(
            events.users,
            events.times,
            request_users,
            request_times,
        )
        requests = self.num_requests + np.arange(len(request_users), dtype=np.int64)
        num_targets = len(request_users) * per_request
        items = rng.integers(0, self.sizes.num_items, num_targets)
        topics = self.truth.topics[items]
        target_users = np.repeat(request_users, per_request)
        target_num_events = np.repeat(num_events, per_request)
        last_likes = find_last_likes(
            (events.users, self.truth.topics[events.items], events.is_like),
            (target_users, topics, target_num_events),
        )
        p = np.where(
            last_likes > 0,
            self.truth.p1[topics],
            self.truth.p0[topics],
        )
        return _Targets(
            requests=np.repeat(requests, per_request),
            users=target_users,
            request_times=np.repeat(request_times, per_request),
            items=items,
            topics=topics,
            num_events=target_num_events,
            last_likes=last_likes,
            labels=(rng.random(num_targets) < p).astype(np.int64),
        )


def _latest(targets: _Targets) -> _Targets:
    """Return the targets of the latest requests, the share `EVAL_FRACTION` of all."""
    _, first = np.unique(targets.requests, return_index=True)
    num_latest = max(1, round(EVAL_FRACTION * len(first)))
    latest_times = np.sort(targets.request_times[first])[-num_latest:]
    return targets.filter(targets.request_times >= latest_times[0])


def _report(
    out_dir: str | Path,
    num_users: int,
    like_rate: float,
    facts: Mapping[str, Any],
) -> SyntheticReport:
    return SyntheticReport(
        path=str(out_dir),
        num_users=num_users,
        num_events=facts["num_events"],
        num_items=facts["num_items"],
        num_requests=facts["num_requests"],
        num_targets=facts["num_targets"],
        like_rate=like_rate,
        liked_topic_share=facts["liked_topic_share"],
        best_possible_auc=facts["best_possible_auc"],
        best_possible_auc_full=facts["best_possible_auc_full"],
        facts=dict(facts),
    )


def _measured_lengths(lengths: Sequence[int] | None, longest: int) -> list[int]:
    """Return the lengths to measure, sorted; by default the longest and its halves."""
    if lengths is None:
        return sorted({max(1, longest >> halving) for halving in range(NUM_DEFAULT_LENGTHS)})
    if not lengths or min(lengths) < 0:
        raise ConfigError("lengths must be one or more lengths of at least 0", found=list(lengths))
    return sorted(set(lengths))


def _check_probabilities(
    like_rate: float | None,
    p1: float,
    p0: float,
) -> None:
    if like_rate is not None and not 0 < like_rate < 1:
        raise ConfigError("like_rate must be between 0 and 1", found=like_rate)
    if not 0 < p0 < p1 < 1:
        raise ConfigError("p0 and p1 must be 0 < p0 < p1 < 1", found=f"p0 {p0}, p1 {p1}")


def _check_num_rows(name: str, num_rows: int) -> None:
    if num_rows > MAX_ROWS:
        raise ConfigError(
            f"{name} is too much to write",
            found=f"{num_rows:,}",
            expected="at most 10^10",
        )
