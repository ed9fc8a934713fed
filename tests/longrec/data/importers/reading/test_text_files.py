"""Text files: every bad row is counted and reported with its line."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.importers.reading import text_files
from longrec.data.importers.reading.fields import Field
from longrec.data.importers.reading.rejects import LogFile, Rejects
from longrec.data.importers.reading.text_files import read_separated
from longrec.errors import DataError
from tests.longrec.data.importers.reading.log_rows import read_log, write_log


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_kind_of_bad_row_is_reported_with_its_line(tmp_path: Path, end: str) -> None:
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
    log = read_log(write_log(tmp_path, "\ufeff" + end.join(lines) + end))
    assert log.rows == [
        {"a": 1, "b": 2.5, "c": "x"},
        {"a": 12, "b": 3.0, "c": "z"},
        {"a": 7, "b": 1000.0, "c": None},
        {"a": 9, "b": None, "c": "s"},
        {"a": -3, "b": -0.5, "c": None},
    ]
    assert log.lines == [2, 7, 12, 14, 15]
    assert log.reasons == [
        (4, "not 3 columns"),
        (5, "not 3 columns"),
        (6, "a is not a whole number"),
        (8, "a quoted field runs over several lines"),
        (10, "a is beyond int64, from -2^63 to 2^63 - 1"),
        (11, "a is null"),
        (13, "b is not a number"),
        (16, "a is not a whole number"),
    ]
    texts = {int(line): text for line, _, text in log.rejected}
    assert texts[5] == "6,7,8,9"
    assert texts[13] == "8,abc,r"
    assert log.rejects.num_rejected["events"] == 9, "both lines of a row count"
    assert log.rejects.num_read["events"] == 14, "blank lines do not count"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_row_of_empty_fields_is_a_row_and_a_blank_line_is_none(tmp_path: Path, end: str) -> None:
    lines = ["a,b,c", "1,1,x", ",,", "", '"","",""', "NULL,NaN,\\N", "", "2,1,y", ""]
    log = read_log(write_log(tmp_path, end.join(lines)))
    assert log.lines == [2, 8]
    assert log.reasons == [(3, "a is null"), (5, "a is null"), (6, "a is null")]
    assert log.rejects.num_read["events"] == 5


@given(
    parts=st.lists(st.sampled_from(["1", "a", ",", ",", "\n", "\n", "\r", '"', " ", "ü", "NULL"])),
    has_quotes=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_every_line_of_any_text_is_a_row_or_rejected_or_blank(
    parts: list[str],
    has_quotes: bool,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_log(Path(folder), "a,b\n" + "".join(parts))
        fields = (Field("a", "a", "string"), Field("b", "b", "string"))
        try:
            log = read_log(path, fields, has_quotes=has_quotes)
        except DataError:
            assert '"' in parts, "only an open quote ends a reading"
            return
    assert log.rejects.num_read["events"] == len(log.rows) + log.rejects.num_rejected["events"]
    if not has_quotes:
        lines = "".join(parts).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        assert log.rejects.num_read["events"] == sum(line != "" for line in lines)


def test_a_line_of_the_word_null_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "log.dat"
    path.write_text("1::a\nNULL\n\n2::b\n")
    with Rejects(tmp_path / "out", 1) as rejects:
        file = LogFile(path, "items", rejects)
        [batch] = read_separated(file, ("id", "name"), separator="::", encoding="utf8")
        assert batch.lines.tolist() == [1, 4]
        assert rejects.num_read["items"] == 3
        assert rejects.num_rejected["items"] == 1


def test_a_stray_quote_rejects_its_lines_and_keeps_later_line_numbers(tmp_path: Path) -> None:
    lines = ["1,1,ok", '2,"stray,x', "3,1,lost", '4,"2",end', "5,1,ok", "x,1,bad"]
    path = write_log(tmp_path, "a,b,c\n" + "\n".join(lines) + "\n")
    log = read_log(path)
    assert [row["a"] for row in log.rows] == [1, 5]
    assert log.lines == [2, 6]
    assert [(int(line), reason) for line, reason, _ in log.rejected] == [
        (3, "a quoted field runs over several lines"),
        (7, "a is not a whole number"),
    ]
    assert log.rejects.num_rejected["events"] == 4
    assert log.rejects.num_read["events"] == 6
    unquoted = read_log(path, has_quotes=False)
    assert unquoted.lines == [2, 4, 6]
    assert unquoted.rejects.num_rejected["events"] == 3, "a stray quote spoils its own line only"


def test_line_numbers_hold_over_many_blocks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 256)
    rng = np.random.default_rng(0)
    kinds = rng.choice(
        ["good", "ragged", "word", "blank", "two"],
        2_000,
        p=[0.8, 0.06, 0.06, 0.04, 0.04],
    )
    lines = ["a,b,c"]
    good_lines = []
    bad_lines = set()
    for kind in kinds:
        line = len(lines) + 1
        texts = {
            "good": [f"{line},1,text"],
            "ragged": [f"{line}"],
            "word": ["word,1,text"],
            "blank": [""],
            "two": [f'{line},1,"up', 'down"'],
        }
        lines += texts[kind]
        if kind == "good":
            good_lines.append(line)
        elif kind != "blank":
            bad_lines.add(line)
    log = read_log(write_log(tmp_path, "\n".join(lines)))
    assert [row["a"] for row in log.rows] == good_lines
    assert log.lines == good_lines
    assert {line for line, _ in log.reasons} >= bad_lines
    num_rejected = log.rejects.num_rejected["events"]
    assert log.rejects.num_read["events"] == len(good_lines) + num_rejected


def test_a_quote_that_is_never_closed_is_one_clear_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 256)
    path = write_log(tmp_path, "a,b,c\n" + "1,1,x\n" * 20 + '2,1,"open\n' + "3,1,y\n" * 200)
    with pytest.raises(DataError, match="quote that is never closed"):
        read_log(path)
    assert len(read_log(path, has_quotes=False).rows) == 221


def test_text_that_is_not_utf8_is_rejected_by_line(tmp_path: Path) -> None:
    log = read_log(write_log(tmp_path, b"a,b,c\n1,1,caf\xe9\n2,1,caf\xc3\xa9\n\xff\xfe,1\n"))
    assert [row["c"] for row in log.rows] == ["café"]
    assert log.reasons == [
        (2, "c is not in the encoding of the file"),
        (4, "not 3 columns"),
    ]
    latin = write_log(tmp_path, b"a,b,c\n1,1,caf\xe9\n")
    assert read_log(latin, encoding="latin-1").rows == [{"a": 1, "b": 1.0, "c": "café"}]


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "is empty"), ("a,b,a\n1,2,3\n", "names a column twice")],
)
def test_a_file_without_a_usable_header_is_refused(
    tmp_path: Path,
    content: str,
    words: str,
) -> None:
    with pytest.raises(DataError, match=words):
        read_log(write_log(tmp_path, content))
    with pytest.raises(DataError, match="cannot read"):
        read_log(tmp_path / "absent.csv")


def test_a_file_with_a_header_only_has_no_rows(tmp_path: Path) -> None:
    assert read_log(write_log(tmp_path, "a,b,c\n")).rows == []
    assert read_log(write_log(tmp_path, "a,b,c")).rows == []


def test_separated_text_splits_on_the_whole_separator(tmp_path: Path) -> None:
    text = '1::Caf\xe9: a "Film" (1999)::Drama|War\n2::short\n\n3::x::y::z\n4::b (2000)::\n'
    path = tmp_path / "movies.dat"
    path.write_bytes(text.encode("latin-1"))
    names = ("id", "title", "genres")
    with Rejects(tmp_path / "out", 1) as rejects:
        file = LogFile(path, "items", rejects)
        batches = list(read_separated(file, names, separator="::", encoding="latin-1"))
        assert batches[0].table.to_pylist() == [
            {"id": "1", "title": 'Café: a "Film" (1999)', "genres": "Drama|War"},
            {"id": "4", "title": "b (2000)", "genres": None},
        ]
        assert batches[0].lines.tolist() == [1, 5]
        assert rejects.num_rejected["items"] == 2
        assert rejects.num_read["items"] == 4
        absent = LogFile(tmp_path / "none.dat", "items", rejects)
        with pytest.raises(DataError, match="missing"):
            next(read_separated(absent, ("id",), separator="::", encoding="latin-1"))
