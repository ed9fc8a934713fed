"""Any table of events, Parquet or CSV, with a mapping of its columns; logs with labels are
exposures, logs without get negatives.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import pyarrow as pa

from longrec.data.dataset import parts_for
from longrec.data.importers.assembly import ImportOptions, ImportReport, Spill, assemble, spilling
from longrec.data.importers.readers import (
    Field,
    FieldKind,
    Rejects,
    Rows,
    Unit,
    arrow_types,
    columns_of,
    convert,
    estimate_rows,
    files_of,
    read_entities,
    read_rows,
)
from longrec.data.importers.request_cutting import Cutter, log_catalogue
from longrec.data.importers.requests import NegativeRule, RequestRule
from longrec.data.importers.text_ids import TextIds
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

LABEL = "label"
SHARED_ITEM_ROWS = 65_536
"""Rows, chosen by hash, that rare and new items share: on dev-events AUC 0.685 -> 0.762 against one
row for all (docs/log.md).
"""
_RESERVED = (USER_ID, ITEM_ID, TIMESTAMP, EVENT_SEQ, BASKET_ID, REQUEST_ID, CREATED)


@dataclasses.dataclass(frozen=True, slots=True)
class EventMapping:
    """Which column means what.

    A feature is written `name:kind` or `name:kind:dtype`, kind one of id, category, number and
    dtype one of int64, float64,
    string. Unless told, an id is int64, a number float64, a category what the Parquet file says, or
    a string in a text file.

    Args:
        user, item, timestamp: columns of the events; ids are integers, where `text_ids` does not
            say otherwise.
        timestamp_unit: `s`, `ms`, `us`, `ns` or `iso`; a Parquet timestamp column brings its own.
            Without a zone it is UTC.
        basket: column that joins events which happened at once (a commit, an order); no history
            splits a basket.
        seq: column that orders events of equal time; None for the order of the files.
        created: column of the time, in the same unit, at which a row became known; None where rows
            are known at once.
        text_ids: which of `user`, `item`, `basket` are text; their ids are `ids.text_id` of it, and
            ids/ says which text was which.
        features: event features.
        labels: 0/1 columns; with them every row is an exposure, without them an action that was
            taken.
        items, users: files with one row per id; their id column is called as in the events, or
            item_id, user_id.
        item_features, user_features: their features.
        delimiter: of text files; None for a comma, or a tab in .tsv.
        quotes: whether fields of text files may be in double quotes.
    """

    user: str = USER_ID
    item: str = ITEM_ID
    timestamp: str = TIMESTAMP
    timestamp_unit: Unit = "ms"
    basket: str | None = None
    seq: str | None = None
    created: str | None = None
    text_ids: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
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
        if unknown := set(self.text_ids) - {"user", "item", *(["basket"] if self.basket else [])}:
            raise DataError(
                "such ids cannot be text",
                found=", ".join(sorted(unknown)),
                expected="user, item, or a named basket",
            )
        groups = [
            tuple(each.partition(":")[0] for each in group)
            for group in (self.features, self.item_features, self.user_features)
        ]
        for names in ((self.user, self.item, self.timestamp), self.labels, *groups):
            if twice := [name for name, number in Counter(names).items() if number > 1]:
                raise DataError(
                    "a column is named twice",
                    found=", ".join(twice),
                    fix="Each is one user, item, time, label or feature.",
                )
        for group, path in (("item", self.items), ("user", self.users)):
            if bool(getattr(self, f"{group}_features")) != bool(path):
                fix = f"Give both --{group}s and --{group}-feature."
                raise DataError(f"a file of {group}s and features of {group}s go together", fix=fix)


def import_events(
    src: str | Path,
    out: str | Path,
    mapping: EventMapping,
    *,
    negatives: NegativeRule | None = None,
    rule: RequestRule | None = None,
    options: ImportOptions | None = None,
    name: str = "",
) -> ImportReport:
    """Writes the dataset of a log of any kind and returns the report.

    Args:
        src: a Parquet, CSV or TSV file, a pattern, or a directory of files of one kind.
        out: the dataset directory.
        mapping: columns.
        negatives: how negatives are drawn; for logs without labels, which need it.
        rule: how requests are cut; baskets where there are any, else windows.
        options: bounds of the import.
        name: of the data; by default that of `src`.

    Raises:
        DataError: files or columns are missing, a feature is misdescribed, or too many rows are
            bad.
    """
    started, rule, options, target = (
        time.monotonic(),
        rule or RequestRule(),
        options or ImportOptions(),
        Path(out),
    )
    if bool(mapping.labels) == bool(negatives):
        raise DataError(
            "a log has either labels or negatives to be drawn",
            found="both" if negatives else "neither",
            fix="Name 0/1 columns with --label, or give --negatives K.",
        )
    paths = files_of(src)
    schema = _schema(name or Path(src).stem, mapping, paths[0])
    if (
        negatives
        and negatives.within
        and negatives.within not in {feature.name for feature in schema.item}
    ):
        raise DataError(
            f"negatives cannot be drawn within '{negatives.within}'",
            expected="one of the item features",
        )
    labels = tuple(
        label for label in mapping.labels if label not in {feature.name for feature in schema.event}
    )
    num_parts = parts_for(sum(estimate_rows(path) for path in paths), options.rows_per_part)
    with (
        Rejects(target, options.max_reject_share) as rejects,
        spilling(
            target, schema, labels, num_parts, has_created=mapping.created is not None
        ) as spill,
        TextIds(spill.directory, [f"{name}s" for name in mapping.text_ids]) as ids,
    ):
        items = _entities(mapping.items, mapping.item, schema.item, mapping, rejects, "items", ids)
        users = _entities(
            mapping.users,
            mapping.user,
            (Feature(USER_ID, "id"), *schema.user),
            mapping,
            rejects,
            "users",
            ids,
        )
        _spill(paths, mapping, schema, spill, rejects, ids)
        cutter = Cutter(
            schema, rule, negatives, log_catalogue(spill, items, negatives) if negatives else None
        )
        return assemble(
            target,
            schema,
            spill,
            cutter,
            rejects,
            name=schema.name,
            source=_source(paths, mapping, negatives, rule),
            event_labels=labels,
            items=items,
            users=users,
            notes=cutter.notes,
            extras=ids.write,
            started=started,
        )


def _schema(name: str, mapping: EventMapping, first: Path) -> Schema:
    types, item_types, user_types = (
        arrow_types(files_of(path)[0]) if path else {}
        for path in (first, mapping.items, mapping.users)
    )
    tasks = mapping.labels or (LABEL,)
    try:
        return Schema(
            name=name,
            has_baskets=mapping.basket is not None,
            item=(
                Feature(
                    ITEM_ID,
                    "id",
                    min_count=5,
                    num_oov=SHARED_ITEM_ROWS,
                    max_null_share=0.0,
                ),
                *(_feature(text, item_types) for text in mapping.item_features),
            ),
            user=tuple(_feature(text, user_types) for text in mapping.user_features),
            event=tuple(_feature(text, types, mapping.labels) for text in mapping.features),
            tasks=tuple(Task(task) for task in tasks),
        )
    except SchemaMismatch as error:
        raise DataError("a feature is named twice", found=str(error)) from error


def _feature(text: str, types: dict[str, pa.DataType], labels: Sequence[str] = ()) -> Feature:
    name, kind, dtype, *rest = [*text.split(":"), "", ""][: max(3, text.count(":") + 1)]
    if not name or kind not in get_args(Kind) or dtype not in (*get_args(Dtype), "") or rest:
        raise DataError(
            "a feature is misdescribed",
            found=text,
            expected="name:kind or name:kind:dtype",
            fix=f"Kinds: {', '.join(get_args(Kind))}; dtypes: {', '.join(get_args(Dtype))}.",
        )
    if name in _RESERVED:
        raise DataError(
            f"a feature cannot be called {name}",
            fix="The name has a meaning of its own; rename the column.",
        )
    if not dtype:
        dtype = (
            "int64"
            if name in labels
            else {"id": "int64", "number": "float64"}.get(kind)
            or _dtype_of(types.get(name, pa.string()))
        )
    return Feature(name, cast(Kind, kind), cast(Dtype, dtype), min_count=5 if kind == "id" else 1)


def _dtype_of(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "int64"
    return "float64" if pa.types.is_floating(kind) else "string"


def _spill(
    paths: Sequence[Path],
    mapping: EventMapping,
    schema: Schema,
    spill: Spill,
    rejects: Rejects,
    ids: TextIds,
) -> None:
    kinds: dict[str, FieldKind] = dict.fromkeys(mapping.text_ids, "string")
    named = (
        ("user", USER_ID, mapping.user),
        ("item", ITEM_ID, mapping.item),
        ("basket", BASKET_ID, mapping.basket),
    )
    fields = [
        Field(name, source, kinds.get(group, "int64"), True)
        for group, name, source in named
        if source
    ]
    fields += [Field(TIMESTAMP, mapping.timestamp, mapping.timestamp_unit)]
    fields += [Field(EVENT_SEQ, mapping.seq, "int64", True)] if mapping.seq else []
    fields += [Field(CREATED, mapping.created, mapping.timestamp_unit)] if mapping.created else []
    fields += [Field(label, label, "label") for label in mapping.labels]
    fields += [
        Field(feature.name, feature.name, feature.dtype)
        for feature in schema.event
        if feature.name not in mapping.labels
    ]
    wanted, offset = [field.source for field in fields], 0
    for path in paths:
        last = 0
        for rows in read_rows(
            path, rejects, "events", wanted, delimiter=mapping.delimiter, quotes=mapping.quotes
        ):
            batch, lines = convert(rows, fields, rejects, "events", path)
            for name in mapping.text_ids:
                batch = _with_ids(batch, f"{name}_id", f"{name}s", ids)
            spill.add(
                batch if mapping.seq else batch.append_column(EVENT_SEQ, pa.array(offset + lines))
            )
            last = int(lines[-1]) if len(lines) else last
        offset += last


def _entities(
    path: str | Path | None,
    key: str,
    features: Sequence[Feature],
    mapping: EventMapping,
    rejects: Rejects,
    group: str,
    ids: TextIds,
) -> pa.Table | None:
    if path is None:
        return None
    key = key if key in columns_of(files_of(path)[0], mapping.delimiter) else features[0].name
    fields = [
        Field(features[0].name, key, "int64", True),
        *(Field(entry.name, entry.name, entry.dtype) for entry in features[1:]),
    ]
    return read_entities(
        _read_entities(Path(path), fields, mapping, rejects, group, ids), fields, rejects, group
    )


def _read_entities(
    path: Path,
    fields: list[Field],
    mapping: EventMapping,
    rejects: Rejects,
    group: str,
    ids: TextIds,
) -> Iterator[tuple[Path, Rows]]:
    is_text = group.removesuffix("s") in mapping.text_ids
    for file in files_of(path):
        wanted = [field.source for field in fields]
        for rows in read_rows(
            file, rejects, group, wanted, delimiter=mapping.delimiter, quotes=mapping.quotes
        ):
            yield (
                file,
                Rows(_with_ids(rows.table, wanted[0], group, ids), rows.lines) if is_text else rows,
            )


def _with_ids(
    batch: pa.RecordBatch,
    column: str,
    group: str,
    ids: TextIds,
) -> pa.RecordBatch:
    """Returns the rows with the ids of the texts in a column."""
    place = batch.schema.get_field_index(column)
    texts = batch.column(place)
    return batch.set_column(
        place,
        column,
        ids.of(group, texts if pa.types.is_dictionary(texts.type) else texts.cast(pa.string())),
    )


def _source(
    paths: Sequence[Path], mapping: EventMapping, negatives: NegativeRule | None, rule: RequestRule
) -> dict[str, Any]:
    columns = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(mapping).items()
    }
    return {
        "kind": "events",
        "files": [path.name for path in paths],
        "mapping": columns,
        "negatives": None if negatives is None else dataclasses.asdict(negatives),
        "requests": dataclasses.asdict(rule),
    }
