"""Log files of any format, read in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from longrec.data.importers.reading.file_search import partition_columns
from longrec.data.importers.reading.json_files import read_json_lines
from longrec.data.importers.reading.log_files import (
    column_names,
    default_delimiter,
    own_column_names,
    require_columns,
)
from longrec.data.importers.reading.parquet_files import read_parquet
from longrec.data.importers.reading.rejects import LogBatch, LogFile
from longrec.data.importers.reading.text_files import read_delimited


def read_rows(
    file: LogFile,
    columns: Sequence[str],
    *,
    delimiter: str | None = None,
    has_quotes: bool = True,
) -> Iterator[LogBatch]:
    """Yield the rows of a .parquet, .csv, .tsv or .jsonl file.

    A column that the file lacks may be in the name of a folder, such as `date=2024-05-01`.

    Args:
        file: the log file; its suffix defines the format.
        columns: columns that it must have.
        delimiter: of a text file; None for the usual one of its suffix.
        has_quotes: whether fields of a text file may be in double quotes.

    Raises:
        DataError: the file is unreadable or lacks a column.
    """
    path = file.path
    require_columns(path, column_names(path, delimiter), columns)
    own_names = own_column_names(path, delimiter)
    own_columns = [name for name in columns if name in own_names]
    values = partition_columns(path)
    added = {name: values[name] for name in columns if name not in own_names}
    if path.suffix == ".parquet":
        batches = read_parquet(file, own_columns)
    elif path.suffix == ".jsonl":
        batches = read_json_lines(file, own_columns)
    else:
        batches = read_delimited(
            file,
            delimiter=delimiter or default_delimiter(path),
            has_quotes=has_quotes,
        )
    return (_with_columns(batch, added) for batch in batches)


def _with_columns(batch: LogBatch, values: dict[str, str | None]) -> LogBatch:
    """Return the rows with further columns of one value each."""
    table = batch.table
    for name, value in values.items():
        column = pa.repeat(pa.scalar(value, pa.string()), table.num_rows)
        table = table.append_column(name, column)
    return batch.with_table(table)
