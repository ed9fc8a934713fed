"""Read a 10,000-event history online through Feast, and from the raw store, in turns.

    longrec bench online_read                      SQLite, and Redis if redis-server is installed
    longrec bench online_read --events 1000 --reads 5000

Raw is one statement for the one value (SQLite: SELECT by key; Redis: HGET). `OnlineStore.fetch`
reads base, tail and user features, checks the checksum, decodes, merges and cuts.
`get_online_features` is Feast's own call for the same features, undecoded. Everything runs in one
process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness import equal_users, results
from harness.redis_server import RedisServer
from longrec.config import DataConfig
from longrec.data import features
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import OVERLAY_VARIABLE, publish

REPO_DIR = Path(__file__).parents[2] / "feature_repo"
NUM_USERS = 200
NUM_WARM_READS = 50
KEY_VERSION = 3
"""Feast's entity_key_serialization_version."""
Read = Callable[[int], Any]


def raw_sqlite(online: OnlineStore) -> Read:
    """Return the read of one packed history by SQLite itself."""
    from feast.infra.key_encoding_utils import serialize_entity_key

    feast = online._adapter.feast
    path = Path(feast.config.repo_path) / feast.config.online_store.path
    keys = [
        serialize_entity_key(_entity_key(user), entity_key_serialization_version=KEY_VERSION)
        for user in range(NUM_USERS)
    ]
    connection = sqlite3.connect(path)
    query = (
        f'SELECT value FROM "{feast.project}_user_history" '
        "WHERE entity_key = ? AND feature_name = 'history'"
    )
    return lambda user: connection.execute(query, (keys[user],)).fetchone()[0]


def raw_redis(online: OnlineStore) -> Read:
    """Return the read of one packed history by Redis itself."""
    import redis
    from feast.infra.online_stores.helpers import _mmh3, _redis_key

    feast = online._adapter.feast
    host, _, port = os.environ["LONGREC_REDIS"].partition(":")
    client = redis.Redis(host, int(port))
    keys = [
        _redis_key(feast.project, _entity_key(user), entity_key_serialization_version=KEY_VERSION)
        for user in range(NUM_USERS)
    ]
    field = _mmh3("user_history:history")
    assert client.hget(keys[0], field), "the key is not Feast's"
    return lambda user: client.hget(keys[user], field)


def _entity_key(user: int) -> Any:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    return EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=user)])


RAW_READS = {"sqlite": raw_sqlite, "redis": raw_redis}


def measure(store: str, folder: Path, options: argparse.Namespace) -> None:
    """Publish the tables of a folder to a store, and append its rows to results.csv."""
    publish(folder / "tables", folder / store, REPO_DIR)
    online = OnlineStore(folder / store)
    adapter = online._adapter
    reads: dict[str, Read] = {
        "raw": RAW_READS[store](online),
        "fetch": lambda user: online.fetch([user], max_history=options.events),
        "get_online_features": lambda user: adapter.feast.get_online_features(
            features=adapter._current_references, entity_rows=[{"user_id": user}]
        ),
    }
    for user in range(3):
        assert online.fetch([user])[0].history.num_rows == options.events
    num_bytes = len(reads["raw"](0))
    times = read_in_turns(reads, options.reads)
    for way, milliseconds in times.items():
        comparison = _compare(milliseconds, times["raw"])
        notes = f"{comparison}; {options.reads} reads of {NUM_USERS} users in turns"
        p20, p50, p80 = np.quantile(milliseconds, [0.2, 0.5, 0.8]).tolist()
        print(f"{store:<7} {way:<20} p50 {p50:.3f} ms  {notes}", flush=True)
        measured = results.row(
            f"online read, {store}, {way}",
            f"L{options.events}",
            "",
            (p20, p50, p80),
            num_bytes=num_bytes,
            notes=notes,
        )
        results.append([measured])


def _compare(milliseconds: list[float], raw: list[float]) -> str:
    ratio = statistics.median(milliseconds) / statistics.median(raw)
    p99 = float(np.quantile(milliseconds, 0.99))
    raw_p99 = float(np.quantile(raw, 0.99))
    return f"p99 {p99:.3f} ms; {ratio:.2f}x of raw at p50, {p99 / raw_p99:.2f}x at p99"


def read_in_turns(reads: dict[str, Read], count: int) -> dict[str, list[float]]:
    """Return the times of each read in ms.

    Every read takes the same user before the next user comes, in an order that rotates.
    """
    times: dict[str, list[float]] = {way: [] for way in reads}
    names = list(reads)
    rng = np.random.default_rng(0)
    users = rng.integers(0, NUM_USERS, count + NUM_WARM_READS).tolist()
    for turn, user in enumerate(users):
        for place in range(len(names)):
            way = names[(turn + place) % len(names)]
            started = time.perf_counter()
            reads[way](user)
            times[way].append((time.perf_counter() - started) * 1e3)
    return {way: milliseconds[NUM_WARM_READS:] for way, milliseconds in times.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure SQLite, and Redis if it is installed."""
    parser = argparse.ArgumentParser(
        prog="longrec bench online_read",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--reads", type=int, default=2_000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="longrec-online-") as name:
        folder = Path(name)
        equal_users.write_dataset(folder / "data", NUM_USERS, options.events, 1)
        features.build_features(folder / "data", folder / "tables", DataConfig())
        measure("sqlite", folder, options)
        if shutil.which("redis-server"):
            redis = RedisServer(folder / "redis-data")
            os.environ |= {"LONGREC_REDIS": redis.address, OVERLAY_VARIABLE: "redis"}
            measure("redis", folder, options)
            redis.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
