"""Preview of an import: the first rows as they are understood, and what would be rejected."""

from __future__ import annotations

import csv
import dataclasses
import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from longrec.data.importers.event_mapping import EventMapping
from longrec.data.importers.events import EventLog, event_labels
from longrec.data.importers.reading.file_search import list_log_files, name_of_log
from longrec.data.importers.reading.rejects import Rejects
from longrec.data.importers.text_ids import TextIds
from longrec.data.importers.writing.dataset_builder import ImportOptions, open_dataset_builder
from longrec.data.importers.writing.event_spill import TIME_COLUMNS

NUM_ROWS = 5
NUM_REJECTS = 5


@dataclasses.dataclass(frozen=True, slots=True)
class ImportPreview:
    """What an import would read.

    Args:
        num_files: number of files of the log.
        first_file: the file that the preview is made from.
        mapping: the columns, as `EventMapping` has them.
        rows: the first events, times as ISO 8601 UTC.
        row_counts, filter_counts, reject_reasons: as in an `ImportReport`, of the first rows.
        rejects: line, reason and text of the first rows that would be rejected.
    """

    num_files: int
    first_file: str
    mapping: dict[str, Any]
    rows: list[dict[str, Any]]
    row_counts: dict[str, dict[str, int]]
    filter_counts: dict[str, int]
    reject_reasons: dict[str, int]
    rejects: list[dict[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)


def preview_events(src: str | Path, mapping: EventMapping) -> ImportPreview:
    """Return what an import would read, from the first batch of the first file; write nothing.

    Args:
        src: as for `import_events`.
        mapping: the columns.

    Raises:
        DataError: files or columns are missing, or a feature is described wrongly.
    """
    paths = list_log_files(src)
    schema = mapping.schema(name_of_log(src), paths[0])
    groups = [f"{key}s" for key in mapping.text_ids]
    with (
        tempfile.TemporaryDirectory() as folder,
        open_dataset_builder(
            Path(folder) / "preview",
            schema,
            ImportOptions(max_reject_share=1),
            num_events=1,
            event_labels=event_labels(mapping, schema),
            has_created=mapping.created is not None,
        ) as builder,
        TextIds(builder.spill.directory, groups) as ids,
    ):
        EventLog(mapping, schema, builder, ids).read_events(paths[:1], max_batches=1)
        builder.spill.close()
        builder.rejects.num_accepted["events"] = builder.spill.num_events
        texts = {f"{key}_id": ids.texts(f"{key}s") for key in mapping.text_ids}
        return ImportPreview(
            num_files=len(paths),
            first_file=str(paths[0]),
            mapping=_json_form(mapping),
            rows=_json_rows(builder.spill.load(0).slice(0, NUM_ROWS).to_pylist(), texts),
            row_counts=builder.rejects.counts(),
            filter_counts=dict(builder.rejects.filters.most_common()),
            reject_reasons=dict(builder.rejects.reasons.most_common()),
            rejects=_first_rejects(builder.rejects, Path(folder) / "rejects.csv"),
        )


def _json_form(mapping: EventMapping) -> dict[str, Any]:
    """Return the options of a mapping that are not the default."""
    default = EventMapping()
    values = dataclasses.asdict(mapping)
    named = {"user", "item", "timestamp", "timestamp_unit"}
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in values.items()
        if key in named or value != getattr(default, key)
    }


def _json_rows(
    rows: list[dict[str, Any]],
    texts: Mapping[str, Mapping[int, str]],
) -> list[dict[str, Any]]:
    """Return rows with ISO times and with the texts of text ids."""
    for row in rows:
        for name, by_id in texts.items():
            row[name] = by_id[row[name]]
        for name in TIME_COLUMNS:
            if name in row:
                row[name] = f"{np.datetime64(row[name], 'ms')}Z"
    return rows


def _first_rejects(rejects: Rejects, path: Path) -> list[dict[str, str]]:
    if not rejects.move_to(path):
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(islice(csv.DictReader(stream), NUM_REJECTS))
