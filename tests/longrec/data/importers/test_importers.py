"""The importers on files in the exact official formats, and on the real ones where they lie beside
the repository.
"""

from __future__ import annotations

import csv
import itertools
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.data.dataset import Dataset, history_lengths
from longrec.data.importers import (
    EventMapping,
    ImportOptions,
    NegativeSampling,
    RequestGrouping,
    import_events,
    import_kuairand,
    import_movielens,
)
from longrec.data.importers.kuairand import SIGNALS, kuairand_schema
from longrec.data.importers.text_ids import text_id
from longrec.errors import DataError
from tests.longrec.data import real_logs

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,play_time_ms,"
    "duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
USER_HEADER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,follow_user_num_range,"
    "fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,register_days_range,"
    + ",".join(f"onehot_feat{place}" for place in range(18))
)
VIDEO_HEADER = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,music_id,"
    "music_type,tag"
)
T0 = 1_650_000_000_000


def exposure(user: object, video: object, time: object, click: object = 0, **other: object) -> str:
    value = {"is_like": 0, "long_view": 0, "play": 1_000, "tab": 1, **other}
    return (
        f"{user},{video},20220415,1200,{time},{click},{value['is_like']},0,0,0,0,{value['long_view']},{value['play']},9000,0,0,0,0,"
        f"{value['tab']}"
    )


