"""How the importers cut requests out of a part, and what only the log itself knows of its items."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.dataset import group_starts, int64_of, known_times
from longrec.data.importers.assembly import Spill
from longrec.data.importers.requests import (
    Catalogue,
    NegativeRule,
    RequestRule,
    exposure_requests,
    implicit_requests,
)
from longrec.schema import ITEM_ID, Schema

Int64 = npt.NDArray[np.int64]
UNKNOWN = -1
"""Stands for a missing value in `ItemValues`."""
COMPACT_ROWS = 2_000_000


@dataclasses.dataclass(slots=True)
class Cutter:
    """Makes the targets of each part, and counts what it left out.

    Args:
        schema: names the tasks.
        rule: how requests are cut.
        negatives: how negatives are drawn; None for a log of exposures.
        catalogue: what they are drawn from.
        choose: events of a part to those that can be targets, with the columns of the tasks where
            the log is one of exposures; None
            for all events as they are. The others stay in the histories.
    """

    schema: Schema
    rule: RequestRule
    negatives: NegativeRule | None
    catalogue: Catalogue | None
    choose: Callable[[pa.Table], pa.Table] | None = None
    num_new: int = 0

    def __call__(
        self,
        events: pa.Table,
        first_id: int,
        part: int,
    ) -> pa.Table:
        events = events if self.choose is None else self.choose(events)
        if self.negatives is None or self.catalogue is None:
            return exposure_requests(events, self.schema, self.rule, first_id)
        rng = np.random.default_rng([self.rule.seed, part])
        targets, num_new = implicit_requests(
            events, self.schema, self.rule, self.negatives, self.catalogue, first_id, rng
        )
        self.num_new += num_new
        return targets

    def notes(self) -> list[str]:
        """Returns what a person should know about the negatives."""
        if self.negatives is None:
            return []
        within = f" with the same {self.negatives.within}" if self.negatives.within else ""
        lines = [
            f"negatives are drawn, not shown: {self.negatives.per_positive} for each positive, uniformly from the items{within} "
            f"that the log knew before the request (seed {self.rule.seed})"
        ]
        if self.num_new:
            lines.append(
                f"{self.num_new:,} positives that nobody had touched before were left out (--keep-new keeps them)"
            )
        return lines


class ItemValues:
    """One value of each item, gathered from the rows of a log: the first one that is known stays.
    Memory grows with the items only.
    """

    def __init__(self) -> None:
        self._ids, self._values = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._pending: list[tuple[Int64, Int64]] = []
        self._num_pending = 0

    def add(self, ids: Int64, values: Int64) -> None:
        """Takes rows, both int64 [N]; a negative value is `UNKNOWN`."""
        pair = _first_known(ids, values)
        self._pending.append(pair)
        self._num_pending += len(pair[0])
        if self._num_pending > COMPACT_ROWS + len(self._ids):
            self._compact()

    def ids(self) -> Int64:
        """Returns the different items, sorted, int64 [I]."""
        self._compact()
        return self._ids

    def of(self, ids: Int64) -> pa.Array:
        """Returns the value of each of some items as int64; null where it is not known."""
        self._compact()
        place = np.minimum(np.searchsorted(self._ids, ids), max(len(self._ids) - 1, 0))
        known = self._ids[place] == ids if len(self._ids) else np.zeros(len(ids), bool)
        values = self._values[place] if len(self._ids) else np.zeros(len(ids), np.int64)
        return pa.array(values, pa.int64(), mask=~known | (values < 0))

    def _compact(self) -> None:
        if self._pending:
            columns = zip((self._ids, self._values), *self._pending, strict=True)
            self._ids, self._values = _first_known(*(np.concatenate(column) for column in columns))
            self._pending, self._num_pending = [], 0


def _first_known(ids: Int64, values: Int64) -> tuple[Int64, Int64]:
    order = np.lexsort((values < 0, ids))
    first = order[group_starts(ids[order])]
    return ids[first], np.maximum(values[first], UNKNOWN)


def log_catalogue(spill: Spill, items: pa.Table | None, negatives: NegativeRule) -> Catalogue:
    """Returns the items of the log with their first times, grouped by the item column that
    negatives stay within.
    """
    spill.close()
    ids, firsts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for part in range(spill.num_parts):
        events = spill.read(part, last=False)
        ids, firsts = _earliest(
            np.concatenate([ids, int64_of(events, ITEM_ID)]),
            np.concatenate([firsts, known_times(events)]),
        )
    if negatives.within is None or items is None or not len(ids):
        return Catalogue.of(ids, firsts)
    known = int64_of(items, ITEM_ID)
    column = items[negatives.within]
    codes = np.asarray(
        pc.fill_null(
            pc.index_in(column, value_set=pc.unique(column.cast(_plain(column.type)))), -1
        ),
        np.int64,
    )
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return Catalogue.of(ids, firsts, np.where(known[place] == ids, codes[place], -1))


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _earliest(ids: Int64, times: Int64) -> tuple[Int64, Int64]:
    order = np.lexsort((times, ids))
    unique, first = np.unique(ids[order], return_index=True)
    return unique, times[order][first]
