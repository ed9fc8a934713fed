"""Select and group the rows of a study's tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

Facts: TypeAlias = Mapping[str, Any]
"""Content of study.json, or one row of a table in it."""
FactsByLabel: TypeAlias = dict[str, list[Facts]]
"""Rows by variant and grid point."""


def label_of(row: Facts) -> str:
    """Return the variant, followed by the grid point if there is one."""
    parts = [row["variant"]]
    for key, value in row.items():
        # Only keys of the grid have a dot: `section.key`.
        if "." in key:
            name = key.rpartition(".")[2]
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def by_label(rows: Iterable[Facts]) -> FactsByLabel:
    """Return the rows of each variant and grid point."""
    grouped: FactsByLabel = {}
    for row in rows:
        label = label_of(row)
        own = grouped.setdefault(label, [])
        own.append(row)
    return grouped


def at_length(rows: Iterable[Facts], length: int) -> Facts:
    """Return the row of a result at a served length."""
    for row in rows:
        if row["length"] == length:
            return row
    raise KeyError(length)


def at_served_length(rows: Iterable[Facts], served_length: int) -> list[Facts]:
    """Return one row per variant and grid point, the best AUC first.

    It is the row at the served length; at the longest length if the served one was not measured.
    """
    selected = []
    for own in by_label(rows).values():
        by_length = {row["length"]: row for row in own}
        longest = max(by_length)
        row = by_length.get(served_length, by_length[longest])
        selected.append(row)
    selected.sort(key=_falling_auc)
    return selected


def _falling_auc(row: Facts) -> float:
    """Return the sort key of a row; an undefined AUC comes last."""
    return -(row["auc"] or 0.0)


def mean_of(rows: Sequence[Facts], key: str) -> float | None:
    """Return the mean of a column, rounded to one decimal; None without rows."""
    if not rows:
        return None
    total: float = sum(row[key] for row in rows)
    return round(total / len(rows), 1)
