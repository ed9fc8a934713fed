"""Reading of log files: every bad row is counted and named by its line, whatever is wrong with
it.
"""

from __future__ import annotations

import csv
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.importers import readers
from longrec.data.importers.readers import (
    Field,
    Rejects,
    convert,
    files_of,
    read_delimited,
    read_entities,
    read_rows,
    read_separated,
)
from longrec.errors import DataError

FIELDS = (Field("a", "a", "int64", True), Field("b", "b", "float64"), Field("c", "c", "string"))


def read(
    path: Path, fields: tuple[Field, ...] = FIELDS, **options: Any
) -> tuple[list[dict[str, Any]], list[int], list[list[str]], Rejects]:
    """Returns (rows, their lines, rejected [line, reason, text], the rejects)."""
    with Rejects(path.parent / "out", 1.0) as rejects:
        rows, lines = [], []
        text = path.suffix == ".csv"
        for piece in (
            read_delimited(path, rejects, "events", **options)
            if text
            else read_rows(path, rejects, "events", ["a", "b", "c"])
        ):
            batch, kept = convert(piece, fields, rejects, "events", path)
            rows += batch.to_pylist()
            lines += kept.tolist()
        rejects.move_to(path.parent / "rejects.csv")
    written = path.parent / "rejects.csv"
    rejected = (
        list(csv.reader(written.open(encoding="utf-8", newline="")))[1:] if written.exists() else []
    )
    return rows, lines, [entry[1:] for entry in rejected], rejects


def write(tmp_path: Path, content: bytes | str) -> Path:
    path = tmp_path / "log.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_kind_of_bad_row_is_named_by_its_line(tmp_path: Path, end: str) -> None:
    lines = [
        "a,b,c",
        "1,2.5,x",
        "",
        "4,5",
        "6,7,8,9",
        "word,1,y",
        " 12 ,+3.0,z",
        '1,"two',
        'lines",2',
        "99999999999999999999,1,q",
        ",1,null id",
        "7.0,1e3,",
        "8,abc,r",
        "9,NaN,s",
        "-3,-.5,\\N",
        "1.5,1,half",
    ]
    rows, found, rejected, rejects = read(write(tmp_path, "\ufeff" + end.join(lines) + end))
    assert rows == [
        {"a": 1, "b": 2.5, "c": "x"},
        {"a": 12, "b": 3.0, "c": "z"},
        {"a": 7, "b": 1000.0, "c": None},
        {"a": 9, "b": None, "c": "s"},
        {"a": -3, "b": -0.5, "c": None},
    ]
    assert found == [2, 7, 12, 14, 15]
    assert sorted((int(line), reason) for line, reason, _ in rejected) == [
        (4, "not 3 columns"),
        (5, "not 3 columns"),
        (6, "a is not a whole number"),
        (8, "a quoted field runs over several lines"),
        (10, "a is not a whole number"),
        (11, "a is null"),
        (13, "b is not a number"),
        (16, "a is not a whole number"),
    ]
    texts = {int(line): text for line, _, text in rejected}
    assert texts[5] == "6,7,8,9" and texts[13] == "8,abc,r"
    assert rejects.num_rejected["events"] == 9 and rejects.num_read["events"] == 14, (
        "two lines of a row count, blank ones do not"
    )


def test_a_stray_quote_costs_its_lines_and_no_line_number_after_it(tmp_path: Path) -> None:
    body = ["1,1,ok", '2,"stray,x', "3,1,lost", '4,"2",end', "5,1,ok", "x,1,bad"]
    rows, lines, rejected, rejects = read(write(tmp_path, "a,b,c\n" + "\n".join(body) + "\n"))
    assert [row["a"] for row in rows] == [1, 5] and lines == [2, 6]
    assert [(int(line), reason) for line, reason, _ in rejected] == [
        (3, "a quoted field runs over several lines"),
        (7, "a is not a whole number"),
    ]
    assert rejects.num_rejected["events"] == 4 and rejects.num_read["events"] == 6
    rows, lines, rejected, rejects = read(
        write(tmp_path, "a,b,c\n" + "\n".join(body) + "\n"), quotes=False
    )
    assert lines == [2, 4, 6] and rejects.num_rejected["events"] == 3, (
        "without quotes a stray one spoils its own line only"
    )


