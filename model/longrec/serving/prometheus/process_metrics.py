"""Process metrics of a service: its supervisor and all workers, as one scrape target."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Sequence
from typing import Any

import psutil  # type: ignore[import-untyped]


def service_processes(supervisor: int | None) -> list[psutil.Process]:
    """Return the live processes of a service.

    Args:
        supervisor: process id of the supervisor; None for this process alone.
    """
    try:
        root = psutil.Process(supervisor or os.getpid())
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return [psutil.Process()]


class ProcessMetrics:
    """A collector with the usual names; sums over processes unless the text says otherwise.

    Args:
        processes: of the service, the supervisor first.
    """

    def __init__(self, processes: Sequence[psutil.Process]) -> None:
        self._processes = processes

    def collect(self) -> Iterator[Any]:
        """Yield the metrics; a process that ended meanwhile is left out."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        live = [facts for process in self._processes if (facts := _facts(process))]
        yield CounterMetricFamily(
            "process_cpu_seconds",
            "User and system time, that of ended workers included.",
            value=sum(facts["cpu_seconds"] for facts in live),
        )
        gauges = (
            ("resident_memory_bytes", "Resident memory; shared pages count in each process.", sum),
            ("virtual_memory_bytes", "Virtual memory.", sum),
            ("open_fds", "Open files of the process with most of them.", max),
            ("start_time_seconds", "Start of the supervisor, in seconds since 1970.", min),
            ("threads", "Threads.", sum),
        )
        for name, text, merge in gauges:
            values = [facts[name] for facts in live]
            value = merge(values) if values else 0.0
            yield GaugeMetricFamily(f"process_{name}", text, value=value)
        yield GaugeMetricFamily("process_max_fds", "Files that a process may open.", _max_fds())
        yield GaugeMetricFamily("process_count", "Processes of the service.", len(live))


def _facts(process: psutil.Process) -> dict[str, float] | None:
    """Return the values of one process; None if it ended."""
    try:
        with process.oneshot():
            times = process.cpu_times()
            memory = process.memory_info()
            own_seconds = times.user + times.system
            ended_seconds = times.children_user + times.children_system
            return {
                "cpu_seconds": own_seconds + ended_seconds,
                "resident_memory_bytes": memory.rss,
                "virtual_memory_bytes": memory.vms,
                "open_fds": process.num_fds(),
                "start_time_seconds": process.create_time(),
                "threads": process.num_threads(),
            }
    except psutil.Error:
        return None


def _max_fds() -> float:
    return float(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
