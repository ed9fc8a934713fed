"""Requests of a log of exposures: items that were shown together are ranked together.

The request time is the time of the first exposure. Histories end strictly before it, so no
exposure of a request is in its own history.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from longrec.data.columns import timestamp_column
from longrec.data.dataset import target_schema
from longrec.data.importers.requests.grouping import (
    RequestGrouping,
    group_events,
    ranks_in_runs,
    sample_requests,
)
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID, Schema


@dataclasses.dataclass(frozen=True, slots=True)
class ExposureRequests:
    """Targets of requests of exposures.

    Args:
        targets: the targets, sorted like a part of targets/.
        num_cut: number of exposures beyond the `max_targets` of their basket.
    """

    targets: pa.Table
    num_cut: int


def exposure_requests(
    events: pa.Table,
    schema: Schema,
    grouping: RequestGrouping,
    first_id: int,
) -> ExposureRequests:
    """Return the targets of the requests of one part of a log of exposures.

    With baskets, a request is a basket (its first `max_targets` rows). Without, it is a window.

    Args:
        events: whole users, sorted by (user_id, timestamp, event_seq), one 0/1 column per task.
        schema: features and tasks.
        grouping: how exposures are grouped into requests.
        first_id: id of the first request.
    """
    groups = group_events(events, schema, grouping)
    is_chosen = sample_requests(groups.users, grouping)
    by_request = np.argsort(groups.request_of_event, kind="stable")
    request_of_row = groups.request_of_event[by_request]
    fits = ranks_in_runs(request_of_row) < grouping.max_targets
    is_row_chosen = is_chosen[request_of_row]
    rows = by_request[is_row_chosen & fits]
    request = groups.request_of_event[rows]
    ids_of_requests = first_id + np.cumsum(is_chosen) - 1  # ids count the chosen requests only
    exposures = events.take(pa.array(rows))
    columns = {
        REQUEST_ID: pa.array(ids_of_requests[request]),
        USER_ID: exposures[USER_ID],
        TIMESTAMP: timestamp_column(groups.request_times[request]),
        ITEM_ID: exposures[ITEM_ID],
    }
    labels = {task: exposures[task] for task in schema.task_names}
    targets = pa.table({**columns, **labels}).cast(target_schema(schema))
    return ExposureRequests(targets, int(np.sum(is_row_chosen & ~fits)))
