"""OpenLineage events: what a step or a decision read and wrote, told to a lineage server.

OpenLineage's own standard configures it: the variables OPENLINEAGE_*, or a file openlineage.yml
(https://openlineage.io/docs/client/python). Without either, nothing is imported or sent. The
variable OPENLINEAGE_NAMESPACE names the namespace of jobs and datasets.

A receiver that fails or hangs never fails a run: a thread sends, and the end of a step waits for it
MAX_WAIT_SECONDS at most.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import logging
import os
import queue
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

NAMESPACE_VARIABLE = "OPENLINEAGE_NAMESPACE"
DEFAULT_NAMESPACE = "longrec"
DISABLED_VARIABLE = "OPENLINEAGE_DISABLED"
CONFIG_VARIABLES = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT")
"""Variables that name a transport; the last one also by its beginning."""
CONFIG_FILE = "openlineage.yml"
MAX_WAIT_SECONDS = 5.0
"""Longest wait for the receiver at the end of a step; what is not sent by then is lost."""
INSTALL = "OpenLineage is configured, but its client is missing: pip install 'longrec[lineage]'"


@dataclasses.dataclass(frozen=True, slots=True)
class LineageDataset:
    """A version of something that a step reads or writes.

    Args:
        kind: `dataset`, `features`, `store`, `histories`, `bundle`, `evaluation`, `bento`,
            `deployment` or `shadow`.
        version: hash or version of its content.
        uri: where it is; empty for a decision.
        name: of a `dataset`, its own name; empty for the others.
    """

    kind: str
    version: str
    uri: str = ""
    name: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class LineageJob:
    """A job and its parent.

    Args:
        name: of the step or decision.
        parent: id of the pipeline run that it belongs to; empty for none.
    """

    name: str
    parent: str = ""


@dataclasses.dataclass(slots=True)
class LineageRun:
    """The inputs and outputs of a run of a job; the block of `emitted` fills them.

    Args:
        inputs, outputs: datasets.
    """

    inputs: list[LineageDataset] = dataclasses.field(default_factory=list)
    outputs: list[LineageDataset] = dataclasses.field(default_factory=list)


def is_configured() -> bool:
    """Return whether OpenLineage's standard configuration names a receiver."""
    if os.environ.get(DISABLED_VARIABLE, "").strip().lower() == "true":
        return False
    if any(name.startswith(CONFIG_VARIABLES) for name in os.environ):
        return True
    folders = (Path.cwd(), Path.home() / ".openlineage")
    return any((folder / CONFIG_FILE).is_file() for folder in folders)


def namespace() -> str:
    """Return the namespace of all jobs, and of the datasets that this project makes."""
    return os.environ.get(NAMESPACE_VARIABLE, "").strip() or DEFAULT_NAMESPACE


def producer() -> str:
    """Return the URI that events name as their producer."""
    return f"urn:longrec:{importlib.metadata.version('longrec')}"


@contextlib.contextmanager
def emitted(job: LineageJob, run: LineageRun) -> Iterator[None]:
    """Send START, then COMPLETE or FAIL, around the block; nothing if there is no receiver.

    Args:
        job: what the block does.
        run: its inputs before the block, its outputs after it.
    """
    if not is_configured():
        yield
        return
    events = EventQueue(job.name)
    run_id = str(uuid.uuid4())
    _put(events, _Event("START", job, run_id, LineageRun(list(run.inputs))))
    try:
        yield
    except BaseException as error:
        problem = _Problem.of(error)
        _put(events, _Event("FAIL", job, run_id, LineageRun(run.inputs), problem))
        raise
    else:
        _put(events, _Event("COMPLETE", job, run_id, run))
    finally:
        events.close()


def _put(events: EventQueue, event: _Event) -> None:
    events.put(functools.partial(_run_event, event))


class EventQueue:
    """Sends events in a thread of its own, in order, and drops them if the receiver fails.

    Args:
        what: named in the warning about events that were not sent.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._queue = queue.SimpleQueue[Callable[[], Any] | None]()
        self._problem = ""
        self._thread = threading.Thread(
            target=self._send_all,
            name="openlineage",
            daemon=True,
        )
        self._thread.start()

    def put(self, make: Callable[[], Any]) -> None:
        """Queue an event of OpenLineage's client; the thread calls `make` for it."""
        self._queue.put(make)

    def close(self) -> None:
        """Wait for the receiver, a bounded time; a warning tells what was not sent."""
        self._queue.put(None)
        self._thread.join(MAX_WAIT_SECONDS)
        if self._thread.is_alive():
            self._problem = f"no answer within {MAX_WAIT_SECONDS:g} s"
        if self._problem:
            log.warning(
                "lineage of %s was not sent: %s",
                self._what,
                self._problem,
            )

    def _send_all(self) -> None:
        try:
            from openlineage.client import OpenLineageClient

            client = OpenLineageClient()
            while (make := self._queue.get()) is not None:
                client.emit(make())
            client.close(MAX_WAIT_SECONDS)
        except ModuleNotFoundError:
            self._problem = INSTALL
        except Exception as error:  # Lineage never fails a run.
            self._problem = f"{type(error).__name__}: {error}"


