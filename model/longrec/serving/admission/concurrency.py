"""Concurrency limit by AIMD: additive increase, multiplicative decrease (Jacobson 1988).

The limit bounds the requests in progress of a worker, from their arrival to their answer. Every
INTERVAL_SECONDS the mean wall time of the answers decides:

    above its target                the limit falls to what would have met the target
    between half of it and all      the limit rises by INCREASE
    below half of it, or idle       the limit grows by GROWTH, as in a slow start

So a limit that an overload or slow requests lowered is back at its maximum in two seconds, whatever
it was. Only requests that arrived after a decrease count for the next one: earlier ones tell about
the limit before. Nothing here reads a body, so a rejection costs microseconds.

One thread uses it: that of the event loop.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable

from longrec.serving.admission.errors import Overloaded, TooManyRequests

INTERVAL_SECONDS = 0.25
MAX_REQUESTS = 256
MIN_REQUESTS = 4
"""Bounds of the limit; with fewer requests the model would wait for the next one."""
FEW_REQUESTS = 2 * MIN_REQUESTS
"""Fewer requests are no overload, however slow they are."""
INCREASE = 8
GROWTH = 1.5
SMALLEST_FACTOR = 0.5
"""Bound of one decrease."""
RETRY_SECONDS = 1.0
"""After this time the limit has adapted, and a caller should try again."""


class ConcurrencyLimit:
    """How many requests of a worker may be in progress, and those that are.

    Args:
        caller_requests: requests in progress of one caller.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        caller_requests: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._caller_requests = caller_requests
        self._clock = clock
        self._callers: collections.Counter[str] = collections.Counter()
        self._num_in_progress = 0
        self._most_in_progress = 0
        self._limit = float(MAX_REQUESTS)
        self._interval_started = clock()
        self._idle_since = clock()
        self._decreased_at = -float("inf")
        self._ratios: list[float] = []

    @property
    def num_in_progress(self) -> int:
        """Requests in progress."""
        return self._num_in_progress

    def limit(self) -> int:
        """Return the limit, by now."""
        self._adapt()
        return int(self._limit)

    def enter(self, caller: str) -> None:
        """Count a request that arrived; call `leave` once it is answered.

        Raises:
            TooManyRequests: the caller has too many requests in progress.
            Overloaded: the service has.
        """
        if self._callers[caller] >= self._caller_requests:
            raise TooManyRequests("this caller has too many requests in progress", RETRY_SECONDS)
        if self._num_in_progress >= self.limit():
            raise Overloaded("the service cannot answer more requests in time", RETRY_SECONDS)
        self._callers[caller] += 1
        self._num_in_progress += 1
        self._most_in_progress = max(self._most_in_progress, self._num_in_progress)

    def leave(self, caller: str) -> None:
        """Count a request out."""
        self._num_in_progress -= 1
        self._callers[caller] -= 1
        if not self._callers[caller]:
            del self._callers[caller]
        if not self._num_in_progress:
            self._idle_since = self._clock()

    def observe(
        self,
        arrived_at: float,
        seconds: float,
        target_seconds: float,
    ) -> None:
        """Learn from the time of a request.

        Args:
            arrived_at: monotonic seconds.
            seconds: time to its answer, or what it was estimated to be.
            target_seconds: longest time that it should take under load.
        """
        self._adapt()
        if arrived_at >= self._decreased_at:
            self._ratios.append(seconds / target_seconds)

    def _adapt(self) -> None:
        """Change the limit once for each interval that has ended."""
        now = self._clock()
        if now < self._interval_started + INTERVAL_SECONDS:
            return
        if self._ratios:
            self._follow(sum(self._ratios) / len(self._ratios), now)
        if not self._num_in_progress:
            idle_since = max(self._interval_started, self._idle_since)
            num_intervals = int((now - idle_since) / INTERVAL_SECONDS)
            # The exponent is bounded: the power would overflow after hours.
            self._grow(min(num_intervals, MAX_REQUESTS))
        self._ratios.clear()
        self._most_in_progress = self._num_in_progress
        self._interval_started = now

    def _follow(self, ratio: float, now: float) -> None:
        """Change the limit after an interval whose answers took `ratio` of their target."""
        used = min(self._limit, self._most_in_progress)
        if ratio > 1:
            if used < FEW_REQUESTS:
                return  # the cause is no queue of requests
            self._limit = max(MIN_REQUESTS, used * max(SMALLEST_FACTOR, 1 / ratio))
            self._decreased_at = now
        elif ratio > 1 / 2:
            self._limit = min(MAX_REQUESTS, self._limit + INCREASE)
        else:
            self._grow(1)

    def _grow(self, num_intervals: int) -> None:
        self._limit = min(MAX_REQUESTS, self._limit * GROWTH**num_intervals)
