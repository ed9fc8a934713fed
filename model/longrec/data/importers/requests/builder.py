"""Request builder: the targets of each part of a log, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from longrec.data.importers.requests.catalogue import ItemCatalogue, catalogue_of_log
from longrec.data.importers.requests.exposures import exposure_requests
from longrec.data.importers.requests.grouping import RequestGrouping
from longrec.data.importers.requests.negatives import NegativeSampler, NegativeSampling
from longrec.data.importers.writing.event_spill import EventSpill
from longrec.schema import Schema

SelectTargets: TypeAlias = Callable[[pa.Table], pa.Table]
"""Events of a part -> the events that can be targets."""


def all_events(events: pa.Table) -> pa.Table:
    """Return all events: each can be a target."""
    return events


class RequestBuilder:
    """Builder of the targets of each part of a log of exposures.

    Args:
        schema: features and tasks.
        grouping: how events are grouped into requests.
        select_targets: selects the events that can be targets, with one column per task. The
            others stay in the histories.
    """

    target_noun = "exposures"

    def __init__(
        self,
        schema: Schema,
        grouping: RequestGrouping,
        select_targets: SelectTargets = all_events,
    ) -> None:
        self.schema = schema
        self.grouping = grouping
        self.select_targets = select_targets
        self.num_cut_targets = 0

    def build(
        self,
        events: pa.Table,
        part: int,
        first_id: int,
    ) -> pa.Table:
        """Return the targets of one part.

        Args:
            events: whole users, sorted by (user_id, timestamp, event_seq).
            part: number of the part.
            first_id: id of the first request.
        """
        events = self.select_targets(events)
        requests = exposure_requests(
            events,
            self.schema,
            self.grouping,
            first_id,
        )
        self.num_cut_targets += requests.num_cut
        return requests.targets

    def notes(self) -> list[str]:
        """Return remarks for the import report."""
        if not self.num_cut_targets:
            return []
        most = self.grouping.max_targets
        return [
            f"{self.num_cut_targets:,} {self.target_noun} were cut from requests with more than "
            f"{most:,} of them (--max-targets)"
        ]


class NegativeRequestBuilder(RequestBuilder):
    """Builder of the targets of each part of a log without exposures: negatives are drawn.

    Args:
        schema, grouping, select_targets: as in `RequestBuilder`.
        negatives: how negatives are drawn.
        catalogue: the items that they are drawn from.
    """

    target_noun = "positives"

    def __init__(
        self,
        schema: Schema,
        grouping: RequestGrouping,
        negatives: NegativeSampling,
        catalogue: ItemCatalogue,
        *,
        select_targets: SelectTargets = all_events,
    ) -> None:
        super().__init__(schema, grouping, select_targets)
        self.negatives = negatives
        # Positives left out because they occur for the first time in the log.
        self.num_new_positives = 0
        self._sampler = NegativeSampler(schema, grouping, negatives, catalogue)

    def build(
        self,
        events: pa.Table,
        part: int,
        first_id: int,
    ) -> pa.Table:
        """Return the targets of one part; count the positives that are left out."""
        rng = np.random.default_rng([self.grouping.seed, part])
        found = self._sampler.requests(
            self.select_targets(events),
            first_id,
            rng,
        )
        self.num_new_positives += found.num_new_positives
        self.num_cut_targets += found.num_cut
        return found.targets

    def notes(self) -> list[str]:
        """Return remarks on the drawn negatives and on the positives that were left out."""
        within = f" with the same {self.negatives.within}" if self.negatives.within else ""
        notes = [
            f"negatives are drawn, not shown: {self.negatives.per_positive} for each positive, "
            f"uniformly from the items{within} that the log knew before the request "
            f"(seed {self.grouping.seed})"
        ]
        if self.num_new_positives:
            notes.append(
                f"{self.num_new_positives:,} positives that nobody had touched before were "
                "left out (--keep-new keeps them)"
            )
        return [*notes, *super().notes()]


def make_request_builder(
    schema: Schema,
    grouping: RequestGrouping,
    negatives: NegativeSampling | None,
    *,
    spill: EventSpill,
    items: pa.Table | None,
    select_targets: SelectTargets = all_events,
) -> RequestBuilder:
    """Return the request builder of a log, with drawn negatives if there are any.

    Args:
        schema: features and tasks.
        grouping: how events are grouped into requests.
        negatives: how negatives are drawn; None for a log of exposures.
        spill: all events of the log. To draw negatives, it is closed: no event may be added later.
        items: the item table; None when there is none.
        select_targets: selects the events that can be targets.
    """
    if negatives is None:
        return RequestBuilder(schema, grouping, select_targets)
    return NegativeRequestBuilder(
        schema,
        grouping,
        negatives,
        catalogue_of_log(spill, items, negatives.within),
        select_targets=select_targets,
    )
