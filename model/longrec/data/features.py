"""Feature tables: what a dataset becomes before the feature store publishes it; one packed history per user.

    OUT/schema.json  OUT/manifest.json
    OUT/user_history/part-00000.parquet    user_id, event_timestamp (last event), created, history, history_length
    OUT/user_features.parquet  OUT/item_features.parquet    one row per id

One part of the dataset is in memory at a time, and its users become rows in groups of `data.shard_users`. Nothing depends on
the clock: the same dataset gives the same bytes. `created`, and the time of item and user features, is the end of the log.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longrec.config import DataConfig
from longrec.data import dataset as layout
from longrec.data import drift, files, history
from longrec.errors import DataError
from longrec.schema import BASKET_ID, CREATED, EVENT_SEQ, FORMAT_VERSION, ITEM_ID, TIMESTAMP, USER_ID, Feature, Schema

EVENT_TIME = "event_timestamp"
HISTORY = "history"
HISTORY_LENGTH = "history_length"
TAIL = "history_tail"
TAIL_LENGTH = "history_tail_length"
TAIL_BASE = "history_tail_base"
MAX_PART_BYTES = 256 << 20
MAX_GROUP_BYTES = 16 << 20
_EXACT = 2**53
_TIME = pa.timestamp("us", tz="UTC")
_STORED = {"int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """A user's timeline, packed: the time of its last event (ms), the payload, its events, and how many of them were late."""

    user_id: int
    last_ms: int
    payload: bytes
    length: int
    num_late: int


Packing = Callable[[layout.Dataset, bool], Iterator[Packed]]
"""(dataset, whether late events are held) -> all users in the order of the dataset's parts, and of their ids within a part."""


@dataclasses.dataclass(frozen=True, slots=True)
class FeatureReport:
    """What `build` wrote.

    Args:
        num_users: users with a history, one row each.
        num_events: events in all histories.
        num_items: rows of item_features.
        num_parts: files of user_history.
        longest_history: events of the most active user.
        users_without_events: rows of users.parquet whose user has no event; they have features and no history.
        users_without_features: users with events that users.parquet does not know; they have a history and no features.
        history_bytes: packed size of all histories.
        fingerprint: of the schema.
        version: hash of all files; equal input gives the equal version.
        num_late: events that became known after they happened; in the histories they have the time at which they became known.
    """

    num_users: int
    num_events: int
    num_items: int
    num_parts: int
    longest_history: int
    users_without_events: int
    users_without_features: int
    history_bytes: int
    fingerprint: str
    version: str
    num_late: int = 0


def build(dataset_dir: str | Path, out_dir: str | Path, data: DataConfig, pack: Packing | None = None) -> FeatureReport:
    """Returns counts after writing the feature tables of a dataset to `out_dir`, at once: a kill leaves what was there before.

    Args:
        dataset_dir: written by an importer or by `synth`.
        out_dir: new, empty, or feature tables that are replaced.
        data: `shard_users` bounds the rows of a part; `late_events` says what `created` of the events does.
        pack: makes the packed users, part after part; None for this process, `spark.packing(session)` for Spark. The bytes are the same.

    Raises:
        DataError: the dataset cannot be used; events are out of order, a basket has two times, an id is null or not unique, a name
            is taken, or a value cannot pass the feature store exactly.
    """
    source = layout.Dataset.open(dataset_dir)
    _check_names(source.schema)
    _check_replaceable(Path(out_dir))
    with files.replacing(out_dir) as temporary:
        (temporary / "user_history").mkdir(parents=True)
        writer = _HistoryWriter(temporary / "user_history", source.schema, data.shard_users, _log_end(source))
        for packed in (pack or _packed_here)(source, data.late_events == "hold" and source.has_created):
            writer.add(packed)
        users = writer.close()
        num_items, known = _write_entities(source, temporary, writer.created)
        files.write_json(temporary / "schema.json", source.schema.to_dict())
        tables = sorted(path for path in temporary.rglob("*") if path.is_file())
        hashes = {str(path.relative_to(temporary)): files.sha256_of(path) for path in tables}
        report = _report(source, writer, users, num_items, known, version_of(hashes))
        _write_manifest(source, temporary / "manifest.json", users, report, hashes, data)
    return report


