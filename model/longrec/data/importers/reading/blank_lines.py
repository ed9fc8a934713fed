"""Blank lines of a text file: they are no rows, whereas a row of empty fields is one.

Arrow's CSV reader yields the same row of nulls for both.
"""

from __future__ import annotations

import numpy as np

from longrec.data.columns import Int64
from longrec.data.timelines import Mask

NEWLINE = ord("\n")
LINE_BREAK = r"\r\n|\n|\r"
"""Ends of a line; Arrow's CSV reader takes each of them for one."""


class BlankLines:
    """Numbers of the blank lines of a text, found in its bytes as they are read."""

    def __init__(self) -> None:
        self._line = 1
        self._is_at_start = True  # of a line
        self._ended_with_return = False
        self._found: list[Int64] = []

    def add(self, data: bytes) -> None:
        """Take the next bytes of the text."""
        text = self._with_newlines(data)
        if not text:
            return
        if b"\n\n" in text or (self._is_at_start and text[0] == NEWLINE):
            self._find(text)
        self._line += text.count(b"\n")
        self._is_at_start = text[-1] == NEWLINE

    def contain(self, lines: Int64) -> Mask:
        """Return whether each line is blank, bool [N].

        Args:
            lines: int64 [N], numbers of lines that were read, from 1.
        """
        if not self._found:
            return np.zeros(len(lines), bool)
        return np.isin(lines, np.concatenate(self._found))

    def _with_newlines(self, data: bytes) -> bytes:
        """Return the bytes with one newline at each end of a line."""
        if self._ended_with_return and data.startswith(b"\n"):
            data = data[1:]  # the first byte of this line end was the last one read before
            self._ended_with_return = False
        if not data:
            return data
        self._ended_with_return = data.endswith(b"\r")
        if b"\r" not in data:
            return data
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _find(self, text: bytes) -> None:
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == NEWLINE)
        end_before = -1 if self._is_at_start else -2
        is_blank = np.diff(ends, prepend=end_before) == 1
        self._found.append(self._line + np.flatnonzero(is_blank))
