"""Publish feature tables as a new version that a work directory serves, offline and online.

The tables are copied, declared to Feast, materialized and read back. Pushed events of the previous
version are carried over. Then the work directory points to the new version by one rename.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longrec.data import files, history
from longrec.data.columns import FEATURE_TABLES_FORMAT_VERSION
from longrec.data.hashing import fingerprint_files
from longrec.data.store import tail_files
from longrec.data.store.feast_adapter import FeastAdapter, feast_errors, open_feast
from longrec.data.store.materialize import fill_online_store, verify_online_store
from longrec.data.store.push import carry_over, tail_rows
from longrec.data.store.versions import PublishedVersion, digest_before
from longrec.data.store.workdir import (
    current_version,
    initialize_workdir,
    switch_to,
    write_lock,
)
from longrec.errors import DataError, StoreError
from longrec.schema import Schema

logger = logging.getLogger(__name__)

DEFAULT_WORKDIR = "../.longrec"
"""The work directory in feature_store.yaml; its paths are moved to the one in use."""
OVERLAY_VARIABLE = "LONGREC_FEATURE_OVERLAY"
BUILD_AGAIN = "Build the features again (step build-features of longrec run)."
_REDIS_TYPE = "type: redis"
_SQLITE_TYPE = "type: sqlite"


@dataclasses.dataclass(frozen=True, slots=True)
class PublishReport:
    """Counts of a publish.

    Args:
        version: directory of the version.
        fingerprint: fingerprint of the schema.
        num_users, num_events, num_items: in the feature tables.
        online_slices: number of materializations.
        num_verified: users that were read back from the online store and are equal.
        num_carried: pushed events that the feature tables lack and that were pushed again.
        digest: hash of the feature tables.
        was_current: whether the work directory pointed to such a version already, so nothing was
            done.
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
    features_dir: str | Path,
    workdir: str | Path,
    repo_dir: str | Path,
    *,
    key: str = "",
) -> PublishReport:
    """Publish feature tables to a work directory, offline and online, and return counts.

    Args:
        features_dir: written by `features.build_features`.
        workdir: the work directory (LONGREC_HOME).
        repo_dir: the feature repository (feature_store.yaml, definitions.py).
        key: identifies the publishing code. If the current version has the same tables and key
            and its online store works, nothing is done. Empty to publish in any case.

    Raises:
        DataError: the feature tables are incomplete, changed or of another format version.
        StoreError: the feature repository is missing, another publish is running, the work
            directory has an unknown format version, or Feast failed.
    """
    tables = Path(features_dir)
    workdir = Path(workdir).resolve()
    repo_dir = Path(repo_dir)
    manifest = _checked_manifest(tables)
    token = uuid.uuid4().hex[:6]
    name = f"{manifest['version']}-{token}"
    version = workdir / "store" / name
    with write_lock(workdir):
        initialize_workdir(workdir)
        if key and _is_current(workdir, manifest, key):
            current = workdir / "store" / str(current_version(workdir))
            return _report(current, manifest, was_current=True)
        try:
            published = _prepare(tables, version, repo_dir)
            previous_hash = digest_before(workdir, manifest.get("dataset_hash"))
            _write_key(version, key, previous_hash)
            with feast_errors(
                "publishing failed",
                "Check that the online store is running and writable, then run it again.",
            ):
                num_slices, num_verified = fill_online_store(published, repo_dir)
                num_carried = _carry_over(workdir, published, repo_dir)
        except BaseException:
            _remove(version)
            raise
        for unused in switch_to(workdir, version):
            _remove(unused)
    return _report(
        version,
        manifest,
        online_slices=num_slices,
        num_verified=num_verified,
        num_carried=num_carried,
    )


def _checked_manifest(tables: Path) -> dict[str, Any]:
    """Return the manifest of feature tables after comparing their content with it."""
    path = tables / "manifest.json"
    manifest = files.read_versioned_json(
        path,
        FEATURE_TABLES_FORMAT_VERSION,
        fix=BUILD_AGAIN,
    )
    if "shard" in manifest:
        raise DataError(
            f"{tables} holds the features of a shard",
            found=manifest["shard"],
            fix="Join all shards (features.join_shards).",
        )
    hashes = manifest.get("files", {})
    for name, expected_hash in hashes.items():
        table = tables / name
        is_unchanged = table.is_file() and files.sha256_of(table) == expected_hash
        if not is_unchanged:
            raise DataError(f"{table} is missing or was changed", fix=BUILD_AGAIN)
    expected_version = fingerprint_files(hashes)
    if manifest.get("version") != expected_version:
        raise DataError(
            f"{path} was changed",
            found=f"version {manifest.get('version')}",
            expected=expected_version,
            fix=BUILD_AGAIN,
        )
    return manifest


def _prepare(
    tables: Path,
    version: Path,
    repo_dir: Path,
) -> PublishedVersion:
    """Copy feature tables and settings into a new version, with an empty file of tails."""
    with files.explain_full_disk(version):
        _copy(tables, version / "features")
    _write_settings(repo_dir, version)
    tail_files.write_tails(version, tail_rows([], 0))
    return PublishedVersion(
        version,
        files.read_json(version / "features" / "manifest.json"),
        Schema.load(version / "features" / "schema.json"),
    )


