"""RequestTable: the requests of a dataset or of shards, by time, and where their targets are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from longrec.data.columns import Int64, int64_column
from longrec.data.dataset import IMPORT_AGAIN, Dataset
from longrec.data.histories import Histories
from longrec.data.timelines import group_lengths, group_starts
from longrec.errors import DataError
from longrec.schema import REQUEST_ID, TIMESTAMP, USER_ID

_KEYS = (REQUEST_ID, USER_ID, TIMESTAMP)


@dataclasses.dataclass(frozen=True, slots=True)
class RequestTable:
    """Requests sorted by (time, request_id); all columns are int64 [R].

    Args:
        request_ids, user_ids: keys.
        request_times: ms.
        parts: part of the dataset, or number of the shard, that holds the targets.
        starts, ends: rows of the targets in that part or shard.
    """

    request_ids: Int64
    user_ids: Int64
    request_times: Int64
    parts: Int64
    starts: Int64
    ends: Int64

    @classmethod
    def of_dataset(cls, source: Dataset) -> RequestTable:
        """Return all requests of a dataset, or of its shard."""
        tables = [_requests_of_part(source, part) for part in source.parts]
        return cls._sorted(tables)

    @classmethod
    def of_shards(cls, shards: Sequence[Histories]) -> RequestTable:
        """Return the requests of all shards; their targets are in the tables of the shards."""
        tables = []
        for number, shard in enumerate(shards):
            tables.append(_requests_of_shard(shard, number))
        return cls._sorted(tables)

    def without(self, user_ids: Int64) -> RequestTable:
        """Return the requests of other users."""
        rows = np.flatnonzero(~np.isin(self.user_ids, user_ids))
        return self._take(rows)

    def check(self, source: str) -> None:
        """Check that there are requests and that each occurs once.

        Args:
            source: where they are from, for errors.

        Raises:
            DataError: there is no request, or one is split.
        """
        ids, counts = np.unique(self.request_ids, return_counts=True)
        if not len(ids):
            raise DataError(
                f"{source} holds no requests",
                expected="targets to train on",
                fix="Import with sampled negatives.",
            )
        repeated = ids[counts > 1]
        if len(repeated):
            raise DataError(
                "the targets of a request must follow each other and share user and time",
                found=f"{len(repeated)} requests that do not, for example {repeated[0]}",
                fix=IMPORT_AGAIN,
            )

    def sample(
        self,
        max_requests: int,
        seed: int,
    ) -> RequestTable:
        """Return a random sample of requests in the same order.

        Args:
            max_requests: size of the sample; 0 for all.
            seed: seed of the sample.
        """
        num_requests = len(self.request_times)
        if not 0 < max_requests < num_requests:
            return self
        rng = np.random.default_rng(seed)
        rows = rng.choice(num_requests, max_requests, replace=False)
        return self._take(np.sort(rows))

    def read_targets(
        self,
        read_part: Callable[[int], pa.Table],
        columns: pa.Schema,
    ) -> tuple[pa.Table, Int64]:
        """Return item_id and labels of all targets, and the end offset of each request.

        Args:
            read_part: returns the targets of a part, or of a shard.
            columns: columns of the result.
        """
        # Read part by part, then reorder to the order of the requests.
        counts = self.ends - self.starts
        first_rows = np.zeros(len(counts), np.int64)
        tables = [columns.empty_table()]
        num_rows = 0
        for part in np.unique(self.parts).tolist():
            requests = np.flatnonzero(self.parts == part)
            part_counts = counts[requests]
            rows = _ranges(self.starts[requests], part_counts)
            part_targets = read_part(part).cast(columns)
            targets = part_targets.take(pa.array(rows))
            tables.append(targets)
            first_rows[requests] = num_rows + _starts_of(part_counts)
            num_rows += targets.num_rows
        by_part = pa.concat_tables(tables)
        by_request = by_part.take(pa.array(_ranges(first_rows, counts)))
        return by_request, np.cumsum(counts)

    @classmethod
    def _sorted(cls, tables: Sequence[RequestTable]) -> RequestTable:
        no_rows = np.zeros(0, np.int64)
        columns = []
        for field in dataclasses.fields(cls):
            arrays = [getattr(table, field.name) for table in tables]
            column = np.concatenate([no_rows, *arrays])
            columns.append(column.astype(np.int64))
        whole = cls(*columns)
        order = np.lexsort((whole.request_ids, whole.request_times))
        return whole._take(order)

    def _take(self, rows: Int64) -> RequestTable:
        return RequestTable(
            self.request_ids[rows],
            self.user_ids[rows],
            self.request_times[rows],
            self.parts[rows],
            self.starts[rows],
            self.ends[rows],
        )


def _requests_of_part(source: Dataset, part: int) -> RequestTable:
    table = source.targets(part, _KEYS)
    request_ids = int64_column(table, REQUEST_ID)
    user_ids = int64_column(table, USER_ID)
    times = int64_column(table, TIMESTAMP)
    starts = group_starts(request_ids, user_ids, times)
    lengths = group_lengths(request_ids, user_ids, times)
    return RequestTable(
        request_ids[starts],
        user_ids[starts],
        times[starts],
        parts=np.full(len(starts), part),
        starts=starts,
        ends=starts + lengths,
    )


def _requests_of_shard(shard: Histories, number: int) -> RequestTable:
    requests = shard.requests
    user_rows = int64_column(requests, "user_row")
    user_ids = int64_column(shard.users, USER_ID)
    return RequestTable(
        int64_column(requests, REQUEST_ID),
        user_ids[user_rows],
        int64_column(requests, TIMESTAMP),
        parts=np.full(len(user_rows), number),
        starts=int64_column(requests, "target_start"),
        ends=int64_column(requests, "target_end"),
    )


def _ranges(starts: Int64, counts: Int64) -> Int64:
    """Return starts[0], starts[0]+1, ... (counts[0] values), then those of starts[1], and so on."""
    shifts: Int64 = np.repeat(starts - _starts_of(counts), counts)
    return np.arange(len(shifts)) + shifts


def _starts_of(counts: Int64) -> Int64:
    """Return the first position of each range when ranges follow each other."""
    return np.cumsum(counts) - counts
