"""Amazon Reviews 2023 (Hou et al. 2024, arXiv 2403.03952): the pure-id ratings (.csv) and the item
metadata (.jsonl).

A rating is both an event and a labelled target, as in MovieLens; with negatives it is only an item
that was bought and rated. The
`history` column of the `_w_his` files is not read: histories are made from the rows themselves.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.data.dataset import int64_of, parts_for
from longrec.data.importers.assembly import ImportOptions, ImportReport, Spill, assemble, spilling
from longrec.data.importers.readers import (
    Field,
    Rejects,
    Rows,
    convert,
    estimate_rows,
    files_of,
    read_entities,
    read_rows,
    reject,
)
from longrec.data.importers.request_cutting import UNKNOWN, Cutter, ItemValues, log_catalogue
from longrec.data.importers.requests import NegativeRule, RequestRule
from longrec.data.importers.text_ids import TextIds
from longrec.errors import DataError
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, USER_ID, Feature, Schema, Task

LABEL = "label"
_COLUMNS = ("user_id", "parent_asin", "rating", "timestamp")
_FIELDS = (
    Field("user", "user_id", "string", True),
    Field("item", "parent_asin", "string", True),
    Field("rating", "rating", "float64", True),
    Field(TIMESTAMP, "timestamp", "ms"),
)
_META = ("main_category", "category", "store", "price")
_ITEM_FIELDS = (
    Field(ITEM_ID, ITEM_ID, "int64", True),
    *(Field(name, name, "string") for name in _META[:3]),
    Field("price", "price", "float64"),
)
_LINES = 4_096

Int64 = npt.NDArray[np.int64]


def amazon_schema(*, with_meta: bool) -> Schema:
    """Returns the schema of an imported category; only the metadata knows anything of its items.

    average_rating and rating_number are not among the features: they are of the whole period, and
    would tell the future.
    """
    known = (
        Feature("main_category", "category", dtype="string"),
        Feature("category", "category", dtype="string"),
        Feature("store", "category", dtype="string", min_count=5),
        Feature("price", "number", dtype="float64", minimum=0),
    )
    return Schema(
        name="amazon",
        item=(
            Feature(ITEM_ID, "id", min_count=5, max_null_share=0.0),
            *(known if with_meta else ()),
        ),
        user=(),
        event=(
            Feature(
                "rating", "category", dtype="float64", max_null_share=0.0, minimum=0, maximum=5
            ),
        ),
        tasks=(Task(LABEL),),
    )


def import_amazon(
    src: str | Path,
    out: str | Path,
    *,
    meta: str | Path | None = None,
    threshold: float = 4.0,
    negatives: NegativeRule | None = None,
    rule: RequestRule | None = None,
    options: ImportOptions | None = None,
) -> ImportReport:
    """Writes the dataset of one category (or of several) and returns the report.

    `label` is rating >= threshold; with `negatives` it is 1 for every rated item and 0 for the
    drawn ones. `ids.text_id` makes int64 of
    the user ids and ASINs, and ids/users.parquet and ids/items.parquet say which text was which.

    Args:
        src: rating_only/CATEGORY.csv of 0core or 5core; or the train, valid and test files of a
            split, as a pattern or directory.
        out: the dataset directory.
        meta: meta_CATEGORY.jsonl; items of the log only are taken from it.
        threshold: least rating of a positive.
        negatives: how negatives are drawn instead.
        rule: how requests are cut: ratings of one user within a window.
        options: bounds of the import.

    Raises:
        DataError: files or columns are missing, or too many rows are bad.
    """
    started, rule, options, target = (
        time.monotonic(),
        rule or RequestRule(),
        options or ImportOptions(),
        Path(out),
    )
    paths, schema, seen = files_of(src), amazon_schema(with_meta=meta is not None), ItemValues()
    if (
        negatives
        and negatives.within
        and negatives.within not in {feature.name for feature in schema.item[1:]}
    ):
        raise DataError(
            "negatives cannot be drawn within this column",
            found=negatives.within,
            expected="a column of --meta",
        )
    if meta is not None and not Path(meta).is_file():
        raise DataError(f"{meta} does not exist", expected="meta_CATEGORY.jsonl")
    source = {
        "kind": "amazon",
        "files": [path.name for path in paths],
        "meta": Path(meta).name if meta else None,
        "threshold": threshold,
        "negatives": dataclasses.asdict(negatives) if negatives else None,
        "requests": dataclasses.asdict(rule),
    }
    labels = () if negatives else (LABEL,)
    num_parts = parts_for(sum(estimate_rows(path) for path in paths), options.rows_per_part)
    with (
        Rejects(target, options.max_reject_share) as rejects,
        spilling(target, schema, labels, num_parts) as spill,
        TextIds(spill.directory, ("users", "items")) as ids,
    ):
        _spill(paths, threshold, spill, seen, ids, rejects)
        items = None if meta is None else _items(Path(meta), seen.ids(), ids, rejects)
        cutter = Cutter(
            schema, rule, negatives, log_catalogue(spill, items, negatives) if negatives else None
        )
        return assemble(
            target,
            schema,
            spill,
            cutter,
            rejects,
            name=f"amazon-{paths[0].name.split('.')[0]}",
            source=source,
            event_labels=labels,
            items=items,
            notes=cutter.notes,
            extras=ids.write,
            started=started,
        )


def _spill(
    paths: Sequence[Path],
    threshold: float,
    spill: Spill,
    seen: ItemValues,
    ids: TextIds,
    rejects: Rejects,
) -> None:
    sequence = 0
    for path in paths:
        last = 0
        for rows in read_rows(path, rejects, "events", _COLUMNS):
            batch, lines = convert(rows, _FIELDS, rejects, "events", path)
            value = np.asarray(batch["rating"])
            wrong = (value < 0) | (value > 5)
            reject(rejects, "events", path, Rows(batch, lines), wrong, "rating is not from 0 to 5")
            last = int(lines[-1]) - 1 if len(lines) else last
            kept = pa.array(~wrong)
            users, items = (
                ids.of("users", batch["user"].filter(kept)),
                ids.of("items", batch["item"].filter(kept)),
            )
            seen.add(np.asarray(items), np.full(len(items), UNKNOWN))
            spill.add(
                pa.RecordBatch.from_arrays(
                    [
                        users,
                        items,
                        batch["rating"].filter(kept),
                        batch[TIMESTAMP].filter(kept),
                        pa.array(sequence + lines - 2).filter(kept),
                        pa.array((value >= threshold).astype(np.int8)).filter(kept),
                    ],
                    names=[USER_ID, ITEM_ID, "rating", TIMESTAMP, EVENT_SEQ, LABEL],
                )
            )
        sequence += last


def _items(
    path: Path,
    seen: Int64,
    ids: TextIds,
    rejects: Rejects,
) -> pa.Table:
    """Returns the items of the log with what the metadata says of them; those that it lacks are
    there with nulls.
    """
    known = read_entities(
        ((path, rows) for rows in _read_meta(path, seen, ids, rejects)),
        _ITEM_FIELDS,
        rejects,
        "items",
    )
    missing = pa.array(np.setdiff1d(seen, int64_of(known, ITEM_ID)))
    return (
        pa.concat_tables(
            [
                known,
                pa.table(
                    [missing, *(pa.nulls(len(missing), kind) for kind in known.schema.types[1:])],
                    schema=known.schema,
                ),
            ],
            promote_options="none",
        )
        .unify_dictionaries()
        .sort_by(ITEM_ID)
    )


def _read_meta(
    path: Path,
    seen: Int64,
    ids: TextIds,
    rejects: Rejects,
) -> Iterator[Rows]:
    """Yields the products that the log has, some thousand lines at a time."""
    first = 1
    with path.open(encoding="utf-8", errors="replace") as stream:
        while lines := list(islice(stream, _LINES)):
            rejects.num_read["items"] += len(lines)
            products = [_product(line) for line in lines]
            faults = [place for place, product in enumerate(products) if product is None]
            rejects.add(
                "items",
                path,
                [first + place for place in faults],
                "not a JSON object with a parent_asin",
                (lines[place].rstrip("\n") for place in faults),
            )
            kept = [
                (first + place, product)
                for place, product in enumerate(products)
                if product is not None
            ]
            numbers = ids.of(
                "items", pa.array([product["asin"] for _, product in kept], pa.string()), keep=False
            )
            wanted = np.isin(np.asarray(numbers), seen)
            columns = [
                numbers,
                *(pa.array([product[name] for _, product in kept], pa.string()) for name in _META),
            ]
            table = pa.RecordBatch.from_arrays(columns, names=[ITEM_ID, *_META]).filter(
                pa.array(wanted)
            )
            yield Rows(table, np.array([line for line, _ in kept], np.int64)[wanted])
            first += len(lines)


def _product(line: str) -> dict[str, str | None] | None:
    """Returns what is used of a product, None when the line is none."""
    try:
        value: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(value, dict) or not _text(value.get("parent_asin")):
        return None
    path = value.get("categories")
    path = [part for part in map(_text, path) if part] if isinstance(path, list) else []
    price = value.get("price")
    return {
        "asin": _text(value["parent_asin"]),
        "main_category": _text(value.get("main_category")),
        "store": _text(value.get("store")),
        "category": path[min(1, len(path) - 1)] if path else None,
        "price": _price(price),
    }


def _text(value: object) -> str | None:
    """Returns a text that UTF-8 can hold (JSON can escape half a surrogate pair); None for what is
    none.
    """
    return (
        value.encode(errors="replace").decode()
        if isinstance(value, str) and value.strip()
        else None
    )


def _price(value: object) -> str | None:
    """Returns a price as decimal text; what is not one (`from 14.99`, a dash) is unknown."""
    try:
        number = (
            float(value)
            if isinstance(value, int | float | str) and not isinstance(value, bool)
            else -1.0
        )
    except ValueError:
        return None
    return repr(number) if 0 <= number < 1e9 else None
