"""FeatureEncoder: turns the values of one feature into indices of its embedding table.

    known    i i i i       one index per value, by (count descending, value)   1 + num_oov ...
    unknown  o o           shared by a stable hash                             1 ... num_oov
    missing  0

`Vocabulary` encodes ids and categories as drawn, `Bins` encodes numbers by quantile bins. Index 0
is "missing" in both. `ValueCounter` fits either of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.columns import Column, Int64, cast_column, single_array
from longrec.data.hashing import splitmix64
from longrec.data.timelines import Mask
from longrec.schema import Feature

SAMPLE_SIZE = 1 << 18
"""Largest number of values that are sampled to find the quantiles of a `number`.

The sample is drawn by hashed position, so it does not depend on batch sizes.
"""

Int32 = npt.NDArray[np.int32]
Numbers = npt.NDArray[Any]


class FeatureEncoder(Protocol):
    """Turns a column into indices of one embedding table."""

    @property
    def num_indices(self) -> int:
        """Number of rows of the embedding table, row 0 ("missing") included."""

    def encode(self, column: Column) -> Int32:
        """Return one index per row, int32."""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the fitted state as arrays."""


@dataclasses.dataclass(frozen=True, slots=True)
class Vocabulary:
    """The encoder of an id or a category.

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
        """Number of rows of the embedding table, row 0 ("missing") included."""
        return 1 + self.feature.num_oov + len(self.values)

    def encode(self, column: Column) -> Int32:
        """Return one index per row, int32; 0 for null or NaN, 1..num_oov for unknown values."""
        return _encode_column(column, self.feature, self._encode_values)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the fitted state as arrays; texts become bytes and offsets."""
        if self.feature.dtype != "string":
            return {
                "values": np.asarray(self.values),
                "indices": self.indices,
            }
        texts = [value.as_py().encode() for value in self.values]
        lengths = [len(text) for text in texts]
        return {
            "bytes": np.frombuffer(b"".join(texts), np.uint8),
            "offsets": np.cumsum([0, *lengths], dtype=np.int64),
            "indices": self.indices,
        }

    def _encode_values(self, values: pa.Array) -> Int32:
        if self.feature.dtype == "string":
            return self._encode_texts(values)
        return self._encode_numbers(*_values_and_missing(values, self.feature))

    def _encode_texts(self, texts: pa.Array) -> Int32:
        positions = pc.index_in(texts, value_set=self.values)
        if not positions.null_count:
            found: Int32 = self.indices[np.asarray(positions)]
            return found
        is_known = np.asarray(pc.is_valid(positions))
        is_given = np.asarray(pc.is_valid(texts))
        is_unknown = ~is_known & is_given
        known_positions = positions.drop_null().to_numpy()
        unknown_texts = texts.filter(pa.array(is_unknown)).to_pylist()
        hashes = [zlib.crc32(text.encode()) for text in unknown_texts]
        encoded = np.zeros(len(texts), np.int32)
        encoded[is_known] = self.indices[known_positions]
        unknown_hashes = np.array(hashes, np.int64)
        encoded[is_unknown] = self._shared_indices(unknown_hashes)
        return encoded

    def _encode_numbers(
        self,
        values: Numbers,
        is_missing: Mask,
    ) -> Int32:
        encoded = self._shared_indices(values)
        known_values = np.asarray(self.values)
        if len(known_values):
            positions = np.searchsorted(known_values, values)
            # Beyond the last value any position will do: the comparison rejects it.
            positions[positions == len(known_values)] = 0
            is_known = known_values[positions] == values
            encoded[is_known] = self.indices[positions[is_known]]
        encoded[is_missing] = 0
        return encoded

    def _shared_indices(self, values: Numbers) -> Int32:
        """Return the index of each value as if it were unknown."""
        if not self.feature.num_oov:
            return np.zeros(len(values), np.int32)
        num_buckets = np.uint64(self.feature.num_oov)
        buckets = splitmix64(values) % num_buckets
        return (1 + buckets).astype(np.int32)


