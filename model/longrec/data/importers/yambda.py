"""Yambda (Ploshkin et al. 2025, arXiv 2505.22238): music listening, flat or sequential Parquet.
Listens are exposures, liked or skipped.

A listen says which track was played and how much of it, so it is an exposure with a label:
`listened` is played_ratio_pct >= 50, the
Listen+ of the paper. Likes, dislikes and their withdrawals are events of the histories and never
targets.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longrec.data.dataset import int64_of, parts_for
from longrec.data.importers.assembly import ImportOptions, ImportReport, Spill, assemble, spilling
from longrec.data.importers.readers import (
    Field,
    Rejects,
    Rows,
    arrow_types,
    convert,
    read_parquet,
    reject,
    require_columns,
)
from longrec.data.importers.request_cutting import UNKNOWN, Cutter, ItemValues
from longrec.data.importers.requests import RequestRule
from longrec.errors import DataError
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, USER_ID, Feature, Schema, Task

TASK = "listened"
MULTI = "multi_event.parquet"
FILES = {
    "listens.parquet": "listen",
    "likes.parquet": "like",
    "dislikes.parquet": "dislike",
    "unlikes.parquet": "unlike",
    "undislikes.parquet": "undislike",
}
MAPPINGS = {"artist_id": "artist_item_mapping.parquet", "album_id": "album_item_mapping.parquet"}
ORIGIN_MS = 946_684_800_000
"""2000-01-01 UTC. The times of the log are seconds from a secret moment, in steps of 5; longrec's
need a year.
"""
LATEST_S = 1_000_000_000
_ALWAYS = ("uid", "timestamp", "item_id", "is_organic")
_PLAYED = ("played_ratio_pct", "track_length_seconds")
_BATCH = 1 << 18


def yambda_schema(mappings: Sequence[str] = ()) -> Schema:
    """Returns the schema of an imported Yambda log, with those of artist_id and album_id whose
    mapping is there.
    """
    return Schema(
        name="yambda",
        item=(
            Feature(ITEM_ID, "id", min_count=5, max_null_share=0.0),
            *(Feature(name, "id", min_count=5) for name in mappings),
            Feature("track_length_seconds", "number", minimum=0),
        ),
        user=(),
        event=(
            Feature("event_type", "category", dtype="string", max_null_share=0.0),
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
    )


def import_yambda(
    src: str | Path,
    out: str | Path,
    *,
    threshold: int = 50,
    recommended_only: bool = False,
    rule: RequestRule | None = None,
    options: ImportOptions | None = None,
) -> ImportReport:
    """Writes the dataset of one size of Yambda and returns the report; `listened` is
    played_ratio_pct >= threshold.

    Args:
        src: directory flat/SIZE or sequential/SIZE with multi_event.parquet (read alone where it is
            there), or with listens.parquet
            and any of likes, dislikes, unlikes, undislikes; or one such file. The artist and album
            mappings are read where they
            lie in it or up to two directories above.
        out: the dataset directory.
        threshold: least percentage of the track that counts as listened.
        recommended_only: whether targets are only the listens that a recommendation started
            (is_organic = 0); histories keep all.
        rule: how requests are cut: listens of one user within a window.
        options: bounds of the import.

    Raises:
        DataError: files or columns are missing, a file is truncated, or too many rows are bad.
    """
    started, rule, options, target = (
        time.monotonic(),
        rule or RequestRule(),
        options or ImportOptions(),
        Path(out),
    )
    paths = _find(Path(src))
    mappings = {
        name: found for name, file in MAPPINGS.items() if (found := _above(paths[0].parent, file))
    }
    schema, lengths = yambda_schema(tuple(mappings)), ItemValues()
    source = {
        "kind": "yambda",
        "files": [path.name for path in paths],
        "layout": _layout(paths[0]),
        "threshold": threshold,
        "recommended_only": recommended_only,
        "origin_ms": ORIGIN_MS,
        "requests": dataclasses.asdict(rule),
    }
    num_parts = parts_for(sum(_num_events(path) for path in paths), options.rows_per_part)
    with (
        Rejects(target, options.max_reject_share) as rejects,
        spilling(target, schema, (), num_parts) as spill,
    ):
        _spill(paths, spill, lengths, rejects)
        ids = lengths.ids()
        catalogue = pa.table(
            {
                ITEM_ID: ids,
                **{name: _first_of(name, path, ids, rejects) for name, path in mappings.items()},
                "track_length_seconds": lengths.of(ids),
            }
        )
        cutter = Cutter(
            schema, rule, None, None, lambda events: _exposures(events, threshold, recommended_only)
        )
        return assemble(
            target,
            schema,
            spill,
            cutter,
            rejects,
            name=f"yambda-{paths[0].resolve().parent.name}",
            source=source,
            items=catalogue,
            notes=lambda: [
                "times are counted from 2000-01-01: the log keeps its own beginning secret"
            ],
            started=started,
        )


def _exposures(events: pa.Table, threshold: int, recommended_only: bool) -> pa.Table:
    """Returns the listens with their label; a listen without a ratio is none."""
    chosen = pc.and_(
        pc.equal(events["event_type"].cast(pa.string()), "listen"),
        pc.is_valid(events["played_ratio_pct"]),
    )
    if recommended_only:
        chosen = pc.and_(chosen, pc.equal(events["is_organic"], 0))
    events = events.filter(chosen)
    return events.append_column(
        TASK, pc.greater_equal(events["played_ratio_pct"], threshold).cast(pa.int8())
    )


def _spill(
    paths: Sequence[Path],
    spill: Spill,
    lengths: ItemValues,
    rejects: Rejects,
) -> None:
    sequence = 0
    for path in paths:
        present = _columns(path)
        plain = [name for name in (*_ALWAYS, *_PLAYED) if name in present]
        fields = [
            Field({"uid": USER_ID}.get(name, name), name, "int64", name in _ALWAYS)
            for name in plain
        ]
        fields += [Field("event_type", "event_type", "string", True)] if path.name == MULTI else []
        last = 0
        for rows in _read(path, [field.source for field in fields], rejects):
            batch, lines = convert(rows, fields, rejects, "events", path)
            seconds = int64_of(batch, TIMESTAMP)
            wrong = (seconds < 0) | (seconds > LATEST_S)
            reject(
                rejects,
                "events",
                path,
                Rows(batch, lines),
                wrong,
                "timestamp is not in seconds from the beginning of the log",
            )
            last = int(lines[-1]) if len(lines) else last
            batch = (
                _complete(batch, path)
                .append_column(EVENT_SEQ, pa.array(sequence + lines - 1))
                .filter(pa.array(~wrong))
            )
            lengths.add(
                int64_of(batch, ITEM_ID),
                np.asarray(pc.fill_null(batch["track_length_seconds"], UNKNOWN), np.int64),
            )
            spill.add(batch)
        sequence += last


def _complete(batch: pa.RecordBatch, path: Path) -> pa.RecordBatch:
    """Returns the rows with times in ms and with all columns: likes were not played, and their
    files do not say that they are likes.
    """
    times = pa.array(np.asarray(batch[TIMESTAMP], np.int64) * 1_000 + ORIGIN_MS)
    batch = batch.set_column(batch.schema.get_field_index(TIMESTAMP), TIMESTAMP, times)
    for name in _PLAYED:
        if name not in batch.schema.names:
            batch = batch.append_column(name, pa.nulls(batch.num_rows, pa.int64()))
    if "event_type" not in batch.schema.names:
        batch = batch.append_column("event_type", pa.repeat(FILES[path.name], batch.num_rows))
    return batch


def _read(path: Path, columns: Sequence[str], rejects: Rejects) -> Iterator[Rows]:
    """Yields the events of a file of either layout; of a sequential one a few users at a time."""
    if _layout(path) == "flat":
        yield from read_parquet(path, rejects, "events", columns)
        return
    with pq.ParquetFile(path) as file:
        num_users = file.metadata.num_rows
    first = 1
    for rows in read_parquet(
        path,
        rejects,
        "events",
        columns,
        batch_size=max(1, _BATCH * num_users // max(_num_events(path), 1)),
    ):
        counts = [
            np.asarray(pc.fill_null(pc.list_value_length(rows.table[name]), -1))
            for name in columns
            if name != "uid"
        ]
        uneven = np.any([count != counts[0] for count in counts], axis=0) | (counts[0] < 0)
        reject(rejects, "events", path, rows, uneven, "the lists of a user differ in length")
        users = rows.table.filter(pa.array(~uneven))
        owners = pc.list_parent_indices(users["timestamp"])
        flat = [
            users["uid"].take(owners) if name == "uid" else pc.list_flatten(users[name])
            for name in columns
        ]
        rejects.num_read["events"] += len(owners) - users.num_rows
        yield Rows(
            pa.RecordBatch.from_arrays(flat, names=list(columns)),
            np.arange(first, first + len(owners), dtype=np.int64),
        )
        first += len(owners)


def _columns(path: Path) -> dict[str, pa.DataType]:
    found = arrow_types(path)
    wanted = {
        MULTI: (*_ALWAYS, "event_type", *_PLAYED),
        "listens.parquet": (*_ALWAYS, *_PLAYED),
    }.get(path.name, _ALWAYS)
    require_columns(path, list(found), wanted)
    return found


def _layout(path: Path) -> str:
    kind = _columns(path)["timestamp"]
    return "sequential" if pa.types.is_list(kind) or pa.types.is_large_list(kind) else "flat"


def _num_events(path: Path) -> int:
    """Returns the events of a file of either layout, from its footer."""
    with pq.ParquetFile(path) as file:
        groups = (file.metadata.row_group(place) for place in range(file.metadata.num_row_groups))
        columns = (group.column(place) for group in groups for place in range(group.num_columns))
        return sum(
            int(column.num_values)
            for column in columns
            if column.path_in_schema.split(".")[0] == "timestamp"
        )


def _first_of(
    name: str, path: Path, ids: np.ndarray[tuple[int], np.dtype[np.int64]], rejects: Rejects
) -> pa.Array:
    """Returns the first artist or album of each item; a mapping has several rows for a track of
    several artists.
    """
    values, fields = (
        ItemValues(),
        (Field(ITEM_ID, ITEM_ID, "int64", True), Field(name, name, "int64", True)),
    )
    for rows in read_parquet(path, rejects, "items", [ITEM_ID, name]):
        batch, _ = convert(rows, fields, rejects, "items", path)
        values.add(int64_of(batch, ITEM_ID), int64_of(batch, name))
    return values.of(ids)


def _above(directory: Path, file: str) -> Path | None:
    places = (directory, *directory.resolve().parents[:2])
    return next((place / file for place in places if (place / file).is_file()), None)


def _find(src: Path) -> list[Path]:
    names = (MULTI, *FILES)
    if src.is_file() and src.name in names:
        return [src]
    if (src / MULTI).is_file():
        return [src / MULTI]
    found = [src / name for name in FILES if (src / name).is_file()]
    if not found or not (src / "listens.parquet").is_file():
        raise DataError(
            f"{src} holds no Yambda log",
            found=", ".join(path.name for path in found) or "nothing",
            expected=f"{MULTI}, or listens.parquet and others, of flat/SIZE or sequential/SIZE",
        )
    return found
