"""The KuaiRand importer on files in the official format and on real logs."""

from __future__ import annotations

import csv
import itertools
import json
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from longrec.data.dataset import Dataset
from longrec.data.importers import (
    ImportOptions,
    import_kuairand,
)
from longrec.data.importers.kuairand import SIGNALS, kuairand_schema
from longrec.errors import DataError
from tests.longrec.data import real_logs
from tests.longrec.data.importers.imported import assert_rows_add_up, plain_rows, read_dataset

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,"
    "is_forward,is_hate,long_view,play_time_ms,"
    "duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
USER_HEADER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
    "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,"
    "friend_user_num,friend_user_num_range,register_days,register_days_range,"
    + ",".join(f"onehot_feat{place}" for place in range(18))
)
VIDEO_HEADER = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
    "server_width,server_height,music_id,music_type,tag"
)
START_MS = 1_650_000_000_000


def exposure(user: object, video: object, time: object, click: object = 0, **other: object) -> str:
    value = {
        "is_like": 0,
        "long_view": 0,
        "play": 1_000,
        "tab": 1,
        **other,
    }
    return (
        f"{user},{video},20220415,1200,{time},{click},{value['is_like']},0,0,0,0,"
        f"{value['long_view']},{value['play']},9000,0,0,0,0,{value['tab']}"
    )


