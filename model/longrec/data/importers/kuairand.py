"""Importer of KuaiRand (Pure, 1K, 27K; Gao et al. 2022, arXiv 2208.08696).

It is a log of exposures with many signals. The files have their official names.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.importers.reading.entities import read_entities
from longrec.data.importers.reading.fields import Field, convert
from longrec.data.importers.reading.file_search import natural_sort_key
from longrec.data.importers.reading.log_files import (
    estimate_num_rows,
    header_names,
    require_columns,
)
from longrec.data.importers.reading.log_reader import read_rows
from longrec.data.importers.reading.sequence_numbers import SequenceNumbers
from longrec.data.importers.reading.text_files import read_delimited
from longrec.data.importers.requests.builder import RequestBuilder
from longrec.data.importers.requests.grouping import RequestGrouping
from longrec.data.importers.writing.dataset_builder import (
    DatasetBuilder,
    DatasetInfo,
    ImportOptions,
    open_dataset_builder,
)
from longrec.data.importers.writing.import_report import ImportReport
from longrec.errors import DataError
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, USER_ID, Feature, Schema, Task

VARIANTS = ("pure", "1k", "27k")
SIGNALS = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view")
TASKS = ("is_click", "long_view", "is_like")
LOG_NAME = re.compile(r"log_(standard|random)_(.+)_(pure|1k|27k)(?:_part(\d+))?\.csv")
ONEHOT_FEATURES = tuple(f"onehot_feat{number}" for number in range(18))
USER_TEXT_FEATURES = (
    "user_active_degree",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
)
USER_INT_FEATURES = (
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    *ONEHOT_FEATURES,
)
EVENT_FIELDS = (
    Field(USER_ID, "user_id", "int64", is_required=True),
    Field(ITEM_ID, "video_id", "int64", is_required=True),
    Field(TIMESTAMP, "time_ms", "ms"),
    *(Field(name, name, "label") for name in SIGNALS),
    Field("play_time_ms", "play_time_ms", "int64"),
    Field("tab", "tab", "int64"),
)
ITEM_FIELDS = (
    Field(ITEM_ID, "video_id", "int64", is_required=True),
    Field("author_id", "author_id", "int64"),
    Field("music_id", "music_id", "int64"),
    Field("tag", "tag", "string"),
    Field("video_type", "video_type", "string"),
    Field("upload_type", "upload_type", "string"),
    Field("video_duration", "video_duration", "float64"),
)
USER_FIELDS = (
    Field(USER_ID, "user_id", "int64", is_required=True),
    *(Field(name, name, "string") for name in USER_TEXT_FEATURES),
    *(Field(name, name, "int64") for name in USER_INT_FEATURES),
)
ITEM_FEATURES = (
    Feature(ITEM_ID, "id", min_count=5, max_null_share=0.0),
    Feature("author_id", "id", min_count=5),
    Feature("music_id", "id", min_count=5),
    Feature("tag", "category", dtype="string"),
    Feature("video_type", "category", dtype="string"),
    Feature("upload_type", "category", dtype="string"),
    Feature(
        "video_duration",
        "number",
        dtype="float64",
        minimum=0,
    ),
)
USER_FEATURES = (
    *(Feature(name, "category", dtype="string") for name in USER_TEXT_FEATURES),
    *(Feature(name, "category") for name in USER_INT_FEATURES),
)
EVENT_FEATURES = (
    *(
        Feature(
            name,
            "category",
            max_null_share=0.0,
            minimum=0,
            maximum=1,
        )
        for name in SIGNALS
    ),
    Feature("play_time_ms", "number", minimum=0),
    Feature("tab", "category", minimum=0),
)


def kuairand_schema(tasks: Sequence[str] = TASKS) -> Schema:
    """Return the schema of an imported KuaiRand log.

    Args:
        tasks: signals to predict, the most important one first.

    Raises:
        DataError: a task is not one of the signals, or is named twice.
    """
    are_signals = all(task in SIGNALS for task in tasks)
    are_different = len(set(tasks)) == len(tasks)
    if not tasks or not are_signals or not are_different:
        raise DataError(
            "tasks must be different signals of KuaiRand",
            found=", ".join(tasks),
            expected=", ".join(SIGNALS),
        )
    return Schema(
        name="kuairand",
        item=ITEM_FEATURES,
        user=USER_FEATURES,
        event=EVENT_FEATURES,
        tasks=tuple(Task(name) for name in tasks),
    )


def import_kuairand(
    src: str | Path,
    out: str | Path,
    *,
    tasks: Sequence[str] = TASKS,
    variant: str | None = None,
    grouping: RequestGrouping | None = None,
    options: ImportOptions | None = None,
) -> ImportReport:
    """Write the dataset of a KuaiRand directory; return the report.

    Every row is an exposure and an event, also in the random logs. Times are `time_ms`. Events of
    equal time are in the order of the files: standard logs by date and part, then random ones.
    `video_features_statistic` is not read.

    Args:
        src: directory with log_standard_*.csv, log_random_*.csv, user_features_*.csv and
            video_features_basic_*.csv; or its parent, which has them in `data/`.
        out: the dataset directory.
        tasks: signals to predict, the most important one first.
        variant: `pure`, `1k` or `27k`; needed where the directory holds several.
        grouping: how exposures are grouped into requests.
        options: limits of the import.

    Raises:
        DataError: files or columns are missing, or too many rows are bad.
    """
    grouping = grouping or RequestGrouping()
    schema = kuairand_schema(tasks)
    log = _find_log(Path(src), variant)
    with open_dataset_builder(
        out,
        schema,
        options or ImportOptions(),
        num_events=sum(estimate_num_rows(path) for path in log.paths),
    ) as builder:
        items = _read_entities(
            builder,
            log,
            "video_features_basic",
            "items",
        )
        users = _read_entities(builder, log, "user_features", "users")
        _read_events(builder, log.paths)
        info = DatasetInfo(
            name=f"kuairand-{log.variant}",
            source=_source(log, grouping),
            items=_with_first_tag(items),
            users=users,
        )
        return builder.write(RequestBuilder(schema, grouping), info)


@dataclasses.dataclass(frozen=True, slots=True)
class _Log:
    """Files of one variant: the directory, the variant and the paths of its logs in order."""

    directory: Path
    variant: str
    paths: list[Path]


def _read_events(builder: DatasetBuilder, paths: Sequence[Path]) -> None:
    """Add the events of all logs to the spill."""
    columns = [field.source for field in EVENT_FIELDS]
    sequence = SequenceNumbers(num_header_lines=1)
    for path in paths:
        require_columns(path, header_names(path), columns)
        sequence.start_file()
        for batch in read_delimited(builder.log_file(path), has_quotes=False):
            rows = convert(batch, EVENT_FIELDS)
            numbers = sequence.number(rows.lines)
            builder.spill.add(rows.table.append_column(EVENT_SEQ, numbers))


def _read_entities(
    builder: DatasetBuilder,
    log: _Log,
    stem: str,
    group: str,
) -> pa.Table:
    """Return the table of users or videos; the first row of each id is used."""
    paths = sorted(log.directory.glob(f"{stem}_{log.variant}*.csv"), key=natural_sort_key)
    if not paths:
        raise DataError(
            f"{log.directory} has no {stem}_{log.variant}.csv",
            found=_file_names(log.directory),
            fix="Unpack the whole archive.",
        )
    fields = USER_FIELDS if group == "users" else ITEM_FIELDS
    columns = [field.source for field in fields]
    files = [builder.log_file(path, group) for path in paths]
    batches = (batch for file in files for batch in read_rows(file, columns))
    return read_entities(batches, fields)


def _with_first_tag(items: pa.Table) -> pa.Table:
    """Return the items with the first of their comma-separated tags."""
    tags = items["tag"].cast(pa.string())
    first = pc.replace_substring_regex(
        tags,
        pattern=r",.*$",
        replacement="",
    )
    return items.set_column(
        items.schema.get_field_index("tag"),
        "tag",
        first,
    )


def _find_log(src: Path, variant: str | None) -> _Log:
    """Return the files of a variant below a directory."""
    directory, paths = _find_directory(src)
    variants = sorted({_name_parts(path).variant for path in paths})
    chosen = variant or variants[0]
    is_ambiguous = variant is None and len(variants) > 1
    if chosen not in variants or is_ambiguous:
        raise DataError(
            f"which KuaiRand of {directory}?",
            found=", ".join(variants),
            fix=f"Name one: --variant {variants[0]}.",
        )
    chosen_paths = [path for path in paths if _name_parts(path).variant == chosen]
    return _Log(
        directory,
        chosen,
        sorted(chosen_paths, key=_log_order),
    )


def _find_directory(src: Path) -> tuple[Path, list[Path]]:
    """Return the directory of the logs and their paths."""
    for directory in (src, src / "data"):
        entries = directory.glob("log_*.csv") if directory.is_dir() else []
        paths = [path for path in entries if LOG_NAME.fullmatch(path.name)]
        if paths:
            return directory, paths
    raise DataError(
        f"{src} holds no KuaiRand log",
        found=_file_names(src),
        expected="log_standard_*_{pure,1k,27k}.csv",
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _NameParts:
    """Parts of the name of a log: standard or random, dates, variant and number of the part."""

    kind: str
    dates: str
    variant: str
    part: int


def _name_parts(path: Path) -> _NameParts:
    match = LOG_NAME.fullmatch(path.name)
    assert match is not None
    kind, dates, variant, part = match.groups()
    return _NameParts(kind, dates, variant, int(part or 0))


def _log_order(path: Path) -> tuple[bool, list[int], int]:
    name = _name_parts(path)
    dates = [int(number) for number in re.findall(r"\d+", name.dates)]
    return name.kind == "random", dates, name.part


def _file_names(directory: Path) -> str:
    entries = directory.iterdir() if directory.is_dir() else []
    names = sorted(path.name for path in entries)
    return ", ".join(names[:8]) or "nothing"


def _source(log: _Log, grouping: RequestGrouping) -> dict[str, Any]:
    # The grouping is flat here: files on disk have this form. Later importers nest it.
    return {
        "kind": "kuairand",
        "variant": log.variant,
        "files": [path.name for path in log.paths],
        "window_ms": grouping.window_ms,
        "max_targets": grouping.max_targets,
        "max_requests_per_user": grouping.max_requests_per_user,
        "seed": grouping.seed,
    }
