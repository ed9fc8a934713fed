"""EncodedHistories: the histories of a directory as indices, memory-mapped from a cache.

The timelines are encoded once. A request holds offsets into them, so its history is a slice.

Shape letters: R requests of a batch, A event features, U user features, K tasks; E all events,
Q all requests, P all targets of the histories.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data import files
from longrec.data.batch import RequestBatch
from longrec.data.columns import Int64, int64_column
from longrec.data.encoder import Encoder
from longrec.data.feature_encoders import Int32
from longrec.data.hashing import fingerprint_arrays
from longrec.data.histories import SPLITS, Histories
from longrec.data.loading.batching import pack_batch
from longrec.errors import DataError
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID

Split = Literal["warmup", "train", "eval", "validation"]
Int8 = npt.NDArray[np.int8]


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedHistories:
    """Encoded timelines, requests and targets; arrays are mapped read-only from the cache.

    Args:
        event_items, event_features, event_timestamps: int32 [E], int32 [E, A], int64 [E]; all
            timelines one after another.
        target_items, labels: int32 [P], int8 [P, K]; all targets, request after request.
        user_features: int32 [Q, U], of the user of each request.
        request_ids, request_users, request_timestamps: int64 [Q]; id, user id and time (ms) of
            each request, in time order.
        splits: int8 [Q], position in SPLITS.
        event_starts, event_ends, target_starts, target_ends: int64 [Q].
        encoder_fingerprint: fingerprint of the encoder that made them.
        target_rates: float32 [P, C, S], statistics of the items of the targets
            (longrec.data.loading.item_rates), for batches of the training; None without them. They
            are not part of the cache.
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
    target_rates: npt.NDArray[np.float32] | None = None

    @classmethod
    def encode(
        cls,
        histories: Histories,
        encoder: Encoder,
        cache_dir: str | Path,
    ) -> EncodedHistories:
        """Encode histories into a cache directory, replacing it at once, and return them.

        Args:
            histories: their timelines are encoded one record batch at a time.
            encoder: encoder of the model.
            cache_dir: directory for the arrays.

        Raises:
            DataError: an event is not strictly before its request, or a column does not fit the
                schema.
        """
        with files.atomic_replace(cache_dir) as temporary:
            temporary.mkdir()
            _write_events(histories, encoder, temporary)
            for name, array in _request_arrays(histories, encoder).items():
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
            meta = {"encoder_fingerprint": encoder.fingerprint}
            files.write_json(temporary / "meta.json", meta)
            _check_no_future_events(cls.open(temporary))
        return cls.open(cache_dir)

    @classmethod
    def open(cls, cache_dir: str | Path) -> EncodedHistories:
        """Return the encoded histories that `encode` wrote to a cache directory."""
        directory = Path(cache_dir)
        arrays: dict[str, Any] = {
            name: _map_array(directory / f"{name}.npy") for name in _array_names()
        }
        meta = files.read_json(directory / "meta.json")
        return cls(**arrays, encoder_fingerprint=meta["encoder_fingerprint"])

    @property
    def num_requests(self) -> int:
        """Number of requests, Q."""
        return len(self.request_ids)

    def digest(self) -> str:
        """Return 16 hex digits of the SHA-256 of all arrays and the encoder's fingerprint.

        It reads every array once.
        """
        # The labels are empty, because digests of caches on disk must not change.
        arrays = (("", getattr(self, name)) for name in _array_names())
        return fingerprint_arrays(self.encoder_fingerprint, arrays)

    def requests(self, split: Split) -> Int64:
        """Return the positions of the requests of a split, in time order, int64."""
        code = SPLITS.index(split)
        positions = np.flatnonzero(self.splits == code)
        return positions.astype(np.int64)

    def targets_of(self, requests: Int64) -> tuple[Int64, Int64]:
        """Return the position and the request of each target of some requests, int64 [N] each.

        Args:
            requests: int64 [R], positions of requests; their targets come in this order.
        """
        starts = self.target_starts[requests]
        counts = self.target_ends[requests] - starts
        first = np.cumsum(counts) - counts
        positions = np.arange(counts.sum()) + np.repeat(starts - first, counts)
        return positions, np.repeat(requests, counts)

    def batch(
        self,
        requests: Int64,
        starts: Int64,
        ends: Int64,
        *,
        pin: bool = False,
    ) -> RequestBatch:
        """Return the batch of some requests with labels.

        Args:
            requests: int64 [R], positions of requests.
            starts, ends: int64 [R], offsets of the events of each request.
            pin: whether the batch is in page-locked memory.

        Raises:
            DataError: there is no request.
        """
        if not len(requests):
            raise DataError("the batch is empty", expected="at least one request")
        histories = [
            (
                self.event_items[span],
                self.event_features[span],
                self.event_timestamps[span],
            )
            for span in _slices(starts, ends)
        ]
        target_starts = self.target_starts[requests]
        target_ends = self.target_ends[requests]
        targets = list(_slices(target_starts, target_ends))
        labels_of_requests = [self.labels[span] for span in targets]
        labels = np.concatenate(labels_of_requests)
        rates = None
        if self.target_rates is not None:
            rates = np.concatenate([self.target_rates[span] for span in targets])
        return pack_batch(
            histories,
            [self.target_items[span] for span in targets],
            self.user_features[requests],
            self.request_timestamps[requests],
            labels.astype(np.float32),
            target_rates=rates,
            pin=pin,
        )


