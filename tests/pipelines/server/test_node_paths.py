"""Paths of nodes are recovered from the ids that tasks name."""

from __future__ import annotations

import pytest

from longrec.runs.record.nodes import step_items
from pipelines.server.node_paths import fnv1a, nodes_of
from tests.pipelines.server.argo_tasks import Step, executor_paths, loop_steps, tasks_of
from tests.pipelines.server.recorded import NAMES, load

STALE = ("four-shards-over-1MiB", "study-failed-over-1MiB")


@pytest.mark.parametrize("name", NAMES)
def test_the_paths_of_all_pods_that_ran_are_found(name: str) -> None:
    record = load(name)
    found = {node.path for node in nodes_of((record.run["run_details"])["task_details"])}
    missing = set(record.nodes.values()) - found
    assert missing == set() or name in STALE


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(STALE)))
def test_every_named_task_finds_its_node(name: str) -> None:
    tasks = [task for task in load(name).run["run_details"]["task_details"] if "state" in task]
    with_state = [node for node in nodes_of(tasks) if node.state]
    assert len(with_state) == len(tasks)


def test_a_cached_item_of_a_loop_is_told_from_one_that_ran() -> None:
    states = ["CACHED", "SUCCEEDED", "CACHED"]
    tasks = tasks_of(loop_steps("retrieve", "for-loop-2", states), has_default=False)
    items = sorted(step_items(nodes_of(tasks)), key=lambda item: item.frames)
    assert [item.state for item in items] == states


def test_attempts_are_in_their_order() -> None:
    step = Step("train", attempts=10)
    (item,) = step_items(nodes_of(tasks_of([step])))
    assert list(item.attempts) == executor_paths(step)


def test_ids_are_fnv_hashes_of_paths() -> None:
    assert fnv1a("a") == 0xE40C292C
    assert fnv1a("foobar") == fnv1a("bar", fnv1a("foo")) == 0xBF9CF968
