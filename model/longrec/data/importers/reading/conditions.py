"""Conditions on a column of a log, written as text: `event=purchase`, `rating>=4`, `quantity>0`."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.importers.reading.values.converted import Converted, null_outside, plain_column
from longrec.data.importers.reading.values.numbers import to_float64, to_text
from longrec.data.timelines import Mask
from longrec.errors import DataError

NAMED_CONDITION = re.compile(r"(?:([^=<>!]+)=)?([^=<>!]+)(>=|<=|!=|==|=|>|<)(.*)")
CONDITION = re.compile(r"()([^=<>!]+)(>=|<=|!=|==|=|>|<)(.*)")
COMPARISONS = {
    ">=": np.greater_equal,
    "<=": np.less_equal,
    ">": np.greater,
    "<": np.less,
}
EQUALITIES = ("=", "==", "!=")


@dataclasses.dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of a column with a value.

    Args:
        name: name that the text gives it, may be empty: `liked` in `liked=rating>=4`.
        column: column of the log.
        operator: `=`, `==`, `!=`, `>=`, `<=`, `>` or `<`.
        value: the text or number to compare with.
    """

    name: str
    column: str
    operator: str
    value: str

    def __str__(self) -> str:
        return f"{self.column}{self.operator}{self.value}"

    def evaluate(self, column: pa.Array) -> Converted:
        """Return 1 where the condition holds, else 0, int8; null where the column is."""
        column = plain_column(column)
        is_known = np.asarray(pc.is_valid(column))
        if self.operator in EQUALITIES:
            converted = to_text(column)
            holds = self._equals(column, converted.values)
            holds = ~holds if self.operator == "!=" else holds
        else:
            converted = to_float64(column)
            is_known &= np.asarray(pc.is_valid(converted.values))
            numbers = np.asarray(pc.fill_null(converted.values, 0.0))
            holds = COMPARISONS[self.operator](numbers, float(self.value))
        values = pa.array(holds.astype(np.int8))
        return Converted(null_outside(values, is_known & ~converted.is_bad), converted.faults)

    def _equals(self, column: pa.Array, texts: pa.Array) -> Mask:
        """Return whether each value equals the condition's, as text or as a number."""
        trimmed = pc.utf8_trim_whitespace(texts)
        is_equal: Mask = np.asarray(pc.fill_null(pc.equal(trimmed, self.value), False))
        number = _number(self.value)
        if number is None:
            return is_equal
        numbers = pc.equal(to_float64(column).values, number)
        is_equal |= np.asarray(pc.fill_null(numbers, False))
        return is_equal


def parse_condition(text: str, *, may_have_name: bool = False) -> Condition:
    """Return the condition that a text describes.

    Args:
        text: COLUMN, an operator and a value; with `NAME=` before it where it may have a name.
        may_have_name: whether a name may come first.

    Raises:
        DataError: the text is no condition, or compares by size with something that is no number.
    """
    match = (NAMED_CONDITION if may_have_name else CONDITION).fullmatch(text)
    if match is None:
        raise DataError(
            "a condition is misdescribed",
            found=text,
            expected="COLUMN=VALUE, or !=, >=, <=, >, < in place of =",
        )
    name, column, operator, value = (part.strip() if part else "" for part in match.groups())
    if operator not in EQUALITIES and _number(value) is None:
        raise DataError(
            f"{operator} compares numbers",
            found=text,
            expected="a number after the operator",
        )
    return Condition(name, column, operator, value)


def is_condition(text: str) -> bool:
    """Return whether a text is a condition instead of the name of a column."""
    return NAMED_CONDITION.fullmatch(text) is not None


def _number(text: str) -> float | None:
    value = to_float64(pa.array([text], pa.string())).values[0].as_py()
    return None if value is None else float(value)
