"""Check a work directory: its store against its own records, and what nothing refers to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data import files
from longrec.data.columns import EVENT_TIME, HISTORY, HISTORY_LENGTH, TAIL, Int64, int64_column
from longrec.data.store import tail_files
from longrec.data.store.feast_adapter import FeastAdapter
from longrec.data.store.versions import PublishedVersion
from longrec.data.store.workdir import check_workdir, current_version
from longrec.data.upkeep.forget_list import forgotten_users
from longrec.data.upkeep.row_removal import count_rows, removed_from
from longrec.errors import LongrecError
from longrec.release import registry
from longrec.release.model_store import bundle_dir
from longrec.release.request_log import log_files
from longrec.runs.gc import plan_removal
from longrec.schema import USER_ID

MAX_ONLINE_USERS = 10_000
"""Users whose online rows are compared with the files: the first ones by id."""
BATCH_USERS = 500
PUBLISH_AGAIN = "Publish the dataset again: longrec refresh."


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One fault of a work directory.

    Args:
        check: name of the check that found it.
        fault: what is wrong.
        fix: what to do.
    """

    check: str
    fault: str
    fix: str = ""


def examine(workdir: str | Path) -> list[Finding]:
    """Return the faults of a work directory; none if it is sound. Nothing is changed.

    A check that cannot be made, because a file is damaged, is a fault too.
    """
    directory = Path(workdir).resolve()
    found: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            found += [dataclasses.replace(fault, check=name) for fault in check(directory)]
        except (
            LongrecError,
            OSError,
            pa.ArrowException,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:
            kind = type(error).__name__
            first_line, *_ = str(error).splitlines() or [""]
            found.append(Finding(name, f"{kind}: {first_line}"))
    return found


def _check_links(workdir: Path) -> Iterator[Finding]:
    """Compare the links of the store with its folders."""
    check_workdir(workdir)
    name = current_version(workdir)
    if name is None:
        return
    for link in ("store/current", "features", "feast"):
        if not (workdir / link).exists():
            yield Finding("", f"{link} points to nothing", PUBLISH_AGAIN)


def _check_tables(workdir: Path) -> Iterator[Finding]:
    """Compare the feature tables with the hashes and counts of their manifest."""
    published = _published(workdir)
    if published is None:
        return
    tables = published.path / "features"
    removed = removed_from(published.path)
    expected_hashes = {**published.manifest["files"], **removed["files"]}
    for name, expected in expected_hashes.items():
        path = tables / name
        if not path.is_file():
            yield Finding("", f"{path} is missing", PUBLISH_AGAIN)
        elif files.sha256_of(path) != expected:
            yield Finding("", f"{path} was changed after the publish", PUBLISH_AGAIN)
    num_events = 0
    for name in _history_names(published):
        num_events += _num_events(tables / name)
    counts = published.manifest["counts"]
    expected_events = counts["num_events"] - removed["events"]
    if num_events != expected_events:
        fault = f"the histories hold {num_events:,} events, not {expected_events:,}"
        yield Finding("", fault, PUBLISH_AGAIN)


def _check_online(workdir: Path) -> Iterator[Finding]:
    """Compare online histories and tails with the files: published, pushed, compacted ones."""
    published = _published(workdir)
    if published is None:
        return
    if tail_files.is_behind(published.path):
        yield Finding("", "a push is on disk, but not online", "Push again; no event is lost.")
        return
    adapter = FeastAdapter(published)
    adapter.check_online()
    users = _users_of(published)[:MAX_ONLINE_USERS]
    wrong = []
    for start in range(0, len(users), BATCH_USERS):
        batch = users[start : start + BATCH_USERS]
        wrong += _different_users(adapter, batch)
    if wrong:
        examples = ", ".join(map(str, wrong[:3]))
        fault = f"{len(wrong)} users have another history online than in the files: {examples}"
        yield Finding("", fault, PUBLISH_AGAIN)


def _check_forgotten(workdir: Path) -> Iterator[Finding]:
    """Look for forgotten users in the store and in the log of requests."""
    users = forgotten_users(workdir)
    if not len(users):
        return
    tables = (workdir / "features").resolve()
    paths = sorted(tables.rglob("*.parquet"))
    for path in [*paths, *log_files(workdir)]:
        if count_rows(path, users):
            fix = "Forget them again: longrec forget --user ID."
            yield Finding("", f"{path} holds a forgotten user", fix)


def _check_models(workdir: Path) -> Iterator[Finding]:
    """Look for the models of the registry in the BentoML store."""
    from longrec.release.model_store import store_dir

    current = registry.read_registry(workdir)
    for role in ("champion", "previous", "challenger"):
        version = getattr(current, role)
        if version is None:
            continue
        try:
            bundle_dir(store_dir(workdir), version)
        except LongrecError as error:
            yield Finding("", f"the {role} is gone: {error}")


def _check_request_log(workdir: Path) -> Iterator[Finding]:
    """Read the footers of the log of requests."""
    for path in log_files(workdir):
        try:
            pq.ParquetFile(path).close()
        except (OSError, pa.ArrowException) as error:
            yield Finding("", f"{path} cannot be read: {error}", "Delete the file.")


def _check_cache(workdir: Path) -> Iterator[Finding]:
    """Look for the artifacts that cached results refer to."""
    for path in sorted(workdir.glob("cache/*.json")):
        outputs = files.read_json(path)
        for value in outputs.values():
            uri = value.get("uri") if isinstance(value, dict) else None
            if uri and not Path(uri).exists():
                fault = f"{path} refers to {uri}, which is gone"
                yield Finding("", fault, f"rm {path}")
                break


def _check_orphans(workdir: Path) -> Iterator[Finding]:
    """List what nothing refers to: leftovers of killed processes and unused versions."""
    for path in plan_removal(workdir).orphans:
        yield Finding("", f"nothing refers to {path}", "Remove it with: longrec gc")


CHECKS: dict[str, Callable[[Path], Iterator[Finding]]] = {
    "links": _check_links,
    "tables": _check_tables,
    "online": _check_online,
    "forgotten": _check_forgotten,
    "models": _check_models,
    "request log": _check_request_log,
    "cache": _check_cache,
    "orphans": _check_orphans,
}
"""All checks by name."""


def _published(workdir: Path) -> PublishedVersion | None:
    if current_version(workdir) is None:
        return None
    return PublishedVersion.open(workdir)


def _history_names(published: PublishedVersion) -> list[str]:
    names = published.manifest["files"]
    return [name for name in names if name.startswith("user_history/")]


def _num_events(path: Path) -> int:
    rows = pq.ParquetFile(path).read(columns=[HISTORY_LENGTH])
    return int(int64_column(rows, HISTORY_LENGTH).sum())


def _users_of(published: PublishedVersion) -> Int64:
    """Return the users with events, published or pushed, sorted."""
    tables = published.path / "features"
    users = [tail_files.users_with_pushes(published.path)]
    for name in _history_names(published):
        rows = pq.ParquetFile(tables / name).read(columns=[USER_ID])
        users.append(int64_column(rows, USER_ID))
    return np.unique(np.concatenate(users))


def _different_users(adapter: FeastAdapter, users: Int64) -> list[int]:
    """Return the users whose online history or tail differs from the newest one in the files."""
    version = adapter.published.path
    histories = _newest(tail_files.history_directory(version), HISTORY, users)
    tails = _newest(tail_files.tail_directory(version), TAIL, users)
    user_ids = users.tolist()
    different = []
    for user_id, values in zip(user_ids, adapter.read_online(user_ids), strict=True):
        online = (values[HISTORY], values[TAIL])
        if online != (histories.get(user_id), tails.get(user_id)):
            different.append(user_id)
    return different


def _newest(
    directory: Path,
    name: str,
    users: Int64,
) -> dict[int, bytes]:
    """Return the newest packed history of users in the files of a table, by user."""
    rows = pq.read_table(
        directory,
        columns=[USER_ID, EVENT_TIME, name],
        filters=[(USER_ID, "in", users.tolist())],
    )
    newest = tail_files.latest_rows(rows)
    ids = newest[USER_ID].to_pylist()
    payloads = newest[name].to_pylist()
    return dict(zip(ids, payloads, strict=True))
