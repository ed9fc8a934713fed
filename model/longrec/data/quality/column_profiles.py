"""Column profiles: nulls and ranges of the columns of a table, and schema mismatches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data.files import duckdb_pattern
from longrec.errors import DataError
from longrec.schema import Feature

MAX_EXAMPLES = 10
"""Largest number of failed rows that are named."""
RERUN = "Run the step that wrote it again."
ARROW_FLOATS = {"double": "float64", "float": "float32"}
"""Arrow's name of a floating-point type -> its name in a schema."""


@dataclasses.dataclass(frozen=True, slots=True)
class ExpectedColumn:
    """A column that a table must have.

    Args:
        name: its name.
        dtype: `int64`, `int8`, `float64`, `string` or `time` (a timestamp with a zone).
        max_null_share: largest share of nulls.
        minimum, maximum: bounds of its values; times in ms.
    """

    name: str
    dtype: str
    max_null_share: float = 0.0
    minimum: float | None = None
    maximum: float | None = None

    @classmethod
    def of(cls, feature: Feature) -> ExpectedColumn:
        """Return the column of a feature."""
        return cls(
            feature.name,
            feature.dtype,
            feature.max_null_share,
            feature.minimum,
            feature.maximum,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ColumnProfile:
    """Nulls and range of one column.

    Args:
        num_rows: number of rows.
        num_nulls: number of nulls; NaN counts as null.
        minimum, maximum: range of a numeric or time column (ms); None when all rows are null.
    """

    num_rows: int
    num_nulls: int
    minimum: float | None
    maximum: float | None

    @property
    def null_share(self) -> float:
        """Share of the rows that are null."""
        return self.num_nulls / max(1, self.num_rows)

    @classmethod
    def merged(cls, parts: Sequence[ColumnProfile]) -> ColumnProfile:
        """Return the profile of all parts of a column."""
        minimums = [part.minimum for part in parts if part.minimum is not None]
        maximums = [part.maximum for part in parts if part.maximum is not None]
        return cls(
            num_rows=sum(part.num_rows for part in parts),
            num_nulls=sum(part.num_nulls for part in parts),
            minimum=min(minimums, default=None),
            maximum=max(maximums, default=None),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class TableView:
    """Parquet files as a view in DuckDB.

    Args:
        connection: the DuckDB connection.
        name: name of the view.
        columns: columns that the table must have.
        key: column that identifies a row for people.
    """

    connection: Any
    name: str
    columns: tuple[ExpectedColumn, ...]
    key: str

    @classmethod
    def create(
        cls,
        connection: Any,
        name: str,
        paths: Sequence[Path],
        *,
        columns: tuple[ExpectedColumn, ...],
        key: str,
    ) -> TableView:
        """Create the view of one or more Parquet files."""
        quoted = ["'" + duckdb_pattern(path).replace("'", "''") + "'" for path in paths]
        connection.execute(
            f"create or replace view {name} as "  # noqa: S608  (callers pass constants)
            f"select * from read_parquet([{', '.join(quoted)}])"
        )
        return cls(connection, name, columns, key)

    def select(
        self,
        columns: str,
        clauses: str = "",
    ) -> list[tuple[Any, ...]]:
        """Return the rows of a query on the view.

        Args:
            columns: SQL expressions, made of names in this package and in the schema.
            clauses: what follows the table, such as a condition and an order.
        """
        query = f"select {columns} from {self.name} {clauses}"  # noqa: S608
        rows: list[tuple[Any, ...]] = self.connection.execute(query).fetchall()
        return rows

    def select_count(self, expression: str) -> int:
        """Return the value of a count over the view."""
        rows = self.select(expression)
        return int(rows[0][0])

    def failed_rows(self, predicate: str) -> list[tuple[int, str]]:
        """Return the first keys of the rows for which an SQL predicate holds.

        Each key comes as a number and in words.
        """
        noun = self.key.removesuffix("_id")
        clauses = f"where {predicate} order by 1 limit {MAX_EXAMPLES}"
        keys = [key for (key,) in self.select(f"distinct {self.key}", clauses)]
        return [(key, f"{noun} {key}") for key in keys if key is not None]

    def profile_columns(self) -> tuple[int, dict[str, ColumnProfile]]:
        """Return the number of rows and the profile of each column, in one scan."""
        selected = ["count(*)"]
        for column in self.columns:
            usable = sql_usable(column)
            selected.append(f"count(*) filter ({usable})")
            if column.dtype == "string":
                selected += ["null", "null"]
            else:
                value = sql_value(column)
                selected.append(f"min({value}) filter ({usable})")
                selected.append(f"max({value}) filter ({usable})")
        rows = self.select(", ".join(selected))
        values = iter(rows[0])
        num_rows = int(next(values))
        profiles = {}
        for column in self.columns:  # each has three values, in the order of `selected`
            num_usable = int(next(values))
            profiles[column.name] = ColumnProfile(
                num_rows,
                num_nulls=num_rows - num_usable,
                minimum=next(values),
                maximum=next(values),
            )
        return num_rows, profiles


def sql_value(column: ExpectedColumn) -> str:
    """Return the SQL expression of a column's value; times in ms."""
    if column.dtype == "time":
        return f'epoch_ms("{column.name}")'
    return f'"{column.name}"'


def sql_usable(column: ExpectedColumn) -> str:
    """Return the SQL predicate of the rows with a value."""
    predicate = f'"{column.name}" is not null'
    if column.dtype == "float64":
        predicate += f' and not isnan("{column.name}")'
    return predicate


def file_mismatches(path: str | Path, columns: Sequence[ExpectedColumn]) -> list[str]:
    """Return one line per column that a Parquet file lacks or has with another type.

    Raises:
        DataError: the file is missing or not Parquet.
    """
    try:
        schema = pq.read_schema(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", fix=RERUN) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} is not a Parquet file",
            found=str(error),
            fix=RERUN,
        ) from error
    return schema_mismatches(schema, columns)


def schema_mismatches(schema: pa.Schema, columns: Sequence[ExpectedColumn]) -> list[str]:
    """Return one line per column that an Arrow schema lacks or has with another type."""
    mismatches = []
    for column in columns:
        if column.name not in schema.names:
            mismatches.append(f"{column.name} is missing")
            continue
        dtype = _dtype_of(schema.field(column.name).type)
        if dtype != column.dtype:
            mismatches.append(f"{column.name} is {dtype} instead of {column.dtype}")
    return mismatches


def _dtype_of(arrow_type: pa.DataType) -> str:
    """Return the dtype of `ExpectedColumn`, or another name for a type that none has."""
    if pa.types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    if pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type):
        return "string"
    if pa.types.is_timestamp(arrow_type):
        return "time" if arrow_type.tz else "timestamp without a zone"
    name = str(arrow_type)
    return ARROW_FLOATS.get(name, name)
