"""Entity files: tables of items or users with one row per id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from longrec.data.columns import Int64, single_array
from longrec.data.importers.reading.fields import Field, convert
from longrec.data.importers.reading.rejects import LogBatch
from longrec.data.timelines import Mask

ARROW_TYPES = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.dictionary(pa.int32(), pa.string()),
}


def read_entities(batches: Iterable[LogBatch], fields: Sequence[Field]) -> pa.Table:
    """Return a table with one row per id, sorted by id; reject later rows of the same id.

    Args:
        batches: rows of all files, in the order of reading.
        fields: columns of the table, the id first; strings come out dictionary-encoded.
    """
    schema = pa.schema([(field.name, ARROW_TYPES[field.kind]) for field in fields])
    tables = [schema.empty_table()]
    converted = []
    for batch in batches:
        rows = convert(batch, fields)
        tables.append(pa.Table.from_batches([rows.table]).cast(schema))
        converted.append(rows)
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    ids = np.asarray(table.column(0))
    order = np.argsort(ids, kind="stable")
    is_repeated = _repeated_ids(ids, order)
    if is_repeated.any():
        _reject_repeated(
            table,
            converted,
            is_repeated,
            f"{fields[0].source} occurs twice",
        )
    if converted:
        file = converted[0].file
        file.rejects.num_accepted[file.group] += int(np.sum(~is_repeated))
    is_first = ~is_repeated[order]
    return table.take(pa.array(order[is_first]))


def _repeated_ids(ids: Int64, order: Int64) -> Mask:
    """Return whether an earlier row has the same id, bool [N]."""
    sorted_ids = ids[order]
    is_repeated = np.zeros(len(ids), bool)
    is_repeated[order[1:]] = sorted_ids[1:] == sorted_ids[:-1]
    return is_repeated


def _reject_repeated(
    table: pa.Table,
    batches: Sequence[LogBatch],
    is_repeated: Mask,
    reason: str,
) -> None:
    start = 0
    for batch in batches:
        end = start + len(batch.lines)
        columns = [single_array(column) for column in table.slice(start, end - start).columns]
        rows = batch.with_table(pa.RecordBatch.from_arrays(columns, names=table.column_names))
        rows.reject(is_repeated[start:end], reason)
        start = end
