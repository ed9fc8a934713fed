"""Publish feature tables as a new version that a work directory serves, offline and online.

The tables are copied, declared to Feast, materialized and read back. Pushed events of the previous
version are carried over. Then the work directory points to the new version by one rename.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from longrec.data import files, history
from longrec.data.columns import FEATURE_TABLES_FORMAT_VERSION
from longrec.data.hashing import fingerprint_files
from longrec.data.store import tail_files
from longrec.data.store.feast_adapter import FeastAdapter, feast_errors, open_feast
from longrec.data.store.materialize import fill_online_store, verify_online_store
from longrec.data.store.push import LOCK_WAIT_SECONDS, carry_over, tail_rows
from longrec.data.store.versions import (
    DEFINITIONS_FILE,
    KEY_FILE,
    SETTINGS_FILE,
    SQLITE,
    PublishedVersion,
    digest_before,
    hold,
    is_held,
    online_type,
    owns_keys,
)
from longrec.data.store.workdir import (
    current_version,
    initialize_workdir,
    switch_to,
    write_lock,
)
from longrec.data.upkeep.forget_list import forgotten_users
from longrec.data.upkeep.row_removal import remove_from_version
from longrec.errors import DataError, StoreError
from longrec.schema import Schema

logger = logging.getLogger(__name__)

DEFAULT_WORKDIR = "../.longrec"
"""The work directory in feature_store.yaml of a feature repository."""
OVERLAY_VARIABLE = "LONGREC_FEATURE_OVERLAY"
STEP_WAIT_SECONDS = 1_800.0
"""How long a pipeline's step waits for another publish: a refresh may run beside a training."""
BUILD_AGAIN = "Build the features again (step build-features of longrec run)."


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
    run: str = "",
    wait_seconds: float = 0.0,
) -> PublishReport:
    """Publish feature tables to a work directory, offline and online, and return counts.

    Args:
        features_dir: written by `features.build_features`.
        workdir: the work directory (LONGREC_HOME).
        repo_dir: the feature repository (feature_store.yaml, definitions.py).
        key: identifies the publishing code. If the current version has the same tables and key
            and its online store works, nothing is done. Empty to publish in any case.
        run: id of a run that reads the version until `versions.release`; empty for none.
        wait_seconds: how long to wait for another publish or push.

    Raises:
        DataError: the feature tables are incomplete, changed or of another format version.
        StoreError: the feature repository is missing, another publish is running, the work
            directory has an unknown format version, or Feast failed.
    """
    tables = Path(features_dir)
    workdir = Path(workdir).resolve()
    repository = _Repository.of(Path(repo_dir))
    manifest = _checked_manifest(tables)
    with write_lock(workdir, wait_seconds):
        workdir_id = initialize_workdir(workdir)
        if key and _is_current(workdir, workdir_id, manifest, key):
            current = workdir / "store" / str(current_version(workdir))
            report = _report(current, manifest, was_current=True)
        else:
            previous_hash = digest_before(workdir, manifest.get("dataset_hash"))
            key_values = {**_key(key), "before": previous_hash}
            report = _publish(tables, workdir, repository, key_values)
        if run:
            hold(Path(report.version), run)
        return report


def give_own_keys(workdir: str | Path) -> bool:
    """Publish a copy of a work directory again, where it shares keys with its original.

    An online store such as Redis serves many work directories. A copy reads the keys of its
    original until then, and cannot push.

    Returns:
        Whether it shared keys.

    Raises:
        StoreError: nothing was published, another publish is running, or Feast failed.
    """
    workdir = Path(workdir).resolve()
    PublishedVersion.open(workdir)
    with write_lock(workdir, LOCK_WAIT_SECONDS):
        version = PublishedVersion.open(workdir).path
        if owns_keys(version, initialize_workdir(workdir)):
            return False
        repository = _Repository.of(version / "feast")
        key_values = files.read_json(version / "feast" / KEY_FILE)
        _publish(version / "features", workdir, repository, key_values)
        return True


@dataclasses.dataclass(frozen=True, slots=True)
class _Repository:
    """The files of a feature repository.

    Args:
        settings: feature_store.yaml, or that of the overlay in use.
        definitions: definitions.py.
    """

    settings: Path
    definitions: Path

    @classmethod
    def of(cls, folder: Path) -> _Repository:
        overlay = os.environ.get(OVERLAY_VARIABLE, "")
        is_published = folder.name == "feast"
        has_overlay = overlay and not is_published
        settings = f"overlays/{overlay}/{SETTINGS_FILE}" if has_overlay else SETTINGS_FILE
        for name in (SETTINGS_FILE, DEFINITIONS_FILE, settings):
            if not (folder / name).is_file():
                raise StoreError(
                    f"no feature repository at {folder}",
                    found=f"no {name}",
                    fix=f"Set LONGREC_FEATURE_REPO to its folder, or {OVERLAY_VARIABLE} to one of "
                    "its overlays.",
                )
        return cls(folder / settings, folder / DEFINITIONS_FILE)


