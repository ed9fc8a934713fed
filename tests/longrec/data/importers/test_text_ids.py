"""Text ids: stable hashes, tables of ids and texts, and collisions."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.data.dataset import Dataset
from longrec.data.importers import (
    EventMapping,
    NegativeSampling,
    import_events,
)
from longrec.data.importers.text_ids import TextIds
from longrec.errors import DataError
from longrec.ids import text_id

START_MS = 1_650_000_000_000


def test_text_ids_are_the_same_everywhere_and_collisions_are_refused(tmp_path: Path) -> None:
    texts = ["", "a", "B00YQ6X8EO", "坂本龍一", "x" * 1_000, "a"]
    with TextIds(tmp_path, ("items",)) as ids:
        found = ids.add("items", pa.array([*texts, None])).to_pylist()
        assert found == [*map(text_id, texts), None]
        assert text_id("a") == 7000413967451013937
        assert all(0 <= number < 2**63 for number in found[:-1])
        assert ids.encode(pa.array(["not stored"])).to_pylist() == [text_id("not stored")]
        ids.add("items", pa.array(["b", "a"]))
        ids.write(tmp_path)
    table = pq.read_table(tmp_path / "ids" / "items.parquet")
    assert table["id"].to_pylist() == sorted(text_id(text) for text in {*texts, "b"})
    assert "not stored" not in table["text"].to_pylist()
    (tmp_path / "other").mkdir()
    with TextIds(tmp_path / "other", ("items",)) as ids:
        ids.add("items", pa.array(["a"]))
        collision = pa.table({"id": [text_id("a")], "text": ["b"]})
        writer = ids._writers["items"]
        writer.write_table(collision.cast(writer.schema))
        with pytest.raises(DataError, match="have the same number; found a and b"):
            ids.write(tmp_path / "other")


@pytest.mark.parametrize("kind", ["csv", "parquet", "dictionary"])
def test_text_ids_of_a_log_and_its_item_file(tmp_path: Path, kind: str) -> None:
    """Users, items and baskets named by text get the ids of `text_id`, and ids/ maps them back."""
    rng = np.random.default_rng(0)
    users = [f"ann-{number}" for number in rng.integers(0, 6, 200)]
    items = [f"größe {number}" for number in rng.integers(0, 9, 200)]
    baskets = [f"b{row // 2}" for row in range(200)]
    table = pa.table(
        {
            "user_id": users,
            "item_id": items,
            "basket": baskets,
            "timestamp": START_MS + np.arange(200) * 60_000,
        }
    )
    if kind == "csv":
        write_csv(tmp_path / "log.csv", table)
    else:
        if kind == "dictionary":
            table = table.set_column(
                1,
                "item_id",
                table["item_id"].dictionary_encode(),
            )
        pq.write_table(table, tmp_path / "log.parquet")
    shelf = {
        "item_id": [f"größe {number}" for number in range(9)],
        "shelf": [f"s{number % 3}" for number in range(9)],
    }
    write_csv(tmp_path / "shelf.csv", pa.table(shelf))
    mapping = EventMapping(
        basket="basket",
        text_ids=("user", "item", "basket"),
        items=tmp_path / "shelf.csv",
        item_features=("shelf:category",),
    )
    log = tmp_path / ("log.csv" if kind == "csv" else "log.parquet")
    import_events(
        log,
        tmp_path / "d",
        mapping,
        negatives=NegativeSampling(1, "shelf", keep_new=True),
    )
    dataset = Dataset.open(tmp_path / "d")
    events = pa.concat_tables(dataset.event_parts()).sort_by("event_seq")
    assert events["user_id"].to_pylist() == [text_id(user) for user in users]
    assert events["item_id"].to_pylist() == [text_id(item) for item in items]
    assert events["basket_id"].to_pylist() == [text_id(basket) for basket in baskets]
    shelves = {row["item_id"]: row["shelf"] for row in dataset.items().to_pylist()}
    assert shelves == {text_id(f"größe {number}"): f"s{number % 3}" for number in range(9)}
    for group, texts in (("users", users), ("items", items), ("baskets", baskets)):
        pairs = pq.read_table(tmp_path / "d" / "ids" / f"{group}.parquet")
        found = {row["id"]: row["text"] for row in pairs.to_pylist()}
        assert found == {text_id(text): text for text in texts}


def write_csv(path: Path, table: pa.Table) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(table.column_names)
        writer.writerows(row.values() for row in table.to_pylist())


def test_only_known_ids_can_be_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="such ids cannot be text; found basket"):
        EventMapping(text_ids=("basket",))
    pq.write_table(
        pa.table({"user_id": ["a"], "item_id": [1], "timestamp": [START_MS]}),
        tmp_path / "log.parquet",
    )
    with pytest.raises(DataError, match="user_id is not a whole number"):
        import_events(
            tmp_path / "log.parquet",
            tmp_path / "d",
            EventMapping(),
            negatives=NegativeSampling(1),
        )
