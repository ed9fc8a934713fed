"""Importer of Last.fm 1K users (Celma 2010): who played which track when, tab-separated.

Its ids are text. It is a log of plays, so negatives are drawn.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.importers.item_values import UNKNOWN, FirstKnownValues
from longrec.data.importers.reading.entities import read_entities
from longrec.data.importers.reading.fields import Field, convert
from longrec.data.importers.reading.file_search import with_subdirectories
from longrec.data.importers.reading.log_files import estimate_num_rows
from longrec.data.importers.reading.rejects import LogBatch
from longrec.data.importers.reading.text_files import read_delimited
from longrec.data.importers.requests.builder import make_request_builder
from longrec.data.importers.requests.grouping import RequestGrouping
from longrec.data.importers.requests.negatives import NegativeSampling
from longrec.data.importers.text_ids import TextIds
from longrec.data.importers.writing.dataset_builder import (
    DatasetBuilder,
    DatasetInfo,
    ImportOptions,
    open_dataset_builder,
)
from longrec.data.importers.writing.import_report import ImportReport
from longrec.errors import DataError
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, USER_ID, Feature, Schema, Task

LABEL = "label"
LOG_FILE = "userid-timestamp-artid-artname-traid-traname.tsv"
PROFILE_FILE = "userid-profile.tsv"
ARTIST = "artist_id"
USER_PATTERN = r"^user_(?P<number>[0-9]{1,9})$"
"""Text of a user id, such as user_000639."""
LOG_COLUMNS = ("userid", "timestamp", "artid", "artname", "traid", "traname")
PROFILE_COLUMNS = ("userid", "gender", "age", "country", "registered")
LOG_FIELDS = (
    Field("userid", "userid", "string", is_required=True),
    Field(TIMESTAMP, "timestamp", "iso"),
    *(Field(name, name, "string") for name in LOG_COLUMNS[2:]),
)
USER_FIELDS = (
    Field(USER_ID, "userid", "int64", is_required=True),
    Field("gender", "gender", "string"),
    Field("age", "age", "int64"),
    Field("country", "country", "string"),
    Field("signup_year", "registered", "int64"),
)


def lastfm_schema() -> Schema:
    """Return the schema of an imported Last.fm log; a play has no features of its own."""
    return Schema(
        name="lastfm",
        item=(
            Feature(ITEM_ID, "id", min_count=5, max_null_share=0.0),
            Feature(ARTIST, "id", min_count=5),
        ),
        user=(
            Feature("gender", "category", dtype="string"),
            Feature("age", "number"),
            Feature("country", "category", dtype="string"),
            Feature("signup_year", "category"),
        ),
        event=(),
        tasks=(Task(LABEL),),
        text_ids=("item",),
    )


def import_lastfm(
    src: str | Path,
    out: str | Path,
    *,
    negatives: NegativeSampling | None = None,
    grouping: RequestGrouping | None = None,
    options: ImportOptions | None = None,
) -> ImportReport:
    """Write the dataset of the Last.fm 1K files; return the report.

    The label is 1 for a track that was played in the window. A user id is the number in
    `user_000639`. A track is its MusicBrainz id, or artist and title when it has none. An artist
    is its MusicBrainz id or its name. `text_ids.text_id` converts both to int64;
    ids/items.parquet and ids/artists.parquet map the ids back.

    Args:
        src: directory with the two .tsv files, or its parent; or the log itself.
        out: the dataset directory.
        negatives: how negatives are drawn; by default 4 for each positive. `within` may be
            `artist_id`.
        grouping: how plays of one user are grouped into requests.
        options: limits of the import.

    Raises:
        DataError: the log is missing, or too many rows are bad.
    """
    negatives = negatives or NegativeSampling()
    grouping = grouping or RequestGrouping()
    path = _find_log(Path(src))
    negatives.require_within([ARTIST], ARTIST)
    schema = lastfm_schema()
    with (
        open_dataset_builder(
            out,
            schema,
            options or ImportOptions(),
            num_events=estimate_num_rows(path),
        ) as builder,
        TextIds(builder.spill.directory, ("items", "artists")) as ids,
    ):
        users = _read_users(builder, path.with_name(PROFILE_FILE))
        items = _read_events(builder, path, ids)
        info = DatasetInfo(
            name="lastfm-1k",
            source=_source(path, negatives, grouping),
            items=items,
            users=users,
            write_extra_files=ids.write,
        )
        requests = make_request_builder(
            schema,
            grouping,
            negatives,
            spill=builder.spill,
            items=items,
        )
        return builder.write(requests, info)


def _read_events(
    builder: DatasetBuilder,
    path: Path,
    ids: TextIds,
) -> pa.Table:
    """Add the plays to the spill; return the item table with the artist of each track."""
    artists = FirstKnownValues()
    file = builder.log_file(path)
    for batch in read_delimited(
        file,
        delimiter="\t",
        has_quotes=False,
        names=LOG_COLUMNS,
    ):
        rows = convert(batch, LOG_FIELDS)
        plays = _plays(rows)
        has_user = np.asarray(pc.is_valid(plays["user"]))
        has_track = np.asarray(pc.is_valid(plays["track"]))
        rows.reject(~has_user, "userid is not user_ and a number")
        rows.reject(has_user & ~has_track, "the track has neither an id nor artist and title")
        plays = plays.filter(pa.array(has_user & has_track))
        track_ids = ids.add("items", plays["track"])
        artist_ids = pc.fill_null(ids.add("artists", plays["artist"]), UNKNOWN)
        artists.add(np.asarray(track_ids), np.asarray(artist_ids, np.int64))
        events = {
            USER_ID: plays["user"],
            ITEM_ID: track_ids,
            TIMESTAMP: plays[TIMESTAMP],
            EVENT_SEQ: plays[EVENT_SEQ],
        }
        builder.spill.add(pa.RecordBatch.from_pydict(events))
    item_ids = artists.ids()
    return pa.table({ITEM_ID: item_ids, ARTIST: artists.values_of(item_ids)})


def _plays(rows: LogBatch) -> pa.RecordBatch:
    """Return user, track and artist of each row; null where the row has none."""
    table = rows.table
    artist_and_title = pc.binary_join_element_wise(
        table["artname"],
        table["traname"],
        "\t",
    )
    columns = {
        "user": _user_numbers(table["userid"]),
        "track": pc.coalesce(table["traid"], artist_and_title),
        "artist": pc.coalesce(table["artid"], table["artname"]),
        TIMESTAMP: table[TIMESTAMP],
        EVENT_SEQ: pa.array(rows.lines - 1),  # lines count from 1
    }
    return pa.RecordBatch.from_pydict(columns)


def _user_numbers(texts: pa.Array) -> pa.Array:
    matches = pc.extract_regex(texts, USER_PATTERN)
    return pc.struct_field(matches, "number").cast(pa.int64())


def _read_users(builder: DatasetBuilder, path: Path) -> pa.Table | None:
    """Return the user table; None when the file is missing.

    The header of the published file, which begins with `#id`, is skipped.
    """
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        has_header = stream.read(1) == b"#"
    batches = read_delimited(
        builder.log_file(path, "users"),
        delimiter="\t",
        has_quotes=False,
        names=PROFILE_COLUMNS,
        num_header_lines=int(has_header),
    )
    return read_entities((_profiles(batch) for batch in batches), USER_FIELDS)


def _profiles(batch: LogBatch) -> LogBatch:
    """Return the rows with the number of the user and the year of a date like `Aug 13, 2006`.

    Other text stays as it is and is rejected later.
    """
    columns = {name: batch.table[name] for name in PROFILE_COLUMNS}
    columns["userid"] = pc.replace_substring_regex(
        columns["userid"],
        pattern=USER_PATTERN,
        replacement=r"\1",
    )
    columns["registered"] = pc.replace_substring_regex(
        columns["registered"],
        pattern=r"^.*\b([0-9]{4})\s*$",
        replacement=r"\1",
    )
    return batch.with_table(pa.RecordBatch.from_pydict(columns))


def _find_log(src: Path) -> Path:
    if src.is_file():
        return src
    for directory in with_subdirectories(src):
        if (directory / LOG_FILE).is_file():
            return directory / LOG_FILE
    raise DataError(f"{src} holds no Last.fm log", expected=LOG_FILE)


def _source(
    path: Path,
    negatives: NegativeSampling,
    grouping: RequestGrouping,
) -> dict[str, Any]:
    return {
        "kind": "lastfm",
        "files": [path.name],
        "negatives": dataclasses.asdict(negatives),
        "requests": dataclasses.asdict(grouping),
    }