def kuairand(
    directory: Path, logs: dict[str, list[str]], variant: str = "pure", end: str = "\n"
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    users = [
        f'{user},full_active,0,-124,1,514,500+,150,"[100,1k)",34,"[30,60)",799,730+,1,1,29,949,1.0,0,0,14,135,6,3,0,'
        "0.0,,0.0,0.0,0.0,0.0"
        for user in range(5)
    ]
    videos = [
        f'{video},{900 + video},NORMAL,2022-04-10,LongImport,0.0,{"" if video == 3 else 8000.5},720.0,1280.0,9155697141,9.0,"39,68"'
        for video in range(10)
    ]
    files = {
        f"user_features_{variant}.csv": [USER_HEADER, *users],
        f"video_features_basic_{variant}.csv": [VIDEO_HEADER, *videos],
        **{f"log_{name}_{variant}.csv": [LOG_HEADER, *rows] for name, rows in logs.items()},
    }
    for name, lines in files.items():
        (directory / name).write_text(end.join(lines) + end, newline="")
    return directory


def load(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns (events, targets) of all parts by user, times in ms."""
    dataset = Dataset.open(path)
    return tuple(
        sorted(
            itertools.chain.from_iterable(plain(part) for part in parts),
            key=lambda row: row["user_id"],
        )  # type: ignore[return-value]
        for parts in (dataset.event_parts(), dataset.target_parts())
    )


def plain(table: pa.Table) -> list[dict[str, Any]]:
    return table.set_column(
        table.schema.get_field_index("timestamp"), "timestamp", table["timestamp"].cast(pa.int64())
    ).to_pylist()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_kuairand_columns_requests_and_order(tmp_path: Path, end: str) -> None:
    rows = [
        exposure(1, 4, T0 + 400_000, 1, long_view=1),
        exposure(1, 2, T0, 1, is_like=1),
        exposure(1, 3, T0, 0, tab=4),
        exposure(1, 5, T0 + 300_000),
        exposure(2, 99, T0 + 7),
    ]
    source = kuairand(tmp_path / "src", {"standard_4_22_to_5_08": rows}, end=end)
    report = import_kuairand(source, tmp_path / "d")
    events, targets = load(tmp_path / "d")
    assert [(row["item_id"], row["timestamp"] - T0, row["event_seq"]) for row in events] == [
        (2, 0, 1),
        (3, 0, 2),
        (5, 300_000, 3),
        (4, 400_000, 0),
        (99, 7, 4),
    ], "time first, then the order of the log"
    assert (
        events[0]["is_click"] == 1
        and events[0]["is_like"] == 1
        and events[1]["tab"] == 4
        and events[0]["play_time_ms"] == 1_000
    )
    grouped = [
        [row["item_id"] for row in rows]
        for _, rows in itertools.groupby(targets, key=lambda row: row["request_id"])
    ]
    assert grouped == [[2, 3, 5], [4], [99]] and [row["timestamp"] - T0 for row in targets] == [
        0,
        0,
        0,
        400_000,
        7,
    ]
    assert [row["long_view"] for row in targets] == [0, 0, 0, 1, 0]
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.schema == kuairand_schema() and dataset.schema.task_names == (
        "is_click",
        "long_view",
        "is_like",
    )
    assert dataset.items().to_pylist()[3] == {
        "item_id": 3,
        "author_id": 903,
        "music_id": 9155697141,
        "tag": "39",
        "video_type": "NORMAL",
        "upload_type": "LongImport",
        "video_duration": None,
    }
    user = dataset.users().to_pylist()[1]
    assert (
        user["fans_user_num_range"] == "[100,1k)"
        and user["is_live_streamer"] == -124
        and user["onehot_feat4"] == 1
    )
    assert (
        user["onehot_feat13"] is None and user["onehot_feat12"] == 0 and user["onehot_feat3"] == 949
    )
    assert (
        report.num_events,
        report.num_users,
        report.num_items,
        report.num_requests,
        report.rows_rejected,
    ) == (5, 2, 10, 3, 0)
    assert report.to_dict()["label_rates"]["is_click"] == 0.4
    assert report.rejects_path is None and not (tmp_path / "d" / "rejects.csv").exists()


def test_kuairand_files_come_by_date_and_part_and_random_ones_last(tmp_path: Path) -> None:
    names = ["random_4_22_to_5_08", "standard_4_22_to_5_08", "standard_4_08_to_4_21"]
    source = kuairand(
        tmp_path / "src" / "data",
        {name: [exposure(1, place, T0)] for place, name in enumerate(names)},
        "27k",
    )
    for part, video in ((10, 7), (2, 6)):
        (source / f"log_standard_4_22_to_5_08_27k_part{part}.csv").write_text(
            f"{LOG_HEADER}\n{exposure(1, video, T0)}\n"
        )
    import_kuairand(tmp_path / "src", tmp_path / "d")
    events, _ = load(tmp_path / "d")
    assert [row["item_id"] for row in events] == [2, 1, 6, 7, 0] and [
        row["event_seq"] for row in events
    ] == [0, 1, 2, 3, 4]
    assert Dataset.open(tmp_path / "d").name == "kuairand-27k"


def test_kuairand_counts_bad_rows_and_names_their_lines(tmp_path: Path) -> None:
    good = [exposure(user % 5, user % 10, T0 + user * 1_000, user % 2) for user in range(200)]
    bad = {
        17: exposure("", 1, T0),
        60: "1,2,3",
        90: exposure(1, 1, -5),
        91: exposure(1, 1, T0 // 1_000),
        120: exposure(1, 1, T0, 2),
        150: exposure(1, "clip", T0),
    }
    lines = list(good)
    for place in sorted(bad):
        lines.insert(place - 2, bad[place])
    source = kuairand(tmp_path / "src", {"standard_4_22_to_5_08": lines})
    with pytest.raises(DataError, match="6 of 206") as caught:
        import_kuairand(source, tmp_path / "d")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["d.rejects.csv", "src"], (
        "nothing but the rejects is left"
    )
    assert str(tmp_path / "d.rejects.csv") in str(caught.value)
    report = import_kuairand(source, tmp_path / "d", options=ImportOptions(max_reject_share=0.05))
    rejected = list(csv.reader((tmp_path / "d" / "rejects.csv").open(newline="")))
    assert rejected[0] == ["file", "line", "reason", "row"]
    assert sorted((int(line), reason) for _, line, reason, _ in rejected[1:]) == [
        (17, "user_id is null"),
        (60, "not 19 columns"),
        (90, "time_ms is not a time from 1980 to 2099"),
        (91, "time_ms is not a time from 1980 to 2099"),
        (120, "is_click is not 0 or 1"),
        (150, "video_id is not a whole number"),
    ]
    assert {int(line): row for _, line, _, row in rejected[1:]}[120] == bad[120]
    assert (report.rows_read, report.rows_rejected, report.num_events) == (206, 6, 200)
    assert (
        report.rejects_path == str(tmp_path / "d" / "rejects.csv")
        and sum(report.reject_reasons.values()) == 6
    )


def test_a_failed_import_leaves_the_old_dataset(tmp_path: Path) -> None:
    source = kuairand(tmp_path / "src", {"standard_4_22_to_5_08": [exposure(1, 2, T0)]})
    import_kuairand(source, tmp_path / "d")
    before = Dataset.open(tmp_path / "d").facts
    (source / "log_standard_4_22_to_5_08_pure.csv").write_text(f"{LOG_HEADER}\nx\n")
    with pytest.raises(DataError, match="too many rows of the events"):
        import_kuairand(source, tmp_path / "d")
    assert Dataset.open(tmp_path / "d").facts == before
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no directory", "no KuaiRand log"),
        ("no users", "no user_features_pure"),
        ("two variants", "which KuaiRand"),
        ("empty log", "is empty"),
        ("header only", "no events"),
        ("column", "lacks the column is_hate"),
        ("task", "signals of KuaiRand"),
        ("duplicate videos", "rows of the items"),
    ],
)
def test_kuairand_names_what_is_missing(tmp_path: Path, fault: str, words: str) -> None:
    source = kuairand(tmp_path / "src", {"standard_4_22_to_5_08": [exposure(1, 2, T0)]})
    log, tasks = source / "log_standard_4_22_to_5_08_pure.csv", ["is_click"]
    if fault == "no directory":
        source = tmp_path / "none"
    elif fault == "no users":
        (source / "user_features_pure.csv").unlink()
    elif fault == "two variants":
        kuairand(source, {"standard_4_22_to_5_08": [exposure(1, 2, T0)]}, "1k")
    elif fault == "empty log":
        log.write_text("")
    elif fault == "header only":
        log.write_text(LOG_HEADER + "\n")
    elif fault == "column":
        log.write_text(log.read_text().replace("is_hate", "is_loved"))
    elif fault == "task":
        tasks = ["is_bought"]
    else:
        videos = source / "video_features_basic_pure.csv"
        videos.write_text(videos.read_text() + videos.read_text().split("\n")[1] + "\n")
    with pytest.raises(DataError, match=words):
        import_kuairand(source, tmp_path / "d", tasks=tasks)
    assert not (tmp_path / "d").exists()


def test_parts_bound_the_rows_and_change_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [
        exposure(rng.randrange(40), rng.randrange(10), T0 + rng.randrange(10**8), rng.randrange(2))
        for _ in range(3_000)
    ]
    source = kuairand(tmp_path / "src", {"standard_4_22_to_5_08": rows})
    import_kuairand(source, tmp_path / "one")
    import_kuairand(source, tmp_path / "many", options=ImportOptions(rows_per_part=400))
    assert (
        Dataset.open(tmp_path / "one").num_parts == 1
        and Dataset.open(tmp_path / "many").num_parts >= 7
    )
    (events, targets), (more_events, more_targets) = load(tmp_path / "one"), load(tmp_path / "many")
    assert events == more_events and len(events) == 3_000
    drop = [
        {key: value for key, value in row.items() if key != "request_id"} for row in more_targets
    ]
    assert [
        {key: value for key, value in row.items() if key != "request_id"} for row in targets
    ] == drop


def test_movielens_1m(tmp_path: Path) -> None:
    source = tmp_path / "ml-1m"
    source.mkdir()
    (source / "ratings.dat").write_bytes(
        b"1::1193::5::978300760\n1::661::3::978300760\n1::914::4::978301760\n2::1193::1::978298413\n"
    )
    (source / "movies.dat").write_bytes(
        "661::Ast\xe9rix: le film (1976)::Animation|Comedy\n914::My Fair Lady (1964)::Musical\n"
        "1193::No Year::Drama\n".encode("latin-1")
    )
    (source / "users.dat").write_bytes(b"1::F::1::10::48067\n2::M::56::16::70072-1234\n")
    report = import_movielens(source, tmp_path / "d")
    dataset = Dataset.open(tmp_path / "d")
    assert report.name == "ml-1m" and dataset.event_labels == ("label",)
    assert dataset.items().to_pylist() == [
        {"item_id": 661, "genre": "Animation", "genres": "Animation|Comedy", "year": 1976},
        {"item_id": 914, "genre": "Musical", "genres": "Musical", "year": 1964},
        {"item_id": 1193, "genre": "Drama", "genres": "Drama", "year": None},
    ]
    assert dataset.users().to_pylist()[1] == {
        "user_id": 2,
        "gender": "M",
        "age": 56,
        "occupation": 16,
        "zip": "70072-1234",
    }
    events, targets = load(tmp_path / "d")
    ratings = [(1193, 5.0, 1), (661, 3.0, 0), (914, 4.0, 1), (1193, 1.0, 0)]
    assert [(row["item_id"], row["rating"], row["label"]) for row in events] == ratings
    assert events[0]["timestamp"] == 978_300_760_000
    assert [(row["request_id"], row["item_id"], row["label"]) for row in targets] == [
        (0, 1193, 1),
        (0, 661, 0),
        (1, 914, 1),
        (2, 1193, 0),
    ]


@pytest.mark.parametrize("nested", [False, True])
def test_movielens_csv(tmp_path: Path, nested: bool) -> None:
    source = tmp_path / "src" / ("ml-latest-small" if nested else "")
    source.mkdir(parents=True)
    (source / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,3,4.5,964981247\n7,1,0.5,964982224\n"
        "7,2,9.0,964982224\n"
    )
    (source / "movies.csv").write_text(
        'movieId,title,genres\n1,"Great ""Performances"", The (1998) ",Comedy|Drama\n'
        '3,Café (2011–),(no genres listed)\n2,"Up (2009)",Action\n',
        encoding="utf-8",
    )
    report = import_movielens(
        tmp_path / "src", tmp_path / "d", threshold=4.5, options=ImportOptions(max_reject_share=0.5)
    )
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.items().to_pylist() == [
        {"item_id": 1, "genre": "Comedy", "genres": "Comedy|Drama", "year": 1998},
        {"item_id": 2, "genre": "Action", "genres": "Action", "year": 2009},
        {"item_id": 3, "genre": None, "genres": None, "year": None},
    ]
    assert dataset.schema.user == () and dataset.users()["user_id"].to_pylist() == [1, 7]
    events, _ = load(tmp_path / "d")
    assert [(row["item_id"], row["label"]) for row in events] == [(3, 1), (1, 0), (1, 0)]
    assert report.rows_rejected == 1 and "rating is not from 0.5 to 5" in next(
        iter(report.reject_reasons)
    )
    with pytest.raises(DataError, match="no MovieLens log"):
        import_movielens(tmp_path / "nowhere", tmp_path / "e")


def basket_log(path: Path, *, num_events: int = 3_000, seed: int = 0) -> list[dict[str, Any]]:
    """Writes a log of baskets in Parquet (times in seconds, ties between baskets) and returns its
    rows.
    """
    rng, rows, basket = random.Random(seed), [], 0
    while len(rows) < num_events:
        user, time = rng.randrange(8), T0 // 1_000 + rng.randrange(400)
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


def basket_mapping(tmp_path: Path) -> EventMapping:
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


def test_implicit_log_draws_honest_negatives(tmp_path: Path) -> None:
    rows = basket_log(tmp_path / "log.parquet")
    report = import_events(
        tmp_path / "log.parquet",
        tmp_path / "d",
        basket_mapping(tmp_path),
        negatives=NegativeSampling(3, "repo"),
        grouping=RequestGrouping(max_targets=4),
        options=ImportOptions(rows_per_part=700),
        name="commits",
    )
    events, targets = load(tmp_path / "d")
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.num_parts == 5 and dataset.schema.has_baskets and len(events) == len(rows)
    assert dataset.schema.event[0].dtype == "string" and dataset.schema.item[1].dtype == "int64"
    first: dict[int, int] = {}
    for row in rows:
        first[row["what"]] = min(first.get(row["what"], 2**62), row["at"] * 1_000)
    repo = {item: item % 3 if item < 280 else -1 for item in range(300)}
    num_drawn = 0
    for _, group in itertools.groupby(
        sorted(targets, key=lambda row: row["request_id"]), key=lambda row: row["request_id"]
    ):
        request = list(group)
        user, request_time = request[0]["user_id"], request[0]["timestamp"]
        here = [row for row in rows if (row["who"], row["at"] * 1_000) == (user, request_time)]
        positives, drawn = (
            {row["item_id"] for row in request if row["label"] == label} for label in (1, 0)
        )
        basket = {
            row["what"]
            for row in here
            if positives <= {other["what"] for other in here if other["commit"] == row["commit"]}
        }
        assert (
            positives
            and positives <= basket
            and all(first[item] < request_time for item in positives | drawn)
        )
        assert not drawn & positives and {repo[item] for item in drawn} <= {
            repo[item] for item in positives
        }
        assert len(drawn) <= 3 * len(positives)
        num_drawn += len(drawn)
    assert (
        num_drawn == report.num_targets - sum(row["label"] for row in targets)
        and report.label_rates["label"] < 0.3
    )
    assert (
        len(report.notes) == 2
        and "with the same repo" in report.notes[0]
        and "left out" in report.notes[1]
    )
    again = import_events(
        tmp_path / "log.parquet",
        tmp_path / "again",
        basket_mapping(tmp_path),
        negatives=NegativeSampling(3, "repo"),
        grouping=RequestGrouping(max_targets=4),
        options=ImportOptions(rows_per_part=700),
        name="commits",
    )
    other = import_events(
        tmp_path / "log.parquet",
        tmp_path / "other",
        basket_mapping(tmp_path),
        negatives=NegativeSampling(3, "repo"),
        grouping=RequestGrouping(max_targets=4, seed=1),
        options=ImportOptions(rows_per_part=700),
        name="commits",
    )
    hashes = [
        Dataset.open(Path(entry.path)).facts["content_hash"] for entry in (report, again, other)
    ]
    assert hashes[0] == hashes[1] != hashes[2], "seeded"


def test_no_history_splits_a_basket_even_one_that_took_a_while(tmp_path: Path) -> None:
    rows = [(1, 0, 7), (2, 50, 8), (3, 100, 7), (1, 200, 9), (2, 200, 9), (3, 300, 10)]
    (tmp_path / "log.csv").write_text(
        "user_id,item_id,timestamp,order\n"
        + "".join(f"1,{item},{T0 + time},{order}\n" for item, time, order in rows)
    )
    import_events(
        tmp_path / "log.csv",
        tmp_path / "d",
        EventMapping(basket="order"),
        negatives=NegativeSampling(1, keep_new=True),
    )
    events, targets = load(tmp_path / "d")
    times = {
        basket: {row["timestamp"] - T0 for row in events if row["basket_id"] == basket}
        for basket in (7, 8, 9, 10)
    }
    assert times == {7: {100}, 8: {50}, 9: {200}, 10: {300}}, (
        "a basket happens when its last item does"
    )
    for request in {row["request_id"] for row in targets}:
        request_time = next(row["timestamp"] for row in targets if row["request_id"] == request)
        past = {row["basket_id"] for row in events if row["timestamp"] < request_time}
        rest = {row["basket_id"] for row in events if row["timestamp"] >= request_time}
        assert not past & rest
    drawn = {row["timestamp"] - T0: row["item_id"] for row in targets if not row["label"]}
    assert drawn.get(100) == 2 and drawn.get(200) == 3 and 50 not in drawn, (
        "only what was complete before may be drawn"
    )


def test_log_with_labels_is_exposures(tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_text(
        "uid\tiid\twhen\tclicked\tbought\tdwell\tpage\n5\t1\t2023-05-01T10:00:00\t1\t0\t2.5\thome\n"
        "5\t2\t2023-05-01T10:00:30\t0\t0\t\thome\n5\t2\t2023-05-02T10:00:00\t1\t1\t9\tsearch\n"
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
    report = import_events(tmp_path / "log.tsv", tmp_path / "d", mapping)
    dataset = Dataset.open(tmp_path / "d")
    assert (
        dataset.event_labels == ("bought",)
        and dataset.schema.task_names == ("clicked", "bought")
        and report.notes == []
    )
    assert dataset.users().to_pylist() == [
        {"user_id": 5, "city": "Oslo"},
        {"user_id": 6, "city": "Bergen"},
    ]
    events, targets = load(tmp_path / "d")
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
        "without a catalogue the items of the log"
    )


def test_directory_of_files_keeps_their_order_and_seq_column_wins(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for name, rows in (
        ("p2.csv", ["1,30", "1,40"]),
        ("p10.csv", ["1,50"]),
        ("p1.csv", ["1,10", "bad", "1,20"]),
    ):
        (tmp_path / "src" / name).write_text(
            "user_id,item_id,timestamp,n\n"
            + "".join(
                f"{row},{T0},{100 - int(row[2:])}\n" if "," in row else f"{row}\n" for row in rows
            )
        )
    mapping, options = EventMapping(labels=(), features=()), ImportOptions(max_reject_share=0.5)
    rule = RequestGrouping(window_ms=0)
    for seq, order in ((None, [10, 20, 30, 40, 50]), ("n", [50, 40, 30, 20, 10])):
        mapping = EventMapping(seq=seq)
        import_events(
            tmp_path / "src",
            tmp_path / "d",
            mapping,
            negatives=NegativeSampling(1, keep_new=True),
            grouping=rule,
            options=options,
        )
        assert [row["item_id"] for row in load(tmp_path / "d")[0]] == order


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": ("x",)}, "misdescribed"),
        ({"features": ("x:shape",)}, "misdescribed"),
        ({"features": ("x:category:int8",)}, "misdescribed"),
        ({"features": ("x:number:float64:9",)}, "misdescribed"),
        ({"features": ("timestamp:number",)}, "cannot be called timestamp"),
        ({"features": ("x:category", "x:number")}, "named twice"),
        ({"user": "nobody"}, "lacks the column nobody"),
        ({"labels": ("x",)}, "either labels or negatives"),
        ({"items": "i.csv"}, "go together"),
        ({"timestamp_unit": "days"}, "unknown unit"),
        ({"labels": ("x", "x")}, "named twice; found x"),
        ({"user": "a", "item": "a"}, "named twice; found a"),
        ({"features": ("x:id", "x:number")}, "named twice; found x"),
    ],
)
def test_mapping_mistakes_are_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp,x\n1,1,{T0},1\n")
    with pytest.raises(DataError, match=words):
        import_events(
            tmp_path / "log.csv", tmp_path / "d", EventMapping(**change), negatives=NegativeSampling(1)
        )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.csv"]


def test_wrong_unit_of_time_fails_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + f"1,1,{T0 // 1_000}\n" * 5)
    with pytest.raises(DataError, match="timestamp is not a time from 1980 to 2099"):
        import_events(
            tmp_path / "log.csv", tmp_path / "d", EventMapping(), negatives=NegativeSampling(1)
        )
    with pytest.raises(DataError, match="negatives cannot be drawn within"):
        import_events(
            tmp_path / "log.csv", tmp_path / "d", EventMapping(), negatives=NegativeSampling(1, "shelf")
        )


def test_truncated_parquet_log_imports_nothing(tmp_path: Path) -> None:
    basket_log(tmp_path / "log.parquet")
    (tmp_path / "log.parquet").write_bytes((tmp_path / "log.parquet").read_bytes()[:-30])
    with pytest.raises(DataError, match="not a readable Parquet"):
        import_events(
            tmp_path / "log.parquet",
            tmp_path / "d",
            basket_mapping(tmp_path),
            negatives=NegativeSampling(3),
        )
    assert not (tmp_path / "d").exists() and not [
        entry for entry in tmp_path.iterdir() if entry.name.startswith(".")
    ]


def test_real_kuairand(tmp_path: Path) -> None:
    source = real_logs.shared("kuairand-pure-partial")
    report = import_kuairand(source, tmp_path / "d", options=ImportOptions(rows_per_part=60_000))
    assert (report.rows_read, report.rows_rejected, report.num_events, report.num_targets) == (
        228_329,
        0,
        228_329,
        228_329,
    )
    assert (report.num_users, report.events_per_user["p50"], report.events_per_user["max"]) == (
        25_156,
        7,
        141,
    )
    assert report.label_rates == pytest.approx(
        {"is_click": 0.4419, "long_view": 0.3108, "is_like": 0.0171}, abs=1e-4
    )
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.num_parts == 4 and set(SIGNALS) <= set(dataset.events(0).schema.names)
    raw = {
        (row["user_id"], row["time_ms"], row["video_id"], row["is_click"])
        for row in itertools.islice(
            csv.DictReader((source / "log_standard_4_22_to_5_08_pure.csv").open()), 5_000
        )
    }
    found = {
        (str(row["user_id"]), str(row["timestamp"]), str(row["item_id"]), str(row["is_click"]))
        for part in dataset.event_parts()
        for row in plain(part.select(["user_id", "timestamp", "item_id", "is_click"]))
    }
    assert raw <= found


@pytest.mark.slow
def test_real_dev_events(tmp_path: Path) -> None:
    source = real_logs.shared("dev-events")
    mapping = EventMapping(
        timestamp="ts",
        timestamp_unit="s",
        basket="commit_id",
        features=("action:category",),
        items=source / "items.parquet",
        item_features=(
            "repo_id:category",
            "area_id:category",
            "extension:category",
            "depth:category",
        ),
    )
    report = import_events(
        source / "events.parquet",
        tmp_path / "d",
        mapping,
        negatives=NegativeSampling(4, "repo_id"),
        grouping=RequestGrouping(max_targets=8, max_requests_per_user=50),
        options=ImportOptions(rows_per_part=500_000),
    )
    assert (
        report.num_events,
        report.num_users,
        report.num_items,
        report.events_per_user["max"],
    ) == (2_790_011, 1_190, 465_240, 49_560)
    assert report.label_rates["label"] == pytest.approx(0.2, abs=0.002)
    dataset = Dataset.open(tmp_path / "d")
    log = pq.read_table(source / "events.parquet")
    first = np.full(600_000, 2**62)
    np.minimum.at(first, log["item_id"].to_numpy(), log["ts"].to_numpy() * 1_000)
    repos = np.full(600_000, -1)
    repos[dataset.items()["item_id"].to_numpy()] = dataset.items()["repo_id"].to_numpy()
    for part in range(dataset.num_parts):
        events, targets = dataset.events(part), dataset.targets(part).to_pandas()
        request_times = np.array(plain_times(dataset.targets(part)))
        assert np.all(first[targets["item_id"]] < request_times), "a target from the future"
        taken = set(
            zip(
                events["user_id"].to_pylist(),
                plain_times(events),
                events["item_id"].to_pylist(),
                strict=True,
            )
        )
        is_taken = [
            key in taken
            for key in zip(
                targets["user_id"], request_times.tolist(), targets["item_id"], strict=True
            )
        ]
        assert all(
            taken_now
            for taken_now, label in zip(is_taken, targets["label"], strict=True)
            if label == 1
        )
        pairs = [
            set(zip(group["request_id"], repos[group["item_id"]], strict=True))
            for _, group in targets.groupby("label")
        ]
        assert pairs[0] <= pairs[1], "a negative of another repository"
        lengths = history_lengths(
            events["user_id"].to_numpy(),
            np.array(plain_times(events)),
            targets["user_id"].to_numpy(),
            request_times,
        )
        starts = np.searchsorted(events["user_id"].to_numpy(), targets["user_id"].to_numpy())
        baskets, times = events["basket_id"].to_numpy(), np.array(plain_times(events))
        inside = starts + lengths
        whole = (inside < len(times)) & (lengths > 0)
        assert np.all(times[inside[whole]] >= request_times[whole]) and np.all(
            times[inside[whole] - 1] < request_times[whole]
        )
        assert np.all(baskets[inside[whole] - 1] != baskets[inside[whole]]), (
            "a history ends inside a commit"
        )


def plain_times(events: pa.Table) -> list[int]:
    return events["timestamp"].cast(pa.int64()).to_pylist()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    source, rng = (
        kuairand(tmp_path / "src", {"standard_4_08_to_4_21": [exposure(1, 2, T0)]}, "27k"),
        random.Random(0),
    )
    rows = "".join(
        exposure(
            rng.randrange(500), rng.randrange(5_000), T0 + rng.randrange(10**9), rng.randrange(2)
        )
        + "\n"
        for _ in range(100_000)
    )
    import_kuairand(source, tmp_path / "d")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (source / "log_standard_4_22_to_5_08_27k.csv").open("w") as stream:
        stream.write(LOG_HEADER + "\n")
        for _ in range(40):
            stream.write(rows)
    report = import_kuairand(source, tmp_path / "d", options=ImportOptions(rows_per_part=250_000))
    assert report.num_events == 4_000_001
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000, (
        "kilobytes; the log alone is 300 MB"
    )


@pytest.mark.parametrize("kind", ["csv", "parquet", "dictionary"])
def test_ids_that_are_text(tmp_path: Path, kind: str) -> None:
    """Users, items and baskets named by text: the ids are those of `text_id`, in the log and in
    both entity files, and ids/ tells them.
    """
    rng = np.random.default_rng(0)
    users = [f"ann-{number}" for number in rng.integers(0, 6, 200)]
    items, baskets = (
        [f"größe {number}" for number in rng.integers(0, 9, 200)],
        [f"b{row // 2}" for row in range(200)],
    )
    table = pa.table(
        {
            "user_id": users,
            "item_id": items,
            "basket": baskets,
            "timestamp": T0 + np.arange(200) * 60_000,
        }
    )
    if kind == "csv":
        write_csv(tmp_path / "log.csv", table)
    else:
        encoded = (
            table.set_column(1, "item_id", table["item_id"].dictionary_encode())
            if kind == "dictionary"
            else table
        )
        pq.write_table(encoded, tmp_path / "log.parquet")
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
    import_events(log, tmp_path / "d", mapping, negatives=NegativeSampling(1, "shelf", keep_new=True))
    dataset = Dataset.open(tmp_path / "d")
    events = pa.concat_tables(dataset.event_parts()).sort_by("event_seq")
    assert events["user_id"].to_pylist() == [text_id(user) for user in users]
    assert events["item_id"].to_pylist() == [text_id(item) for item in items]
    assert events["basket_id"].to_pylist() == [text_id(basket) for basket in baskets]
    shelves = dict(
        zip(*(dataset.items()[name].to_pylist() for name in ("item_id", "shelf")), strict=True)
    )
    assert shelves == {text_id(f"größe {number}"): f"s{number % 3}" for number in range(9)}
    for group, texts in (("users", users), ("items", items), ("baskets", baskets)):
        told = pq.read_table(tmp_path / "d" / "ids" / f"{group}.parquet")
        assert dict(zip(told["id"].to_pylist(), told["text"].to_pylist(), strict=True)) == {
            text_id(text): text for text in texts
        }


def write_csv(path: Path, table: pa.Table) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(
            [
                table.column_names,
                *zip(*(column.to_pylist() for column in table.columns), strict=True),
            ]
        )


def test_text_ids_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="such ids cannot be text; found basket"):
        EventMapping(text_ids=("basket",))
    pq.write_table(
        pa.table({"user_id": ["a"], "item_id": [1], "timestamp": [T0]}), tmp_path / "log.parquet"
    )
    with pytest.raises(DataError, match="user_id is not a whole number"):
        import_events(
            tmp_path / "log.parquet", tmp_path / "d", EventMapping(), negatives=NegativeSampling(1)
        )
