"""JSON lines, one object in each line; numbers keep the digits that the file has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longrec.data.importers.reading.rejects import LogBatch, LogFile
from longrec.data.importers.reading.undecodable import UNDECODABLE_ERRORS
from longrec.errors import DataError

BATCH_LINES = 1 << 15
SAMPLE_LINES = 1_000
"""Number of lines whose keys are the columns of a file."""
NOT_AN_OBJECT = "not a JSON object"


def json_keys(path: Path) -> list[str]:
    """Return the keys of the first objects of a file, in the order of their appearance.

    Raises:
        DataError: the file is missing, or no object is among its first lines.
    """
    try:
        with path.open(encoding="utf-8-sig", errors=UNDECODABLE_ERRORS) as stream:
            objects = [parse_object(line) for line in islice(stream, SAMPLE_LINES)]
    except OSError as error:
        raise DataError(f"cannot read {path}", found=error.strerror) from error
    keys = [key for found in objects if found is not None for key in found]
    if not keys:
        raise DataError(f"{path} holds no JSON objects", expected="one object in each line")
    return list(dict.fromkeys(keys))


def read_json_lines(
    file: LogFile,
    columns: Sequence[str],
    *,
    batch_size: int | None = None,
) -> Iterator[LogBatch]:
    """Yield some keys of the objects of a file as columns of text; reject other lines.

    Blank lines are no rows. A key that an object lacks is null.

    Args:
        file: the .jsonl file.
        columns: the keys.
        batch_size: largest number of lines of a batch.
    """
    batch_size = batch_size or BATCH_LINES
    first_line = 1
    with file.path.open(encoding="utf-8-sig", errors=UNDECODABLE_ERRORS) as stream:
        while lines := list(islice(stream, batch_size)):
            yield _batch(file, lines, columns, first_line)
            first_line += len(lines)


def parse_object(line: str) -> dict[str, Any] | None:
    """Return the object of a line, its numbers as text; None when the line is no object."""
    try:
        value = json.loads(
            line,
            parse_int=str,
            parse_float=str,
            parse_constant=str,
        )
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _batch(
    file: LogFile,
    lines: Sequence[str],
    columns: Sequence[str],
    first_line: int,
) -> LogBatch:
    """Return the objects of some lines; count the lines and reject those that are no objects."""
    objects = [parse_object(line) for line in lines]
    is_blank = np.array([not line.strip() for line in lines])
    is_good = np.array([found is not None for found in objects])
    file.count_rows(int(np.sum(~is_blank)))
    numbers = first_line + np.arange(len(lines), dtype=np.int64)
    texts = pa.RecordBatch.from_pydict({"line": pa.array(map(_encodable, lines), pa.string())})
    LogBatch(file, texts, numbers).reject(~is_good & ~is_blank, NOT_AN_OBJECT)
    rows = [found for found in objects if found is not None]
    table = {
        name: pa.array([_text(row.get(name)) for row in rows], pa.string()) for name in columns
    }
    return LogBatch(file, pa.RecordBatch.from_pydict(table), numbers[is_good])


def _text(value: object) -> str | None:
    """Return a value as text; null for null, and JSON for lists and objects."""
    if value is None or value == "":
        return None
    return _encodable(value if isinstance(value, str) else json.dumps(value))


def _encodable(text: str) -> str:
    """Return a text that UTF-8 can hold; JSON can escape half a surrogate pair."""
    return text.encode(errors="replace").decode()
