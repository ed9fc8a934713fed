"""Exemplars of histograms: the trace of the latest sampled request in each bucket.

prometheus_client keeps no exemplars where several processes count. Each worker therefore writes its
own ones to a file beside its counts, and the exposition adds them to the buckets (OpenMetrics 1.0).
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from longrec.tracing import Trace

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of prometheus_client: the folder to which workers write their metrics."""
FILE_PATTERN = "exemplars_*.json"
WRITE_SECONDS = 1.0
"""Shortest time between two writes of a worker's file."""


class Bucket(NamedTuple):
    """A bucket of a histogram.

    Args:
        metric: name of the histogram.
        labels: names and values, sorted.
        le: upper bound, inclusive.
    """

    metric: str
    labels: tuple[tuple[str, str], ...]
    le: float


@dataclasses.dataclass(frozen=True, slots=True)
class BucketExemplar:
    """An observation and the trace of its request.

    Args:
        trace_id, span_id: hexadecimal.
        value: observed.
        timestamp: seconds since 1970.
    """

    trace_id: str
    span_id: str
    value: float
    timestamp: float


class ExemplarFile:
    """Exemplars of one worker.

    Args:
        folder: of the metrics of all workers; None keeps no exemplars.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._exemplars: dict[Bucket, BucketExemplar] = {}
        self._written_at = -math.inf

    def add(
        self,
        histogram: str,
        labels: Mapping[str, str],
        value: float,
        *,
        bounds: Sequence[float],
        trace: Trace,
    ) -> None:
        """Keep an observation as the exemplar of its bucket; any thread may call it.

        Args:
            histogram: name of the metric.
            labels: of the series.
            value: observed.
            bounds: of the buckets, ascending, without infinity.
            trace: of the request.
        """
        place = bisect.bisect_left(bounds, value)
        bound = bounds[place] if place < len(bounds) else math.inf
        bucket = Bucket(histogram, tuple(sorted(labels.items())), float(bound))
        self._exemplars[bucket] = BucketExemplar(
            trace_id=trace.trace_id,
            span_id=trace.span_id,
            value=value,
            timestamp=time.time(),
        )

    def write(self) -> None:
        """Write the file, unless it was just written; a full disk costs the exemplars only."""
        now = time.monotonic()
        if self._folder is None or now - self._written_at < WRITE_SECONDS:
            return
        self._written_at = now
        rows = []
        for bucket, exemplar in self._exemplars.copy().items():
            facts = dataclasses.astuple(exemplar)
            rows.append([*bucket, *facts])
        name = FILE_PATTERN.replace("*", str(os.getpid()))
        path = self._folder / name
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(rows), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            log.warning("the exemplars of this worker cannot be written: %s", error)


@functools.cache
def worker_exemplars() -> ExemplarFile:
    """Return the exemplars of this process, in the folder that prometheus_client has too."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return ExemplarFile(Path(folder) if folder else None)


def read_exemplars(folder: Path) -> dict[Bucket, BucketExemplar]:
    """Return the latest exemplar of each bucket that any worker wrote.

    Args:
        folder: of the metrics of all workers.
    """
    latest: dict[Bucket, BucketExemplar] = {}
    for path in folder.glob(FILE_PATTERN):
        for metric, labels, le, *facts in json.loads(path.read_text(encoding="utf-8")):
            pairs = tuple((name, value) for name, value in labels)
            bucket = Bucket(metric, pairs, le)
            exemplar = BucketExemplar(*facts)
            before = latest.get(bucket)
            if before is None or before.timestamp < exemplar.timestamp:
                latest[bucket] = exemplar
    return latest


def with_exemplar(
    metric: str,
    sample: Any,
    exemplars: Mapping[Bucket, BucketExemplar],
) -> Any:
    """Return a sample of prometheus_client, a bucket with its exemplar if it has one.

    Args:
        metric: name of the metric.
        sample: of the metric.
        exemplars: of all buckets.
    """
    from prometheus_client.samples import Exemplar

    labels = {**sample.labels}
    bound = labels.pop("le", None)
    if bound is None:
        return sample
    bucket = Bucket(metric, tuple(sorted(labels.items())), float(bound))
    found = exemplars.get(bucket)
    if found is None:
        return sample
    ids = {
        "trace_id": found.trace_id,
        "span_id": found.span_id,
    }
    exemplar = Exemplar(ids, found.value, found.timestamp)
    return sample._replace(exemplar=exemplar)
