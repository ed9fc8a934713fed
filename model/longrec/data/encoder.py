"""Encoder: rows in, indices of embedding tables out; fitted once on the training window, pure
afterwards.

The rule of a feature (see `longrec.schema.Feature`) is one of two: `Vocabulary` (kinds id and
category) and `Bins` (kind
number). Index 0 is "missing" in both. Training and serving encode through the same object, and
nothing in it knows the time.

    known    i i i i       one index per value, by (count desc, value)      1 + num_oov ...
    num_indices - 1
    unknown  o o           shared by a stable hash                          1 ... num_oov
    missing  0

Shape letters: E rows of events, A action features, n rows of users, U user features, F item
features.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data import files
from longrec.errors import DataError, SchemaMismatch
from longrec.schema import ITEM_ID, TIMESTAMP, Feature, Schema

FORMAT_VERSION = 1
SAMPLE_SIZE = 1 << 18
"""Values of a number kept to find its quantiles; a sample by hashed position, so that it does not
depend on batch sizes.
"""

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Column: TypeAlias = pa.Array | pa.ChunkedArray


def splitmix64(values: npt.NDArray[Any]) -> UInt64:
    """Returns one well-mixed uint64 per 64-bit value, the same on every machine (Steele, Lea, Flood
    2014).
    """
    mixed: UInt64 = np.ascontiguousarray(values).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class Rule(Protocol):
    """Turns a column into indices of one embedding table."""

    @property
    def num_indices(self) -> int:
        """Rows of the embedding table, row 0 ("missing") included."""

    def encode(self, column: Column) -> Int32:
        """Returns one index per row, int32."""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the fitted state as arrays."""