def version_of(hashes: Mapping[str, str]) -> str:
    """Returns the version of feature tables with files of these hashes (by path): 16 hex digits that say what is in all of them."""
    return hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()[:16]


def stored(table: pa.Table, features: tuple[Feature, ...]) -> list[pa.Array | pa.ChunkedArray]:
    """Returns the columns of `features` as the feature store keeps them: NaN becomes null, a nullable id becomes decimal text.

    Raises:
        DataError: an integer column holds a null and a value that Feast would change (beyond 2**53).
    """
    return [_stored(table.column(feature.name), feature) for feature in features]


def restored(column: pa.Array | pa.ChunkedArray, feature: Feature) -> pa.Array | pa.ChunkedArray:
    """Returns a column of the feature store as the dataset had it."""
    return pc.cast(column, _STORED[feature.dtype])


class _HistoryWriter:
    """Writes packed users in parts of bounded size."""

    def __init__(self, directory: Path, schema: Schema, shard_users: int, created: int) -> None:
        self.directory, self.schema, self.shard_users, self.created = directory, schema, shard_users, created
        self.num_parts = self.history_bytes = self.num_late = self._pending_bytes = 0
        self._rows: list[Packed] = []
        self._lengths: list[tuple[int, int]] = []

    def add(self, packed: Packed) -> None:
        self._rows.append(packed)
        self.num_late += packed.num_late
        self._pending_bytes += len(packed.payload)
        if len(self._rows) >= self.shard_users or self._pending_bytes >= MAX_PART_BYTES:
            self._flush()

    def close(self) -> dict[int, int]:
        """Returns the history length of every user after writing what is left.

        Raises:
            DataError: a user's events are in two parts of the dataset.
        """
        self._flush()
        lengths = dict(self._lengths)
        if len(lengths) != len(self._lengths):
            raise DataError("a user's events are spread over several parts", found=f"{len(self._lengths) - len(lengths)} users",
                            expected="whole users in each part", fix=layout.AGAIN)
        return lengths

    def _flush(self) -> None:
        if not self._rows and self.num_parts:
            return
        users, lengths = ([getattr(row, name) for row in self._rows] for name in ("user_id", "length"))
        table = pa.table({
            USER_ID: pa.array(users, pa.int64()), EVENT_TIME: _micros(np.array([row.last_ms for row in self._rows], np.int64)),
            CREATED: _micros(np.full(len(users), self.created)), HISTORY: pa.array([row.payload for row in self._rows], pa.binary()),
            HISTORY_LENGTH: pa.array(lengths, pa.int64())})
        rows = max(1, MAX_GROUP_BYTES * len(users) // max(self._pending_bytes, 1))
        pq.write_table(table, self.directory / layout.part_name(self.num_parts), compression="zstd", compression_level=1,
                       row_group_size=rows, use_dictionary=False)
        self._lengths += zip(users, lengths, strict=True)
        self.history_bytes, self.num_parts = self.history_bytes + self._pending_bytes, self.num_parts + 1
        self._rows, self._pending_bytes = [], 0


def wanted(schema: Schema, *, hold: bool) -> list[str]:
    """Returns the columns of events/ that a timeline is packed from."""
    return [USER_ID, *history.arrow_schema(schema).names, *([CREATED] if hold else [])]


def packed_users(table: pa.Table, schema: Schema, path: Path, *, hold: bool) -> Iterator[Packed]:
    """Yields the packed timelines of whole users, after checking order, keys and baskets.

    A late event that is held has the time at which it became known, and its place in the timeline is there.

    Args:
        table: the columns `wanted`, sorted by (user_id, timestamp, event_seq).
        schema: of the dataset.
        path: where they are from, for errors.
        hold: whether late events are held.
    """
    codec = history.conform(table, schema)
    users = layout.int64_of(table, USER_ID)
    times, order = history.timestamps(codec), codec.column(EVENT_SEQ).to_numpy()
    same_user, same_time = users[1:] == users[:-1], times[1:] == times[:-1]
    wrong = (users[1:] < users[:-1]) | (same_user & ((times[1:] < times[:-1]) | (same_time & (order[1:] < order[:-1]))))
    if wrong.any():
        found = f"{int(wrong.sum())} steps back, the first at row {int(wrong.argmax()) + 1}"
        raise DataError(f"{path} is out of order", found=found, expected="user_id, timestamp, event_seq ascending", fix=layout.AGAIN)
    late, items = np.zeros(len(users), bool), codec.column(ITEM_ID).to_numpy()
    if hold or _ties(users, times, order).any():
        known = layout.known_times(table) if hold else times
        places, where = np.lexsort((items, order, known, users)), codec.schema.get_field_index(TIMESTAMP)
        codec = codec.set_column(where, codec.schema.field(where), pa.array(known)).take(pa.array(places))
        users, late, times, order, items = users[places], (known > times)[places], known[places], order[places], items[places]
    if len(times) and times.min() < 0:
        raise DataError(f"{path} holds times before 1970", found=f"{int((times < 0).sum())}, the first of user {users[times.argmin()]}",
                        expected="milliseconds since 1970 UTC", fix="Check the unit of the time column (--timestamp-unit).")
    _check_keys(path, users, times, order, items)
    if schema.has_baskets:
        _check_baskets(path, users, codec.column(BASKET_ID).to_numpy(), times)
    starts = layout.group_starts(users)
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(users)], strict=True) if len(users) else ():
        payload = history.pack(codec.slice(start, end - start), schema)
        yield Packed(int(users[start]), int(times[end - 1]), payload, end - start, int(late[start:end].sum()))