def test_line_numbers_hold_over_many_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 256)
    rng = np.random.default_rng(0)
    kinds = rng.choice(
        ["good", "ragged", "word", "blank", "two"], 2_000, p=[0.8, 0.06, 0.06, 0.04, 0.04]
    )
    lines, expected, bad = ["a,b,c"], [], set()
    for kind in kinds:
        here = len(lines) + 1
        if kind == "good":
            lines.append(f"{here},1,text")
            expected.append(here)
            continue
        lines += {
            "ragged": [f"{here}"],
            "word": ["word,1,text"],
            "blank": [""],
            "two": [f'{here},1,"up', 'down"'],
        }[kind]
        bad |= {here} if kind != "blank" else set()
    rows, found, rejected, rejects = read(write(tmp_path, "\n".join(lines)))
    assert [row["a"] for row in rows] == expected == found
    assert {int(line) for line, _, _ in rejected} >= bad
    assert rejects.num_read["events"] == len(expected) + rejects.num_rejected["events"]


def test_a_quote_that_is_never_closed_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 256)
    path = write(tmp_path, "a,b,c\n" + "1,1,x\n" * 20 + '2,1,"open\n' + "3,1,y\n" * 200)
    with pytest.raises(DataError, match="quote that is never closed"):
        read(path)
    assert len(read(path, quotes=False)[0]) == 221


def test_text_that_is_not_utf8_is_rejected_by_line(tmp_path: Path) -> None:
    rows, _, rejected, _ = read(
        write(tmp_path, b"a,b,c\n1,1,caf\xe9\n2,1,caf\xc3\xa9\n\xff\xfe,1\n")
    )
    assert [row["c"] for row in rows] == ["café"]
    assert [(line, reason) for line, reason, _ in sorted(rejected)] == [
        ("2", "c is not in the encoding of the file"),
        ("4", "not 3 columns"),
    ]
    assert read(write(tmp_path, b"a,b,c\n1,1,caf\xe9\n"), encoding="latin-1")[0] == [
        {"a": 1, "b": 1.0, "c": "café"}
    ]


@pytest.mark.parametrize(
    ("content", "words"), [("", "is empty"), ("a,b,a\n1,2,3\n", "names a column twice")]
)
def test_a_file_without_a_usable_header_is_refused(
    tmp_path: Path, content: str, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read(write(tmp_path, content))
    with pytest.raises(DataError, match="cannot read"):
        read(tmp_path / "absent.csv")


def test_a_file_with_a_header_only_has_no_rows(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a,b,c\n"))[0] == [] and read(write(tmp_path, "a,b,c"))[0] == []


@given(
    st.lists(
        st.one_of(st.integers(-(2**62), 2**62), st.integers(-1000, 1000), st.none()), max_size=20
    )
)
@settings(max_examples=100, deadline=None)
def test_the_slow_road_of_numbers_agrees_with_the_fast_one(values: list[int | None]) -> None:
    text = pa.array([None if value is None else str(value) for value in values], pa.string())
    slow, bad = readers._to_int64(pa.concat_arrays([text, pa.array(["not a number"])]))
    assert slow.to_pylist()[:-1] == values and bad.tolist() == [False] * len(values) + [True]
    assert readers._to_int64(text)[0].to_pylist() == values


@pytest.mark.parametrize(
    ("unit", "good", "bad"),
    [
        ("s", ["1700000000", "1700000000.25"], ["1700000000000", "-5", "1000", "9e99", "soon"]),
        ("ms", ["1700000000000"], ["1700000000", "-5", "1700000000000000"]),
        ("us", ["1700000000000000"], ["1700000000000", "x"]),
        ("ns", ["1700000000000000000"], ["1700000000000000"]),
        (
            "iso",
            ["2023-11-14T22:13:20", "2023-11-14 22:13:20Z", "2023-11-15T00:13:20+02:00"],
            ["2023-13-01", "yesterday", "1960-01-01"],
        ),
    ],
)
def test_times_of_every_unit_and_what_is_no_time(
    tmp_path: Path, unit: str, good: list[str], bad: list[str]
) -> None:
    for batch in ([*good, *bad], good, bad):  # together and apart: the whole column, the slow road
        rows, _, rejected, _ = read(
            write(tmp_path, "t,u\n" + "".join(f"{text},1\n" for text in batch)),
            (Field("t", "t", unit),),
        )
        assert [int(row["t"]) // 1000 for row in rows] == [1_700_000_000] * sum(
            text in good for text in batch
        )
        assert len(rejected) == sum(text in bad for text in batch) and all(
            "t is not a time" in reason for _, reason, _ in rejected
        )
        (tmp_path / "rejects.csv").unlink(missing_ok=True)


def test_labels_are_0_or_1(tmp_path: Path) -> None:
    rows, _, rejected, _ = read(
        write(tmp_path, "y,z\n0,0\n1,0\n1.0,0\n2,0\n,0\nyes,0\n-1,0\n"), (Field("y", "y", "label"),)
    )
    assert [row["y"] for row in rows] == [0, 1, 1]
    assert sorted((int(line), reason) for line, reason, _ in rejected) == [
        (5, "y is not 0 or 1"),
        (6, "y is null"),
        (7, "y is not 0 or 1"),
        (8, "y is not 0 or 1"),
    ]


def test_parquet_of_many_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "a": pa.array([1.0, 2.5, None, 4.0]),
            "b": pa.array([True, None, False, True]),
            "c": pa.array(["x", "y", None, "x"]).dictionary_encode(),
        }
    )
    pq.write_table(table, path := tmp_path / "log.parquet")
    rows, lines, rejected, _ = read(path)
    assert rows == [{"a": 1, "b": 1.0, "c": "x"}, {"a": 4, "b": 1.0, "c": "x"}] and lines == [1, 4]
    assert [(line, reason) for line, reason, _ in rejected] == [
        ("2", "a is not a whole number"),
        ("3", "a is null"),
    ]
    stamp = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
    zoned = pa.array([stamp], pa.timestamp("us", tz="Europe/Berlin"))
    for column in (
        zoned,
        zoned.cast(pa.timestamp("ns", tz="UTC")),
        pa.array([stamp.replace(tzinfo=None)], pa.timestamp("s")),
    ):
        assert readers._to_ms(column, "ms")[0].to_pylist() == [1_714_521_600_000]


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"a": range(1000), "b": [1.0] * 1000, "c": ["x"] * 1000}),
        path := tmp_path / "log.parquet",
    )
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match="not a readable Parquet"):
        read(path)


