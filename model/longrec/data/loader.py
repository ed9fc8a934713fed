"""RequestStream: encoded histories in, packed request batches out.

The timelines are encoded once into arrays that are mapped into memory. A request holds offsets into
them, so a history is a
slice; the one copy is the packing of a batch. The training length distribution of training acts here and nowhere
else; serving and evaluation
take the most recent events instead. Batches are filled by a token budget (events), never padded.

Shape letters: R requests, T packed events, N packed targets, A action features, U user features, K
tasks; E all events,
Q all requests, P all targets of the histories.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import heapq
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from longrec.data import files
from longrec.data.batch import RequestBatch, Whole
from longrec.data.encoder import Encoder, Int32, Int64, int64_column
from longrec.data.histories import SPLITS, Histories
from longrec.data.length_sampler import LengthSampler
from longrec.errors import DataError
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID

Split = Literal["warmup", "train", "eval"]
PREFETCH = 2
"""Batches packed ahead of the one in use, and one more for each further worker."""

Int8 = npt.NDArray[np.int8]
EncodedEvents = tuple[Int32, Int32, Int64]
"""(item rows [n], action features [n, A], timestamps [n] in ms) of one history."""


def pack(
    histories: Sequence[EncodedEvents],
    targets: Sequence[Int32],
    user_features: Int32,
    request_timestamps: Int64,
    labels: npt.NDArray[np.float32] | None = None,
    *,
    pin: bool = False,
) -> RequestBatch:
    """Returns the batch of R requests; the only place where a RequestBatch is put together.

    Args:
        histories: encoded events of each request, oldest first.
        targets: item rows of each request's targets.
        user_features: int32 [R, U].
        request_timestamps: int64 [R], ms.
        labels: float32 [N, K] in the order of the targets, or None.
        pin: whether the batch lies in page-locked memory, packed there at once.

    Raises:
        DataError: there is no request, or one has no target.
    """
    if not len(histories):
        raise DataError("the batch is empty", expected="at least one request")
    items, features, timestamps = (
        _joined(parts, pin=pin) for parts in zip(*histories, strict=True)
    )
    batch = RequestBatch(
        event_items=items,
        event_features=features,
        event_timestamps=timestamps,
        event_offsets=_offsets([len(entry[0]) for entry in histories]),
        target_items=torch.from_numpy(np.concatenate(targets)),
        target_offsets=_offsets([len(entry) for entry in targets]),
        user_features=torch.from_numpy(np.ascontiguousarray(user_features)),
        request_timestamps=torch.from_numpy(np.ascontiguousarray(request_timestamps)),
        labels=None if labels is None else torch.from_numpy(labels),
    ).validate()
    return batch.pin_memory() if pin else batch


def _joined(parts: Sequence[npt.NDArray[Any]], *, pin: bool) -> torch.Tensor:
    """Returns the parts one after another: the one copy of a history's events."""
    if not pin:
        return torch.from_numpy(np.concatenate(parts))
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    joined = torch.empty(
        shape, dtype=torch.from_numpy(np.empty(0, parts[0].dtype)).dtype, pin_memory=True
    )
    np.concatenate(parts, out=joined.numpy())
    return joined


def fill(num_events: Int64, *, token_budget: int, max_requests: int) -> Int64:
    """Returns the bounds of greedily filled batches, int64 [B+1]: batch b is the requests
    bounds[b]:bounds[b+1], in the given order.

    A batch is closed before the request that would exceed `token_budget` events or `max_requests`
    requests; a request above
    the budget goes alone.
    """
    total = np.concatenate([[0], np.cumsum(num_events)])
    bounds = [0]
    while (start := bounds[-1]) < len(num_events):
        end = int(np.searchsorted(total, total[start] + token_budget, side="right")) - 1
        bounds.append(max(start + 1, min(end, start + max_requests, len(num_events))))
    return np.array(bounds, np.int64)


def balanced(num_events: Int64, num_parts: int) -> Int64:
    """Returns the part of each request, int64 [R], so that the parts have nearly equal numbers of
    events.

    The longest request first, each goes to the part with the fewest events, of several the one with
    the fewest requests, then the first.
    So two parts differ by at most the longest request, and no part is empty while there are
    requests enough. Source: Graham 1969, LPT.
    """
    parts, load = np.zeros(len(num_events), np.int64), [(0, 0, part) for part in range(num_parts)]
    for request in np.argsort(-num_events, kind="stable").tolist():
        events, requests, part = heapq.heappop(load)
        parts[request] = part
        heapq.heappush(load, (events + int(num_events[request]), requests + 1, part))
    return parts


