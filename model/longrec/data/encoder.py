"""Encoder: turns rows of items, users and events into indices of embedding tables.

It is fitted once on the training window and then never changes. Training and serving use the same
object, and its result depends only on the rows and its state, never on the current time.
`longrec.data.feature_encoders` encodes single features.

Shape letters: E rows of events, A event features, n rows of users, U user features, F item
features.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.data import files
from longrec.data.columns import Int64, int64_column, require_column
from longrec.data.feature_encoders import (
    FeatureEncoder,
    Int32,
    ValueCounter,
    restore_feature_encoder,
)
from longrec.data.hashing import fingerprint_arrays
from longrec.data.timelines import equals_previous
from longrec.errors import DataError, SchemaMismatch
from longrec.schema import ITEM_ID, TIMESTAMP, Feature, Schema

ENCODER_FORMAT_VERSION = 1
GROUPS = ("item", "user", "event")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A fitted encoder, made by `fit` or `load`.

    Args:
        schema: the declarations.
        feature_encoders: for each of `item`, `user`, `event` one encoder per feature, in the
            order of the schema.
        item_ids: int64, sorted; ids of the item table.
        item_table: int32 [len(item_ids) + 1, F]; row i + 1 is item_ids[i]. Row 0 is the unknown
            item: its id has the first index of unknown values, its other features are missing.
    """

    schema: Schema
    feature_encoders: Mapping[str, tuple[FeatureEncoder, ...]]
    item_ids: Int64
    item_table: Int32

    @classmethod
    def fit(
        cls,
        schema: Schema,
        items: pa.Table,
        users: pa.Table,
        events: Iterable[pa.RecordBatch],
        target_items: Iterable[Int64] = (),
        id_min_count: int = 0,
    ) -> Encoder:
        """Return the encoder of a training window, after one pass over it.

        `min_count` and the order of known values go by occurrences. Item ids are counted in
        events and targets, other item features in rows of `items`, user features in rows of
        `users`, and event features in events.

        Args:
            schema: the declarations.
            items: item_id and item features, one row per item.
            users: user features, one row per user.
            events: record batches of the window with item_id and event features.
            target_items: item ids of the targets of the window, int64 arrays.
            id_min_count: `min_count` of the item ids where the schema's is smaller.

        Raises:
            DataError: a column is missing or has the wrong type, or an item id is null or not
                unique.
        """
        items, item_ids = _sort_items(items)
        item_counts = np.zeros(len(item_ids) + 1, np.int64)
        event_counters = [ValueCounter(feature) for feature in schema.event]
        for batch in events:
            batch_ids = int64_column(batch, ITEM_ID)
            np.add.at(item_counts, _rows_of(item_ids, batch_ids), 1)
            for counter in event_counters:
                counter.add(require_column(batch, counter.feature.name))
        for target_ids in target_items:
            np.add.at(item_counts, _rows_of(item_ids, target_ids), 1)
        item_counts[item_counts < id_min_count] = 0
        id_counter = ValueCounter(schema.item[0])
        id_counter.add_counts(item_ids, item_counts[1:])
        item_encoders = (
            id_counter.fit(),
            *_fit_columns(schema.item[1:], items),
        )
        encoders = {
            "item": item_encoders,
            "user": _fit_columns(schema.user, users),
            "event": tuple(counter.fit() for counter in event_counters),
        }
        item_table = _make_item_table(schema, item_encoders, items)
        return cls(schema, encoders, item_ids, item_table)

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Number of rows of each feature's embedding table, by group, in schema order."""
        return {
            group: tuple(encoder.num_indices for encoder in encoders)
            for group, encoders in self.feature_encoders.items()
        }

    @property
    def num_items(self) -> int:
        """Number of known items; the item table has one more row."""
        return len(self.item_ids)

    @functools.cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the schema and the fitted state."""
        labelled = []
        for name, array in sorted(self._arrays().items()):
            labelled.append((f"{name}:", array))
        return fingerprint_arrays(self.schema.fingerprint, labelled)

    def item_rows(self, ids: Int64) -> Int32:
        """Return the item table's row of each id, int32; 0 for an unknown id."""
        return _rows_of(self.item_ids, ids)

    def events(self, batch: pa.RecordBatch) -> tuple[Int32, Int32, Int64]:
        """Return the encoded events of a slice of a history.

        Returns:
            Item rows int32 [E], event features int32 [E, A], timestamps int64 [E] in ms.

        Raises:
            DataError: a column is missing or has the wrong type.
        """
        item_rows = self.item_rows(int64_column(batch, ITEM_ID))
        features = self._encode("event", batch)
        return item_rows, features, int64_column(batch, TIMESTAMP)

    def users(self, table: pa.Table | pa.RecordBatch) -> Int32:
        """Return the user features of each row, int32 [n, U].

        Raises:
            DataError: a column is missing or has the wrong type.
        """
        return self._encode("user", table)

    def save(self, directory: str | Path) -> None:
        """Write encoder.json and encoder.safetensors into a directory, replacing it at once."""
        from safetensors.numpy import save_file

        arrays = self._arrays()
        for name, array in arrays.items():
            arrays[name] = np.ascontiguousarray(array)
        meta = {
            "format_version": ENCODER_FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "num_items": self.num_items,
            "sizes": self.sizes,
            "schema": self.schema.to_dict(),
        }
        with files.atomic_replace(directory) as temporary:
            temporary.mkdir()
            save_file(arrays, temporary / "encoder.safetensors")
            files.write_json(temporary / "encoder.json", meta)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        schema: Schema | None = None,
    ) -> Encoder:
        """Return the encoder that `save` wrote.

        Args:
            directory: its directory.
            schema: the schema that the caller works with; None accepts the saved one.

        Raises:
            SchemaMismatch: the saved schema is not `schema`; lists the fields.
            DataError: a file is missing, of another format version, or does not have the content
                that was saved.
        """
        directory = Path(directory)
        meta = files.read_versioned_json(
            directory / "encoder.json",
            ENCODER_FORMAT_VERSION,
            fix="Train again (longrec train).",
        )
        saved_schema = Schema.from_dict(meta["schema"])
        differences = schema.differences(saved_schema) if schema is not None else []
        if differences:
            raise SchemaMismatch(
                "the encoder was fitted for another schema",
                found="; ".join(differences),
                fix="Train again on this schema.",
            )
        encoder = cls._restore(saved_schema, directory)
        if encoder.fingerprint != meta.get("fingerprint"):
            raise DataError(
                f"{directory} is corrupted",
                found=f"fingerprint {encoder.fingerprint}",
                expected=meta.get("fingerprint"),
                fix="Copy or train it again.",
            )
        return encoder

    @classmethod
    def _restore(
        cls,
        schema: Schema,
        directory: Path,
    ) -> Encoder:
        arrays = _read_arrays(directory / "encoder.safetensors")
        encoders = {}
        try:
            for group in GROUPS:
                features = getattr(schema, group)
                encoders[group] = tuple(
                    restore_feature_encoder(feature, arrays, f"{group}.{position}.")
                    for position, feature in enumerate(features)
                )
            return cls(
                schema,
                encoders,
                arrays["item_ids"],
                arrays["item_table"],
            )
        except KeyError as error:
            raise DataError(
                f"{directory} is incomplete",
                found=f"no array {error}",
                fix="Copy or train it again.",
            ) from error

    def _encode(
        self,
        group: str,
        table: pa.Table | pa.RecordBatch,
    ) -> Int32:
        features = getattr(self.schema, group)
        return _encode_columns(features, self.feature_encoders[group], table)

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        arrays: dict[str, npt.NDArray[Any]] = {
            "item_ids": self.item_ids,
            "item_table": self.item_table,
        }
        for group, encoders in self.feature_encoders.items():
            for position, encoder in enumerate(encoders):
                for name, array in encoder.arrays().items():
                    arrays[f"{group}.{position}.{name}"] = array
        return arrays