def _array_names() -> list[str]:
    names = [field.name for field in dataclasses.fields(EncodedHistories)]
    return [name for name in names if name not in ("encoder_fingerprint", "target_rates")]


def _slices(starts: Int64, ends: Int64) -> Iterator[slice]:
    return map(slice, starts.tolist(), ends.tolist())


def _map_array(path: Path) -> npt.NDArray[np.generic]:
    """Return the array in a .npy file, mapped read-only."""
    try:
        array = np.load(
            path,
            mmap_mode="r",
            allow_pickle=False,
        )
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
    return np.asarray(array)  # slices of plain arrays are faster than of np.memmap


def _write_events(
    histories: Histories,
    encoder: Encoder,
    directory: Path,
) -> None:
    """Encode the timelines into mapped files, one record batch after another."""
    num_events = histories.num_events
    num_features = len(encoder.schema.event)
    arrays = (
        _create_array(directory / "event_items.npy", np.int32, (num_events,)),
        _create_array(directory / "event_features.npy", np.int32, (num_events, num_features)),
        _create_array(directory / "event_timestamps.npy", np.int64, (num_events,)),
    )
    start = 0
    for batch in histories.event_batches():
        end = start + batch.num_rows
        for array, values in zip(arrays, encoder.events(batch), strict=True):
            array[start:end] = values
        start = end
    for array in arrays:
        array.flush()


def _create_array(
    path: Path,
    dtype: type[np.generic],
    shape: tuple[int, ...],
) -> np.memmap[Any, Any]:
    array = np.lib.format.open_memmap(
        path,
        mode="w+",
        dtype=dtype,
        shape=shape,
    )
    files.reserve_space(path)
    return array


def _request_arrays(histories: Histories, encoder: Encoder) -> dict[str, npt.NDArray[np.generic]]:
    requests = histories.requests
    targets = histories.targets
    users = histories.users
    user_rows = int64_column(requests, "user_row")
    labels = []
    for task in encoder.schema.task_names:
        column = targets.column(task)
        labels.append(np.asarray(column, np.int8))
    return {
        "target_items": encoder.item_rows(int64_column(targets, ITEM_ID)),
        "labels": np.stack(labels, axis=1),
        "user_features": encoder.users(users)[user_rows],
        "request_ids": int64_column(requests, REQUEST_ID),
        "request_users": int64_column(users, USER_ID)[user_rows],
        "request_timestamps": int64_column(requests, TIMESTAMP),
        "splits": _split_codes(requests.column("split")),
        "event_starts": int64_column(requests, "event_start"),
        "event_ends": int64_column(requests, "event_end"),
        "target_starts": int64_column(requests, "target_start"),
        "target_ends": int64_column(requests, "target_end"),
    }


def _split_codes(names: pa.ChunkedArray) -> Int8:
    codes = pc.index_in(names, value_set=pa.array(SPLITS))
    if codes.null_count:
        unknown = names.filter(pc.is_null(codes))
        raise DataError(
            "a request has an unknown split",
            found=pc.unique(unknown).to_pylist(),
            expected=", ".join(SPLITS),
        )
    return np.asarray(codes, np.int8)


def _check_no_future_events(encoded: EncodedHistories) -> None:
    """Raise DataError if an event is not strictly before its request."""
    requests = np.flatnonzero(encoded.event_ends > encoded.event_starts)
    last_events = encoded.event_ends[requests] - 1
    last_times = encoded.event_timestamps[last_events]
    is_future = last_times >= encoded.request_timestamps[requests]
    wrong = requests[is_future]
    if len(wrong):
        raise DataError(
            "histories hold events at or after their request",
            found=f"{len(wrong)} requests, first {encoded.request_ids[wrong[0]]}",
            fix="Make the histories again (step retrieve of longrec run).",
        )
