"""The MovieLens importer on files in the official formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrec.data.dataset import Dataset
from longrec.data.importers import (
    ImportOptions,
    import_movielens,
)
from longrec.errors import DataError
from tests.longrec.data.importers.imported import assert_rows_add_up, read_dataset


def test_dat_files_of_1m(tmp_path: Path) -> None:
    source = tmp_path / "ml-1m"
    source.mkdir()
    (source / "ratings.dat").write_bytes(
        b"1::1193::5::978300760\n1::661::3::978300760\n"
        b"1::914::4::978301760\n2::1193::1::978298413\n"
    )
    (source / "movies.dat").write_bytes(
        "661::Ast\xe9rix: le film (1976)::Animation|Comedy\n914::My Fair Lady (1964)::Musical\n"
        "1193::No Year::Drama\n".encode("latin-1")
    )
    (source / "users.dat").write_bytes(b"1::F::1::10::48067\n2::M::56::16::70072-1234\n")
    report = import_movielens(source, tmp_path / "d")
    assert_rows_add_up(report)
    dataset = Dataset.open(tmp_path / "d")
    assert report.name == "ml-1m"
    assert dataset.event_labels == ("label",)
    assert dataset.items().to_pylist() == [
        {
            "item_id": 661,
            "genre": "Animation",
            "genres": "Animation|Comedy",
            "year": 1976,
        },
        {
            "item_id": 914,
            "genre": "Musical",
            "genres": "Musical",
            "year": 1964,
        },
        {
            "item_id": 1193,
            "genre": "Drama",
            "genres": "Drama",
            "year": None,
        },
    ]
    assert dataset.users().to_pylist()[1] == {
        "user_id": 2,
        "gender": "M",
        "age": 56,
        "occupation": 16,
        "zip": "70072-1234",
    }
    events, targets = read_dataset(tmp_path / "d")
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
def test_csv_files(tmp_path: Path, nested: bool) -> None:
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
        tmp_path / "src",
        tmp_path / "d",
        threshold=4.5,
        options=ImportOptions(max_reject_share=0.5),
    )
    assert_rows_add_up(report)
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.items().to_pylist() == [
        {
            "item_id": 1,
            "genre": "Comedy",
            "genres": "Comedy|Drama",
            "year": 1998,
        },
        {
            "item_id": 2,
            "genre": "Action",
            "genres": "Action",
            "year": 2009,
        },
        {"item_id": 3, "genre": None, "genres": None, "year": None},
    ]
    assert dataset.schema.user == ()
    assert dataset.users()["user_id"].to_pylist() == [1, 7]
    events, _ = read_dataset(tmp_path / "d")
    assert [(row["item_id"], row["label"]) for row in events] == [(3, 1), (1, 0), (1, 0)]
    assert report.rows_rejected == 1
    assert "rating is not from 0.5 to 5" in next(iter(report.reject_reasons))
    with pytest.raises(DataError, match="no MovieLens log"):
        import_movielens(tmp_path / "nowhere", tmp_path / "e")
