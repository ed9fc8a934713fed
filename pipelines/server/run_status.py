"""The status of a run on a Kubeflow Pipelines server: its steps as the user knows them."""

import dataclasses
import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

from longrec.runs.record.nodes import (
    DONE,
    FAILED,
    RUNNING,
    SKIPPED,
    SUCCEEDED,
    WAITING,
    StepItem,
    failed_frames,
    step_items,
)
from longrec.runs.steps import STEPS
from pipelines.server.node_paths import nodes_of, time_of, workflow_of
from pipelines.server.planned_steps import PlannedStep, compiled_steps, planned_steps
from pipelines.server.pod_logs import FIRST, assumed_items
from pipelines.server.typed_tasks import is_typed, typed_items

REFUSED = "REFUSED"
"""State of a run that succeeded without a package, because the gate refused the model."""
ENDED = (
    SUCCEEDED,
    FAILED,
    "CANCELED",
    SKIPPED,
    REFUSED,
)
PENDING = "PENDING"
NOT_RUN = "NOT RUN"
"""State of a step that did not start in a run that has ended."""
UNKNOWN = "UNKNOWN"
"""State of a step of which the server knows no more."""
GATED = "evaluate"
PACKAGE = "package"
"""The step below the condition that the gate passed, which the step evaluate decides."""
MAX_ASSUMED_ITEMS = 4
"""Items of a loop that are looked for if their number is unknown."""
STALE_AFTER = datetime.timedelta(seconds=60)
LAST = datetime.datetime.max.replace(tzinfo=datetime.UTC)
STALE_NOTE = (
    "the server's list of steps stands still since {time}: it has shown nothing new of this run "
    "since then. Argo stores a workflow above 1 MiB compressed, which the server does not read. "
    "Fewer loop items (platform.parallelism, data.shards) keep it below."
)
NOT_STARTED_NOTE = "the server has accepted the run; no step has started"
REFUSED_NOTE = "the gate refused the model: nothing was packaged"


@dataclasses.dataclass(frozen=True, slots=True)
class StepStatus:
    """The status of one step of a run.

    Args:
        name: name of the step.
        state: RUNNING, SUCCEEDED, CACHED, SKIPPED, FAILED, WAITING, NOT RUN or UNKNOWN.
        num_done: number of its loop items with results; 1 or 0 without a loop.
        num_items: number of its loop items; 1 without a loop.
        seconds: from its start to its end; None until it ends.
        error: last line of its error; empty if it is unknown.
    """

    name: str
    state: str
    num_done: int = 0
    num_items: int = 1
    seconds: Optional[float] = None
    error: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class RunStatus:
    """The status of a run; `steps` in their order, `notes` for the reader.

    `is_stale` means that the run went on, but the server's steps did not.
    """

    run_id: str
    pipeline: str
    name: str
    state: str
    created: str
    error: str
    url: str
    steps: tuple[StepStatus, ...] = ()
    notes: tuple[str, ...] = ()
    is_stale: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class RunSteps:
    """The steps of a run of the server's API, each item of a loop by itself.

    Args:
        run: the run as JSON.
        spec: specification of its pipeline, if it is known.
    """

    run: Mapping[str, Any]
    spec: Optional[Mapping[str, Any]] = None

    @property
    def tasks(self) -> Sequence[Mapping[str, Any]]:
        return (self.run.get("run_details") or {}).get("task_details") or []

    @property
    def workflow(self) -> str:
        """Name of the workflow; empty if the server names none."""
        return workflow_of(self.tasks)

    @property
    def planned(self) -> list[PlannedStep]:
        """The steps of the specification; empty if the server does not give it."""
        return planned_steps(self.spec or self.run.get("pipeline_spec"))

    @property
    def expected(self) -> list[PlannedStep]:
        """The steps of the specification, or else of the pipeline as this version compiles it."""
        return self.planned or list(compiled_steps(pipeline_name(self.run)))

    @property
    def closed(self) -> set[str]:
        """Names of the conditions that were false."""
        return {
            str(task.get("display_name") or task.get("name"))
            for task in self.tasks
            if str(task.get("state") or task.get("status")) == SKIPPED and _is_condition(task)
        }

    @property
    def skipped(self) -> list[str]:
        """Names of the steps below conditions that were false.

        Without a specification, only the gate's condition is known.
        """
        closed = self.closed
        names = {item.step for item in self.items()}
        if not self.planned and closed and GATED in names and PACKAGE not in names:
            return [PACKAGE]
        return [step.step for step in self.planned if closed.intersection(step.place)]

    def assumed_items(self, step: str) -> list[StepItem]:
        """Return where the pods of a step must be that the server does not list."""
        named = [task for task in self.tasks if task.get("display_name")]
        has_default = any(task["display_name"] == f"root{FIRST}" for task in named)
        workflow = self.workflow
        totals = _totals(
            self.items(),
            self.expected,
            self.run,
        )
        places = [
            (entry.place, totals.get(step, MAX_ASSUMED_ITEMS))
            for entry in self.expected
            if entry.step == step
        ]
        return assumed_items(
            step,
            f"{workflow}{FIRST}" if has_default else workflow,
            places,
        )

    def items(self) -> list[StepItem]:
        """Return the steps that the server knows, in the order of their items."""
        if is_typed(self.tasks):
            items = typed_items(self.tasks)
        else:
            nodes = nodes_of(self.tasks)
            items = [*step_items(nodes), *failed_frames(nodes)]
        return sorted(items, key=lambda item: item.frames)


