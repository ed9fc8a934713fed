"""Log files of any format, read in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from longrec.data.importers.reading.log_files import (
    column_names,
    default_delimiter,
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
    """Yield the rows of a .parquet, .csv or .tsv file.

    Args:
        file: the log file; its suffix defines the format.
        columns: columns that it must have.
        delimiter: of a text file; None for the usual one of its suffix.
        has_quotes: whether fields of a text file may be in double quotes.

    Raises:
        DataError: the file is unreadable or lacks a column.
    """
    if file.path.suffix == ".parquet":
        yield from read_parquet(file, columns)
        return
    require_columns(
        file.path,
        column_names(file.path, delimiter),
        columns,
    )
    yield from read_delimited(
        file,
        delimiter=delimiter or default_delimiter(file.path),
        has_quotes=has_quotes,
    )
