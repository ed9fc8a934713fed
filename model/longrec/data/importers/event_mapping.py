"""Event mapping: the meaning of each column of a table of events."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast, get_args

import pyarrow as pa

from longrec.data.importers.reading.conditions import is_condition, parse_condition
from longrec.data.importers.reading.fields import Field
from longrec.data.importers.reading.file_search import list_log_files
from longrec.data.importers.reading.log_files import column_types
from longrec.data.importers.reading.values.times import Unit
from longrec.errors import DataError, SchemaMismatch
from longrec.schema import (
    BASKET_ID,
    CREATED,
    EVENT_SEQ,
    ITEM_ID,
    REQUEST_ID,
    TIMESTAMP,
    USER_ID,
    Dtype,
    Feature,
    Kind,
    Schema,
    Task,
)
from longrec.times import require_origin

LABEL = "label"
SHARED_ITEM_ROWS = 65_536
"""Number of embedding rows that rare and new items share, chosen by hash.

On dev-events, a log of the edits of software developers, they raise the AUC from 0.685, with one
row for all, to 0.762 (docs/log.md).
"""
RESERVED_NAMES = (USER_ID, ITEM_ID, TIMESTAMP, EVENT_SEQ, BASKET_ID, REQUEST_ID, CREATED)
DEFAULT_DTYPES = {"id": "int64", "number": "float64"}
"""Kind of a feature -> its dtype; the dtype of a category comes from the file."""


@dataclasses.dataclass(frozen=True, slots=True)
class EventMapping:
    """The columns of a log and of its item and user files.

    A feature is written `name:kind` or `name:kind:dtype`. The kind is id, category or number, the
    dtype int64, float64 or string. By default an id is int64 and a number float64. A category has
    the type of its Parquet column and is a string in a text file.

    Args:
        user, item, timestamp: columns of the events. Ids are integers unless `text_ids` names
            them.
        timestamp_unit: `s`, `ms`, `us`, `ns` or `iso`. A Parquet timestamp column has its own
            unit. Times without a zone are UTC.
        time_origin_ms: time from which the log counts its times, ms since 1970 UTC; 0 for 1970.
            The schema keeps it, and events and requests may count their times from it too.
        basket: column that joins events which happened at once, such as a commit or an order.
            No history splits a basket.
        seq: column that orders events of equal time and tells them apart; None for the order of
            the files.
        created: column of the time at which a row became known, in the same unit; None where
            rows are known at once.
        text_ids: which of `user`, `item` and `basket` are text. Their ids are
            `longrec.ids.text_id` of the text; ids/ maps them back.
        features: event features.
        labels: 0/1 columns, or conditions such as `rating>=4` and `liked=rating>=4`; a condition
            without a name gives the label `label`. With labels, every row is an exposure; without,
            it is an action.
        positives: conditions such as `event=purchase`. In a log without labels, rows that meet one
            of them are the positives; the others are in the histories only. None for all rows.
        where: conditions that a row must meet; other rows are left out and counted.
        guests: user ids that stand for nobody. Rows with them, or without a user, are left out and
            counted.
        items, users: files with one row per id. Their id column is named as in the
            events, or item_id or user_id.
        item_features, user_features: features in these files.
        delimiter: of text files; None for a comma, or a tab in .tsv files.
        quotes: whether fields of text files may be in double quotes.
    """

    user: str = USER_ID
    item: str = ITEM_ID
    timestamp: str = TIMESTAMP
    timestamp_unit: Unit = "ms"
    time_origin_ms: int = 0
    basket: str | None = None
    seq: str | None = None
    created: str | None = None
    text_ids: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    positives: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    guests: tuple[str, ...] = ()
    items: str | Path | None = None
    item_features: tuple[str, ...] = ()
    users: str | Path | None = None
    user_features: tuple[str, ...] = ()
    delimiter: str | None = None
    quotes: bool = True

    def __post_init__(self) -> None:
        if self.timestamp_unit not in get_args(Unit):
            raise DataError(
                "unknown unit of the timestamp",
                found=self.timestamp_unit,
                expected=", ".join(get_args(Unit)),
            )
        baskets = ["basket"] if self.basket else []
        require_origin(self.time_origin_ms)
        unknown_ids = set(self.text_ids) - {"user", "item", *baskets}
        if unknown_ids:
            raise DataError(
                "such ids cannot be text",
                found=", ".join(sorted(unknown_ids)),
                expected="user, item, or a named basket",
            )
        _refuse_repeated((self.user, self.item, self.timestamp))
        _refuse_repeated(self.label_names)
        for text in (*self.positives, *self.where):
            parse_condition(text)
        if self.positives and self.labels:
            raise DataError(
                "a log has either labels or positives",
                found="both",
                fix="A label tells which exposures are positive; --positive selects actions.",
            )
        for features in (self.features, self.item_features, self.user_features):
            _refuse_repeated([text.partition(":")[0] for text in features])
        _require_both("item", self.items, self.item_features)
        _require_both("user", self.users, self.user_features)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(field.name for field in self.label_fields())

    def label_fields(self) -> list[Field]:
        """Return the labels as columns to read."""
        fields = []
        for text in self.labels:
            if is_condition(text):
                condition = parse_condition(text, may_have_name=True)
                name = condition.name or LABEL
                fields.append(Field(name, condition.column, "label", condition=condition))
            else:
                fields.append(Field(text, text, "label"))
        return fields

    def schema(self, name: str, first_file: Path) -> Schema:
        """Return the schema of the dataset.

        Args:
            name: name of the data.
            first_file: first file of the log; a Parquet file gives the dtypes of categories.

        Raises:
            DataError: a feature is described wrongly or named twice.
        """
        types = column_types(first_file)
        item_types = _types_of(self.items)
        user_types = _types_of(self.users)
        item_id = Feature(
            ITEM_ID,
            "id",
            min_count=5,
            num_oov=SHARED_ITEM_ROWS,
            max_null_share=0.0,
        )
        try:
            return Schema(
                name=name,
                has_baskets=self.basket is not None,
                time_origin_ms=self.time_origin_ms,
                has_event_numbers=self.seq is not None,
                text_ids=tuple(sorted(self.text_ids)),
                item=(item_id, *(_feature(text, item_types) for text in self.item_features)),
                user=tuple(_feature(text, user_types) for text in self.user_features),
                event=tuple(_feature(text, types, self.label_names) for text in self.features),
                tasks=tuple(Task(task) for task in self.label_names or (LABEL,)),
            )
        except SchemaMismatch as error:
            raise DataError("a feature is named twice", found=str(error)) from error


def _refuse_repeated(names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(
            "a column is named twice",
            found=", ".join(repeated),
            fix="Each is one user, item, time, label or feature.",
        )


def _require_both(
    group: str,
    path: str | Path | None,
    features: Sequence[str],
) -> None:
    if bool(features) != bool(path):
        raise DataError(
            f"a file of {group}s and features of {group}s go together",
            fix=f"Give both --{group}s and --{group}-feature.",
        )


def _types_of(path: str | Path | None) -> dict[str, pa.DataType]:
    return column_types(list_log_files(path)[0]) if path else {}


def _feature(
    text: str,
    types: Mapping[str, pa.DataType],
    labels: Sequence[str] = (),
) -> Feature:
    """Return the feature that `name:kind` or `name:kind:dtype` describes.

    Args:
        text: the description.
        types: column -> its type in a Parquet file.
        labels: label columns; as features they are int64.
    """
    name, kind, dtype = _split_description(text)
    if name in RESERVED_NAMES:
        raise DataError(
            f"a feature cannot be called {name}",
            fix="The name has a meaning of its own; rename the column.",
        )
    if not dtype:
        if name in labels:
            dtype = "int64"
        elif kind in DEFAULT_DTYPES:
            dtype = DEFAULT_DTYPES[kind]
        else:
            dtype = _dtype_of(types.get(name, pa.string()))
    min_count = 5 if kind == "id" else 1
    return Feature(
        name,
        cast(Kind, kind),
        cast(Dtype, dtype),
        min_count=min_count,
    )


def _split_description(text: str) -> tuple[str, str, str]:
    """Return name, kind and dtype of a feature; the dtype may be empty."""
    name, *rest = text.split(":")
    kind = rest[0] if rest else ""
    dtype = rest[1] if len(rest) > 1 else ""
    is_known = kind in get_args(Kind) and dtype in (*get_args(Dtype), "")
    if not name or not is_known or len(rest) > 2:
        raise DataError(
            "a feature is misdescribed",
            found=text,
            expected="name:kind or name:kind:dtype",
            fix=f"Kinds: {', '.join(get_args(Kind))}; dtypes: {', '.join(get_args(Dtype))}.",
        )
    return name, kind, dtype


def _dtype_of(arrow_type: pa.DataType) -> str:
    if pa.types.is_integer(arrow_type) or pa.types.is_boolean(arrow_type):
        return "int64"
    return "float64" if pa.types.is_floating(arrow_type) else "string"
