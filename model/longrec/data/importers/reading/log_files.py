"""Log files on disk: name their columns, estimate their rows."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data.dataset import unreadable_parquet
from longrec.data.importers.reading.file_search import partition_columns
from longrec.data.importers.reading.json_files import json_keys
from longrec.errors import DataError

SAMPLE_BYTES = 1 << 20
"""Size of the sample that the number of lines is estimated from."""


def column_names(path: Path, delimiter: str | None = None) -> list[str]:
    """Return the column names of a log file: its own, then those of its folders."""
    names = own_column_names(path, delimiter)
    return list(dict.fromkeys([*names, *partition_columns(path)]))


def own_column_names(path: Path, delimiter: str | None = None) -> list[str]:
    """Return the column names inside a log file."""
    if path.suffix == ".parquet":
        return list(open_parquet(path).schema_arrow.names)
    if path.suffix == ".jsonl":
        return json_keys(path)
    return header_names(path, delimiter=delimiter or default_delimiter(path))


def header_names(
    path: Path,
    *,
    delimiter: str = ",",
    encoding: str = "utf-8-sig",
) -> list[str]:
    """Return the column names in the first line of a text file.

    Raises:
        DataError: the file is missing or empty, or two columns have the same name.
    """
    try:
        with path.open(encoding=encoding, newline="", errors="replace") as stream:
            names = next(csv.reader(stream, delimiter=delimiter), [])
    except OSError as error:
        raise DataError(f"cannot read {path}", found=error.strerror) from error
    if not names:
        raise DataError(f"{path} is empty", expected="a header line and rows")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{path} names a column twice", found=", ".join(repeated))
    return names


def default_delimiter(path: Path) -> str:
    """Return the delimiter of a text file by its suffix."""
    return "\t" if path.suffix == ".tsv" else ","


def require_columns(
    path: Path,
    found: Sequence[str],
    required: Iterable[str],
) -> None:
    """Raise a DataError when a file lacks a required column."""
    missing = [name for name in dict.fromkeys(required) if name not in found]
    if not missing:
        return
    noun = "column" if len(missing) == 1 else "columns"
    raise DataError(f"{path} lacks the {noun} {', '.join(missing)}", found=", ".join(found))


def column_types(path: Path) -> dict[str, pa.DataType]:
    """Return the type of each column of a Parquet file; nothing for a text file.

    A dictionary-encoded column has the type of its values.
    """
    if path.suffix != ".parquet":
        return {}
    schema = open_parquet(path).schema_arrow
    return {field.name: value_type(field.type) for field in schema}


def value_type(arrow_type: pa.DataType) -> pa.DataType:
    """Return the type of the values of a column, without its dictionary encoding."""
    if pa.types.is_dictionary(arrow_type):
        return arrow_type.value_type
    return arrow_type


def estimate_num_rows(path: Path) -> int:
    """Return the exact number of rows of a Parquet file, or an estimate for a text file."""
    if path.suffix == ".parquet":
        return int(open_parquet(path).metadata.num_rows)
    with path.open("rb") as stream:
        sample = stream.read(SAMPLE_BYTES)
    num_lines = sample.count(b"\n")
    return 1 + path.stat().st_size * num_lines // max(len(sample), 1)


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file.

    Raises:
        DataError: the file is missing or unreadable.
    """
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable_parquet(path, error) from error
