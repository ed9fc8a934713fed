"""20 M events of 2,000 users: timelines built and 20,000 requests cut, against DuckDB's list() and
Feast Array features, in one run.

    longrec bench timelines
    longrec bench timelines --users 200 --requests 2000

Every way is a process of its own, so that its peak memory is its own, and reads the same dataset
(Parquet, sorted). `build` packs one row
per user, `retrieve` reads them through Feast and cuts all requests; what lies between, publishing,
is measured too. `list() of users` is
the build's counterpart; `list() of requests` and `Array features` make one list per request, as a
training table of Feast would hold it,
for a sample of the requests; their ratio is per request.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

REPO = Path(__file__).parents[2] / "feature_repo"
SAMPLE = 1_000
"""Requests that the ways with one list per request are given; all of them would not fit into
memory.
"""
LISTS = (
    "list(item_id order by timestamp, event_seq) items, list(epoch_ms(timestamp) order by timestamp, event_seq) times, "
    "list(event_seq order by timestamp, event_seq) seqs, list(action order by timestamp, event_seq) actions"
)


def build(folder: Path) -> int:
    """Builds the feature tables: one packed timeline per user."""
    from longrec.config import DataConfig
    from longrec.data import features

    return features.build(folder / "data", folder / "tables", DataConfig(shard_users=500)).num_users


def publish(folder: Path) -> int:
    """Publishes them to SQLite."""
    from longrec.data.store.publish import publish

    return publish(folder / "tables", folder / "home", REPO).num_users


def retrieve(folder: Path) -> int:
    """Reads the timelines through Feast, and cuts every request."""
    from longrec.config import DataConfig
    from longrec.data.store.retrieve import retrieve

    return retrieve(
        folder / "data", folder / "home", REPO, folder / "histories", DataConfig(shard_users=500), 0
    ).num_requests


def lists_of_users(folder: Path) -> int:
    """DuckDB: one list per user and column, written to Parquet."""
    with _duckdb(folder) as connection:
        connection.execute(
            f"copy (select user_id, {LISTS} from events group by user_id) to '{folder}/lists.parquet'"
        )
        return int(
            connection.execute(f"select count(*) from '{folder}/lists.parquet'").fetchone()[0]
        )


def lists_of_requests(folder: Path) -> int:
    """DuckDB: one list per request and column, of the events before its moment."""
    with _duckdb(folder) as connection:
        connection.execute(
            f"copy (select request_id, {LISTS.replace('timestamp', 'e.timestamp')} from requests r join events e "
            f"on e.user_id = r.user_id and e.timestamp < r.moment group by request_id) to '{folder}/cuts.parquet'"
        )
        return int(
            connection.execute(f"select count(*) from '{folder}/cuts.parquet'").fetchone()[0]
        )


def arrays(folder: Path) -> int:
    """Feast: Array features of a user, retrieved for each request (DuckDB offline store, Arrow)."""
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource
    from feast.repo_config import RepoConfig
    from feast.types import Array, Int64, String
    from feast.value_type import ValueType

    user = Entity(
        name="user",
        join_keys=["user_id"],
        value_type=ValueType.INT64,
    )
    source = FileSource(path=str(folder / "arrays.parquet"), timestamp_field="event_timestamp")
    fields = [
        Field(name=name, dtype=Array(String if name == "actions" else Int64))
        for name in ("items", "times", "seqs", "actions")
    ]
    config = RepoConfig(
        project="arrays",
        provider="local",
        registry=str(folder / "arrays.db"),
        offline_store={"type": "duckdb"},
        online_store={"type": "sqlite", "path": str(folder / "arrays-online.db")},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    store.apply(
        [
            user,
            FeatureView(
                name="lists",
                entities=[user],
                schema=[Field(name="user_id", dtype=Int64), *fields],
                source=source,
            ),
        ]
    )
    with _duckdb(folder) as connection:
        rows = connection.execute("select user_id, moment as event_timestamp from requests").df()
    rows["event_timestamp"] = pd.Timestamp.now(tz="UTC")
    return int(
        store.get_historical_features(
            entity_df=rows, features=[f"lists:{field.name}" for field in fields]
        )
        .to_arrow()
        .num_rows
    )


@contextlib.contextmanager
def _duckdb(folder: Path) -> Any:
    import duckdb

    with duckdb.connect(
        config={"threads": 2, "memory_limit": "8GB", "temp_directory": str(folder / "spill")}
    ) as connection:
        connection.execute(f"create view events as select * from '{folder}/data/events/*.parquet'")
        connection.execute(
            f"create view requests as select request_id, any_value(user_id) user_id, any_value(timestamp) moment "
            f"from '{folder}/data/targets/*.parquet' group by 1 order by hash(request_id) limit {SAMPLE}"
        )
        yield connection


def _arrays_source(folder: Path) -> None:
    with _duckdb(folder) as connection:
        connection.execute(
            f"copy (select *, timestamptz '2020-01-01' event_timestamp from '{folder}/lists.parquet') "
            f"to '{folder}/arrays.parquet'"
        )


WAYS: dict[str, Callable[[Path], int]] = {
    "build": build,
    "list() of users": lists_of_users,
    "publish": publish,
    "retrieve": retrieve,
    "list() of requests": lists_of_requests,
    "Array features": arrays,
}


def child(way: str, folder: Path) -> None:
    """Runs one way, and prints what it cost as one JSON object."""
    if way == "Array features":
        _arrays_source(folder)
    with contextlib.suppress(ImportError):
        import feast  # noqa: F401  (its import takes seconds, of every way)
    started, printed = time.monotonic(), io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("ignore")
        count = WAYS[way](folder)
    print(
        json.dumps(
            {"count": count, "seconds": time.monotonic() - started, "peak_mib": _peak_mib()}
        ),
        flush=True,
    )


def measure(way: str, folder: Path) -> dict[str, float]:
    """Returns the costs of one way."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", way, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{way:<20} {found['count']:>7} rows {found['seconds']:7.2f} s, peak {found['peak_mib']:,.0f} MiB",
        flush=True,
    )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    raw = list(sys.argv[1:] if arguments is None else arguments)
    if raw[:1] == ["--child"]:
        child(raw[1], Path(raw[2]))
        return 0
    parser = argparse.ArgumentParser(
        prog="longrec bench timelines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument(
        "--events",
        type=int,
        default=10_000,
        help="of each user",
    )
    parser.add_argument("--requests", type=int, default=20_000)
    options = parser.parse_args(raw)
    import _log

    with tempfile.TemporaryDirectory(prefix="longrec-timelines-") as name:
        folder = Path(name)
        _log.write(
            folder / "data", options.users, options.events, options.requests // options.users
        )
        found = {way: measure(way, folder) for way in WAYS}
    _record(options.users, options.events, options.requests, found)
    return 0


def _record(
    users: int,
    events: int,
    requests: int,
    found: dict[str, dict[str, float]],
) -> None:
    import _rows

    ours = found["retrieve"]["seconds"] / requests
    whole = found["build"]["seconds"] + found["retrieve"]["seconds"]
    for way, cost in found.items():
        notes = f"peak {cost['peak_mib']:,.0f} MiB"
        if way == "list() of users":
            notes += f"; {cost['seconds'] / found['build']['seconds']:.2f}x the time of build"
        elif way in ("list() of requests", "Array features"):
            notes += f"; {cost['count']:,.0f} requests, {cost['seconds'] / cost['count'] / ours:.0f}x the time of retrieve per request"
        elif way == "retrieve":
            notes += f"; with build {whole:.1f} s"
        print(f"{way}: {notes}")
        seconds = cost["seconds"] * 1e3
        _rows.append(
            [
                _rows.row(
                    f"timelines, {way}",
                    f"{users} users, {users * events} events, {requests} requests",
                    "",
                    (seconds, seconds, seconds),
                    num_bytes=cost["peak_mib"] * 2**20,
                    notes=notes,
                )
            ]
        )


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10


if __name__ == "__main__":
    sys.exit(main())
