"""Log files in, checked columns out: delimited text and Parquet read in bounded memory, bad rows
set aside with their line numbers.

A file is read in batches; every value first as text (or as what the Parquet file says), then
converted column by column, whole
batches at a time. A row that cannot be used goes to `Rejects` with file, line, reason and its text;
it never stops the import by
itself. One row is one line: a quoted field that runs over several lines is rejected, all its lines
counted.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import datetime
import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from longrec.data.dataset import unreadable
from longrec.data.files import beside
from longrec.data.history import LATEST_MS
from longrec.errors import DataError

log = logging.getLogger(__name__)

SUFFIXES = (".parquet", ".csv", ".tsv")
BLOCK_BYTES = 8 << 20
MAX_WRITTEN_REJECTS = 100_000
"""Rejected rows written out; all are counted."""
MAX_TEXT = 500
NULLS = ["", "NULL", "null", "\\N", "NaN", "nan", "None"]
UNREADABLE = "\ufdd0"
"""Stands for a byte that is not in the file's encoding; a code point that Unicode keeps free of
characters.
"""
EARLIEST_MS = 315_532_800_000
"""1980-01-01 UTC. Seconds read as milliseconds fall before it, milliseconds read as seconds after
`LATEST_MS`.
"""

Unit = Literal["s", "ms", "us", "ns", "iso"]
FieldKind = Literal["int64", "float64", "string", "label", "s", "ms", "us", "ns", "iso"]
Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_PER_MS = {"us": 1_000, "ns": 1_000_000}
_INTEGER = r"^\s*[+-]?([0-9]{1,18}|[0-8][0-9]{18})(\.0*)?\s*$"
_NUMBER = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\s*$"


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One column to read.

    Args:
        name: of the column that comes out.
        source: of the column in the file.
        kind: `int64`, `float64`, `string`; `label` (0 or 1, comes out int8); or the unit of a time
            (comes out int64 ms).
        required: whether a row without a value is rejected; labels and times always are.
    """

    name: str
    source: str
    kind: FieldKind
    required: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a file as they were read, and the line (of text) or row (of Parquet) of each,
    from 1.
    """

    table: pa.RecordBatch
    lines: Int64


class Rejects:
    """Counts rows read and rejected, and writes the rejected ones to a CSV file with the columns
    file, line, reason, row.

    Args:
        directory: where the import writes; the rejects stay beside it until `move_to` or `keep`.
        max_share: largest share of rejected rows, of each of the groups `events`, `items`, `users`.
    """

    def __init__(self, directory: Path, max_share: float) -> None:
        if not 0 <= max_share <= 1:
            raise DataError("max_reject_share must be between 0 and 1", found=max_share)
        self.max_share = max_share
        self.num_read: Counter[str] = Counter()
        self.num_rejected: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.kept = directory.parent / f"{directory.name}.rejects.csv"
        self._path = beside(directory, "rejects")
        self._stream: io.TextIOBase | None = None
        self._num_written = 0

    def __enter__(self) -> Rejects:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()
        self._path.unlink(missing_ok=True)

    def add(
        self,
        group: str,
        file: Path,
        lines: Sequence[int],
        reason: str,
        texts: Iterable[str],
        num_lines: int | None = None,
    ) -> None:
        """Sets rows aside. `texts` is not read beyond what is written; `num_lines` is how many
        lines they cover, one each unless told.
        """
        count = len(lines) if num_lines is None else num_lines
        self.num_rejected[group] += count
        self.reasons[f"{group}: {reason}"] += count
        if self._stream is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._path.open(
                "w", encoding="utf-8", newline="", errors="backslashreplace"
            )
            csv.writer(self._stream).writerow(["file", "line", "reason", "row"])
        writer = csv.writer(self._stream)
        for line, text in zip(
            lines[: MAX_WRITTEN_REJECTS - self._num_written], texts, strict=False
        ):
            self._num_written += 1
            writer.writerow([file.name, line, reason, text[:MAX_TEXT]])

    def check(self, group: str) -> None:
        """Raises a DataError, and keeps the rejects beside the import's directory, when too large a
        share of a group was rejected.
        """
        count, total = self.num_rejected[group], self.num_read[group]
        if count <= self.max_share * total:
            return
        self._close()
        self._path.replace(self.kept)
        worst = "; ".join(
            f"{number:,} {reason.split(': ', 1)[1]}"
            for reason, number in self.reasons.most_common()
            if reason.startswith(f"{group}: ")
        )
        raise DataError(
            f"too many rows of the {group} were rejected, nothing was imported",
            found=f"{count:,} of {total:,} ({worst})",
            expected=f"at most a share of {self.max_share:g}",
            fix=f"See {self.kept}; mend the rows or raise --max-reject-share.",
        )

    def move_to(self, path: Path) -> bool:
        """Moves the rejects file to `path`; False when nothing was rejected."""
        self._close()
        if not self._path.exists():
            return False
        self._path.replace(path)
        return True

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()


def header_of(path: Path, *, delimiter: str = ",", encoding: str = "utf-8-sig") -> list[str]:
    """Returns the column names in the first line of a text file.

    Raises:
        DataError: the file is missing or empty, or a name is there twice.
    """
    try:
        with path.open(
            encoding=encoding,
            newline="",
            errors="replace",
        ) as stream:
            names = next(csv.reader(stream, delimiter=delimiter), [])
    except OSError as error:
        raise DataError(f"cannot read {path}", found=error.strerror) from error
    if not names:
        raise DataError(f"{path} is empty", expected="a header line and rows")
    if doubles := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{path} names a column twice", found=", ".join(doubles))
    return names


def require_columns(path: Path, found: Sequence[str], wanted: Iterable[str]) -> None:
    """Raises a DataError when a wanted column is not among those of a file."""
    if missing := [name for name in dict.fromkeys(wanted) if name not in found]:
        raise DataError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}",
            found=", ".join(found),
        )


def files_of(src: str | Path) -> list[Path]:
    """Returns the log files that a path means, in natural order: a file, a directory of .parquet,
    .csv or .tsv files, or a pattern.

    Raises:
        DataError: there are none, or of more than one kind.
    """
    path = Path(src)
    if path.is_dir():
        entries = (entry for suffix in SUFFIXES for entry in path.rglob(f"*{suffix}"))
        found = [
            entry for entry in entries if entry.is_file() and not entry.name.startswith((".", "_"))
        ]
    else:
        found = (
            [path]
            if path.is_file()
            else [entry for entry in path.parent.glob(path.name) if entry.is_file()]
        )
    if not found:
        raise DataError(
            f"no log at {src}",
            expected=f"a file, a pattern, or a directory with {', '.join(SUFFIXES)} files",
        )
    if (
        wrong := sorted({entry.suffix for entry in found} - set(SUFFIXES))
        or len({entry.suffix for entry in found}) > 1
    ):
        raise DataError(
            f"cannot tell the format of {src}",
            found=", ".join(wrong) if isinstance(wrong, list) else "several formats",
            expected=f"files of one kind: {', '.join(SUFFIXES)}",
        )
    return sorted(found, key=natural_order)


def natural_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Returns a sort key that puts part2 before part10."""
    return [
        (int(text), "") if text.isdigit() else (-1, text)
        for text in re.findall(r"\d+|\D+", path.name)
    ], str(path)


