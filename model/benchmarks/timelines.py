"""Build timelines and cut requests, against DuckDB's list() and Feast's Array features.

    longrec bench timelines
    longrec bench timelines --users 200 --requests 2000

By default 20 M events of 2,000 users and 20,000 requests. Every method is a process of its own, so
its peak memory is its own. All read the same dataset (Parquet, sorted).

`build` packs one row per user. `retrieve` reads them through Feast and cuts all requests. `publish`
lies between and is measured too. `list() of users` is the counterpart of `build`. `list() of
requests` and `Array features` make one list per request, as a training table of Feast would hold
it, for a sample of the requests; their ratio is per request.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import equal_users, memory, results

REPO_DIR = Path(__file__).parents[2] / "feature_repo"
USERS_PER_GROUP = 500
NUM_SAMPLED_REQUESTS = 1_000
"""Requests of the methods with one list per request; all of them would not fit into memory."""
BYTES_PER_MIB = 2**20
LIST_COLUMNS = {
    "items": "item_id",
    "times": "epoch_ms({prefix}timestamp)",
    "seqs": "event_seq",
    "actions": "action",
}
LISTS_NAME = "list() of users"
REQUEST_LISTS_NAME = "list() of requests"
ARRAYS_NAME = "Array features"
Costs = dict[str, float]


def build(folder: Path) -> int:
    """Build the feature tables: one packed timeline per user."""
    from longrec.config import DataConfig
    from longrec.data import features

    config = DataConfig(shard_users=USERS_PER_GROUP)
    return features.build_features(folder / "data", folder / "tables", config).num_users


def publish(folder: Path) -> int:
    """Publish the feature tables to SQLite."""
    from longrec.data.store.publish import publish as publish_tables

    return publish_tables(folder / "tables", folder / "workdir", REPO_DIR).num_users


def retrieve(folder: Path) -> int:
    """Read the timelines through Feast and cut every request."""
    from longrec.config import DataConfig
    from longrec.data.store.retrieve import retrieve as retrieve_histories

    config = DataConfig(shard_users=USERS_PER_GROUP)
    report = retrieve_histories(
        folder / "data", folder / "workdir", REPO_DIR, folder / "histories", config, 0
    )
    return report.num_requests


def lists_of_users(folder: Path) -> int:
    """Write one list per user and column with DuckDB."""
    out = folder / "lists.parquet"
    query = f"select user_id, {_lists()} from events group by user_id"
    return _copy_and_count(folder, query, out)


def lists_of_requests(folder: Path) -> int:
    """Write one list per request and column, of the events before its time, with DuckDB."""
    out = folder / "cuts.parquet"
    query = (
        f"select request_id, {_lists('e.')} from requests r "
        "join events e on e.user_id = r.user_id and e.timestamp < r.request_time "
        "group by request_id"
    )
    return _copy_and_count(folder, query, out)


def _lists(prefix: str = "") -> str:
    """Return the SQL of one sorted list per column."""
    order = f"order by {prefix}timestamp, event_seq"
    lists = [
        f"list({column.format(prefix=prefix)} {order}) {name}"
        for name, column in LIST_COLUMNS.items()
    ]
    return ", ".join(lists)


def _copy_and_count(folder: Path, query: str, out: Path) -> int:
    with _duckdb(folder) as connection:
        connection.execute(f"copy ({query}) to '{out}'")
        (count,) = connection.execute(f"select count(*) from '{out}'").fetchone()
        return int(count)


def arrays(folder: Path) -> int:
    """Retrieve Array features of a user for each request with Feast (DuckDB offline store)."""
    import pandas as pd

    store, names = _array_store(folder)
    with _duckdb(folder) as connection:
        rows = connection.execute("select user_id from requests").df()
    rows["event_timestamp"] = pd.Timestamp.now(tz="UTC")
    references = [f"lists:{name}" for name in names]
    job = store.get_historical_features(entity_df=rows, features=references)
    return int(job.to_arrow().num_rows)


def _array_store(folder: Path) -> tuple[Any, list[str]]:
    """Return a Feast store with one view of lists, and the names of its features."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource
    from feast.repo_config import RepoConfig
    from feast.types import Array, Int64, String
    from feast.value_type import ValueType

    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    source = FileSource(path=str(folder / "arrays.parquet"), timestamp_field="event_timestamp")
    fields = [
        Field(name=name, dtype=Array(String if name == "actions" else Int64))
        for name in LIST_COLUMNS
    ]
    schema = [Field(name="user_id", dtype=Int64), *fields]
    view = FeatureView(name="lists", entities=[user], schema=schema, source=source)
    config = RepoConfig(
        project="arrays",
        provider="local",
        registry=str(folder / "arrays.db"),
        offline_store={"type": "duckdb"},
        online_store={"type": "sqlite", "path": str(folder / "arrays-online.db")},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    store.apply([user, view])
    return store, list(LIST_COLUMNS)


def _write_array_source(folder: Path) -> None:
    with _duckdb(folder) as connection:
        query = f"select *, timestamptz '2020-01-01' event_timestamp from '{folder}/lists.parquet'"
        connection.execute(f"copy ({query}) to '{folder}/arrays.parquet'")


@contextlib.contextmanager
def _duckdb(folder: Path) -> Iterator[Any]:
    """Yield a connection with the views `events` and `requests` (a sample)."""
    import duckdb

    settings = {"threads": 2, "memory_limit": "8GB", "temp_directory": str(folder / "spill")}
    with duckdb.connect(config=settings) as connection:
        connection.execute(f"create view events as select * from '{folder}/data/events/*.parquet'")
        connection.execute(
            "create view requests as "
            "select request_id, any_value(user_id) user_id, any_value(timestamp) request_time "
            f"from '{folder}/data/targets/*.parquet' "
            f"group by 1 order by hash(request_id) limit {NUM_SAMPLED_REQUESTS}"
        )
        yield connection


METHODS: dict[str, Callable[[Path], int]] = {
    "build": build,
    LISTS_NAME: lists_of_users,
    "publish": publish,
    "retrieve": retrieve,
    REQUEST_LISTS_NAME: lists_of_requests,
    ARRAYS_NAME: arrays,
}


def run_method(name: str, folder: Path) -> None:
    """Run one method and print its costs as one JSON object; runs in a process of its own."""
    if name == ARRAYS_NAME:
        _write_array_source(folder)
    with contextlib.suppress(ImportError):
        # Every method pays for this import, which takes seconds, before its time starts.
        import feast  # noqa: F401
    started = time.monotonic()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        count = METHODS[name](folder)
    seconds = time.monotonic() - started
    costs = {"count": count, "seconds": seconds, "peak_mib": memory.peak_mib()}
    print(json.dumps(costs), flush=True)


def measure(name: str, folder: Path) -> Costs:
    """Return the costs of one method."""
    command = [sys.executable, __file__, "--child", name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    costs: Costs = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{name:<20} {costs['count']:>7} rows {costs['seconds']:7.2f} s, "
        f"peak {costs['peak_mib']:,.0f} MiB",
        flush=True,
    )
    return costs


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every method and append its rows to results.csv."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--child"]:
        run_method(words[1], Path(words[2]))
        return 0
    parser = argparse.ArgumentParser(
        prog="longrec bench timelines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--events", type=int, default=10_000, help="of each user")
    parser.add_argument("--requests", type=int, default=20_000)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="longrec-timelines-") as name:
        folder = Path(name)
        requests_per_user = options.requests // options.users
        equal_users.write_dataset(folder / "data", options.users, options.events, requests_per_user)
        costs = {method: measure(method, folder) for method in METHODS}
    for method in METHODS:
        measured = _row(method, costs, options)
        print(f"{method}: {measured['notes']}")
        results.append([measured])
    return 0


