"""Requests of a log of exposures: items that were shown together are ranked together.

The request time is the time of the first exposure. Histories end strictly before it, so no
exposure of a request is in its own history.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from longrec.data.dataset import target_schema
from longrec.data.importers.requests.grouping import (
    RequestGrouping,
    group_events,
    ranks_in_runs,
    sample_requests,
    timestamp_column,
)
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID, Schema


def exposure_requests(
    events: pa.Table,
    schema: Schema,
    grouping: RequestGrouping,
    first_id: int,
) -> pa.Table:
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
    rows = np.argsort(groups.request_of_event, kind="stable")
    request = groups.request_of_event[rows]
    fits = ranks_in_runs(request) < grouping.max_targets
    rows = rows[is_chosen[request] & fits]
    request = groups.request_of_event[rows]
    ids = first_id + np.cumsum(is_chosen)[request] - 1
    exposures = events.take(pa.array(rows))
    columns = {
        REQUEST_ID: pa.array(ids),
        USER_ID: exposures[USER_ID],
        TIMESTAMP: timestamp_column(groups.request_times[request]),
        ITEM_ID: exposures[ITEM_ID],
    }
    labels = {task: exposures[task] for task in schema.task_names}
    return pa.table({**columns, **labels}).cast(target_schema(schema))