def read_rows(
    path: Path,
    rejects: Rejects,
    group: str,
    columns: Sequence[str],
    *,
    delimiter: str | None = None,
    quotes: bool = True,
) -> Iterator[Rows]:
    """Yields the rows of a .parquet, .csv or .tsv file that has the wanted columns; the file's name
    says which it is.

    Raises:
        DataError: the file is unreadable or lacks a column.
    """
    if path.suffix == ".parquet":
        yield from read_parquet(path, rejects, group, columns)
        return
    require_columns(path, columns_of(path, delimiter), columns)
    yield from read_delimited(
        path, rejects, group, delimiter=delimiter or _delimiter(path), quotes=quotes
    )


def columns_of(path: Path, delimiter: str | None = None) -> list[str]:
    """Returns the column names of a .parquet, .csv or .tsv file."""
    if path.suffix == ".parquet":
        return list(_parquet(path).schema_arrow.names)
    return header_of(path, delimiter=delimiter or _delimiter(path))


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix == ".tsv" else ","


def arrow_types(path: Path) -> dict[str, pa.DataType]:
    """Returns the type of each column of a Parquet file; of a dictionary, that of its values. Empty
    for text.
    """
    if path.suffix != ".parquet":
        return {}
    schema = _parquet(path).schema_arrow
    return {
        field.name: field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        for field in schema
    }