def write_kuairand(
    directory: Path,
    logs: dict[str, list[str]],
    variant: str = "pure",
    end: str = "\n",
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    users = [
        f'{user},full_active,0,-124,1,514,500+,150,"[100,1k)",34,"[30,60)",799,730+,'
        "1,1,29,949,1.0,0,0,14,135,6,3,0,0.0,,0.0,0.0,0.0,0.0"
        for user in range(5)
    ]
    videos = [
        f"{video},{900 + video},NORMAL,2022-04-10,LongImport,0.0,"
        f'{"" if video == 3 else 8000.5},720.0,1280.0,9155697141,9.0,"39,68"'
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


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_columns_requests_and_order(tmp_path: Path, end: str) -> None:
    rows = [
        exposure(1, 4, START_MS + 400_000, 1, long_view=1),
        exposure(1, 2, START_MS, 1, is_like=1),
        exposure(1, 3, START_MS, 0, tab=4),
        exposure(1, 5, START_MS + 300_000),
        exposure(2, 99, START_MS + 7),
    ]
    source = write_kuairand(
        tmp_path / "src",
        {"standard_4_22_to_5_08": rows},
        end=end,
    )
    report = import_kuairand(source, tmp_path / "d")
    assert_rows_add_up(report)
    events, targets = read_dataset(tmp_path / "d")
    assert [(row["item_id"], row["timestamp"] - START_MS, row["event_seq"]) for row in events] == [
        (2, 0, 1),
        (3, 0, 2),
        (5, 300_000, 3),
        (4, 400_000, 0),
        (99, 7, 4),
    ], "time first, then the order of the log"
    assert events[0]["is_click"] == 1
    assert events[0]["is_like"] == 1
    assert events[1]["tab"] == 4
    assert events[0]["play_time_ms"] == 1_000
    grouped = [
        [row["item_id"] for row in rows]
        for _, rows in itertools.groupby(targets, key=lambda row: row["request_id"])
    ]
    assert grouped == [[2, 3, 5], [4], [99]]
    assert [row["timestamp"] - START_MS for row in targets] == [
        0,
        0,
        0,
        400_000,
        7,
    ]
    assert [row["long_view"] for row in targets] == [0, 0, 0, 1, 0]
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.schema == kuairand_schema()
    assert dataset.schema.task_names == (
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
    assert user["fans_user_num_range"] == "[100,1k)"
    assert user["is_live_streamer"] == -124
    assert user["onehot_feat4"] == 1
    assert user["onehot_feat13"] is None
    assert user["onehot_feat12"] == 0
    assert user["onehot_feat3"] == 949
    assert (
        report.num_events,
        report.num_users,
        report.num_items,
        report.num_requests,
        report.rows_rejected,
    ) == (5, 2, 10, 3, 0)
    assert report.to_dict()["label_rates"]["is_click"] == 0.4
    assert report.rejects_path is None
    assert not (tmp_path / "d" / "rejects.csv").exists()


def test_events_follow_the_dates_and_parts_of_files_with_random_logs_last(tmp_path: Path) -> None:
    names = ["random_4_22_to_5_08", "standard_4_22_to_5_08", "standard_4_08_to_4_21"]
    source = write_kuairand(
        tmp_path / "src" / "data",
        {name: [exposure(1, place, START_MS)] for place, name in enumerate(names)},
        "27k",
    )
    for part, video in ((10, 7), (2, 6)):
        (source / f"log_standard_4_22_to_5_08_27k_part{part}.csv").write_text(
            f"{LOG_HEADER}\n{exposure(1, video, START_MS)}\n"
        )
    import_kuairand(tmp_path / "src", tmp_path / "d")
    events, _ = read_dataset(tmp_path / "d")
    assert [row["item_id"] for row in events] == [2, 1, 6, 7, 0]
    assert [row["event_seq"] for row in events] == [0, 1, 2, 3, 4]
    assert Dataset.open(tmp_path / "d").name == "kuairand-27k"


def test_bad_rows_are_counted_and_reported_with_their_lines(tmp_path: Path) -> None:
    good = [
        exposure(
            user % 5,
            user % 10,
            START_MS + user * 1_000,
            user % 2,
        )
        for user in range(200)
    ]
    bad = {
        17: exposure("", 1, START_MS),
        60: "1,2,3",
        90: exposure(1, 1, -5),
        91: exposure(1, 1, START_MS // 1_000),
        120: exposure(1, 1, START_MS, 2),
        150: exposure(1, "clip", START_MS),
    }
    lines = list(good)
    for place in sorted(bad):
        lines.insert(place - 2, bad[place])
    source = write_kuairand(tmp_path / "src", {"standard_4_22_to_5_08": lines})
    with pytest.raises(DataError, match="6 of 206") as caught:
        import_kuairand(source, tmp_path / "d")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["d.rejects.csv", "src"], (
        "only the rejects are left"
    )
    assert str(tmp_path / "d.rejects.csv") in str(caught.value)
    report = import_kuairand(
        source,
        tmp_path / "d",
        options=ImportOptions(max_reject_share=0.05),
    )
    assert_rows_add_up(report)
    rejected = list(csv.reader((tmp_path / "d" / "rejects.csv").open(newline="")))
    assert rejected[0] == ["file", "line", "reason", "row"]
    assert sorted((int(line), reason) for _, line, reason, _ in rejected[1:]) == [
        (17, "user_id is null"),
        (60, "not 19 columns"),
        (90, "time_ms is not a time from 1980 to 2099"),
        (91, "time_ms is not a time from 1980 to 2099, it looks like seconds"),
        (120, "is_click is not 0 or 1"),
        (150, "video_id is not a whole number"),
    ]
    assert {int(line): row for _, line, _, row in rejected[1:]}[120] == bad[120]
    assert (report.rows_read, report.rows_rejected, report.num_events) == (206, 6, 200)
    assert report.rejects_path == str(tmp_path / "d" / "rejects.csv")
    assert sum(report.reject_reasons.values()) == 6


def test_a_failed_import_leaves_the_old_dataset(tmp_path: Path) -> None:
    source = write_kuairand(tmp_path / "src", {"standard_4_22_to_5_08": [exposure(1, 2, START_MS)]})
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
def test_missing_input_is_named_in_the_error(
    tmp_path: Path,
    fault: str,
    words: str,
) -> None:
    source = write_kuairand(tmp_path / "src", {"standard_4_22_to_5_08": [exposure(1, 2, START_MS)]})
    log = source / "log_standard_4_22_to_5_08_pure.csv"
    tasks = ["is_click"]
    if fault == "no directory":
        source = tmp_path / "none"
    elif fault == "no users":
        (source / "user_features_pure.csv").unlink()
    elif fault == "two variants":
        write_kuairand(
            source,
            {"standard_4_22_to_5_08": [exposure(1, 2, START_MS)]},
            "1k",
        )
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


def test_parts_limit_the_rows_and_change_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [
        exposure(
            rng.randrange(40),
            rng.randrange(10),
            START_MS + rng.randrange(10**8),
            rng.randrange(2),
        )
        for _ in range(3_000)
    ]
    source = write_kuairand(tmp_path / "src", {"standard_4_22_to_5_08": rows})
    import_kuairand(source, tmp_path / "one")
    import_kuairand(
        source,
        tmp_path / "many",
        options=ImportOptions(rows_per_part=400),
    )
    assert Dataset.open(tmp_path / "one").num_parts == 1
    assert Dataset.open(tmp_path / "many").num_parts >= 7
    (events, targets), (more_events, more_targets) = (
        read_dataset(tmp_path / "one"),
        read_dataset(tmp_path / "many"),
    )
    assert events == more_events
    assert len(events) == 3_000
    drop = [
        {key: value for key, value in row.items() if key != "request_id"} for row in more_targets
    ]
    assert [
        {key: value for key, value in row.items() if key != "request_id"} for row in targets
    ] == drop


def test_real_kuairand(tmp_path: Path) -> None:
    source = real_logs.shared("kuairand-pure-partial")
    report = import_kuairand(
        source,
        tmp_path / "d",
        options=ImportOptions(rows_per_part=60_000),
    )
    assert_rows_add_up(report)
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
        {
            "is_click": 0.4419,
            "long_view": 0.3108,
            "is_like": 0.0171,
        },
        abs=1e-4,
    )
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.num_parts == 4
    assert set(SIGNALS) <= set(dataset.events(0).schema.names)
    raw = {
        (row["user_id"], row["time_ms"], row["video_id"], row["is_click"])
        for row in itertools.islice(
            csv.DictReader((source / "log_standard_4_22_to_5_08_pure.csv").open()), 5_000
        )
    }
    found = {
        (str(row["user_id"]), str(row["timestamp"]), str(row["item_id"]), str(row["is_click"]))
        for part in dataset.event_parts()
        for row in plain_rows(part.select(["user_id", "timestamp", "item_id", "is_click"]))
    }
    assert raw <= found


@pytest.mark.slow
def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    source = write_kuairand(
        tmp_path / "src",
        {"standard_4_08_to_4_21": [exposure(1, 2, START_MS)]},
        "27k",
    )
    rng = random.Random(0)
    rows = "".join(
        exposure(
            rng.randrange(500),
            rng.randrange(5_000),
            START_MS + rng.randrange(10**9),
            rng.randrange(2),
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
    report = import_kuairand(
        source,
        tmp_path / "d",
        options=ImportOptions(rows_per_part=250_000),
    )
    assert_rows_add_up(report)
    assert report.num_events == 4_000_001
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000, (
        "kilobytes; the log alone is 300 MB"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "code"), [(2_048, 0), (1, 1)])
def test_the_memory_benchmark_compares_with_its_limit(
    tmp_path: Path,
    limit: int,
    code: int,
) -> None:
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
    assert all(line["peak_mib"] > line["start_mib"] > 0 for line in lines[:3])
    assert lines[3]["within"] == (code == 0)
    assert not list(tmp_path.iterdir())
