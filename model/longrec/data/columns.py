"""Names and Arrow types of columns that several modules share, and checked access to a column."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longrec.errors import DataError
from longrec.schema import Feature

FEATURE_TABLES_FORMAT_VERSION = 1
EVENT_TIME = "event_timestamp"
"""Feast's time column in every feature table."""
HISTORY = "history"
"""Base history of a user, packed."""
HISTORY_LENGTH = "history_length"
TAIL = "history_tail"
"""Incremental tail: pushed events that are not in the base history yet, packed."""
TAIL_LENGTH = "history_tail_length"
TAIL_BASE = "history_tail_base"
"""Number of events in the base history that the tail continues."""

TIMESTAMP_TYPE = pa.timestamp("ms", tz="UTC")
"""Times of datasets."""
FEATURE_TIME_TYPE = pa.timestamp("us", tz="UTC")
"""Times of feature tables: microseconds, as in the Python datetimes that Feast works with."""

Int64 = npt.NDArray[np.int64]
Column: TypeAlias = pa.Array | pa.ChunkedArray

_ARROW_TYPES = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.string(),
}
_MAX_EXACT_FLOAT = 2**53
"""Feast turns an integer column with a null into float64, which is exact up to here."""


def arrow_type(feature: Feature) -> pa.DataType:
    """Return the Arrow type of a feature's column in a dataset."""
    return _ARROW_TYPES[feature.dtype]


def require_column(table: pa.Table | pa.RecordBatch, name: str) -> Column:
    """Return a column by name.

    Raises:
        DataError: the table has no such column.
    """
    position = table.schema.get_field_index(name)
    if position < 0:
        raise DataError(
            f"column '{name}' is missing",
            found=", ".join(table.schema.names),
            fix="Make the table for this schema.",
        )
    return table.column(position)


def int64_column(table: pa.Table | pa.RecordBatch, name: str) -> Int64:
    """Return a column without nulls as int64; timestamps become milliseconds.

    Raises:
        DataError: the column is missing, holds a null or has the wrong type.
    """
    column = single_array(require_column(table, name))
    if column.null_count:
        raise DataError(
            f"column '{name}' must not hold nulls",
            found=f"{column.null_count} of {len(column)}",
        )
    if pa.types.is_timestamp(column.type):
        milliseconds = pa.timestamp("ms", tz=column.type.tz)
        column = cast_column(column, milliseconds, name).view(pa.int64())
    else:
        column = cast_column(column, pa.int64(), name)
    return np.asarray(column, np.int64)


def single_array(column: Column) -> pa.Array:
    """Return a column as one array, without a copy where it has one chunk."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return column.combine_chunks()


def cast_column(
    column: pa.Array,
    dtype: pa.DataType,
    name: str,
    *,
    safe: bool = True,
) -> pa.Array:
    """Return a column with another type.

    Args:
        column: any array.
        dtype: the Arrow type to cast to.
        name: name of the column, for errors.
        safe: whether a value that does not fit is an error.

    Raises:
        DataError: the column cannot be cast.
    """
    if column.type == dtype:
        return column
    try:
        return pc.cast(column, dtype, safe=safe)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"column '{name}' has the wrong type",
            found=str(column.type),
            expected=str(dtype),
        ) from error


def timestamp_column(times_ms: Int64) -> pa.Array:
    """Return times for a dataset.

    Args:
        times_ms: int64, milliseconds since 1970 UTC.
    """
    return pa.array(times_ms, pa.int64()).view(TIMESTAMP_TYPE)


def feature_times(times_ms: Int64) -> pa.Array:
    """Return times for a feature table.

    Args:
        times_ms: int64, milliseconds since 1970 UTC.
    """
    return timestamp_column(times_ms).cast(FEATURE_TIME_TYPE)


def to_stored_column(column: Column, feature: Feature) -> Column:
    """Return a dataset's column as the feature store holds it.

    NaN becomes null, and a nullable integer id becomes decimal text.

    Raises:
        DataError: an integer column holds a null and a value beyond 2**53, which Feast would
            change.
    """
    if feature.dtype == "float64":
        no_value = pa.scalar(None, pa.float64())
        return pc.if_else(pc.is_nan(column), no_value, column)
    has_nulls = column.null_count > 0
    has_values = len(column) > column.null_count
    if feature.stored_dtype == "int64" and has_nulls and has_values:
        _check_exact(column, feature)
    return pc.cast(column, _ARROW_TYPES[feature.stored_dtype])


def from_stored_column(column: Column, feature: Feature) -> Column:
    """Return a column of the feature store as the dataset had it."""
    return pc.cast(column, arrow_type(feature))


def _check_exact(column: Column, feature: Feature) -> None:
    bounds = pc.min_max(column).as_py()
    low = bounds["min"]
    high = bounds["max"]
    if max(-low, high) <= _MAX_EXACT_FLOAT:
        return
    raise DataError(
        f"feature '{feature.name}' cannot pass the feature store exactly",
        found=f"{column.null_count} nulls and values in {low}..{high}",
        expected="no nulls, or values within 2**53",
        fix="Declare it as kind 'id' with max_null_share above 0.",
    )
