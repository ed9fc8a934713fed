"""The verdict on a run: how it ended, by what its steps left.

A Kubeflow server tells the last step the state of its metadata store. It is RUNNING where a step
came from the cache, was skipped or was killed, and it never has an error. So the verdict rests on
the workflow, where the step may read it, and on the record of the run.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from longrec.runs.record.attempts import Attempt, last_attempts
from longrec.runs.record.nodes import (
    CACHED,
    DONE,
    DRIVER,
    FAILED,
    ON_EXIT,
    SUCCEEDED,
    Node,
    StepItem,
    failed_frames,
    names_on,
    step_items,
)

REFUSED = "REFUSED"
"""State of a run whose model the gate refused; to the platform it succeeded."""
CANCELLED = "CANCELLED"
UNKNOWN = "UNKNOWN"
"""State of a run of which too little is left to tell."""
TOLD_STATES = {
    "COMPLETE": SUCCEEDED,
    "CACHED": SUCCEEDED,
    "SUCCEEDED": SUCCEEDED,
    "FAILED": FAILED,
    "CANCELED": CANCELLED,
    "CANCELLED": CANCELLED,
}
"""State that the platform tells -> state of the run; others tell nothing."""
HANDLER = "exit-handler-"
FINISH = "finish"
REFUSE = "refuse"
LAST_STEPS = {
    "longrec-training": ("register", REFUSE),
    "longrec-refresh": ("publish",),
    "longrec-drift": ("drift",),
    "longrec-study": ("collect",),
    "longrec-tune": ("choose",),
}
"""Pipeline -> the steps of which one ends it, if none fails; none of them is ever cached."""
NO_RECORD = (
    "the run left no record of its steps: the work directory was lost, or the steps cannot write it"
)
SEE_STATUS = "see longrec status RUN"


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """How a run ended.

    Args:
        state: SUCCEEDED, REFUSED, FAILED, CANCELLED or UNKNOWN.
        step: the step that failed, or that refused; empty for none.
        error: why; empty after success.
        steps: state by step.
        sources: step whose result came from an earlier run -> that run.
        gate: the bounds that were missed, and the remedy; empty if the gate passed.
    """

    state: str
    step: str = ""
    error: str = ""
    steps: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gate: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class _Failure:
    step: str
    error: str


def judge(
    pipeline: str, told: str, attempts: Sequence[Attempt], nodes: Sequence[Node] | None
) -> Verdict:
    """Return the verdict on a run.

    Args:
        pipeline: name of the pipeline.
        told: state that the platform tells the last step.
        attempts: the record of the run.
        nodes: nodes of its workflow; None if the step cannot read it.
    """
    ended = [attempt for attempt in last_attempts(list(attempts)) if attempt.step != FINISH]
    items = [item for item in _items(nodes) if item.step != FINISH]
    failures = _failures(ended, items)
    if nodes is None:
        state, reason = _state_by_record(
            pipeline,
            told,
            ended,
            failures,
        )
    else:
        state, reason = _state_by_workflow(
            told,
            nodes,
            failures,
        )
    failure = failures[0] if failures and state == FAILED else _Failure("", reason)
    refusal = _refusal(ended, items) if state == SUCCEEDED else None
    if refusal is not None:
        state = REFUSED
        failure = _Failure("evaluate", str(refusal.get("error", "")))
    return Verdict(
        state,
        step=failure.step,
        error=failure.error,
        steps=_states(ended, items),
        sources=_sources(attempts),
        gate=(refusal or {}).get("gate", {}),
    )


def _items(nodes: Sequence[Node] | None) -> list[StepItem]:
    if nodes is None:
        return []
    return [*step_items(nodes), *failed_frames(nodes)]


def _failures(attempts: Sequence[Attempt], items: Sequence[StepItem]) -> list[_Failure]:
    """Return what failed: by the workflow if it is known, with the errors of the record."""
    recorded = [
        _Failure(attempt.step, attempt.error or _never_ended(attempt))
        for attempt in attempts
        if attempt.error or not attempt.ended
    ]
    if not items:
        return recorded
    errors = {failure.step: failure.error for failure in recorded}
    failed = [item for item in items if item.state == FAILED]
    return [_Failure(item.step, _error(item, errors.get(item.step, ""))) for item in failed]


def _error(item: StepItem, recorded: str) -> str:
    if not item.is_started:
        return f"it never started: its driver failed: {item.message}".removesuffix(": ")
    if not recorded:
        return item.message or f"it ended without an error; {SEE_STATUS}"
    is_killed = recorded.endswith("never ended") and item.message
    return f"{recorded}: {item.message}" if is_killed else recorded


def _never_ended(attempt: Attempt) -> str:
    started = datetime.datetime.fromisoformat(attempt.started)
    return f"started {started:%H:%M}, never ended"


def _state_by_workflow(
    told: str, nodes: Sequence[Node], failures: Sequence[_Failure]
) -> tuple[str, str]:
    if TOLD_STATES.get(told) == CANCELLED:
        return CANCELLED, ""
    if failures or any(_is_failed_handler(node) for node in nodes):
        return FAILED, f"no step failed, but the pipeline did; {SEE_STATUS}"
    return SUCCEEDED, ""


def _is_failed_handler(node: Node) -> bool:
    """Return whether a node is the part of the pipeline before its last step, and failed."""
    name = names_on(node.path)[-1]
    is_handler = name.startswith(HANDLER) and not name.endswith((ON_EXIT, DRIVER))
    return is_handler and node.state.upper() in (FAILED, "ERROR")


def _state_by_record(
    pipeline: str, told: str, attempts: Sequence[Attempt], failures: Sequence[_Failure]
) -> tuple[str, str]:
    """Return the state of a run, and the reason if no step failed."""
    known = TOLD_STATES.get(told)
    if known == FAILED:
        return FAILED, f"a step failed that left no record; {SEE_STATUS}"
    if known is not None:
        return known, ""
    if failures:
        return FAILED, ""
    if not attempts:
        return UNKNOWN, NO_RECORD
    return _state_without_failure(pipeline, {attempt.step for attempt in attempts})


def _state_without_failure(pipeline: str, steps: set[str]) -> tuple[str, str]:
    """Return the state of a run of which every recorded step ended well."""
    last = LAST_STEPS.get(pipeline, ())
    if steps.intersection(last):
        return SUCCEEDED, ""
    names = " and ".join(last) or "the last step"
    return FAILED, f"{names} never started; {SEE_STATUS}"


def _refusal(attempts: Sequence[Attempt], items: Sequence[StepItem]) -> Mapping[str, Any] | None:
    """Return what the step that refuses a model told; None if it did not run."""
    for attempt in attempts:
        if attempt.step == REFUSE:
            return attempt.facts
    has_run = any(item.step == REFUSE and item.state in DONE for item in items)
    return {"error": "the gate refused the model"} if has_run else None


def _states(attempts: Sequence[Attempt], items: Sequence[StepItem]) -> dict[str, str]:
    """Return the state by step: failed if an item of its loop is, cached if all items are."""
    found: dict[str, set[str]] = {}
    for attempt in attempts:
        is_done = attempt.ended and not attempt.error
        found.setdefault(attempt.step, set()).add(SUCCEEDED if is_done else FAILED)
    if items:
        found = {}
    for item in items:
        found.setdefault(item.step, set()).add(item.state)
    return {step: _common(states) for step, states in found.items()}


def _common(states: set[str]) -> str:
    if FAILED in states:
        return FAILED
    if len(states) == 1:
        return next(iter(states))
    return SUCCEEDED if states <= {SUCCEEDED, CACHED} else UNKNOWN


def _sources(attempts: Sequence[Attempt]) -> dict[str, str]:
    """Return the earlier runs that steps read results of."""
    ran = {attempt.step for attempt in attempts}
    return {
        step: run
        for attempt in attempts
        for step, run in attempt.sources.items()
        if step not in ran
    }
