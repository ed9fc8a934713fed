"""Reports of the workers of a work directory, for `longrec models list` and `shadow report`.

Each worker writes models/workers/HOST-PID.json, at each change and every HEARTBEAT_SECONDS.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longrec.data import files
from longrec.errors import LongrecError
from longrec.release import registry

HEARTBEAT_SECONDS = 10.0
"""Longest time between two reports of a worker."""
LIVE_SECONDS = 3 * HEARTBEAT_SECONDS
"""A worker with a younger report is live."""
MAX_REPORT_AGE_SECONDS = 7 * 86_400
"""Older reports are removed."""
NUM_SHOWN_DECISIONS = 10

Report = dict[str, Any]
"""JSON object of a worker."""
SHOWN_KEYS = (
    "host",
    "pid",
    "at",
    "serving",
    "pinned",
    "generation",
    "refused",
)
SUMMED_KEYS = (
    "compared",
    "dropped",
    "failed",
    "ranked",
    "rank_correlation",
    "scores",
    "difference",
)


def report_path(workdir: str | Path) -> Path:
    """Return the report file of this process."""
    name = f"{socket.gethostname()}-{os.getpid()}.json"
    return _reports_dir(workdir) / name


def workers(workdir: str | Path) -> list[Report]:
    """Return the reports of the last week, each with `is_live`; remove older ones."""
    reports = []
    for path in sorted(_reports_dir(workdir).glob("*.json")):
        with contextlib.suppress(LongrecError, OSError):
            age_seconds = time.time() - path.stat().st_mtime
            if age_seconds > MAX_REPORT_AGE_SECONDS:
                path.unlink()
                continue
            report = files.read_json(path)
            reports.append({**report, "is_live": age_seconds < LIVE_SECONDS})
    return reports


def shadow_report(workdir: str | Path) -> Report | None:
    """Return the comparison of champion and challenger over all workers, None without one.

    Without a challenger it is the last comparison. Latencies are medians over the last requests of
    each worker. The champion's include the queue and the rest of the batch; the challenger scores
    one request at a time. Under load their ratio therefore flatters the challenger.
    """
    current = registry.read_registry(workdir)
    reports = sorted(workers(workdir), key=lambda report: report["at"])
    reported = [report.get("shadow") for report in reports]
    comparisons = [comparison for comparison in reported if comparison]
    chosen = _current_comparisons(comparisons, current)
    if not chosen:
        return None
    total = _sums(chosen)
    champion_ms = _median_of(chosen, "champion_ms")
    challenger_ms = _median_of(chosen, "challenger_ms")
    return {
        "champion": chosen[0]["champion"],
        "challenger": chosen[0]["challenger"],
        "workers": len(chosen),
        "compared": total["compared"],
        "dropped": total["dropped"],
        "failed": total["failed"],
        "rank_correlation": _ratio(total["rank_correlation"], total["ranked"]),
        "mean_difference": _ratio(total["difference"], total["scores"]),
        "largest_difference": max(each["largest"] for each in chosen),
        "champion_ms": champion_ms,
        "challenger_ms": challenger_ms,
        "latency_ratio": _ratio(challenger_ms, champion_ms),
        "is_enough": total["compared"] >= registry.MIN_SHADOW_PAIRS,
    }


def rollout_summary(workdir: str | Path, store: str | Path) -> Report:
    """Return the registry, the models of the store, the live workers and the last decisions."""
    current = registry.read_registry(workdir)
    stored_models = registry.list_models(workdir, store)
    live = [worker for worker in workers(workdir) if worker["is_live"]]
    decisions = registry.read_decisions(workdir)[-NUM_SHOWN_DECISIONS:]
    return {
        "champion": current.champion,
        "previous": current.previous,
        "challenger": current.challenger,
        "mirror_share": current.mirror_share,
        "generation": current.generation,
        "models": [dataclasses.asdict(model) for model in stored_models],
        "workers": [_shown(worker) for worker in live],
        "log": [dataclasses.asdict(decision) for decision in decisions],
    }


def _reports_dir(workdir: str | Path) -> Path:
    return registry.registry_path(workdir).parent / "workers"


def _current_comparisons(
    comparisons: list[Report], current: registry.ModelRegistry
) -> list[Report]:
    """Return the comparisons of the current pair, or else of the pair that was reported last.

    Args:
        comparisons: comparisons of the workers, the newest report last.
        current: names the current pair; without a champion each worker serves its own version.
    """
    if not comparisons:
        return []
    pair = _pair(comparisons[-1])
    for comparison in comparisons:
        champion, challenger = _pair(comparison)
        is_current_champion = current.champion in (None, champion)
        if is_current_champion and challenger == current.challenger:
            pair = (champion, challenger)
    return [comparison for comparison in comparisons if _pair(comparison) == pair]


def _pair(comparison: Report) -> tuple[str, str]:
    return comparison["champion"], comparison["challenger"]


def _shown(worker: Report) -> Report:
    """Return the keys of a report that a summary shows."""
    return {key: worker[key] for key in SHOWN_KEYS}


def _sums(comparisons: Sequence[Report]) -> dict[str, Any]:
    """Return the sum of each of SUMMED_KEYS."""
    sums: dict[str, Any] = dict.fromkeys(SUMMED_KEYS, 0)
    for comparison in comparisons:
        for key in SUMMED_KEYS:
            sums[key] += comparison[key]
    return sums


def _median_of(comparisons: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values: list[float] = []
    for comparison in comparisons:
        values += comparison[key]
    if not values:
        return None
    return float(np.median(values))


def _ratio(a: float | None, b: float | None) -> float | None:
    if a is None or not b:
        return None
    return a / b
