"""Any table of events, Parquet or CSV, imported with a mapping of its columns.

A log with labels is a log of exposures. For a log without labels, negatives are drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from longrec.data.importers.event_mapping import EventMapping
from longrec.data.importers.reading.entities import read_entities
from longrec.data.importers.reading.fields import Field, FieldKind, convert
from longrec.data.importers.reading.file_search import list_log_files, name_of_log
from longrec.data.importers.reading.log_files import (
    column_names,
    estimate_num_rows,
)
from longrec.data.importers.reading.log_reader import read_rows
from longrec.data.importers.reading.rejects import LogBatch, LogFile
from longrec.data.importers.reading.sequence_numbers import SequenceNumbers
from longrec.data.importers.requests.builder import all_events, make_request_builder
from longrec.data.importers.requests.grouping import RequestGrouping
from longrec.data.importers.requests.negatives import NegativeSampling
from longrec.data.importers.row_selection import IS_POSITIVE, RowSelection, positive_events
from longrec.data.importers.text_ids import TextIds
from longrec.data.importers.writing.dataset_builder import (
    DatasetBuilder,
    DatasetInfo,
    ImportOptions,
    open_dataset_builder,
)
from longrec.data.importers.writing.import_report import ImportReport
from longrec.data.importers.writing.k_core import leave_out_rare
from longrec.errors import DataError
from longrec.schema import (
    BASKET_ID,
    CREATED,
    EVENT_SEQ,
    ITEM_ID,
    TIMESTAMP,
    USER_ID,
    Feature,
    Schema,
)


def import_events(
    src: str | Path,
    out: str | Path,
    mapping: EventMapping,
    *,
    negatives: NegativeSampling | None = None,
    grouping: RequestGrouping | None = None,
    options: ImportOptions | None = None,
    name: str = "",
    notes: Sequence[str] = (),
) -> ImportReport:
    """Write the dataset of any table of events; return the report.

    Args:
        src: a Parquet, CSV, TSV or JSON-lines file, a pattern, or a directory of files of one
            format.
        out: the dataset directory.
        mapping: the columns.
        negatives: how negatives are drawn; required for a log without labels.
        grouping: how events are grouped into requests; baskets where the log has them.
        options: limits of the import.
        name: name of the data; by default the name of `src`.
        notes: remarks for the report, such as what was guessed of the columns.

    Raises:
        DataError: files or columns are missing, a feature is described wrongly, or too many rows
            are bad.
    """
    grouping = grouping or RequestGrouping()
    _require_labels_or_negatives(mapping, negatives)
    paths = list_log_files(src)
    schema = mapping.schema(name or name_of_log(src), paths[0])
    if negatives:
        item_features = {feature.name for feature in schema.item}
        negatives.require_within(item_features, "one of the item features")
    with (
        open_dataset_builder(
            out,
            schema,
            options or ImportOptions(),
            num_events=sum(estimate_num_rows(path) for path in paths),
            event_labels=event_labels(mapping, schema),
            has_created=mapping.created is not None,
        ) as builder,
        TextIds(builder.spill.directory, [f"{key}s" for key in mapping.text_ids]) as ids,
    ):
        log = EventLog(mapping, schema, builder, ids)
        items = log.read_items()
        users = log.read_users()
        log.read_events(paths)
        if builder.options.k_core:
            leave_out_rare(builder.spill, builder.rejects, builder.options.k_core)
        requests = make_request_builder(
            schema,
            grouping,
            negatives,
            spill=builder.spill,
            items=items,
            select_targets=positive_events if mapping.positives else all_events,
        )
        info = DatasetInfo(
            name=schema.name,
            source=_source(paths, mapping, negatives, grouping),
            items=items,
            users=users,
            notes=notes,
            write_extra_files=ids.write,
        )
        return builder.write(requests, info)


def _require_labels_or_negatives(mapping: EventMapping, negatives: NegativeSampling | None) -> None:
    if bool(mapping.labels) == bool(negatives):
        raise DataError(
            "a log has either labels or negatives to be drawn",
            found="both" if negatives else "neither",
            fix="Name 0/1 columns with --label, or give --negatives K.",
        )


def event_labels(mapping: EventMapping, schema: Schema) -> tuple[str, ...]:
    """Return the labels that are not event features too, and the mark of positives."""
    features = {feature.name for feature in schema.event}
    labels = [name for name in mapping.label_names if name not in features]
    return (*labels, IS_POSITIVE) if mapping.positives else tuple(labels)


class EventLog:
    """Reader of the files of a mapped log.

    Args:
        mapping: the columns.
        schema: features and tasks.
        builder: receives the events.
        ids: converts text ids.
    """

    def __init__(
        self,
        mapping: EventMapping,
        schema: Schema,
        builder: DatasetBuilder,
        ids: TextIds,
    ) -> None:
        self.mapping = mapping
        self.schema = schema
        self.builder = builder
        self.ids = ids
        self.selection = RowSelection.of(mapping)

    def read_items(self) -> pa.Table | None:
        """Return the item table; None when the mapping has none."""
        if self.mapping.items is None:
            return None
        return self._read_entities(
            "item",
            self.mapping.items,
            self.schema.item,
        )

    def read_users(self) -> pa.Table | None:
        """Return the user table; None when the mapping has none."""
        if self.mapping.users is None:
            return None
        features = (Feature(USER_ID, "id"), *self.schema.user)
        return self._read_entities("user", self.mapping.users, features)

    def read_events(self, paths: Sequence[Path], *, max_batches: int | None = None) -> None:
        """Add the events of all files to the spill.

        Args:
            paths: the files, in order.
            max_batches: number of batches of each file that are read; None for all.
        """
        fields = self._event_fields()
        # The first row of a text file has the number 2, of a Parquet file 1: only the order counts.
        sequence = SequenceNumbers(first=1)
        for path in paths:
            sequence.start_file()
            batches = self._read_rows(self.builder.log_file(path), self._sources(fields))
            for rows in islice(batches, max_batches):
                batch = self.selection.select(rows)
                events = convert(batch, fields)
                table = events.table
                for key in self.mapping.text_ids:
                    table = self._with_ids(table, f"{key}_id", f"{key}s")
                if not self.mapping.seq:
                    table = table.append_column(EVENT_SEQ, sequence.number(events.lines))
                self.builder.spill.add(table)

    def _event_fields(self) -> list[Field]:
        mapping = self.mapping
        fields = [
            self._id_field("user", USER_ID, mapping.user),
            self._id_field("item", ITEM_ID, mapping.item),
        ]
        if mapping.basket:
            fields.append(self._id_field("basket", BASKET_ID, mapping.basket))
        fields.append(self._time_field(TIMESTAMP, mapping.timestamp))
        if mapping.seq:
            fields.append(Field(EVENT_SEQ, mapping.seq, "int64", is_required=True))
        if mapping.created:
            fields.append(self._time_field(CREATED, mapping.created))
        fields += mapping.label_fields()
        for feature in self.schema.event:
            if feature.name not in mapping.label_names:
                fields.append(Field(feature.name, feature.name, feature.dtype))
        if mapping.positives:
            fields.append(Field(IS_POSITIVE, IS_POSITIVE, "label"))
        return fields

    def _sources(self, fields: Sequence[Field]) -> list[str]:
        """Return the columns of the log that the fields and the selection read."""
        sources = [*(field.source for field in fields), *self.selection.columns]
        return [source for source in sources if source != IS_POSITIVE]

    def _id_field(
        self,
        key: str,
        name: str,
        source: str,
    ) -> Field:
        kind: FieldKind = "string" if key in self.mapping.text_ids else "int64"
        return Field(name, source, kind, is_required=True)

    def _time_field(self, name: str, source: str) -> Field:
        mapping = self.mapping
        return Field(
            name,
            source,
            mapping.timestamp_unit,
            origin_ms=mapping.time_origin_ms,
        )

    def _read_entities(
        self,
        key: str,
        path: str | Path,
        features: Sequence[Feature],
    ) -> pa.Table:
        """Return the table of items or users.

        The id column is named as in the log where the file has such a column. Otherwise it has
        its name in the dataset.

        Args:
            key: `item` or `user`.
            path: the files.
            features: columns of the table; the first one is the id.
        """
        paths = list_log_files(path)
        log_id_column: str = getattr(self.mapping, key)
        id_name = features[0].name
        has_log_name = log_id_column in column_names(paths[0], self.mapping.delimiter)
        id_source = log_id_column if has_log_name else id_name
        fields = [
            Field(id_name, id_source, "int64", is_required=True),
            *(Field(feature.name, feature.name, feature.dtype) for feature in features[1:]),
        ]
        return read_entities(self._entity_batches(paths, key, fields), fields)

    def _entity_batches(
        self,
        paths: Sequence[Path],
        key: str,
        fields: Sequence[Field],
    ) -> Iterator[LogBatch]:
        """Yield the rows of the files of items or users, with numeric ids."""
        group = f"{key}s"
        id_source = fields[0].source
        for path in paths:
            sources = [field.source for field in fields]
            for batch in self._read_rows(self.builder.log_file(path, group), sources):
                if key not in self.mapping.text_ids:
                    yield batch
                    continue
                yield batch.with_table(self._with_ids(batch.table, id_source, group))

    def _read_rows(self, file: LogFile, sources: Sequence[str]) -> Iterator[LogBatch]:
        return read_rows(
            file,
            sources,
            delimiter=self.mapping.delimiter,
            has_quotes=self.mapping.quotes,
        )

    def _with_ids(
        self,
        table: pa.RecordBatch,
        column: str,
        group: str,
    ) -> pa.RecordBatch:
        """Return the rows with ids in place of the texts of a column."""
        index = table.schema.get_field_index(column)
        texts = table.column(index)
        if not pa.types.is_dictionary(texts.type):
            texts = texts.cast(pa.string())
        return table.set_column(index, column, self.ids.add(group, texts))


def _source(
    paths: Sequence[Path],
    mapping: EventMapping,
    negatives: NegativeSampling | None,
    grouping: RequestGrouping,
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
        "requests": dataclasses.asdict(grouping),
    }