def test_separated_text_splits_on_the_whole_separator(tmp_path: Path) -> None:
    text = '1::Caf\xe9: a "Film" (1999)::Drama|War\n2::short\n\n3::x::y::z\n4::b (2000)::\n'
    (path := tmp_path / "movies.dat").write_bytes(text.encode("latin-1"))
    with Rejects(tmp_path / "out", 1) as rejects:
        pieces = list(
            read_separated(
                path,
                rejects,
                "items",
                ("id", "title", "genres"),
                separator="::",
                encoding="latin-1",
            )
        )
        assert pieces[0].table.to_pylist() == [
            {"id": "1", "title": 'Café: a "Film" (1999)', "genres": "Drama|War"},
            {"id": "4", "title": "b (2000)", "genres": None},
        ]
        assert (
            pieces[0].lines.tolist() == [1, 5]
            and rejects.num_rejected["items"] == 2
            and rejects.num_read["items"] == 4
        )
        with pytest.raises(DataError, match="missing"):
            next(
                read_separated(
                    tmp_path / "none.dat",
                    rejects,
                    "items",
                    ("id",),
                    separator="::",
                    encoding="latin-1",
                )
            )


def test_entities_keep_the_first_row_of_an_id_over_several_files(tmp_path: Path) -> None:
    for name, content in (("u1.csv", "a,c\n3,x\n1,y\n3,z\n"), ("u2.csv", "a,c\n1,w\n2,v\n")):
        (tmp_path / name).write_text(content)
    fields = (FIELDS[0], FIELDS[2])
    with Rejects(tmp_path / "out", 1) as rejects:
        pieces = [
            (path, rows)
            for path in files_of(tmp_path / "u*.csv")
            for rows in read_rows(path, rejects, "users", ["a", "c"])
        ]
        assert read_entities(pieces, fields, rejects, "users").to_pylist() == [
            {"a": 1, "c": "y"},
            {"a": 2, "c": "v"},
            {"a": 3, "c": "x"},
        ]
        rejects.move_to(tmp_path / "rejects.csv")
    assert [line[:3] for line in csv.reader((tmp_path / "rejects.csv").open())][1:] == [
        ["u1.csv", "4", "a is there twice"],
        ["u2.csv", "2", "a is there twice"],
    ]


def test_only_so_many_rejects_are_written_but_all_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_WRITTEN_REJECTS", 5)
    _, _, rejected, rejects = read(write(tmp_path, "a,b,c\n" + "x,1,y\n" * 20))
    assert len(rejected) == 5 and rejects.num_rejected["events"] == 20


def test_files_come_in_natural_order_and_of_one_kind(tmp_path: Path) -> None:
    for name in ("log_part10.csv", "log_part2.csv", "log_part1.csv", "_SUCCESS", ".hidden.csv"):
        (tmp_path / name).write_text("a\n1\n")
    assert [path.name for path in files_of(tmp_path)] == [
        "log_part1.csv",
        "log_part2.csv",
        "log_part10.csv",
    ]
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="format"):
        files_of(tmp_path)
    with pytest.raises(DataError, match="no log at"):
        files_of(tmp_path / "nowhere")
