"""Estimated work of a request, learned from the model's own time.

A cost is the least of its last measurements. One slow batch therefore changes nothing, several in a
row are forgotten with the first fast one, and an estimate never grows with the load itself.
"""

from __future__ import annotations

import collections

NUM_MEASUREMENTS = 8
"""Measurements of a cost that count."""
MANY_EVENTS = 2_048
"""A batch that encodes at least so many events measures the cost of an event."""
MANY_PAIRS = 2_048 * 256
"""A batch with at least so many pairs (candidate, event) measures the cost of a pair."""
FEW_PAIRS = MANY_PAIRS // 16
"""A batch with fewer pairs measures the cost of a request."""
REQUEST_SECONDS = 0.005
PAIR_SECONDS = 1e-8
EVENT_SECONDS = 1e-5
"""Costs before the first measurement."""


class Cost:
    """A cost in seconds: the least of its last measurements.

    Args:
        seconds: cost before the first measurement.
    """

    def __init__(self, seconds: float) -> None:
        self._first = seconds
        self._measured: collections.deque[float] = collections.deque(maxlen=NUM_MEASUREMENTS)

    @property
    def seconds(self) -> float:
        """The cost."""
        return min(self._measured, default=self._first)

    def learn(self, seconds: float) -> None:
        """Add a measurement."""
        self._measured.append(seconds)

    def forget(self) -> None:
        """Remove all measurements."""
        self._measured.clear()


class CostModel:
    """Estimated cost of a request, learned from measured batches.

    seconds = request + pair * candidates * events + event * encoded events

    The seconds are those that the model works, not those that it waits for a core or for the
    interpreter: these depend on the load, and a rejection that follows from them would keep it up.
    """

    def __init__(self) -> None:
        self.request = Cost(REQUEST_SECONDS)
        self.pair = Cost(PAIR_SECONDS)
        self.event = Cost(EVENT_SECONDS)

    def estimate(
        self,
        num_candidates: int,
        num_events: int,
        num_encoded: int,
    ) -> float:
        """Return the estimated seconds of a request."""
        pairs = self.pair.seconds * num_candidates * num_events
        encoding = self.event.seconds * num_encoded
        return self.request.seconds + pairs + encoding

    def learn_encoding(self, num_encoded: int, seconds: float) -> None:
        """Update the cost of an event from the encoding time of a batch."""
        if num_encoded >= MANY_EVENTS:
            self.event.learn(seconds / num_encoded)

    def learn_scoring(
        self,
        num_requests: int,
        num_pairs: int,
        seconds: float,
    ) -> None:
        """Update the cost that dominates the scoring time of a batch: of a pair or of a request."""
        if num_pairs >= MANY_PAIRS:
            seconds_of_pairs = max(0.0, seconds - self.request.seconds)
            self.pair.learn(seconds_of_pairs / num_pairs)
        elif num_pairs < FEW_PAIRS:
            self.request.learn(seconds / num_requests)

    def forget(self) -> None:
        """Remove all measurements."""
        for cost in (self.request, self.pair, self.event):
            cost.forget()
