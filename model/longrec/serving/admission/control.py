"""Admission of decoded requests to an engine.

A request is rejected here, before any work is done for it, for one of two reasons:

    the work in progress takes too long, or too much of its deadline   Overloaded, HTTP 503
    the engine closes                                                  EngineClosed, HTTP 503
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time

from longrec.serving.admission.cost_model import CostModel
from longrec.serving.admission.errors import EngineClosed, Overloaded
from longrec.serving.admission.limits import Limits

MAX_QUEUE_SHARE = 0.35
"""Largest share of the deadline that queued work may use; the rest is slack."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ticket:
    """An admitted request.

    Args:
        seconds: estimated work.
    """

    seconds: float


class AdmissionControl:
    """Gate of an engine: it admits requests that can be answered in time.

    Args:
        limits: bounds of the engine.
        costs: estimates the work of a request.
        changed: condition of the engine; notified when a request leaves and when admission closes.
    """

    def __init__(
        self,
        limits: Limits,
        costs: CostModel,
        changed: threading.Condition,
    ) -> None:
        self._limits = limits
        self._costs = costs
        self._changed = changed
        self._num_requests = 0
        self._seconds = 0.0
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether no more requests are admitted."""
        return self._is_closed

    @property
    def num_in_progress(self) -> int:
        """Requests that were admitted and have not left."""
        return self._num_requests

    @property
    def seconds_in_progress(self) -> float:
        """Estimated work of the requests in progress."""
        return self._seconds

    def admit(
        self,
        num_candidates: int,
        num_events: int,
        *,
        is_cached: bool,
        deadline: float = math.inf,
    ) -> Ticket:
        """Return a ticket for a request, to be given to `release` once it is answered.

        Args:
            num_candidates: candidates of the request.
            num_events: events that the request will use, as far as known.
            is_cached: whether most of these events are in the cache.
            deadline: monotonic seconds.

        Raises:
            Overloaded: too much work is in progress for the deadline.
            EngineClosed: the engine is closed.
        """
        num_encoded = 0 if is_cached else num_events
        seconds = self._costs.estimate(num_candidates, num_events, num_encoded)
        with self._changed:
            self._reject_if_needed(seconds, deadline)
            self._num_requests += 1
            self._seconds += seconds
        return Ticket(seconds)

    def release(self, ticket: Ticket) -> None:
        """End an admitted request; call it once for each ticket."""
        with self._changed:
            self._num_requests -= 1
            if self._num_requests:
                self._seconds = max(0.0, self._seconds - ticket.seconds)
            else:
                self._seconds = 0.0
            self._changed.notify_all()

    def close(self) -> None:
        """Admit no more requests."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _reject_if_needed(self, seconds: float, deadline: float) -> None:
        if self._is_closed:
            raise EngineClosed("the engine is closed")
        if not self._num_requests:
            return  # alone, a request is tried however large it is
        seconds_left = deadline - time.monotonic()
        is_too_much_work = self._seconds > self._limits.queue_seconds
        is_late = self._seconds + seconds > MAX_QUEUE_SHARE * seconds_left
        if is_too_much_work or is_late:
            # After this time the work in progress and this request would be done.
            retry_after = self._seconds + seconds
            raise Overloaded("the service cannot answer more requests in time", retry_after)