def _packed_here(source: layout.Dataset, hold: bool) -> Iterator[Packed]:
    for part in range(source.num_parts):
        yield from packed_users(source.events(part, wanted(source.schema, hold=hold)), source.schema, source.event_path(part), hold=hold)


def _ties(users: Int64, times: Int64, order: Int64) -> npt.NDArray[np.bool_]:
    """Returns whether each row but the first has the user, time and sequence of the row before."""
    ties: npt.NDArray[np.bool_] = (users[1:] == users[:-1]) & (times[1:] == times[:-1]) & (order[1:] == order[:-1])
    return ties


def _check_keys(path: Path, users: Int64, times: Int64, order: Int64, items: Int64) -> None:
    """Raises DataError where two events of a user have one key; the rows are sorted by it."""
    same = _ties(users, times, order) & (items[1:] == items[:-1])
    if same.any():
        where = int(same.argmax())
        raise DataError(f"{path}: events of one user have the same key (timestamp, event_seq, item_id)",
                        found=f"{int(same.sum())}, for example user {users[where]}, time {times[where]}, event_seq {order[where]}",
                        expected="each event once", fix="Remove the repeats, or name a column that tells events apart (--seq).")


def _check_baskets(path: Path, users: Int64, baskets: Int64, times: Int64) -> None:
    order = np.lexsort((times, baskets, users))
    users, baskets, times = users[order], baskets[order], times[order]
    split = (users[1:] == users[:-1]) & (baskets[1:] == baskets[:-1]) & (times[1:] != times[:-1])
    if split.any():
        where = int(split.argmax())
        raise DataError(f"{path}: events of one basket have different times, a history could split it",
                        found=f"{int(split.sum())} such steps, for example basket {baskets[where]} of user {users[where]}",
                        expected="one time per basket", fix="Give all events of a basket one timestamp.")


