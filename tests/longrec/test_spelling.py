"""The nearest known name of a misspelled one."""

from __future__ import annotations

import time

import pytest

from longrec.spelling import nearest_name

KNOWN = ("user_id", "candidates", "request_time", "timeout_ms")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("userId", "user_id"),
        ("USER-ID", "user_id"),
        ("candidate", "candidates"),
        ("requestTime", "request_time"),
        ("timeout", "timeout_ms"),
        ("colour", ""),
        ("", ""),
        ("_", ""),
    ],
)
def test_the_nearest_name_is_found(name: str, nearest: str) -> None:
    assert nearest_name(name, KNOWN) == nearest


def test_a_long_name_takes_no_time() -> None:
    started = time.perf_counter()
    assert nearest_name("user_id" * 100_000, KNOWN) == ""
    assert time.perf_counter() - started < 0.1
