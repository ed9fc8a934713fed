"""Location: directories in place, other addresses through their store, errors in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from longrec.data import location
from longrec.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "a place %20é"
    (place / "events").mkdir(parents=True)
    (place / "dataset.json").write_text('{"name": "x"}')
    (place / "events" / "part-00000.parquet").write_bytes(b"1234")
    return place


@pytest.mark.parametrize("address", [str, Path.as_uri])
def test_a_directory_is_used_in_place(folder: Path, address: Callable[[Path], str]) -> None:
    with location.local_directory(address(folder)) as opened:
        assert opened == folder
    assert folder.is_dir()
    assert location.read_json(address(folder), "dataset.json") == {"name": "x"}


def test_the_fingerprint_is_of_the_content_and_the_names(folder: Path, tmp_path: Path) -> None:
    before = location.fingerprint(str(folder))
    os.utime(folder / "dataset.json", (1, 1))
    folder = folder.rename(tmp_path / "moved")
    assert location.fingerprint(str(folder)) == before == location.fingerprint(f"file://{folder}")
    (folder / "events" / "part-00000.parquet").write_bytes(b"1235")
    changed = location.fingerprint(str(folder))
    (folder / "events" / "part-00000.parquet").rename(folder / "events" / "part-00001.parquet")
    assert len({before, changed, location.fingerprint(str(folder))}) == 3


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/absent/place", "there is no dataset at /absent/place"),
        ("ftp://host/place", "ftp://host/place cannot be read"),
    ],
)
def test_a_missing_dataset_is_one_line(uri: str, message: str) -> None:
    for call in (location.fingerprint, lambda uri: location.local_directory(uri).__enter__()):
        with pytest.raises(DataError, match=message) as caught:
            call(uri)
        assert "\n" not in str(caught.value)


def test_an_unreachable_store_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        DataError, match=r"s3://bucket/place cannot be read; found .*AWS_ENDPOINT_URL"
    ) as caught:
        location.fingerprint("s3://bucket/place")
    assert "\n" not in str(caught.value)
