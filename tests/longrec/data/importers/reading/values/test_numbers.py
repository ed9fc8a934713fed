"""Numbers, labels and text: a value is converted alike beside any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.importers.reading.fields import Field
from longrec.data.importers.reading.values.converted import Converted
from longrec.data.importers.reading.values.dates import parse_dates
from longrec.data.importers.reading.values.integers import to_int64
from longrec.data.importers.reading.values.numbers import to_float64, to_label, to_text
from longrec.data.importers.reading.values.times import to_time_ms
from tests.longrec.data.importers.reading.log_rows import read_log, write_log

ODD_TEXTS = st.sampled_from(
    [
        *("0x1F", "0X1f", "+5", " 7 ", "-0", "007", "1_000", "1e3", "1.5e1", "7.", ".5", "."),
        *("inf", "-Infinity", "nan", "NaN", "nan(1)", "1e400", "true", "FALSE", "oops", "", " "),
        *("9223372036854775807", "9223372036854775808", "-9223372036854775808", "1700000000.25"),
        *("2023-11-14", "2023/11/14 22:13:21 UTC", "2023-11-14T22:13:21+02", "2023-02-30"),
    ]
)
TEXTS = st.one_of(ODD_TEXTS, st.none(), st.integers(-(2**65), 2**65).map(str), st.text(max_size=6))
CONVERTERS = {
    "int64": to_int64,
    "float64": to_float64,
    "label": to_label,
    "text": to_text,
    "date": parse_dates,
    "seconds": lambda column: to_time_ms(column, "s"),
    "milliseconds": lambda column: to_time_ms(column, "ms"),
}


@pytest.mark.parametrize("name", sorted(CONVERTERS))
@given(texts=st.lists(TEXTS, max_size=6))
@settings(max_examples=40, deadline=None)
def test_a_text_is_converted_alike_alone_and_among_others(
    name: str,
    texts: list[str | None],
) -> None:
    convert = CONVERTERS[name]
    together = results(convert, texts)
    alone = [results(convert, [text])[0] for text in texts]
    assert together == alone


def results(
    convert: Callable[[pa.Array], Converted],
    texts: list[str | None],
) -> list[tuple[object, list[str]]]:
    """Return the value and the faults of each text."""
    values, faults = convert(pa.array(texts, pa.string()))
    pairs = []
    for row, value in enumerate(values.to_pylist()):
        pairs.append((value, [fault for fault, mask in faults.items() if mask[row]]))
    return pairs


def test_labels_are_0_or_1(tmp_path: Path) -> None:
    path = write_log(tmp_path, "y,z\n0,0\n1,0\n1.0,0\n2,0\n,0\nyes,0\n-1,0\nTrue,0\n")
    log = read_log(path, (Field("y", "y", "label"),))
    assert [row["y"] for row in log.rows] == [0, 1, 1, 1]
    assert log.reasons == [
        (5, "y is not 0 or 1"),
        (6, "y is null"),
        (7, "y is not 0 or 1"),
        (8, "y is not 0 or 1"),
    ]
