"""The runs of a Kubeflow Pipelines server: their status, their logs, and waiting for their end."""

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Optional

from longrec.runs.record.nodes import CACHED, FAILED, SKIPPED, WAITING, StepItem
from pipelines.server.errors import MAX_REASON_LENGTH, ServerError, Unavailable
from pipelines.server.pod_logs import PodLog, PodLogs, error_of_driver
from pipelines.server.reading import QUIET_SECONDS, Reader
from pipelines.server.references import References
from pipelines.server.run_status import ENDED, UNKNOWN, RunStatus, RunSteps, StepStatus, read_run
from pipelines.step_log import error_message

BASE = "/apis/v2beta1"
DATE_LENGTH = 10
LAST_STEP = "finish"
OUTCOME = re.compile(r"INFO\]: outcome: (?P<json>\{.*\})\s*$", re.MULTILINE)
"""The line in the log of the step finish with the outcome of the run."""


@dataclasses.dataclass(frozen=True, slots=True)
class StepLog:
    """The log of one step, or of one item of its loop.

    Args:
        title: the step, and the item if it is in a loop.
        text: its output, or a sentence why there is none; empty if it may still come.
        is_cut: whether the server stopped sending in the middle.
        reason: what the server says about a missing log.
    """

    title: str
    text: str
    is_cut: bool = False
    reason: str = ""


class Runs:
    """The runs of a server.

    Args:
        reader: reads the server.
        namespace: namespace on a multi-user server; empty for a single-user one.
    """

    def __init__(self, reader: Reader, namespace: str) -> None:
        self._reader = reader
        self._namespace = namespace
        self._references = References(reader)

    def status(self, run_id: str) -> RunStatus:
        """Return the status of a run, without the errors of its steps."""
        run = self._get(run_id)
        return read_run(
            run,
            self.page(run_id),
            self._references.spec_of(run),
        )

    def explained(self, run_id: str) -> RunStatus:
        """Return the status of a run, with the last line of the errors of its steps."""
        run = self._get(run_id)
        spec = self._references.spec_of(run)
        status = read_run(
            run,
            self.page(run_id),
            spec,
        )
        found = RunSteps(run, spec)
        logs = self._logs_of(run)
        outcome = _outcome(found, logs) if status.state in ENDED else {}
        items = found.items()
        steps = [
            _explained_step(
                step,
                items,
                outcome,
                logs,
            )
            for step in status.steps
        ]
        notes = list(status.notes)
        if outcome.get("error") and not any(step.error for step in steps):
            notes.append(f"the step {LAST_STEP} found: {outcome['error']}")
        return dataclasses.replace(
            status,
            steps=tuple(steps),
            notes=tuple(notes),
        )

    def recent(self, experiment_id: str, limit: int = 10) -> list[RunStatus]:
        """Return the newest runs of an experiment, newest first, without their steps."""
        answer = self._reader.json(
            f"{BASE}/runs", experiment_id=experiment_id, sort_by="created_at desc", page_size=limit
        )
        found = []
        for run in answer.get("runs") or ():
            status = read_run(
                run,
                self.page(run["run_id"]),
                None,
            )
            pipeline = status.pipeline or self._references.pipeline_of(run)
            found.append(
                dataclasses.replace(
                    status,
                    pipeline=pipeline,
                    steps=(),
                    notes=(),
                )
            )
        return found

    def wait(
        self,
        run_id: str,
        on_change: Callable[[RunStatus], None],
        *,
        timeout_seconds: float,
        every_seconds: float = 5.0,
    ) -> RunStatus:
        """Wait for the end of a run and return its explained status.

        Args:
            run_id: id of the run.
            on_change: called when the run or one of its steps changes.
            timeout_seconds: longest wait.
            every_seconds: pause between two requests.

        Raises:
            ServerError: it has not ended in time, or no server answered for some minutes; it
                continues on the server.
        """
        deadline = time.monotonic() + timeout_seconds
        previous: Optional[RunStatus] = None
        while True:
            current = self._status_of_running(run_id)
            if current != previous:
                on_change(current)
            if current.state in ENDED:
                return self.explained(run_id)
            if time.monotonic() >= deadline:
                raise ServerError(
                    f"run {run_id} has not ended after {timeout_seconds:g} s",
                    found=current.state,
                    fix=f"It continues: {current.url}",
                )
            previous = current
            time.sleep(every_seconds)

    def logs(self, run_id: str, step: str, *, every_seconds: float = 5.0) -> list[StepLog]:
        """Return the output of a step's own container, of its last attempt.

        A loop gives one log per item. A step that starts is waited for, while the server shows
        something new at least every QUIET_SECONDS.

        Raises:
            ServerError: the run has no such step, or the server has no log of it.
        """
        previous: Any = None
        quiet_since = time.monotonic()
        while True:
            run = self._get(run_id)
            found = RunSteps(run, self._references.spec_of(run))
            logs = self._step_logs(found, step)
            if any(entry.text for entry in logs):
                return [entry for entry in logs if entry.text]
            if run != previous:
                previous = run
                quiet_since = time.monotonic()
            is_over = str(run.get("state")) in ENDED
            if is_over or time.monotonic() - quiet_since >= QUIET_SECONDS:
                raise self._no_log(
                    run_id,
                    step,
                    logs,
                )
            time.sleep(every_seconds)

    def page(self, run_id: str) -> str:
        """Return the address of a run's page."""
        return f"{self._reader.host}/#/runs/details/{run_id}"

    def _get(self, run_id: str) -> dict[str, Any]:
        return self._reader.json(f"{BASE}/runs/{run_id}", subject=f"run {run_id}")

    def _status_of_running(self, run_id: str) -> RunStatus:
        try:
            return self.status(run_id)
        except Unavailable as error:
            raise ServerError(
                f"{self._reader.host} has not answered for {self._reader.patience.seconds:.0f} s",
                found=str(error),
                fix=f"The run goes on: longrec status {run_id}, or {self.page(run_id)}",
            ) from error

    def _logs_of(self, run: Mapping[str, Any]) -> PodLogs:
        day = str(run.get("created_at") or "")[:DATE_LENGTH]
        return PodLogs(
            self._reader.text,
            run["run_id"],
            self._namespace,
            day,
        )

    def _step_logs(self, found: RunSteps, step: str) -> list[StepLog]:
        items = [item for item in found.items() if item.step == step]
        if not items and step in found.skipped:
            return [StepLog(step, f"{step} was skipped: its condition was false")]
        if not items:
            self._check_name(found, step)
            items = found.assumed_items(step) or [
                StepItem(
                    step,
                    (),
                    WAITING,
                )
            ]
        logs = self._logs_of(found.run)
        return [
            _log_of(
                item,
                _title(
                    step,
                    number,
                    len(items),
                ),
                logs,
                found,
            )
            for number, item in enumerate(items, 1)
        ]

    def _check_name(self, found: RunSteps, step: str) -> None:
        names = [item.step for item in found.items()]
        names += [entry.step for entry in found.expected]
        if step not in names:
            raise ServerError(
                f"run {found.run['run_id']} has no step '{step}'",
                found=", ".join(dict.fromkeys(names)) or "no step",
                fix="See longrec status RUN.",
            )

    def _no_log(self, run_id: str, step: str, logs: Iterable[StepLog]) -> ServerError:
        namespace = self._namespace or "kubeflow"
        reasons = [log.reason for log in logs if log.reason]
        return ServerError(
            f"the server has no log of step '{step}'",
            found=reasons[0][:MAX_REASON_LENGTH] if reasons else None,
            fix=f"While its pod exists: kubectl logs -n {namespace} -l pipeline/runid={run_id} "
            "-c main --prefix --tail=-1",
        )


