"""The Last.fm importer on files in the official format."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from longrec.data.dataset import Dataset
from longrec.data.importers import (
    ImportOptions,
    NegativeSampling,
    import_lastfm,
)
from longrec.data.importers.reading.values.dates import NOT_A_DATE
from longrec.ids import text_id
from tests.longrec.data.importers.imported import assert_rows_add_up, read_dataset, rejected_rows

LENIENT = ImportOptions(max_reject_share=0.9)
ARTIST_MBID = "f1b1cf71-bd35-4e99-8624-24a6e15f133a"
TITLE = 'Fuck Me Im Famous (Pacha Ibiza)-"09-28-2007'
TRACK_MBID = "0f6eae6f-0b7d-4a2b-9e2e-0e1e8a5e2b11"


def write_lastfm(
    directory: Path,
    rows: list[str],
    *,
    header: bool = True,
) -> Path:
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
def test_events_users_text_ids_and_rejects(tmp_path: Path, header: bool) -> None:
    rows = [
        f"user_000001\t2009-05-04T23:08:57Z\t{ARTIST_MBID}\tDeep Dish\t\t{TITLE}",
        f"user_000001\t2009-05-04T13:54:10Z\t\t坂本龍一\t{TRACK_MBID}\tComposition 0919",
        f"user_000639\t2009-05-04T23:08:57Z\t{ARTIST_MBID}\tDeep Dish\t\t{TITLE}",
        "user_000639\t2009-05-05T10:00:00Z\t\tNobody\t\t",
        f"guest\t2009-05-05T10:00:00Z\t\tA\t{TRACK_MBID}\tB",
        f"user_000639\t2009-05-06 10h\t\tA\t{TRACK_MBID}\tB",
        "user_000639\t2009-05-06T10:00:00Z\tA\tB",
        f"user_000639\t2009-05-06T10:00:00Z\t\t坂本龍一\t{TRACK_MBID}\tComposition 0919",
    ]
    source = write_lastfm(
        tmp_path / "src" / "lastfm-dataset-1K",
        rows,
        header=header,
    )
    report = import_lastfm(
        source.parent,
        tmp_path / "d",
        negatives=NegativeSampling(1, keep_new=True),
        options=LENIENT,
    )
    assert_rows_add_up(report)
    assert [(line, reason) for _, line, reason in sorted(rejected_rows(tmp_path / "d"))] == [
        (4, "the track has neither an id nor artist and title"),
        (5, "userid is not user_ and a number"),
        (6, f"timestamp {NOT_A_DATE}"),
        (7, "not 6 columns"),
    ]
    events, targets = read_dataset(tmp_path / "d")
    unnamed_track = text_id(f"Deep Dish\t{TITLE}")
    times = [
        int(datetime.datetime.fromisoformat(f"2009-05-{when}+00:00").timestamp()) * 1_000
        for when in ("04T13:54:10", "04T23:08:57", "04T23:08:57", "06T10:00:00")
    ]
    assert [(row["user_id"], row["item_id"], row["timestamp"]) for row in events] == [
        (1, text_id(TRACK_MBID), times[0]),
        (1, unnamed_track, times[1]),
        (639, unnamed_track, times[2]),
        (639, text_id(TRACK_MBID), times[3]),
    ]
    dataset = Dataset.open(tmp_path / "d")
    assert {row["item_id"]: row["artist_id"] for row in dataset.items().to_pylist()} == {
        text_id(TRACK_MBID): text_id("坂本龍一"),
        unnamed_track: text_id(ARTIST_MBID),
    }
    assert dataset.users().to_pylist() == [
        {
            "user_id": 1,
            "gender": "m",
            "age": None,
            "country": "Japan",
            "signup_year": 2006,
        },
        {
            "user_id": 639,
            "gender": None,
            "age": 26,
            "country": None,
            "signup_year": 2005,
        },
        {
            "user_id": 777,
            "gender": "f",
            "age": 30,
            "country": "Peru",
            "signup_year": None,
        },
    ]
    texts = {}
    for name in ("items", "artists"):
        table = pq.read_table(tmp_path / "d" / "ids" / f"{name}.parquet")
        texts[name] = {row["id"]: row["text"] for row in table.to_pylist()}
    assert texts["items"][text_id(TRACK_MBID)] == TRACK_MBID
    assert texts["artists"] == {
        text_id(ARTIST_MBID): ARTIST_MBID,
        text_id("坂本龍一"): "坂本龍一",
    }
    assert report.num_requests == 4
    assert {(row["user_id"], row["label"]) for row in targets} >= {
        (1, 1),
        (639, 1),
        (639, 0),
    }
    again = import_lastfm(
        source,
        tmp_path / "again",
        negatives=NegativeSampling(1, keep_new=True),
        options=LENIENT,
    )
    assert Dataset.open(tmp_path / "again").facts["content_hash"] == dataset.facts["content_hash"]
    assert again.num_users == 2
