"""Taobao, Last.fm 1K, Yambda and Amazon Reviews 2023 on files in their exact official formats."""

from __future__ import annotations

import csv
import datetime
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.data.dataset import Dataset
from longrec.data.importers import (
    ImportOptions,
    NegativeSampling,
    RequestGrouping,
    import_amazon,
    import_lastfm,
    import_taobao,
    import_yambda,
)
from longrec.data.importers.item_values import FirstKnownValues
from longrec.data.importers.text_ids import TextIds, text_id
from longrec.data.importers.yambda import ORIGIN_MS
from longrec.errors import DataError

DAY_S = 1_511_539_200
LENIENT = ImportOptions(max_reject_share=0.9)


def load(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns (events, targets) of all parts by user, times in ms."""
    dataset = Dataset.open(path)
    events, targets = (
        list(itertools.chain.from_iterable(plain(part) for part in parts))
        for parts in (dataset.event_parts(), dataset.target_parts())
    )
    return sorted(events, key=lambda row: row["user_id"]), sorted(
        targets, key=lambda row: row["user_id"]
    )


def plain(table: pa.Table) -> list[dict[str, Any]]:
    times = table["timestamp"].cast(pa.int64())
    return list(
        table.set_column(table.schema.get_field_index("timestamp"), "timestamp", times).to_pylist()
    )


def rejected(path: Path) -> list[tuple[str, int, str]]:
    with (path / "rejects.csv").open(newline="") as stream:
        return [(file, int(line), reason) for file, line, reason, _ in list(csv.reader(stream))[1:]]


def test_taobao(tmp_path: Path) -> None:
    rows = [
        (1, 10, 7, "pv", 0),
        (1, 11, 7, "pv", 10),
        (1, 10, 7, "cart", 20),
        (2, 10, 7, "pv", 400),
        (2, 11, 7, "fav", 401),
        (1, 10, 7, "pv", 1_000),
        (1, 11, 8, "buy", 1_010),
        (2, 12, 9, "pv", 2_000),
        (1, 12, 9, "pv", 3_000),
    ]
    bad = [
        "1,10,7,look,1511539999",
        "1,10,7,pv,-2134967032",
        "1,10,7,pv,1512316800",
        "1,x,7,pv,1511539999",
        "1,10,7,pv",
    ]
    lines = [
        f"{user},{item},{category},{behavior},{DAY_S + second}"
        for user, item, category, behavior, second in rows
    ]
    (tmp_path / "UserBehavior.csv").write_text("\n".join([*lines, *bad]) + "\n")
    with pytest.raises(DataError, match="5 of 14"):
        import_taobao(tmp_path, tmp_path / "d")
    report = import_taobao(tmp_path, tmp_path / "d", negatives=NegativeSampling(1), options=LENIENT)
    assert [(line, reason) for _, line, reason in sorted(rejected(tmp_path / "d"))] == [
        (10, "behavior_type is not one of pv, buy, cart, fav"),
        (11, "timestamp is not a time from 1980 to 2099"),
        (12, "timestamp is not in the nine days of the log"),
        (13, "item_id is not a whole number"),
        (14, "not 5 columns"),
    ]
    events, targets = load(tmp_path / "d")
    assert [
        (
            row["user_id"],
            row["item_id"],
            row["behavior"],
            row["timestamp"] // 1_000 - DAY_S,
            row["event_seq"],
        )
        for row in events
    ] == [
        (user, item, behavior, second, place)
        for place, (user, item, _, behavior, second) in sorted(
            enumerate(rows), key=lambda entry: (entry[1][0], entry[1][4])
        )
    ]
    assert Dataset.open(tmp_path / "d").items().to_pylist() == [
        {"item_id": 10, "category": 7},
        {"item_id": 11, "category": 7},
        {"item_id": 12, "category": 9},
    ], "the first category stays"
    found = {
        (row["user_id"], row["timestamp"] // 1_000 - DAY_S, row["item_id"], row["label"])
        for row in targets
    }
    assert found == {
        (2, 400, 10, 1),
        (2, 400, 11, 0),
        (1, 1_000, 10, 1),
        (1, 1_000, 11, 0),
        (1, 3_000, 12, 1),
    } | {row for row in found if row[1] == 3_000 and row[3] == 0}, (
        "clicks of items that somebody touched before; the rest is drawn"
    )
    assert len([row for row in found if row[1] == 3_000]) == 2 and report.num_items == 3
    assert any("drawn, not shown" in note for note in report.notes)


def test_taobao_purchases_keep_the_other_actions_in_the_history(tmp_path: Path) -> None:
    rows = [
        (user, item, item % 3, behavior, item * 7 + place)
        for user in range(1, 9)
        for item in range(30)
        for place, behavior in enumerate(("pv", "fav", "cart", "buy"))
        if behavior != "buy" or (item + user) % 10 == 0
    ]
    text = "\n".join(
        f"{user},{item},{category},{behavior},{DAY_S + second + user * 1_000}"
        for user, item, category, behavior, second in rows
    )
    (tmp_path / "UserBehavior.csv").write_text(text)
    import_taobao(
        tmp_path / "UserBehavior.csv",
        tmp_path / "d",
        positives=("buy",),
        negatives=NegativeSampling(2, "category"),
    )
    events, targets = load(tmp_path / "d")
    bought = {(row["user_id"], row["item_id"]) for row in events if row["behavior"] == "buy"}
    assert len(events) == len(rows) and {row["behavior"] for row in events} == {
        "pv",
        "fav",
        "cart",
        "buy",
    }
    positives = {(row["user_id"], row["item_id"]) for row in targets if row["label"]}
    assert (
        positives
        and positives <= bought
        and all(
            (row["user_id"], row["item_id"]) not in bought for row in targets if not row["label"]
        )
    )
    for _, group in itertools.groupby(targets, key=lambda row: row["request_id"]):
        request = list(group)
        assert {row["item_id"] % 3 for row in request if not row["label"]} <= {
            row["item_id"] % 3 for row in request if row["label"]
        }
    with pytest.raises(DataError, match="positives must be actions"):
        import_taobao(tmp_path / "UserBehavior.csv", tmp_path / "e", positives=("click",))
    with pytest.raises(DataError, match="holds no Taobao log"):
        import_taobao(tmp_path / "none", tmp_path / "e")


MBID = "f1b1cf71-bd35-4e99-8624-24a6e15f133a"
TRACK = "0f6eae6f-0b7d-4a2b-9e2e-0e1e8a5e2b11"


def lastfm(directory: Path, rows: list[str], *, header: bool = True) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "userid-timestamp-artid-artname-traid-traname.tsv").write_text(
        "\n".join(rows) + "\n", encoding="utf-8"
    )
    profile = ["#id\tgender\tage\tcountry\tregistered"] * header + [
        "user_000001\tm\t\tJapan\tAug 13, 2006",
        "user_000639\t\t26\t\tApr 27, 2005",
        "user_000777\tf\t30\tPeru\t",
    ]
    (directory / "userid-profile.tsv").write_text("\n".join(profile) + "\n", encoding="utf-8")
    return directory


@pytest.mark.parametrize("header", [True, False])
def test_lastfm(tmp_path: Path, header: bool) -> None:
    rows = [
        f'user_000001\t2009-05-04T23:08:57Z\t{MBID}\tDeep Dish\t\tFuck Me Im Famous (Pacha Ibiza)-"09-28-2007',
        f"user_000001\t2009-05-04T13:54:10Z\t\t坂本龍一\t{TRACK}\tComposition 0919",
        f'user_000639\t2009-05-04T23:08:57Z\t{MBID}\tDeep Dish\t\tFuck Me Im Famous (Pacha Ibiza)-"09-28-2007',
        "user_000639\t2009-05-05T10:00:00Z\t\tNobody\t\t",
        f"guest\t2009-05-05T10:00:00Z\t\tA\t{TRACK}\tB",
        f"user_000639\t2009-05-06 10h\t\tA\t{TRACK}\tB",
        "user_000639\t2009-05-06T10:00:00Z\tA\tB",
        f"user_000639\t2009-05-06T10:00:00Z\t\t坂本龍一\t{TRACK}\tComposition 0919",
    ]
    source = lastfm(tmp_path / "src" / "lastfm-dataset-1K", rows, header=header)
    report = import_lastfm(
        source.parent, tmp_path / "d", negatives=NegativeSampling(1, keep_new=True), options=LENIENT
    )
    assert [(line, reason) for _, line, reason in sorted(rejected(tmp_path / "d"))] == [
        (4, "the track has neither an id nor artist and title"),
        (5, "userid is not user_ and a number"),
        (6, "timestamp is not a time from 1980 to 2099"),
        (7, "not 6 columns"),
    ]
    events, targets = load(tmp_path / "d")
    nameless = text_id('Deep Dish\tFuck Me Im Famous (Pacha Ibiza)-"09-28-2007')
    times = [
        int(datetime.datetime.fromisoformat(f"2009-05-{when}+00:00").timestamp()) * 1_000
        for when in ("04T13:54:10", "04T23:08:57", "04T23:08:57", "06T10:00:00")
    ]
    assert [(row["user_id"], row["item_id"], row["timestamp"]) for row in events] == [
        (1, text_id(TRACK), times[0]),
        (1, nameless, times[1]),
        (639, nameless, times[2]),
        (639, text_id(TRACK), times[3]),
    ]
    dataset = Dataset.open(tmp_path / "d")
    assert {row["item_id"]: row["artist_id"] for row in dataset.items().to_pylist()} == {
        text_id(TRACK): text_id("坂本龍一"),
        nameless: text_id(MBID),
    }
    assert dataset.users().to_pylist() == [
        {"user_id": 1, "gender": "m", "age": None, "country": "Japan", "signup_year": 2006},
        {"user_id": 639, "gender": None, "age": 26, "country": None, "signup_year": 2005},
        {"user_id": 777, "gender": "f", "age": 30, "country": "Peru", "signup_year": None},
    ]
    texts = {
        name: dict(
            zip(
                *(
                    column.to_pylist()
                    for column in pq.read_table(tmp_path / "d" / "ids" / f"{name}.parquet").columns
                ),
                strict=True,
            )
        )
        for name in ("items", "artists")
    }
    assert texts["items"][text_id(TRACK)] == TRACK and texts["artists"] == {
        text_id(MBID): MBID,
        text_id("坂本龍一"): "坂本龍一",
    }
    assert report.num_requests == 4 and {(row["user_id"], row["label"]) for row in targets} >= {
        (1, 1),
        (639, 1),
        (639, 0),
    }
    again = import_lastfm(
        source, tmp_path / "again", negatives=NegativeSampling(1, keep_new=True), options=LENIENT
    )
    assert (
        Dataset.open(tmp_path / "again").facts["content_hash"] == dataset.facts["content_hash"]
        and again.num_users == 2
    )


def test_text_ids_are_the_same_everywhere_and_collisions_are_refused(tmp_path: Path) -> None:
    texts = ["", "a", "B00YQ6X8EO", "坂本龍一", "x" * 1_000, "a"]
    with TextIds(tmp_path, ("items",)) as ids:
        found = ids.add("items", pa.array([*texts, None])).to_pylist()
        assert found == [*map(text_id, texts), None]
        assert text_id("a") == 7000413967451013937 and all(
            0 <= number < 2**63 for number in found[:-1]
        )
        assert ids.encode(pa.array(["kept out"])).to_pylist() == [
            text_id("kept out")
        ]
        ids.add("items", pa.array(["b", "a"]))
        ids.write(tmp_path)
    table = pq.read_table(tmp_path / "ids" / "items.parquet")
    assert (
        table["id"].to_pylist() == sorted(text_id(text) for text in {*texts, "b"})
        and "kept out" not in table["text"].to_pylist()
    )
    (tmp_path / "other").mkdir()
    with TextIds(tmp_path / "other", ("items",)) as ids:
        ids.add("items", pa.array(["a"]))
        ids._writers["items"].write_table(
            pa.table({"id": [text_id("a")], "text": ["b"]}).cast(ids._writers["items"].schema)
        )
        with pytest.raises(DataError, match="have the same number; found a and b"):
            ids.write(tmp_path / "other")


def test_item_values_keep_the_first_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longrec.data.importers.item_values.COMPACT_ROWS", 50)
    rng, values = np.random.default_rng(0), FirstKnownValues()
    expected: dict[int, int | None] = {}
    for _ in range(40):
        ids, found = rng.integers(0, 60, 20), rng.integers(-3, 5, 20)
        values.add(ids, found)
        for item, value in zip(ids.tolist(), found.tolist(), strict=True):
            if expected.get(item) is None:
                expected[item] = value if value >= 0 else None
    assert values.ids().tolist() == sorted(expected)
    assert values.values_of(np.arange(70)).to_pylist() == [expected.get(item) for item in range(70)]
    assert FirstKnownValues().values_of(np.arange(2)).to_pylist() == [None, None]


LISTENS = {
    "uid": [10, 10, 10, 20, 20],
    "timestamp": [0, 200, 400, 5, 25_999_995],
    "item_id": [3, 4, 3, 4, 9],
    "is_organic": [1, 0, 0, 1, 0],
    "played_ratio_pct": [100, 49, 50, 250, 0],
    "track_length_seconds": [180, 200, 180, 200, 7],
}
LIKES = {"uid": [10, 20], "timestamp": [100, 25_999_990], "item_id": [3, 5], "is_organic": [1, 0]}
TYPES = {
    "uid": pa.uint32(),
    "timestamp": pa.uint32(),
    "item_id": pa.uint32(),
    "is_organic": pa.uint8(),
    "played_ratio_pct": pa.uint16(),
    "track_length_seconds": pa.uint32(),
}


def yambda(directory: Path, layout: str, *, multi: bool) -> Path:
    """Writes the published files: `flat` has a row per event, `sequential` a row per user with the
    columns as lists.
    """
    place = directory / layout / "50m"
    place.mkdir(parents=True)
    listens, likes = (
        pa.table({name: pa.array(values, TYPES[name]) for name, values in columns.items()})
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
                table.set_column(4, "event_type", table["event_type"].cast(pa.large_string()))
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
        pq.write_table(table, place / f"{name}.parquet", row_group_size=3)
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
def test_yambda(tmp_path: Path, layout: str, multi: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longrec.data.importers.yambda.BATCH_ROWS", 3)
    source = yambda(tmp_path / "yambda", layout, multi=multi)
    report = import_yambda(source, tmp_path / "d", grouping=RequestGrouping(window_ms=300_000))
    events, targets = load(tmp_path / "d")
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
        {"item_id": 3, "artist_id": 71, "track_length_seconds": 180},
        {"item_id": 4, "artist_id": None, "track_length_seconds": 200},
        {"item_id": 5, "artist_id": None, "track_length_seconds": None},
        {"item_id": 9, "artist_id": 72, "track_length_seconds": 7},
    ]
    assert (report.rows_read, report.rows_rejected, report.num_requests) == (7, 0, 4)
    import_yambda(source, tmp_path / "e", threshold=51, recommended_only=True)
    _, targets = load(tmp_path / "e")
    assert [(row["item_id"], row["listened"]) for row in targets] == [(4, 0), (3, 0), (9, 0)]


def test_yambda_mistakes_are_named(tmp_path: Path) -> None:
    source = yambda(tmp_path / "yambda", "sequential", multi=False)
    with pytest.raises(DataError, match="holds no Yambda log"):
        import_yambda(tmp_path / "yambda", tmp_path / "d")
    table = pq.read_table(source / "listens.parquet")
    uneven = pa.array([[1, 0, 0], [1]], pa.large_list(pa.uint8()))
    pq.write_table(
        table.set_column(table.schema.get_field_index("is_organic"), "is_organic", uneven),
        source / "listens.parquet",
    )
    report = import_yambda(source, tmp_path / "d", options=LENIENT)
    assert (
        rejected(tmp_path / "d") == [("listens.parquet", 2, "the lists of a user differ in length")]
        and report.num_events == 5
    )
    pq.write_table(table.drop_columns(["played_ratio_pct"]), source / "listens.parquet")
    with pytest.raises(DataError, match="lacks the column played_ratio_pct"):
        import_yambda(source, tmp_path / "e")
    (source / "listens.parquet").write_bytes((source / "likes.parquet").read_bytes()[:-9])
    with pytest.raises(DataError):
        import_yambda(source, tmp_path / "e")
    assert not (tmp_path / "e").exists()


def amazon(directory: Path, *, history: bool = False) -> tuple[Path, Path]:
    directory.mkdir()
    users = ["AGKASBHYZPGTEPO6LWZPVJWB2BVA", "AGXFEGMNVCSTSYYA5UWXDV7AFSXA"]
    rows = [
        (users[0], "B006GBITXC", "3.0", 1_452_647_382_000),
        (users[0], "B00TLEMSVK", "4.0", 1_454_675_785_000),
        (users[1], "B006GBITXC", "5.0", 1_454_676_014_123),
        (users[1], "0593334833", "1.0", 1_454_676_014_999),
    ]
    lines = [
        "user_id,parent_asin,rating,timestamp" + ",history" * history,
        *(f"{','.join(map(str, row))}{',B00AAAAAAA B00BBBBBBB' * history}" for row in rows),
    ]
    (directory / "Toys_and_Games.csv").write_text("\n".join(lines) + "\n")
    products: list[dict[str, Any]] = [
        {
            "main_category": "Toys & Games",
            "title": "A",
            "average_rating": 4.1,
            "rating_number": 12,
            "features": [],
            "description": [],
            "price": 9.99,
            "images": [{"thumb": "https://x"}],
            "videos": [],
            "store": "Melissa & Doug \ud83d",
            "categories": ["Toys & Games", "Puzzles", "Jigsaw"],
            "details": {"Package": {"a": 1}},
            "parent_asin": "B006GBITXC",
            "bought_together": None,
        },
        {
            "main_category": None,
            "price": "from 14.99",
            "store": None,
            "categories": [],
            "parent_asin": "B00TLEMSVK",
            "details": "{}",
        },
        {
            "main_category": "Books",
            "price": 1,
            "store": "S",
            "categories": ["Books"],
            "parent_asin": "B0NOTINLOG",
        },
    ]
    meta = directory / "meta_Toys_and_Games.jsonl"
    meta.write_text("\n".join([*map(json.dumps, products), "{broken", '["list"]']) + "\n")
    return directory / "Toys_and_Games.csv", meta


@pytest.mark.parametrize("history", [False, True])
def test_amazon(tmp_path: Path, history: bool) -> None:
    source, meta = amazon(tmp_path / "src", history=history)
    report = import_amazon(source, tmp_path / "d", meta=meta, options=LENIENT)
    events, targets = load(tmp_path / "d")
    users = {
        text: text_id(text)
        for text in ("AGKASBHYZPGTEPO6LWZPVJWB2BVA", "AGXFEGMNVCSTSYYA5UWXDV7AFSXA")
    }
    items = [text_id(text) for text in ("B006GBITXC", "B00TLEMSVK", "0593334833")]
    assert sorted(
        (
            row["event_seq"],
            row["user_id"],
            row["item_id"],
            row["rating"],
            row["timestamp"],
            row["label"],
        )
        for row in events
    ) == [
        (0, users["AGKASBHYZPGTEPO6LWZPVJWB2BVA"], items[0], 3, 1_452_647_382_000, 0),
        (1, users["AGKASBHYZPGTEPO6LWZPVJWB2BVA"], items[1], 4, 1_454_675_785_000, 1),
        (2, users["AGXFEGMNVCSTSYYA5UWXDV7AFSXA"], items[0], 5, 1_454_676_014_123, 1),
        (3, users["AGXFEGMNVCSTSYYA5UWXDV7AFSXA"], items[2], 1, 1_454_676_014_999, 0),
    ]
    assert (
        len({row["request_id"] for row in targets}) == 3
        and sum(row["label"] for row in targets) == 2
    )
    unknown = {"main_category": None, "category": None, "store": None, "price": None}
    known = {
        "main_category": "Toys & Games",
        "category": "Puzzles",
        "store": "Melissa & Doug ?",
        "price": 9.99,
    }
    assert {
        row.pop("item_id"): row for row in Dataset.open(tmp_path / "d").items().to_pylist()
    } == {items[0]: known, items[1]: unknown, items[2]: unknown}, (
        "of the log only; a price that is none is unknown"
    )
    assert [(line, reason) for _, line, reason in rejected(tmp_path / "d")] == [
        (place, "not a JSON object with a parent_asin") for place in (4, 5)
    ]
    assert set(pq.read_table(tmp_path / "d" / "ids" / "items.parquet")["text"].to_pylist()) == {
        "B006GBITXC",
        "B00TLEMSVK",
        "0593334833",
    }
    assert report.name == "amazon-Toys_and_Games" and report.num_users == 2


def test_amazon_with_negatives_and_without_metadata(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        f"U{user:027d},B{rng.integers(40):09d},{rng.integers(1, 6)}.0,{1_400_000_000_000 + int(rng.integers(10**10))}"
        for user in range(20)
        for _ in range(30)
    ]
    (tmp_path / "Books.train.csv").write_text(
        "\n".join(["user_id,parent_asin,rating,timestamp", *rows[:500]]) + "\n"
    )
    (tmp_path / "Books.valid.csv").write_text(
        "\n".join(["user_id,parent_asin,rating,timestamp", *rows[500:], "U1,B1,9.0,1400000000000"])
    )
    report = import_amazon(
        tmp_path / "Books.*.csv",
        tmp_path / "d",
        negatives=NegativeSampling(3),
        options=ImportOptions(rows_per_part=100),
    )
    events, targets = load(tmp_path / "d")
    assert (
        sorted(row["event_seq"] for row in events) == list(range(600)) and "label" not in events[0]
    )
    assert (
        rejected(tmp_path / "d") == [("Books.valid.csv", 102, "rating is not from 0 to 5")]
        and report.num_users == 20
    )
    assert 0.2 < sum(row["label"] for row in targets) / len(targets) < 0.3
    with pytest.raises(DataError, match="cannot be drawn within"):
        import_amazon(tmp_path / "Books.*.csv", tmp_path / "e", negatives=NegativeSampling(3, "store"))
    with pytest.raises(DataError, match="does not exist"):
        import_amazon(tmp_path / "Books.*.csv", tmp_path / "e", meta=tmp_path / "meta_Books.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "code"), [(2_048, 0), (1, 1)])
def test_the_memory_benchmark_measures_and_judges(tmp_path: Path, limit: int, code: int) -> None:
    script = Path(__file__).parents[4] / "model" / "benchmarks" / "import_memory.py"
    done = subprocess.run(
        [
            sys.executable,
            str(script),
            "--dry-run",
            "--rows",
            "100000",
            "--limit-mib",
            str(limit),
            "--folder",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == code, done.stderr
    assert [(line["rows"], line["videos"]) for line in lines[:3]] == [
        (50_000, 10_000),
        (100_000, 10_000),
        (50_000, 5_000),
    ]
    assert all(line["peak_mib"] > line["start_mib"] > 0 for line in lines[:3]) and lines[3][
        "within"
    ] == (code == 0)
    assert not list(tmp_path.iterdir())
