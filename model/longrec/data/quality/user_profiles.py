"""User profiles: one row per user with counts of its rows and of what is wrong with them.

Parts are read one at a time. A part holds whole users, so the memory is one part and one row per
user, whatever the number of events.

    part       u u u u | v v | w w w    rows of a user together, ordered by (timestamp, event_seq)
    profile    u         v     w        rows, disorder, duplicates, split baskets, unknown items
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longrec.data.columns import Int64
from longrec.data.quality.column_profiles import MAX_EXAMPLES
from longrec.data.timelines import (
    Mask,
    equals_previous,
    group_lengths,
    group_starts,
    steps_back,
)
from longrec.schema import BASKET_ID, ITEM_ID, TIMESTAMP, USER_ID

NULL = np.iinfo(np.int64).min
"""Stands for a null in integer arrays: below every id and time that passes the checks."""
SHARD = "shard"
LOCATION_COLUMNS = ("part", SHARD)
"""Columns that say which part and shard a user is in; they are not summed."""


@dataclasses.dataclass(frozen=True, slots=True)
class UserProfile:
    """One row per user.

    Args:
        columns: column -> int64 [U]; `user_id` and counts.
    """

    columns: dict[str, Int64]

    def __len__(self) -> int:
        return len(self.columns[USER_ID])

    @classmethod
    def empty(cls) -> UserProfile:
        """Return the profile of no users."""
        return cls({USER_ID: np.zeros(0, np.int64)})

    @classmethod
    def merged(cls, parts: Sequence[UserProfile]) -> UserProfile:
        """Return one row per user of all parts, sorted by id; the counts of a user are summed."""
        filled = [part for part in parts if len(part)]
        if not filled:
            filled = list(parts[:1])  # an empty profile still names the columns
        arrays_by_column = {}
        for name in filled[0].columns:
            arrays_by_column[name] = [part.columns[name] for part in filled]
        return sum_by_user(arrays_by_column)

    def total(self, name: str) -> int:
        """Return the sum of a count over all users; 0 without users."""
        return int(self.columns[name].sum()) if name in self.columns else 0

    def with_largest(self, name: str) -> list[str]:
        """Return at most ten users with a count above 0 in words, the largest count first."""
        no_counts = np.zeros(0, np.int64)
        return self.with_largest_weight(self.columns.get(name, no_counts))

    def with_largest_weight(self, weights: npt.NDArray[Any]) -> list[str]:
        """Return at most ten users with a weight above 0 in words, the largest weight first."""
        rows = np.argsort(-weights, kind="stable")[:MAX_EXAMPLES]
        has_weight = weights[rows] > 0
        return self.describe(rows[has_weight])

    def describe(self, rows: Int64) -> list[str]:
        """Return users in words, with their shard when there are several."""
        users = self.columns[USER_ID][rows].tolist()
        if SHARD not in self.columns:
            return [f"user {user}" for user in users]
        shards = self.columns[SHARD][rows].tolist()
        return [f"user {user} (shard {shard})" for user, shard in zip(users, shards, strict=True)]


def sum_by_user(arrays_by_column: Mapping[str, Sequence[Int64]]) -> UserProfile:
    """Return one row per user from the columns of several parts; counts are summed.

    `part` and `shard` are the first values of a user.

    Args:
        arrays_by_column: column -> its array in each part; the parts are in the same order for
            all columns.
    """
    if not arrays_by_column:
        return UserProfile.empty()
    columns = {name: np.concatenate(arrays) for name, arrays in arrays_by_column.items()}
    users, first, inverse = np.unique(
        columns.pop(USER_ID),
        return_index=True,
        return_inverse=True,
    )
    summed = {USER_ID: users}
    for name in LOCATION_COLUMNS:
        if name in columns:
            summed[name] = columns.pop(name)[first]
    for name, values in columns.items():
        summed[name] = np.bincount(inverse, values, len(users)).astype(np.int64)
    return UserProfile(summed)


def profile_users(
    paths: Mapping[int, Path],
    order_column: str,
    known_items: Int64,
    *,
    has_baskets: bool = False,
    labels: Sequence[str] = (),
    previous_items: Int64 | None = None,
) -> UserProfile:
    """Return the profile of the users in parts of events or targets.

    Args:
        paths: number of a part -> its Parquet file.
        order_column: orders rows of equal time: `event_seq` of events, `request_id` of targets.
        known_items: int64, sorted ids of the item table.
        has_baskets: whether to count baskets with more than one time.
        labels: label columns; their positives are counted as `positives LABEL`.
        previous_items: sorted ids of the items of the previous version; rows with other items
            are counted as `num_new_items`. None for no count.
    """
    baskets = [BASKET_ID] if has_baskets else []
    names = [USER_ID, TIMESTAMP, order_column, ITEM_ID, *baskets, *labels]
    arrays_by_column: dict[str, list[Int64]] = {}
    for number, path in paths.items():
        table = pq.read_table(path, columns=names)
        if not table.num_rows:
            continue
        columns = {name: to_int64(table[name]) for name in names}
        del table  # its memory is needed for the masks
        masks = {f"positives {label}": columns[label] == 1 for label in labels}
        if previous_items is not None:
            masks["num_new_items"] = is_unknown(columns[ITEM_ID], previous_items)
        rows = _PartRows.of(columns, order_column)
        for name, values in rows.count(known_items, masks, number).items():
            arrays_by_column.setdefault(name, []).append(values)
    return sum_by_user(arrays_by_column)


@dataclasses.dataclass(frozen=True, slots=True)
class _PartRows:
    """Rows of a part, and the runs of rows of one user: [N] each.

    Args:
        users: user of each run.
        runs: number of the run of each row.
        times, order, items: columns.
        baskets: column; None without baskets.
    """

    users: Int64
    runs: Int64
    times: Int64
    order: Int64
    items: Int64
    baskets: Int64 | None

    @classmethod
    def of(cls, columns: Mapping[str, Int64], order_column: str) -> _PartRows:
        """Return the rows of a part, from its columns."""
        users = columns[USER_ID]
        return cls(
            users=users[group_starts(users)],
            runs=_group_numbers(users),
            times=columns[TIMESTAMP],
            order=columns[order_column],
            items=columns[ITEM_ID],
            baskets=columns.get(BASKET_ID),
        )

    def count(
        self,
        known_items: Int64,
        masks: Mapping[str, Mask],
        part: int,
    ) -> dict[str, Int64]:
        """Return one row per run: the counts of the masks of this class and of those given."""
        is_duplicate, is_repeat = self._equal_rows()
        all_masks = {
            "num_disordered": self._disordered(),
            "num_duplicates": is_duplicate,
            "num_repeats": is_repeat,
            "num_unknown_items": is_unknown(self.items, known_items),
            **masks,
        }
        if self.baskets is not None:
            all_masks["num_split_baskets"] = self._split_baskets(self.baskets)
        num_runs = len(self.users)
        sizes = np.bincount(self.runs, minlength=num_runs)
        counts = {
            USER_ID: self.users,
            "num_rows": sizes,
            "num_runs": np.ones_like(sizes),
            "part": np.full_like(sizes, part),
        }
        for name, mask in all_masks.items():
            counts[name] = np.bincount(self.runs[mask], minlength=num_runs)
        return counts

    def _disordered(self) -> Mask:
        """Return the rows that are before the previous row of their user."""
        is_disordered = np.zeros(len(self.runs), bool)
        is_disordered[1:] = equals_previous(self.runs) & steps_back(self.times, self.order)
        return is_disordered

    def _equal_rows(self) -> tuple[Mask, Mask]:
        """Return duplicates and repeats.

        A duplicate equals another row of its user in item, time and order. A repeat equals one
        in item and time and differs in order. Of equal rows, the first one is neither.
        """
        # Equal rows have the same user and time, so only rows that tie in both are sorted.
        ties = _group_numbers(self.runs, self.times)
        tied_rows = np.flatnonzero(np.bincount(ties)[ties] > 1)
        keys = (self.order[tied_rows], self.items[tied_rows], ties[tied_rows])
        rows = tied_rows[np.lexsort(keys)]  # by tie, then item, then order
        # Equal rows are neighbours now. A comparison is about each row but the first.
        same_item = equals_previous(ties[rows], self.items[rows])
        same_order = equals_previous(self.order[rows])
        later_rows = rows[1:]
        is_duplicate = np.zeros(len(self.times), bool)
        is_duplicate[later_rows[same_item & same_order]] = True
        is_repeat = np.zeros(len(self.times), bool)
        is_repeat[later_rows[same_item & ~same_order]] = True
        return is_duplicate, is_repeat

    def _split_baskets(self, baskets: Int64) -> Mask:
        """Return the rows at which a basket goes on at another time."""
        # Rows of a run have the same user, time and basket, so only its first row is sorted.
        first_rows = group_starts(self.runs, self.times, baskets)
        basket_rows = first_rows[baskets[first_rows] != NULL]
        keys = (self.times[basket_rows], baskets[basket_rows], self.runs[basket_rows])
        rows = basket_rows[np.lexsort(keys)]  # by user, then basket, then time
        same_basket = equals_previous(self.runs[rows], baskets[rows])
        same_time = equals_previous(self.times[rows])
        later_rows = rows[1:]
        is_split = np.zeros(len(self.times), bool)
        is_split[later_rows[same_basket & ~same_time]] = True
        return is_split


def to_int64(column: pa.ChunkedArray | pa.Array) -> Int64:
    """Return an id or time column as int64, times in ms and NULL for null."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms", column.type.tz), safe=False)
    filled = pc.fill_null(column.cast(pa.int64()), int(NULL))
    if isinstance(filled, pa.ChunkedArray):
        return np.asarray(filled.to_numpy())
    return np.asarray(filled.to_numpy(zero_copy_only=False))


def is_unknown(items: Int64, known_items: Int64) -> Mask:
    """Return whether each item is absent from the sorted known ones, bool."""
    if not len(known_items):
        return np.ones(len(items), bool)
    last_row = len(known_items) - 1
    rows = np.searchsorted(known_items, items)
    nearest = known_items[np.minimum(rows, last_row)]
    return np.asarray(nearest != items)


def quantiles_in_words(values: npt.NDArray[Any]) -> str | None:
    """Return p50, p90, p99 and the maximum as text; None for no values."""
    if not len(values):
        return None
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    named = {"p50": p50, "p90": p90, "p99": p99, "max": values.max()}
    return " · ".join(f"{name} {value:,.0f}" for name, value in named.items())


def _group_numbers(*columns: Int64) -> Int64:
    """Return the number of the run of equal rows that each row is in, int64 [N], from 0."""
    lengths = group_lengths(*columns)
    return np.repeat(np.arange(len(lengths)), lengths)
