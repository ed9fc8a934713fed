"""UserRecord: what the feature store knows of one user, base history and tail merged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from longrec.data import history
from longrec.data.columns import HISTORY, TAIL, TAIL_BASE
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
    """

    user_id: int
    history: pa.RecordBatch
    features: dict[str, Any] | None


@dataclasses.dataclass(frozen=True, slots=True)
class StoredUser:
    """The stored values of one user, not merged yet.

    Args:
        user_id: the user.
        base: the base history.
        tail: the incremental tail.
        tail_base: number of events of the base that the tail continues.
        features: value of each user feature by name; None for a user without features.
    """

    user_id: int
    base: pa.RecordBatch
    tail: pa.RecordBatch
    tail_base: int
    features: dict[str, Any] | None

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
            DataError: a stored history is corrupted.
        """
        return cls(
            user_id,
            base=history.unpack_or_empty(values[HISTORY], schema),
            tail=history.unpack_or_empty(values[TAIL], schema),
            tail_base=int(values[TAIL_BASE] or 0),
            features=_features(values, schema),
        )

    @property
    def is_consistent(self) -> bool:
        """Whether the base holds all events that the tail continues."""
        num_base_events: int = self.base.num_rows
        return num_base_events >= self.tail_base

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


def _feature_value(value: Any, feature: Feature) -> Any:
    is_nan = value != value  # a missing number in Feast
    if value is None or is_nan:
        return None
    if feature.dtype == "int64":
        return int(value)
    return value