def estimate_rows(path: Path) -> int:
    """Returns about how many rows a text file has, or exactly how many a Parquet file has."""
    if path.suffix == ".parquet":
        return int(_parquet(path).metadata.num_rows)
    with path.open("rb") as stream:
        sample = stream.read(1 << 20)
    return 1 + path.stat().st_size * sample.count(b"\n") // max(len(sample), 1)


def read_delimited(
    path: Path,
    rejects: Rejects,
    group: str,
    *,
    delimiter: str = ",",
    encoding: str = "utf8",
    quotes: bool = True,
    names: Sequence[str] | None = None,
    skip: int = 0,
) -> Iterator[Rows]:
    """Yields the rows of a text file, every column as text; rows with a wrong number of columns are
    rejected.

    Args:
        path: the file. Blank lines are skipped; CR LF and a byte order mark are understood.
        rejects: takes the bad rows.
        group: `events`, `items` or `users`.
        delimiter: one character.
        encoding: of the text.
        quotes: whether fields may be in double quotes.
        names: of the columns of a file without a header; None for those in its first line.
        skip: first lines of a file with given `names` that are no rows, 0 or 1.

    Raises:
        DataError: the file is empty, unreadable, or a row is longer than a block.
    """
    if names is not None and not (path.is_file() and path.stat().st_size):
        raise DataError(
            f"{path} is {'empty' if path.is_file() else 'missing'}", expected=delimiter.join(names)
        )
    found, num_header = (
        (header_of(path, delimiter=delimiter), 1) if names is None else (names, skip)
    )
    yield from _read_text(
        path,
        rejects,
        group,
        found,
        num_header,
        delimiter=delimiter,
        encoding=encoding,
        quotes=quotes,
    )


def read_separated(
    path: Path, rejects: Rejects, group: str, names: Sequence[str], *, separator: str, encoding: str
) -> Iterator[Rows]:
    """Yields the rows of a text file without header whose fields are separated by a string, such as
    `::`; no quotes.

    Args:
        path, rejects, group, encoding: as `read_delimited`.
        names: of the columns.
        separator: between fields.

    Raises:
        DataError: the file is empty or unreadable.
    """
    if not path.is_file() or not path.stat().st_size:
        raise DataError(
            f"{path} is {'empty' if path.is_file() else 'missing'}", expected=separator.join(names)
        )
    for rows in _read_text(
        path, rejects, group, ["line"], 0, delimiter="\x1f", encoding=encoding, quotes=False
    ):
        lines = rows.table.column(0)
        fields = pc.split_pattern(lines, pattern=separator)
        good = np.asarray(pc.equal(pc.list_value_length(fields), len(names)))
        reject(
            rejects, group, path, Rows(rows.table, rows.lines), ~good, f"not {len(names)} columns"
        )
        fields = fields.filter(pa.array(good))
        columns = [_nulled(pc.list_element(fields, position)) for position in range(len(names))]
        yield Rows(pa.RecordBatch.from_arrays(columns, names=list(names)), rows.lines[good])