def _copy(source: Path, target: Path) -> None:
    """Copy a directory; a full disk raises an OSError with its own number."""
    try:
        shutil.copytree(source, target)
    except shutil.Error as error:
        is_full = os.strerror(errno.ENOSPC) in str(error)
        number = errno.ENOSPC if is_full else errno.EIO
        raise OSError(number, str(error)) from error


def _report(
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


def _is_current(
    workdir: Path,
    manifest: Mapping[str, Any],
    key: str,
) -> bool:
    """Return whether the current version is complete and made of these tables under this key."""
    name = current_version(workdir)
    if name is None:
        return False
    version = workdir / "store" / name
    tables = version / "features"
    feast = version / "feast"
    try:
        if files.read_json(tables / "manifest.json") != manifest:
            return False
        written_key = files.read_json(feast / "key.json")
        for field, value in _key(key).items():
            if written_key.get(field) != value:
                return False
        if not _are_files(tables, manifest["files"]):
            return False
        if _SQLITE_TYPE in _settings(version):  # opening Feast would take seconds
            return _are_files(feast, ("online.db", "registry.db"))
        adapter = FeastAdapter(PublishedVersion.open(workdir), None)
        return verify_online_store(adapter) > 0
    except (OSError, DataError, StoreError):
        return False


def _are_files(directory: Path, names: Any) -> bool:
    return all((directory / name).is_file() for name in names)


def _write_key(
    version: Path,
    key: str,
    digest: str,
) -> None:
    value = {**_key(key), "before": digest}
    files.write_json(version / "feast" / "key.json", value)


def _key(key: str) -> dict[str, str]:
    return {
        "key": key,
        "overlay": os.environ.get(OVERLAY_VARIABLE, ""),
    }


def _settings(version: Path) -> str:
    """Return the feature_store.yaml of a version."""
    return (version / "feast" / "feature_store.yaml").read_text(encoding="utf-8")


def _write_settings(repo_dir: Path, version: Path) -> None:
    """Write the repository's feature_store.yaml into a version, with paths inside the version."""
    overlay = os.environ.get(OVERLAY_VARIABLE, "")
    settings = f"overlays/{overlay}/feature_store.yaml" if overlay else "feature_store.yaml"
    for name in ("feature_store.yaml", "definitions.py", settings):
        if not (repo_dir / name).is_file():
            raise StoreError(
                f"no feature repository at {repo_dir}",
                found=f"no {name}",
                fix=f"Set LONGREC_FEATURE_REPO to its folder, or {OVERLAY_VARIABLE} to one of its "
                "overlays.",
            )
    text = (repo_dir / settings).read_text(encoding="utf-8")
    if _REDIS_TYPE in text:
        # All versions share one server. Feast appends the project's name to each key, so each
        # version gets its own project.
        text = text.replace("project: longrec\n", f"project: {redis_project(version)}\n")
    text = text.replace(f"{DEFAULT_WORKDIR}/", f"{version}/")
    feast = version / "feast"
    feast.mkdir()
    (feast / "feature_store.yaml").write_text(text, encoding="utf-8")


def redis_project(version: Path) -> str:
    """Return the Feast project of a version in Redis; no two versions share one."""
    store = str(version.parent)
    store_hash = hashlib.sha256(store.encode()).hexdigest()[:8]
    name = version.name.replace("-", "_")
    return f"longrec_{name}_{store_hash}"


def _remove(version: Path) -> None:
    """Remove a version and its keys in Redis; errors do not matter, because nobody reads it."""
    with contextlib.suppress(Exception):
        if _REDIS_TYPE in _settings(version):
            feast = open_feast(version, None)
            feast._get_provider().online_store.teardown(
                feast.config,
                feast.list_feature_views(),
                feast.list_entities(),
            )
    shutil.rmtree(version, ignore_errors=True)


def _carry_over(
    workdir: Path,
    published: PublishedVersion,
    repo_dir: Path,
) -> int:
    """Push the pushed events of the previous version that the new tables lack; return how many."""
    if current_version(workdir) is None:
        return 0
    try:
        previous = PublishedVersion.open(workdir)
    except StoreError as error:
        logger.warning("pushed events are not carried over: %s", error)
        return 0
    users = tail_files.users_with_pushes(previous.path)
    if not len(users):
        return 0
    if not _can_carry_over(previous.schema, published.schema):
        logger.warning(
            "pushed events of %d users are not carried over: they were recorded by %s, the new "
            "version is of %s",
            len(users),
            previous.schema.name,
            published.schema.name,
        )
        return 0
    return carry_over(previous, FeastAdapter(published, repo_dir))


def _can_carry_over(old: Schema, new: Schema) -> bool:
    """Return whether events of one schema are events of another.

    Events that were pushed without numbers cannot be found in a log with numbers.
    """
    lacks_numbers = new.has_event_numbers and not old.has_event_numbers
    if old.name != new.name or lacks_numbers:
        return False
    old_columns = history.arrow_schema(old)
    new_columns = history.arrow_schema(new)
    return bool(old_columns.equals(new_columns))
