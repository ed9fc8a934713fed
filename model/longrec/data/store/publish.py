"""Feature tables into a new version: copied, applied, materialized, read back, pushed events
carried over; then the work directory points to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import hashlib
import io
import logging
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data import dataset as layout
from longrec.data import features, files, history
from longrec.data.store import live_events, tails
from longrec.data.store.feast_adapter import Door, declarations, feast_errors, open_feast
from longrec.data.store.push import PUSH_USERS, add_events, keep_the_stored, tail_rows
from longrec.data.store.versions import (
    PUBLISH_FIRST,
    Published,
    current_version,
    digest_before,
    locked,
    switch,
)
from longrec.errors import DataError, StoreError
from longrec.schema import USER_ID, Schema

logger = logging.getLogger(__name__)

DEFAULT_HOME = "../.longrec"
"""The work directory that feature_store.yaml names; paths below it are moved to the work directory in use."""
SLICE_BYTES = 256 << 20
"""Packed histories that one materialization holds in memory."""
OVERLAY = "LONGREC_FEATURE_OVERLAY"

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class PublishReport:
    """What `publish` made visible.

    Args:
        version: directory of the version.
        fingerprint: of the schema.
        num_users, num_events, num_items: in the feature tables.
        online_slices: materializations that it took.
        num_verified: users read back from the online store and found equal.
        num_carried: pushed events of the version before that the feature tables lack, and that were
            pushed again.
        digest: of the feature tables.
        was_current: whether the work directory pointed to such a version already, and nothing was done.
    """

    version: str
    fingerprint: str
    num_users: int
    num_events: int
    num_items: int
    online_slices: int
    num_verified: int
    num_carried: int = 0
    digest: str = ""
    was_current: bool = False


def publish(
    features_dir: str | Path, workdir: str | Path, repo_dir: str | Path, *, key: str = ""
) -> PublishReport:
    """Returns counts after making feature tables the ones that `workdir` serves, offline and online;
    all at once, by one rename.

    Args:
        features_dir: written by `features.build`.
        workdir: LONGREC_HOME.
        repo_dir: the feature repository (feature_store.yaml, definitions.py).
        key: names the code that publishes. Where `workdir` points to a version made of equal tables
            under this key, and its online store
            answers, that version stays and nothing is done; always published anew when empty.

    Raises:
        DataError: the feature tables are incomplete or were changed.
        StoreError: the feature repository is missing, another publish is running, or Feast failed.
    """
    tables, workdir = Path(features_dir), Path(workdir).resolve()
    manifest = _checked_manifest(tables)
    version = workdir / "store" / f"{manifest['version']}-{uuid.uuid4().hex[:6]}"
    with locked(workdir):
        if key and _is_current(workdir, manifest, key):
            return _publish_report(
                workdir / "store" / str(current_version(workdir)), manifest, was_current=True
            )
        try:
            with files.disk_errors(version):
                _copy(tables, version / "features")
            _write_settings(Path(repo_dir), version)
            files.write_json(
                version / "feast" / "key.json",
                {**_key(key), "before": digest_before(workdir, manifest.get("dataset_hash"))},
            )
            published = Published(
                version, manifest, Schema.load(version / "features" / "schema.json")
            )
            tails.add(published.path, tail_rows([], 0))
            with feast_errors(
                "publishing failed",
                "Is the online store there, and may it be written? Then run it again.",
            ):
                slices, verified = _fill(published, Path(repo_dir))
                carried = _carry(workdir, published, Path(repo_dir))
        except BaseException:
            _remove(version)
            raise
        for old in switch(workdir, version):
            _remove(old)
    return _publish_report(
        version, manifest, online_slices=slices, num_verified=verified, num_carried=carried
    )


def _checked_manifest(tables: Path) -> dict[str, Any]:
    """Returns the manifest of feature tables after comparing their content with it."""
    manifest: dict[str, Any] = files.read_json(tables / "manifest.json")
    if "shard" in manifest:
        raise DataError(
            f"{tables} holds the features of a shard",
            found=manifest["shard"],
            fix="Join all shards (features.join).",
        )
    for name, expected in manifest.get("files", {}).items():
        if not (tables / name).is_file() or files.sha256_of(tables / name) != expected:
            raise DataError(
                f"{tables / name} is missing or was changed", fix="Build the features again."
            )
    if (found := features.version_of(manifest.get("files", {}))) != manifest.get("version"):
        raise DataError(
            f"{tables / 'manifest.json'} was changed",
            found=f"version {manifest.get('version')}",
            expected=found,
            fix="Build the features again.",
        )
    return manifest


def _copy(source: Path, target: Path) -> None:
    """Copies a directory; the first error of a file is raised as it is."""
    try:
        shutil.copytree(source, target)
    except shutil.Error as error:
        raise OSError(
            errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO, str(error)
        ) from error


def _publish_report(
    version: Path,
    manifest: Mapping[str, Any],
    *,
    online_slices: int = 0,
    num_verified: int = 0,
    num_carried: int = 0,
    was_current: bool = False,
) -> PublishReport:
    counts = manifest["counts"]
    return PublishReport(
        version=str(version),
        fingerprint=manifest["fingerprint"],
        num_users=counts["num_users"],
        num_events=counts["num_events"],
        num_items=counts["num_items"],
        online_slices=online_slices,
        num_verified=num_verified,
        num_carried=num_carried,
        digest=manifest["version"],
        was_current=was_current,
    )


def _is_current(workdir: Path, manifest: Mapping[str, Any], key: str) -> bool:
    """Returns whether `workdir` points to a whole version that was made of these feature tables under
    this key.
    """
    version = workdir / "store" / (current_version(workdir) or "none")
    try:
        known, note = (
            files.read_json(version / "features" / "manifest.json"),
            files.read_json(version / "feast" / "key.json"),
        )
        if known != manifest or {**note, **_key(key)} != note:
            return False
        if not all((version / "features" / name).is_file() for name in manifest["files"]):
            return False
        if "type: sqlite" in (version / "feast" / "feature_store.yaml").read_text(encoding="utf-8"):
            return all(
                (version / "feast" / name).is_file() for name in ("online.db", "registry.db")
            )  # Feast costs seconds to ask
        return _verify(Door(Published.open(workdir), None)) > 0
    except (OSError, DataError, StoreError):
        return False


def _key(key: str) -> dict[str, str]:
    return {"key": key, "overlay": os.environ.get(OVERLAY, "")}


def _write_settings(repo_dir: Path, version: Path) -> None:
    """Writes feature_store.yaml of the repository into the version, with the paths of the default
    home moved there.
    """
    overlay = os.environ.get(OVERLAY, "")
    settings = f"overlays/{overlay}/feature_store.yaml" if overlay else "feature_store.yaml"
    for name in ("feature_store.yaml", "definitions.py", settings):
        if not (repo_dir / name).is_file():
            raise StoreError(
                f"no feature repository at {repo_dir}",
                found=f"no {name}",
                fix=f"Set LONGREC_FEATURE_REPO to its folder, or {OVERLAY} to one of its overlays.",
            )
    (version / "feast").mkdir()
    text = (repo_dir / settings).read_text(encoding="utf-8")
    if (
        "type: redis" in text
    ):  # one Redis serves all versions and homes: each version's keys end with a name of its own
        text = text.replace("project: longrec\n", f"project: {_project_of(version)}\n")
    (version / "feast" / "feature_store.yaml").write_text(
        text.replace(f"{DEFAULT_HOME}/", f"{version}/"), encoding="utf-8"
    )


def _project_of(version: Path) -> str:
    place = hashlib.sha256(str(version.parent).encode()).hexdigest()[:8]
    return f"longrec_{version.name.replace('-', '_')}_{place}"


def _remove(version: Path) -> None:
    """Removes a version, and its keys from an online store that is not in it; whatever goes wrong,
    for nobody reads it any more.
    """
    with contextlib.suppress(Exception):
        if "type: redis" in (version / "feast" / "feature_store.yaml").read_text(encoding="utf-8"):
            feast = open_feast(version, None)
            feast._get_provider().online_store.teardown(
                feast.config, feast.list_feature_views(), feast.list_entities()
            )
    shutil.rmtree(version, ignore_errors=True)


def _fill(published: Published, repo_dir: Path) -> tuple[int, int]:
    """Returns (materializations, users compared) after applying the declarations and filling the
    online store of a new version.
    """
    feast = open_feast(published.path, repo_dir)
    feast.apply(declarations(repo_dir, published.path, feast.project))
    door = Door(published, repo_dir)
    slices = _materialize(door)
    return slices, _verify(door)


def _materialize(door: Door) -> int:
    """Returns the number of materializations after filling the online store, a bounded number of
    bytes at a time.
    """
    online = {view.name for view in door.feast.list_feature_views() if view.online}
    tables = pq.read_table(
        door.published.path / "features" / "user_history",
        columns=[features.EVENT_TIME, features.HISTORY_LENGTH],
    )
    counts = door.published.manifest["counts"]
    bytes_per_event = counts["history_bytes"] / max(counts["num_events"], 1)
    times = np.asarray(tables.column(features.EVENT_TIME).cast(pa.int64()), np.int64)
    slices = list(
        _time_slices(times, layout.int64_of(tables, features.HISTORY_LENGTH) * bytes_per_event)
    )
    end = int(door.published.manifest["time_range_ms"][1]) * 1000
    jobs = [("user_history", *span) for span in slices] + [
        (name, end, end) for name in sorted(online - {"user_history", "user_tail"})
    ]
    for name, start, stop in jobs:
        printed = io.StringIO()
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            door.feast.materialize(_request_time(start), _request_time(stop), feature_views=[name])
        logger.debug("materialized %s: %s", name, printed.getvalue())
    return len(jobs)


def _time_slices(times_us: Int64, sizes: npt.NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """Yields (first, last) microseconds of consecutive slices of about SLICE_BYTES; rows of one
    time are in one slice.
    """
    order = np.argsort(times_us, kind="stable")
    times, ends = times_us[order], np.cumsum(sizes[order])
    row, done = 0, 0.0
    while row < len(times):
        full = min(int(np.searchsorted(ends, done + SLICE_BYTES)), len(times) - 1)
        last = int(times[full])
        yield int(times[row]), last
        row = int(np.searchsorted(times, last, side="right"))
        done = float(ends[row - 1])


def _verify(door: Door) -> int:
    """Returns the number of users whose online history was compared with the tables: some of the
    first and the last part.
    """
    parts = sorted((door.published.path / "features" / "user_history").glob("*.parquet"))
    num_verified = 0
    for path in sorted({parts[0], parts[-1]}):
        with pq.ParquetFile(path) as part:
            table = part.read_row_group(
                part.num_row_groups - 1, columns=[USER_ID, features.HISTORY]
            ).slice(0, 16)
        answers = door.online(layout.int64_of(table, USER_ID).tolist())
        for value, answer in zip(table.column(features.HISTORY), answers, strict=True):
            if answer[features.HISTORY] != value.as_py():
                raise StoreError(
                    "the online store does not return what was published", fix=PUBLISH_FIRST
                )
        num_verified += len(answers)
    return num_verified


def _request_time(micros: int) -> datetime.datetime:
    return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(
        microseconds=micros
    )


def _carry(workdir: Path, published: Published, repo_dir: Path) -> int:
    """Returns the number of events pushed to the version before that were pushed again, for the
    feature tables lack them.
    """
    try:
        before = Published.open(workdir)
    except StoreError:
        return 0
    users = tails.users_pushed(before.path)
    if not len(users):
        return 0
    old, new = before.schema, published.schema
    if old.name != new.name or not history.arrow_schema(old).equals(history.arrow_schema(new)):
        logger.warning(
            "pushed events of %d users are not carried over: they were recorded by %s, the new version is of %s",
            len(users),
            old.name,
            new.name,
        )
        return 0
    door, num_carried = Door(published, repo_dir), 0
    for start in range(0, len(users), PUSH_USERS):
        events = tails.pushed_events(before, users[start : start + PUSH_USERS])
        num_carried += add_events(
            door, live_events.conform(events, published.schema), keep_the_stored
        ).num_new
    return num_carried
