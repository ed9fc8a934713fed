"""MovieLens (Harper and Konstan 2015): 1M as .dat, 20M, 25M, 32M and latest as .csv. A rating is
both an event and a labelled target.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.dataset import parts_for
from longrec.data.importers.assembly import ImportOptions, ImportReport, assemble, spilling
from longrec.data.importers.readers import (
    Field,
    Rejects,
    Rows,
    convert,
    estimate_rows,
    read_entities,
    read_rows,
    read_separated,
    reject,
)
from longrec.data.importers.requests import RequestRule, exposure_requests
from longrec.errors import DataError
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, USER_ID, Feature, Schema, Task

LABEL = "label"
_COLUMNS = {
    "ratings": ("userId", "movieId", "rating", "timestamp"),
    "movies": ("movieId", "title", "genres"),
    "users": ("userId", "gender", "age", "occupation", "zip"),
}
_EVENT_FIELDS = (
    Field(USER_ID, "userId", "int64", True),
    Field(ITEM_ID, "movieId", "int64", True),
    Field("rating", "rating", "float64", True),
    Field(TIMESTAMP, "timestamp", "s"),
)
_ITEM_FIELDS = (
    Field(ITEM_ID, "movieId", "int64", True),
    Field("title", "title", "string"),
    Field("genres", "genres", "string"),
)
_USER_FIELDS = (
    Field(USER_ID, "userId", "int64", True),
    Field("gender", "gender", "string"),
    Field("age", "age", "int64"),
    Field("occupation", "occupation", "int64"),
    Field("zip", "zip", "string"),
)


def movielens_schema(*, with_users: bool) -> Schema:
    """Returns the schema of an imported MovieLens log; only 1M knows anything of its users."""
    users = (
        (
            Feature("gender", "category", dtype="string"),
            Feature("age", "category"),
            Feature("occupation", "category"),
            Feature("zip", "category", dtype="string", min_count=2),
        )
        if with_users
        else ()
    )
    return Schema(
        name="movielens",
        item=(
            Feature(ITEM_ID, "id", min_count=5, max_null_share=0.0),
            Feature("genre", "category", dtype="string"),
            Feature("genres", "category", dtype="string", min_count=2),
            Feature("year", "number", minimum=1870, maximum=2100),
        ),
        user=users,
        event=(
            Feature(
                "rating", "category", dtype="float64", max_null_share=0.0, minimum=0.5, maximum=5
            ),
        ),
        tasks=(Task(LABEL),),
    )


def import_movielens(
    src: str | Path,
    out: str | Path,
    *,
    threshold: float = 4.0,
    rule: RequestRule | None = None,
    options: ImportOptions | None = None,
) -> ImportReport:
    """Writes the dataset of a MovieLens directory and returns the report; `label` is rating >=
    threshold.

    Args:
        src: directory with ratings.dat, movies.dat, users.dat or with ratings.csv, movies.csv, or
            its parent.
        out: the dataset directory.
        threshold: least rating of a positive.
        rule: how requests are cut: ratings of one user within a window.
        options: bounds of the import.

    Raises:
        DataError: files or columns are missing, or too many rows are bad.
    """
    started, rule, options, target = (
        time.monotonic(),
        rule or RequestRule(),
        options or ImportOptions(),
        Path(out),
    )
    directory, suffix = _find(Path(src))
    with_users = (directory / "users.dat").is_file() and suffix == ".dat"
    schema, ratings = movielens_schema(with_users=with_users), directory / f"ratings{suffix}"
    source = {
        "kind": "movielens",
        "files": [ratings.name],
        "threshold": threshold,
        "window_ms": rule.window_ms,
        "max_targets": rule.max_targets,
        "max_requests_per_user": rule.max_requests_per_user,
        "seed": rule.seed,
    }
    num_parts = parts_for(estimate_rows(ratings), options.rows_per_part)
    with (
        Rejects(target, options.max_reject_share) as rejects,
        spilling(target, schema, (LABEL,), num_parts) as spill,
    ):
        items = _items(
            read_entities(
                _read(directory, "movies", suffix, rejects, "items"), _ITEM_FIELDS, rejects, "items"
            )
        )
        users = (
            read_entities(
                _read(directory, "users", suffix, rejects, "users"), _USER_FIELDS, rejects, "users"
            )
            if with_users
            else None
        )
        for path, rows in _read(directory, "ratings", suffix, rejects, "events"):
            batch, lines = convert(rows, _EVENT_FIELDS, rejects, "events", path)
            value = np.asarray(batch["rating"])
            reject(
                rejects,
                "events",
                path,
                Rows(batch, lines),
                wrong := (value < 0.5) | (value > 5),
                "rating is not from 0.5 to 5",
            )
            batch = batch.append_column(EVENT_SEQ, pa.array(lines)).append_column(
                LABEL, pa.array((value >= threshold).astype(np.int8))
            )
            spill.add(batch.filter(pa.array(~wrong)))
        return assemble(
            target,
            schema,
            spill,
            lambda events, first, part: exposure_requests(events, schema, rule, first),
            rejects,
            name=directory.resolve().name,
            source=source,
            event_labels=(LABEL,),
            items=items,
            users=users,
            started=started,
        )


def _read(
    directory: Path, stem: str, suffix: str, rejects: Rejects, group: str
) -> Iterator[tuple[Path, Rows]]:
    path = directory / f"{stem}{suffix}"
    if suffix == ".dat":
        pieces = read_separated(
            path, rejects, group, _COLUMNS[stem], separator="::", encoding="latin-1"
        )
    else:
        pieces = read_rows(path, rejects, group, _COLUMNS[stem])
    return ((path, rows) for rows in pieces)


def _items(movies: pa.Table) -> pa.Table:
    """Returns item_id, first genre, combination of genres, year of the title."""
    genres = movies["genres"].cast(pa.string())
    genres = pc.if_else(
        pc.match_substring_regex(genres, r"^\(no genres listed\)$"),
        pa.scalar(None, pa.string()),
        genres,
    )
    year = pc.struct_field(
        pc.extract_regex(movies["title"].cast(pa.string()), r"\((?P<year>[0-9]{4})\)\s*$"), "year"
    )
    return pa.table(
        {
            ITEM_ID: movies[ITEM_ID],
            "genre": pc.replace_substring_regex(genres, pattern=r"\|.*$", replacement=""),
            "genres": genres,
            "year": year.cast(pa.int64()),
        }
    )


def _find(src: Path) -> tuple[Path, str]:
    """Returns the directory and the suffix of its files."""
    nested = sorted(path for path in src.iterdir() if path.is_dir()) if src.is_dir() else []
    for directory in (src, *nested):
        for suffix in (".csv", ".dat"):
            if (directory / f"ratings{suffix}").is_file():
                return directory, suffix
    raise DataError(
        f"{src} holds no MovieLens log",
        expected="ratings.dat (1M) or ratings.csv (20M, 25M, 32M, latest)",
    )
