"""The Amazon Reviews importer on files in the official format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from longrec.data.dataset import Dataset
from longrec.data.importers import (
    ImportOptions,
    NegativeSampling,
    import_amazon,
)
from longrec.errors import DataError
from longrec.ids import text_id
from tests.longrec.data.importers.imported import assert_rows_add_up, read_dataset, rejected_rows

LENIENT = ImportOptions(max_reject_share=0.9)


def write_amazon(directory: Path, *, history: bool = False) -> tuple[Path, Path]:
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
def test_events_items_and_text_ids(tmp_path: Path, history: bool) -> None:
    source, meta = write_amazon(tmp_path / "src", history=history)
    report = import_amazon(
        source,
        tmp_path / "d",
        meta=meta,
        options=LENIENT,
    )
    assert_rows_add_up(report)
    events, targets = read_dataset(tmp_path / "d")
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
    assert len({row["request_id"] for row in targets}) == 3
    assert sum(row["label"] for row in targets) == 2
    unknown = {
        "main_category": None,
        "category": None,
        "store": None,
        "price": None,
    }
    known = {
        "main_category": "Toys & Games",
        "category": "Puzzles",
        "store": "Melissa & Doug ?",
        "price": 9.99,
    }
    assert {
        row.pop("item_id"): row for row in Dataset.open(tmp_path / "d").items().to_pylist()
    } == {items[0]: known, items[1]: unknown, items[2]: unknown}, (
        "items of the log only; text that is no price is unknown"
    )
    assert [(line, reason) for _, line, reason in rejected_rows(tmp_path / "d")] == [
        (place, "not a JSON object with a parent_asin") for place in (4, 5)
    ]
    assert set(pq.read_table(tmp_path / "d" / "ids" / "items.parquet")["text"].to_pylist()) == {
        "B006GBITXC",
        "B00TLEMSVK",
        "0593334833",
    }
    assert report.name == "amazon-Toys_and_Games"
    assert report.num_users == 2


def test_negatives_without_metadata(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        f"U{user:027d},B{rng.integers(40):09d},{rng.integers(1, 6)}.0,"
        f"{1_400_000_000_000 + int(rng.integers(10**10))}"
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
    assert_rows_add_up(report)
    events, targets = read_dataset(tmp_path / "d")
    assert sorted(row["event_seq"] for row in events) == list(range(600))
    assert "label" not in events[0]
    assert rejected_rows(tmp_path / "d") == [("Books.valid.csv", 102, "rating is not from 0 to 5")]
    assert report.num_users == 20
    assert 0.2 < sum(row["label"] for row in targets) / len(targets) < 0.3
    with pytest.raises(DataError, match="cannot be drawn within"):
        import_amazon(
            tmp_path / "Books.*.csv",
            tmp_path / "e",
            negatives=NegativeSampling(3, "store"),
        )
    with pytest.raises(DataError, match="does not exist"):
        import_amazon(
            tmp_path / "Books.*.csv",
            tmp_path / "e",
            meta=tmp_path / "meta_Books.jsonl",
        )
