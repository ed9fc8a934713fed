"""Import report: what an import read, rejected and wrote."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class ImportReport:
    """Counts and remarks of one import.

    Args:
        path: the dataset directory.
        name: name of the data.
        rows_read, rows_rejected: numbers of rows of the log.
        row_counts: events, items or users -> numbers of rows read, accepted, filtered and rejected.
            Every row that was read is one of the other three.
        filter_counts: "group: filter" -> number of rows that it left out.
        num_repeats: number of rows of the log that repeat an earlier one in every column.
        reject_reasons: "group: reason" -> number of rows, of the log and of item and user files.
        num_events, num_users, num_items, num_requests, num_targets: sizes of the dataset.
        time_range: times of the first and the last event, ISO 8601 UTC.
        events_per_user: p10, p50, p90, p99 and max over the users.
        history_length: the same over the requests, of the number of events before the request.
        label_rates: mean of each label over the targets.
        rejects_path: path of the rejected rows; None when no row was rejected.
        notes: remarks on the data for people.
        seconds: wall time.
    """

    path: str
    name: str
    rows_read: int
    rows_rejected: int
    row_counts: dict[str, dict[str, int]]
    filter_counts: dict[str, int]
    num_repeats: int
    reject_reasons: dict[str, int]
    num_events: int
    num_users: int
    num_items: int
    num_requests: int
    num_targets: int
    time_range: list[str]
    events_per_user: dict[str, int]
    history_length: dict[str, int]
    label_rates: dict[str, float]
    rejects_path: str | None
    notes: list[str]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)
