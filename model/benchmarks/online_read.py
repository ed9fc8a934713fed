"""Online read of a 10,000-event history through Feast, beside the raw store's own read of the same
bytes, in turns, in one process.

    longrec bench online_read                      SQLite, and Redis where redis-server is installed
    longrec bench online_read --events 1000 --reads 5000

Raw is one statement for the one value (SQLite: SELECT by key; Redis: HGET); `OnlineStore.fetch`
reads base, tail and user features, checks
the checksum, decodes, merges and cuts. `get_online_features` is Feast's own call for the same
features, undecoded.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import _log
import _rows

from longrec.config import DataConfig
from longrec.data import features
from longrec.data.store.publish import OVERLAY, publish
from longrec.data.store.reader import OnlineStore

REPO = Path(__file__).parents[2] / "feature_repo"
USERS = 200
Read = Callable[[int], Any]


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Yields host:port of a Redis without persistence."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        "redis-server",
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(folder),
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        time.sleep(1)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def raw_sqlite(online: OnlineStore) -> Read:
    """Returns the read of one packed history by SQLite itself."""
    from feast.infra.key_encoding_utils import serialize_entity_key

    feast = online._door.feast
    path = Path(feast.config.repo_path) / feast.config.online_store.path
    keys = [
        serialize_entity_key(_key(user), entity_key_serialization_version=3)
        for user in range(USERS)
    ]
    connection = sqlite3.connect(path)
    query = f'SELECT value FROM "{feast.project}_user_history" WHERE entity_key = ? AND feature_name = ?'
    return lambda user: connection.execute(query, (keys[user], "history")).fetchone()[0]


def raw_redis(online: OnlineStore) -> Read:
    """Returns the read of one packed history by Redis itself."""
    import redis
    from feast.infra.online_stores.helpers import _mmh3, _redis_key

    feast = online._door.feast
    host, _, port = os.environ["LONGREC_REDIS"].partition(":")
    client = redis.Redis(host, int(port))
    keys = [
        _redis_key(feast.project, _key(user), entity_key_serialization_version=3)
        for user in range(USERS)
    ]
    field = _mmh3("user_history:history")
    assert client.hget(keys[0], field), "the key is not Feast's"
    return lambda user: client.hget(keys[user], field)


def _key(user: int) -> Any:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    return EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=user)])


def measure(
    name: str,
    tables: Path,
    folder: Path,
    events: int,
    reads: int,
) -> None:
    """Publishes to a store and adds its rows to results.csv."""
    publish(tables, folder / name, REPO)
    online = OnlineStore(folder / name)
    raw = {"sqlite": raw_sqlite, "redis": raw_redis}[name](online)
    door = online._door
    ways: dict[str, Read] = {
        "raw": raw,
        "fetch": lambda user: online.fetch([user], max_history=events),
        "get_online_features": lambda user: door.feast.get_online_features(
            features=door._references, entity_rows=[{"user_id": user}]
        ),
    }
    assert all(online.fetch([user])[0].history.num_rows == events for user in range(3))
    num_bytes = len(raw(0))
    times = in_turns(ways, reads)
    for way, found in times.items():
        ratio = statistics.median(found) / statistics.median(times["raw"])
        p99 = [float(np.quantile(values, 0.99)) for values in (found, times["raw"])]
        notes = f"p99 {p99[0]:.3f} ms; {ratio:.2f}x of raw at p50, {p99[0] / p99[1]:.2f}x at p99; {reads} reads of {USERS} users in turns"
        print(f"{name:<7} {way:<20} p50 {statistics.median(found):.3f} ms  {notes}", flush=True)
        p20, p50, p80 = np.quantile(found, [0.2, 0.5, 0.8]).tolist()
        _rows.append(
            [
                _rows.row(
                    f"online read, {name}, {way}",
                    f"L{events}",
                    "",
                    (p20, p50, p80),
                    num_bytes=num_bytes,
                    notes=notes,
                )
            ]
        )


def in_turns(ways: dict[str, Read], reads: int) -> dict[str, list[float]]:
    """Returns the times of each way, ms; every way reads the same user before the next user comes,
    in an order that rotates.
    """
    times: dict[str, list[float]] = {way: [] for way in ways}
    names, users = list(ways), np.random.default_rng(0).integers(0, USERS, reads + 50).tolist()
    for turn, user in enumerate(users):
        for place in range(len(names)):
            way = names[(turn + place) % len(names)]
            started = time.perf_counter()
            ways[way](user)
            times[way].append((time.perf_counter() - started) * 1e3)
    return {way: found[50:] for way, found in times.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
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
        _log.write(folder / "data", USERS, options.events, 1)
        features.build(folder / "data", folder / "tables", DataConfig())
        measure("sqlite", folder / "tables", folder, options.events, options.reads)
        if shutil.which("redis-server"):
            with redis_server(folder) as address:
                os.environ |= {"LONGREC_REDIS": address, OVERLAY: "redis"}
                measure("redis", folder / "tables", folder, options.events, options.reads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
