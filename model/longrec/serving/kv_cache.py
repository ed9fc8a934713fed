"""HistoryCache: keys and values of users' histories, kept between requests, so that only new events are encoded.

With `recency: bias` or `none` what the model attends to of an event depends on that event alone (longrec.nn.ranker), so rows stay right
whatever happens around them: events are appended, come late, or leave at the old end. A cached row is used only for an event that is
equal to the one it was made of, column by column; nothing is ever told by a user id or a time alone.

    timeline of the user   | e e e e e e e e e e |  from the store, every time
    kept                       | e e e e e |         one stretch of it, bytes bounded, least recently used users leave first
    wanted                         | e e e e e |     the last events before the moment
                                             ^ encoded and put behind the others, in place

Kept per event and layer: keys and values, 2 D numbers in the scorer's precision (width 64, 2 layers, float32: 1,024 bytes an event). See
longrec.nn.target_attention.cached for why not X_i. Shape letters: M layers, D width.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Hashable, Iterator, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from longrec.data import history
from longrec.schema import BASKET_ID, EVENT_SEQ, ITEM_ID
from longrec.scoring.scorer import KeptEvents, Scorer

Bool = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """Events that one request attends to.

    Args:
        key: whose events they are; None for events that are not kept afterwards.
        timeline: events of the user as they are known now, in order (the history codec's columns).
        start, end: rows of the timeline that are wanted.
        request_time_ms: of the request.
    """

    key: Hashable
    timeline: pa.RecordBatch
    start: int
    end: int
    request_time_ms: int


@dataclasses.dataclass(slots=True)
class CacheCounts:
    """What a cache has done since it was made.

    Args:
        hits, partial, misses: requests with events of which all, some, none were kept.
        num_encoded: events that had to be encoded.
        evictions: users who were dropped for the others' sake.
    """

    hits: int = 0
    partial: int = 0
    misses: int = 0
    num_encoded: int = 0
    evictions: int = 0

    def since(self, before: CacheCounts) -> CacheCounts:
        """Returns what was done after `before`."""
        return CacheCounts(
            *(
                getattr(self, field.name) - getattr(before, field.name)
                for field in dataclasses.fields(self)
            )
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Span:
    """`count` rows that are the same event in what is kept, from row `old`, and in a timeline, from
    row `new`.
    """

    old: int
    new: int
    count: int

    def clipped(self, start: int, end: int) -> _Span:
        """Returns the part of it within rows start:end of the timeline."""
        first, last = max(self.new, start), min(self.new + self.count, end)
        return _Span(self.old + first - self.new, first, max(0, last - first))


@dataclasses.dataclass(slots=True)
class _Entry:
    """Kept rows of one user: rows start:end of the buffers belong to the events `rows`.

    Args:
        layers: [M, capacity, 2 D].
        encoded, timestamps: int32 [capacity, 1 + F], int64 [capacity].
        made_at: monotonic seconds of the last encoding.
    """

    rows: pa.RecordBatch
    layers: torch.Tensor
    encoded: torch.Tensor
    timestamps: torch.Tensor
    start: int
    end: int
    made_at: float

    @property
    def num_bytes(self) -> int:
        return (
            self.layers.nbytes
            + self.encoded.nbytes
            + self.timestamps.nbytes
            + int(self.rows.get_total_buffer_size())
        )

    def view(self, start: int, count: int) -> KeptEvents:
        """Returns rows from `start` on, counted in `rows`; no copy."""
        chosen = slice(self.start + start, self.start + start + count)
        return KeptEvents(
            list(self.layers[:, chosen].unbind()), self.encoded[chosen], self.timestamps[chosen]
        )

    def drop_first(self, count: int) -> None:
        self.start += count
        self.rows = self.rows.slice(count)


class HistoryCache:
    """Keys and values of histories; not for use by two threads at a time.

    Args:
        scorer: makes them; a cache belongs to one model.
        max_bytes: of everything that is kept; 0 keeps nothing. A model whose events depend on the
            moment keeps nothing either.
        keep: fewest events kept of a user who has more; at least what is wanted at a time.
    """

    def __init__(
        self,
        scorer: Scorer,
        max_bytes: int,
        keep: int | None = None,
    ) -> None:
        self._scorer, self._max_bytes = scorer, max_bytes if scorer.is_cacheable else 0
        self._keep = scorer.bundle.served_length if keep is None else keep
        self._entries: collections.OrderedDict[Hashable, _Entry] = collections.OrderedDict()
        self.counts, self.num_bytes = CacheCounts(), 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def age_seconds(self, key: Hashable) -> float | None:
        """Returns how long ago an event of a user was last encoded, None for a user of whom nothing
        is kept.
        """
        entry = self._entries.get(key)
        return None if entry is None else time.monotonic() - entry.made_at

    def clear(self) -> None:
        """Drops everything."""
        self._entries.clear()
        self.num_bytes = 0

    def kept(self, wanted: Sequence[Wanted]) -> list[KeptEvents]:
        """Returns keys and values of the wanted events of each request; encodes those that are
        missing, of all requests together.
        """
        answers: dict[int, KeptEvents] = {}
        while len(answers) < len(wanted):
            todo = [position for position in range(len(wanted)) if position not in answers]
            first = {
                wanted[position].key if wanted[position].key is not None else (position,): position
                for position in reversed(todo)
            }
            chosen = sorted(
                first.values()
            )  # one request of each user at a time: the next one finds what this one leaves
            answers |= zip(
                chosen, self._round([wanted[position] for position in chosen]), strict=True
            )
        return [answers[position] for position in range(len(wanted))]

    def _round(self, wanted: Sequence[Wanted]) -> list[KeptEvents]:
        entries = [None if ask.key is None else self._entries.get(ask.key) for ask in wanted]
        spans = [
            [] if entry is None else _same(entry.rows, ask.timeline)
            for entry, ask in zip(entries, wanted, strict=True)
        ]
        known = [
            [part for span in found if (part := span.clipped(ask.start, ask.end)).count]
            for found, ask in zip(spans, wanted, strict=True)
        ]
        gaps = [list(_gaps(found, ask)) for found, ask in zip(known, wanted, strict=True)]
        encoded = iter(
            self._encode(
                [(ask, *gap) for ask, found in zip(wanted, gaps, strict=True) for gap in found]
            )
        )
        answers = []
        for ask, entry, same, kept, missing in zip(
            wanted, entries, spans, known, gaps, strict=True
        ):
            self._count(ask, kept, missing)
            fresh = [next(encoded) for _ in missing]
            answers.append(self._joined(ask, entry, same, kept, fresh))
        self._evict()
        return answers

    def _encode(self, stretches: Sequence[tuple[Wanted, int, int]]) -> Iterator[KeptEvents]:
        """Yields keys and values of stretches of timelines, a token budget at a time."""
        position = 0
        while position < len(stretches):
            total, last = 0, position
            while last < len(stretches) and (
                last == position or total + stretches[last][2] <= self._scorer.token_budget
            ):
                total += stretches[last][2]
                last += 1
            chosen = stretches[position:last]
            yield from self._scorer.keys_values(
                [ask.timeline.slice(start, count) for ask, start, count in chosen],
                [ask.request_time_ms for ask, _, _ in chosen],
            )
            position = last

    def _joined(
        self,
        ask: Wanted,
        entry: _Entry | None,
        spans: list[_Span],
        known: list[_Span],
        fresh: list[KeptEvents],
    ) -> KeptEvents:
        """Returns the wanted rows, and keeps them where that is worth it."""
        if ask.key is None or not self._max_bytes:
            return _concatenated(fresh) if fresh else self._nothing(ask)
        if entry is not None and not fresh and len(known) == 1:
            self._entries.move_to_end(ask.key)
            return entry.view(known[0].old, known[0].count)
        if entry is not None and _continues(entry, ask, spans, known, fresh):
            return self._append(ask, entry, spans[0], fresh[0])
        if ask.start == ask.end:
            return self._nothing(ask)
        made = self._rebuilt(ask, entry, known, fresh)
        newest = max((span.new + span.count for span in spans), default=0)
        if (
            entry is None or ask.end >= newest
        ):  # a request for the past does not take the place of the present
            self._store(ask.key, made)
        return made.view(0, ask.end - ask.start)

    def _append(
        self,
        ask: Wanted,
        entry: _Entry,
        span: _Span,
        fresh: KeptEvents,
    ) -> KeptEvents:
        """Returns the wanted rows after writing new ones behind those that are kept; requests under
        way do not look there.
        """
        if entry.end + len(fresh) > entry.layers.shape[1]:
            whole = [_Span(span.old, span.new, span.count)]
            grown = self._rebuilt(
                dataclasses.replace(ask, start=max(span.new, ask.end - self._keep_of(ask))),
                entry,
                whole,
                [fresh],
            )
            self._store(ask.key, grown)
            return grown.view(grown.rows.num_rows - (ask.end - ask.start), ask.end - ask.start)
        self.num_bytes -= entry.num_bytes
        _write(entry, entry.end, fresh)
        entry.end += len(fresh)
        entry.start += span.old
        entry.rows, entry.made_at = (
            ask.timeline.slice(span.new, ask.end - span.new),
            time.monotonic(),
        )
        entry.drop_first(max(0, entry.rows.num_rows - self._keep_of(ask)))
        self.num_bytes += entry.num_bytes
        self._entries.move_to_end(ask.key)
        return entry.view(entry.rows.num_rows - (ask.end - ask.start), ask.end - ask.start)

    def _rebuilt(
        self, ask: Wanted, entry: _Entry | None, known: Sequence[_Span], fresh: Sequence[KeptEvents]
    ) -> _Entry:
        """Returns an entry of the wanted rows, copied from what is kept and what is fresh, with
        room for events to come.
        """
        count = ask.end - ask.start
        example = fresh[0] if fresh else cast("_Entry", entry).view(0, 0)
        capacity, width = count + max(16, count // 8), example.layers[0].shape[-1]
        made = _Entry(
            ask.timeline.slice(ask.start, count),
            example.layers[0].new_empty((len(example.layers), capacity, width)),
            example.encoded.new_empty((capacity, example.encoded.shape[1])),
            example.timestamps.new_empty(capacity),
            0,
            count,
            time.monotonic(),
        )
        with torch.inference_mode():
            for span in (span.clipped(ask.start, ask.end) for span in known):
                if entry is not None:
                    _write(made, span.new - ask.start, entry.view(span.old, span.count))
            for (start, _), part in zip(_gaps(known, ask), fresh, strict=True):
                _write(made, start - ask.start, part)
        return made

    def _store(self, key: Hashable, entry: _Entry) -> None:
        before = self._entries.pop(key, None)
        self.num_bytes += entry.num_bytes - (0 if before is None else before.num_bytes)
        self._entries[key] = entry

    def _evict(self) -> None:
        while self.num_bytes > self._max_bytes and self._entries:
            _, entry = self._entries.popitem(last=False)
            self.num_bytes -= entry.num_bytes
            self.counts.evictions += 1

    def _keep_of(self, ask: Wanted) -> int:
        return max(self._keep, ask.end - ask.start)

    def _count(
        self,
        ask: Wanted,
        known: list[_Span],
        missing: list[tuple[int, int]],
    ) -> None:
        self.counts.num_encoded += sum(count for _, count in missing)
        if ask.key is not None and ask.end > ask.start:
            kind = "hits" if not missing else "partial" if known else "misses"
            setattr(self.counts, kind, getattr(self.counts, kind) + 1)

    def _nothing(self, ask: Wanted) -> KeptEvents:
        return self._scorer.keys_values([ask.timeline.slice(0, 0)], [ask.request_time_ms])[0]


def _continues(
    entry: _Entry, ask: Wanted, spans: list[_Span], known: list[_Span], fresh: list[KeptEvents]
) -> bool:
    """Returns whether the wanted rows are kept ones up to the end of the entry, and fresh ones
    behind them.
    """
    if len(spans) != 1 or len(fresh) != 1 or len(known) != 1:
        return False
    span = spans[0]
    return (
        span.old + span.count == entry.rows.num_rows
        and known[0].new == ask.start
        and span.new + span.count < ask.end
    )


def _write(entry: _Entry, row: int, part: KeptEvents) -> None:
    """Writes rows into the buffers of an entry, from `row` on."""
    with torch.inference_mode():
        for buffer, layer in zip(entry.layers, part.layers, strict=True):
            buffer[row : row + len(part)] = layer
        entry.encoded[row : row + len(part)] = part.encoded
        entry.timestamps[row : row + len(part)] = part.timestamps


def _concatenated(parts: list[KeptEvents]) -> KeptEvents:
    if len(parts) == 1:
        return parts[0]
    return KeptEvents(
        [torch.cat(layer) for layer in zip(*(part.layers for part in parts), strict=True)],
        torch.cat([part.encoded for part in parts]),
        torch.cat([part.timestamps for part in parts]),
    )


def _gaps(known: Sequence[_Span], ask: Wanted) -> Iterator[tuple[int, int]]:
    """Yields (first row, count) of the wanted rows that no span covers; spans are in order."""
    row = ask.start
    for span in known:
        if span.new > row:
            yield row, span.new - row
        row = max(row, span.new + span.count)
    if row < ask.end:
        yield row, ask.end - row


def _same(old: pa.RecordBatch, new: pa.RecordBatch) -> list[_Span]:
    """Returns at most two stretches of equal events: from the first event that both reach back to,
    and up to the last one.

    Events between them, where some came late, count as new; so does everything where the columns
    differ.
    """
    if not (old.num_rows and new.num_rows):
        return []
    old_start, new_start = _first(old, _key(new, 0)), _first(new, _key(old, 0))
    count = min(old.num_rows - old_start, new.num_rows - new_start)
    if count <= 0:
        return []
    equal = _equal(old.slice(old_start, count), new.slice(new_start, count))
    same = count if equal.all() else int(equal.argmin())
    spans = [_Span(old_start, new_start, same)] if same else []
    if same < count:
        old_end, new_end = (
            _first(old, _key(new, new.num_rows - 1), 1),
            _first(new, _key(old, old.num_rows - 1), 1),
        )
        rest = min(old_end - old_start, new_end - new_start) - same
        if rest > 0:
            equal = _equal(old.slice(old_end - rest, rest), new.slice(new_end - rest, rest))[::-1]
            tail = rest if equal.all() else int(equal.argmin())
            spans += [_Span(old_end - tail, new_end - tail, tail)] if tail else []
    return spans


def _key(events: pa.RecordBatch, row: int) -> tuple[int, int, int]:
    time_ms, order, item = (events.column(name)[row].as_py() for name in history.KEY)
    return time_ms, order, item


def _first(events: pa.RecordBatch, key: tuple[int, int, int], after: int = 0) -> int:
    """Returns the first row whose key is at least `key`, or with `after` 1 above it; rows are in
    the order of their keys.
    """
    times = history.timestamps(events)
    start, end = (int(np.searchsorted(times, key[0], side=side)) for side in ("left", "right"))
    pairs = zip(
        *(
            events.column(name).slice(start, end - start).to_pylist()
            for name in (EVENT_SEQ, ITEM_ID)
        ),
        strict=True,
    )
    return start + sum(pair < key[1:] or (after == 1 and pair == key[1:]) for pair in pairs)


def _equal(old: pa.RecordBatch, new: pa.RecordBatch) -> Bool:
    """Returns which rows of two equally long stretches hold the same event, features included."""
    names = [name for name in old.schema.names if name != BASKET_ID]
    equal: Bool = np.logical_and.reduce(
        [_equal_column(old.column(name), new.column(name)) for name in names]
    )
    return equal


def _equal_column(old: pa.Array, new: pa.Array) -> Bool:
    if pa.types.is_dictionary(old.type):
        shared = min(len(old.dictionary), len(new.dictionary))
        if not old.dictionary.slice(0, shared).equals(new.dictionary.slice(0, shared)):
            old, new = pa.chunked_array([old, new]).unify_dictionaries().chunks
        old, new = old.indices, new.indices
    equal: Bool = _values(old) == _values(new)  # the codec writes zeros under nulls
    if old.null_count or new.null_count:
        equal &= _valid(old) == _valid(new)
    return equal


def _values(column: pa.Array) -> npt.NDArray[np.generic]:
    """Returns the bits of a column of fixed width as integers, so that NaN equals itself; no
    copy.
    """
    kind = np.dtype(f"i{column.type.bit_width // 8}")
    return np.frombuffer(
        column.buffers()[1], kind, offset=column.offset * kind.itemsize, count=len(column)
    )


def _valid(column: pa.Array) -> npt.NDArray[np.uint8]:
    bits = column.buffers()[0]
    if bits is None:
        return np.ones(len(column), np.uint8)
    first = column.offset // 8
    unpacked = np.unpackbits(np.frombuffer(bits, np.uint8, offset=first), bitorder="little")
    return unpacked[column.offset - 8 * first : column.offset - 8 * first + len(column)]
