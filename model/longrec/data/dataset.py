"""Dataset: a directory of events, targets, items and users, in the same layout for every importer.

    DIR/dataset.json                 format_version, name, schema, event_labels, source, facts
    DIR/events/part-00000.parquet    whole users, sorted by (user_id, timestamp, event_seq);
                                     with `created` if the log records when rows arrived
    DIR/targets/part-00000.parquet   requests of the same users, sorted by
                                     (user_id, timestamp, request_id, position)
    DIR/items.parquet                one row per item, sorted by item_id
    DIR/users.parquet                one row per user, sorted by user_id
    DIR/rejects.csv                  file,line,reason,row; only if rows were rejected

A part has a bounded number of rows, so a reader that takes one part at a time has bounded memory.
`longrec.data.dataset_writer` writes this layout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data import files
from longrec.data.columns import TIMESTAMP_TYPE, arrow_type
from longrec.data.shards import WHOLE_DATASET, Shard, part_name
from longrec.errors import DataError
from longrec.schema import (
    BASKET_ID,
    CREATED,
    EVENT_SEQ,
    ITEM_ID,
    REQUEST_ID,
    TIMESTAMP,
    USER_ID,
    Feature,
    Schema,
)

DATASET_FORMAT_VERSION = 2
"""Version 2 renamed the fact `bayes_auc` to `best_possible_auc`."""
IMPORT_AGAIN = "Import the data again (longrec import, longrec synth)."


def event_schema(
    schema: Schema,
    event_labels: Sequence[str] = (),
    *,
    has_created: bool = False,
) -> pa.Schema:
    """Return the columns of events/: keys, event features, then labels that are not features.

    Args:
        schema: features and tasks.
        event_labels: label columns that are not event features.
        has_created: whether the events have the column `created`.
    """
    columns = [
        (USER_ID, pa.int64()),
        (ITEM_ID, pa.int64()),
        (TIMESTAMP, TIMESTAMP_TYPE),
        (EVENT_SEQ, pa.int64()),
    ]
    if schema.has_baskets:
        columns.append((BASKET_ID, pa.int64()))
    if has_created:
        columns.append((CREATED, TIMESTAMP_TYPE))
    columns += _feature_columns(schema.event)
    columns += [(name, pa.int8()) for name in event_labels]
    return pa.schema(columns)


def target_schema(schema: Schema) -> pa.Schema:
    """Return the columns of targets/: keys, then one int8 label per task."""
    columns = [
        (REQUEST_ID, pa.int64()),
        (USER_ID, pa.int64()),
        (TIMESTAMP, TIMESTAMP_TYPE),
        (ITEM_ID, pa.int64()),
    ]
    columns += [(name, pa.int8()) for name in schema.task_names]
    return pa.schema(columns)


def item_schema(schema: Schema) -> pa.Schema:
    """Return the columns of items.parquet."""
    return pa.schema(_feature_columns(schema.item))


def user_schema(schema: Schema) -> pa.Schema:
    """Return the columns of users.parquet."""
    key = (USER_ID, pa.int64())
    return pa.schema([key, *_feature_columns(schema.user)])


@dataclasses.dataclass(frozen=True, slots=True)
class Dataset:
    """An opened dataset directory, made by `open`.

    Opening reads file footers only. Tables are read on request.

    Args:
        path: the directory.
        name: name of the data.
        schema: features and tasks.
        event_labels: label columns of events/ that are not event features.
        has_created: whether events/ has the column `created`, the time an event became known.
        source: description of the raw data, for people.
        facts: counts, time range, quantiles, label rates, content hash.
        num_parts: number of files in events/ and in targets/.
        shard: the parts that `parts` returns; all by default.
    """

    path: Path
    name: str
    schema: Schema
    event_labels: tuple[str, ...]
    has_created: bool
    source: dict[str, Any]
    facts: dict[str, Any]
    num_parts: int
    shard: Shard = WHOLE_DATASET

    @classmethod
    def open(
        cls,
        directory: str | Path,
        shard: Shard = WHOLE_DATASET,
    ) -> Dataset:
        """Return a dataset after checking its layout, columns, types and row counts.

        Args:
            directory: the dataset; a shard needs only its own parts to be there.
            shard: the parts to check and read.

        Raises:
            DataError: a file is missing, truncated, of another format version, or does not match
                dataset.json.
            SchemaMismatch: dataset.json holds no usable schema.
        """
        path = Path(directory)
        if not path.is_dir():
            raise DataError(
                f"no dataset at {path}",
                expected="a directory that `longrec import` or `longrec synth` wrote",
            )
        metadata_path = path / "dataset.json"
        metadata = files.read_versioned_json(
            metadata_path,
            DATASET_FORMAT_VERSION,
            fix=IMPORT_AGAIN,
        )
        try:
            facts = dict(metadata["facts"])
            dataset = cls(
                path,
                name=metadata["name"],
                schema=Schema.from_dict(metadata["schema"]),
                event_labels=tuple(metadata.get("event_labels", ())),
                has_created=bool(metadata.get("has_created")),
                source=dict(metadata["source"]),
                facts=facts,
                num_parts=facts["num_parts"],
                shard=shard,
            )
        except KeyError as error:
            raise DataError(
                f"{metadata_path} lacks a key",
                found=f"no {error}",
                fix=IMPORT_AGAIN,
            ) from error
        dataset._check_files()
        return dataset

    @property
    def parts(self) -> range:
        """Parts of the shard."""
        return self.shard.parts(self.num_parts)

    def event_path(self, part: int) -> Path:
        """Return the path of one part of events/."""
        return self.path / "events" / part_name(part)

    def target_path(self, part: int) -> Path:
        """Return the path of one part of targets/."""
        return self.path / "targets" / part_name(part)

    def events(
        self,
        part: int,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """Return one part of events/, whole users in order.

        Args:
            part: number of the part.
            columns: names in the wanted order; None for all.
        """
        return read_table(self.event_path(part), self._event_schema, columns)

    def targets(
        self,
        part: int,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """Return one part of targets/: the requests of the users of the same part of events/."""
        return read_table(self.target_path(part), self._target_schema, columns)

    def event_parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the parts of events/, one in memory at a time."""
        return (self.events(part, columns) for part in self.parts)

    def target_parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the parts of targets/, one in memory at a time."""
        return (self.targets(part, columns) for part in self.parts)

    def items(self) -> pa.Table:
        """Return items.parquet."""
        return read_table(self.path / "items.parquet", item_schema(self.schema))

    def users(self) -> pa.Table:
        """Return users.parquet."""
        return read_table(self.path / "users.parquet", user_schema(self.schema))

    @property
    def _event_schema(self) -> pa.Schema:
        return event_schema(
            self.schema,
            self.event_labels,
            has_created=self.has_created,
        )

    @property
    def _target_schema(self) -> pa.Schema:
        return target_schema(self.schema)

    def _check_files(self) -> None:
        self._check_folder("events", self._event_schema, "num_events")
        self._check_folder("targets", self._target_schema, "num_targets")
        items = self.path / "items.parquet"
        num_items = check_columns(items, item_schema(self.schema))
        _check_count(items, num_items, self.facts.get("num_items"))
        check_columns(self.path / "users.parquet", user_schema(self.schema))

    def _check_folder(
        self,
        name: str,
        columns: pa.Schema,
        count_name: str,
    ) -> None:
        """Check the files of events/ or targets/: which ones, their columns, their rows."""
        folder = self.path / name
        expected = [part_name(part) for part in self.parts]
        found = sorted(path.name for path in folder.glob("*.parquet"))
        if self.shard != WHOLE_DATASET:  # parts of other shards may be there
            found = [file_name for file_name in found if file_name in expected]
        if found != expected:
            raise DataError(
                f"{folder} does not hold the parts that dataset.json names",
                found=_abbreviate(found),
                expected=_abbreviate(expected),
                fix=IMPORT_AGAIN,
            )
        num_rows = 0
        for file_name in found:
            num_rows += check_columns(folder / file_name, columns)
        if self.shard == WHOLE_DATASET:
            _check_count(folder, num_rows, self.facts.get(count_name))


def check_columns(path: Path, expected: pa.Schema) -> int:
    """Return the number of rows of a Parquet file after comparing its columns.

    Raises:
        DataError: the file is missing or unreadable, or a column is missing, unexpected or of
            another type.
    """
    try:
        footer = pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", fix=IMPORT_AGAIN) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable_parquet(path, error) from error
    with footer:
        found_types = {field.name: field.type for field in footer.schema_arrow}
        num_rows = int(footer.metadata.num_rows)
    expected_types = {field.name: field.type for field in expected}
    differences = _type_differences(expected_types, found_types)
    if differences:
        raise DataError(
            f"{path} does not have the columns of its schema",
            found="; ".join(differences),
            expected=", ".join(f"{name} {dtype}" for name, dtype in expected_types.items()),
            fix=IMPORT_AGAIN,
        )
    return num_rows


def read_table(
    path: Path,
    expected: pa.Schema,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Return a Parquet file after checking its columns.

    Args:
        path: the file.
        expected: all columns of the file.
        columns: names to read, in the wanted order; None for all.

    Raises:
        DataError: as for `check_columns`, or the file's pages are damaged.
    """
    check_columns(path, expected)
    names = list(expected.names if columns is None else columns)
    try:
        table = pq.read_table(
            path,
            columns=names,
            partitioning=None,
        )
        return table.select(names)
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise unreadable_parquet(path, error) from error


