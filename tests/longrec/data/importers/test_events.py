"""The importer of any table of events: baskets, labels, order of files and errors."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.data.dataset import Dataset
from longrec.data.importers import (
    EventMapping,
    ImportOptions,
    NegativeSampling,
    RequestGrouping,
    import_events,
)
from longrec.errors import DataError
from tests.longrec.data.importers.imported import assert_rows_add_up, read_dataset

START_MS = 1_650_000_000_000
ORIGIN_MS = 946_684_800_000


def write_basket_log(
    path: Path,
    *,
    num_events: int = 3_000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Write a Parquet log of baskets, times in seconds with ties; return its rows."""
    rng = random.Random(seed)
    rows = []
    basket = 0
    while len(rows) < num_events:
        user = rng.randrange(8)
        time = START_MS // 1_000 + rng.randrange(400)
        basket += 1
        rows += [
            {
                "who": user,
                "what": item,
                "at": time,
                "commit": basket,
                "action": rng.choice(["add", "modify", None]),
            }
            for item in rng.sample(range(300), rng.randrange(1, 7))
        ]
    schema = pa.schema(
        [
            ("who", pa.int32()),
            ("what", pa.int16()),
            ("at", pa.int64()),
            ("commit", pa.int32()),
            ("action", pa.dictionary(pa.int8(), pa.string())),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return rows


def make_basket_mapping(tmp_path: Path) -> EventMapping:
    pq.write_table(
        pa.table({"item_id": range(0, 280), "repo": [item % 3 for item in range(280)]}),
        tmp_path / "items.parquet",
    )
    return EventMapping(
        user="who",
        item="what",
        timestamp="at",
        timestamp_unit="s",
        basket="commit",
        features=("action:category",),
        items=tmp_path / "items.parquet",
        item_features=("repo:category",),
    )


def test_negatives_are_earlier_items_of_the_same_repository(tmp_path: Path) -> None:
    rows = write_basket_log(tmp_path / "log.parquet")
    report = import_events(
        tmp_path / "log.parquet",
        tmp_path / "d",
        make_basket_mapping(tmp_path),
        negatives=NegativeSampling(3, "repo"),
        grouping=RequestGrouping(max_targets=4),
        options=ImportOptions(rows_per_part=700),
        name="commits",
    )
    events, targets = read_dataset(tmp_path / "d")
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.num_parts == 5
    assert dataset.schema.has_baskets
    assert len(events) == len(rows)
    assert dataset.schema.event[0].dtype == "string"
    assert dataset.schema.item[1].dtype == "int64"
    first: dict[int, int] = {}
    for row in rows:
        first[row["what"]] = min(first.get(row["what"], 2**62), row["at"] * 1_000)
    repo = {item: item % 3 if item < 280 else -1 for item in range(300)}
    num_drawn = 0
    requests = itertools.groupby(
        sorted(targets, key=lambda row: row["request_id"]),
        key=lambda row: row["request_id"],
    )
    for _, group in requests:
        request = list(group)
        user = request[0]["user_id"]
        request_time = request[0]["timestamp"]
        here = [row for row in rows if (row["who"], row["at"] * 1_000) == (user, request_time)]
        positives, drawn = (
            {row["item_id"] for row in request if row["label"] == label} for label in (1, 0)
        )
        basket = {
            row["what"]
            for row in here
            if positives <= {other["what"] for other in here if other["commit"] == row["commit"]}
        }
        assert positives
        assert positives <= basket
        assert all(first[item] < request_time for item in positives | drawn)
        assert not drawn & positives
        assert {repo[item] for item in drawn} <= {repo[item] for item in positives}
        assert len(drawn) <= 3 * len(positives)
        num_drawn += len(drawn)
    assert num_drawn == report.num_targets - sum(row["label"] for row in targets)
    assert report.label_rates["label"] < 0.3
    assert len(report.notes) == 3
    assert "with the same repo" in report.notes[0]
    assert "left out" in report.notes[1]
    assert "positives were cut from requests with more than 4" in report.notes[2]
    again = import_events(
        tmp_path / "log.parquet",
        tmp_path / "again",
        make_basket_mapping(tmp_path),
        negatives=NegativeSampling(3, "repo"),
        grouping=RequestGrouping(max_targets=4),
        options=ImportOptions(rows_per_part=700),
        name="commits",
    )
    other = import_events(
        tmp_path / "log.parquet",
        tmp_path / "other",
        make_basket_mapping(tmp_path),
        negatives=NegativeSampling(3, "repo"),
        grouping=RequestGrouping(max_targets=4, seed=1),
        options=ImportOptions(rows_per_part=700),
        name="commits",
    )
    hashes = [
        Dataset.open(Path(entry.path)).facts["content_hash"] for entry in (report, again, other)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_all_events_of_a_basket_have_the_time_of_its_last_one(tmp_path: Path) -> None:
    rows = [(1, 0, 7), (2, 50, 8), (3, 100, 7), (1, 200, 9), (2, 200, 9), (3, 300, 10)]
    (tmp_path / "log.csv").write_text(
        "user_id,item_id,timestamp,order\n"
        + "".join(f"1,{item},{START_MS + time},{order}\n" for item, time, order in rows)
    )
    import_events(
        tmp_path / "log.csv",
        tmp_path / "d",
        EventMapping(basket="order"),
        negatives=NegativeSampling(1, keep_new=True),
    )
    events, targets = read_dataset(tmp_path / "d")
    times = {
        basket: {row["timestamp"] - START_MS for row in events if row["basket_id"] == basket}
        for basket in (7, 8, 9, 10)
    }
    assert times == {7: {100}, 8: {50}, 9: {200}, 10: {300}}
    for request in {row["request_id"] for row in targets}:
        request_time = next(row["timestamp"] for row in targets if row["request_id"] == request)
        past = {row["basket_id"] for row in events if row["timestamp"] < request_time}
        rest = {row["basket_id"] for row in events if row["timestamp"] >= request_time}
        assert not past & rest
    drawn = {row["timestamp"] - START_MS: row["item_id"] for row in targets if not row["label"]}
    assert drawn.get(100) == 2, "only items of complete baskets are drawn"
    assert drawn.get(200) == 3
    assert 50 not in drawn


def test_a_log_with_labels_is_a_log_of_exposures(tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_text(
        "uid\tiid\twhen\tclicked\tbought\tdwell\tpage\n"
        "5\t1\t2023-05-01T10:00:00\t1\t0\t2.5\thome\n"
        "5\t2\t2023-05-01T10:00:30\t0\t0\t\thome\n"
        "5\t2\t2023-05-02T10:00:00\t1\t1\t9\tsearch\n"
    )
    (tmp_path / "users.csv").write_text("user_id,city\n5,Oslo\n6,Bergen\n")
    mapping = EventMapping(
        user="uid",
        item="iid",
        timestamp="when",
        timestamp_unit="iso",
        labels=("clicked", "bought"),
        features=("clicked:category", "dwell:number", "page:category"),
        users=tmp_path / "users.csv",
        user_features=("city:category",),
    )
    report = import_events(
        tmp_path / "log.tsv",
        tmp_path / "d",
        mapping,
    )
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.event_labels == ("bought",)
    assert dataset.schema.task_names == ("clicked", "bought")
    assert report.notes == []
    assert dataset.users().to_pylist() == [
        {"user_id": 5, "city": "Oslo"},
        {"user_id": 6, "city": "Bergen"},
    ]
    events, targets = read_dataset(tmp_path / "d")
    assert [(row["clicked"], row["dwell"], row["page"], row["bought"]) for row in events] == [
        (1, 2.5, "home", 0),
        (0, None, "home", 0),
        (1, 9.0, "search", 1),
    ]
    assert [(row["request_id"], row["clicked"], row["bought"]) for row in targets] == [
        (0, 1, 0),
        (0, 0, 0),
        (1, 1, 1),
    ]
    assert dataset.items()["item_id"].to_pylist() == [1, 2], (
        "without an item file, the items of the log"
    )


def test_files_keep_their_order_unless_a_seq_column_orders_them(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for name, rows in (
        ("p2.csv", ["1,30", "1,40"]),
        ("p10.csv", ["1,50"]),
        ("p1.csv", ["1,10", "bad", "1,20"]),
    ):
        (tmp_path / "src" / name).write_text(
            "user_id,item_id,timestamp,n\n"
            + "".join(
                f"{row},{START_MS},{100 - int(row[2:])}\n" if "," in row else f"{row}\n"
                for row in rows
            )
        )
    options = ImportOptions(max_reject_share=0.5)
    grouping = RequestGrouping(window_ms=0)
    for seq, order in ((None, [10, 20, 30, 40, 50]), ("n", [50, 40, 30, 20, 10])):
        mapping = EventMapping(seq=seq)
        import_events(
            tmp_path / "src",
            tmp_path / "d",
            mapping,
            negatives=NegativeSampling(1, keep_new=True),
            grouping=grouping,
            options=options,
        )
        assert [row["item_id"] for row in read_dataset(tmp_path / "d")[0]] == order


def test_a_wrong_unit_of_time_is_the_reason_of_the_failure(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "user_id,item_id,timestamp\n" + f"1,1,{START_MS // 1_000}\n" * 5
    )
    with pytest.raises(DataError, match="timestamp is not a time from 1980 to 2099"):
        import_events(
            tmp_path / "log.csv",
            tmp_path / "d",
            EventMapping(),
            negatives=NegativeSampling(1),
        )
    with pytest.raises(DataError, match="negatives cannot be drawn within"):
        import_events(
            tmp_path / "log.csv",
            tmp_path / "d",
            EventMapping(),
            negatives=NegativeSampling(1, "shelf"),
        )


def test_a_truncated_parquet_log_imports_nothing(tmp_path: Path) -> None:
    write_basket_log(tmp_path / "log.parquet")
    (tmp_path / "log.parquet").write_bytes((tmp_path / "log.parquet").read_bytes()[:-30])
    with pytest.raises(DataError, match="not a readable Parquet"):
        import_events(
            tmp_path / "log.parquet",
            tmp_path / "d",
            make_basket_mapping(tmp_path),
            negatives=NegativeSampling(3),
        )
    assert not (tmp_path / "d").exists()
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def write_log_from_zero(path: Path) -> Path:
    """Write a log whose times are seconds from its own start; return its path."""
    times = range(0, 400_000, 10_000)
    rows = [f"{row % 2},{row % 5},{time},{row % 2}\n" for row, time in enumerate(times)]
    path.write_text("user_id,item_id,timestamp,clicked\n" + "".join(rows))
    return path


def test_a_log_that_starts_at_0_keeps_its_origin_in_the_schema(tmp_path: Path) -> None:
    path = write_log_from_zero(tmp_path / "log.csv")
    mapping = EventMapping(timestamp_unit="s", time_origin_ms=ORIGIN_MS, labels=("clicked",))
    report = import_events(path, tmp_path / "d", mapping)
    events, targets = read_dataset(tmp_path / "d")
    assert report.rows_rejected == 0
    assert min(row["timestamp"] for row in events) == ORIGIN_MS
    assert max(row["timestamp"] for row in targets) == ORIGIN_MS + 390_000_000
    assert Dataset.open(tmp_path / "d").schema.time_origin_ms == ORIGIN_MS


def test_a_log_that_starts_at_0_is_refused_without_an_origin(tmp_path: Path) -> None:
    path = write_log_from_zero(tmp_path / "log.csv")
    mapping = EventMapping(timestamp_unit="s", labels=("clicked",))
    with pytest.raises(DataError, match=r"a start of its own .--time-origin."):
        import_events(path, tmp_path / "d", mapping)
    with pytest.raises(DataError, match="origin of the times is out of range"):
        EventMapping(time_origin_ms=5)


PRICES = [(1, 1, ""), (1, 2, "5"), (1, 2, "6"), (1, 1, ""), (2, 1, ""), (1, 2, "5")]
REPEATING_LOG = "user_id,item_id,timestamp,label,price\n" + "".join(
    f"{user},{item},{START_MS + item // 2},{item % 2},{price}\n" for user, item, price in PRICES
)


@pytest.mark.parametrize(("drop", "num_events"), [(False, 6), (True, 4)])
def test_exact_repeats_are_counted_and_left_out_on_request_only(
    tmp_path: Path,
    drop: bool,
    num_events: int,
) -> None:
    (tmp_path / "log.csv").write_text(REPEATING_LOG)
    report = import_events(
        tmp_path / "log.csv",
        tmp_path / "d",
        EventMapping(labels=("label",), features=("price:number",)),
        options=ImportOptions(drop_repeats=drop),
    )
    assert report.num_repeats == 2
    assert report.num_events == num_events
    assert_rows_add_up(report)
    if drop:
        assert report.filter_counts == {"events: an exact repeat of an earlier row": 2}
        assert report.notes == []
    else:
        assert report.notes[0].startswith("2 rows (33.3%) repeat an earlier row")


@pytest.mark.parametrize("seq", [None, "n"])
def test_a_log_that_is_read_twice_is_found_with_a_seq_column_too(
    tmp_path: Path,
    seq: str | None,
) -> None:
    lines = [f"1,{item % 3},{START_MS + item // 2},{item % 2},{item}" for item in range(10)]
    for name in ("a.csv", "b.csv"):
        path = tmp_path / "log" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["user_id,item_id,timestamp,label,n", *lines]))
    mapping = EventMapping(labels=("label",), seq=seq, features=("n:number",))
    report = import_events(tmp_path / "log", tmp_path / "d", mapping)
    assert (report.num_repeats, report.num_events) == (10, 20)


def test_an_item_twice_in_a_basket_at_two_times_is_no_repeat(tmp_path: Path) -> None:
    lines = [f"1,5,{START_MS + time},1,7" for time in (0, 10)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp,label,basket", *lines]))
    mapping = EventMapping(labels=("label",), basket="basket")
    assert import_events(tmp_path / "log.csv", tmp_path / "d", mapping).num_repeats == 0
