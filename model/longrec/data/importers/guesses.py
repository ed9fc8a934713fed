"""Guesses about a log from its first rows: columns by their usual names, text ids, unit of time."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec import times
from longrec.data.importers.reading.file_search import list_log_files
from longrec.data.importers.reading.log_files import column_names, require_columns
from longrec.data.importers.reading.log_reader import read_rows
from longrec.data.importers.reading.rejects import LogFile, Rejects
from longrec.data.importers.reading.values.converted import is_text, plain_column
from longrec.data.importers.reading.values.integers import to_int64
from longrec.data.importers.reading.values.numbers import to_float64, to_text
from longrec.data.importers.reading.values.times import UNIT_NAMES, Unit
from longrec.schema import ITEM_ID, TIMESTAMP, USER_ID

USUAL_NAMES = {
    "user": "userid user uid customerid visitorid memberid accountid clientid who",
    "item": "itemid item iid productid movieid videoid trackid songid bookid articleid showid "
    "programid parentasin asin sku stockcode what",
    "timestamp": "timestamp time ts eventtime datetime timems createdat invoicedate date when",
}
"""Meaning -> usual names of its column, the most usual one first, without case and underscores."""
DEFAULT_NAMES = {"user": USER_ID, "item": ITEM_ID, "timestamp": TIMESTAMP}
MAX_SAMPLED_FILES = 4
MAX_COUNTED_SECONDS = 1_000_000_000
"""Seconds of 32 years, the largest number from an origin that is taken for seconds."""
MIN_TEXT_SHARE = 0.01
"""Share of values that are no whole numbers from which ids are text; fewer are bad rows."""


@dataclasses.dataclass(frozen=True, slots=True)
class GivenColumns:
    """What the caller knows of the columns of a log; None for what is to be guessed.

    Args:
        user, item, timestamp, basket: columns; a basket is never guessed.
        timestamp_unit: unit of the times.
        has_time_origin: whether the log counts its times from an origin of its own.
        text_ids: which of `user`, `item` and `basket` are text.
        delimiter: of text files.
        quotes: whether fields of text files may be in double quotes.
    """

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    basket: str | None = None
    timestamp_unit: str | None = None
    has_time_origin: bool = False
    text_ids: tuple[str, ...] | None = None
    delimiter: str | None = None
    quotes: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class GuessedColumns:
    """Columns of a log, given or guessed.

    Args:
        user, item, timestamp: columns.
        timestamp_unit: unit of the times.
        text_ids: which ids are text.
        notes: the guesses in words, for people.
    """

    user: str
    item: str
    timestamp: str
    timestamp_unit: Unit
    text_ids: tuple[str, ...]
    notes: tuple[str, ...]


def guess_columns(src: str | Path, given: GivenColumns) -> GuessedColumns:
    """Return the columns of a log: as given, else guessed from its first rows.

    Raises:
        DataError: a column is missing, or a file is unreadable.
    """
    paths = list_log_files(src)
    names = column_names(paths[0], given.delimiter)
    columns = {key: getattr(given, key) or _usual_column(key, names) for key in USUAL_NAMES}
    require_columns(paths[0], names, columns.values())
    notes = [
        f"{key}: column {column}"
        for key, column in columns.items()
        if getattr(given, key) is None and column != DEFAULT_NAMES[key]
    ]
    keys = {**columns, "basket": given.basket} if given.basket else columns
    sample = _sample(paths, keys, given)
    unit = given.timestamp_unit
    if unit is None:
        unit = guess_unit(sample["timestamp"], has_origin=given.has_time_origin)
        notes.append(f"unit of the times: {UNIT_NAMES.get(unit, 'dates as text')}")
    text_ids = given.text_ids
    if text_ids is None:
        text_ids = tuple(key for key in keys if key != "timestamp" and _is_text_id(sample[key]))
        notes += [f"ids of {key}s are text, such as {_example(sample[key])}" for key in text_ids]
    return GuessedColumns(
        **columns,
        timestamp_unit=cast("Unit", unit),  # the mapping checks it
        text_ids=text_ids,
        notes=tuple(notes),
    )


def guess_unit(column: pa.Array, *, has_origin: bool = False) -> str:
    """Return the unit that most times of a column seem to have; `ms` for no guess.

    Args:
        column: the first times of a log.
        has_origin: whether they are counted from an origin; then they are seconds where that
            gives less than 32 years.
    """
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return "ms"  # the column has a unit of its own
    numbers = to_float64(column).values
    num_known = len(column) - column.null_count
    if is_text(column) and numbers.null_count - column.null_count > num_known / 2:
        return "iso"
    known = np.asarray(numbers.drop_null())
    typical = int(np.median(known)) if len(known) else 0
    if times.EARLIEST_MS <= typical < times.END_MS:
        return "ms"
    if has_origin and 0 <= typical < MAX_COUNTED_SECONDS:
        return "s"
    names = {name: unit for unit, name in UNIT_NAMES.items()}
    return names.get(times.guess_unit(typical), "ms")


def _usual_column(key: str, names: Sequence[str]) -> str:
    """Return the column with a usual name of a meaning, or the default name."""
    by_plain_name = {_plain_name(name): name for name in reversed(names)}
    for usual in USUAL_NAMES[key].split():
        if usual in by_plain_name:
            return by_plain_name[usual]
    return DEFAULT_NAMES[key]


def _plain_name(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _sample(
    paths: Sequence[Path],
    columns: dict[str, str],
    given: GivenColumns,
) -> dict[str, pa.Array]:
    """Return the values of each meaning in the first batches of some files."""
    step = -(-len(paths) // MAX_SAMPLED_FILES)  # rounded up
    tables = []
    with tempfile.TemporaryDirectory() as folder, Rejects(Path(folder) / "out", 1) as rejects:
        for path in paths[::step]:
            batches = read_rows(
                LogFile(path, "events", rejects),
                list(columns.values()),
                delimiter=given.delimiter,
                has_quotes=given.quotes,
            )
            tables += [batch.table for _, batch in zip(range(1), batches, strict=False)]
    found = {}
    for key, column in columns.items():
        found[key] = _concatenate([plain_column(table[column]) for table in tables])
    return found


def _concatenate(columns: Sequence[pa.Array]) -> pa.Array:
    """Return the values of all columns, as text where their types differ."""
    if len({column.type for column in columns}) > 1:
        columns = [to_text(column).values for column in columns]
    return pa.concat_arrays(columns) if columns else pa.nulls(0)


def _is_text_id(column: pa.Array) -> bool:
    """Return whether ids are text: more than a few are no whole numbers."""
    if not is_text(column):
        return False
    num_known = len(column) - column.null_count
    return bool(np.sum(to_int64(column).is_bad) > MIN_TEXT_SHARE * num_known)


def _example(column: pa.Array) -> str:
    texts = column.filter(pa.array(to_int64(column).is_bad))
    return str(pc.min(texts).as_py())
