"""KuaiRand (Pure, 1K, 27K; Gao et al. 2022, arXiv 2208.08696) under its official file names: a log
of exposures with many signals.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.dataset import parts_for
from longrec.data.importers.assembly import ImportOptions, ImportReport, Spill, assemble, spilling
from longrec.data.importers.readers import (
    Field,
    Rejects,
    convert,
    estimate_rows,
    header_of,
    natural_order,
    read_delimited,
    read_entities,
    read_rows,
    require_columns,
)
from longrec.data.importers.requests import RequestRule, exposure_requests
from longrec.errors import DataError
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, USER_ID, Feature, Schema, Task

VARIANTS = ("pure", "1k", "27k")
SIGNALS = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view")
TASKS = ("is_click", "long_view", "is_like")
_LOG = re.compile(r"log_(standard|random)_(.+)_(pure|1k|27k)(?:_part(\d+))?\.csv")
_ONEHOT = tuple(f"onehot_feat{place}" for place in range(18))
_USER_TEXT = (
    "user_active_degree",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
)
_USER_INT = ("is_lowactive_period", "is_live_streamer", "is_video_author", *_ONEHOT)
_EVENT_FIELDS = (
    Field(USER_ID, "user_id", "int64", True),
    Field(ITEM_ID, "video_id", "int64", True),
    Field(TIMESTAMP, "time_ms", "ms"),
    *(Field(name, name, "label") for name in SIGNALS),
    Field("play_time_ms", "play_time_ms", "int64"),
    Field("tab", "tab", "int64"),
)
_ITEM_FIELDS = (
    Field(ITEM_ID, "video_id", "int64", True),
    Field("author_id", "author_id", "int64"),
    Field("music_id", "music_id", "int64"),
    Field("tag", "tag", "string"),
    Field("video_type", "video_type", "string"),
    Field("upload_type", "upload_type", "string"),
    Field("video_duration", "video_duration", "float64"),
)
_USER_FIELDS = (
    Field(USER_ID, "user_id", "int64", True),
    *(Field(name, name, "string") for name in _USER_TEXT),
    *(Field(name, name, "int64") for name in _USER_INT),
)


def kuairand_schema(tasks: Sequence[str] = TASKS) -> Schema:
    """Returns the schema of an imported KuaiRand log that predicts `tasks`, the first one first.

    Raises:
        DataError: a task is not one of the signals.
    """
    if not tasks or any(task not in SIGNALS for task in tasks) or len(set(tasks)) != len(tasks):
        raise DataError(
            "tasks must be different signals of KuaiRand",
            found=", ".join(tasks),
            expected=", ".join(SIGNALS),
        )
    return Schema(
        name="kuairand",
        item=(
            Feature(ITEM_ID, "id", min_count=5, max_null_share=0.0),
            Feature("author_id", "id", min_count=5),
            Feature("music_id", "id", min_count=5),
            Feature("tag", "category", dtype="string"),
            Feature("video_type", "category", dtype="string"),
            Feature("upload_type", "category", dtype="string"),
            Feature("video_duration", "number", dtype="float64", minimum=0),
        ),
        user=(
            *(Feature(name, "category", dtype="string") for name in _USER_TEXT),
            *(Feature(name, "category") for name in _USER_INT),
        ),
        event=(
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
        ),
        tasks=tuple(Task(name) for name in tasks),
    )


def import_kuairand(
    src: str | Path,
    out: str | Path,
    *,
    tasks: Sequence[str] = TASKS,
    variant: str | None = None,
    rule: RequestRule | None = None,
    options: ImportOptions | None = None,
) -> ImportReport:
    """Writes the dataset of a KuaiRand directory and returns the report.

    Every row is an exposure (those of log_random too) and an event; times are `time_ms`, ties in
    the order of the files
    (standard logs by date and part, then random ones). `video_features_statistic` is not read.

    Args:
        src: directory with log_standard_*.csv, log_random_*.csv, user_features_*.csv and
            video_features_basic_*.csv, or its parent
            with these in `data/`.
        out: the dataset directory.
        tasks: signals to predict, the most important one first.
        variant: `pure`, `1k` or `27k`; needed where the directory holds several.
        rule: how requests are cut.
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
    schema = kuairand_schema(tasks)
    directory, found, logs = _find(Path(src), variant)
    num_parts = parts_for(sum(estimate_rows(path) for path in logs), options.rows_per_part)
    source = {
        "kind": "kuairand",
        "variant": found,
        "files": [path.name for path in logs],
        "window_ms": rule.window_ms,
        "max_targets": rule.max_targets,
        "max_requests_per_user": rule.max_requests_per_user,
        "seed": rule.seed,
    }
    with (
        Rejects(target, options.max_reject_share) as rejects,
        spilling(target, schema, (), num_parts) as spill,
    ):
        items = _entities(directory, "video_features_basic", found, _ITEM_FIELDS, rejects, "items")
        users = _entities(directory, "user_features", found, _USER_FIELDS, rejects, "users")
        sequence = 0
        for path in logs:
            sequence = _add_log(path, spill, rejects, sequence)
        return assemble(
            target,
            schema,
            spill,
            lambda events, first, part: exposure_requests(events, schema, rule, first),
            rejects,
            name=f"kuairand-{found}",
            source=source,
            items=_first_tag(items),
            users=users,
            started=started,
        )