def read_parquet(
    path: Path, rejects: Rejects, group: str, columns: Sequence[str], *, batch_size: int = 1 << 18
) -> Iterator[Rows]:
    """Yields some columns of a Parquet file, `batch_size` rows at a time.

    Raises:
        DataError: the file is missing, truncated or lacks a column.
    """
    file = _parquet(path)
    require_columns(path, file.schema_arrow.names, columns)
    first = 1
    batches = file.iter_batches(batch_size=batch_size, columns=list(dict.fromkeys(columns)))
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowInvalid, OSError) as error:
            raise unreadable(path, error) from error
        if batch is None:
            return
        rejects.num_read[group] += batch.num_rows
        yield Rows(batch, np.arange(first, first + batch.num_rows, dtype=np.int64))
        first += batch.num_rows


def convert(
    rows: Rows, fields: Sequence[Field], rejects: Rejects, group: str, path: Path
) -> tuple[pa.RecordBatch, Int64]:
    """Returns the usable rows with one column per field, and their lines; the others are rejected
    for their first fault.

    Columns come out as int64, float64, string, int8 (labels) or int64 milliseconds (times).
    """
    rejected = np.zeros(rows.table.num_rows, bool)
    columns = []
    for field in fields:
        column, bad, fault = _convert(
            rows.table.column(rows.table.schema.get_field_index(field.source)), field
        )
        reject(rejects, group, path, rows, bad & ~rejected, f"{field.source} {fault}")
        rejected |= bad
        if field.required or field.kind not in ("int64", "float64", "string"):
            empty = np.asarray(pc.is_null(column)) & ~bad
            reject(rejects, group, path, rows, empty & ~rejected, f"{field.source} is null")
            rejected |= empty
        columns.append(column)
    batch = pa.RecordBatch.from_arrays(columns, names=[field.name for field in fields])
    if rejected.any():
        return batch.filter(pa.array(~rejected)), rows.lines[~rejected]
    return batch, rows.lines


def read_entities(
    pieces: Iterable[tuple[Path, Rows]], fields: Sequence[Field], rejects: Rejects, group: str
) -> pa.Table:
    """Returns a whole table with one row per id, ids sorted; the first field is the id, later rows
    with the same id are rejected.

    Args:
        pieces: (file, rows) in the order of reading.
        fields: columns of the table; strings come out dictionary-encoded.
        rejects: takes the bad rows.
        group: `items` or `users`.
    """
    kinds = {
        "int64": pa.int64(),
        "float64": pa.float64(),
        "string": pa.dictionary(pa.int32(), pa.string()),
    }
    schema = pa.schema([(field.name, kinds[field.kind]) for field in fields])
    batches, lines, files = [schema.empty_table()], [np.zeros(0, np.int64)], []
    for path, rows in pieces:
        batch, kept = convert(rows, fields, rejects, group, path)
        batches.append(pa.Table.from_batches([batch]).cast(schema))
        lines.append(kept)
        files += [(path, len(kept))]
    table = pa.concat_tables(batches).unify_dictionaries().combine_chunks()
    ids = np.asarray(table.column(0))
    order = np.argsort(ids, kind="stable")
    repeated = np.zeros(len(ids), bool)
    repeated[order[1:]] = ids[order[1:]] == ids[order[:-1]]
    start = 0
    for (path, count), kept in zip(files, lines[1:], strict=True) if repeated.any() else ():
        part = pa.RecordBatch.from_arrays(
            [_one_chunk(column) for column in table.slice(start, count).columns], names=schema.names
        )
        reject(
            rejects,
            group,
            path,
            Rows(part, kept),
            repeated[start : start + count],
            f"{fields[0].source} is there twice",
        )
        start += count
    return table.take(pa.array(order[~repeated[order]]))


