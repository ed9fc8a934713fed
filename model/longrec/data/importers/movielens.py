"""Importer of MovieLens (Harper and Konstan 2015): 1M as .dat; 20M to 32M and latest as .csv.

A rating is both an event and a labelled target.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.importers.reading.entities import read_entities
from longrec.data.importers.reading.fields import Field, convert
from longrec.data.importers.reading.file_search import with_subdirectories
from longrec.data.importers.reading.log_files import estimate_num_rows
from longrec.data.importers.reading.log_reader import read_rows
from longrec.data.importers.reading.rejects import LogBatch
from longrec.data.importers.reading.text_files import read_separated
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

LABEL = "label"
MIN_RATING = 0.5
MAX_RATING = 5
COLUMNS = {
    "ratings": ("userId", "movieId", "rating", "timestamp"),
    "movies": ("movieId", "title", "genres"),
    "users": ("userId", "gender", "age", "occupation", "zip"),
}
EVENT_FIELDS = (
    Field(USER_ID, "userId", "int64", is_required=True),
    Field(ITEM_ID, "movieId", "int64", is_required=True),
    Field("rating", "rating", "float64", is_required=True),
    Field(TIMESTAMP, "timestamp", "s"),
)
ITEM_FIELDS = (
    Field(ITEM_ID, "movieId", "int64", is_required=True),
    Field("title", "title", "string"),
    Field("genres", "genres", "string"),
)
USER_FIELDS = (
    Field(USER_ID, "userId", "int64", is_required=True),
    Field("gender", "gender", "string"),
    Field("age", "age", "int64"),
    Field("occupation", "occupation", "int64"),
    Field("zip", "zip", "string"),
)
ITEM_FEATURES = (
    Feature(ITEM_ID, "id", min_count=5, max_null_share=0.0),
    Feature("genre", "category", dtype="string"),
    Feature("genres", "category", dtype="string", min_count=2),
    Feature("year", "number", minimum=1870, maximum=2100),
)
USER_FEATURES = (
    Feature("gender", "category", dtype="string"),
    Feature("age", "category"),
    Feature("occupation", "category"),
    Feature("zip", "category", dtype="string", min_count=2),
)
RATING = Feature(
    "rating",
    "category",
    dtype="float64",
    max_null_share=0.0,
    minimum=MIN_RATING,
    maximum=MAX_RATING,
)


def movielens_schema(*, with_users: bool) -> Schema:
    """Return the schema of an imported MovieLens log; only 1M has user features."""
    return Schema(
        name="movielens",
        item=ITEM_FEATURES,
        user=USER_FEATURES if with_users else (),
        event=(RATING,),
        tasks=(Task(LABEL),),
    )


def import_movielens(
    src: str | Path,
    out: str | Path,
    *,
    threshold: float = 4.0,
    grouping: RequestGrouping | None = None,
    options: ImportOptions | None = None,
) -> ImportReport:
    """Write the dataset of a MovieLens directory; return the report.

    The label of a target is rating >= threshold.

    Args:
        src: directory with ratings.dat, movies.dat and users.dat, or with ratings.csv and
            movies.csv; or its parent directory.
        out: the dataset directory.
        threshold: smallest rating of a positive.
        grouping: how ratings of one user are grouped into requests.
        options: limits of the import.

    Raises:
        DataError: files or columns are missing, or too many rows are bad.
    """
    grouping = grouping or RequestGrouping()
    directory, suffix = _find_log(Path(src))
    with_users = suffix == ".dat" and (directory / "users.dat").is_file()
    schema = movielens_schema(with_users=with_users)
    ratings = directory / f"ratings{suffix}"
    with open_dataset_builder(
        out,
        schema,
        options or ImportOptions(),
        num_events=estimate_num_rows(ratings),
        event_labels=(LABEL,),
    ) as builder:
        movies = _read(builder, directory / f"movies{suffix}", "items")
        items = _item_table(read_entities(movies, ITEM_FIELDS))
        users = None
        if with_users:
            users = read_entities(_read(builder, directory / "users.dat", "users"), USER_FIELDS)
        _read_ratings(builder, ratings, threshold)
        info = DatasetInfo(
            name=directory.resolve().name,
            source=_source(ratings, threshold, grouping),
            items=items,
            users=users,
        )
        return builder.write(RequestBuilder(schema, grouping), info)


def _read_ratings(
    builder: DatasetBuilder,
    path: Path,
    threshold: float,
) -> None:
    """Add the ratings to the spill."""
    for batch in _read(builder, path, "events"):
        rows = convert(batch, EVENT_FIELDS)
        ratings = np.asarray(rows.table["rating"])
        is_wrong = (ratings < MIN_RATING) | (ratings > MAX_RATING)
        rows.reject(is_wrong, "rating is not from 0.5 to 5")
        labels = (ratings >= threshold).astype(np.int8)
        events = rows.table.append_column(EVENT_SEQ, pa.array(rows.lines))
        events = events.append_column(LABEL, pa.array(labels))
        builder.spill.add(events.filter(pa.array(~is_wrong)))


def _read(
    builder: DatasetBuilder,
    path: Path,
    group: str,
) -> Iterator[LogBatch]:
    file = builder.log_file(path, group)
    columns = COLUMNS[path.stem]
    if path.suffix == ".dat":
        return read_separated(
            file,
            columns,
            separator="::",
            encoding="latin-1",
        )
    return read_rows(file, columns)


def _item_table(movies: pa.Table) -> pa.Table:
    """Return item id, first genre, all genres and the year in the title."""
    genres = movies["genres"].cast(pa.string())
    has_no_genres = pc.match_substring_regex(genres, r"^\(no genres listed\)$")
    genres = pc.if_else(has_no_genres, pa.scalar(None, pa.string()), genres)
    titles = movies["title"].cast(pa.string())
    year = pc.extract_regex(titles, r"\((?P<year>[0-9]{4})\)\s*$")
    return pa.table(
        {
            ITEM_ID: movies[ITEM_ID],
            "genre": pc.replace_substring_regex(
                genres,
                pattern=r"\|.*$",
                replacement="",
            ),
            "genres": genres,
            "year": pc.struct_field(year, "year").cast(pa.int64()),
        }
    )


def _find_log(src: Path) -> tuple[Path, str]:
    """Return the directory of the log and the suffix of its files."""
    for directory in with_subdirectories(src):
        for suffix in (".csv", ".dat"):
            if (directory / f"ratings{suffix}").is_file():
                return directory, suffix
    raise DataError(
        f"{src} holds no MovieLens log",
        expected="ratings.dat (1M) or ratings.csv (20M, 25M, 32M, latest)",
    )


def _source(
    ratings: Path,
    threshold: float,
    grouping: RequestGrouping,
) -> dict[str, Any]:
    # The grouping is flat here: files on disk have this form. Later importers nest it.
    return {
        "kind": "movielens",
        "files": [ratings.name],
        "threshold": threshold,
        "window_ms": grouping.window_ms,
        "max_targets": grouping.max_targets,
        "max_requests_per_user": grouping.max_requests_per_user,
        "seed": grouping.seed,
    }
