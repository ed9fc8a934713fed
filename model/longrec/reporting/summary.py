"""What a pipeline step says of itself: the small report of a library call as numbers and as JSON
facts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any


def facts(report: Any) -> dict[str, Any]:
    """Returns the JSON form of a report (a dataclass): paths become text, tuples become lists."""
    return {field.name: _plain(getattr(report, field.name)) for field in dataclasses.fields(report)}


def numbers(report: Any) -> dict[str, float]:
    """Returns the finite numbers of a report by name; names of nested values are joined by `.`,
    booleans count as 0 and 1.

    Lists are left out: a metric has one value.
    """
    return dict(_numbers("", facts(report)))


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _numbers(f"{name}.{key}" if name else str(key), entry)
    elif isinstance(value, (bool, int, float)) and math.isfinite(value):
        yield name, float(value)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return facts(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, PurePath) else value