def _read_text(
    path: Path,
    rejects: Rejects,
    group: str,
    names: Sequence[str],
    num_header: int,
    *,
    delimiter: str,
    encoding: str,
    quotes: bool,
) -> Iterator[Rows]:
    tracker = _Lines(path, rejects, group, num_header)
    try:
        stream = pa.PythonFile(_Utf8(path, encoding), mode="r")
        reader = pacsv.open_csv(
            stream,
            read_options=pacsv.ReadOptions(
                use_threads=False,
                block_size=BLOCK_BYTES,
                column_names=list(names),
                skip_rows=num_header,
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if quotes else False,
                newlines_in_values=quotes,
                ignore_empty_lines=False,
                invalid_row_handler=tracker.ragged,
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                check_utf8=False,
                strings_can_be_null=True,
                null_values=NULLS,
            ),
        )
        for batch in reader:
            yield tracker.number(batch)
    except pa.ArrowInvalid as error:
        if not any(words in str(error) for words in ("Empty CSV", "Could not skip initial")):
            last = tracker.num_rows + len(tracker.invalid)
            fix = "Look for a line longer than 8 MB, or a quote that is never closed (--no-quotes reads quotes as text)."
            raise DataError(
                f"{path} cannot be read after about {last:,} rows",
                found=str(error).splitlines()[0],
                fix=fix,
            ) from error
    tracker.finish()


class _Utf8:
    """A text file as UTF-8 bytes, bytes that are not in its encoding replaced by `UNREADABLE`; what
    `pa.PythonFile` reads from.
    """

    def __init__(self, path: Path, encoding: str) -> None:
        codecs.register_error("longrec.unreadable", lambda error: (UNREADABLE, error.end))  # type: ignore[attr-defined]
        self._stream, self._decoder = (
            path.open("rb"),
            codecs.getincrementaldecoder(encoding)("longrec.unreadable"),
        )

    def read(self, count: int = -1) -> bytes:
        """Returns about `count` bytes, at most; none at the end of the file."""
        while data := self._stream.read(count):
            if text := self._decoder.decode(data):
                return text.encode()
        return self._decoder.decode(b"", True).encode()

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._stream.closed


class _Lines:
    """Numbers the rows that the CSV reader yields, which leaves out ragged rows and counts a row of
    several lines as one.
    """

    def __init__(
        self,
        path: Path,
        rejects: Rejects,
        group: str,
        num_header: int,
    ) -> None:
        self.path, self.rejects, self.group = path, rejects, group
        self.num_rows, self.first = 0, num_header + 1
        self.invalid: list[int] = []
        self.pending: list[tuple[int, int, str, int]] = []
        self.extra_rows: list[int] = []
        self.extra_lines: list[int] = []

    def ragged(self, row: pacsv.InvalidRow) -> Literal["skip"]:
        """Takes a row with a wrong number of columns from the reader."""
        self.invalid.append(row.number)
        text = row.text
        self._extend(row.number, text.count("\n"))
        self.pending.append(
            (row.number, row.expected_columns, text[:MAX_TEXT], 1 + text.count("\n"))
        )
        return "skip"

    def number(self, batch: pa.RecordBatch) -> Rows:
        """Returns the rows that are single lines and not blank, with their lines."""
        before = np.array(self.invalid, np.int64) - self.first - np.arange(len(self.invalid))
        places = self.num_rows + np.arange(batch.num_rows, dtype=np.int64)
        numbers = places + self.first + np.searchsorted(before, places, side="right")
        self.num_rows += batch.num_rows
        breaks = _line_breaks(batch)
        for row in np.flatnonzero(breaks):
            self._extend(int(numbers[row]), int(breaks[row]))
        lines = self._physical(numbers)
        rows = Rows(batch, lines)
        blank = np.logical_and.reduce([np.asarray(pc.is_null(column)) for column in batch.columns])
        self.rejects.num_read[self.group] += int(np.sum(~blank)) + int(breaks.sum())
        reject(
            self.rejects,
            self.group,
            self.path,
            rows,
            breaks > 0,
            "a quoted field runs over several lines",
            breaks + 1,
        )
        self._flush(int(numbers[-1]) if len(numbers) else 0)
        good = ~blank & (breaks == 0)
        return rows if good.all() else Rows(batch.filter(pa.array(good)), lines[good])

    def finish(self) -> None:
        """Rejects the ragged rows after the last batch."""
        self._flush(None)

    def _flush(self, last: int | None) -> None:
        """Rejects the ragged rows up to row `last`: the reader is ahead, and the lines before later
        ones are not known yet.
        """
        due = [entry for entry in self.pending if last is None or entry[0] <= last]
        self.pending = self.pending[len(due) :]
        for number, expected, text, num_lines in due:
            self.rejects.num_read[self.group] += num_lines
            line = int(self._physical(np.array([number], np.int64))[0])
            self.rejects.add(
                self.group, self.path, [line], f"not {expected} columns", [text], num_lines
            )

    def _extend(self, number: int, count: int) -> None:
        if count:
            self.extra_rows.append(number)
            self.extra_lines.append(count)

    def _physical(self, numbers: Int64) -> Int64:
        if not self.extra_rows:
            return numbers
        order = np.argsort(self.extra_rows, kind="stable")
        total = np.concatenate([[0], np.cumsum(np.array(self.extra_lines)[order])])
        skipped: Int64 = total[
            np.searchsorted(np.array(self.extra_rows)[order], numbers, side="left")
        ]
        return numbers + skipped


