"""Turn the report of a library call into JSON and into metrics of a pipeline step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any


def as_dict(report: Any) -> dict[str, Any]:
    """Return the JSON form of a report: paths become text, tuples become lists.

    Args:
        report: a dataclass.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(report):
        values[field.name] = _as_json(getattr(report, field.name))
    return values


def scalar_metrics(report: Any) -> dict[str, float]:
    """Return the finite numbers of a report by name.

    Names of nested values are joined by `.`. Booleans count as 0 and 1. Lists are left out: a
    metric has one value.

    Args:
        report: a dataclass.
    """
    return dict(_named_numbers("", as_dict(report)))


def _named_numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            full_name = f"{name}.{key}" if name else str(key)
            yield from _named_numbers(full_name, entry)
        return
    is_number = isinstance(value, (bool, int, float))
    if is_number and math.isfinite(value):
        yield name, float(value)


def _as_json(value: Any) -> Any:
    if isinstance(value, type):
        return value
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _as_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(entry) for entry in value]
    if isinstance(value, PurePath):
        return str(value)
    return value
