"""Numbers and labels: the fast and the slow conversion agree."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.importers.reading.fields import Field
from longrec.data.importers.reading.numbers import to_int64
from tests.longrec.data.importers.reading.log_rows import read_log, write_log


@given(
    st.lists(
        st.one_of(st.integers(-(2**62), 2**62), st.integers(-1000, 1000), st.none()),
        max_size=20,
    )
)
@settings(max_examples=100, deadline=None)
def test_the_slow_path_agrees_with_the_cast(values: list[int | None]) -> None:
    texts = pa.array([None if value is None else str(value) for value in values], pa.string())
    with_bad_value = pa.concat_arrays([texts, pa.array(["not a number"])])
    slow = to_int64(with_bad_value)
    assert slow.values.to_pylist()[:-1] == values
    assert slow.is_bad.tolist() == [False] * len(values) + [True]
    assert to_int64(texts).values.to_pylist() == values


def test_labels_are_0_or_1(tmp_path: Path) -> None:
    path = write_log(tmp_path, "y,z\n0,0\n1,0\n1.0,0\n2,0\n,0\nyes,0\n-1,0\n")
    log = read_log(path, (Field("y", "y", "label"),))
    assert [row["y"] for row in log.rows] == [0, 1, 1]
    assert log.reasons == [
        (5, "y is not 0 or 1"),
        (6, "y is null"),
        (7, "y is not 0 or 1"),
        (8, "y is not 0 or 1"),
    ]
