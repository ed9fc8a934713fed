"""Integer division and multiples, rounded up."""

from __future__ import annotations


def ceil_div(dividend: int, divisor: int) -> int:
    """Return dividend / divisor, rounded up to a whole number."""
    return -(-dividend // divisor)


def round_up(number: int, divisor: int) -> int:
    """Return the least multiple of `divisor` that is at least `number`."""
    return ceil_div(number, divisor) * divisor
