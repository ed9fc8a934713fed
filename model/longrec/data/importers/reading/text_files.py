"""Delimited text files, read in batches of bounded memory, every column as text.

One row is one line. A quoted field that covers several lines is rejected with all its lines.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from longrec.data.importers.reading.blank_lines import BlankLines
from longrec.data.importers.reading.line_numbers import LineCounter
from longrec.data.importers.reading.log_files import header_names
from longrec.data.importers.reading.rejects import LogBatch, LogFile
from longrec.data.importers.reading.undecodable import UNDECODABLE_ERRORS
from longrec.errors import DataError

BLOCK_BYTES = 8 << 20
NULL_TEXTS = ["", "NULL", "null", "\\N", "NaN", "nan", "None"]
UNIT_SEPARATOR = "\x1f"
"""Delimiter that no log contains; a line read with it is one field."""
EMPTY_FILE_ERRORS = ("Empty CSV", "Could not skip initial")


@dataclasses.dataclass(frozen=True, slots=True)
class TextFormat:
    """Format of a delimited text file.

    Args:
        names: column names.
        num_header_lines: number of lines before the first row.
        delimiter: one character.
        encoding: of the text.
        has_quotes: whether fields may be in double quotes.
    """

    names: Sequence[str]
    num_header_lines: int = 0
    delimiter: str = ","
    encoding: str = "utf8"
    has_quotes: bool = True


def read_delimited(
    file: LogFile,
    *,
    delimiter: str = ",",
    encoding: str = "utf8",
    has_quotes: bool = True,
    names: Sequence[str] | None = None,
    num_header_lines: int = 0,
) -> Iterator[LogBatch]:
    """Yield the rows of a text file; reject rows with a wrong number of columns.

    Blank lines are no rows. CR LF and a byte order mark are understood.

    Args:
        file: the text file.
        delimiter: one character.
        encoding: of the text.
        has_quotes: whether fields may be in double quotes.
        names: column names of a file without a header; None to read them from the first line.
        num_header_lines: number of lines to skip in a file with given `names`, 0 or 1.

    Raises:
        DataError: the file is empty or unreadable, or a row is longer than a block.
    """
    if names is None:
        names = header_names(file.path, delimiter=delimiter)
        num_header_lines = 1
    else:
        _require_content(file.path, expected=delimiter.join(names))
    text_format = TextFormat(
        names,
        num_header_lines,
        delimiter,
        encoding,
        has_quotes,
    )
    yield from _read_text(file, text_format)


def read_separated(
    file: LogFile,
    names: Sequence[str],
    *,
    separator: str,
    encoding: str,
) -> Iterator[LogBatch]:
    """Yield the rows of a text file without header or quotes, split at a string such as `::`.

    Args:
        file: the text file.
        names: column names.
        separator: text between two fields.
        encoding: of the text.

    Raises:
        DataError: the file is empty or unreadable.
    """
    _require_content(file.path, expected=separator.join(names))
    whole_lines = TextFormat(
        ["line"],
        delimiter=UNIT_SEPARATOR,
        encoding=encoding,
        has_quotes=False,
    )
    for batch in _read_text(file, whole_lines):
        lines = pc.fill_null(batch.table.column(0), "")  # a line of the text NULL alone is a row
        fields = pc.split_pattern(lines, pattern=separator)
        is_complete = np.asarray(pc.equal(pc.list_value_length(fields), len(names)))
        batch.reject(~is_complete, f"not {len(names)} columns")
        fields = fields.filter(pa.array(is_complete))
        columns = [_with_nulls(pc.list_element(fields, index)) for index in range(len(names))]
        table = pa.RecordBatch.from_arrays(columns, names=list(names))
        yield LogBatch(file, table, batch.lines[is_complete])


def _require_content(path: Path, expected: str) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing", expected=expected)
    if not path.stat().st_size:
        raise DataError(f"{path} is empty", expected=expected)


def _with_nulls(column: pa.Array) -> pa.Array:
    is_null_text = pc.is_in(column, pa.array(NULL_TEXTS))
    null = pa.scalar(None, column.type)
    return pc.if_else(pc.fill_null(is_null_text, False), null, column)


def _read_text(file: LogFile, text_format: TextFormat) -> Iterator[LogBatch]:
    counter = LineCounter(file, text_format.num_header_lines, BlankLines())
    try:
        for batch in _open_csv(file.path, text_format, counter):
            yield counter.number_rows(batch)
    except pa.ArrowInvalid as error:
        message = str(error)
        # A header without rows is a valid, empty log.
        if not any(words in message for words in EMPTY_FILE_ERRORS):
            raise DataError(
                f"{file.path} cannot be read after about {counter.num_rows_seen:,} rows",
                found=message.splitlines()[0],
                fix="Look for a line longer than 8 MB, or a quote that is never closed "
                "(--no-quotes reads quotes as text).",
            ) from error
    counter.finish()


def _open_csv(
    path: Path,
    text_format: TextFormat,
    counter: LineCounter,
) -> pacsv.CSVStreamingReader:
    read_options = pacsv.ReadOptions(
        use_threads=False,  # else ragged rows have no number
        block_size=BLOCK_BYTES,
        column_names=list(text_format.names),
        skip_rows=text_format.num_header_lines,
    )
    parse_options = pacsv.ParseOptions(
        delimiter=text_format.delimiter,
        quote_char='"' if text_format.has_quotes else False,
        newlines_in_values=text_format.has_quotes,
        ignore_empty_lines=False,  # they count as lines
        invalid_row_handler=counter.add_ragged,
    )
    convert_options = pacsv.ConvertOptions(
        column_types=dict.fromkeys(text_format.names, pa.string()),
        check_utf8=False,  # `_Utf8Stream` yields nothing else
        strings_can_be_null=True,
        null_values=NULL_TEXTS,
    )
    return pacsv.open_csv(
        pa.PythonFile(
            _Utf8Stream(path, text_format.encoding, counter.blank_lines),
            mode="r",
        ),
        read_options=read_options,
        parse_options=parse_options,
        convert_options=convert_options,
    )


class _Utf8Stream:
    """A text file as UTF-8 bytes; `UNDECODABLE` replaces bytes that are not in its encoding.

    `pa.PythonFile` reads from it. The blank lines are noted on the way.
    """

    def __init__(
        self,
        path: Path,
        encoding: str,
        blank_lines: BlankLines,
    ) -> None:
        self._stream = path.open("rb")
        self._decoder = codecs.getincrementaldecoder(encoding)(UNDECODABLE_ERRORS)
        self._blank_lines = blank_lines

    def read(self, count: int = -1) -> bytes:
        """Return the text of at most `count` bytes of the file; nothing at its end."""
        while data := self._stream.read(count):
            if text := self._decoder.decode(data):
                return self._noted(text)
        return self._noted(self._decoder.decode(b"", True))

    def _noted(self, text: str) -> bytes:
        data = text.encode()
        self._blank_lines.add(data)
        return data

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._stream.closed