def read_run(run: Mapping[str, Any], url: str, spec: Optional[Mapping[str, Any]]) -> RunStatus:
    """Return the status in a run of the server's API.

    Args:
        run: the run as JSON.
        url: its page.
        spec: specification of its pipeline, if the run holds none itself.
    """
    found = RunSteps(run, spec)
    state = str(run.get("state") or PENDING)
    is_stale = bool(found.tasks) and _is_stale(found.tasks, state)
    steps = _steps(
        found,
        state,
        is_stale,
    )
    is_refused = state == SUCCEEDED and _is_refused(steps)
    return RunStatus(
        run_id=run["run_id"],
        pipeline=pipeline_name(run) or pipeline_name({"pipeline_spec": spec}),
        name=str(run.get("display_name") or ""),
        state=REFUSED if is_refused else state,
        created=str(run.get("created_at") or ""),
        error=str((run.get("error") or {}).get("message") or ""),
        url=url,
        steps=tuple(steps),
        notes=tuple(
            _notes(
                found.tasks,
                is_stale,
                is_refused,
            )
        ),
        is_stale=is_stale,
    )


def pipeline_name(run: Mapping[str, Any]) -> str:
    """Return the name in the specification that a run of the server's API holds, if any."""
    spec = run.get("pipeline_spec") or {}
    graph = spec.get("pipeline_spec") or spec
    return str(graph.get("pipelineInfo", {}).get("name") or "")


def _steps(found: RunSteps, run_state: str, is_stale: bool) -> list[StepStatus]:
    items = found.items()
    planned = found.planned
    by_step: dict[str, list[StepItem]] = {step.step: [] for step in planned}
    for item in sorted(items, key=_order):
        by_step.setdefault(item.step, []).append(item)
    skipped = found.skipped
    for name in skipped:
        by_step.setdefault(name, [])
    totals = _totals(
        items,
        found.expected,
        found.run,
    )
    folded = [
        _folded(
            name,
            entries,
            totals.get(name, 1),
        )
        for name, entries in by_step.items()
    ]
    return [
        _seen_at_end(
            step,
            run_state,
            is_stale,
            skipped,
        )
        for step in folded
    ]


def _order(item: StepItem) -> tuple[Any, ...]:
    """Sort key: by the start, and for steps that have not started by the table of steps."""
    names = list(STEPS)
    place = names.index(item.step) if item.step in names else len(names)
    return item.started or LAST, place, item.step


