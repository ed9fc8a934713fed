"""Importer of Amazon Reviews 2023 (Hou et al. 2024, arXiv 2403.03952): ratings and metadata.

A rating is both an event and a labelled target, as in MovieLens. With drawn negatives, every
rated item is a positive. Ratings are in .csv files, item metadata in a .jsonl
file. The `history` column of the `_w_his` files is not read: histories are made from the rows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longrec.data.columns import Int64, int64_column
from longrec.data.importers.item_values import UNKNOWN, FirstKnownValues
from longrec.data.importers.reading.entities import read_entities
from longrec.data.importers.reading.fields import Field, convert
from longrec.data.importers.reading.file_search import list_log_files
from longrec.data.importers.reading.log_files import estimate_num_rows
from longrec.data.importers.reading.log_reader import read_rows
from longrec.data.importers.reading.rejects import LogBatch, LogFile
from longrec.data.importers.reading.sequence_numbers import SequenceNumbers
from longrec.data.importers.requests.builder import make_request_builder
from longrec.data.importers.requests.grouping import RequestGrouping
from longrec.data.importers.requests.negatives import NegativeSampling
from longrec.data.importers.text_ids import TextIds
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
MIN_RATING = 0
MAX_RATING = 5
COLUMNS = ("user_id", "parent_asin", "rating", "timestamp")
FIELDS = (
    Field("user", "user_id", "string", is_required=True),
    Field("item", "parent_asin", "string", is_required=True),
    Field("rating", "rating", "float64", is_required=True),
    Field(TIMESTAMP, "timestamp", "ms"),
)
META_COLUMNS = ("main_category", "category", "store", "price")
ITEM_FIELDS = (
    Field(ITEM_ID, ITEM_ID, "int64", is_required=True),
    Field("main_category", "main_category", "string"),
    Field("category", "category", "string"),
    Field("store", "store", "string"),
    Field("price", "price", "float64"),
)
META_FEATURES = (
    Feature("main_category", "category", dtype="string"),
    Feature("category", "category", dtype="string"),
    Feature("store", "category", dtype="string", min_count=5),
    Feature("price", "number", dtype="float64", minimum=0),
)
"""Item features of the metadata.

