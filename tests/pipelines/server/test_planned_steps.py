"""The steps of our own pipelines, as their specifications list them and a server shows them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from pipelines import compiler
from pipelines.server.planned_steps import compiled_steps, planned_steps
from pipelines.server.run_status import read_run
from tests.pipelines.server.argo_tasks import Step, tasks_of

LOOP = "for-loop-"


def _spec(name: str) -> dict[str, Any]:
    text = (compiler.FOLDER / f"{name}.yaml").read_text()
    graph, _ = yaml.load_all(text, yaml.CSafeLoader)
    return {"pipeline_spec": graph}


def _tasks(spec: dict[str, Any], num_items: int, *, has_default: bool) -> list[dict[str, Any]]:
    """Return the tasks of a run of a pipeline, every condition true, every step done."""
    steps = []
    for planned in planned_steps(spec):
        loops = [index for index, name in enumerate(planned.place) if name.startswith(LOOP)]
        behind = loops[-1] + 1 if loops else 0
        for number in range(num_items if loops else 1):
            item = (f"iteration-iterations({number}:{number})", "iteration-item")
            inside = item if loops else ()
            place = (*planned.place[:behind], *inside, *planned.place[behind:])
            steps.append(Step(planned.step, place=place))
    return tasks_of(steps, has_default=has_default)


@pytest.mark.parametrize("has_default", [True, False])
@pytest.mark.parametrize("num_items", [1, 4])
@pytest.mark.parametrize("name", compiler.PIPELINES)
def test_every_step_of_a_pipeline_is_one_line(name: str, num_items: int, has_default: bool) -> None:
    spec = _spec(name)
    run = {
        "run_id": "r1",
        "state": "RUNNING",
        "pipeline_spec": spec,
        "run_details": {"task_details": _tasks(spec, num_items, has_default=has_default)},
    }
    steps = read_run(run, "", None).steps
    planned = planned_steps(spec)
    assert [step.name for step in steps] == [step.step for step in planned]
    assert {step.state for step in steps} == {"SUCCEEDED"}
    in_loops = {step.step for step in planned if any(LOOP in name for name in step.place)}
    assert {step.name for step in steps if step.num_done > 1} == (
        in_loops if num_items > 1 else set()
    )


def test_steps_come_in_the_order_of_their_dependencies() -> None:
    names = [step.step for step in compiled_steps("longrec-training")]
    assert names[0] == "fingerprint"
    assert names[-1] == "finish"
    for before, after in (("publish", "retrieve"), ("train", "evaluate"), ("evaluate", "package")):
        assert names.index(before) < names.index(after)


def test_an_unknown_pipeline_has_no_steps() -> None:
    assert compiled_steps("someone-elses") == ()
    assert planned_steps(None) == []
    assert planned_steps({"pipeline_spec": {"pipelineInfo": {"name": "x"}}}) == []
