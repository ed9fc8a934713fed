"""Importer of Yambda (Ploshkin et al. 2025, arXiv 2505.22238): music listening, as Parquet.

Files are flat or sequential (a list of events in the row of a user). A listen is an exposure
with a label, since the log has the played share of the track. The
label `listened` is played_ratio_pct >= 50, the Listen+ of the paper. Likes, dislikes and their
withdrawals are events of the histories and never targets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longrec.data.columns import Int64, int64_column
from longrec.data.importers.item_values import UNKNOWN, FirstKnownValues
from longrec.data.importers.reading.fields import Field, convert
from longrec.data.importers.reading.log_files import column_types, require_columns
from longrec.data.importers.reading.parquet_files import BATCH_ROWS, read_parquet
from longrec.data.importers.reading.rejects import LogBatch, LogFile
from longrec.data.importers.reading.sequence_numbers import SequenceNumbers
from longrec.data.importers.requests.builder import RequestBuilder
from longrec.data.importers.requests.grouping import RequestGrouping
from longrec.data.importers.writing.dataset_builder import (
    DatasetBuilder,
    DatasetInfo,
    ImportOptions,
    open_dataset_builder,
)
from longrec.data.importers.writing.import_report import ImportReport
from longrec.errors import DataError
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, USER_ID, Feature, Schema, Task
from longrec.times import EARLIEST_MS

TASK = "listened"
EVENT_TYPE = "event_type"
TRACK_LENGTH = "track_length_seconds"
ALL_EVENTS_FILE = "multi_event.parquet"
LISTENS_FILE = "listens.parquet"
EVENT_TYPES = {
    LISTENS_FILE: "listen",
    "likes.parquet": "like",
    "dislikes.parquet": "dislike",
    "unlikes.parquet": "unlike",
    "undislikes.parquet": "undislike",
}
"""File of one type of events -> the type."""
MAPPING_FILES = {
    "artist_id": "artist_item_mapping.parquet",
    "album_id": "album_item_mapping.parquet",
}
ORIGIN_MS = 946_684_800_000
"""2000-01-01 UTC, where the times of the log begin.