def _publish(
    tables: Path,
    workdir: Path,
    repository: _Repository,
    key_values: Mapping[str, str],
) -> PublishReport:
    """Publish feature tables as a new version; the caller holds the lock."""
    workdir_id = initialize_workdir(workdir)
    manifest = files.read_json(tables / "manifest.json")
    token = uuid.uuid4().hex[:6]
    version = workdir / "store" / f"{manifest['version']}-{token}"
    try:
        published = _prepare(tables, version, repository, workdir_id)
        with feast_errors(
            "publishing failed",
            "Check that the online store is running and writable, then run it again.",
        ):
            num_slices, num_verified = fill_online_store(published)
            num_carried = _carry_over(workdir, published)
        files.write_json(version / "feast" / KEY_FILE, key_values)
        unused_versions = switch_to(workdir, version)
    except BaseException:
        remove_version(version, workdir_id)
        raise
    for unused in unused_versions:
        if not is_held(unused):
            remove_version(unused, workdir_id)
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
    repository: _Repository,
    workdir_id: str,
) -> PublishedVersion:
    """Copy feature tables and settings into a new version, with an empty file of tails."""
    with files.explain_full_disk(version):
        _copy_tables(tables, version / "features")
        _write_settings(repository, version, workdir_id)
        tail_files.write_tails(version, tail_rows([], 0))
        remove_from_version(version, forgotten_users(version.parents[1]))
    return PublishedVersion(
        version,
        files.read_json(version / "features" / "manifest.json"),
        Schema.load(version / "features" / "schema.json"),
    )


def _copy_tables(source: Path, target: Path) -> None:
    """Copy the feature tables in a folder, without pushed events beside them."""
    names = files.read_json(source / "manifest.json")["files"]
    for name in ("manifest.json", *names):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


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
    workdir_id: str,
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
        written_key = files.read_json(feast / KEY_FILE)
        for field, value in _key(key).items():
            if written_key.get(field) != value:
                return False
        if not _are_files(tables, manifest["files"]):
            return False
        if online_type(version) == SQLITE:  # opening Feast would take seconds
            return _are_files(feast, ("online.db", "registry.db"))
        if not owns_keys(version, workdir_id):
            return False
        adapter = FeastAdapter(PublishedVersion.open(workdir))
        return verify_online_store(adapter) > 0
    except (OSError, DataError, StoreError):
        return False


def _are_files(directory: Path, names: Any) -> bool:
    return all((directory / name).is_file() for name in names)


def _key(key: str) -> dict[str, str]:
    return {
        "key": key,
        "overlay": os.environ.get(OVERLAY_VARIABLE, ""),
    }


def _write_settings(
    repository: _Repository,
    version: Path,
    workdir_id: str,
) -> None:
    """Make the folder `feast` of a version: a feature repository with paths relative to it."""
    text = repository.settings.read_text(encoding="utf-8")
    settings = _relative(yaml.safe_load(text))
    if settings["online_store"]["type"] != SQLITE:
        # All versions share one server. Feast appends the project's name to each key, so each
        # version gets its own project.
        settings["project"] = redis_project(version, workdir_id)
    feast = version / "feast"
    feast.mkdir()
    shutil.copyfile(repository.definitions, feast / DEFINITIONS_FILE)
    text = yaml.safe_dump(settings, sort_keys=False)
    (feast / SETTINGS_FILE).write_text(text, encoding="utf-8")


def _relative(value: Any) -> Any:
    """Return settings with paths in the default work directory relative to its folder feast."""
    if isinstance(value, dict):
        return {key: _relative(entry) for key, entry in value.items()}
    if isinstance(value, str) and value.startswith(f"{DEFAULT_WORKDIR}/"):
        return os.path.relpath(value, f"{DEFAULT_WORKDIR}/feast")
    return value


def redis_project(version: Path, workdir_id: str) -> str:
    """Return the Feast project of a version in Redis; no two versions share one.

    A copy of a work directory holds versions of equal names. Its id is another one.
    """
    name = version.name.replace("-", "_")
    return f"longrec_{name}_{workdir_id}"


def remove_version(version: Path, workdir_id: str) -> None:
    """Remove a version and its own keys in Redis.

    Errors do not matter, because nobody reads it.
    """
    with contextlib.suppress(Exception):
        if online_type(version) != SQLITE and owns_keys(version, workdir_id):
            feast = open_feast(version)
            feast._get_provider().online_store.teardown(
                feast.config,
                feast.list_feature_views(),
                feast.list_entities(),
            )
    shutil.rmtree(version, ignore_errors=True)


def _carry_over(
    workdir: Path,
    published: PublishedVersion,
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
    return carry_over(previous, FeastAdapter(published))


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
