"""Sequence numbers: they order events of equal time when the log has no column for it.

Only the order matters. Importers begin at 0, at 1 or at the number of the line. Do not change
that: a new import of a log must give the same dataset.
"""

from __future__ import annotations

import pyarrow as pa

from longrec.data.columns import Int64


class SequenceNumbers:
    """Numbers of the rows of several files, one file after another.

    Args:
        num_header_lines: number of lines before the first row of a file.
        first: number of the first row.
    """

    def __init__(
        self,
        *,
        num_header_lines: int = 0,
        first: int = 0,
    ) -> None:
        self.num_header_lines = num_header_lines
        self.first = first
        self._num_rows_before = 0
        self._num_rows_so_far = 0

    def start_file(self) -> None:
        """Continue with the next file after the last numbered row."""
        self._num_rows_before = self._num_rows_so_far

    def number(self, lines: Int64) -> pa.Array:
        """Return the number of each row, int64.

        Args:
            lines: int64 [N], lines of the rows in the current file, ascending.
        """
        rows_in_file = lines - self.num_header_lines  # from 1
        if len(rows_in_file):
            self._num_rows_so_far = self._num_rows_before + int(rows_in_file[-1])
        return pa.array(self._num_rows_before + rows_in_file - 1 + self.first)