@dataclasses.dataclass(frozen=True, slots=True)
class Bins:
    """The encoder of a number: 0 for null or NaN, else 1 + the number of edges <= the value.

    Args:
        feature: the declaration.
        edges: float64, strictly rising, at most num_bins - 1: quantiles of the training window.
    """

    feature: Feature
    edges: npt.NDArray[np.float64]

    @property
    def num_indices(self) -> int:
        """Number of rows of the embedding table, row 0 ("missing") included."""
        return 2 + len(self.edges)

    def encode(self, column: Column) -> Int32:
        """Return one bin per row, int32."""
        return _encode_column(column, self.feature, self._encode_values)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the fitted state as arrays."""
        return {"edges": self.edges}

    def _encode_values(self, values: pa.Array) -> Int32:
        numbers, is_missing = _values_and_missing(values, self.feature)
        num_edges = np.searchsorted(self.edges, numbers, side="right")
        encoded = (1 + num_edges).astype(np.int32)
        encoded[is_missing] = 0
        return encoded


def restore_feature_encoder(
    feature: Feature,
    arrays: Mapping[str, npt.NDArray[Any]],
    prefix: str,
) -> FeatureEncoder:
    """Return the encoder that `arrays()` described.

    Args:
        feature: the declaration.
        arrays: state of many encoders, by prefix and name.
        prefix: prefix of the names of this encoder's arrays.

    Raises:
        KeyError: an array is missing.
    """
    if feature.kind == "number":
        return Bins(feature, arrays[prefix + "edges"])
    indices = arrays[prefix + "indices"]
    if feature.dtype != "string":
        values = pa.array(arrays[prefix + "values"])
        return Vocabulary(feature, values, indices)
    joined = arrays[prefix + "bytes"].tobytes()
    offsets = arrays[prefix + "offsets"]
    texts = []
    for start, end in itertools.pairwise(offsets):
        texts.append(joined[start:end].decode())
    return Vocabulary(feature, pa.array(texts, pa.string()), indices)


class ValueCounter:
    """Counts the values of one feature batch by batch and fits its encoder; numbers are sampled.

    Args:
        feature: the declaration.
    """

    def __init__(self, feature: Feature) -> None:
        dtype = np.int64 if feature.dtype == "int64" else np.float64
        self.feature = feature
        self._text_counts: dict[str, int] = {}
        # The sample of a `number`, or the distinct values of another numeric feature.
        self._values: Numbers = np.array([], dtype)
        self._value_counts = np.array([], np.int64)
        self._sample_keys = np.array([], np.uint64)
        self._num_seen = 0

    def add(self, column: Column) -> None:
        """Count the values of a column."""
        if self.feature.kind == "number":
            self._add_to_sample(_present_numbers(column, self.feature))
        elif self.feature.dtype == "string":
            self._add_texts(_plain_texts(column, self.feature))
        else:
            numbers = _present_numbers(column, self.feature)
            values, counts = np.unique(numbers, return_counts=True)
            self.add_counts(values, counts)

    def add_counts(
        self,
        values: Numbers,
        counts: Int64,
    ) -> None:
        """Add counts of numeric values."""
        all_values = np.concatenate([self._values, values])
        all_counts = np.concatenate([self._value_counts, counts])
        self._values, positions = np.unique(all_values, return_inverse=True)
        self._value_counts = np.zeros(len(self._values), np.int64)
        np.add.at(self._value_counts, positions, all_counts)

    def fit(self) -> FeatureEncoder:
        """Return the encoder of the values that were added."""
        if self.feature.kind == "number":
            return Bins(self.feature, self._quantile_edges())
        if self.feature.dtype != "string":
            values = pa.array(self._values)
            return _fit_vocabulary(self.feature, values, self._value_counts)
        texts = sorted(self._text_counts, key=str.encode)
        counts = [self._text_counts[text] for text in texts]
        return _fit_vocabulary(
            self.feature,
            pa.array(texts, pa.string()),
            np.array(counts, np.int64),
        )

    def _add_texts(self, texts: pa.Array) -> None:
        for entry in pc.value_counts(texts).to_pylist():
            text = entry["values"]
            if text is not None:
                count = self._text_counts.get(text, 0)
                self._text_counts[text] = count + entry["counts"]

    def _add_to_sample(self, numbers: Numbers) -> None:
        """Keep the SAMPLE_SIZE numbers with the smallest hash of their position."""
        end = self._num_seen + len(numbers)
        positions = np.arange(self._num_seen, end, dtype=np.int64)
        self._num_seen = end
        new_keys = splitmix64(positions)
        values = np.concatenate([self._values, numbers])
        values = values.astype(np.float64)
        keys = np.concatenate([self._sample_keys, new_keys])
        if len(keys) > SAMPLE_SIZE:
            chosen = np.argpartition(keys, SAMPLE_SIZE)[:SAMPLE_SIZE]
            values = values[chosen]
            keys = keys[chosen]
        self._values = values
        self._sample_keys = keys

    def _quantile_edges(self) -> npt.NDArray[np.float64]:
        is_finite = np.isfinite(self._values)
        finite = self._values[is_finite].astype(np.float64)
        if not len(finite):
            return np.array([], np.float64)
        shares = np.linspace(0, 1, self.feature.num_bins + 1)
        inner_shares = shares[1:-1]
        return np.unique(np.quantile(finite, inner_shares, method="inverted_cdf"))


def _fit_vocabulary(
    feature: Feature,
    values: pa.Array,
    counts: Int64,
) -> Vocabulary:
    """Return the vocabulary of the frequent values, most frequent first, ties by value.

    Args:
        feature: bounds on count and size.
        values: distinct values, sorted.
        counts: int64, occurrences of each value.
    """
    # `order` holds positions in `values`, most frequent first; `rank` is its inverse.
    order = np.argsort(-counts, kind="stable")
    is_frequent = counts[order] >= max(feature.min_count, 1)
    order = order[is_frequent][: feature.max_size]
    rank = np.empty(len(counts), np.int32)
    rank[order] = np.arange(len(order))
    known = np.sort(order)
    indices = 1 + feature.num_oov + rank[known]
    return Vocabulary(
        feature,
        values.take(pa.array(known)),
        indices.astype(np.int32),
    )


def _encode_column(
    column: Column,
    feature: Feature,
    encode_values: Callable[[pa.Array], Int32],
) -> Int32:
    """Return one index per row; each text or dictionary entry is encoded only once."""
    array = single_array(column)
    if not pa.types.is_dictionary(array.type):
        if feature.dtype != "string":
            return encode_values(array)
        array = _plain_texts(array, feature).dictionary_encode()
    uniques = array.dictionary
    if feature.dtype == "string":
        uniques = cast_column(uniques, pa.string(), feature.name)
    codes = array.indices
    if codes.null_count:
        codes = cast_column(codes, pa.int64(), feature.name)
        codes = pc.fill_null(codes, -1)
    encoded = np.append(encode_values(uniques), np.int32(0))  # code -1 reads the last entry
    indices: Int32 = encoded[np.asarray(codes)]
    return indices


def _plain_texts(column: Column, feature: Feature) -> pa.Array:
    return cast_column(_decoded(column), pa.string(), feature.name)


def _present_numbers(column: Column, feature: Feature) -> Numbers:
    """Return the values of a numeric column that are not missing."""
    numbers, is_missing = _values_and_missing(_decoded(column), feature)
    return numbers[~is_missing]


def _decoded(column: Column) -> pa.Array:
    array = single_array(column)
    if pa.types.is_dictionary(array.type):
        return array.dictionary_decode()
    return array


def _values_and_missing(column: pa.Array, feature: Feature) -> tuple[Numbers, Mask]:
    """Return (values as int64 or float64, whether each is missing); a missing value reads 0."""
    is_exact = feature.dtype == "int64" and feature.kind != "number"
    dtype = pa.int64() if is_exact else pa.float64()
    column = cast_column(
        column,
        dtype,
        feature.name,
        safe=is_exact,
    )
    if is_exact and not column.null_count:
        nothing_missing = np.zeros(len(column), np.bool_)
        return np.asarray(column), nothing_missing
    is_missing = np.asarray(pc.is_null(column, nan_is_null=True))
    filled = np.asarray(pc.fill_null(column, 0))
    values = np.where(is_missing, 0, filled)
    if not is_exact:
        values = values + 0.0  # -0.0 becomes 0.0, which has another hash
    return values, is_missing