def _write_entities(source: layout.Dataset, directory: Path, created: int) -> tuple[int, Int64]:
    """Returns the number of items and the ids of users.parquet after writing both feature tables."""
    ids: list[Int64] = []
    for name, key, table, features in (("item_features", ITEM_ID, source.items(), source.schema.item[1:]),
                                       ("user_features", USER_ID, source.users(), source.schema.user)):
        keys = layout.int64_of(table, key)
        found, counts = np.unique(keys, return_counts=True)
        if len(doubles := found[counts > 1]):
            raise DataError(f"{key} must be unique", found=f"{len(doubles)} repeated, for example {doubles[0]}", fix=layout.AGAIN)
        times = _micros(np.full(len(keys), created))
        columns = {key: pa.array(keys), EVENT_TIME: times, CREATED: times}
        columns |= dict(zip((feature.name for feature in features), stored(table, features), strict=True))
        pq.write_table(pa.table(columns), directory / f"{name}.parquet", compression="zstd")
        ids.append(keys)
    return len(ids[0]), ids[1]


def _stored(column: pa.Array | pa.ChunkedArray, feature: Feature) -> pa.Array | pa.ChunkedArray:
    if feature.dtype == "float64":
        return pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
    if feature.stored_dtype == "int64" and column.null_count and len(column) > column.null_count:
        bounds = pc.min_max(column).as_py()
        if max(-bounds["min"], bounds["max"]) > _EXACT:
            raise DataError(f"feature '{feature.name}' cannot pass the feature store exactly",
                            found=f"{column.null_count} nulls and values in {bounds['min']}..{bounds['max']}",
                            expected="no nulls, or values within 2**53", fix="Declare it as kind 'id' with max_null_share above 0.")
    return pc.cast(column, _STORED[feature.stored_dtype])


def _report(source: layout.Dataset, writer: _HistoryWriter, users: dict[int, int], num_items: int, known: Int64,
            version: str) -> FeatureReport:
    with_events = np.fromiter(users, np.int64, len(users))
    return FeatureReport(
        num_users=len(users), num_events=sum(users.values()), num_items=num_items, num_parts=writer.num_parts,
        longest_history=max(users.values(), default=0), users_without_events=len(np.setdiff1d(known, with_events)),
        users_without_features=len(np.setdiff1d(with_events, known)), history_bytes=writer.history_bytes,
        fingerprint=source.schema.fingerprint, version=version, num_late=writer.num_late)


def _write_manifest(source: layout.Dataset, path: Path, users: dict[int, int], report: FeatureReport, hashes: Mapping[str, str],
                    data: DataConfig) -> None:
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION, "version": report.version, "name": source.name, "fingerprint": source.schema.fingerprint,
        "codec_version": history.CODEC_VERSION, "dataset_hash": source.facts.get("content_hash"),
        "time_range_ms": source.facts["time_range_ms"], "late_events": data.late_events, "counts": dataclasses.asdict(report),
        "history_length": layout.quantiles(np.fromiter(users.values(), np.int64, len(users))),
        "profile": drift.Profile.of(source).to_dict(),
        "files": dict(hashes)}
    files.write_json(path, manifest)


def _log_end(source: layout.Dataset) -> int:
    """Returns the time of the last event, ms."""
    end = (source.facts.get("time_range_ms") or [None, None])[1]
    if end is None:
        raise DataError(f"{source.path} holds no events", expected="at least one")
    return int(end)


def _check_names(schema: Schema) -> None:
    taken = {USER_ID, ITEM_ID, EVENT_TIME, CREATED, HISTORY, HISTORY_LENGTH, TAIL, TAIL_LENGTH, TAIL_BASE}
    codec = {ITEM_ID, USER_ID, TIMESTAMP, EVENT_SEQ, BASKET_ID, CREATED}
    for group, features, reserved in (("item", schema.item[1:], taken), ("user", schema.user, taken), ("event", schema.event, codec)):
        if clash := sorted(reserved.intersection(feature.name for feature in features)):
            raise DataError(f"a feature of the {group}s has a name that longrec uses itself", found=", ".join(clash), fix="Rename it.")


def _check_replaceable(path: Path) -> None:
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or (path / "manifest.json").exists())):
        raise DataError(f"{path} does not hold feature tables and will not be replaced", fix="Choose an empty or new directory.")


def _micros(times_ms: Int64) -> pa.Array:
    return pa.array(times_ms, pa.int64()).view(pa.timestamp("ms", tz="UTC")).cast(_TIME)
