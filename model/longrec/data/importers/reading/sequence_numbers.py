"""Sequence numbers: they order events of equal time when the log has no column for it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int64 = npt.NDArray[np.int64]


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
        places = lines - self.num_header_lines
        if len(places):
            self._num_rows_so_far = self._num_rows_before + int(places[-1])
        return pa.array(self._num_rows_before + places - 1 + self.first)
