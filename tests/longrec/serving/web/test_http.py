"""Parameters of the page's routes."""

from __future__ import annotations

import pytest

from longrec.errors import DataError
from longrec.serving.web.http import (
    int64_parameter,
    optional_int64_parameter,
    optional_length,
)


@pytest.mark.parametrize("value", [5, "5", -(2**63), str(2**63 - 1)])
def test_a_whole_number_may_be_a_text(value) -> None:
    assert int64_parameter({"user_id": value}, "user_id") == int(value)


@pytest.mark.parametrize("value", [None, "", "1.5", "x", 1.5, True, 2**63, "9" * 30, [1], "١"])
def test_a_value_that_is_no_whole_number_is_an_error(value) -> None:
    with pytest.raises(DataError, match="user_id"):
        int64_parameter({"user_id": value}, "user_id")


def test_a_missing_optional_parameter_is_none() -> None:
    assert optional_int64_parameter({}, "length") is None
    assert optional_int64_parameter({"length": "7"}, "length") == 7


def test_a_length_is_not_negative() -> None:
    assert optional_length({}) is None
    assert optional_length({"length": 0}) == 0
    with pytest.raises(DataError, match="length should not be negative"):
        optional_length({"length": "-1"})
