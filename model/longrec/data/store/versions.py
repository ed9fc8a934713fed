"""PublishedVersion: the version of the feature store that a work directory points to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longrec.data import files, location
from longrec.data.columns import FEATURE_TABLES_FORMAT_VERSION
from longrec.data.store.workdir import check_workdir, current_version
from longrec.errors import DataError, StoreError
from longrec.schema import Schema

PUBLISH_FIRST = "Publish feature tables first (longrec refresh, or step publish of longrec run)."


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
    def open(cls, workdir: str | Path) -> PublishedVersion:
        """Return the version that a work directory points to.

        Raises:
            StoreError: nothing was published there, a part of it is gone, or it has another
                format version.
        """
        check_workdir(workdir)
        tables = (Path(workdir) / "features").resolve()
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
        manifest = files.read_json(manifest_path)
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
        manifest = files.read_json(version / "features" / "manifest.json")
        if dataset_hash != manifest.get("dataset_hash"):
            return str(manifest["version"])
        key = files.read_json(version / "feast" / "key.json")
        return str(key["before"])
    except (DataError, KeyError):
        return ""