def _line_breaks(batch: pa.RecordBatch) -> Int64:
    """Returns the line breaks inside the fields of each row, int64."""
    breaks = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        data = column.buffers()[2]
        if data is not None and np.any(np.frombuffer(data, np.uint8) == 10):
            breaks += np.asarray(
                pc.fill_null(pc.count_substring(column.cast(pa.binary()), b"\n"), 0), np.int64
            )
    return breaks


def reject(
    rejects: Rejects,
    group: str,
    path: Path,
    rows: Rows,
    bad: Bools,
    reason: str,
    weights: Int64 | None = None,
) -> None:
    """Sets the bad ones of some rows aside; `weights` are the lines that each row covers, one
    unless told.
    """
    chosen = np.flatnonzero(bad)
    if len(chosen):
        texts = (_text_of(rows.table, int(row)) for row in chosen)
        rejects.add(
            group,
            path,
            rows.lines[chosen].tolist(),
            reason,
            texts,
            None if weights is None else int(weights[chosen].sum()),
        )


def _text_of(table: pa.RecordBatch, row: int) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow(
        [column[row].as_py() for column in table.columns]
    )
    return stream.getvalue()


def _convert(column: pa.Array, field: Field) -> tuple[pa.Array, Bools, str]:
    """Returns (converted column, which rows cannot be converted, the words for it)."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if field.kind == "int64":
        return *_to_int64(column), "is not a whole number"
    if field.kind == "float64":
        return *_to_float64(column), "is not a number"
    if field.kind == "string":
        return *_to_string(column), "is not in the encoding of the file"
    if field.kind == "label":
        values, bad = _to_int64(column)
        bad = bad | ~np.asarray(
            pc.fill_null(pc.is_in(values, pa.array([0, 1], pa.int64())), True)
        ) & np.asarray(pc.is_valid(values))
        return (
            pc.if_else(pa.array(bad), pa.scalar(None, pa.int64()), values).cast(pa.int8()),
            bad,
            "is not 0 or 1",
        )
    values, bad = _to_ms(column, field.kind)
    numbers = np.asarray(pc.fill_null(values, EARLIEST_MS))
    return (
        values,
        bad | (numbers < EARLIEST_MS) | (numbers >= LATEST_MS),
        "is not a time from 1980 to 2099",
    )


def _to_int64(column: pa.Array) -> tuple[pa.Array, Bools]:
    none = np.zeros(len(column), bool)
    try:
        return column.cast(pa.int64()), none
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    if not _is_text(column):
        values, bad = _to_float64(column)
        return _whole(values, bad)
    whole = np.asarray(pc.fill_null(pc.match_substring_regex(column, _INTEGER), False))
    digits = pc.replace_substring_regex(
        _only(column, whole), pattern=r"^\s*\+?|(\.0*)?\s*$", replacement=""
    )
    rest, bad = _whole(*_to_float64(_only(column, ~whole)))
    return pc.coalesce(digits.cast(pa.int64()), rest), bad


def _whole(values: pa.Array, bad: Bools) -> tuple[pa.Array, Bools]:
    """Returns float64 values as int64; those that are not whole, or too large to be exact, are
    bad.
    """
    numbers = np.asarray(pc.fill_null(values, 0.0))
    bad = bad | ~np.isfinite(numbers) | (np.abs(numbers) > 2**53) | (np.floor(numbers) != numbers)
    return _only(values, ~bad).cast(pa.int64()), bad


def _to_float64(column: pa.Array) -> tuple[pa.Array, Bools]:
    none = np.zeros(len(column), bool)
    try:
        values = column.cast(pa.float64(), safe=_is_text(column))
        return _only(values, ~np.asarray(pc.fill_null(pc.is_nan(values), False))), none
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    if not _is_text(column):
        return pa.nulls(len(column), pa.float64()), np.asarray(pc.is_valid(column))
    good = np.asarray(pc.fill_null(pc.match_substring_regex(column, _NUMBER), False))
    return pc.utf8_trim_whitespace(_only(column, good)).cast(pa.float64()), ~good & np.asarray(
        pc.is_valid(column)
    )


def _to_string(column: pa.Array) -> tuple[pa.Array, Bools]:
    try:
        column = column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.nulls(len(column), pa.string()), np.asarray(pc.is_valid(column))
    return column, np.asarray(pc.fill_null(pc.match_substring(column, UNREADABLE), False))


def _to_ms(column: pa.Array, unit: str) -> tuple[pa.Array, Bools]:
    """Returns times as int64 ms; a timestamp column brings its own unit, and no zone means UTC."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64()), np.zeros(
            len(column), bool
        )
    if unit == "iso":
        return _from_iso(column)
    values, bad = _to_int64(column)
    if unit == "s":
        if bad.any():
            seconds, bad = _to_float64(column)
            return pc.floor(pc.multiply(seconds, 1000.0)).cast(pa.int64(), safe=False), bad
        return pc.multiply(
            pc.max_element_wise(
                pc.min_element_wise(values, LATEST_MS, skip_nulls=False), -1, skip_nulls=False
            ),
            1_000,
        ), bad
    return (values if unit == "ms" else pc.divide(values, _PER_MS[unit])), bad


