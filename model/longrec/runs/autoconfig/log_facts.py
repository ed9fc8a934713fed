"""Facts of a dataset that the settings of a run follow from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from longrec.data import location
from longrec.data.dataset import Dataset
from longrec.data.shards import Shard
from longrec.runs.autoconfig.repeats import RepeatRate, measure_repeats


@dataclasses.dataclass(frozen=True, slots=True)
class LogFacts:
    """Facts of a dataset.

    Args:
        name: name of the data.
        num_events, num_users, num_items, num_requests, num_targets: counts.
        history_length: events before a request: `p10`, `p50`, `p90`, `p99`, `max`.
        tasks: label rate by task, the first task first.
        repeats: of the item and its category features; see `RepeatRate`.
    """

    name: str
    num_events: int
    num_users: int
    num_items: int
    num_requests: int
    num_targets: int
    history_length: Mapping[str, int]
    tasks: Mapping[str, float]
    repeats: tuple[RepeatRate, ...]

    @property
    def targets_per_request(self) -> float:
        """Mean number of targets of a request."""
        return self.num_targets / max(self.num_requests, 1)


def measure_log(uri: str) -> LogFacts:
    """Return the facts of a dataset; only its first part of events and targets is read.

    Args:
        uri: directory of a dataset, or its address in an object store.

    Raises:
        DataError: there is no usable dataset.
    """
    metadata: dict[str, Any] = location.read_json(uri, "dataset.json")
    num_parts = max(int(metadata["facts"]["num_parts"]), 1)
    shard = Shard(0, num_parts)
    with location.local_directory(uri, shard) as directory:
        dataset = Dataset.open(directory, shard)
        facts = dataset.facts
        return LogFacts(
            name=dataset.name,
            num_events=facts["num_events"],
            num_users=facts["num_users"],
            num_items=facts["num_items"],
            num_requests=facts["num_requests"],
            num_targets=facts["num_targets"],
            history_length=facts["history_length"],
            tasks={task: facts["label_rates"][task] for task in dataset.schema.task_names},
            repeats=measure_repeats(dataset),
        )
