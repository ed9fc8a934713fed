"""The route /metrics: the metrics of all workers of a service in the format that is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from longrec.serving.prometheus.exemplars import FOLDER_VARIABLE, read_exemplars, with_exemplar
from longrec.serving.prometheus.process_metrics import ProcessMetrics, service_processes

OWN_PREFIXES = ("longrec_", "bentoml_service_")
"""Feast registers the metrics of its own server, too: always 0 here, and one more for each worker.
"""
VERSION_GAUGE = "longrec_model_workers"
"""A gauge by model version: versions that no worker serves any more are left out."""
OPENMETRICS = "application/openmetrics-text"
OPENMETRICS_VERSIONS = {"version=1.0.0", "version=0.0.1"}


def metrics_app(supervisor: int | None = None) -> Any:
    """Return the application with the route /metrics.

    Args:
        supervisor: process id of the service; None for this process alone.
    """
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    def metrics(request: Request) -> Response:  # not async: it reads files, in a thread
        accept = ", ".join(request.headers.getlist("accept"))
        content, content_type = expose(accept, supervisor)
        return Response(content, headers={"content-type": content_type})

    return Starlette(routes=[Route("/metrics", metrics)])


def expose(accept: str, supervisor: int | None = None) -> tuple[bytes, str]:
    """Return the metrics of the service and their content type.

    Args:
        accept: the Accept header: OpenMetrics, or Prometheus' text format by default.
        supervisor: process id of the service; None for this process alone.
    """
    from prometheus_client import REGISTRY, CollectorRegistry

    encode, content_type = _encoder(accept)
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is None:
        return encode(REGISTRY), content_type
    path = Path(folder)
    processes = service_processes(supervisor)
    live = [process.pid for process in processes]
    remove_gauges_of_dead_workers(path, live)
    registry = CollectorRegistry()
    registry.register(WorkerMetrics(path))
    registry.register(ProcessMetrics(processes))
    return encode(registry), content_type


class WorkerMetrics:
    """A collector of the metrics that workers wrote to a folder.

    Args:
        folder: holds the files of prometheus_client.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Any]:
        """Yield the metrics of all workers together."""
        from prometheus_client.multiprocess import MultiProcessCollector

        collector: Any = MultiProcessCollector
        written = collector(None, str(self._folder))
        exemplars = read_exemplars(self._folder)
        for metric in written.collect():
            if not metric.name.startswith(OWN_PREFIXES):
                continue
            if metric.name == VERSION_GAUGE:
                metric.samples = [sample for sample in metric.samples if sample.value]
            metric.samples.sort(key=_place)
            if exemplars:
                metric.samples = [
                    with_exemplar(metric.name, sample, exemplars) for sample in metric.samples
                ]
            yield metric


def remove_gauges_of_dead_workers(folder: Path, live: Sequence[int]) -> None:
    """Remove what workers that were killed said of their present state; their counts stay.

    Args:
        folder: holds the files of prometheus_client.
        live: process ids of the service.
    """
    names = {str(pid) for pid in live}
    for path in folder.glob("gauge_live*.db"):
        _, _, pid = path.stem.rpartition("_")
        if pid not in names:
            path.unlink(missing_ok=True)


def _place(sample: Any) -> tuple[list[tuple[str, str]], bool]:
    """Return the sort key of a sample: one histogram after the other, its buckets first."""
    labels = {**sample.labels}
    labels.pop("le", None)
    is_bucket = sample.name.endswith("_bucket")
    return sorted(labels.items()), not is_bucket


def _encoder(accept: str) -> tuple[Callable[[Any], bytes], str]:
    """Return the writer of the first known format of an Accept header, and its content type."""
    from prometheus_client import exposition
    from prometheus_client.openmetrics import exposition as openmetrics

    plain = exposition.generate_latest
    plain_type = exposition.CONTENT_TYPE_PLAIN_0_0_4
    entries = accept.lower().replace(" ", "").split(",")
    for entry in entries:
        media_type, *parameters = entry.split(";")
        if media_type == "text/plain":
            break
        versions = {text for text in parameters if text.startswith("version=")}
        if media_type == OPENMETRICS and versions <= OPENMETRICS_VERSIONS:
            return openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST
    return plain, plain_type
