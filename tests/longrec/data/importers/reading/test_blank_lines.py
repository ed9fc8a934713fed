"""Blank lines: no rows, however the text is cut into chunks and its lines end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.importers.reading.blank_lines import BlankLines


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@given(lines=st.lists(st.sampled_from(["", "a", ",,"]), max_size=12), size=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_chunks_and_line_ends_do_not_matter(end: str, lines: list[str], size: int) -> None:
    data = "".join(line + end for line in lines).encode()
    blank_lines = BlankLines()
    for start in range(0, len(data), size):
        blank_lines.add(data[start : start + size])
    numbers = np.arange(1, len(lines) + 1)
    assert blank_lines.contain(numbers).tolist() == [line == "" for line in lines]
