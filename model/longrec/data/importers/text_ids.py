"""Text ids: int64 ids of users and items that a log names by text.

The id is 63 bits of the MD5 of the text. It is the same on every machine and in every import, so
a service needs no table to look it up. Two texts with the same id are refused. With 10 million
texts, the chance of such a collision is about 5e-6.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data import files
from longrec.errors import DataError

DUCKDB_MEMORY = "512MB"
IDS_FOLDER = "ids"
IDS_QUERY = """
SELECT (md5_number_lower(text) & 9223372036854775807)::BIGINT AS id, text FROM texts
"""
"""Query that computes `longrec.ids.text_id` of each text; the number is its `ID_MASK`."""
PAIRS_SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string())])


class TextIds:
    """Converter of texts to ids, batch by batch; it also writes tables of ids and texts.

    The pairs stay on disk until they are checked for collisions.

        with TextIds(directory, ("users", "items")) as ids:
            column = ids.add("users", batch["user"])
            ids.write(dataset_directory)

    Args:
        directory: an existing directory for temporary files.
        groups: tables to write, for example `users`; a text has the same id in each.
    """

    def __init__(self, directory: Path, groups: Sequence[str]) -> None:
        import duckdb

        self._directory = directory
        self._groups = tuple(groups)
        config = {
            "memory_limit": DUCKDB_MEMORY,
            "temp_directory": str(directory),
            "threads": 2,
        }
        self._duckdb: Any = duckdb.connect(config=config)
        self._writers = {
            group: pq.ParquetWriter(self._path(group), PAIRS_SCHEMA) for group in self._groups
        }

    def __enter__(self) -> TextIds:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()
        self._duckdb.close()

    def add(self, group: str, texts: pa.Array) -> pa.Array:
        """Return the id of each text, int64, null for null; add the texts to a table."""
        ids, pairs = self._ids_and_pairs(texts)
        if pairs.num_rows:
            self._writers[group].write_table(pairs)
        return ids

    def encode(self, texts: pa.Array) -> pa.Array:
        """Return the id of each text, int64, null for null."""
        return self._ids_and_pairs(texts)[0]

    def texts(self, group: str) -> dict[int, str]:
        """Return id -> text of a table; no texts may be added later."""
        self._close()
        pairs = pq.read_table(self._path(group))
        return dict(zip(pairs["id"].to_pylist(), pairs["text"].to_pylist(), strict=True))

    def write(self, directory: Path) -> None:
        """Write ids/GROUP.parquet (id, text; sorted by id) of each group below a directory.

        Raises:
            DataError: two texts have the same id.
        """
        self._close()
        if not self._groups:
            return
        (directory / IDS_FOLDER).mkdir()
        for group in self._groups:
            pairs_file = files.duckdb_pattern(self._path(group))
            pairs = self._duckdb.read_parquet(pairs_file).distinct()
            _refuse_collisions(group, pairs)
            path = directory / IDS_FOLDER / f"{group}.parquet"
            pairs.order("id").write_parquet(str(path), compression="zstd")

    def _ids_and_pairs(self, texts: pa.Array) -> tuple[pa.Array, pa.Table]:
        # Each distinct text is hashed once per batch, by DuckDB instead of a Python loop.
        is_encoded = pa.types.is_dictionary(texts.type)
        encoded = texts if is_encoded else texts.dictionary_encode()
        table = pa.table({"text": encoded.dictionary.cast(pa.string())})
        self._duckdb.register("texts", table)
        found = self._duckdb.sql(IDS_QUERY).to_arrow_table()
        pairs = found.combine_chunks().cast(PAIRS_SCHEMA)
        return pairs["id"].combine_chunks().take(encoded.indices), pairs

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()  # a second call does nothing

    def _path(self, group: str) -> Path:
        return self._directory / f"texts-{group}.parquet"


def _refuse_collisions(group: str, pairs: Any) -> None:
    """Raise a DataError when two texts of a DuckDB relation have the same id."""
    by_id = pairs.aggregate("min(text), max(text), count(*) AS texts", "id")
    collisions = by_id.filter("texts > 1").limit(1).fetchall()
    if not collisions:
        return
    first, second, _ = collisions[0]
    raise DataError(
        f"two different ids of {group} have the same number",
        found=f"{first} and {second}",
        fix="Rename one of them in the log.",
    )
