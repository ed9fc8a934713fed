"""The schema: features and tasks, declared once.

Feast fields, data checks and the encoder are all made from it. This module imports only the
standard library, so `feature_repo/` and small tools can load it at no cost. All times in longrec
are int64 milliseconds since 1970-01-01 UTC. Tables on disk hold `timestamp[ms, UTC]`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from longrec import times
from longrec.errors import SchemaMismatch

Kind = Literal["id", "category", "number"]
Dtype = Literal["int64", "float64", "string"]

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
EVENT_SEQ = "event_seq"
"""Number that orders events with equal timestamps: the log's own, or the position in the log."""
BASKET_ID = "basket_id"
CREATED = "created"
"""Time at which an event became known; later than its timestamp for a late event."""
REQUEST_ID = "request_id"


@dataclasses.dataclass(frozen=True, slots=True)
class Feature:
    """One column and how its values become indices of an embedding table.

    Index 0 means "missing" for every kind. An `id` or a `category` has `num_oov` shared indices
    for rare and unknown values, chosen by hash, then one index per known value. A `number` has one
    index per quantile bin.

    Args:
        name: column name.
        kind: `id` (large table, sparse updates), `category` (small table) or `number` (quantile
            bins, small table).
        dtype: type of the raw column.
        min_count: smallest number of occurrences in the training window with which a value gets its
            own index.
        max_size: largest number of known values; the most frequent win, ties by value.
        num_oov: shared indices for all other values (out of vocabulary).
        num_bins: number of quantile bins of a `number`.
        max_null_share: largest share of null rows that the check accepts.
        minimum, maximum: bounds that the check applies to a numeric column; None for no bound.
    """

    name: str
    kind: Kind
    dtype: Dtype = "int64"
    min_count: int = 1
    max_size: int = 1_000_000
    num_oov: int = 1
    num_bins: int = 32
    max_null_share: float = 1.0
    minimum: float | None = None
    maximum: float | None = None

    @property
    def stored_dtype(self) -> Dtype:
        """Type in the feature store; a nullable integer id is stored as decimal text.

        Feast turns an integer column with a null into float64, which changes ids above 2**53.
        """
        is_nullable = self.max_null_share > 0
        if self.kind == "id" and self.dtype == "int64" and is_nullable:
            return "string"
        return self.dtype


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One binary label that the ranker predicts.

    Args:
        name: column name of the label.
        min_rate, max_rate: bounds that the check applies to the mean of the label.
    """

    name: str
    min_rate: float = 0.0001
    max_rate: float = 0.9999


@dataclasses.dataclass(frozen=True, slots=True)
class Schema:
    """Features of items, users and events, and the tasks.

    Args:
        name: name of the data.
        item: item features; the first one is always `item_id`.
        user: user features.
        event: event features; item features of an event are found by its item_id.
        tasks: binary labels, at least one.
        has_baskets: whether events carry a `basket_id`; no history may split a basket.
        has_event_numbers: whether `event_seq` is a number of the log's own, which a producer of
            live events knows too; else it is the position in the log.
        time_origin_ms: time from which the log counts its times, ms since 1970 UTC; 0 for a log
            with times since 1970 (`longrec.times`).
        text_ids: which of `user`, `item` and `basket` the log names by text. Their numbers are
            `longrec.ids.text_id` of the text, even of a text such as `007`.

    Raises:
        DataError: the origin of the times is out of range.
        SchemaMismatch: the first item feature is not `item_id`, there is no task, or a name
            occurs twice in a group.
    """

    name: str
    item: tuple[Feature, ...]
    user: tuple[Feature, ...]
    event: tuple[Feature, ...]
    tasks: tuple[Task, ...]
    has_baskets: bool = False
    has_event_numbers: bool = False
    time_origin_ms: int = 0
    text_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _starts_with_item_id(self.item):
            raise SchemaMismatch(
                "the first item feature must be the id item_id",
                found=[feature.name for feature in self.item],
            )
        if not self.tasks:
            raise SchemaMismatch("a schema needs at least one task", found="none")
        for group in (self.item, self.user, self.event):
            names = [feature.name for feature in group]
            if len(set(names)) != len(names):
                raise SchemaMismatch("feature names must be unique within a group", found=names)
        times.require_origin(self.time_origin_ms)

    def __hash__(self) -> int:
        """Return a cheap hash; schemas are cache keys that every request looks up."""
        sizes = (
            len(self.item),
            len(self.user),
            len(self.event),
        )
        return hash((self.name, *sizes))

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of label and score columns."""
        return tuple(task.name for task in self.tasks)

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON form.

        Whether events have numbers changes no value that a model reads, so it does not count.
        """
        value = self.to_dict()
        value.pop("has_event_numbers", None)
        text = json.dumps(
            value,
            sort_keys=True,
            separators=(",", ":"),
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; it names only those later fields that are set."""
        value = dataclasses.asdict(self)
        # Schemas that were stored before these fields keep their fingerprints.
        for name in ("has_event_numbers", "time_origin_ms", "text_ids"):
            if not value[name]:
                del value[name]
        return value

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Schema:
        """Return the schema whose `to_dict()` is `value`.

        Raises:
            SchemaMismatch: a field is missing, unknown or of the wrong kind.
        """
        try:
            return cls(
                name=value["name"],
                item=_features_from(value["item"]),
                user=_features_from(value["user"]),
                event=_features_from(value["event"]),
                tasks=tuple(Task(**row) for row in value["tasks"]),
                has_baskets=bool(value.get("has_baskets", False)),
                has_event_numbers=bool(value.get("has_event_numbers", False)),
                time_origin_ms=value.get("time_origin_ms", 0),
                text_ids=tuple(value.get("text_ids", ())),
            )
        except (KeyError, TypeError) as error:
            raise SchemaMismatch("this is not a longrec schema", found=str(error)) from error

    @classmethod
    def load(cls, path: str | Path) -> Schema:
        """Return the schema in a JSON file.

        dataset.json and manifest.json hold it under the key `schema`, schema.json at the top level.

        Raises:
            SchemaMismatch: the file holds no schema.
        """
        try:
            value = json.loads(Path(path).read_bytes())
        except ValueError as error:
            raise SchemaMismatch(f"{path} is not JSON", found=str(error)) from error
        if not isinstance(value, dict):
            raise SchemaMismatch(f"{path} is not a longrec schema", found=type(value).__name__)
        return cls.from_dict(value.get("schema", value))

    def differences(self, other: Schema) -> list[str]:
        """Return one line per field that differs in `other`, for error messages."""
        lines: list[str] = []
        for group in ("item", "user", "event", "tasks"):
            expected = getattr(self, group)
            found = getattr(other, group)
            lines += _group_differences(group, expected, found)
        if self.has_baskets != other.has_baskets:
            lines.append(f"has_baskets: {other.has_baskets} instead of {self.has_baskets}")
        if self.time_origin_ms != other.time_origin_ms:
            lines.append(f"time_origin_ms: {other.time_origin_ms} instead of {self.time_origin_ms}")
        if self.text_ids != other.text_ids:
            lines.append(f"text_ids: {other.text_ids} instead of {self.text_ids}")
        return lines


