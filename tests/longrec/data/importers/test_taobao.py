"""The Taobao importer on files in the official format."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from longrec.data.dataset import Dataset
from longrec.data.importers import (
    ImportOptions,
    NegativeSampling,
    import_taobao,
)
from longrec.errors import DataError
from tests.longrec.data.importers.imported import assert_rows_add_up, read_dataset, rejected_rows

FIRST_DAY_S = 1_511_539_200
LENIENT = ImportOptions(max_reject_share=0.9)


def test_events_requests_and_rejects(tmp_path: Path) -> None:
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
        f"{user},{item},{category},{behavior},{FIRST_DAY_S + second}"
        for user, item, category, behavior, second in rows
    ]
    (tmp_path / "UserBehavior.csv").write_text("\n".join([*lines, *bad]) + "\n")
    with pytest.raises(DataError, match="5 of 14"):
        import_taobao(tmp_path, tmp_path / "d")
    report = import_taobao(
        tmp_path,
        tmp_path / "d",
        negatives=NegativeSampling(1),
        options=LENIENT,
    )
    assert_rows_add_up(report)
    assert [(line, reason) for _, line, reason in sorted(rejected_rows(tmp_path / "d"))] == [
        (10, "behavior_type is not one of pv, buy, cart, fav"),
        (11, "timestamp is not a time from 1980 to 2099"),
        (12, "timestamp is not in the nine days of the log"),
        (13, "item_id is not a whole number"),
        (14, "not 5 columns"),
    ]
    events, targets = read_dataset(tmp_path / "d")
    assert [
        (
            row["user_id"],
            row["item_id"],
            row["behavior"],
            row["timestamp"] // 1_000 - FIRST_DAY_S,
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
        (row["user_id"], row["timestamp"] // 1_000 - FIRST_DAY_S, row["item_id"], row["label"])
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
    assert len([row for row in found if row[1] == 3_000]) == 2
    assert report.num_items == 3
    assert any("drawn, not shown" in note for note in report.notes)


def test_purchases_as_targets_keep_the_other_actions_in_the_history(tmp_path: Path) -> None:
    rows = [
        (user, item, item % 3, behavior, item * 7 + place)
        for user in range(1, 9)
        for item in range(30)
        for place, behavior in enumerate(("pv", "fav", "cart", "buy"))
        if behavior != "buy" or (item + user) % 10 == 0
    ]
    text = "\n".join(
        f"{user},{item},{category},{behavior},{FIRST_DAY_S + second + user * 1_000}"
        for user, item, category, behavior, second in rows
    )
    (tmp_path / "UserBehavior.csv").write_text(text)
    import_taobao(
        tmp_path / "UserBehavior.csv",
        tmp_path / "d",
        positives=("buy",),
        negatives=NegativeSampling(2, "category"),
    )
    events, targets = read_dataset(tmp_path / "d")
    bought = {(row["user_id"], row["item_id"]) for row in events if row["behavior"] == "buy"}
    assert len(events) == len(rows)
    assert {row["behavior"] for row in events} == {
        "pv",
        "fav",
        "cart",
        "buy",
    }
    positives = {(row["user_id"], row["item_id"]) for row in targets if row["label"]}
    assert positives
    assert positives <= bought
    assert all(
        (row["user_id"], row["item_id"]) not in bought for row in targets if not row["label"]
    )
    for _, group in itertools.groupby(targets, key=lambda row: row["request_id"]):
        request = list(group)
        assert {row["item_id"] % 3 for row in request if not row["label"]} <= {
            row["item_id"] % 3 for row in request if row["label"]
        }
    with pytest.raises(DataError, match="positives must be actions"):
        import_taobao(
            tmp_path / "UserBehavior.csv",
            tmp_path / "e",
            positives=("click",),
        )
    with pytest.raises(DataError, match="holds no Taobao log"):
        import_taobao(tmp_path / "none", tmp_path / "e")