def _title(step: str, number: int, num_items: int) -> str:
    return f"{step} {number} of {num_items}" if num_items > 1 else step


def _log_of(item: StepItem, title: str, logs: PodLogs, found: RunSteps) -> StepLog:
    """Return the log of a step, or why it has none; no text if the log may still come."""
    if item.state == CACHED:
        return StepLog(
            title,
            _cached_text(
                item.step,
                found,
                logs,
            ),
        )
    if item.state in (WAITING, SKIPPED):
        return StepLog(title, _waiting_text(item, found))
    executor = logs.of_executor(item) or PodLog("")
    if executor.text or item.state != FAILED:
        return StepLog(
            title,
            executor.text,
            executor.is_cut,
            executor.reason,
        )
    driver = logs.of_driver(item)
    error = error_of_driver(driver.text) if driver else ""
    text = f"{item.step} never started: its driver failed: {error}" if error else ""
    return StepLog(
        title,
        text,
        reason=executor.reason,
    )


def _cached_text(step: str, found: RunSteps, logs: PodLogs) -> str:
    source = _outcome(found, logs).get("sources", {}).get(step)
    origin = f"of run {source}" if source else "of an earlier run with equal inputs"
    return f"{step} did not run: its result is taken from the cache, {origin}"


def _waiting_text(item: StepItem, found: RunSteps) -> str:
    failed = [entry.step for entry in found.items() if entry.state == FAILED]
    if item.state == SKIPPED:
        return f"{item.step} was skipped"
    if failed:
        return f"{item.step} never started: {failed[0]} failed before it"
    is_over = str(found.run.get("state")) in ENDED
    return f"{item.step} never started" if is_over else f"{item.step} has not started yet"


def _outcome(found: RunSteps, logs: PodLogs) -> dict[str, Any]:
    """Return the outcome that the last step found and logged; nothing for none."""
    if str(found.run.get("state")) not in ENDED:
        return {}
    items = [item for item in found.items() if item.step == LAST_STEP and item.attempts]
    for item in items or found.assumed_items(LAST_STEP):
        log = logs.of_executor(item)
        match = OUTCOME.search(log.text) if log else None
        if match:
            with contextlib.suppress(ValueError):
                return dict(json.loads(match["json"]))
    return {}


def _explained_step(
    step: StepStatus, items: Sequence[StepItem], outcome: Mapping[str, Any], logs: PodLogs
) -> StepStatus:
    """Return a step with the last line of its error, or with its state in the outcome."""
    told = outcome.get("steps", {}).get(step.name)
    if step.state == UNKNOWN and told:
        step = dataclasses.replace(step, state=told)
    if step.state != FAILED or step.error:
        return step
    if outcome.get("step") == step.name and outcome.get("error"):
        return dataclasses.replace(step, error=_last_line(outcome["error"]))
    failed = [item for item in items if item.step == step.name and item.state == FAILED]
    return dataclasses.replace(step, error=_error_of(failed[:1], logs))


def _error_of(items: Iterable[StepItem], logs: PodLogs) -> str:
    for item in items:
        driver = None if item.is_started else logs.of_driver(item)
        if driver:
            return f"its driver failed: {error_of_driver(driver.text)}"
        executor = logs.of_executor(item)
        if executor and executor.text:
            return _last_line(error_message(executor.text.splitlines()))
    return ""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
