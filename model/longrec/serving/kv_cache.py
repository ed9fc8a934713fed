"""HistoryKVCache: keys and values of users' histories, cached so that only new events are encoded.

With `recency: bias` or `none` the keys and values of an event depend on that event alone
(longrec.nn.ranker). Cached rows therefore stay valid when events are appended, come late or leave
at the old end. A cached row is used only for an event that equals its own, column by column.

    timeline of the user   | e e e e e e e e e e |  read from the feature store by every request
    cache entry                | e e e e e |        a stretch of it; least recently used users leave
    history slice                  | e e e e e |    the last events before the request time
                                             ^ encoded, and appended to the entry in place

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

from longrec.scoring.request import CachedEvents
from longrec.scoring.scorer import Scorer
from longrec.serving.cache_entry import CacheEntry
from longrec.serving.timeline_spans import Span, equal_spans, uncovered


@dataclasses.dataclass(frozen=True, slots=True)
class HistorySlice:
    """Events that one request attends to.

    Args:
        key: whose events they are; None for events that must not be cached.
        timeline: all known events of the user, in order (the history codec's columns).
        start, end: rows of the timeline to attend to.
        request_time_ms: of the request.
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
        num_encoded: encoded events.
        evictions: users evicted for others.
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
class _Lookup:
    """What the cache has for one slice.

    Args:
        piece: the slice.
        entry: of its user, None without one.
        spans: events of the entry that are in the timeline.
        hits: their parts within the slice.
        gaps: (first row, count) of the slice's rows that must be encoded.
    """

    piece: HistorySlice
    entry: CacheEntry | None
    spans: Sequence[Span]
    hits: Sequence[Span]
    gaps: Sequence[tuple[int, int]]

    @property
    def newest_row(self) -> int:
        """Row of the timeline after the newest event of the entry, 0 without one."""
        return max((span.new_end for span in self.spans), default=0)

    def appendable(self) -> Span | None:
        """Return the span to append to: the slice ends it, and only newer events are missing."""
        if self.entry is None or len(self.spans) != 1:
            return None
        if len(self.hits) != 1 or len(self.gaps) != 1:
            return None
        span = self.spans[0]
        ends_the_entry = span.old_end == self.entry.num_events
        starts_in_the_entry = self.hits[0].new == self.piece.start
        if not (ends_the_entry and starts_in_the_entry and span.new_end < self.piece.end):
            return None
        return span


class HistoryKVCache:
    """Keys and values of histories, by user; for one thread at a time.

    Args:
        scorer: encodes events; a cache belongs to one model.
        max_bytes: of all entries; 0 caches nothing. A model whose events depend on the request time
            caches nothing either.
        events_per_user: cached events of a user, None for the served length. A longer request
            caches all of its events.
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
        self._entries: collections.OrderedDict[Hashable, CacheEntry] = collections.OrderedDict()
        self.counts = CacheCounts()
        self.num_bytes = 0

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

    def clear(self) -> None:
        """Remove all entries."""
        self._entries.clear()
        self.num_bytes = 0

    def get_or_encode(self, slices: Sequence[HistorySlice]) -> list[CachedEvents]:
        """Return keys and values of each slice; encode missing events of all slices together."""
        answers: dict[int, CachedEvents] = {}
        while len(answers) < len(slices):
            # One slice of each user at a time: the next one finds the rows of this one.
            positions = _first_of_each_user(slices, answers)
            found = self._answer_round([slices[position] for position in positions])
            answers.update(zip(positions, found, strict=True))
        return [answers[position] for position in range(len(slices))]

    def _answer_round(self, slices: Sequence[HistorySlice]) -> list[CachedEvents]:
        """Return keys and values of slices of different users."""
        lookups = [self._look_up(piece) for piece in slices]
        encoded = self._encode(lookups)
        answers = []
        for lookup in lookups:
            self._count(lookup)
            fresh = [next(encoded) for _ in lookup.gaps]
            answers.append(self._combine(lookup, fresh))
        self._evict()
        return answers

    def _look_up(self, piece: HistorySlice) -> _Lookup:
        entry = None if piece.key is None else self._entries.get(piece.key)
        spans = [] if entry is None else equal_spans(entry.events, piece.timeline)
        clipped = [span.clipped(piece.start, piece.end) for span in spans]
        hits = [span for span in clipped if span.count]
        gaps = list(uncovered(hits, piece.start, piece.end))
        return _Lookup(piece, entry, spans, hits, gaps)

    def _encode(self, lookups: Sequence[_Lookup]) -> Iterator[CachedEvents]:
        """Yield keys and values of all gaps in order, encoded a token budget at a time."""
        gaps = [(lookup.piece, *gap) for lookup in lookups for gap in lookup.gaps]
        position = 0
        while position < len(gaps):
            end = _end_of_batch(gaps, position, self._scorer.token_budget)
            batch = gaps[position:end]
            yield from self._scorer.keys_values(
                [piece.timeline.slice(start, count) for piece, start, count in batch],
                [piece.request_time_ms for piece, _, _ in batch],
            )
            position = end

    def _combine(self, lookup: _Lookup, fresh: list[CachedEvents]) -> CachedEvents:
        """Return the rows of a slice, and cache them where that helps later requests."""
        piece, entry, hits = lookup.piece, lookup.entry, lookup.hits
        if piece.key is None or not self._max_bytes:
            return _concatenated(fresh) if fresh else self._encode_nothing(piece)
        if entry is not None and not fresh and len(hits) == 1:
            self._entries.move_to_end(piece.key)
            return entry.view(hits[0].old, hits[0].count)
        span = lookup.appendable()
        if entry is not None and span is not None:
            return self._append(piece, entry, span, fresh[0])
        if piece.num_events == 0:
            return self._encode_nothing(piece)
        rebuilt = _rebuilt(piece, entry, hits, fresh)
        # A request for the past must not replace newer rows.
        if entry is None or piece.end >= lookup.newest_row:
            self._store(piece.key, rebuilt)
        return rebuilt.view(0, piece.num_events)

    def _append(
        self,
        piece: HistorySlice,
        entry: CacheEntry,
        span: Span,
        fresh: CachedEvents,
    ) -> CachedEvents:
        """Return the rows of a slice after appending the new ones to its entry."""
        num_cached = max(self._events_per_user, piece.num_events)
        start = max(span.new, piece.end - num_cached)
        cached = dataclasses.replace(piece, start=start)
        if len(fresh) > entry.num_free:
            entry = _rebuilt(cached, entry, [span], [fresh])
            self._store(piece.key, entry)
        else:
            self.num_bytes -= entry.num_bytes
            entry.append(fresh, cached.events)
            self.num_bytes += entry.num_bytes
            self._entries.move_to_end(piece.key)
        return entry.view(piece.start - start, piece.num_events)

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
        self.counts.num_encoded += sum(count for _, count in lookup.gaps)
        if lookup.piece.key is None or lookup.piece.num_events == 0:
            return
        if not lookup.gaps:
            self.counts.hits += 1
        elif lookup.hits:
            self.counts.partial_hits += 1
        else:
            self.counts.misses += 1

    def _encode_nothing(self, piece: HistorySlice) -> CachedEvents:
        """Return no rows, of the right widths."""
        no_events = piece.timeline.slice(0, 0)
        return self._scorer.keys_values([no_events], [piece.request_time_ms])[0]


def _first_of_each_user(
    slices: Sequence[HistorySlice],
    answers: dict[int, CachedEvents],
) -> list[int]:
    """Return the first unanswered position of each user, and all unanswered ones without a key."""
    positions = []
    users = set[Hashable]()
    for position, piece in enumerate(slices):
        if position in answers or piece.key in users:
            continue
        positions.append(position)
        if piece.key is not None:
            users.add(piece.key)
    return positions


def _end_of_batch(
    gaps: Sequence[tuple[HistorySlice, int, int]],
    first: int,
    token_budget: int,
) -> int:
    """Return the position after the last gap that fits the budget; at least one gap is taken."""
    total = gaps[first][2]
    end = first + 1
    while end < len(gaps) and total + gaps[end][2] <= token_budget:
        total += gaps[end][2]
        end += 1
    return end


def _rebuilt(
    piece: HistorySlice,
    entry: CacheEntry | None,
    spans: Sequence[Span],
    fresh: Sequence[CachedEvents],
) -> CacheEntry:
    """Return a new entry of a slice, copied from an old entry and from new rows.

    Args:
        piece: rows of the new entry.
        entry: None where all rows are new.
        spans: rows of the old entry that are in the timeline.
        fresh: rows of each gap between the spans, in order.
    """
    example = entry.view(0, 0) if entry is not None else fresh[0]
    rebuilt = CacheEntry.allocate(piece.events, example)
    if entry is not None:
        for span in spans:
            part = span.clipped(piece.start, piece.end)
            rebuilt.write(part.new - piece.start, entry.view(part.old, part.count))
    gaps = uncovered(spans, piece.start, piece.end)
    for (row, _), part_of_gap in zip(gaps, fresh, strict=True):
        rebuilt.write(row - piece.start, part_of_gap)
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