def _row(method: str, costs: dict[str, Costs], options: argparse.Namespace) -> results.Row:
    seconds = costs[method]["seconds"]
    peak = costs[method]["peak_mib"]
    milliseconds = seconds * 1e3
    num_events = options.users * options.events
    return results.row(
        f"timelines, {method}",
        f"{options.users} users, {num_events} events, {options.requests} requests",
        "",
        (milliseconds, milliseconds, milliseconds),
        num_bytes=peak * BYTES_PER_MIB,
        notes=f"peak {peak:,.0f} MiB{_comparison(method, costs, options.requests)}",
    )


def _comparison(method: str, costs: dict[str, Costs], num_requests: int) -> str:
    seconds = costs[method]["seconds"]
    count = costs[method]["count"]
    build_seconds = costs["build"]["seconds"]
    retrieve_seconds = costs["retrieve"]["seconds"]
    if method == LISTS_NAME:
        return f"; {seconds / build_seconds:.2f}x the time of build"
    if method in (REQUEST_LISTS_NAME, ARRAYS_NAME):
        ratio = seconds / count / (retrieve_seconds / num_requests)
        return f"; {count:,.0f} requests, {ratio:.0f}x the time of retrieve per request"
    if method == "retrieve":
        return f"; with build {build_seconds + retrieve_seconds:.1f} s"
    return ""


if __name__ == "__main__":
    sys.exit(main())
