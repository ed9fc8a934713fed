"""Taobao UserBehavior (Zhu et al. 2018, arXiv 1801.02294): UserBehavior.csv. A log of actions;
negatives are drawn.

The file says what users did, never what they were shown, so a request is a window of one user's
chosen actions (`pv`, clicks, unless
told) and its negatives are drawn. All four actions stay in the histories.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.dataset import int64_of, parts_for
from longrec.data.importers.assembly import ImportOptions, ImportReport, Spill, assemble, spilling
from longrec.data.importers.readers import (
    Field,
    Rejects,
    Rows,
    convert,
    estimate_rows,
    read_delimited,
    reject,
)
from longrec.data.importers.request_cutting import Cutter, ItemValues, log_catalogue
from longrec.data.importers.requests import NegativeRule, RequestRule
from longrec.errors import DataError
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, USER_ID, Feature, Schema, Task

LABEL = "label"
BEHAVIORS = ("pv", "buy", "cart", "fav")
FILE = "UserBehavior.csv"
FIRST_MS, LAST_MS = 1_511_539_200_000, 1_512_316_800_000
"""2017-11-25 to 2017-12-03 in China (UTC+8), the published span; the few rows outside of it are
wrong clocks.
"""
_COLUMNS = ("user_id", "item_id", "category_id", "behavior_type", "timestamp")
_FIELDS = (
    Field(USER_ID, "user_id", "int64", True),
    Field(ITEM_ID, "item_id", "int64", True),
    Field("category", "category_id", "int64"),
    Field("behavior", "behavior_type", "string", True),
    Field(TIMESTAMP, "timestamp", "s"),
)


def taobao_schema() -> Schema:
    """Returns the schema of an imported UserBehavior log."""
    return Schema(
        name="taobao",
        item=(
            Feature(ITEM_ID, "id", min_count=5, max_null_share=0.0),
            Feature("category", "category"),
        ),
        user=(),
        event=(Feature("behavior", "category", dtype="string", max_null_share=0.0),),
        tasks=(Task(LABEL),),
    )


def import_taobao(
    src: str | Path,
    out: str | Path,
    *,
    positives: Sequence[str] = ("pv",),
    negatives: NegativeRule | None = None,
    rule: RequestRule | None = None,
    options: ImportOptions | None = None,
) -> ImportReport:
    """Writes the dataset of UserBehavior.csv and returns the report; `label` is 1 for an item that
    the user acted on.

    Args:
        src: UserBehavior.csv (five columns without header), or its directory.
        out: the dataset directory.
        positives: actions that make a target, of pv, buy, cart, fav; requests are windows of these
            alone.
        negatives: how negatives are drawn; 4 for each positive unless told. `within` may be
            `category`.
        rule: how requests are cut.
        options: bounds of the import.

    Raises:
        DataError: the file is missing, an action is unknown, or too many rows are bad.
    """
    started, rule, options, target = (
        time.monotonic(),
        rule or RequestRule(),
        options or ImportOptions(),
        Path(out),
    )
    if not positives or set(positives) - set(BEHAVIORS):
        raise DataError(
            "positives must be actions of the log",
            found=", ".join(positives),
            expected=", ".join(BEHAVIORS),
        )
    drawn, path = negatives or NegativeRule(), Path(src) / FILE if Path(src).is_dir() else Path(src)
    if not path.is_file():
        raise DataError(f"{src} holds no Taobao log", expected=FILE)
    schema, items = taobao_schema(), ItemValues()
    if drawn.within not in (None, "category"):
        raise DataError(
            "negatives cannot be drawn within this column", found=drawn.within, expected="category"
        )
    source = {
        "kind": "taobao",
        "files": [path.name],
        "positives": list(positives),
        "negatives": dataclasses.asdict(drawn),
        "requests": dataclasses.asdict(rule),
    }
    num_parts = parts_for(estimate_rows(path), options.rows_per_part)
    with (
        Rejects(target, options.max_reject_share) as rejects,
        spilling(target, schema, (), num_parts) as spill,
    ):
        _spill(path, spill, items, rejects)
        catalogue = pa.table({ITEM_ID: items.ids(), "category": items.of(items.ids())})
        wanted = pa.array(list(positives))
        cutter = Cutter(
            schema,
            rule,
            drawn,
            log_catalogue(spill, catalogue, drawn),
            lambda events: events.filter(
                pc.is_in(events["behavior"].cast(pa.string()), value_set=wanted)
            ),
        )
        return assemble(
            target,
            schema,
            spill,
            cutter,
            rejects,
            name="taobao",
            source=source,
            items=catalogue,
            notes=cutter.notes,
            started=started,
        )


def _spill(
    path: Path,
    spill: Spill,
    items: ItemValues,
    rejects: Rejects,
) -> None:
    for rows in read_delimited(path, rejects, "events", quotes=False, names=_COLUMNS):
        batch, lines = convert(rows, _FIELDS, rejects, "events", path)
        unknown = ~np.asarray(pc.is_in(batch["behavior"], value_set=pa.array(BEHAVIORS)))
        reject(
            rejects,
            "events",
            path,
            Rows(batch, lines),
            unknown,
            f"behavior_type is not one of {', '.join(BEHAVIORS)}",
        )
        times = int64_of(batch, TIMESTAMP)
        outside = ~unknown & ((times < FIRST_MS) | (times >= LAST_MS))
        reject(
            rejects,
            "events",
            path,
            Rows(batch, lines),
            outside,
            "timestamp is not in the nine days of the log",
        )
        batch = batch.append_column(EVENT_SEQ, pa.array(lines - 1)).filter(
            pa.array(~unknown & ~outside)
        )
        items.add(
            int64_of(batch, ITEM_ID), np.asarray(pc.fill_null(batch["category"], -1), np.int64)
        )
        spill.add(batch)