def _folded(name: str, items: Sequence[StepItem], num_items: int) -> StepStatus:
    """Return the status of a step over all items of its loop."""
    states = {item.state for item in items}
    done = [item for item in items if item.state in DONE]
    failed = [item for item in items if item.state == FAILED]
    starts = [item.started for item in items if item.started]
    ends = [item.ended for item in items if item.ended]
    is_over = len(items) >= num_items and not states.intersection((RUNNING, WAITING))
    return StepStatus(
        name,
        _common_state(states, is_over=is_over),
        num_done=len(done),
        num_items=max(
            num_items,
            len(items),
            1,
        ),
        seconds=(max(ends) - min(starts)).total_seconds() if is_over and starts and ends else None,
        error=next((item.message for item in failed if item.message), ""),
    )


def _common_state(states: set[str], *, is_over: bool) -> str:
    if FAILED in states:
        return FAILED
    if len(states) == 1 and (is_over or not states <= set(DONE)):
        return next(iter(states))
    if not states:
        return WAITING
    return SUCCEEDED if is_over and states <= set(DONE) else RUNNING


def _totals(
    items: Iterable[StepItem], planned: Iterable[PlannedStep], run: Mapping[str, Any]
) -> dict[str, int]:
    """Return the number of loop items by step: of the parameter, or else as seen in its loop."""
    parameters = (run.get("runtime_config") or {}).get("parameters") or {}
    totals = {}
    places: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for item in items:
        places.setdefault(item.place, set()).add(item.frames)
    for item in items:
        totals[item.step] = len(places[item.place])
    for step in planned:
        given = parameters.get(step.loop_parameter)
        if isinstance(given, list):
            totals[step.step] = len(given)
    return totals


def _is_condition(task: Mapping[str, Any]) -> bool:
    name = str(task.get("display_name") or "")
    return name.startswith("condition-") or "CONDITION" in str(task.get("type"))


def _seen_at_end(
    step: StepStatus, run_state: str, is_stale: bool, skipped: Sequence[str]
) -> StepStatus:
    """Return a step with the state that it has after the end of the run."""
    if step.name in skipped and step.state == WAITING:
        return dataclasses.replace(step, state=SKIPPED)
    if run_state not in ENDED or step.state not in (WAITING, RUNNING):
        return step
    return dataclasses.replace(step, state=UNKNOWN if is_stale else NOT_RUN)


def _is_refused(steps: Iterable[StepStatus]) -> bool:
    states = {step.name: step.state for step in steps}
    return states.get("refuse") in DONE or states.get(PACKAGE) == SKIPPED


def _is_stale(tasks: Sequence[Mapping[str, Any]], run_state: str) -> bool:
    """Return whether the run went on without its list of tasks.

    Tasks without a name come from the steps themselves, which tell the server when they began.
    """
    named = [task for task in tasks if task.get("display_name") or task.get("name")]
    others = [task for task in tasks if not (task.get("display_name") or task.get("name"))]
    is_open = any(_is_open(task) for task in named if _is_root(task))
    if run_state in ENDED:
        return is_open
    starts = [time for time in (time_of(task.get("start_time")) for task in others) if time]
    return bool(starts) and max(starts) - _newest(named) > STALE_AFTER


def _is_root(task: Mapping[str, Any]) -> bool:
    return task.get("display_name") == "root" or task.get("type") == "ROOT"


def _is_open(task: Mapping[str, Any]) -> bool:
    return str(task.get("state") or task.get("status")) == RUNNING


def _newest(tasks: Iterable[Mapping[str, Any]]) -> datetime.datetime:
    times = [time_of(task.get(key)) for task in tasks for key in ("start_time", "end_time")]
    known = [time for time in times if time]
    return max(known) if known else LAST


def _notes(tasks: Sequence[Mapping[str, Any]], is_stale: bool, is_refused: bool) -> Iterable[str]:
    if not tasks:
        yield NOT_STARTED_NOTE
    if is_stale:
        named = [task for task in tasks if task.get("display_name")]
        yield STALE_NOTE.format(time=f"{_newest(named):%H:%M:%S} UTC")
    if is_refused:
        yield REFUSED_NOTE
