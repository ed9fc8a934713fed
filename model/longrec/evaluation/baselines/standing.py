"""Say where the ranker stands against the baselines, by the intervals of the paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from longrec.evaluation.bootstrap import Estimate

Row: TypeAlias = Mapping[str, Any]

PHRASES = {
    "below": "below {names}",
    "level": "level with {names}",
    "above": "above {names}",
    "unknown": "not compared with {names}",
}
"""Standing -> its words, the worst first."""


def standing(difference: Estimate) -> str:
    """Return `above`, `below` or `level` by the interval of a difference; else `unknown`."""
    if difference.low is None or difference.high is None:
        return "unknown"
    if difference.low > 0:
        return "above"
    return "below" if difference.high < 0 else "level"


def describe(rows: Sequence[Row]) -> str:
    """Return one sentence about the baselines of a task.

    Args:
        rows: `baselines` of the task in metrics.json.
    """
    if not rows:
        return "The model is compared with no baseline."
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(row["standing"], []).append(row["name"])
    if list(names) == ["above"]:
        return f"The model is above all {len(rows)} baselines."
    parts = []
    for key, phrase in PHRASES.items():
        if key in names:
            parts.append(phrase.format(names=", ".join(names[key])))
    return f"The model is {'; '.join(parts)}."