They are seconds from a secret time, in steps of 5; a dataset needs dates.
"""
LATEST_S = (EARLIEST_MS - 1) // 1_000
"""Largest time in seconds from the origin (10 years); a larger one is in another unit."""
ORIGIN_NOTE = "times are counted from 2000-01-01: the log keeps its own beginning secret"
KEY_COLUMNS = ("uid", "timestamp", "item_id", "is_organic")
LISTEN_COLUMNS = ("played_ratio_pct", TRACK_LENGTH)


def yambda_schema(mappings: Sequence[str] = ()) -> Schema:
    """Return the schema of an imported Yambda log.

    Args:
        mappings: item features that come from a mapping file: `artist_id`, `album_id`.
    """
    return Schema(
        name="yambda",
        item=(
            Feature(ITEM_ID, "id", min_count=5, max_null_share=0.0),
            *(Feature(name, "id", min_count=5) for name in mappings),
            Feature(TRACK_LENGTH, "number", minimum=0),
        ),
        user=(),
        event=(
            Feature(
                EVENT_TYPE,
                "category",
                dtype="string",
                max_null_share=0.0,
            ),
            Feature(
                "is_organic",
                "category",
                max_null_share=0.0,
                minimum=0,
                maximum=1,
            ),
            Feature("played_ratio_pct", "number", minimum=0),
        ),
        tasks=(Task(TASK),),
        time_origin_ms=ORIGIN_MS,
    )


def import_yambda(
    src: str | Path,
    out: str | Path,
    *,
    threshold: int = 50,
    recommended_only: bool = False,
    grouping: RequestGrouping | None = None,
    options: ImportOptions | None = None,
) -> ImportReport:
    """Write the dataset of one size of Yambda; return the report.

    The label `listened` is played_ratio_pct >= threshold. The artist and album mappings are read
    when they are in the directory of the log or up to two directories above.

    Args:
        src: directory flat/SIZE or sequential/SIZE with multi_event.parquet, which is then read
            alone; or with listens.parquet and any of likes, dislikes, unlikes and undislikes; or
            one such file.
        out: the dataset directory.
        threshold: smallest percentage of a track that counts as listened.
        recommended_only: whether only listens from recommendations (is_organic = 0) are targets.
            All events stay in the histories.
        grouping: how listens of one user are grouped into requests.
        options: limits of the import.

    Raises:
        DataError: files or columns are missing, a file is truncated, or too many rows are bad.
    """
    grouping = grouping or RequestGrouping()
    paths = _find_log(Path(src))
    mappings = _find_mappings(paths[0].parent)
    schema = yambda_schema(tuple(mappings))
    source = {
        "kind": "yambda",
        "files": [path.name for path in paths],
        "layout": _layout(paths[0]),
        "threshold": threshold,
        "recommended_only": recommended_only,
        "origin_ms": ORIGIN_MS,
        "requests": dataclasses.asdict(grouping),
    }
    with open_dataset_builder(
        out,
        schema,
        options or ImportOptions(),
        num_events=sum(_num_events(path) for path in paths),
    ) as builder:
        track_lengths = _read_events(builder, paths)
        info = DatasetInfo(
            name=f"yambda-{paths[0].resolve().parent.name}",
            source=source,
            items=_item_table(builder, mappings, track_lengths),
            notes=[ORIGIN_NOTE],
        )
        requests = RequestBuilder(
            schema,
            grouping,
            lambda events: _exposures(events, threshold, recommended_only),
        )
        return builder.write(requests, info)


def _exposures(
    events: pa.Table,
    threshold: int,
    recommended_only: bool,
) -> pa.Table:
    """Return the listens with their label; a listen without a ratio is no exposure."""
    is_listen = pc.equal(events[EVENT_TYPE].cast(pa.string()), "listen")
    is_chosen = pc.and_(is_listen, pc.is_valid(events["played_ratio_pct"]))
    if recommended_only:
        is_chosen = pc.and_(is_chosen, pc.equal(events["is_organic"], 0))
    listens = events.filter(is_chosen)
    labels = pc.greater_equal(listens["played_ratio_pct"], threshold)
    return listens.append_column(TASK, labels.cast(pa.int8()))


def _read_events(builder: DatasetBuilder, paths: Sequence[Path]) -> FirstKnownValues:
    """Add the events of all files to the spill; return the length of each track."""
    track_lengths = FirstKnownValues()
    sequence = SequenceNumbers()
    for path in paths:
        fields = _event_fields(path)
        sequence.start_file()
        for batch in _read_flat(builder.log_file(path), [field.source for field in fields]):
            rows = convert(batch, fields)
            # `_with_all_columns` turns the seconds of this column into ms.
            seconds = int64_column(rows.table, TIMESTAMP)
            is_wrong = (seconds < 0) | (seconds > LATEST_S)
            rows.reject(is_wrong, "timestamp is not in seconds from the beginning of the log")
            table = _with_all_columns(rows.table, path.name)
            table = table.append_column(EVENT_SEQ, sequence.number(rows.lines))
            events = table.filter(pa.array(~is_wrong))
            lengths = pc.fill_null(events[TRACK_LENGTH], UNKNOWN)
            track_lengths.add(int64_column(events, ITEM_ID), np.asarray(lengths, np.int64))
            builder.spill.add(events)
    return track_lengths


def _event_fields(path: Path) -> list[Field]:
    """Return the fields of a file; only some files have the columns of listens."""
    types = _column_types(path)
    names = [name for name in (*KEY_COLUMNS, *LISTEN_COLUMNS) if name in types]
    fields = [
        Field(
            name=USER_ID if name == "uid" else name,
            source=name,
            kind="int64",
            is_required=name in KEY_COLUMNS,
        )
        for name in names
    ]
    if path.name == ALL_EVENTS_FILE:
        fields.append(Field(EVENT_TYPE, EVENT_TYPE, "string", is_required=True))
    return fields


def _with_all_columns(table: pa.RecordBatch, file_name: str) -> pa.RecordBatch:
    """Return the rows with times in ms and the columns that their file lacks.

    Likes were not played, and a file of one type of events does not name the type.
    """
    times = np.asarray(table[TIMESTAMP], np.int64) * 1_000 + ORIGIN_MS
    index = table.schema.get_field_index(TIMESTAMP)
    table = table.set_column(index, TIMESTAMP, pa.array(times))
    for name in LISTEN_COLUMNS:
        if name not in table.schema.names:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.int64()))
    if EVENT_TYPE not in table.schema.names:
        event_types = pa.repeat(EVENT_TYPES[file_name], table.num_rows)
        table = table.append_column(EVENT_TYPE, event_types)
    return table


def _read_flat(file: LogFile, columns: Sequence[str]) -> Iterator[LogBatch]:
    """Yield the events of a file of either layout; a sequential file a few users at a time."""
    if _layout(file.path) == "flat":
        yield from read_parquet(file, columns)
        return
    with pq.ParquetFile(file.path) as reader:
        num_users = reader.metadata.num_rows
    # About BATCH_ROWS events, by the mean number of events per user.
    users_per_batch = max(1, BATCH_ROWS * num_users // max(_num_events(file.path), 1))
    first = 1
    for batch in read_parquet(file, columns, batch_size=users_per_batch):
        is_uneven = _has_uneven_lists(batch.table)
        batch.reject(is_uneven, "the lists of a user differ in length")
        users = batch.table.filter(pa.array(~is_uneven))
        owners = pc.list_parent_indices(users["timestamp"])
        flat = [
            users["uid"].take(owners) if name == "uid" else pc.list_flatten(users[name])
            for name in columns
        ]
        file.count_rows(len(owners) - users.num_rows)  # read_parquet counted one row per user
        table = pa.RecordBatch.from_arrays(flat, names=list(columns))
        end = first + len(owners)
        yield LogBatch(
            file,
            table,
            np.arange(first, end, dtype=np.int64),
        )
        first = end


def _has_uneven_lists(users: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Return whether the lists of a user differ in length or are missing, bool."""
    lengths = [
        np.asarray(pc.fill_null(pc.list_value_length(users[name]), -1))
        for name in users.schema.names
        if name != "uid"
    ]
    differs = [length != lengths[0] for length in lengths]
    return np.asarray(np.any(differs, axis=0) | (lengths[0] < 0))