def most_recent(starts: Int64, ends: Int64, length: int) -> tuple[Int64, Int64]:
    """Returns (starts, ends) of at most `length` most recent events: what is served."""
    return np.maximum(starts, ends - length), ends


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedHistories:
    """The histories of a directory as indices: what RequestStream slices. Arrays are mapped from
    the cache directory, read-only.

    Args:
        event_items, event_features, event_timestamps: int32 [E], int32 [E, A], int64 [E]; all
            timelines one after another.
        target_items, labels: int32 [P], int8 [P, K]; all targets, request after request.
        user_features: int32 [Q, U], of the user of each request.
        request_ids, request_users, request_timestamps: int64 [Q]; id, user id and moment of each
            request, in time order.
        splits: int8 [Q], position in SPLITS.
        event_starts, event_ends, target_starts, target_ends: int64 [Q].
        encoder_fingerprint: of the encoder that made them.
    """

    event_items: Int32
    event_features: Int32
    event_timestamps: Int64
    target_items: Int32
    labels: Int8
    user_features: Int32
    request_ids: Int64
    request_users: Int64
    request_timestamps: Int64
    splits: Int8
    event_starts: Int64
    event_ends: Int64
    target_starts: Int64
    target_ends: Int64
    encoder_fingerprint: str

    @classmethod
    def make(
        cls, histories: Histories, encoder: Encoder, cache_dir: str | Path
    ) -> EncodedHistories:
        """Returns the encoded histories, after writing them to `cache_dir` (replaced at once), one
        record batch at a time.

        Raises:
            DataError: an event is not strictly before its request, or a column is not what the
                schema says.
        """
        with files.replacing(cache_dir) as temporary:
            temporary.mkdir()
            _write_events(histories, encoder, temporary)
            arrays = _request_arrays(histories, encoder)
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
            files.write_json(temporary / "meta.json", {"encoder_fingerprint": encoder.fingerprint})
            _check(cls.open(temporary))
        return cls.open(cache_dir)

    @classmethod
    def open(cls, cache_dir: str | Path) -> EncodedHistories:
        """Returns the encoded histories that `make` wrote to `cache_dir`."""
        names = [
            field.name for field in dataclasses.fields(cls) if field.name != "encoder_fingerprint"
        ]
        arrays: dict[str, Any] = {name: _map(Path(cache_dir) / f"{name}.npy") for name in names}
        return cls(
            **arrays,
            encoder_fingerprint=files.read_json(Path(cache_dir) / "meta.json")[
                "encoder_fingerprint"
            ],
        )

    @property
    def num_requests(self) -> int:
        return len(self.request_ids)

    def digest(self) -> str:
        """Returns the first 16 hex digits of the SHA-256 of all arrays and the encoder's
        fingerprint; reads everything once.
        """
        digest = hashlib.sha256(self.encoder_fingerprint.encode())
        for array in (
            getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "encoder_fingerprint"
        ):
            digest.update(f"{array.dtype}:{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data if array.size else b"")
        return digest.hexdigest()[:16]

    def requests(self, split: Split) -> Int64:
        """Returns the positions of the requests of a split, in time order, int64."""
        return np.flatnonzero(self.splits == SPLITS.index(split)).astype(np.int64)

    def batch(
        self, requests: Int64, starts: Int64, ends: Int64, *, pin: bool = False
    ) -> RequestBatch:
        """Returns the batch of the given requests with the events starts:ends of each, with labels.

        Args:
            requests: int64 [R], positions of requests.
            starts, ends: int64 [R], offsets into the events.
            pin: whether it lies in page-locked memory.

        Raises:
            DataError: there is no request.
        """
        if not len(requests):
            raise DataError("the batch is empty", expected="at least one request")
        spans = list(zip(starts.tolist(), ends.tolist(), strict=True))
        slices = [
            (self.event_items[a:b], self.event_features[a:b], self.event_timestamps[a:b])
            for a, b in spans
        ]
        owned = list(
            zip(
                self.target_starts[requests].tolist(),
                self.target_ends[requests].tolist(),
                strict=True,
            )
        )
        labels = np.concatenate([self.labels[a:b] for a, b in owned]).astype(np.float32)
        return pack(
            slices,
            [self.target_items[a:b] for a, b in owned],
            self.user_features[requests],
            self.request_timestamps[requests],
            labels,
            pin=pin,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class RequestStream:
    """A fixed sequence of batches over encoded histories; iterating packs them, a few ahead, in a
    background thread (`prefetch`).

    The sequence is decided when the stream is made, from its arguments alone: two streams with
    equal arguments give equal batches. A
    stream that starts at batch `first_batch` gives what is left of the one that starts at 0.

    Args:
        encoded: the histories.
        requests: int64 [n], positions of the requests in the order of the stream.
        starts, ends: int64 [n], the events of each.
        bounds: int64 [B+1]; batch b is the requests bounds[b]:bounds[b+1].
        epoch: the pass over the data that this stream is.
        first_batch: batches left out at the front.
        num_ranks, rank: processes that train together, and which of their `balanced` parts of each
            batch this stream gives.
    """

    encoded: EncodedHistories
    requests: Int64
    starts: Int64
    ends: Int64
    bounds: Int64
    epoch: int = 0
    first_batch: int = 0
    num_ranks: int = 1
    rank: int = 0

    @classmethod
    def training(
        cls,
        encoded: EncodedHistories,
        length_sampler: LengthSampler,
        *,
        token_budget: int,
        max_requests: int,
        seed: int,
        epoch: int = 0,
        split: Split = "train",
        first_batch: int = 0,
        num_ranks: int = 1,
        rank: int = 0,
    ) -> RequestStream:
        """Returns one epoch: the requests of the split in an order drawn from (seed, epoch), each
        with the events that the law keeps.

        The batches, which `token_budget` and `max_requests` fill, are those of all ranks together:
        the same for any number of them.
        """
        requests = encoded.requests(split)
        requests = requests[np.random.default_rng([seed, epoch]).permutation(len(requests))]
        starts, ends = length_sampler.cut(
            encoded.request_ids[requests],
            encoded.event_starts[requests],
            encoded.event_ends[requests],
            epoch,
        )
        bounds = fill(ends - starts, token_budget=token_budget, max_requests=max_requests)
        return cls(encoded, requests, starts, ends, bounds, epoch, first_batch, num_ranks, rank)

    @classmethod
    def serving(
        cls,
        encoded: EncodedHistories,
        requests: Int64,
        length: int,
        *,
        token_budget: int,
        max_requests: int,
    ) -> RequestStream:
        """Returns the given requests in the given order, each with its `length` most recent events
        at most.
        """
        starts, ends = most_recent(
            encoded.event_starts[requests], encoded.event_ends[requests], length
        )
        return cls(
            encoded,
            requests,
            starts,
            ends,
            fill(ends - starts, token_budget=token_budget, max_requests=max_requests),
        )

    def __len__(self) -> int:
        return len(self.bounds) - 1 - self.first_batch

    def __iter__(self) -> Iterator[RequestBatch]:
        return prefetch([self])

    def batch(self, number: int, *, pin: bool = False) -> RequestBatch:
        """Returns batch `number`, counted from the start of the epoch, on request in page-locked
        memory.
        """
        chosen, whole = np.arange(self.bounds[number], self.bounds[number + 1]), None
        if self.num_ranks > 1:
            chosen, whole = self._part(chosen)
        batch = self.encoded.batch(
            self.requests[chosen], self.starts[chosen], self.ends[chosen], pin=pin
        )
        return dataclasses.replace(batch, whole=whole)

    def _part(self, chosen: Int64) -> tuple[Int64, Whole]:
        """Returns the requests of this rank in a batch, in the batch's order (of none: the
        shortest, as a stand-in), and the whole.
        """
        num_events, requests = self.ends[chosen] - self.starts[chosen], self.requests[chosen]
        num_targets = self.encoded.target_ends[requests] - self.encoded.target_starts[requests]
        own = chosen[balanced(num_events, self.num_ranks) == self.rank]
        whole = Whole(
            len(chosen), int(num_events.sum()), int(num_targets.sum()), is_stand_in=not len(own)
        )
        return own if len(own) else chosen[[num_events.argmin()]], whole

    @property
    def num_events(self) -> int:
        """Events of the whole sequence, `first_batch` not left out."""
        return int((self.ends - self.starts).sum())

    @property
    def num_targets(self) -> int:
        """Targets of the whole sequence, `first_batch` not left out."""
        return int(
            (
                self.encoded.target_ends[self.requests] - self.encoded.target_starts[self.requests]
            ).sum()
        )

    @property
    def target_positions(self) -> Int64:
        """Positions of the targets in the order of the whole sequence, int64 [N]:
        `encoded.labels[stream.target_positions]`.
        """
        starts, ends = (
            self.encoded.target_starts[self.requests],
            self.encoded.target_ends[self.requests],
        )
        return np.concatenate(
            [np.arange(a, b) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
            or [np.zeros(0, np.int64)]
        )

    @property
    def target_requests(self) -> Int64:
        """Position of the request of each of `target_positions`, int64 [N]."""
        return np.repeat(
            self.requests,
            self.encoded.target_ends[self.requests] - self.encoded.target_starts[self.requests],
        )


def prefetch(
    streams: Iterable[RequestStream], *, num_workers: int = 1, pin: bool = False
) -> Generator[RequestBatch, None, None]:
    """Yields the batches of the streams, one stream after another, packed ahead by threads.

    Batches and their order do not depend on the number of threads. Threads, not processes: packing
    is copies of long slices, during
    which numpy lets go of the interpreter, while sending batches over from a process costs ten
    times as much (docs/log.md).

    Args:
        streams: for example the epochs of a training.
        num_workers: threads.
        pin: whether batches are put into page-locked memory, for copies to a CUDA device that
            nobody waits for.
    """
    pending: collections.deque[Future[RequestBatch]] = collections.deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix="longrec-batches") as packers:
        try:
            for stream in streams:
                for number in range(stream.first_batch, len(stream.bounds) - 1):
                    pending.append(packers.submit(stream.batch, number, pin=pin))
                    if len(pending) >= PREFETCH + num_workers:
                        yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for left in pending:
                left.cancel()


def moved(
    batches: Iterable[RequestBatch], device: torch.device
) -> Iterator[tuple[RequestBatch, RequestBatch]]:
    """Yields (batch in host memory, the same on `device`).

    To a CUDA device the next batch is on its way, on a stream of its own, while the caller's
    kernels work on this one; from pinned
    memory nobody waits for the copy. On a CPU both are one.
    """
    if device.type != "cuda":
        yield from ((batch, batch) for batch in batches)
        return
    side, following = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(side):
            copied = batch, batch.to(device, non_blocking=True), side.record_event()
        if following is not None:
            yield _arrived(*following)
        following = copied
    if following is not None:
        yield _arrived(*following)


def _arrived(
    host: RequestBatch, batch: RequestBatch, event: torch.cuda.Event
) -> tuple[RequestBatch, RequestBatch]:
    """Returns both after letting the current stream wait for the copy, and the copy's memory for
    the current stream.
    """
    current = torch.cuda.current_stream(batch.event_items.device)
    current.wait_event(event)
    batch.record_stream(current)
    return host, batch


def _offsets(lengths: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64))


def _map(path: Path) -> npt.NDArray[np.generic]:
    """Returns the array in a .npy file, mapped read-only; an empty one cannot be mapped and is
    read.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist", expected="an array of encoded histories"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path} is not readable",
            found=str(error),
            fix="Delete the directory and encode again.",
        ) from error
    return np.asarray(array)


def _write_events(histories: Histories, encoder: Encoder, directory: Path) -> None:
    """Encodes the timelines into mapped files, one record batch after another."""
    num_events, num_features = histories.num_events, len(encoder.schema.event)
    shapes = {
        "event_items": (np.int32, (num_events,)),
        "event_features": (np.int32, (num_events, num_features)),
        "event_timestamps": (np.int64, (num_events,)),
    }
    arrays = {
        name: np.lib.format.open_memmap(
            directory / f"{name}.npy", mode="w+", dtype=dtype, shape=shape
        )
        for name, (dtype, shape) in shapes.items()
    }
    row = 0
    for batch in histories.event_batches():
        for array, values in zip(arrays.values(), encoder.events(batch), strict=True):
            array[row : row + batch.num_rows] = values
        row += batch.num_rows
    for array in arrays.values():
        array.flush()


def _request_arrays(histories: Histories, encoder: Encoder) -> dict[str, npt.NDArray[np.generic]]:
    requests, targets, users = histories.requests, histories.targets, histories.users
    rows = int64_column(requests, "user_row")
    labels = [np.asarray(targets.column(task), np.int8) for task in encoder.schema.task_names]
    offsets = {
        name: int64_column(requests, name)
        for name in ("event_start", "event_end", "target_start", "target_end")
    }
    return {
        "target_items": encoder.item_rows(int64_column(targets, ITEM_ID)),
        "labels": np.stack(labels, axis=1),
        "user_features": encoder.users(users)[rows],
        "request_ids": int64_column(requests, REQUEST_ID),
        "request_users": int64_column(users, USER_ID)[rows],
        "request_timestamps": int64_column(requests, TIMESTAMP),
        "splits": _split_codes(requests.column("split")),
        **{f"{name}s": array for name, array in offsets.items()},
    }


def _split_codes(names: pa.ChunkedArray) -> Int8:
    codes = pc.index_in(names, value_set=pa.array(SPLITS))
    if codes.null_count:
        found = pc.unique(names.filter(pc.is_null(codes))).to_pylist()
        raise DataError("a request has an unknown split", found=found, expected=", ".join(SPLITS))
    return np.asarray(codes, np.int8)


def _check(encoded: EncodedHistories) -> None:
    """Raises DataError when an event is not strictly before its request; `Histories.open` has
    checked the offsets.
    """
    asked = np.flatnonzero(encoded.event_ends > encoded.event_starts)
    late = asked[
        encoded.event_timestamps[encoded.event_ends[asked] - 1] >= encoded.request_timestamps[asked]
    ]
    if len(late):
        found = f"{len(late)} requests, first {encoded.request_ids[late[0]]}"
        raise DataError(
            "histories hold events at or after their request",
            found=found,
            fix="Make the histories again.",
        )
