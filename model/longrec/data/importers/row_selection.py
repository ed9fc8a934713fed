"""Row selection: which rows of a log are events, and which of them are positives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.importers.event_mapping import EventMapping
from longrec.data.importers.reading.conditions import Condition, parse_condition
from longrec.data.importers.reading.rejects import LogBatch
from longrec.data.importers.reading.values.converted import is_text, plain_column
from longrec.data.importers.reading.values.numbers import to_text
from longrec.data.timelines import Mask

IS_POSITIVE = "is_positive"
"""Column of events/ that marks the positives of a log without labels."""
GUEST = "no user id (a guest)"


@dataclasses.dataclass(frozen=True, slots=True)
class RowSelection:
    """Conditions on the rows of a log.

    Args:
        user, item: columns of the ids.
        where: conditions that a row must meet.
        positives: conditions of which a positive meets one; none where rows are not marked.
        guests: user ids that stand for nobody.
    """

    user: str
    item: str
    where: tuple[Condition, ...]
    positives: tuple[Condition, ...]
    guests: tuple[str, ...]

    @classmethod
    def of(cls, mapping: EventMapping) -> RowSelection:
        """Return the selection of a mapping."""
        return cls(
            user=mapping.user,
            item=mapping.item,
            where=tuple(map(parse_condition, mapping.where)),
            positives=tuple(map(parse_condition, mapping.positives)),
            guests=mapping.guests,
        )

    @property
    def columns(self) -> list[str]:
        """Columns of the log that the conditions read."""
        return [condition.column for condition in (*self.where, *self.positives)]

    def select(self, batch: LogBatch) -> LogBatch:
        """Return the rows to import, with a mark on positives; count those that are left out."""
        for condition in self.where:
            batch = _rows_where(batch, condition)
        batch = batch.leave_out(self._is_guest(batch), GUEST)
        if not self.positives:
            return batch
        is_positive = np.zeros(batch.table.num_rows, bool)
        for condition in self.positives:
            is_positive |= _holds(batch, condition)
        marks = pa.array(is_positive.astype(np.int8))
        return batch.with_table(batch.table.append_column(IS_POSITIVE, marks))

    def _is_guest(self, batch: LogBatch) -> Mask:
        """Return whether a row has an item but no user, bool [N]."""
        users = plain_column(batch.table[self.user])
        is_guest = np.asarray(pc.is_null(users))
        if self.guests or is_text(users):
            texts = to_text(users).values
            is_guest |= np.asarray(pc.is_in(texts, value_set=pa.array(["", *self.guests])))
        is_guest &= np.asarray(pc.is_valid(batch.table[self.item]))
        return is_guest


def positive_events(events: pa.Table) -> pa.Table:
    """Return the events that are marked as positives."""
    return events.filter(pc.equal(events[IS_POSITIVE], 1))


def _rows_where(batch: LogBatch, condition: Condition) -> LogBatch:
    """Return the rows that meet a condition; reject values that cannot be compared."""
    converted = condition.evaluate(batch.table[condition.column])
    for fault, is_faulty in converted.faults.items():
        batch.reject(is_faulty, f"{condition.column} {fault}")
    holds = np.asarray(pc.fill_null(converted.values, 0)) == 1
    is_comparable = ~converted.is_bad
    return batch.filter(is_comparable).leave_out(~holds[is_comparable], f"not {condition}")


def _holds(batch: LogBatch, condition: Condition) -> Mask:
    values = condition.evaluate(batch.table[condition.column]).values
    holds: Mask = np.asarray(pc.fill_null(values, 0)) == 1
    return holds
