"""The Yambda importer on files in both official layouts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.data.dataset import Dataset
from longrec.data.importers import (
    ImportOptions,
    RequestGrouping,
    import_yambda,
)
from longrec.data.importers.yambda import ORIGIN_MS
from longrec.errors import DataError
from tests.longrec.data.importers.imported import assert_rows_add_up, read_dataset, rejected_rows

LENIENT = ImportOptions(max_reject_share=0.9)
LISTENS = {
    "uid": [10, 10, 10, 20, 20],
    "timestamp": [0, 200, 400, 5, 25_999_995],
    "item_id": [3, 4, 3, 4, 9],
    "is_organic": [1, 0, 0, 1, 0],
    "played_ratio_pct": [100, 49, 50, 250, 0],
    "track_length_seconds": [180, 200, 180, 200, 7],
}
LIKES = {
    "uid": [10, 20],
    "timestamp": [100, 25_999_990],
    "item_id": [3, 5],
    "is_organic": [1, 0],
}
ARROW_TYPES = {
    "uid": pa.uint32(),
    "timestamp": pa.uint32(),
    "item_id": pa.uint32(),
    "is_organic": pa.uint8(),
    "played_ratio_pct": pa.uint16(),
    "track_length_seconds": pa.uint32(),
}


def write_yambda(
    directory: Path,
    layout: str,
    *,
    multi: bool,
) -> Path:
    """Write the published files.

    The layout `flat` has a row per event, `sequential` a row per user with lists as columns.
    """
    place = directory / layout / "50m"
    place.mkdir(parents=True)
    listens, likes = (
        pa.table({name: pa.array(values, ARROW_TYPES[name]) for name, values in columns.items()})
        for columns in (LISTENS, LIKES)
    )
    files = {"listens": listens, "likes": likes}
    if multi:
        kinds = [
            pa.array([kind] * table.num_rows).dictionary_encode()
            for kind, table in (("listen", listens), ("like", likes))
        ]
        both = pa.concat_tables(
            [
                table.add_column(4, "event_type", kind)
                for table, kind in zip((listens, likes), kinds, strict=True)
            ],
            promote_options="default",
        ).unify_dictionaries()
        files = {"multi_event": both.sort_by([("uid", "ascending"), ("timestamp", "ascending")])}
    for name, table in files.items():
        if layout == "sequential":
            table = (
                table.set_column(
                    4,
                    "event_type",
                    table["event_type"].cast(pa.large_string()),
                )
                if multi
                else table
            )
            columns = [column for column in table.column_names if column != "uid"]
            rows = [[row for row in table.to_pylist() if row["uid"] == user] for user in (10, 20)]
            table = pa.table(
                {
                    "uid": pa.array([10, 20], pa.uint32()),
                    **{
                        column: pa.array(
                            [[row[column] for row in user] for user in rows],
                            pa.large_list(table.schema.field(column).type),
                        )
                        for column in columns
                    },
                }
            )
        pq.write_table(
            table,
            place / f"{name}.parquet",
            row_group_size=3,
        )
    pq.write_table(
        pa.table(
            {
                "artist_id": pa.array([71, 70, 72], pa.uint32()),
                "item_id": pa.array([3, 3, 9], pa.uint32()),
            }
        ),
        directory / "artist_item_mapping.parquet",
    )
    return place


@pytest.mark.parametrize("multi", [True, False])
@pytest.mark.parametrize("layout", ["flat", "sequential"])
def test_events_items_and_labels(
    tmp_path: Path,
    layout: str,
    multi: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("longrec.data.importers.yambda.BATCH_ROWS", 3)
    source = write_yambda(tmp_path / "yambda", layout, multi=multi)
    report = import_yambda(
        source,
        tmp_path / "d",
        grouping=RequestGrouping(window_ms=300_000),
    )
    assert_rows_add_up(report)
    events, targets = read_dataset(tmp_path / "d")
    assert [
        (
            row["user_id"],
            (row["timestamp"] - ORIGIN_MS) // 1_000,
            row["item_id"],
            row["event_type"],
            row["is_organic"],
            row["played_ratio_pct"],
        )
        for row in events
    ] == [
        (10, 0, 3, "listen", 1, 100),
        (10, 100, 3, "like", 1, None),
        (10, 200, 4, "listen", 0, 49),
        (10, 400, 3, "listen", 0, 50),
        (20, 5, 4, "listen", 1, 250),
        (20, 25_999_990, 5, "like", 0, None),
        (20, 25_999_995, 9, "listen", 0, 0),
    ]
    assert sorted(row["event_seq"] for row in events) == list(range(7)), (
        "the place in the files, one after another"
    )
    assert [
        (row["user_id"], (row["timestamp"] - ORIGIN_MS) // 1_000, row["item_id"], row["listened"])
        for row in targets
    ] == [(10, 0, 3, 1), (10, 0, 4, 0), (10, 400, 3, 1), (20, 5, 4, 1), (20, 25_999_995, 9, 0)]
    assert Dataset.open(tmp_path / "d").items().to_pylist() == [
        {
            "item_id": 3,
            "artist_id": 71,
            "track_length_seconds": 180,
        },
        {
            "item_id": 4,
            "artist_id": None,
            "track_length_seconds": 200,
        },
        {
            "item_id": 5,
            "artist_id": None,
            "track_length_seconds": None,
        },
        {"item_id": 9, "artist_id": 72, "track_length_seconds": 7},
    ]
    assert (report.rows_read, report.rows_rejected, report.num_requests) == (7, 0, 4)
    import_yambda(
        source,
        tmp_path / "e",
        threshold=51,
        recommended_only=True,
    )
    _, targets = read_dataset(tmp_path / "e")
    assert [(row["item_id"], row["listened"]) for row in targets] == [(4, 0), (3, 0), (9, 0)]


def test_mistakes_in_the_log_are_named(tmp_path: Path) -> None:
    source = write_yambda(
        tmp_path / "yambda",
        "sequential",
        multi=False,
    )
    with pytest.raises(DataError, match="holds no Yambda log"):
        import_yambda(tmp_path / "yambda", tmp_path / "d")
    table = pq.read_table(source / "listens.parquet")
    uneven = pa.array([[1, 0, 0], [1]], pa.large_list(pa.uint8()))
    pq.write_table(
        table.set_column(
            table.schema.get_field_index("is_organic"),
            "is_organic",
            uneven,
        ),
        source / "listens.parquet",
    )
    report = import_yambda(source, tmp_path / "d", options=LENIENT)
    assert rejected_rows(tmp_path / "d") == [
        ("listens.parquet", 2, "the lists of a user differ in length")
    ]
    assert report.num_events == 5
    pq.write_table(table.drop_columns(["played_ratio_pct"]), source / "listens.parquet")
    with pytest.raises(DataError, match="lacks the column played_ratio_pct"):
        import_yambda(source, tmp_path / "e")
    (source / "listens.parquet").write_bytes((source / "likes.parquet").read_bytes()[:-9])
    with pytest.raises(DataError):
        import_yambda(source, tmp_path / "e")
    assert not (tmp_path / "e").exists()