def _sort_items(items: pa.Table) -> tuple[pa.Table, Int64]:
    """Return the items ordered by id, and their ids."""
    ids = int64_column(items, ITEM_ID)
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    repeated = ids[1:][equals_previous(ids)]
    if len(repeated):
        raise DataError(
            "item ids must be unique in the item table",
            found=f"{len(repeated)} repeated, for example {repeated[0]}",
        )
    return items.take(pa.array(order)), ids


def _rows_of(item_ids: Int64, ids: Int64) -> Int32:
    """Return 1 + the position of each id in the sorted `item_ids`; 0 for an unknown id."""
    if not len(item_ids):
        return np.zeros(len(ids), np.int32)
    positions = np.searchsorted(item_ids, ids)
    positions = np.minimum(positions, len(item_ids) - 1)
    is_known = item_ids[positions] == ids
    rows = np.where(is_known, positions + 1, 0)
    return rows.astype(np.int32)


def _fit_columns(features: Sequence[Feature], table: pa.Table) -> tuple[FeatureEncoder, ...]:
    encoders = []
    for feature in features:
        counter = ValueCounter(feature)
        counter.add(require_column(table, feature.name))
        encoders.append(counter.fit())
    return tuple(encoders)


def _make_item_table(
    schema: Schema,
    encoders: Sequence[FeatureEncoder],
    items: pa.Table,
) -> Int32:
    num_oov = schema.item[0].num_oov
    unknown_item = np.zeros((1, len(encoders)), np.int32)
    # Index 1 is the first shared one. Without shared indices the unknown item is missing (0).
    unknown_item[0, 0] = min(1, num_oov)
    known_items = _encode_columns(schema.item, encoders, items)
    return np.concatenate([unknown_item, known_items])


def _encode_columns(
    features: Sequence[Feature],
    encoders: Sequence[FeatureEncoder],
    table: pa.Table | pa.RecordBatch,
) -> Int32:
    """Return the indices of all features of each row, int32 [rows, features]."""
    columns = [
        encoder.encode(require_column(table, feature.name))
        for feature, encoder in zip(features, encoders, strict=True)
    ]
    if not columns:
        return np.zeros((table.num_rows, 0), np.int32)
    return np.stack(columns, axis=1)


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", expected="the arrays of an encoder") from error
    except (SafetensorError, ValueError, OSError) as error:
        raise DataError(
            f"{path} is not readable",
            found=str(error),
            fix="Copy or train it again.",
        ) from error