def _add_log(
    path: Path,
    spill: Spill,
    rejects: Rejects,
    sequence: int,
) -> int:
    """Spills the events of one log and returns the next event_seq."""
    require_columns(path, header_of(path), [field.source for field in _EVENT_FIELDS])
    last = sequence
    for rows in read_delimited(path, rejects, "events", quotes=False):
        batch, lines = convert(rows, _EVENT_FIELDS, rejects, "events", path)
        spill.add(batch.append_column(EVENT_SEQ, pa.array(sequence + lines - 2)))
        last = sequence + int(lines[-1]) - 1 if len(lines) else last
    return last


def _entities(
    directory: Path, stem: str, variant: str, fields: Sequence[Field], rejects: Rejects, group: str
) -> pa.Table:
    """Returns the users or videos; the first row stays where an id is there several times."""
    paths = sorted(directory.glob(f"{stem}_{variant}*.csv"), key=natural_order)
    if not paths:
        raise DataError(
            f"{directory} has no {stem}_{variant}.csv",
            found=_names(directory),
            fix="Unpack the whole archive.",
        )
    wanted = [field.source for field in fields]
    return read_entities(
        ((path, rows) for path in paths for rows in read_rows(path, rejects, group, wanted)),
        fields,
        rejects,
        group,
    )


def _first_tag(items: pa.Table) -> pa.Table:
    """Returns the items with the first of their comma-separated tags."""
    first = pc.replace_substring_regex(
        items["tag"].cast(pa.string()), pattern=r",.*$", replacement=""
    )
    return items.set_column(items.schema.get_field_index("tag"), "tag", first)


def _find(src: Path, variant: str | None) -> tuple[Path, str, list[Path]]:
    """Returns (the directory, the variant, its logs in order)."""
    for directory in (src, src / "data"):
        logs = (
            [path for path in directory.glob("log_*.csv") if _LOG.fullmatch(path.name)]
            if directory.is_dir()
            else []
        )
        if logs:
            break
    else:
        raise DataError(
            f"{src} holds no KuaiRand log",
            found=_names(src),
            expected="log_standard_*_{pure,1k,27k}.csv",
        )
    present = sorted({_parts(path)[2] for path in logs})
    chosen = variant or present[0]
    if chosen not in present or (variant is None and len(present) > 1):
        raise DataError(
            f"which KuaiRand of {directory}?",
            found=", ".join(present),
            fix=f"Name one: --variant {present[0]}.",
        )
    return (
        directory,
        chosen,
        sorted((path for path in logs if _parts(path)[2] == chosen), key=_log_order),
    )


def _parts(path: Path) -> tuple[str, str, str, int]:
    match = _LOG.fullmatch(path.name)
    assert match is not None
    return match[1], match[2], match[3], int(match[4] or 0)


def _log_order(path: Path) -> tuple[bool, list[int], int]:
    kind, span, _, part = _parts(path)
    return kind == "random", [int(number) for number in re.findall(r"\d+", span)], part


def _names(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir())[:8] if directory.is_dir() else []
    return ", ".join(names) or "nothing"
