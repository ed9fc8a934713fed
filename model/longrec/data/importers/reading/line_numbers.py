"""Line numbers of the rows that Arrow's CSV reader yields.

The reader leaves out ragged rows (a wrong number of columns) and counts a row that covers
several lines as one. A log row is one line, so both are rejected, and the line numbers of the
rows after them must still be right.

    line      1       2    3         4   5    6
    text      header  row  too,many  "a  b"   row
    row       1       2    3         4        5      Arrow's numbers: one per row, ragged or not
    batch             0              1        2      position in the batches: no ragged rows
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from longrec.data.columns import Int64
from longrec.data.importers.reading.blank_lines import LINE_BREAK, NEWLINE, BlankLines
from longrec.data.importers.reading.rejects import MAX_ROW_TEXT, LogBatch, LogFile
from longrec.data.timelines import Mask

CARRIAGE_RETURN = ord("\r")


@dataclasses.dataclass(frozen=True, slots=True)
class RaggedRow:
    """A row with a wrong number of columns.

    Args:
        number: its row number, from 1.
        num_expected_columns: number of columns that it should have.
        text: its beginning.
        num_lines: number of lines that it covers.
    """

    number: int
    num_expected_columns: int
    text: str
    num_lines: int


class LineCounter:
    """Counter of lines that numbers rows and rejects those that are not one line.

    Args:
        file: the text file.
        num_header_lines: number of lines before the first row.
        blank_lines: the blank lines of the file, as far as it was read.
    """

    def __init__(
        self,
        file: LogFile,
        num_header_lines: int,
        blank_lines: BlankLines,
    ) -> None:
        self.file = file
        self.blank_lines = blank_lines
        self.num_rows = 0
        self.ragged_numbers: list[int] = []
        self._first_number = num_header_lines + 1
        self._pending: list[RaggedRow] = []
        # Rows that cover several lines, and by how many lines more than one.
        self._long_row_numbers: list[int] = []
        self._num_extra_lines: list[int] = []

    @property
    def num_rows_seen(self) -> int:
        """Number of rows so far, ragged ones included."""
        return self.num_rows + len(self.ragged_numbers)

    def add_ragged(self, row: pacsv.InvalidRow) -> Literal["skip"]:
        """Take a ragged row from the reader, which then skips it."""
        num_breaks = len(re.findall(LINE_BREAK, row.text))
        self.ragged_numbers.append(row.number)
        self._add_extra_lines(row.number, num_breaks)
        ragged = RaggedRow(
            number=row.number,
            num_expected_columns=row.expected_columns,
            text=row.text[:MAX_ROW_TEXT],
            num_lines=1 + num_breaks,
        )
        self._pending.append(ragged)
        return "skip"

    def number_rows(self, batch: pa.RecordBatch) -> LogBatch:
        """Return the rows that are one line and not blank, with their line numbers."""
        numbers = self._row_numbers(batch.num_rows)
        num_breaks = _count_line_breaks(batch)
        for row in np.flatnonzero(num_breaks):
            self._add_extra_lines(int(numbers[row]), int(num_breaks[row]))
        rows = LogBatch(self.file, batch, self._line_numbers(numbers))
        is_blank = _empty_rows(batch) & self.blank_lines.contain(rows.lines)
        num_lines = int(np.sum(~is_blank)) + int(num_breaks.sum())
        self.file.count_rows(num_lines)  # rows of a log are its lines
        rows.reject(
            num_breaks > 0,
            "a quoted field runs over several lines",
            num_breaks + 1,
        )
        last_number = int(numbers[-1]) if len(numbers) else 0
        self._reject_ragged(last_number)
        is_good = ~is_blank & (num_breaks == 0)
        return rows if is_good.all() else rows.filter(is_good)

    def finish(self) -> None:
        """Reject the ragged rows after the last batch."""
        self._reject_ragged(None)

    def _row_numbers(self, num_rows: int) -> Int64:
        """Return the number of each row of the next batch, int64."""
        # Positions count rows without the ragged ones. The position of a ragged row is that of
        # the row after it.
        ragged_numbers = np.array(self.ragged_numbers, np.int64)
        num_earlier_ragged = np.arange(len(ragged_numbers))
        ragged_positions = ragged_numbers - self._first_number - num_earlier_ragged
        positions = self.num_rows + np.arange(num_rows, dtype=np.int64)
        num_ragged_before = np.searchsorted(ragged_positions, positions, side="right")
        self.num_rows += num_rows
        return positions + self._first_number + num_ragged_before

    def _reject_ragged(self, last_number: int | None) -> None:
        """Reject the pending ragged rows up to a row number; None for all.

        The reader is ahead of the batches. The lines before later ragged rows are not known yet.
        """
        due = [
            ragged
            for ragged in self._pending
            if last_number is None or ragged.number <= last_number
        ]
        self._pending = self._pending[len(due) :]
        for ragged in due:
            self.file.count_rows(ragged.num_lines)
            line = self._line_numbers(np.array([ragged.number], np.int64))[0]
            self.file.rejects.add(
                self.file,
                f"not {ragged.num_expected_columns} columns",
                [int(line)],
                [ragged.text],
                num_lines=ragged.num_lines,
            )

    def _add_extra_lines(self, number: int, count: int) -> None:
        if count:
            self._long_row_numbers.append(number)
            self._num_extra_lines.append(count)

    def _line_numbers(self, numbers: Int64) -> Int64:
        """Return the line of each row: its number and the extra lines of the rows before it."""
        if not self._long_row_numbers:
            return numbers
        order = np.argsort(self._long_row_numbers, kind="stable")
        sorted_numbers = np.array(self._long_row_numbers)[order]
        sums = np.cumsum(np.array(self._num_extra_lines)[order])
        num_extra = np.concatenate([[0], sums])
        offsets: Int64 = num_extra[np.searchsorted(sorted_numbers, numbers, side="left")]
        return numbers + offsets


def _empty_rows(batch: pa.RecordBatch) -> Mask:
    is_null = [np.asarray(pc.is_null(column)) for column in batch.columns]
    return np.asarray(np.all(is_null, axis=0))


def _count_line_breaks(batch: pa.RecordBatch) -> Int64:
    """Return the number of line breaks inside the fields of each row, int64."""
    counts = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        if not _has_line_break(column.buffers()[2]):  # the bytes of all texts; most have none
            continue
        in_column = pc.count_substring_regex(column.cast(pa.binary()), LINE_BREAK)
        counts += np.asarray(pc.fill_null(in_column, 0), np.int64)
    return counts


def _has_line_break(data: pa.Buffer | None) -> bool:
    if data is None:
        return False
    letters = np.frombuffer(data, np.uint8)
    return bool(np.any(letters == NEWLINE) or np.any(letters == CARRIAGE_RETURN))
