"""Importer of Taobao UserBehavior (Zhu et al. 2018, arXiv 1801.02294): UserBehavior.csv.

The log tells what users did, not what they were shown. A request is a window of one user's chosen
actions, by default clicks (`pv`), and its negatives are drawn. All four actions stay in the
histories.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.columns import int64_column
from longrec.data.importers.item_values import UNKNOWN, FirstKnownValues
from longrec.data.importers.reading.fields import Field, convert
from longrec.data.importers.reading.log_files import estimate_num_rows
from longrec.data.importers.reading.text_files import read_delimited
from longrec.data.importers.requests.builder import NegativeRequestBuilder
from longrec.data.importers.requests.catalogue import catalogue_of_log
from longrec.data.importers.requests.grouping import RequestGrouping
from longrec.data.importers.requests.negatives import NegativeSampling
from longrec.data.importers.writing.dataset_builder import (
    DatasetBuilder,
    DatasetInfo,
    ImportOptions,
    open_dataset_builder,
)
from longrec.data.importers.writing.import_report import ImportReport
from longrec.errors import DataError
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, USER_ID, Feature, Schema, Task

LABEL = "label"
CATEGORY = "category"
BEHAVIORS = ("pv", "buy", "cart", "fav")
"""Actions of users; the log and its feature call them behavior."""
FILE = "UserBehavior.csv"
FIRST_MS = 1_511_539_200_000
"""2017-11-25 in China (UTC+8), the first day of the published span."""
LAST_MS = 1_512_316_800_000
"""2017-12-04 in China (UTC+8), the end of it; the few rows outside come from wrong clocks."""
COLUMNS = ("user_id", "item_id", "category_id", "behavior_type", "timestamp")
FIELDS = (
    Field(USER_ID, "user_id", "int64", is_required=True),
    Field(ITEM_ID, "item_id", "int64", is_required=True),
    Field(CATEGORY, "category_id", "int64"),
    Field(
        "behavior",
        "behavior_type",
        "string",
        is_required=True,
    ),
    Field(TIMESTAMP, "timestamp", "s"),
)


def taobao_schema() -> Schema:
    """Return the schema of an imported UserBehavior log."""
    return Schema(
        name="taobao",
        item=(
            Feature(ITEM_ID, "id", min_count=5, max_null_share=0.0),
            Feature(CATEGORY, "category"),
        ),
        user=(),
        event=(
            Feature(
                "behavior",
                "category",
                dtype="string",
                max_null_share=0.0,
            ),
        ),
        tasks=(Task(LABEL),),
    )


def import_taobao(
    src: str | Path,
    out: str | Path,
    *,
    positives: Sequence[str] = ("pv",),
    negatives: NegativeSampling | None = None,
    grouping: RequestGrouping | None = None,
    options: ImportOptions | None = None,
) -> ImportReport:
    """Write the dataset of UserBehavior.csv; return the report.

    The label is 1 for an item that the user acted on.

    Args:
        src: UserBehavior.csv (five columns without header), or its directory.
        out: the dataset directory.
        positives: actions that make a target, of pv, buy, cart and fav. Requests are windows of
            these alone.
        negatives: how negatives are drawn; by default 4 for each positive. `within` may be
            `category`.
        grouping: how actions are grouped into requests.
        options: limits of the import.

    Raises:
        DataError: the file is missing, an action is unknown, or too many rows are bad.
    """
    negatives = negatives or NegativeSampling()
    grouping = grouping or RequestGrouping()
    if not positives or set(positives) - set(BEHAVIORS):
        raise DataError(
            "positives must be actions of the log",
            found=", ".join(positives),
            expected=", ".join(BEHAVIORS),
        )
    path = _find_log(Path(src))
    negatives.require_within([CATEGORY], CATEGORY)
    schema = taobao_schema()
    with open_dataset_builder(
        out,
        schema,
        options or ImportOptions(),
        num_events=estimate_num_rows(path),
    ) as builder:
        items = _read_events(builder, path)
        chosen = pa.array(list(positives))
        requests = NegativeRequestBuilder(
            schema,
            grouping,
            negatives,
            catalogue_of_log(builder.spill, items, negatives.within),
            select_targets=lambda events: _with_behavior(events, chosen),
        )
        source = _source(path, positives, negatives, grouping)
        return builder.write(requests, DatasetInfo("taobao", source, items))


def _find_log(src: Path) -> Path:
    path = src / FILE if src.is_dir() else src
    if not path.is_file():
        raise DataError(f"{src} holds no Taobao log", expected=FILE)
    return path


def _read_events(builder: DatasetBuilder, path: Path) -> pa.Table:
    """Add the events to the spill; return the item table with the first category of each item."""
    categories = FirstKnownValues()
    behaviors = pa.array(BEHAVIORS)
    file = builder.log_file(path)
    for batch in read_delimited(file, has_quotes=False, names=COLUMNS):
        rows = convert(batch, FIELDS)
        is_known = np.asarray(pc.is_in(rows.table["behavior"], value_set=behaviors))
        rows.reject(~is_known, f"behavior_type is not one of {', '.join(BEHAVIORS)}")
        times = int64_column(rows.table, TIMESTAMP)
        is_inside = (times >= FIRST_MS) & (times < LAST_MS)
        rows.reject(is_known & ~is_inside, "timestamp is not in the nine days of the log")
        sequence = pa.array(rows.lines - 1)  # lines count from 1
        table = rows.table.append_column(EVENT_SEQ, sequence)
        events = table.filter(pa.array(is_known & is_inside))
        values = pc.fill_null(events[CATEGORY], UNKNOWN)
        categories.add(int64_column(events, ITEM_ID), np.asarray(values, np.int64))
        builder.spill.add(events)
    ids = categories.ids()
    return pa.table({ITEM_ID: ids, CATEGORY: categories.values_of(ids)})


def _with_behavior(events: pa.Table, chosen: pa.Array) -> pa.Table:
    behaviors = events["behavior"].cast(pa.string())
    return events.filter(pc.is_in(behaviors, value_set=chosen))


def _source(
    path: Path,
    positives: Sequence[str],
    negatives: NegativeSampling,
    grouping: RequestGrouping,
) -> dict[str, Any]:
    return {
        "kind": "taobao",
        "files": [path.name],
        "positives": list(positives),
        "negatives": dataclasses.asdict(negatives),
        "requests": dataclasses.asdict(grouping),
    }
