"""PublishedVersion: the version of the feature store that a work directory points to.

    features/                     feature tables
    feast/feature_store.yaml      settings of Feast, with paths relative to this folder
    feast/definitions.py          declarations for the tables beside this folder
    feast/key.json                written last: the version is complete
    feast/registry.db, online.db
    readers/<run>                 a run that reads the version until it ends

No file of a version holds the place where it lies. So it can be moved, copied and mounted
elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from longrec.data import files, location
from longrec.data.columns import FEATURE_TABLES_FORMAT_VERSION
from longrec.data.store.workdir import check_workdir, current_version, initialize_workdir
from longrec.errors import DataError, StoreError
from longrec.schema import Schema

SETTINGS_FILE = "feature_store.yaml"
DEFINITIONS_FILE = "definitions.py"
SQLITE = "sqlite"
"""Type of the online store that is a file of its version; others are shared servers."""
PUBLISH_FIRST = "Publish feature tables first (longrec refresh, or step publish of longrec run)."
READERS_FOLDER = "readers"
MAX_HOLD_SECONDS = 7 * 86_400
"""A run holds its version no longer; one that was killed does not tell that it ended."""
KEY_FILE = "key.json"
_ALL_FILES = "*.parquet"


@dataclasses.dataclass(frozen=True, slots=True)
class PublishedVersion:
    """A published version.

    Args:
        path: its directory, links resolved.
        manifest: manifest of the feature tables.
        schema: features and tasks.
    """

    path: Path
    manifest: Mapping[str, Any]
    schema: Schema

    @classmethod
    def open(cls, workdir: str | Path, digest: str = "") -> PublishedVersion:
        """Return the version that a work directory points to, or an earlier one by its digest.

        Args:
            workdir: the work directory (LONGREC_HOME).
            digest: hash of the feature tables; empty for the current version.

        Raises:
            StoreError: nothing was published there, the version or a part of it is gone, or it
                has another format version.
        """
        check_workdir(workdir)
        tables = (Path(workdir) / "features").resolve()
        if digest:
            tables = _version_of(Path(workdir), digest) / "features"
        manifest_path = tables / "manifest.json"
        schema_path = tables / "schema.json"
        if not manifest_path.is_file() or not schema_path.is_file():
            raise StoreError(
                f"no feature store at {workdir}",
                found=f"no feature tables in {tables}",
                fix=PUBLISH_FIRST,
            )
        feast = tables.parent / "feast"
        if not (feast / "feature_store.yaml").is_file():
            raise StoreError(
                f"the feature store at {workdir} is incomplete",
                found=f"nothing in {feast}",
                fix=PUBLISH_FIRST,
            )
        manifest = files.read_json_object(manifest_path)
        found = manifest.get("format_version")
        if found != FEATURE_TABLES_FORMAT_VERSION:
            raise StoreError(
                f"the feature tables in {tables} have another format version",
                found=found,
                expected=FEATURE_TABLES_FORMAT_VERSION,
                fix="Publish the dataset again (longrec refresh or longrec run).",
            )
        return cls(tables.parent, manifest, Schema.load(schema_path))

    @property
    def log_end_us(self) -> int:
        """Time of the last event of the published log, microseconds."""
        _, end_ms = self.manifest["time_range_ms"]
        return int(end_ms) * 1000


def hold(version: Path, run: str) -> None:
    """Keep a version for a run until `release`, at most MAX_HOLD_SECONDS.

    The caller holds the lock of the writers.

    Args:
        version: directory of the version.
        run: id of the run.
    """
    marker = version / READERS_FOLDER / run
    marker.parent.mkdir(exist_ok=True)
    marker.touch()


def release(workdir: str | Path, run: str) -> None:
    """End what `hold` began, in all versions of a work directory."""
    for marker in Path(workdir).glob(f"store/*/{READERS_FOLDER}/{glob.escape(run)}"):
        marker.unlink(missing_ok=True)


def is_held(version: Path) -> bool:
    """Return whether a run still reads a version."""
    oldest = time.time() - MAX_HOLD_SECONDS
    for marker in (version / READERS_FOLDER).glob("*"):
        with contextlib.suppress(FileNotFoundError):  # The run may end at this moment.
            if marker.stat().st_mtime > oldest:
                return True
    return False


def version_before(workdir: str | Path, data_uri: str) -> str:
    """Return the digest of the published version that a dataset's events are checked against.

    It is empty if there is none. It stays the same when the dataset itself has been published
    meanwhile, so a check of equal data is not repeated for that.

    Args:
        workdir: the work directory (LONGREC_HOME).
        data_uri: path or address of the dataset.

    Raises:
        DataError: there is no dataset.
    """
    metadata = location.read_json(data_uri, "dataset.json")
    dataset_hash = metadata.get("facts", {}).get("content_hash")
    return digest_before(Path(workdir).resolve(), dataset_hash)


def digest_before(workdir: Path, dataset_hash: str | None) -> str:
    """Return the digest of the last published version of another dataset; empty for none."""
    version = workdir / "store" / (current_version(workdir) or "none")
    try:
        manifest = files.read_json_object(version / "features" / "manifest.json")
        if dataset_hash != manifest.get("dataset_hash"):
            return str(manifest["version"])
        key = files.read_json(version / "feast" / KEY_FILE)
        return str(key["before"])
    except (DataError, KeyError):
        return ""


def read_settings(version: Path) -> dict[str, Any]:
    """Return the settings of Feast of a version, with absolute paths and values of variables.

    Variables are filled in value by value, so a value may hold any character.

    Args:
        version: directory of the version.

    Raises:
        OSError: there are none.
    """
    folder = version / "feast"
    text = (folder / SETTINGS_FILE).read_text(encoding="utf-8")
    settings: dict[str, Any] = _expanded(yaml.safe_load(text))
    for section in ("registry", "online_store"):
        if "path" in settings[section]:
            # Format 1 holds absolute paths of the place where the version was published.
            name = Path(settings[section]["path"]).name
            settings[section]["path"] = str(folder / name)
    offline = settings["offline_store"]
    staging = offline.get("staging_location", "")
    if staging and "://" not in staging:
        offline["staging_location"] = str(folder / staging)
    return settings


def online_type(version: Path) -> str:
    """Return the type of the online store of a version."""
    return str(read_settings(version)["online_store"]["type"])


def owns_keys(version: Path, workdir_id: str) -> bool:
    """Return whether the keys of a version in the online store are of this work directory alone."""
    settings = read_settings(version)
    if settings["online_store"]["type"] == SQLITE:
        return True
    project = str(settings["project"])
    return project.endswith(f"_{workdir_id}")


def require_own_keys(workdir: Path, version: Path) -> None:
    """Check that a writer does not change the keys of another work directory.

    Args:
        workdir: the work directory; the caller holds its lock.
        version: directory of the version.

    Raises:
        StoreError: the work directory is a copy whose keys are those of its original.
    """
    workdir_id = initialize_workdir(workdir)
    if not owns_keys(version, workdir_id):
        raise StoreError(
            f"{workdir} is a copy of another work directory",
            found="the keys of its original in the online store",
            expected="keys of its own",
            fix="The command longrec push makes them, and publish.give_own_keys.",
        )


def table_path(version: Path, uri: str) -> Path:
    """Return the path of a feature table, named by its path in any other place."""
    return version / "features" / Path(_directory_of(uri)).name


def table_pattern(version: Path, uri: str) -> str:
    """Return a glob pattern of the files of a feature table, as DuckDB reads it.

    DuckDB takes each path as a pattern.

    Raises:
        StoreError: the path holds a backslash, which a pattern cannot name.
    """
    path = table_path(version, uri)
    if "\\" in str(path):
        raise StoreError(
            "DuckDB cannot read tables below a folder with a backslash in its name",
            found=str(version),
            fix="Rename the folder, or choose another work directory.",
        )
    escaped = files.duckdb_pattern(path)
    return f"{escaped}/{_ALL_FILES}" if path.is_dir() else escaped


def relative_table(uri: str) -> str:
    """Return the path of a feature table relative to the folder of the settings."""
    return f"../features/{Path(_directory_of(uri)).name}"


def _version_of(workdir: Path, digest: str) -> Path:
    """Return the directory of a complete version with these tables, the current one if it is."""
    current = current_version(workdir)
    versions = _complete_versions(workdir)
    by_preference = sorted(versions, key=lambda version: version.name != current)
    for version in by_preference:
        manifest = files.read_json_object(version / "features" / "manifest.json")
        if manifest.get("version") == digest:
            return version
    raise StoreError(
        f"the features {digest} are not in the feature store at {workdir}",
        found=", ".join(version.name for version in by_preference) or "no version",
        expected="the version that this run published",
        fix="Start the run again: it publishes them again. longrec forget removes earlier "
        "versions while a run reads them.",
    )


def _complete_versions(workdir: Path) -> list[Path]:
    """Return the directories of the versions that are complete, newest first."""
    keys = (workdir / "store").glob(f"[!.]*/feast/{KEY_FILE}")
    newest_first = sorted(keys, key=lambda path: path.stat().st_mtime, reverse=True)
    versions = [path.parents[1] for path in newest_first]
    return [version.resolve() for version in versions if not version.is_symlink()]


def _directory_of(uri: str) -> str:
    """Return the path of a table without the pattern of its files."""
    return uri.removesuffix(f"/{_ALL_FILES}")


def _expanded(value: Any) -> Any:
    """Return settings with `$NAME` and `${NAME}` replaced in every text."""
    if isinstance(value, dict):
        return {key: _expanded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_expanded(entry) for entry in value]
    return os.path.expandvars(value) if isinstance(value, str) else value
