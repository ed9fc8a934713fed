"""Text ids to int64 ids: 63 bits of the MD5 of the text, the same on every machine and in every
import, and checked for collisions.

A log names its users and items by text where it was made for people (MusicBrainz ids, ASINs). An id
here is a pure function of the
text, so a service needs no table to look it up, and imports of different files agree. Two texts
with one id are refused. At 10 million
texts the chance of that is about 5e-6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longrec.errors import DataError

MASK = (1 << 63) - 1
MEMORY = "512MB"
FOLDER = "ids"
_SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string())])


def text_id(text: str) -> int:
    """Returns the id of one text: the last 8 bytes of its MD5 (UTF-8), read as a little-endian
    number, without the top bit.
    """
    return (
        int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[8:], "little")
        & MASK
    )


class TextIds:
    """Gives ids to texts batch by batch; the pairs lie on disk until they are checked. Memory is
    that of a batch and of DuckDB.

        with TextIds(directory, ("users", "items")) as ids:
            column = ids.of("users", batch["user"])
            ids.write(dataset_directory)

    Args:
        directory: for the temporary files; it exists.
        groups: what ids are given to; a text has the same id in each.
    """

    def __init__(self, directory: Path, groups: Sequence[str]) -> None:
        import duckdb

        self._directory, self._groups = directory, tuple(groups)
        self._duckdb: Any = duckdb.connect(
            config={"memory_limit": MEMORY, "temp_directory": str(directory), "threads": 2}
        )
        self._writers = {
            group: pq.ParquetWriter(self._path(group), _SCHEMA) for group in self._groups
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

    def of(
        self,
        group: str,
        column: pa.Array,
        *,
        keep: bool = True,
    ) -> pa.Array:
        """Returns the id of each text, int64, null for null; `keep` puts the new pairs into the
        table that `write` makes.
        """
        coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        texts = pa.table({"text": coded.dictionary.cast(pa.string())})
        self._duckdb.register("texts", texts)
        found = self._duckdb.sql(
            "SELECT (md5_number_lower(text) & 9223372036854775807)::BIGINT AS id, text FROM texts"
        ).to_arrow_table()
        pairs = found.combine_chunks().cast(_SCHEMA)
        if keep and pairs.num_rows:
            self._writers[group].write_table(pairs)
        return pairs["id"].combine_chunks().take(coded.indices)

    def write(self, directory: Path) -> None:
        """Writes ids/GROUP.parquet (id, text; sorted by id) of each group below a directory.

        Raises:
            DataError: two texts have the same id.
        """
        self._close()
        if not self._groups:
            return
        (directory / FOLDER).mkdir()
        for group in self._groups:
            pairs = self._duckdb.read_parquet(str(self._path(group))).distinct()
            doubled = (
                pairs.aggregate("min(text), max(text), count(*) AS texts", "id")
                .filter("texts > 1")
                .limit(1)
                .fetchall()
            )
            if doubled:
                raise DataError(
                    f"two different ids of {group} have the same number",
                    found=" and ".join(doubled[0][:2]),
                    fix="Rename one of them in the log.",
                )
            pairs.order("id").write_parquet(
                str(directory / FOLDER / f"{group}.parquet"), compression="zstd"
            )

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _path(self, group: str) -> Path:
        return self._directory / f"texts-{group}.parquet"
