"""Repeat rates of targets, on a log small enough to count by hand."""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pytest

from longrec.runs.autoconfig.repeats import RepeatRate, measure_repeats
from longrec.schema import Feature, Schema, Task

SCHEMA = Schema(
    name="hand-made",
    item=(Feature("item_id", "id"), Feature("genre", "category"), Feature("price", "number")),
    user=(),
    event=(),
    tasks=(Task("label"),),
)


@dataclasses.dataclass
class _Log:
    """The part of a `Dataset` that `measure_repeats` reads."""

    event_rows: list[tuple[int, int, int]]
    target_rows: list[tuple[int, int, int, int]]
    item_rows: list[tuple[int, int | None]]
    schema: Schema = SCHEMA

    def items(self) -> pa.Table:
        ids = pa.array([row[0] for row in self.item_rows], pa.int64())
        genres = pa.array([row[1] for row in self.item_rows], pa.int64())
        return pa.table({"item_id": ids, "genre": genres, "price": pa.nulls(len(ids))})

    def events(self, part: int, columns: list[str]) -> pa.Table:
        return _table(self.event_rows, columns)

    def targets(self, part: int, columns: list[str]) -> pa.Table:
        return _table(self.target_rows, columns)


def _table(rows: list[tuple[int, ...]], columns: list[str]) -> pa.Table:
    arrays = {}
    for position, name in enumerate(columns):
        arrays[name] = pa.array([row[position] for row in rows], pa.int64())
    return pa.table(arrays)


def _rates(log: _Log) -> dict[str, RepeatRate]:
    return {rate.column: rate for rate in measure_repeats(log)}  # type: ignore[arg-type]


def test_a_target_repeats_what_its_own_user_touched_strictly_before() -> None:
    log = _Log(
        # (user, time, item)
        event_rows=[(1, 10, 100), (1, 20, 101), (2, 10, 102)],
        # (user, time, item, label): a repeat; the event's own time; of another user; of another
        # item of the same genre; never seen.
        target_rows=[(1, 30, 100, 1), (1, 10, 100, 0), (2, 30, 100, 0), (1, 30, 103, 1)],
        item_rows=[(100, 7), (101, 8), (102, 9), (103, 8)],
    )
    rates = _rates(log)
    assert rates["item_id"] == RepeatRate("item_id", positives=0.5, negatives=0.0)
    assert rates["genre"] == RepeatRate("genre", positives=1.0, negatives=0.0)
    assert "price" not in rates, "numbers repeat by chance"


def test_the_earliest_of_several_events_counts() -> None:
    log = _Log([(1, 10, 100), (1, 50, 100)], [(1, 20, 100, 1)], [(100, 1)])
    assert _rates(log)["item_id"].positives == 1.0


@pytest.mark.parametrize(
    ("events", "targets", "items"),
    [
        ([], [(1, 1, 5, 1)], [(5, 1)]),
        ([(1, 1, 5)], [], [(5, 1)]),
        ([(1, 1, 5)], [(1, 2, 5, 1)], []),
        ([(1, 1, 5)], [(9, 2, 5, 1)], [(5, 1)]),
        ([(1, 1, 6)], [(1, 2, 6, 1)], [(5, 1)]),
        ([(1, 1, 5)], [(1, 2, 5, 1)], [(5, None)]),
    ],
    ids=["no event", "no target", "no item", "unknown user", "unknown item", "null feature"],
)
def test_what_is_missing_or_unknown_repeats_nothing(
    events: list[tuple[int, int, int]],
    targets: list[tuple[int, int, int, int]],
    items: list[tuple[int, int | None]],
) -> None:
    assert _rates(_Log(events, targets, items))["genre"].positives == 0.0