@dataclasses.dataclass(frozen=True, slots=True)
class Vocabulary:
    """The rule of an id or a category.

    Args:
        feature: the declaration.
        values: known values, sorted; an Arrow array of the feature's dtype.
        indices: int32, index of each known value.
    """

    feature: Feature
    values: pa.Array
    indices: Int32

    @property
    def num_indices(self) -> int:
        return 1 + self.feature.num_oov + len(self.values)

    def encode(self, column: Column) -> Int32:
        """Returns one index per row: 0 for null or NaN, 1..num_oov for unknown values, then the
        known ones.
        """
        codes, uniques = _split_dictionary(column, self.feature)
        if uniques is None:
            return self._encode_numbers(*codes)
        return _through_dictionary(self._encode_uniques(uniques), codes[0])

    def _encode_uniques(self, values: pa.Array) -> Int32:
        if self.feature.dtype != "string":
            return self._encode_numbers(*_numbers(values, self.feature))
        positions = pc.index_in(values, value_set=self.values)
        if not positions.null_count:
            found: Int32 = self.indices[np.asarray(positions)]
            return found
        known = np.asarray(pc.is_valid(positions))
        out = np.zeros(len(values), np.int32)
        out[known] = self.indices[np.asarray(pc.fill_null(positions, 0), np.int64)[known]]
        unknown = np.flatnonzero(~known & np.asarray(pc.is_valid(values)))
        hashes = [zlib.crc32(values[int(row)].as_py().encode()) for row in unknown]
        out[unknown] = self._shared(np.array(hashes, np.int64))
        return out

    def _encode_numbers(self, values: npt.NDArray[Any], missing: npt.NDArray[np.bool_]) -> Int32:
        vocabulary = np.asarray(self.values)
        positions = np.searchsorted(vocabulary, values)
        positions[positions == len(vocabulary)] = 0
        known = (
            (vocabulary[positions] == values) & ~missing
            if len(vocabulary)
            else np.zeros(len(values), bool)
        )
        out = self._shared(values)
        out[known] = self.indices[positions[known]]
        out[missing] = 0
        return out

    def _shared(self, values: npt.NDArray[Any]) -> Int32:
        if not self.feature.num_oov:
            return np.zeros(len(values), np.int32)
        return (1 + splitmix64(values) % np.uint64(self.feature.num_oov)).astype(np.int32)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        if self.feature.dtype != "string":
            return {"values": np.asarray(self.values), "indices": self.indices}
        texts = [value.as_py().encode() for value in self.values]
        offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        return {
            "bytes": np.frombuffer(b"".join(texts), np.uint8),
            "offsets": offsets,
            "indices": self.indices,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Bins:
    """The rule of a number: 0 for null or NaN, else 1 + the number of edges that are not above the
    value.

    Args:
        feature: the declaration.
        edges: float64, rising, at most num_bins - 1: quantiles of the training window, doubles
            removed.
    """

    feature: Feature
    edges: npt.NDArray[np.float64]

    @property
    def num_indices(self) -> int:
        return 2 + len(self.edges)

    def encode(self, column: Column) -> Int32:
        """Returns one bin per row, int32."""
        codes, uniques = _split_dictionary(column, self.feature)
        if uniques is None:
            return self._encode_numbers(*codes)
        return _through_dictionary(self._encode_numbers(*_numbers(uniques, self.feature)), codes[0])

    def _encode_numbers(self, values: npt.NDArray[Any], missing: npt.NDArray[np.bool_]) -> Int32:
        out = (1 + np.searchsorted(self.edges, values, side="right")).astype(np.int32)
        out[missing] = 0
        return out

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"edges": self.edges}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What turns rows of items, users and events into indices. Made by `fit` or `load`, never
    changed.

    Args:
        schema: the declarations.
        rules: for each of `item`, `user`, `event` the rules in the order of the schema.
        item_ids: int64, sorted; the items of the item table.
        item_table: int32 [len(item_ids) + 1, F]; row 0 is the unknown item (its id shares the first
            of the indices of
            unknown values, its other features are missing), row i + 1 is item_ids[i].
    """

    schema: Schema
    rules: Mapping[str, tuple[Rule, ...]]
    item_ids: Int64
    item_table: Int32

    @classmethod
    def fit(
        cls,
        schema: Schema,
        items: pa.Table,
        users: pa.Table,
        events: Iterable[pa.RecordBatch],
        target_items: Iterable[npt.NDArray[np.int64]] = (),
    ) -> Encoder:
        """Returns the encoder of a training window, after one pass over it.

        Occurrences that `min_count` and the order of known values go by: of the item id, in events
        and targets of the
        window; of other item features, in rows of `items`; of user features, in rows of `users`; of
        event features, in events.

        Args:
            schema: the declarations.
            items: item_id and the item features, one row per item.
            users: the user features, one row per user.
            events: record batches of the window with item_id and the event features.
            target_items: item ids of the targets of the window, int64 arrays.

        Raises:
            DataError: a column is missing or has the wrong type, or an item id is null or not
                unique.
        """
        items, item_ids = _sorted_items(items)
        counts = np.zeros(len(item_ids) + 1, np.int64)
        counters = [_Counter(feature) for feature in schema.event]
        for batch in events:
            np.add.at(counts, _rows_of(item_ids, int64_column(batch, ITEM_ID)), 1)
            for counter in counters:
                counter.add(_column(batch, counter.feature.name))
        for ids in target_items:
            np.add.at(counts, _rows_of(item_ids, ids), 1)
        item_id = _Counter(schema.item[0])
        item_id.add_counts(item_ids, counts[1:])
        item_rules = (
            item_id.rule(),
            *(_count_column(feature, items).rule() for feature in schema.item[1:]),
        )
        user_rules = tuple(_count_column(feature, users).rule() for feature in schema.user)
        rules = {
            "item": item_rules,
            "user": user_rules,
            "event": tuple(counter.rule() for counter in counters),
        }
        return cls(schema, rules, item_ids, _item_table(schema, item_rules, items))

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Rows of each feature's embedding table, by group, in the order of the schema."""
        return {
            group: tuple(rule.num_indices for rule in rules) for group, rules in self.rules.items()
        }

    @property
    def num_items(self) -> int:
        """Items with a row of their own; the item table has one more."""
        return len(self.item_ids)

    @functools.cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the schema and the fitted state."""
        digest = hashlib.sha256(self.schema.fingerprint.encode())
        for name, array in sorted(self._arrays().items()):
            digest.update(f"{name}:{array.dtype}:{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data if array.size else b"")
        return digest.hexdigest()[:16]

    def item_rows(self, ids: npt.NDArray[np.int64]) -> Int32:
        """Returns the row of the item table of each id, int32; 0 for an id that is not in it."""
        return _rows_of(self.item_ids, ids)

    def events(self, batch: pa.RecordBatch) -> tuple[Int32, Int32, Int64]:
        """Returns (item rows int32 [E], action features int32 [E, A], timestamps int64 [E] in ms)
        of a slice of a history.

        Raises:
            DataError: a column is missing or has the wrong type.
        """
        items = self.item_rows(int64_column(batch, ITEM_ID))
        return items, self._encode("event", batch), int64_column(batch, TIMESTAMP)

    def users(self, table: pa.Table | pa.RecordBatch) -> Int32:
        """Returns the user features of each row, int32 [n, U].

        Raises:
            DataError: a column is missing or has the wrong type.
        """
        return self._encode("user", table)

    def _encode(self, group: str, table: pa.Table | pa.RecordBatch) -> Int32:
        return _stack(
            [
                rule.encode(_column(table, feature.name))
                for feature, rule in zip(
                    getattr(self.schema, group), self.rules[group], strict=True
                )
            ],
            table.num_rows,
        )

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        arrays: dict[str, npt.NDArray[Any]] = {
            "item_ids": self.item_ids,
            "item_table": self.item_table,
        }
        for group, rules in self.rules.items():
            for position, rule in enumerate(rules):
                arrays |= {
                    f"{group}.{position}.{name}": array for name, array in rule.arrays().items()
                }
        return arrays

    def save(self, directory: str | Path) -> None:
        """Writes encoder.json and encoder.safetensors into `directory`, replacing it at once."""
        from safetensors.numpy import save_file

        with files.replacing(directory) as temporary:
            temporary.mkdir()
            save_file(
                {name: np.ascontiguousarray(array) for name, array in self._arrays().items()},
                temporary / "encoder.safetensors",
            )
            files.write_json(
                temporary / "encoder.json",
                {
                    "format_version": FORMAT_VERSION,
                    "fingerprint": self.fingerprint,
                    "num_items": self.num_items,
                    "sizes": {group: list(sizes) for group, sizes in self.sizes.items()},
                    "schema": self.schema.to_dict(),
                },
            )

    @classmethod
    def load(cls, directory: str | Path, schema: Schema | None = None) -> Encoder:
        """Returns the encoder that `save` wrote.

        Args:
            directory: where it was saved.
            schema: what the caller works with; None to take the saved one as it is.

        Raises:
            SchemaMismatch: the saved schema is not `schema`; lists the fields.
            DataError: a file is missing, of another format, or does not have the content that was
                saved.
        """
        directory = Path(directory)
        meta = files.read_json(directory / "encoder.json")
        if meta.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{directory} has another encoder format",
                found=meta.get("format_version"),
                expected=FORMAT_VERSION,
            )
        saved = Schema.from_dict(meta["schema"])
        if schema is not None and (lines := schema.differences(saved)):
            raise SchemaMismatch(
                "the encoder was fitted for another schema",
                found="; ".join(lines),
                fix="Train again on this schema.",
            )
        arrays = _read_arrays(directory / "encoder.safetensors")
        try:
            rules = {
                group: _restore_group(saved, group, arrays) for group in ("item", "user", "event")
            }
            encoder = cls(saved, rules, arrays["item_ids"], arrays["item_table"])
        except KeyError as error:
            raise DataError(f"{directory} is incomplete", found=f"no array {error}") from error
        if encoder.fingerprint != meta.get("fingerprint"):
            raise DataError(
                f"{directory} is corrupted",
                found=f"fingerprint {encoder.fingerprint}",
                expected=meta.get("fingerprint"),
                fix="Copy or train it again.",
            )
        return encoder


class _Counter:
    """Occurrences of the values of one feature, added batch by batch; a number keeps a sample
    instead.
    """

    def __init__(self, feature: Feature) -> None:
        self.feature = feature
        self._counts: dict[str, int] = {}
        self._values: npt.NDArray[Any] = np.array(
            [], np.int64 if feature.dtype == "int64" else np.float64
        )
        self._value_counts = np.array([], np.int64)
        self._keys = np.array([], np.uint64)
        self._num_seen = 0

    def add(self, column: Column) -> None:
        if self.feature.kind == "number":
            self._add_sample(_flat_numbers(column, self.feature))
        elif self.feature.dtype == "string":
            for entry in pc.value_counts(_plain_strings(column, self.feature)).to_pylist():
                if entry["values"] is not None:
                    self._counts[entry["values"]] = (
                        self._counts.get(entry["values"], 0) + entry["counts"]
                    )
        else:
            self.add_counts(*np.unique(_flat_numbers(column, self.feature), return_counts=True))

    def add_counts(self, values: npt.NDArray[Any], counts: Int64) -> None:
        self._values, where = np.unique(np.concatenate([self._values, values]), return_inverse=True)
        weights = np.concatenate([self._value_counts, counts])
        self._value_counts = np.zeros(len(self._values), np.int64)
        np.add.at(self._value_counts, where, weights)

    def _add_sample(self, values: npt.NDArray[Any]) -> None:
        keys = splitmix64(np.arange(self._num_seen, self._num_seen + len(values), dtype=np.int64))
        self._num_seen += len(values)
        values, keys = (
            np.concatenate([self._values, values]).astype(np.float64),
            np.concatenate([self._keys, keys]),
        )
        if len(keys) > SAMPLE_SIZE:
            kept = np.argpartition(keys, SAMPLE_SIZE)[:SAMPLE_SIZE]
            values, keys = values[kept], keys[kept]
        self._values, self._keys = values, keys

    def rule(self) -> Rule:
        if self.feature.kind == "number":
            finite = self._values[np.isfinite(self._values)].astype(np.float64)
            shares = np.linspace(0, 1, self.feature.num_bins + 1)[1:-1]
            edges = (
                np.unique(np.quantile(finite, shares, method="inverted_cdf"))
                if len(finite)
                else np.array([], np.float64)
            )
            return Bins(self.feature, edges)
        if self.feature.dtype == "string":
            ordered = sorted(self._counts, key=lambda value: value.encode())
            return _vocabulary(
                self.feature,
                pa.array(ordered, pa.string()),
                np.array([self._counts[value] for value in ordered], np.int64),
            )
        return _vocabulary(self.feature, pa.array(self._values), self._value_counts)


def _vocabulary(feature: Feature, values: pa.Array, counts: Int64) -> Vocabulary:
    """Returns the rule in which sorted `values` with enough `counts` are known, most frequent
    first, ties by value.
    """
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] >= max(feature.min_count, 1)][: feature.max_size]
    kept = np.sort(order)
    rank = np.empty(len(counts), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return Vocabulary(
        feature, values.take(pa.array(kept)), (1 + feature.num_oov + rank[kept]).astype(np.int32)
    )


def _count_column(feature: Feature, table: pa.Table) -> _Counter:
    counter = _Counter(feature)
    counter.add(_column(table, feature.name))
    return counter


def _item_table(schema: Schema, rules: tuple[Rule, ...], items: pa.Table) -> Int32:
    columns = [
        rule.encode(_column(items, feature.name))
        for feature, rule in zip(schema.item, rules, strict=True)
    ]
    unknown = np.zeros((1, len(rules)), np.int32)
    unknown[0, 0] = min(1, schema.item[0].num_oov)
    return np.concatenate([unknown, _stack(columns, items.num_rows)])


def _sorted_items(items: pa.Table) -> tuple[pa.Table, Int64]:
    """Returns the items ordered by id, and their ids."""
    ids = int64_column(items, ITEM_ID)
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    if len(doubles := ids[1:][ids[1:] == ids[:-1]]):
        raise DataError(
            "item ids must be unique in the item table",
            found=f"{len(doubles)} repeated, for example {doubles[0]}",
        )
    return items.take(pa.array(order)), ids


def _rows_of(item_ids: Int64, ids: npt.NDArray[np.int64]) -> Int32:
    if not len(item_ids):
        return np.zeros(len(ids), np.int32)
    positions = np.minimum(np.searchsorted(item_ids, ids), len(item_ids) - 1)
    return np.where(item_ids[positions] == ids, positions + 1, 0).astype(np.int32)


def _stack(columns: list[Int32], num_rows: int) -> Int32:
    return np.stack(columns, axis=1) if columns else np.zeros((num_rows, 0), np.int32)


def _column(table: pa.Table | pa.RecordBatch, name: str) -> Column:
    position = table.schema.get_field_index(name)
    if position < 0:
        raise DataError(
            f"column '{name}' is missing",
            found=", ".join(table.schema.names),
            fix="Make the table for this schema.",
        )
    return table.column(position)


def int64_column(table: pa.Table | pa.RecordBatch, name: str) -> Int64:
    """Returns a column without nulls as int64; timestamps become milliseconds."""
    column = _one_chunk(_column(table, name))
    if column.null_count:
        raise DataError(
            f"column '{name}' must not hold nulls", found=f"{column.null_count} of {len(column)}"
        )
    if pa.types.is_timestamp(column.type):
        return np.asarray(
            _cast(column, pa.timestamp("ms", tz=column.type.tz), name).view(pa.int64())
        )
    return np.asarray(_cast(column, pa.int64(), name))


def _one_chunk(column: Column) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column


def _cast(
    column: pa.Array,
    kind: pa.DataType,
    name: str,
    *,
    safe: bool = True,
) -> pa.Array:
    try:
        return column if column.type == kind else pc.cast(column, kind, safe=safe)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"column '{name}' has the wrong type", found=str(column.type), expected=str(kind)
        ) from error


def _split_dictionary(
    column: Column, feature: Feature
) -> tuple[tuple[npt.NDArray[Any], ...], pa.Array | None]:
    """Returns ((code per row, -1 for null), unique values), or ((values, missing), None) of a plain
    column of numbers.
    """
    column = _one_chunk(column)
    if not pa.types.is_dictionary(column.type):
        if feature.dtype != "string":
            return _numbers(column, feature), None
        column = _plain_strings(column, feature).dictionary_encode()
    uniques = column.dictionary
    if feature.dtype == "string":
        uniques = _cast(uniques, pa.string(), feature.name)
    indices = column.indices
    codes = (
        np.asarray(pc.fill_null(_cast(indices, pa.int64(), feature.name), -1))
        if indices.null_count
        else np.asarray(indices)
    )
    return (codes,), uniques


def _through_dictionary(encoded: Int32, codes: Int64) -> Int32:
    return np.append(encoded, np.int32(0))[codes]


def _plain_strings(column: Column, feature: Feature) -> pa.Array:
    column = _one_chunk(column)
    return _cast(
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column,
        pa.string(),
        feature.name,
    )


def _numbers(column: pa.Array, feature: Feature) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Returns (values as int64 or float64, whether each is missing); a missing value reads 0."""
    exact = feature.dtype == "int64" and feature.kind != "number"
    column = _cast(column, pa.int64() if exact else pa.float64(), feature.name, safe=exact)
    if exact and not column.null_count:
        return np.asarray(column), np.zeros(len(column), np.bool_)
    missing = np.asarray(pc.is_null(column, nan_is_null=True))
    values = np.where(missing, 0, np.asarray(pc.fill_null(column, 0)))
    return (values if exact else values + 0.0), missing


def _flat_numbers(column: Column, feature: Feature) -> npt.NDArray[Any]:
    column = _one_chunk(column)
    values, missing = _numbers(
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column, feature
    )
    return values[~missing]


def _restore_group(
    schema: Schema, group: str, arrays: Mapping[str, npt.NDArray[Any]]
) -> tuple[Rule, ...]:
    return tuple(
        _restore(feature, arrays, f"{group}.{position}.")
        for position, feature in enumerate(getattr(schema, group))
    )


def _restore(feature: Feature, arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> Rule:
    if feature.kind == "number":
        return Bins(feature, arrays[prefix + "edges"])
    indices = arrays[prefix + "indices"]
    if feature.dtype != "string":
        return Vocabulary(feature, pa.array(arrays[prefix + "values"]), indices)
    text, offsets = arrays[prefix + "bytes"].tobytes(), arrays[prefix + "offsets"]
    values = [text[start:end].decode() for start, end in itertools.pairwise(offsets)]
    return Vocabulary(feature, pa.array(values, pa.string()), indices)


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", expected="the arrays of an encoder") from error
    except (SafetensorError, ValueError, OSError) as error:
        raise DataError(
            f"{path} is not readable", found=str(error), fix="Copy or train it again."
        ) from error
