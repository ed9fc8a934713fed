"""The schema: features and tasks declared once; Feast fields, checks and the encoder are all made
from it.

Imports nothing but the standard library, so that `feature_repo/` and tools can read it for free.
Times are int64 milliseconds since 1970-01-01 UTC everywhere in longrec; tables on disk hold
`timestamp[ms, UTC]`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from longrec.errors import SchemaMismatch

Kind = Literal["id", "category", "number"]
Dtype = Literal["int64", "float64", "string"]

FORMAT_VERSION = 1
USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
EVENT_SEQ = "event_seq"
"""Position of an event in its source log: the tie order of events with equal timestamps."""
BASKET_ID = "basket_id"
CREATED = "created"
"""When an event became known: later than it happened, if it came in late."""
REQUEST_ID = "request_id"


@dataclasses.dataclass(frozen=True, slots=True)
class Feature:
    """One column and the rule that turns it into an index of an embedding table.

    Index 0 is "missing" for every kind. `id` and `category`: the next `num_oov` indices are shared,
    by hash, by values
    that the training window did not show often enough; then one index per known value. `number`:
    `num_bins` quantile bins.

    Args:
        name: column name.
        kind: `id` (large table, sparse updates), `category` (small table) or `number` (quantile
            bins, small table).
        dtype: type of the raw column.
        min_count: a value seen less often than this in the training window is not given an index of
            its own.
        max_size: the most values with an index of their own; the most frequent are kept, ties by
            value.
        num_oov: shared indices for all other values.
        num_bins: bins of a `number`.
        max_null_share: the check fails when a larger share of rows is null.
        minimum, maximum: bounds that the check holds the values of a numeric column to; None for no
            bound.
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
        """Type of the feature in the feature store: an id that may be null is kept as decimal text.

        Feast turns an integer column that holds a null into float64 when it materializes; ids above
        2**53 would change.
        """
        return (
            "string"
            if self.kind == "id" and self.dtype == "int64" and self.max_null_share > 0
            else self.dtype
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One binary label that the ranker predicts; the check holds its mean to [min_rate,
    max_rate].
    """

    name: str
    min_rate: float = 0.0001
    max_rate: float = 0.9999


@dataclasses.dataclass(frozen=True, slots=True)
class Schema:
    """Features of items, users and events (the action part of an event), and the tasks.

    `item[0]` is always the `item_id` feature. `event` holds only the action features; an event's
    item features are
    looked up by its item_id. `has_baskets` says that events carry a `basket_id` that no history may
    split.
    """

    name: str
    item: tuple[Feature, ...]
    user: tuple[Feature, ...]
    event: tuple[Feature, ...]
    tasks: tuple[Task, ...]
    has_baskets: bool = False

    def __post_init__(self) -> None:
        if not self.item or self.item[0].name != ITEM_ID or self.item[0].kind != "id":
            found = [feature.name for feature in self.item]
            raise SchemaMismatch("the first item feature must be the id item_id", found=found)
        if not self.tasks:
            raise SchemaMismatch("a schema needs at least one task", found="none")
        for group in (self.item, self.user, self.event):
            names = [feature.name for feature in group]
            if len(set(names)) != len(names):
                raise SchemaMismatch("feature names must be unique within a group", found=names)

    def __hash__(self) -> int:
        """Cheap, for schemas are keys of caches that are asked for at each request."""
        return hash((self.name, len(self.item), len(self.user), len(self.event)))

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of label and score columns."""
        return tuple(task.name for task in self.tasks)

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON form."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Schema:
        """Returns the schema whose `to_dict()` is `value`.

        Raises:
            SchemaMismatch: a field is missing, unknown or of the wrong kind.
        """
        try:
            groups = {
                key: tuple(Feature(**row) for row in value[key])
                for key in ("item", "user", "event")
            }
            tasks = tuple(Task(**row) for row in value["tasks"])
            return cls(
                name=value["name"],
                tasks=tasks,
                has_baskets=bool(value.get("has_baskets", False)),
                **groups,
            )
        except (KeyError, TypeError) as error:
            raise SchemaMismatch("this is not a longrec schema", found=str(error)) from error

    @classmethod
    def load(cls, path: str | Path) -> Schema:
        """Returns the schema in a JSON file: a schema itself, or a file that holds one under the
        key `schema`.
        """
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls.from_dict(value.get("schema", value))

    def differences(self, other: Schema) -> list[str]:
        """Returns one line per field in which `other` differs, for error messages."""
        lines = []
        for group in ("item", "user", "event", "tasks"):
            mine = {entry.name: entry for entry in getattr(self, group)}
            theirs = {entry.name: entry for entry in getattr(other, group)}
            lines += [f"{group}.{name}: missing" for name in mine if name not in theirs]
            lines += [f"{group}.{name}: unexpected" for name in theirs if name not in mine]
            lines += [
                f"{group}.{name}: {theirs[name]} instead of {mine[name]}"
                for name in mine
                if name in theirs and mine[name] != theirs[name]
            ]
        if self.has_baskets != other.has_baskets:
            lines.append(f"has_baskets: {other.has_baskets} instead of {self.has_baskets}")
        return lines


def synthetic_schema() -> Schema:
    """Returns the schema of the synthetic dataset (`longrec synth`), the default where no data set was
    named.
    """
    return Schema(
        name="synthetic",
        item=(
            Feature(ITEM_ID, "id", min_count=5, max_null_share=0.0),
            Feature("topic", "category", max_null_share=0.0),
        ),
        user=(Feature("region", "category", max_null_share=0.0),),
        event=(Feature("action", "category", dtype="string", max_null_share=0.0),),
        tasks=(Task("label", min_rate=0.05, max_rate=0.95),),
    )
