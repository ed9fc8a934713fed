"""UserRecord: what the feature store knows of one user, base history and tail merged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from longrec.data import history
from longrec.data.columns import HISTORY, HISTORY_LENGTH, TAIL, TAIL_BASE, TAIL_LENGTH
from longrec.errors import DataError
from longrec.schema import Feature, Schema


@dataclasses.dataclass(frozen=True, slots=True)
class UserRecord:
    """What the feature store knows of one user.

    Args:
        user_id: the user.
        history: published and pushed events, oldest first (the history codec's columns); no rows
            for an unknown user.
        features: value of each user feature by name, None for a missing one; None for a user
            without features.
        store_version: hash of the published features that were read (manifest.json); empty if
            none were.
    """

    user_id: int
    history: pa.RecordBatch
    features: dict[str, Any] | None
    store_version: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredUser:
    """The stored values of one user, not merged yet.

    Args:
        user_id: the user.
        base: the base history.
        tail: the incremental tail.
        tail_base: number of events of the base that the tail continues.
        features: value of each user feature by name; None for a user without features.
        has_stated_lengths: whether base and tail are as long as the store says.
    """

    user_id: int
    base: pa.RecordBatch
    tail: pa.RecordBatch
    tail_base: int
    features: dict[str, Any] | None
    has_stated_lengths: bool = True

    @classmethod
    def of(
        cls,
        user_id: int,
        values: Mapping[str, Any],
        schema: Schema,
    ) -> StoredUser:
        """Return the stored user.

        Args:
            user_id: the user.
            values: value of each stored feature by name, None for a missing one.
            schema: schema of the published features.

        Raises:
            DataError: a stored value is damaged.
        """
        base = _events(values[HISTORY], schema)
        tail = _events(values[TAIL], schema)
        # Offline rows are read without their lengths.
        base_length = _count(values.get(HISTORY_LENGTH, base.num_rows))
        tail_length = _count(values.get(TAIL_LENGTH, tail.num_rows))
        return cls(
            user_id,
            base=base,
            tail=tail,
            tail_base=_count(values[TAIL_BASE]),
            features=_features(values, schema),
            has_stated_lengths=(base_length, tail_length) == (base.num_rows, tail.num_rows),
        )

    @property
    def is_consistent(self) -> bool:
        """Whether all stated events are there, and the base holds those that the tail continues."""
        return self.has_stated_lengths and self.base.num_rows >= self.tail_base

    def merged(self, schema: Schema) -> pa.RecordBatch:
        """Return base and tail as one history."""
        return history.merge(self.base, self.tail, schema)

    def record(
        self,
        schema: Schema,
        before_ms: int | None = None,
        max_history: int | None = None,
    ) -> UserRecord:
        """Return the user's features and merged history, cut to a time and a length.

        Args:
            schema: schema of the published features.
            before_ms: only events strictly before this time; None for all.
            max_history: only the most recent ones of them, at most this many; None for all.
        """
        events = self.merged(schema)
        if before_ms is not None:
            events = history.events_before(events, before_ms)
        if max_history is not None:
            events = history.most_recent(events, max_history)
        return UserRecord(
            self.user_id,
            events,
            self.features,
        )


def _features(values: Mapping[str, Any], schema: Schema) -> dict[str, Any] | None:
    """Return the user features in the types of the dataset; None if all are missing."""
    features = {}
    is_known = False
    for feature in schema.user:
        value = values.get(feature.name)
        is_known |= value is not None
        features[feature.name] = _feature_value(value, feature)
    return features if is_known else None


def _events(payload: Any, schema: Schema) -> pa.RecordBatch:
    if payload is not None and not isinstance(payload, bytes):
        raise _damaged("a history", payload, "bytes")
    return history.unpack_or_empty(payload, schema)


def _count(value: Any) -> int:
    """Return a stored number of events, 0 for a missing one."""
    if value is None:
        return 0
    if not isinstance(value, int) or value < 0:
        raise _damaged("a number of events", value, "a whole number")
    return value


def _feature_value(value: Any, feature: Feature) -> Any:
    is_nan = value != value  # a missing number in Feast
    if value is None or is_nan:
        return None
    if feature.dtype == "int64":
        return _whole_number(value, feature)
    expected = str if feature.dtype == "string" else (int, float)
    if not isinstance(value, expected):
        raise _damaged(f"feature {feature.name}", value, feature.dtype)
    return value


def _whole_number(value: Any, feature: Feature) -> int:
    """Return a stored int64, which may be a text: Feast rounds large numbers."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise _damaged(f"feature {feature.name}", value, feature.dtype) from error


def _damaged(
    what: str,
    value: Any,
    expected: str,
) -> DataError:
    return DataError(
        f"{what} of a user is stored as another type",
        found=type(value).__name__,
        expected=expected,
        fix="Publish the features again (longrec refresh).",
    )
