"""Admission control (load shedding): requests that would be late are rejected at once.

A request is rejected here, before any work is done for it, for one of four reasons:

    its caller has too many requests in progress                       TooManyRequests, HTTP 429
    the engine has too many requests in progress                       Overloaded, HTTP 503
    the work in progress takes too long, or too much of its deadline   Overloaded, HTTP 503
    the engine closes                                                  EngineClosed, HTTP 503

The work is estimated by a cost model that learns from each batch.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import threading
import time

from longrec.errors import LongrecError

MAX_QUEUE_SHARE = 0.35
"""Largest share of the deadline that queued work may use; the rest is slack."""
SLOWER_WEIGHT = 0.5
FASTER_WEIGHT = 0.2
"""Weights of a new measurement in a cost. A slower one counts more: a cost that is too low lets in
requests that miss their deadline.
"""
MANY_EVENTS = 2_048
"""A batch that encodes at least so many events measures the cost of an event."""
MANY_PAIRS = 2_048 * 256
"""A batch with at least so many pairs (candidate, event) measures the cost of a pair."""
FEW_PAIRS = MANY_PAIRS // 16
"""A batch with fewer pairs measures the cost of a request."""


class Overloaded(LongrecError):
    """The service has more work than it can finish in time.

    Args:
        what: the reason.
        retry_after_seconds: when the caller should try again.
    """

    def __init__(self, what: str, retry_after_seconds: float) -> None:
        super().__init__(what, fix=f"Try again in {math.ceil(retry_after_seconds)} s.")
        self.retry_after_seconds = retry_after_seconds


class TooManyRequests(Overloaded):
    """One caller has too many requests in progress."""


class EngineClosed(LongrecError):
    """The engine accepts no more requests: another version replaced it, or the service stops."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds of one engine.

    Args:
        cache_bytes: bytes of the history KV cache.
        batch_events: events in one batch; a larger request is scored alone.
        batch_requests: requests in one batch.
        queue_seconds: seconds of estimated work in progress.
        queue_requests: requests in progress.
        caller_requests: requests in progress of one caller.
    """

    cache_bytes: int = 1 << 30
    batch_events: int = 65_536
    batch_requests: int = 32
    queue_seconds: float = 1.0
    queue_requests: int = 256
    caller_requests: int = 64


@dataclasses.dataclass(slots=True)
class CostModel:
    """Estimated cost of a request, learned from measured batches.

    seconds = request + pair * candidates * events + event * encoded events

    Args:
        request_seconds: cost of each request.
        pair_seconds: cost of each pair of a candidate and an event.
        event_seconds: cost of each encoded event.
    """

    request_seconds: float = 0.005
    pair_seconds: float = 1e-8
    event_seconds: float = 1e-5

    def estimate(
        self,
        num_candidates: int,
        num_events: int,
        num_encoded: int,
    ) -> float:
        """Return the estimated seconds of a request."""
        pairs = self.pair_seconds * num_candidates * num_events
        encoding = self.event_seconds * num_encoded
        return self.request_seconds + pairs + encoding

    def learn_encoding(self, num_encoded: int, seconds: float) -> None:
        """Update the cost of an event from the encoding time of a batch."""
        if num_encoded >= MANY_EVENTS:
            self.event_seconds = _smoothed(self.event_seconds, seconds / num_encoded)

    def learn_scoring(
        self,
        num_requests: int,
        num_pairs: int,
        seconds: float,
    ) -> None:
        """Update the cost that dominates the scoring time of a batch: of a pair or of a request."""
        seconds_of_pairs = seconds - self.request_seconds
        if num_pairs >= MANY_PAIRS and seconds_of_pairs > 0:
            self.pair_seconds = _smoothed(self.pair_seconds, seconds_of_pairs / num_pairs)
        elif num_pairs < FEW_PAIRS:
            self.request_seconds = _smoothed(self.request_seconds, seconds / num_requests)


@dataclasses.dataclass(frozen=True, slots=True)
class Ticket:
    """An admitted request.

    Args:
        caller: name or address of the caller.
        seconds: estimated work.
    """

    caller: str
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
        self._num_requests: collections.Counter[str] = collections.Counter()
        self._seconds = 0.0
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether no more requests are admitted."""
        return self._is_closed

    @property
    def num_in_progress(self) -> int:
        """Requests that were admitted and have not left."""
        return self._num_requests.total()

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
        caller: str = "",
    ) -> Ticket:
        """Return a ticket for a request, to be given to `release` once it is answered.

        Args:
            num_candidates: candidates of the request.
            num_events: events that the request will use, as far as known.
            is_cached: whether most of these events are in the cache.
            deadline: monotonic seconds.
            caller: name or address of the caller.

        Raises:
            TooManyRequests: the caller has too many requests in progress.
            Overloaded: too much work is in progress for the deadline.
            EngineClosed: the engine is closed.
        """
        num_encoded = 0 if is_cached else num_events
        seconds = self._costs.estimate(num_candidates, num_events, num_encoded)
        with self._changed:
            self._reject_if_needed(seconds, deadline, caller)
            self._num_requests[caller] += 1
            self._seconds += seconds
        return Ticket(caller, seconds)

    def release(self, ticket: Ticket) -> None:
        """End an admitted request; call it once for each ticket."""
        with self._changed:
            self._num_requests[ticket.caller] -= 1
            if self._num_requests[ticket.caller] == 0:
                del self._num_requests[ticket.caller]
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

    def _reject_if_needed(
        self,
        seconds: float,
        deadline: float,
        caller: str,
    ) -> None:
        if self._is_closed:
            raise EngineClosed("the engine is closed")
        # After this time the work in progress and this request would be done.
        retry_after = self._seconds + seconds
        if self._num_requests[caller] >= self._limits.caller_requests:
            raise TooManyRequests("this caller has too many requests in progress", retry_after)
        if not self._num_requests:
            return  # alone, a request is tried however large it is
        seconds_left = deadline - time.monotonic()
        is_full = self.num_in_progress >= self._limits.queue_requests
        is_too_much_work = self._seconds > self._limits.queue_seconds
        is_late = self._seconds + seconds > MAX_QUEUE_SHARE * seconds_left
        if is_full or is_too_much_work or is_late:
            raise Overloaded("the service cannot answer more requests in time", retry_after)


def _smoothed(before: float, measured: float) -> float:
    """Return a cost after one measurement."""
    weight = FASTER_WEIGHT if measured < before else SLOWER_WEIGHT
    return before + weight * (measured - before)