def synthetic_schema() -> Schema:
    """Return the schema of the synthetic dataset (`longrec synth`), the default schema."""
    item_id = Feature(
        ITEM_ID,
        "id",
        min_count=5,
        max_null_share=0.0,
    )
    topic = Feature(
        "topic",
        "category",
        max_null_share=0.0,
    )
    region = Feature(
        "region",
        "category",
        max_null_share=0.0,
    )
    action = Feature(
        "action",
        "category",
        dtype="string",
        max_null_share=0.0,
    )
    label = Task(
        "label",
        min_rate=0.05,
        max_rate=0.95,
    )
    return Schema(
        name="synthetic",
        item=(item_id, topic),
        user=(region,),
        event=(action,),
        tasks=(label,),
    )


def _starts_with_item_id(features: Sequence[Feature]) -> bool:
    if not features:
        return False
    first = features[0]
    return first.name == ITEM_ID and first.kind == "id"


def _features_from(rows: list[dict[str, Any]]) -> tuple[Feature, ...]:
    return tuple(Feature(**row) for row in rows)


def _group_differences(
    group: str,
    expected: Sequence[Feature | Task],
    found: Sequence[Feature | Task],
) -> list[str]:
    """Return a line per missing, unexpected or changed entry of a group, in this order."""
    expected_by_name = {entry.name: entry for entry in expected}
    found_by_name = {entry.name: entry for entry in found}
    missing = []
    changed = []
    for name, entry in expected_by_name.items():
        other = found_by_name.get(name)
        if other is None:
            missing.append(f"{group}.{name}: missing")
        elif other != entry:
            changed.append(f"{group}.{name}: {other} instead of {entry}")
    unexpected = [
        f"{group}.{name}: unexpected" for name in found_by_name if name not in expected_by_name
    ]
    return [*missing, *unexpected, *changed]
