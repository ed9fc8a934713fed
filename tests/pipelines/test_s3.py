"""A run with a dataset in an object store: moto's S3 server over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from longrec.data import location
from longrec.data.dataset import Dataset
from longrec.data.importers.synthetic import synthesize
from longrec.data.shards import Shard
from tests.pipelines.test_end_to_end import Place

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """Environment variables of an S3 server for the tests; `make tools` installs the server."""
    binary = shutil.which("moto_server", path=f"{ROOT / '.tools' / 'bin'}:{os.environ['PATH']}")
    if binary is None:
        pytest.skip("moto_server is not installed (make tools)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [binary, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(port, server)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
    finally:
        server.terminate()
        server.wait(10)


def _wait(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(1_200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert server.poll() is None, "the server ended"
        time.sleep(0.1)
    raise AssertionError("the server never answered")


@pytest.fixture
def bucket(store: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Address of a small dataset in the store; it is in `tmp_path/dataset` too."""
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    synthesize(tmp_path / "dataset", num_users=40, events_per_user=40, seed=3, rows_per_part=400)
    _put("logs", b"")
    for path, content in _content(tmp_path / "dataset").items():
        _put(f"logs/day-1/{path}", content)
    return "s3://logs/day-1"


def _put(key: str, content: bytes) -> None:
    """Write an object or create a bucket over HTTP.

    Arrow's writer and moto disagree about the end of an upload.
    """
    credential = "Credential=key/20260101/us-east-1/s3/aws4_request"
    signed = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=0"
    headers = {"Content-Type": "binary/octet-stream", "Authorization": signed}
    request = urllib.request.Request(
        f"{os.environ['AWS_ENDPOINT_URL']}/{key}", content, headers, method="PUT"
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200


def _content(folder: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_dataset_is_copied_whole_and_told_by_size_and_time(bucket: str, tmp_path: Path) -> None:
    before = location.fingerprint(bucket)
    with location.local_directory(bucket) as copy:
        found = _content(copy)
    assert found == _content(tmp_path / "dataset")
    assert len(found) >= 5
    assert not copy.exists()
    assert location.fingerprint(bucket) == before
    time.sleep(1.1)  # S3 tells seconds
    _put("logs/day-1/dataset.json", (tmp_path / "dataset" / "dataset.json").read_bytes())
    assert location.fingerprint(bucket) != before


def test_of_a_shard_only_its_parts_are_copied(bucket: str, tmp_path: Path) -> None:
    with location.local_directory(bucket, Shard(1, 3)) as copy:
        found = _content(copy)
        assert Dataset.open(copy, Shard(1, 3)).num_parts == 3
    expected = _content(tmp_path / "dataset")
    assert found == {
        path: content
        for path, content in expected.items()
        if path.name not in ("part-00000.parquet", "part-00002.parquet")
    }


def test_a_run_reads_its_dataset_from_the_store(bucket: str, tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.environment.pop("LONGREC_WEBHOOK")
    refuse = ("--set", "gate.min_auc=0.999")
    answer = place.run("--data", bucket, *refuse)
    assert answer.returncode == 3, answer.stderr
    summary = place.summary()
    assert summary["dataset"]["path"] == bucket
    assert summary["metrics"]["label"]["auc"] > 0
    assert place.run("--data", bucket, *refuse).returncode == 3
    assert place.executed() == ["publish"]
    missing = place.run("--data", "s3://logs/day-2")
    assert missing.returncode == 1
    assert "there is no dataset at s3://logs/day-2" in missing.stderr
    assert (
        json.loads((tmp_path / "dataset" / "dataset.json").read_text())["facts"]
        == summary["dataset"]["facts"]
    )