def _from_iso(column: pa.Array) -> tuple[pa.Array, Bools]:
    text, bad = _to_string(column)
    for kind in (pa.timestamp("ms"), pa.timestamp("ms", tz="UTC")):
        try:
            return text.cast(kind).cast(pa.int64()), bad
        except pa.ArrowInvalid:
            continue
    values = [None if value is None else _iso_ms(value) for value in text.to_pylist()]
    found = pa.array(values, pa.int64())
    return found, bad | (np.asarray(pc.is_null(found)) & np.asarray(pc.is_valid(text)))


def _iso_ms(text: str) -> int | None:
    try:
        value = datetime.datetime.fromisoformat(re.sub(r"\s+", " ", text.strip()))
    except ValueError:
        return None
    if value.tzinfo is None:
        value = value.replace(tzinfo=datetime.UTC)
    return int(
        (value - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC))
        // datetime.timedelta(milliseconds=1)
    )


def _is_text(column: pa.Array) -> bool:
    return bool(
        pa.types.is_string(column.type)
        or pa.types.is_large_string(column.type)
        or pa.types.is_string_view(column.type)
    )


def _only(column: pa.Array, kept: Bools) -> pa.Array:
    return pc.if_else(pa.array(kept), column, pa.scalar(None, column.type))


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def _nulled(column: pa.Array) -> pa.Array:
    return _only(column, ~np.asarray(pc.fill_null(pc.is_in(column, pa.array(NULLS)), False)))


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable(path, error) from error
