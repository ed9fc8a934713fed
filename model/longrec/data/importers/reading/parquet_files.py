"""Parquet files, read in batches of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from longrec.data.dataset import unreadable_parquet
from longrec.data.importers.reading.log_files import open_parquet, require_columns
from longrec.data.importers.reading.rejects import LogBatch, LogFile

BATCH_ROWS = 1 << 18


def read_parquet(
    file: LogFile,
    columns: Sequence[str],
    *,
    batch_size: int | None = None,
) -> Iterator[LogBatch]:
    """Yield some columns of a Parquet file, `batch_size` rows at a time.

    Raises:
        DataError: the file is missing or truncated, or lacks a column.
    """
    reader = open_parquet(file.path)
    require_columns(
        file.path,
        reader.schema_arrow.names,
        columns,
    )
    distinct_columns = list(dict.fromkeys(columns))  # two fields may come from one column
    batches = reader.iter_batches(batch_size=batch_size or BATCH_ROWS, columns=distinct_columns)
    first = 1
    while True:
        try:  # only the reading: an error of the code that uses the batches is another one
            batch = next(batches, None)
        except (pa.ArrowInvalid, OSError) as error:
            raise unreadable_parquet(file.path, error) from error
        if batch is None:
            return
        file.count_rows(batch.num_rows)
        end = first + batch.num_rows
        yield LogBatch(
            file,
            batch,
            np.arange(first, end, dtype=np.int64),
        )
        first = end
