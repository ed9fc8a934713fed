"""Table profile: all that the checks need to know of a table, or of one shard of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data import files
from longrec.data.quality.column_profiles import MAX_EXAMPLES, ColumnProfile
from longrec.data.quality.user_profiles import SHARD, UserProfile, to_int64


@dataclasses.dataclass(frozen=True, slots=True)
class TableProfile:
    """Statistics of a table, or of one shard of it.

    Args:
        columns: column -> its profile.
        counts: name -> a number that adds up over shards.
        failed_rows: column of an expectation -> at most ten failed rows, each as a number to
            sort by and in words.
        users: one row per user; no rows for a table that is not of users.
        mismatches: one line per column that is missing or has another type. Nothing else is
            profiled then.
    """

    columns: dict[str, ColumnProfile] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    failed_rows: dict[str, list[tuple[int, str]]] = dataclasses.field(default_factory=dict)
    users: UserProfile = dataclasses.field(default_factory=UserProfile.empty)
    mismatches: list[str] = dataclasses.field(default_factory=list)

    def describe_failed_rows(self, column: str) -> list[str]:
        """Return the failed rows of an expectation in words."""
        return [text for _, text in self.failed_rows.get(column, ())]

    @classmethod
    def merged(cls, shards: Sequence[TableProfile]) -> TableProfile:
        """Return the profile of all shards, in their order; a user in several gets one row."""
        if len(shards) == 1:
            return shards[0]
        numbered = [shard._with_shard_number(number) for number, shard in enumerate(shards, 1)]
        columns = {}
        for name in _keys([shard.columns for shard in numbered]):
            parts = [shard.columns[name] for shard in numbered if name in shard.columns]
            columns[name] = ColumnProfile.merged(parts)
        counts = {}
        for name in _keys([shard.counts for shard in numbered]):
            counts[name] = sum(shard.counts.get(name, 0) for shard in numbered)
        failed_rows = {}
        for name in _keys([shard.failed_rows for shard in numbered]):
            rows = [row for shard in numbered for row in shard.failed_rows.get(name, ())]
            failed_rows[name] = sorted(rows)[:MAX_EXAMPLES]
        return cls(
            columns=columns,
            counts=counts,
            failed_rows=failed_rows,
            users=UserProfile.merged([shard.users for shard in numbered]),
            mismatches=[line for shard in numbered for line in shard.mismatches],
        )

    def _with_shard_number(self, number: int) -> TableProfile:
        """Return the profile with the number of its shard in all descriptions of rows."""
        shards = np.full(len(self.users), number, np.int64)
        failed_rows = {
            column: [(key, f"{text} (shard {number})") for key, text in rows]
            for column, rows in self.failed_rows.items()
        }
        return dataclasses.replace(
            self,
            failed_rows=failed_rows,
            users=UserProfile({**self.users.columns, SHARD: shards}),
            mismatches=[f"shard {number}: {line}" for line in self.mismatches],
        )

    def save(self, directory: Path, name: str) -> None:
        """Write NAME.json, and the users to NAME.parquet."""
        columns = {}
        for key, profile in self.columns.items():
            columns[key] = dataclasses.asdict(profile)
        content = {
            "columns": columns,
            "counts": self.counts,
            "failed_rows": self.failed_rows,
            "mismatches": self.mismatches,
        }
        files.write_json(directory / f"{name}.json", content)
        users = pa.table(self.users.columns)
        pq.write_table(
            users,
            directory / f"{name}.parquet",
            compression="zstd",
        )

    @classmethod
    def load(cls, directory: Path, name: str) -> TableProfile:
        """Return the profile that `save` wrote."""
        content = files.read_json(directory / f"{name}.json")
        users = pq.read_table(directory / f"{name}.parquet")
        failed_rows = {
            column: [(int(key), text) for key, text in rows]
            for column, rows in content["failed_rows"].items()
        }
        columns = {}
        for key, value in content["columns"].items():
            columns[key] = ColumnProfile(**value)
        return cls(
            columns=columns,
            counts=content["counts"],
            failed_rows=failed_rows,
            users=UserProfile({column: to_int64(users[column]) for column in users.column_names}),
            mismatches=content["mismatches"],
        )


def _keys(mappings: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the keys of all mappings, in their order, each once."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))