@dataclasses.dataclass(frozen=True, slots=True)
class _Event:
    """What an event tells.

    Args:
        state: START, COMPLETE or FAIL.
        job: of the run.
        run_id: UUID of the run.
        run: its inputs and outputs by now.
        problem: why it failed; None for the other states.
        time: ISO 8601.
    """

    state: str
    job: LineageJob
    run_id: str
    run: LineageRun
    problem: _Problem | None = None
    time: str = dataclasses.field(default_factory=lambda: _now())


@dataclasses.dataclass(frozen=True, slots=True)
class _Problem:
    """An error as an event holds it."""

    message: str
    stack: str

    @classmethod
    def of(cls, error: BaseException) -> _Problem:
        lines = traceback.format_exception(error)
        return cls(str(error) or type(error).__name__, "".join(lines))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()


def _run_event(event: _Event) -> Any:
    """Return an event of OpenLineage's client."""
    from openlineage.client import event_v2

    return event_v2.RunEvent(
        eventType=event_v2.RunState[event.state],
        eventTime=event.time,
        run=event_v2.Run(event.run_id, _run_facets(event.job, event.problem)),
        job=event_v2.Job(namespace(), event.job.name, _job_facets()),
        inputs=[_dataset(event_v2.InputDataset, entry) for entry in event.run.inputs],
        outputs=[_dataset(event_v2.OutputDataset, entry) for entry in event.run.outputs],
        producer=producer(),
    )


def _run_facets(job: LineageJob, problem: _Problem | None) -> dict[str, Any]:
    from openlineage.client import facet_v2

    engine = facet_v2.processing_engine_run.ProcessingEngineRunFacet(
        version=importlib.metadata.version("longrec"),
        name="longrec",
        openlineageAdapterVersion=importlib.metadata.version("openlineage-python"),
    )
    facets: dict[str, Any] = {"processing_engine": engine}
    if job.parent:
        parent = facet_v2.parent_run
        facets["parent"] = parent.ParentRunFacet(
            run=parent.Run(runId=parent_run_id(job.parent)),
            job=parent.Job(namespace=namespace(), name="pipeline"),
        )
    if problem is not None:
        facets["errorMessage"] = facet_v2.error_message_run.ErrorMessageRunFacet(
            message=problem.message,
            programmingLanguage="python",
            stackTrace=problem.stack,
        )
    return facets


def _job_facets() -> dict[str, Any]:
    from openlineage.client import facet_v2

    kind = facet_v2.job_type_job.JobTypeJobFacet(
        processingType="BATCH",
        integration="LONGREC",
        jobType="TASK",
    )
    return {"jobType": kind}


def _dataset(kind: Any, dataset: LineageDataset) -> Any:
    from openlineage.client import facet_v2

    version = facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet(dataset.version)
    facets: dict[str, Any] = {"version": version}
    if dataset.uri:
        source = facet_v2.datasource_dataset.DatasourceDatasetFacet
        facets["dataSource"] = source(name=dataset.name or dataset.kind, uri=_as_uri(dataset.uri))
    place, name = dataset_name(dataset)
    return kind(namespace=place, name=name, facets=facets)


def dataset_name(dataset: LineageDataset) -> tuple[str, str]:
    """Return namespace and name of a dataset, by OpenLineage's naming of storage.

    Only the dataset that a pipeline begins with is named by its place. What the project makes is
    named by its kind, so each version of a model is a version of one dataset.
    """
    if dataset.kind != "dataset":
        return namespace(), dataset.kind
    address = urlsplit(dataset.uri)
    if not address.scheme or address.scheme == "file":
        return "file", address.path or dataset.uri
    return f"{address.scheme}://{address.netloc}", address.path.lstrip("/")


def parent_run_id(run: str) -> str:
    """Return the UUID of a pipeline run: its own on a cluster, one made of its name elsewhere."""
    with contextlib.suppress(ValueError):
        return str(uuid.UUID(run))
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{namespace()}/{run}"))


def _as_uri(text: str) -> str:
    return text if "://" in text else Path(text).absolute().as_uri()