average_rating and rating_number are not among them: they cover the whole period and would leak
the future.
"""
RATING = Feature(
    "rating",
    "category",
    dtype="float64",
    max_null_share=0.0,
    minimum=MIN_RATING,
    maximum=MAX_RATING,
)
META_LINES_PER_BATCH = 4_096
MAX_PRICE = 1e9


def amazon_schema(*, with_meta: bool) -> Schema:
    """Return the schema of an imported category; item features need the metadata."""
    item_id = Feature(ITEM_ID, "id", min_count=5, max_null_share=0.0)
    meta_features = META_FEATURES if with_meta else ()
    return Schema(
        name="amazon",
        item=(item_id, *meta_features),
        user=(),
        event=(RATING,),
        tasks=(Task(LABEL),),
        text_ids=("item", "user"),
    )


def import_amazon(
    src: str | Path,
    out: str | Path,
    *,
    meta: str | Path | None = None,
    threshold: float = 4.0,
    negatives: NegativeSampling | None = None,
    grouping: RequestGrouping | None = None,
    options: ImportOptions | None = None,
) -> ImportReport:
    """Write the dataset of one or more categories; return the report.

    The label is rating >= threshold. With `negatives`, it is 1 for every rated item and 0 for the
    drawn ones. `longrec.ids.text_id` converts user ids and ASINs to int64; ids/users.parquet and
    ids/items.parquet map the ids back.

    Args:
        src: rating_only/CATEGORY.csv of 0core or 5core; or the train, valid and test files of a
            split, as a pattern or a directory.
        out: the dataset directory.
        meta: meta_CATEGORY.jsonl; only items of the log are taken from it.
        threshold: smallest rating of a positive.
        negatives: how negatives are drawn; None for labels by the threshold.
        grouping: how ratings of one user are grouped into requests.
        options: limits of the import.

    Raises:
        DataError: files or columns are missing, or too many rows are bad.
    """
    grouping = grouping or RequestGrouping()
    paths = list_log_files(src)
    _check_meta(meta, negatives)
    schema = amazon_schema(with_meta=meta is not None)
    with (
        open_dataset_builder(
            out,
            schema,
            options or ImportOptions(),
            num_events=sum(estimate_num_rows(path) for path in paths),
            event_labels=() if negatives else (LABEL,),
        ) as builder,
        TextIds(builder.spill.directory, ("users", "items")) as ids,
    ):
        rated = _read_ratings(builder, paths, ids, threshold)
        items = None
        if meta is not None:
            items = _read_items(
                builder.log_file(Path(meta), "items"),
                rated,
                ids,
            )
        requests = make_request_builder(
            schema,
            grouping,
            negatives,
            spill=builder.spill,
            items=items,
        )
        info = DatasetInfo(
            name=f"amazon-{paths[0].name.split('.')[0]}",
            source={
                "kind": "amazon",
                "files": [path.name for path in paths],
                "meta": Path(meta).name if meta else None,
                "threshold": threshold,
                "negatives": dataclasses.asdict(negatives) if negatives else None,
                "requests": dataclasses.asdict(grouping),
            },
            items=items,
            write_extra_files=ids.write,
        )
        return builder.write(requests, info)


def _check_meta(meta: str | Path | None, negatives: NegativeSampling | None) -> None:
    """Raise a DataError when the metadata, or the column of negatives in it, is missing."""
    if negatives:
        columns = META_COLUMNS if meta is not None else ()
        negatives.require_within(columns, "a column of --meta")
    if meta is not None and not Path(meta).is_file():
        raise DataError(f"{meta} does not exist", expected="meta_CATEGORY.jsonl")


def _read_ratings(
    builder: DatasetBuilder,
    paths: Sequence[Path],
    ids: TextIds,
    threshold: float,
) -> Int64:
    """Add the ratings to the spill; return the ids of the rated items, sorted."""
    rated = FirstKnownValues()
    sequence = SequenceNumbers(num_header_lines=1)
    for path in paths:
        sequence.start_file()
        for batch in read_rows(builder.log_file(path), COLUMNS):
            rows = convert(batch, FIELDS)
            ratings = np.asarray(rows.table["rating"])
            is_wrong = (ratings < MIN_RATING) | (ratings > MAX_RATING)
            rows.reject(is_wrong, "rating is not from 0 to 5")
            labels = (ratings >= threshold).astype(np.int8)
            table = rows.table.append_column(EVENT_SEQ, sequence.number(rows.lines))
            table = table.append_column(LABEL, pa.array(labels))
            table = table.filter(pa.array(~is_wrong))
            items = ids.add("items", table["item"])
            rated.add(np.asarray(items), np.full(len(items), UNKNOWN))  # only ids are collected
            events = {USER_ID: ids.add("users", table["user"]), ITEM_ID: items}
            for name in ("rating", TIMESTAMP, EVENT_SEQ, LABEL):
                events[name] = table[name]
            builder.spill.add(pa.RecordBatch.from_pydict(events))
    return rated.ids()


def _read_items(
    file: LogFile,
    rated: Int64,
    ids: TextIds,
) -> pa.Table:
    """Return the item table of the rated items; items without metadata have nulls."""
    found = read_entities(_read_meta(file, rated, ids), ITEM_FIELDS)
    missing = pa.array(np.setdiff1d(rated, int64_column(found, ITEM_ID)))
    nulls = [pa.nulls(len(missing), dtype) for dtype in found.schema.types[1:]]
    without_metadata = pa.table([missing, *nulls], schema=found.schema)
    table = pa.concat_tables([found, without_metadata], promote_options="none")
    return table.unify_dictionaries().sort_by(ITEM_ID)


def _read_meta(
    file: LogFile,
    rated: Int64,
    ids: TextIds,
) -> Iterator[LogBatch]:
    """Yield the metadata of the rated items, some thousand lines at a time."""
    first_line = 1
    with file.path.open(encoding="utf-8", errors="replace") as stream:
        while lines := list(islice(stream, META_LINES_PER_BATCH)):
            products = [_parse_product(line) for line in lines]
            is_blank = np.array([not line.strip() for line in lines])
            file.count_rows(int(np.sum(~is_blank)))
            is_good = np.array([product is not None for product in products])
            is_bad = ~is_good & ~is_blank
            _reject_lines(file, lines, np.flatnonzero(is_bad), first_line)
            good = [product for product in products if product is not None]
            item_ids = ids.encode(pa.array([product["asin"] for product in good], pa.string()))
            columns = {ITEM_ID: item_ids}
            for name in META_COLUMNS:
                columns[name] = pa.array([product[name] for product in good], pa.string())
            batch = LogBatch(
                file,
                pa.RecordBatch.from_pydict(columns),
                first_line + np.flatnonzero(is_good),
            )
            is_rated = np.isin(np.asarray(item_ids), rated)
            yield batch.leave_out(~is_rated, "item is not in the log")
            first_line += len(lines)


def _reject_lines(
    file: LogFile,
    lines: Sequence[str],
    positions: Int64,
    first_line: int,
) -> None:
    """Reject the lines at some positions of a batch that begins at line `first_line`."""
    file.rejects.add(
        file,
        "not a JSON object with a parent_asin",
        (first_line + positions).tolist(),
        (lines[position].rstrip("\n") for position in positions),
    )


def _parse_product(line: str) -> dict[str, str | None] | None:
    """Return the ASIN and the metadata of a product; None when the line is not a product."""
    try:
        value: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    asin = _text(value.get("parent_asin"))
    if asin is None:
        return None
    return {
        "asin": asin,
        "main_category": _text(value.get("main_category")),
        "store": _text(value.get("store")),
        "category": _subcategory(value.get("categories")),
        "price": _price(value.get("price")),
    }


def _subcategory(path: object) -> str | None:
    """Return the second category of a path from general to special, or its only one."""
    texts = map(_text, path) if isinstance(path, list) else []
    names = [text for text in texts if text]
    if not names:
        return None
    return names[1] if len(names) > 1 else names[0]


def _text(value: object) -> str | None:
    """Return a text that UTF-8 can hold; None for other values and blank text.

    JSON can escape half a surrogate pair, which is replaced.
    """
    if not isinstance(value, str) or not value.strip():
        return None
    return value.encode(errors="replace").decode()


def _price(value: object) -> str | None:
    """Return a price as decimal text; None for text such as `from 14.99` or a dash."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return repr(number) if 0 <= number < MAX_PRICE else None