def unreadable_parquet(path: Path, error: Exception) -> DataError:
    """Return the error to raise for a damaged or truncated Parquet file."""
    lines = str(error).splitlines() or [""]
    return DataError(
        f"{path} is not a readable Parquet file",
        found=lines[0],
        fix="It may be truncated: copy or import it again.",
    )


def _feature_columns(features: Sequence[Feature]) -> list[tuple[str, pa.DataType]]:
    return [(feature.name, arrow_type(feature)) for feature in features]


def _type_differences(expected: dict[str, pa.DataType], found: dict[str, pa.DataType]) -> list[str]:
    missing = []
    changed = []
    for name, dtype in expected.items():
        found_dtype = found.get(name)
        if found_dtype is None:
            missing.append(f"'{name}' is missing")
        elif found_dtype != dtype:
            changed.append(f"'{name}' is {found_dtype}")
    unexpected = [f"'{name}' is unexpected" for name in found if name not in expected]
    return [*missing, *unexpected, *changed]


def _check_count(
    path: Path,
    found: int,
    expected: object,
) -> None:
    if found != expected:
        raise DataError(
            f"{path} does not have the rows that dataset.json counted",
            found=found,
            expected=expected,
            fix=IMPORT_AGAIN,
        )


def _abbreviate(names: Sequence[str]) -> str:
    """Return up to three names, or the first, the last and the number of names."""
    if not names:
        return "nothing"
    if len(names) < 4:
        return ", ".join(names)
    return f"{names[0]} .. {names[-1]} ({len(names)})"
