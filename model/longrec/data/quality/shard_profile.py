"""Shard profile: all that the checks need to know of a shard, as a directory of small files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longrec.data import files
from longrec.data.quality.drift import DriftProfile
from longrec.data.quality.table_profile import TableProfile
from longrec.data.shards import Shard, shard_order
from longrec.errors import DataError

PROFILE_FILE = "profile.json"


@dataclasses.dataclass(frozen=True, slots=True)
class ShardProfile:
    """Profiles of the tables of one shard of a dataset, or of its histories.

    Args:
        shard: the shard.
        metadata: content of dataset.json; empty for histories.
        tables: table -> its profile.
        drift: statistics that are compared between versions; None for histories, and for a
            dataset that cannot be opened.
        read_error: why it cannot be opened; empty otherwise.
    """

    shard: Shard
    metadata: dict[str, Any]
    tables: dict[str, TableProfile]
    drift: DriftProfile | None = None
    read_error: str = ""

    def save(self, directory: Path) -> None:
        """Write the profile to a directory, replaced at once."""
        content = {
            "shard": str(self.shard),
            "metadata": self.metadata,
            "tables": list(self.tables),
            "read_error": self.read_error,
            "drift": self.drift.to_dict() if self.drift else None,
        }
        with files.atomic_replace(directory) as temporary:
            temporary.mkdir()
            for name, table in self.tables.items():
                table.save(temporary, name)
            files.write_json(temporary / PROFILE_FILE, content)

    @classmethod
    def load(cls, directory: Path) -> ShardProfile:
        """Return the profile that `save` wrote.

        Raises:
            DataError: the directory holds no complete profile.
        """
        content = read_json_object(
            directory / PROFILE_FILE,
            "shard",
            "metadata",
            "tables",
            "drift",
            "read_error",
        )
        drift = content["drift"]
        return cls(
            shard=Shard.parse(content["shard"]),
            metadata=content["metadata"],
            tables={name: TableProfile.load(directory, name) for name in content["tables"]},
            drift=DriftProfile.from_dict(drift) if drift else None,
            read_error=content["read_error"],
        )


def load_shards(directories: Sequence[str | Path]) -> list[ShardProfile]:
    """Return the profiles of all shards, in the order of the shards.

    Raises:
        DataError: they are not all shards, once each.
    """
    profiles = [ShardProfile.load(Path(directory)) for directory in directories]
    order = shard_order([profile.shard for profile in profiles])
    return [profiles[position] for position in order]


def merge_tables(shards: Sequence[Mapping[str, TableProfile]]) -> dict[str, TableProfile]:
    """Return table -> its profile over all shards; a shard may lack a table."""
    names = dict.fromkeys(name for tables in shards for name in tables)
    return {
        name: TableProfile.merged([tables.get(name, TableProfile()) for tables in shards])
        for name in names
    }


def read_json_object(path: Path, *keys: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        DataError: the file is missing, is not a JSON object or lacks a key.
    """
    content = files.read_json(path)
    found: dict[str, Any] = content if isinstance(content, dict) else {}
    missing = [key for key in keys if key not in found]
    if missing:
        raise DataError(
            f"{path} is incomplete",
            found=f"no {', '.join(missing)}",
            fix="Run the step that wrote it again.",
        )
    return found
