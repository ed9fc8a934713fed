"""HistoryKVCache: cached keys and values of histories, so only new events are encoded.

With `recency: bias` or `none` the keys and values of an event depend on that event alone
(longrec.nn.ranker). Cached rows therefore stay valid when events are appended, come late or leave
at the old end. A cached row is used only for an event that equals its own, column by column.

    timeline of the user   | e e e e e e e e e e |  read from the feature store by every request
    cache entry                | e e e e e |        consecutive events of it
    history slice                  | e e e e e |    the last events before the request time
                                             ^ encoded, and appended to the entry in place

When the cache is full, the entries of the least recently used users are evicted.

An event takes 2 D numbers per layer, in the scorer's precision: 1,024 bytes with width 64, two
layers and float32. longrec.nn.target_attention.cached says why keys and values are cached, not X_i.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Hashable, Iterator, Sequence

import pyarrow as pa
import torch

from longrec.data.upkeep.forget_list import ForgetWatcher
from longrec.scoring.request import CachedEvents
from longrec.scoring.scorer import Scorer
from longrec.serving.cache_entry import CacheEntry
from longrec.serving.timeline_spans import Span, equal_spans, uncovered


@dataclasses.dataclass(frozen=True, slots=True)
class HistorySlice:
    """Events that one request attends to.

    Args:
        key: user of the cache; None for events that must not be cached.
        timeline: all known events of the user, in order (the history codec's columns).
        start, end: rows of the timeline to attend to.
        request_time_ms: ms since 1970 UTC.
    """

    key: Hashable
    timeline: pa.RecordBatch
    start: int
    end: int
    request_time_ms: int

    @property
    def num_events(self) -> int:
        """Number of events to attend to."""
        return self.end - self.start

    @property
    def events(self) -> pa.RecordBatch:
        """Events to attend to; no copy."""
        return self.timeline.slice(self.start, self.num_events)


@dataclasses.dataclass(slots=True)
class CacheCounts:
    """What a cache has done since it was created.

    Args:
        hits, partial_hits, misses: requests that found all, some or none of their events.
        num_encoded: events that were encoded.
        evictions: users that were evicted for others.
    """

    hits: int = 0
    partial_hits: int = 0
    misses: int = 0
    num_encoded: int = 0
    evictions: int = 0

    def since(self, before: CacheCounts) -> CacheCounts:
        """Return what was counted after `before`."""
        return CacheCounts(
            hits=self.hits - before.hits,
            partial_hits=self.partial_hits - before.partial_hits,
            misses=self.misses - before.misses,
            num_encoded=self.num_encoded - before.num_encoded,
            evictions=self.evictions - before.evictions,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Gap:
    """Rows of a slice that must be encoded.

    Args:
        requested: the slice.
        start: first row in its timeline.
        count: number of rows.
    """

    requested: HistorySlice
    start: int
    count: int

    @property
    def events(self) -> pa.RecordBatch:
        """Events to encode; no copy."""
        return self.requested.timeline.slice(self.start, self.count)


@dataclasses.dataclass(frozen=True, slots=True)
class _Lookup:
    """What the cache has for one slice.

    Args:
        requested: the slice.
        entry: entry of the slice's user, if any.
        spans: events of the entry that are in the timeline.
        hits: parts of the spans within the slice.
        gaps: rows of the slice that no hit covers.
    """

    requested: HistorySlice
    entry: CacheEntry | None
    spans: Sequence[Span]
    hits: Sequence[Span]
    gaps: Sequence[_Gap]

    @property
    def end_row(self) -> int:
        """First row of the timeline after the entry's events, 0 without an entry."""
        return max((span.new_end for span in self.spans), default=0)

    def appendable(self) -> Span | None:
        """Return the span to append to, if only events after the entry are missing."""
        if self.entry is None:
            return None
        num_parts = (len(self.spans), len(self.hits), len(self.gaps))
        if num_parts != (1, 1, 1):
            return None
        span = self.spans[0]
        ends_the_entry = span.old_end == self.entry.num_events
        starts_in_the_entry = self.hits[0].new == self.requested.start
        has_newer_events = span.new_end < self.requested.end
        if ends_the_entry and starts_in_the_entry and has_newer_events:
            return span
        return None


class HistoryKVCache:
    """Keys and values of users' histories, for one thread at a time.

    Args:
        scorer: encodes events; a cache belongs to one model.
        max_bytes: bytes of all entries; 0 caches nothing. With `recency: token` events depend on
            the request time, and nothing is cached either.
        events_per_user: events cached of a user, None for the served length. A longer request
            caches all of its events.

    Attributes:
        forgotten: tells whose entries to remove; None to keep all.
    """

    def __init__(
        self,
        scorer: Scorer,
        max_bytes: int,
        events_per_user: int | None = None,
    ) -> None:
        if events_per_user is None:
            events_per_user = scorer.bundle.served_length
        self._scorer = scorer
        self._max_bytes = max_bytes if scorer.is_cacheable else 0
        self._events_per_user = events_per_user
        self._entries = collections.OrderedDict[Hashable, CacheEntry]()
        self.counts = CacheCounts()
        self.num_bytes = 0
        self.forgotten: ForgetWatcher | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def age_seconds(self, key: Hashable) -> float | None:
        """Return the time since an event of a user was last encoded, None for an unknown user."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        return time.monotonic() - entry.encoded_at

    def remove(self, key: Hashable) -> None:
        """Remove the entry of a user, if there is one."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.num_bytes -= entry.num_bytes

    def clear(self) -> None:
        """Remove all entries."""
        self._entries.clear()
        self.num_bytes = 0

    def get_or_encode(self, slices: Sequence[HistorySlice]) -> list[CachedEvents]:
        """Return keys and values of each slice; encode missing events of all slices together."""
        if self.forgotten is not None:
            for user_id in self.forgotten.newly_forgotten():
                self.remove(user_id)
        answers: dict[int, CachedEvents] = {}
        while len(answers) < len(slices):
            # One slice of each user at a time: the next one finds the rows of this one.
            positions = _first_of_each_user(slices, answers)
            round_of_users = [slices[position] for position in positions]
            found = self._answer_round(round_of_users)
            answers.update(zip(positions, found, strict=True))
        return [answers[position] for position in range(len(slices))]

    def _answer_round(self, slices: Sequence[HistorySlice]) -> list[CachedEvents]:
        """Return keys and values of slices of different users."""
        lookups = [self._look_up(requested) for requested in slices]
        encoded = self._encode(lookups)
        answers = []
        for lookup in lookups:
            self._count(lookup)
            # `encoded` yields the gaps of all lookups in order; each lookup takes its own.
            fresh = [next(encoded) for _ in lookup.gaps]
            answers.append(self._combine(lookup, fresh))
        self._evict()
        return answers

    def _look_up(self, requested: HistorySlice) -> _Lookup:
        entry = self._entries.get(requested.key)
        if entry is None or requested.key is None:
            everything = _Gap(requested, requested.start, requested.num_events)
            gaps = [everything] if requested.num_events else []
            return _Lookup(requested, entry=None, spans=[], hits=[], gaps=gaps)
        spans = equal_spans(entry.events, requested.timeline)
        clipped = [span.clipped(requested.start, requested.end) for span in spans]
        hits = [span for span in clipped if span.count]
        between = uncovered(hits, requested.start, requested.end)
        gaps = [_Gap(requested, start, count) for start, count in between]
        return _Lookup(
            requested=requested,
            entry=entry,
            spans=spans,
            hits=hits,
            gaps=gaps,
        )

    def _encode(self, lookups: Sequence[_Lookup]) -> Iterator[CachedEvents]:
        """Yield keys and values of all gaps in order, encoded a token budget at a time."""
        gaps: list[_Gap] = []
        for lookup in lookups:
            gaps += lookup.gaps
        while gaps:
            batch = _first_batch(gaps, self._scorer.token_budget)
            events = [gap.events for gap in batch]
            request_times_ms = [gap.requested.request_time_ms for gap in batch]
            yield from self._scorer.keys_values(events, request_times_ms)
            gaps = gaps[len(batch) :]

    def _combine(self, lookup: _Lookup, fresh: list[CachedEvents]) -> CachedEvents:
        """Return the rows of a slice, and cache them where that helps later requests."""
        requested = lookup.requested
        entry = lookup.entry
        # Nothing is cached for this request.
        if requested.key is None or not self._max_bytes:
            return _concatenated(fresh) if fresh else self._encode_nothing(requested)
        # All events are in the entry, in consecutive rows.
        if entry is not None and not fresh and len(lookup.hits) == 1:
            hit = lookup.hits[0]
            self._entries.move_to_end(requested.key)
            return entry.view(hit.old, hit.count)
        # Only events after those of the entry are missing.
        span = lookup.appendable()
        if entry is not None and span is not None:
            return self._append(requested, entry, span, fresh[0])
        if requested.num_events == 0:
            return self._encode_nothing(requested)
        # Events came late, changed, or are older than those of the entry.
        rebuilt = _rebuilt(requested, entry, lookup.hits, fresh)
        # A request for the past must not replace newer rows.
        if entry is None or requested.end >= lookup.end_row:
            self._store(requested.key, rebuilt)
        return rebuilt.view(0, requested.num_events)

    def _append(
        self,
        requested: HistorySlice,
        entry: CacheEntry,
        span: Span,
        fresh: CachedEvents,
    ) -> CachedEvents:
        """Return the rows of a slice after appending the new ones to its entry."""
        num_cached = max(self._events_per_user, requested.num_events)
        start = max(span.new, requested.end - num_cached)
        cached = dataclasses.replace(requested, start=start)
        if len(fresh) > entry.num_free:
            entry = _rebuilt(cached, entry, [span], [fresh])
            self._store(requested.key, entry)
        else:
            self.num_bytes -= entry.num_bytes
            entry.append(fresh, cached.events)
            self.num_bytes += entry.num_bytes
            self._entries.move_to_end(requested.key)
        return entry.view(requested.start - start, requested.num_events)

    def _store(self, key: Hashable, entry: CacheEntry) -> None:
        before = self._entries.pop(key, None)
        if before is not None:
            self.num_bytes -= before.num_bytes
        self.num_bytes += entry.num_bytes
        self._entries[key] = entry

    def _evict(self) -> None:
        """Evict least recently used users until the cache is within its bytes."""
        while self.num_bytes > self._max_bytes and self._entries:
            _, entry = self._entries.popitem(last=False)
            self.num_bytes -= entry.num_bytes
            self.counts.evictions += 1

    def _count(self, lookup: _Lookup) -> None:
        counts = self.counts
        for gap in lookup.gaps:
            counts.num_encoded += gap.count
        if lookup.requested.key is None or lookup.requested.num_events == 0:
            return
        if not lookup.gaps:
            counts.hits += 1
        elif lookup.hits:
            counts.partial_hits += 1
        else:
            counts.misses += 1

    def _encode_nothing(self, requested: HistorySlice) -> CachedEvents:
        """Return no rows, of the right widths."""
        no_events = requested.timeline.slice(0, 0)
        return self._scorer.keys_values([no_events], [requested.request_time_ms])[0]


def _first_of_each_user(
    slices: Sequence[HistorySlice], answers: dict[int, CachedEvents]
) -> list[int]:
    """Return the first unanswered position of each user, and all without a user."""
    positions = []
    users = set[Hashable]()
    for position, requested in enumerate(slices):
        if position in answers or requested.key in users:
            continue
        positions.append(position)
        if requested.key is not None:
            users.add(requested.key)
    return positions


def _first_batch(gaps: Sequence[_Gap], token_budget: int) -> Sequence[_Gap]:
    """Return the first gaps that fit the budget, at least one."""
    num_events = 0
    for place, gap in enumerate(gaps):
        num_events += gap.count
        if place and num_events > token_budget:
            return gaps[:place]
    return gaps


def _rebuilt(
    stored: HistorySlice,
    entry: CacheEntry | None,
    spans: Sequence[Span],
    fresh: Sequence[CachedEvents],
) -> CacheEntry:
    """Return a new entry of a slice, copied from an old entry and from new rows.

    Args:
        stored: events of the new entry.
        entry: old entry; None if all rows are new.
        spans: rows of the old entry that are in the timeline; they may reach out of the slice.
        fresh: new rows of each part of the slice that no span covers, in order.
    """
    example = entry.view(0, 0) if entry is not None else fresh[0]
    rebuilt = CacheEntry.allocate(stored.events, example)
    for span in spans:
        assert entry is not None
        part = span.clipped(stored.start, stored.end)
        row = part.new - stored.start
        rebuilt.write(row, entry.view(part.old, part.count))
    gaps = uncovered(spans, stored.start, stored.end)
    for (start, _), rows in zip(gaps, fresh, strict=True):
        rebuilt.write(start - stored.start, rows)
    return rebuilt


def _concatenated(parts: list[CachedEvents]) -> CachedEvents:
    if len(parts) == 1:
        return parts[0]
    layers = zip(*(part.layers for part in parts), strict=True)
    return CachedEvents(
        layers=[torch.cat(layer) for layer in layers],
        encoded=torch.cat([part.encoded for part in parts]),
        timestamps=torch.cat([part.timestamps for part in parts]),
    )