def _column_types(path: Path) -> dict[str, pa.DataType]:
    """Return the columns of a file; raise a DataError when it lacks a required one."""
    required = {
        ALL_EVENTS_FILE: (*KEY_COLUMNS, EVENT_TYPE, *LISTEN_COLUMNS),
        LISTENS_FILE: (*KEY_COLUMNS, *LISTEN_COLUMNS),
    }
    types = column_types(path)
    require_columns(
        path,
        list(types),
        required.get(path.name, KEY_COLUMNS),
    )
    return types


def _layout(path: Path) -> str:
    time_type = _column_types(path)["timestamp"]
    is_list = pa.types.is_list(time_type) or pa.types.is_large_list(time_type)
    return "sequential" if is_list else "flat"


def _num_events(path: Path) -> int:
    """Return the number of events of a file of either layout, from its footer."""
    with pq.ParquetFile(path) as file:
        metadata = file.metadata
    num_events = 0
    for group_index in range(metadata.num_row_groups):
        group = metadata.row_group(group_index)
        for column_index in range(group.num_columns):
            column = group.column(column_index)
            if column.path_in_schema.split(".")[0] == "timestamp":
                num_events += int(column.num_values)
    return num_events


def _item_table(
    builder: DatasetBuilder,
    mappings: dict[str, Path],
    track_lengths: FirstKnownValues,
) -> pa.Table:
    ids = track_lengths.ids()
    columns = {ITEM_ID: pa.array(ids)}
    for name, path in mappings.items():
        columns[name] = _first_of(name, builder.log_file(path, "items"), ids)
    columns[TRACK_LENGTH] = track_lengths.values_of(ids)
    return pa.table(columns)


def _first_of(name: str, file: LogFile, ids: Int64) -> pa.Array:
    """Return the first artist or album of each item.

    A mapping has several rows for a track of several artists.
    """
    values = FirstKnownValues()
    fields = (
        Field(ITEM_ID, ITEM_ID, "int64", is_required=True),
        Field(name, name, "int64", is_required=True),
    )
    num_rows = 0
    for batch in read_parquet(file, [ITEM_ID, name]):
        rows = convert(batch, fields)
        is_known = np.isin(int64_column(rows.table, ITEM_ID), ids)
        rows = rows.leave_out(~is_known, "item is not in the log")
        values.add(int64_column(rows.table, ITEM_ID), int64_column(rows.table, name))
        num_rows += rows.table.num_rows
    num_items = len(values.ids())
    file.rejects.num_accepted[file.group] += num_items
    file.rejects.filter(file.group, f"a further {name} of the same item", num_rows - num_items)
    return values.values_of(ids)


def _find_mappings(directory: Path) -> dict[str, Path]:
    """Return item feature -> its mapping file, for those in the directory or two above it."""
    directories = (directory, *directory.resolve().parents[:2])
    found = {}
    for name, file_name in MAPPING_FILES.items():
        paths = [each / file_name for each in directories if (each / file_name).is_file()]
        if paths:
            found[name] = paths[0]
    return found


def _find_log(src: Path) -> list[Path]:
    if src.is_file() and src.name in (ALL_EVENTS_FILE, *EVENT_TYPES):
        return [src]
    if (src / ALL_EVENTS_FILE).is_file():
        return [src / ALL_EVENTS_FILE]
    found = [src / name for name in EVENT_TYPES if (src / name).is_file()]
    if src / LISTENS_FILE not in found:
        raise DataError(
            f"{src} holds no Yambda log",
            found=", ".join(path.name for path in found) or "nothing",
            expected=f"{ALL_EVENTS_FILE}, or {LISTENS_FILE} and others, "
            "of flat/SIZE or sequential/SIZE",
        )
    return found
