"""Last.fm 1K users (Celma 2010): who played which track when, tab-separated, ids as text. A log of
plays; negatives are drawn.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.dataset import parts_for
from longrec.data.importers.assembly import ImportOptions, ImportReport, Spill, assemble, spilling
from longrec.data.importers.readers import (
    Field,
    Rejects,
    Rows,
    convert,
    estimate_rows,
    read_delimited,
    read_entities,
    reject,
)
from longrec.data.importers.request_cutting import Cutter, ItemValues, log_catalogue
from longrec.data.importers.requests import NegativeRule, RequestRule
from longrec.data.importers.text_ids import TextIds
from longrec.errors import DataError
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, USER_ID, Feature, Schema, Task

LABEL = "label"
LOG = "userid-timestamp-artid-artname-traid-traname.tsv"
PROFILE = "userid-profile.tsv"
ARTIST = "artist_id"
_LOG_COLUMNS = ("userid", "timestamp", "artid", "artname", "traid", "traname")
_PROFILE_COLUMNS = ("userid", "gender", "age", "country", "registered")
_LOG_FIELDS = (
    Field("userid", "userid", "string", True),
    Field(TIMESTAMP, "timestamp", "iso"),
    *(Field(name, name, "string") for name in _LOG_COLUMNS[2:]),
)
_USER_FIELDS = (
    Field(USER_ID, "userid", "int64", True),
    Field("gender", "gender", "string"),
    Field("age", "age", "int64"),
    Field("country", "country", "string"),
    Field("signup_year", "registered", "int64"),
)


def lastfm_schema() -> Schema:
    """Returns the schema of an imported Last.fm log. A play has no features of its own: what was
    played and when is all there is.
    """
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
    )


def import_lastfm(
    src: str | Path,
    out: str | Path,
    *,
    negatives: NegativeRule | None = None,
    rule: RequestRule | None = None,
    options: ImportOptions | None = None,
) -> ImportReport:
    """Writes the dataset of the Last.fm 1K files and returns the report; `label` is 1 for a track
    that was played in the window.

    A user is the number in `user_000639`. A track is its MusicBrainz id, or artist and title where
    it has none; an artist likewise
    its id or name. `ids.text_id` makes int64 of them, and ids/items.parquet and ids/artists.parquet
    say which text was which.

    Args:
        src: directory with the two .tsv files, or its parent; or the log itself.
        out: the dataset directory.
        negatives: how negatives are drawn; 4 for each positive unless told. `within` may be
            `artist_id`.
        rule: how requests are cut: plays of one user within a window.
        options: bounds of the import.

    Raises:
        DataError: the log is missing, or too many rows are bad.
    """
    started, rule, options, target = (
        time.monotonic(),
        rule or RequestRule(),
        options or ImportOptions(),
        Path(out),
    )
    drawn, path, schema, items = (
        negatives or NegativeRule(),
        _find(Path(src)),
        lastfm_schema(),
        ItemValues(),
    )
    if drawn.within not in (None, ARTIST):
        raise DataError(
            "negatives cannot be drawn within this column", found=drawn.within, expected=ARTIST
        )
    source = {
        "kind": "lastfm",
        "files": [path.name],
        "negatives": dataclasses.asdict(drawn),
        "requests": dataclasses.asdict(rule),
    }
    num_parts = parts_for(estimate_rows(path), options.rows_per_part)
    with (
        Rejects(target, options.max_reject_share) as rejects,
        spilling(target, schema, (), num_parts) as spill,
        TextIds(spill.directory, ("items", "artists")) as ids,
    ):
        users = _users(path.with_name(PROFILE), rejects)
        _spill(path, spill, items, ids, rejects)
        catalogue = pa.table({ITEM_ID: items.ids(), ARTIST: items.of(items.ids())})
        cutter = Cutter(schema, rule, drawn, log_catalogue(spill, catalogue, drawn))
        return assemble(
            target,
            schema,
            spill,
            cutter,
            rejects,
            name="lastfm-1k",
            source=source,
            items=catalogue,
            users=users,
            notes=cutter.notes,
            extras=ids.write,
            started=started,
        )


def _spill(
    path: Path,
    spill: Spill,
    items: ItemValues,
    ids: TextIds,
    rejects: Rejects,
) -> None:
    for rows in read_delimited(
        path, rejects, "events", delimiter="\t", quotes=False, names=_LOG_COLUMNS
    ):
        batch, lines = convert(rows, _LOG_FIELDS, rejects, "events", path)
        user = _user_number(batch["userid"])
        artist = pc.coalesce(batch["artid"], batch["artname"])
        track = pc.coalesce(
            batch["traid"], pc.binary_join_element_wise(batch["artname"], batch["traname"], "\t")
        )
        strange, nameless = np.asarray(pc.is_null(user)), np.asarray(pc.is_null(track))
        reject(
            rejects, "events", path, Rows(batch, lines), strange, "userid is not user_ and a number"
        )
        reject(
            rejects,
            "events",
            path,
            Rows(batch, lines),
            nameless & ~strange,
            "the track has neither an id nor artist and title",
        )
        kept = pa.array(~strange & ~nameless)
        track_ids, artist_ids = (
            ids.of("items", track.filter(kept)),
            ids.of("artists", artist.filter(kept)),
        )
        items.add(np.asarray(track_ids), np.asarray(pc.fill_null(artist_ids, -1), np.int64))
        spill.add(
            pa.RecordBatch.from_arrays(
                [
                    user.filter(kept),
                    track_ids,
                    batch[TIMESTAMP].filter(kept),
                    pa.array(lines - 1).filter(kept),
                ],
                names=[USER_ID, ITEM_ID, TIMESTAMP, EVENT_SEQ],
            )
        )


def _users(path: Path, rejects: Rejects) -> pa.Table | None:
    """Returns the profiles, None where their file is missing; `#id`, the header that the published
    file has, is understood.
    """
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        has_header = stream.read(1) == b"#"
    pieces = read_delimited(
        path,
        rejects,
        "users",
        delimiter="\t",
        quotes=False,
        names=_PROFILE_COLUMNS,
        skip=int(has_header),
    )
    return read_entities(
        ((path, _profile(rows)) for rows in pieces), _USER_FIELDS, rejects, "users"
    )


def _profile(rows: Rows) -> Rows:
    """Returns the rows with the number of the user and the year of `Aug 13, 2006`; what is neither
    stays to be rejected.
    """
    columns = {name: rows.table[name] for name in _PROFILE_COLUMNS}
    columns["userid"] = pc.replace_substring_regex(
        columns["userid"], pattern=r"^user_([0-9]{1,9})$", replacement=r"\1"
    )
    columns["registered"] = pc.replace_substring_regex(
        columns["registered"], pattern=r"^.*\b([0-9]{4})\s*$", replacement=r"\1"
    )
    return Rows(pa.RecordBatch.from_pydict(columns), rows.lines)


def _user_number(texts: pa.Array) -> pa.Array:
    return pc.struct_field(
        pc.extract_regex(texts, r"^user_(?P<number>[0-9]{1,9})$"), "number"
    ).cast(pa.int64())


def _find(src: Path) -> Path:
    if src.is_file():
        return src
    nested = sorted(path for path in src.iterdir() if path.is_dir()) if src.is_dir() else []
    for directory in (src, *nested):
        if (directory / LOG).is_file():
            return directory / LOG
    raise DataError(f"{src} holds no Last.fm log", expected=LOG)
