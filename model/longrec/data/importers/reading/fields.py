"""Fields: the columns to read from a log, converted to their types; bad rows are rejected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.importers.reading.numbers import (
    Converted,
    to_float64,
    to_int64,
    to_label,
    to_text,
)
from longrec.data.importers.reading.rejects import LogBatch
from longrec.data.importers.reading.times import to_time_ms

FieldKind = Literal["int64", "float64", "string", "label", "s", "ms", "us", "ns", "iso"]

CONVERTERS: dict[str, tuple[Callable[[pa.Array], Converted], str]] = {
    "int64": (to_int64, "is not a whole number"),
    "float64": (to_float64, "is not a number"),
    "string": (to_text, "is not in the encoding of the file"),
    "label": (to_label, "is not 0 or 1"),
}
"""Kind -> (conversion, reason to reject a value); all other kinds are units of time."""
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
    """

    name: str
    source: str
    kind: FieldKind
    is_required: bool = False

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
        column, fault = _convert_column(batch.table.column(index), field.kind)
        values, is_bad = column
        batch.reject(is_bad & ~is_rejected, f"{field.source} {fault}")
        is_rejected |= is_bad
        if field.rejects_nulls:
            is_missing = np.asarray(pc.is_null(values)) & ~is_bad
            batch.reject(is_missing & ~is_rejected, f"{field.source} is null")
            is_rejected |= is_missing
        columns.append(values)
    names = [field.name for field in fields]
    converted = batch.with_table(pa.RecordBatch.from_arrays(columns, names=names))
    return converted.filter(~is_rejected) if is_rejected.any() else converted


def _convert_column(column: pa.Array, kind: FieldKind) -> tuple[Converted, str]:
    """Return the converted column and the reason to reject a bad value."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if kind not in CONVERTERS:
        return to_time_ms(column, kind), "is not a time from 1980 to 2099"
    converter, fault = CONVERTERS[kind]
    return converter(column), fault
