"""Fields: the columns to read from a log, converted to their types; bad rows are rejected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.importers.reading.conditions import Condition
from longrec.data.importers.reading.rejects import LogBatch
from longrec.data.importers.reading.values.converted import Converted, plain_column
from longrec.data.importers.reading.values.integers import to_int64
from longrec.data.importers.reading.values.numbers import to_float64, to_label, to_text
from longrec.data.importers.reading.values.times import to_time_ms

FieldKind = Literal["int64", "float64", "string", "label", "s", "ms", "us", "ns", "iso"]

CONVERTERS: dict[str, Callable[[pa.Array], Converted]] = {
    "int64": to_int64,
    "float64": to_float64,
    "string": to_text,
    "label": to_label,
}
"""Kind -> conversion; all other kinds are units of time."""
NULLABLE_KINDS = ("int64", "float64", "string")


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """A column to read.

    Args:
        name: its name in the dataset.
        source: its name in the log file.
        kind: `int64`, `float64` or `string`; `label` (0 or 1, converted to int8); or the unit
            of a time (converted to int64 ms).
        is_required: whether a row without a value is rejected; labels and times always are.
        origin_ms: time from which the log counts its times, ms since 1970 UTC; 0 for 1970.
        condition: for a label, the condition on the source for which it is 1; None for its value.
    """

    name: str
    source: str
    kind: FieldKind
    is_required: bool = False
    origin_ms: int = 0
    condition: Condition | None = None

    @property
    def rejects_nulls(self) -> bool:
        """Whether a row without a value is rejected."""
        return self.is_required or self.kind not in NULLABLE_KINDS


def convert(batch: LogBatch, fields: Sequence[Field]) -> LogBatch:
    """Return the usable rows with one column per field; reject the others for their first fault.

    Columns are int64, float64, string, int8 (labels) or int64 milliseconds (times).
    """
    is_rejected = np.zeros(batch.table.num_rows, bool)
    columns = []
    for field in fields:
        index = batch.table.schema.get_field_index(field.source)
        converted = _convert_column(batch.table.column(index), field)
        for fault, is_faulty in converted.faults.items():
            batch.reject(is_faulty & ~is_rejected, f"{field.source} {fault}")
        is_bad = converted.is_bad
        is_rejected |= is_bad
        values = converted.values
        if field.rejects_nulls:
            is_missing = np.asarray(pc.is_null(values)) & ~is_bad
            batch.reject(is_missing & ~is_rejected, f"{field.source} is null")
            is_rejected |= is_missing
        columns.append(values)
    names = [field.name for field in fields]
    rows = batch.with_table(pa.RecordBatch.from_arrays(columns, names=names))
    return rows.filter(~is_rejected) if is_rejected.any() else rows


def _convert_column(column: pa.Array, field: Field) -> Converted:
    if field.condition is not None:
        return field.condition.evaluate(column)
    column = plain_column(column)
    converter = CONVERTERS.get(field.kind)
    if converter is None:
        return to_time_ms(column, field.kind, field.origin_ms)
    return converter(column)
