"""Test the axes of charts."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from longrec.reporting.charts import nice_ticks


@given(st.floats(-1e6, 1e6), st.floats(1e-9, 1e6), st.integers(2, 8))
def test_ticks_span_their_range_in_few_even_steps(
    low: float,
    width: float,
    num: int,
) -> None:
    high = low + width
    ticks = nice_ticks(low, high, num)
    slack = 1e-6 * max(abs(low), abs(high), width) + 1e-9
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    is_wide = width > 1e-4 * max(1.0, abs(low))
    if is_wide:
        assert 2 <= len(ticks) <= 2 * num + 4
        steps = [right - left for left, right in itertools.pairwise(ticks)]
        largest = max(1.0, abs(ticks[-1]), abs(ticks[0]))
        assert max(steps) - min(steps) < 1e-6 * largest
