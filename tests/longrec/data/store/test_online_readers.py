"""Online readers: one query for all views equals Feast's reading, and Redis is shared safely."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longrec.data.files import read_json
from longrec.data.store import push as pushing
from longrec.data.store.feast_adapter import FeastAdapter, ViewByViewReader, _parse_value
from longrec.data.store.publish import redis_project
from longrec.data.store.push import push
from longrec.errors import DataError, StoreError
from tests.longrec.data import redis_server
from tests.longrec.data.random_log import HUGE, NOBODY, live
from tests.longrec.data.store.published_log import PublishedLog, make

NEW_USER = 77_777
MIN_ID = -(2**63)
MAX_ID = 2**63 - 1


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server.running(tmp_path_factory.mktemp("redis")) as address:
        yield address


@pytest.fixture(params=["sqlite", "redis"])
def log(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> PublishedLog:
    address = None
    if request.param == "redis":
        address = request.getfixturevalue("redis")
    return make(tmp_path, monkeypatch, address)


def test_one_query_for_all_views_equals_reading_view_by_view(
    log: PublishedLog,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pushing, "MAX_TAIL_EVENTS", 4)
    rng = np.random.default_rng(4)
    push(log.workdir, None, live(rng, 30, [0, 1, 2, NEW_USER]))  # some tails are compacted
    push(log.workdir, None, live(rng, 3, [3], seq=200_000))
    users = [0, 1, 2, 3, 4, 3, *range(5, 19), HUGE, NEW_USER, NOBODY, -1, MAX_ID, MIN_ID]
    adapter = log.online()._adapter
    reference = ViewByViewReader(adapter.feast, views_of(adapter))
    expected = reference(users)
    found = adapter.read_online(users)
    assert found == expected
    assert types_of(found) == types_of(expected)
    assert [adapter.read_online([user])[0] for user in users] == expected
    assert sum(row["history_tail"] is not None for row in found) > 3
    assert any(row["city"] for row in found)


def views_of(adapter: FeastAdapter) -> list[tuple[Any, list[str]]]:
    """Return the views of the service and their features."""
    views = []
    for projection in adapter.service.feature_view_projections:
        names = [feature.name for feature in projection.features]
        view = adapter.feast.get_feature_view(projection.name)
        views.append((view, names))
    return views


def types_of(rows: list[dict[str, Any]]) -> list[dict[str, type]]:
    return [{name: type(value) for name, value in row.items()} for row in rows]


def test_two_versions_share_one_redis_and_a_removed_one_leaves_no_key(
    redis: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = make(tmp_path, monkeypatch, redis)
    online = log.online()
    versions = []
    for _ in range(3):
        current = log.workdir / "store" / "current"
        versions.append(current.resolve())
        log.publish_again()
    num_keys = [num_redis_keys(redis, version) for version in versions]
    assert num_keys[:2] == [0, 0]
    assert num_keys[2] > 10
    [record] = online.fetch([0])
    assert record.history.num_rows > 0


def num_redis_keys(address: str, version: Path) -> int:
    import redis as client_library

    host, port = address.split(":")
    client = client_library.Redis(host, int(port))
    workdir_id = read_json(version.parents[1] / "workdir.json")["id"]
    pattern = b"*" + redis_project(version, workdir_id).encode()
    return len(list(client.scan_iter(pattern)))


def test_a_missing_address_and_an_unreachable_redis_are_refused(
    redis: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = make(tmp_path, monkeypatch, redis)
    monkeypatch.delenv("LONGREC_REDIS")
    message = r"the address of the online store is not set; found .*Set LONGREC_REDIS"
    with pytest.raises(StoreError, match=message):
        log.online()
    monkeypatch.setenv("LONGREC_REDIS", "127.0.0.1:1")
    with pytest.raises(StoreError, match="the online store cannot be read"):
        log.online()


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2**21 - 1, 2**21])
def test_stored_bytes_are_read_without_parsing(size: int) -> None:
    from feast.protos.feast.types.Value_pb2 import Value

    value = np.random.default_rng(size).bytes(size)
    stored = Value(bytes_val=value).SerializeToString()
    assert _parse_value(stored) == value
    if size:  # protobuf refuses an incomplete field
        with pytest.raises(DataError, match="damaged"):
            _parse_value(stored[:-1])
    twice = stored + Value(int64_val=7).SerializeToString()
    assert _parse_value(twice) == 7


def test_no_stored_bytes_are_no_value() -> None:
    assert _parse_value(b"") is None
    assert _parse_value(None) is None
