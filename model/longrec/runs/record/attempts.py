"""The record of a run: when each of its steps began, when it ended, and with which error.

    WORKDIR/runs/RUN/steps/20261130T084532.123456-train-5f0c2a91.json     one attempt of a step

Each attempt writes a file of its own, at its start and again at its end, so that no two machines
write the same one. A killed attempt leaves a file without an end. This is the only record of the
steps of a run: `longrec.step` writes it, and whatever else needs it reads it.

A step finds its run by two environment variables: LONGREC_HOME is the work directory, LONGREC_RUN
the id of the run. On a cluster the latter is the label `pipeline/runid` of the step's pod.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import os
import re
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from longrec.data.files import read_json_object, write_json
from longrec.errors import LongrecError
from longrec.openlineage import LineageDataset, LineageJob, LineageRun, emitted
from longrec.runs.record.artifacts import inputs_of, outputs_of

log = logging.getLogger(__name__)

WORKDIR_VARIABLE = "LONGREC_HOME"
RUN_VARIABLE = "LONGREC_RUN"
RUNS_FOLDER = "runs"
STEPS_FOLDER = "steps"
ITEM_LENGTH = 12
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ARTIFACT_ADDRESSES = (
    re.compile(r"/(?P<run>[0-9a-f-]{36})/(?P<step>[a-z][a-z0-9-]*)/[0-9a-f-]{36}/[^/]+$"),
    re.compile(r"/runs/(?P<run>[^/]+)/artifacts/(?:[^/]+/)*(?P<step>[a-z][a-z0-9-]*)/[^/]+$"),
)
"""Addresses of artifacts on a cluster and on one machine: they name the run that made them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a step.

    Args:
        step: name of the step.
        item: digest of its inputs: equal for the attempts of one item of a loop.
        started: time in UTC, ISO 8601.
        ended: the same; empty while it runs, and for ever if it was killed.
        error: its error; empty if it succeeded.
        machine: name of the pod or machine.
        sources: step whose results it read -> run that made them.
        facts: what the step tells the verdict, for example why the gate refused.
        inputs, outputs: what it read and wrote, by `kind`, `version`, `uri` and `name`
            (`longrec.openlineage.LineageDataset`).
    """

    step: str
    item: str
    started: str
    ended: str = ""
    error: str = ""
    machine: str = ""
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    inputs: Sequence[Mapping[str, str]] = ()
    outputs: Sequence[Mapping[str, str]] = ()


@dataclasses.dataclass(slots=True)
class _Running:
    """The attempt of this process and its file; None for a step without a record."""

    attempt: Attempt
    path: Path | None


_running: list[_Running] = []


@contextlib.contextmanager
def recorded(step: str, executor_input: Mapping[str, Any]) -> Iterator[None]:
    """Record the attempt of a step that the body executes, and send it as OpenLineage events.

    A record that cannot be written is a warning and no error.

    Args:
        step: name of the step.
        executor_input: its inputs and outputs as kfp passes them.
    """
    inputs = executor_input.get("inputs", {})
    folder = record_folder()
    lineage = LineageRun(inputs_of(executor_input))
    attempt = Attempt(
        step,
        item=_digest(inputs),
        started=_now(),
        machine=socket.gethostname(),
        sources=_sources(inputs),
        inputs=_plain(lineage.inputs),
    )
    running = _Running(attempt, None if folder is None else _new_file(folder, attempt))
    _running.append(running)
    _write(running)
    error = ""
    try:
        with emitted(LineageJob(step, run_name()), lineage):
            yield
            lineage.outputs = outputs_of(executor_input)
    except BaseException as exception:
        error = _describe(exception)
        raise
    finally:
        _running.remove(running)
        running.attempt = dataclasses.replace(
            running.attempt,
            ended=_now(),
            error=error,
            outputs=_plain(lineage.outputs),
        )
        _write(running)


def note(**facts: Any) -> bool:
    """Add facts to the record of the running step; return whether there is a record."""
    if not _running:
        return False
    running = _running[-1]
    running.attempt = dataclasses.replace(running.attempt, facts={**running.attempt.facts, **facts})
    return _write(running)


def run_name() -> str:
    """Return the name of this step's run; empty if the step knows none."""
    name = os.environ.get(RUN_VARIABLE, "")
    return name if RUN_NAME.fullmatch(name) else ""


def record_folder() -> Path | None:
    """Return the folder with the record of this step's run; None if the step knows no such."""
    workdir = os.environ.get(WORKDIR_VARIABLE, "")
    run = run_name()
    if not workdir or not run or not Path(workdir).is_dir():
        return None
    return Path(workdir) / RUNS_FOLDER / run / STEPS_FOLDER


def read(folder: Path | None) -> list[Attempt]:
    """Return the attempts in the record of a run, in the order of their start.

    A file that cannot be read is a warning and no error.
    """
    attempts = []
    for path in sorted(folder.glob("*.json")) if folder is not None else ():
        try:
            attempts.append(_parse(read_json_object(path)))
        except (LongrecError, OSError, TypeError) as error:
            log.warning(
                "%s of the record cannot be read: %s",
                path,
                error,
            )
    return sorted(attempts, key=lambda attempt: attempt.started)


def last_attempts(attempts: list[Attempt]) -> list[Attempt]:
    """Return the last attempt of each step, and of each item of a loop."""
    last = {(attempt.step, attempt.item): attempt for attempt in attempts}
    return sorted(last.values(), key=lambda attempt: attempt.started)


def _parse(value: Mapping[str, Any]) -> Attempt:
    known = {field.name for field in dataclasses.fields(Attempt)}
    return Attempt(**{name: entry for name, entry in value.items() if name in known})


def _new_file(folder: Path, attempt: Attempt) -> Path:
    stamp = re.sub(
        r"[-:]|\+.*",
        "",
        attempt.started,
    )
    return folder / f"{stamp}-{attempt.step}-{uuid.uuid4().hex[:8]}.json"


def _write(running: _Running) -> bool:
    if running.path is None:
        return False
    try:
        write_json(running.path, dataclasses.asdict(running.attempt))
    except (LongrecError, OSError) as error:
        log.warning("the record of the run cannot be written: %s", error)
        return False
    return True


def _plain(datasets: Sequence[LineageDataset]) -> list[dict[str, str]]:
    return [dataclasses.asdict(dataset) for dataset in datasets]


def _digest(inputs: Any) -> str:
    text = json.dumps(inputs, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:ITEM_LENGTH]


def _sources(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return the run that made the artifacts of each step among the inputs."""
    sources = {}
    for entry in inputs.get("artifacts", {}).values():
        for artifact in entry.get("artifacts", ()):
            for pattern in ARTIFACT_ADDRESSES:
                if match := pattern.search(artifact.get("uri", "")):
                    sources[match["step"]] = match["run"]
                    break
    return sources


def _describe(error: BaseException) -> str:
    """Return an error as one text: of longrec its message, of others the type too."""
    if isinstance(error, LongrecError):
        return str(error)
    name = type(error).__name__
    return f"{name}: {error}" if str(error) else name


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
