"""Guesses: columns by usual names, text ids by their look, the unit by the size of the times."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.data.dataset import Dataset
from longrec.data.importers import EventMapping, import_events
from longrec.data.importers.guesses import GivenColumns, guess_columns, guess_unit
from longrec.data.importers.preview import preview_events
from longrec.errors import DataError

INVOICES = """Invoice,StockCode,Quantity,InvoiceDate,Customer ID
1,85123A,6,2010-12-01 08:26:00,17850
1,71053,6,2010-12-01 08:26:00,17850
2,71053,-1,2010-12-01 08:28:00,17850
3,84879,32,2010-12-01 08:34:00,
4,22960,6,soon,13047
"""


def write_invoices(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(INVOICES)
    return path


def test_usual_names_text_ids_and_dates_are_recognised(tmp_path: Path) -> None:
    guessed = guess_columns(write_invoices(tmp_path), GivenColumns(basket="Invoice"))
    assert (guessed.user, guessed.item) == ("Customer ID", "StockCode")
    assert (guessed.timestamp, guessed.timestamp_unit) == ("InvoiceDate", "iso")
    assert guessed.text_ids == ("item",)
    assert guessed.notes == (
        "user: column Customer ID",
        "item: column StockCode",
        "timestamp: column InvoiceDate",
        "unit of the times: dates as text",
        "ids of items are text, such as 85123A",
    )


def test_what_is_given_is_not_guessed(tmp_path: Path) -> None:
    given = GivenColumns(user="Invoice", item="Quantity", timestamp_unit="s", text_ids=("user",))
    guessed = guess_columns(write_invoices(tmp_path), given)
    assert (guessed.user, guessed.item, guessed.timestamp_unit) == ("Invoice", "Quantity", "s")
    assert guessed.text_ids == ("user",)


def test_few_bad_ids_among_numbers_are_bad_and_no_text(tmp_path: Path) -> None:
    ids = [*map(str, range(300)), "oops"]
    table = pa.table({"uid": ids, "iid": range(301), "ts": [1_700_000_000] * 301})
    pq.write_table(table, tmp_path / "log.parquet")
    guessed = guess_columns(tmp_path / "log.parquet", GivenColumns())
    assert (guessed.text_ids, guessed.timestamp_unit) == ((), "s")


def test_files_of_different_types_are_sampled_together(tmp_path: Path) -> None:
    for name, ids in (("a", [1, 2]), ("b", ["x", "y"])):
        table = pa.table({"uid": ids, "iid": [1, 2], "ts": [1_700_000_000] * 2})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    assert guess_columns(tmp_path, GivenColumns()).text_ids == ("user",)


def test_a_column_without_a_usual_name_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,b,c\n1,2,3\n")
    with pytest.raises(DataError, match="lacks the columns user_id, item_id, timestamp"):
        guess_columns(tmp_path / "log.csv", GivenColumns())


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        ([1_700_000_000], "s"),
        (["1700000000.5", None], "s"),
        ([1_700_000_000_000], "ms"),
        ([1_700_000_000_000_000], "us"),
        ([1_700_000_000_000_000_000], "ns"),
        (["2023-11-14", "soon", None], "iso"),
        ([0, 5], "ms"),
        ([float("inf"), 1e300], "ms"),
        ([None], "ms"),
    ],
)
def test_the_unit_is_guessed_by_the_size_of_the_times(values: list[object], unit: str) -> None:
    assert guess_unit(pa.array(values)) == unit


def test_times_from_an_origin_are_seconds_unless_they_are_too_large() -> None:
    assert guess_unit(pa.array([0, 9_000_000]), has_origin=True) == "s"
    assert guess_unit(pa.array([5_000_000_000]), has_origin=True) == "ms"
    assert guess_unit(pa.array([1_700_000_000_000]), has_origin=True) == "ms"


def test_a_preview_shows_rows_filters_and_rejects_and_writes_nothing(tmp_path: Path) -> None:
    path = write_invoices(tmp_path)
    mapping = EventMapping(
        user="Customer ID",
        item="StockCode",
        timestamp="InvoiceDate",
        timestamp_unit="iso",
        text_ids=("item",),
        where=("Quantity>0",),
        features=("Quantity:number",),
    )
    preview = preview_events(path, mapping)
    times = [row["timestamp"] for row in preview.rows]
    assert times == ["2010-12-01T08:26:00.000Z"] * 2
    assert [row["item_id"] for row in preview.rows] == ["85123A", "71053"]
    assert preview.row_counts["events"] == {
        "read": 5,
        "accepted": 2,
        "filtered": 2,
        "rejected": 1,
    }
    [reject] = preview.rejects
    assert (reject["line"], reject["reason"][:23]) == ("6", "InvoiceDate is not a da")
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.csv"]


def test_the_schema_keeps_which_ids_are_text(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "user_id,item_id,timestamp,y\n007,1,1700000000000,1\n7,1,1700000000000,0\n"
    )
    mapping = EventMapping(text_ids=("user",), labels=("y",))
    report = import_events(tmp_path / "log.csv", tmp_path / "d", mapping)
    schema = Dataset.open(tmp_path / "d").schema
    assert schema.text_ids == ("user",)
    assert report.num_users == 2
    assert type(schema).from_dict(schema.to_dict()) == schema
    assert "text_ids" not in EventMapping().schema("x", tmp_path / "log.csv").to_dict()
