"""Feature tables: what a dataset becomes before the feature store publishes it; one packed history
per user.

    OUT/schema.json  OUT/manifest.json
    OUT/user_history/part-00000.parquet    user_id, event_timestamp (last event), created, history,
    history_length
    OUT/user_features.parquet  OUT/item_features.parquet    one row per id

One part of the dataset is in memory at a time, and its users become rows in groups of
`data.shard_users`. Nothing depends on
the clock: the same dataset gives the same bytes. `created`, and the time of item and user features,
is the end of the log.

A shard of the dataset (`dataset.Shard`) is built on its own, its first one with both tables of
features; `join` puts the files of all
shards side by side. No file holds users of two parts of the dataset, so joined tables are those of
one build, byte for byte.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longrec.config import DataConfig
from longrec.data import dataset as layout
from longrec.data import files, history
from longrec.data.quality import drift
from longrec.errors import DataError
from longrec.schema import (
    BASKET_ID,
    CREATED,
    EVENT_SEQ,
    FORMAT_VERSION,
    ITEM_ID,
    TIMESTAMP,
    USER_ID,
    Feature,
    Schema,
)

EVENT_TIME = "event_timestamp"
HISTORY = "history"
HISTORY_LENGTH = "history_length"
TAIL = "history_tail"
TAIL_LENGTH = "history_tail_length"
TAIL_BASE = "history_tail_base"
MAX_PART_BYTES = 256 << 20
MAX_GROUP_BYTES = 16 << 20
_EXACT = 2**53
_HEAD = ("name", "fingerprint", "codec_version", "dataset_hash", "time_range_ms", "late_events")
_TIME = pa.timestamp("us", tz="UTC")
_STORED = {"int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """A user's timeline, packed: the time of its last event (ms), the payload, its events, and how
    many of them were late.
    """

    user_id: int
    last_ms: int
    payload: bytes
    length: int
    num_late: int


Packing = Callable[[layout.Dataset, bool], Iterator[tuple[int, Packed]]]
"""(dataset, whether late events are held) -> part and user, for all users of its shard in the order
of parts, and of ids within a part.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class FeatureReport:
    """What `build` wrote.

    Args:
        num_users: users with a history, one row each.
        num_events: events in all histories.
        num_items: rows of item_features.
        num_parts: files of user_history.
        longest_history: events of the most active user.
        users_without_events: rows of users.parquet whose user has no event; they have features and
            no history.
        users_without_features: users with events that users.parquet does not know; they have a
            history and no features.
        history_bytes: packed size of all histories.
        fingerprint: of the schema.
        version: hash of all files; equal input gives the equal version.
        num_late: events that became known after they happened; in the histories they have the time
            at which they became known.
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


def build(
    dataset_dir: str | Path,
    out_dir: str | Path,
    data: DataConfig,
    pack: Packing | None = None,
    shard: layout.Shard = layout.WHOLE,
) -> FeatureReport:
    """Returns counts after writing the feature tables of a dataset to `out_dir`, at once: a kill
    leaves what was there before.

    Args:
        dataset_dir: written by an importer or by `synth`.
        out_dir: new, empty, or feature tables that are replaced.
        data: `shard_users` bounds the rows of a part; `late_events` says what `created` of the
            events does.
        pack: makes the packed users, part after part; None for this process,
            `spark.packing(session)` for Spark. The bytes are the same.
        shard: of the dataset, for `join`.

    Raises:
        DataError: the dataset cannot be used; events are out of order, a basket has two times, an
            id is null or not unique, a name
            is taken, or a value cannot pass the feature store exactly.
    """
    source = layout.Dataset.open(dataset_dir, shard)
    _check_names(source.schema)
    _check_replaceable(Path(out_dir))
    with files.replacing(out_dir) as temporary:
        (temporary / "user_history").mkdir(parents=True)
        writer = _HistoryWriter(
            temporary / "user_history", source.schema, data.shard_users, _log_end(source)
        )
        for part, packed in (pack or _packed_here)(
            source, data.late_events == "hold" and source.has_created
        ):
            writer.add(part, packed)
        writer.flush()
        if shard.index == 0:
            _write_entities(source, temporary, writer.created)
        files.write_json(temporary / "schema.json", source.schema.to_dict())
        head = {
            "name": source.name,
            "fingerprint": source.schema.fingerprint,
            "codec_version": history.CODEC_VERSION,
            "dataset_hash": source.facts.get("content_hash"),
            "time_range_ms": source.facts["time_range_ms"],
            "late_events": data.late_events,
            **({} if shard == layout.WHOLE else {"shard": str(shard)}),
        }
        return _finish(
            temporary, head, writer.num_late, writer.history_bytes, drift.Profile.of(source)
        )


def join(shard_dirs: Sequence[str | Path], out_dir: str | Path) -> FeatureReport:
    """Returns counts after putting the shards of a dataset together: the tables, and the version,
    of one build of it.

    Args:
        shard_dirs: one per shard, in any order, as `build` wrote them.
        out_dir: as of `build`.

    Raises:
        DataError: these are not all shards of one dataset, or a user is in two of them.
    """
    shards = [Path(each) for each in shard_dirs]
    manifests = [files.read_json(each / "manifest.json") for each in shards]
    order = layout.in_order(
        [layout.Shard.parse(manifest.get("shard", "1/1")) for manifest in manifests]
    )
    shards, manifests = [shards[place] for place in order], [manifests[place] for place in order]
    heads = [{key: manifest[key] for key in _HEAD} for manifest in manifests]
    if any(head != heads[0] for head in heads):
        raise DataError(
            "these are not shards of one dataset",
            found=", ".join(sorted({str(head["dataset_hash"])[:16] for head in heads})),
            fix="Build all shards again.",
        )
    _check_replaceable(Path(out_dir))
    with files.replacing(out_dir) as temporary:
        _copy_shards(shards, manifests, temporary)
        counts = [manifest["counts"] for manifest in manifests]
        return _finish(
            temporary,
            heads[0],
            sum(each["num_late"] for each in counts),
            sum(each["history_bytes"] for each in counts),
            drift.Profile.merged(
                [drift.Profile.from_dict(manifest["profile"]) for manifest in manifests]
            ),
        )


def _copy_shards(
    shards: Sequence[Path], manifests: Sequence[Mapping[str, Any]], target: Path
) -> None:
    """Copies the files of all shards, in order, to where one build writes them; a file that was
    changed is an error.
    """
    (target / "user_history").mkdir(parents=True)
    number = 0
    for shard, manifest in zip(shards, manifests, strict=True):
        for name, expected in sorted(manifest["files"].items()):
            place = target / name if shard is shards[0] else None
            if name.startswith("user_history/"):
                place, number = target / "user_history" / layout.part_name(number), number + 1
            if place is not None:
                shutil.copyfile(shard / name, place)
                if files.sha256_of(place) != expected:
                    raise DataError(f"{shard / name} was changed", fix="Build this shard again.")


def version_of(hashes: Mapping[str, str]) -> str:
    """Returns the version of feature tables with files of these hashes (by path): 16 hex digits
    that say what is in all of them.
    """
    return hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()[:16]


def stored(table: pa.Table, features: tuple[Feature, ...]) -> list[pa.Array | pa.ChunkedArray]:
    """Returns the columns of `features` as the feature store keeps them: NaN becomes null, a
    nullable id becomes decimal text.

    Raises:
        DataError: an integer column holds a null and a value that Feast would change (beyond
            2**53).
    """
    return [_stored(table.column(feature.name), feature) for feature in features]


def restored(column: pa.Array | pa.ChunkedArray, feature: Feature) -> pa.Array | pa.ChunkedArray:
    """Returns a column of the feature store as the dataset had it."""
    return pc.cast(column, _STORED[feature.dtype])


class _HistoryWriter:
    """Writes packed users in files of bounded size; each holds users of one part of the dataset."""

    def __init__(
        self,
        directory: Path,
        schema: Schema,
        shard_users: int,
        created: int,
    ) -> None:
        self.directory, self.schema, self.shard_users, self.created = (
            directory,
            schema,
            shard_users,
            created,
        )
        self.num_files = self.history_bytes = self.num_late = self._pending_bytes = 0
        self._rows: list[Packed] = []
        self._part = 0

    def add(self, part: int, packed: Packed) -> None:
        if part != self._part:
            self.flush()
        self._part = part
        self._rows.append(packed)
        self.num_late += packed.num_late
        self._pending_bytes += len(packed.payload)
        if len(self._rows) >= self.shard_users or self._pending_bytes >= MAX_PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting."""
        if not self._rows:
            return
        users, lengths = (
            [getattr(row, name) for row in self._rows] for name in ("user_id", "length")
        )
        table = pa.table(
            {
                USER_ID: pa.array(users, pa.int64()),
                EVENT_TIME: _micros(np.array([row.last_ms for row in self._rows], np.int64)),
                CREATED: _micros(np.full(len(users), self.created)),
                HISTORY: pa.array([row.payload for row in self._rows], pa.binary()),
                HISTORY_LENGTH: pa.array(lengths, pa.int64()),
            }
        )
        rows = max(1, MAX_GROUP_BYTES * len(users) // max(self._pending_bytes, 1))
        pq.write_table(
            table,
            self.directory / layout.part_name(self.num_files),
            compression="zstd",
            compression_level=1,
            row_group_size=rows,
            use_dictionary=False,
        )
        self.history_bytes, self.num_files = (
            self.history_bytes + self._pending_bytes,
            self.num_files + 1,
        )
        self._rows, self._pending_bytes = [], 0


def wanted(schema: Schema, *, hold: bool) -> list[str]:
    """Returns the columns of events/ that a timeline is packed from."""
    return [USER_ID, *history.arrow_schema(schema).names, *([CREATED] if hold else [])]


def packed_users(
    table: pa.Table,
    schema: Schema,
    path: Path,
    *,
    hold: bool,
) -> Iterator[Packed]:
    """Yields the packed timelines of whole users, after checking order, keys and baskets.

    A late event that is held has the time at which it became known, and its place in the timeline
    is there.

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
    wrong = (users[1:] < users[:-1]) | (
        same_user & ((times[1:] < times[:-1]) | (same_time & (order[1:] < order[:-1])))
    )
    if wrong.any():
        found = f"{int(wrong.sum())} steps back, the first at row {int(wrong.argmax()) + 1}"
        raise DataError(
            f"{path} is out of order",
            found=found,
            expected="user_id, timestamp, event_seq ascending",
            fix=layout.AGAIN,
        )
    late, items = np.zeros(len(users), bool), codec.column(ITEM_ID).to_numpy()
    if hold or _ties(users, times, order).any():
        known = layout.known_times(table) if hold else times
        places, where = (
            np.lexsort((items, order, known, users)),
            codec.schema.get_field_index(TIMESTAMP),
        )
        codec = codec.set_column(where, codec.schema.field(where), pa.array(known)).take(
            pa.array(places)
        )
        users, late, times, order, items = (
            users[places],
            (known > times)[places],
            known[places],
            order[places],
            items[places],
        )
    if len(times) and times.min() < 0:
        raise DataError(
            f"{path} holds times before 1970",
            found=f"{int((times < 0).sum())}, the first of user {users[times.argmin()]}",
            expected="milliseconds since 1970 UTC",
            fix="Check the unit of the time column (--timestamp-unit).",
        )
    _check_keys(path, users, times, order, items)
    if schema.has_baskets:
        _check_baskets(path, users, codec.column(BASKET_ID).to_numpy(), times)
    starts = layout.group_starts(users)
    for start, end in (
        zip(starts.tolist(), [*starts[1:].tolist(), len(users)], strict=True) if len(users) else ()
    ):
        payload = history.pack(codec.slice(start, end - start), schema)
        yield Packed(
            int(users[start]), int(times[end - 1]), payload, end - start, int(late[start:end].sum())
        )


def _packed_here(source: layout.Dataset, hold: bool) -> Iterator[tuple[int, Packed]]:
    for part in source.parts:
        table = source.events(part, wanted(source.schema, hold=hold))
        for packed in packed_users(table, source.schema, source.event_path(part), hold=hold):
            yield part, packed


def _ties(users: Int64, times: Int64, order: Int64) -> npt.NDArray[np.bool_]:
    """Returns whether each row but the first has the user, time and sequence of the row before."""
    ties: npt.NDArray[np.bool_] = (
        (users[1:] == users[:-1]) & (times[1:] == times[:-1]) & (order[1:] == order[:-1])
    )
    return ties


def _check_keys(
    path: Path,
    users: Int64,
    times: Int64,
    order: Int64,
    items: Int64,
) -> None:
    """Raises DataError where two events of a user have one key; the rows are sorted by it."""
    same = _ties(users, times, order) & (items[1:] == items[:-1])
    if same.any():
        where = int(same.argmax())
        raise DataError(
            f"{path}: events of one user have the same key (timestamp, event_seq, item_id)",
            found=f"{int(same.sum())}, for example user {users[where]}, time {times[where]}, event_seq {order[where]}",
            expected="each event once",
            fix="Remove the repeats, or name a column that tells events apart (--seq).",
        )


def _check_baskets(
    path: Path,
    users: Int64,
    baskets: Int64,
    times: Int64,
) -> None:
    order = np.lexsort((times, baskets, users))
    users, baskets, times = users[order], baskets[order], times[order]
    split = (users[1:] == users[:-1]) & (baskets[1:] == baskets[:-1]) & (times[1:] != times[:-1])
    if split.any():
        where = int(split.argmax())
        raise DataError(
            f"{path}: events of one basket have different times, a history could split it",
            found=f"{int(split.sum())} such steps, for example basket {baskets[where]} of user {users[where]}",
            expected="one time per basket",
            fix="Give all events of a basket one timestamp.",
        )


def _write_entities(source: layout.Dataset, directory: Path, created: int) -> None:
    """Writes both tables of features."""
    for name, key, table, features in (
        ("item_features", ITEM_ID, source.items(), source.schema.item[1:]),
        ("user_features", USER_ID, source.users(), source.schema.user),
    ):
        keys = layout.int64_of(table, key)
        found, counts = np.unique(keys, return_counts=True)
        if len(doubles := found[counts > 1]):
            raise DataError(
                f"{key} must be unique",
                found=f"{len(doubles)} repeated, for example {doubles[0]}",
                fix=layout.AGAIN,
            )
        times = _micros(np.full(len(keys), created))
        columns = {key: pa.array(keys), EVENT_TIME: times, CREATED: times}
        columns |= dict(
            zip((feature.name for feature in features), stored(table, features), strict=True)
        )
        pq.write_table(pa.table(columns), directory / f"{name}.parquet", compression="zstd")


def _stored(column: pa.Array | pa.ChunkedArray, feature: Feature) -> pa.Array | pa.ChunkedArray:
    if feature.dtype == "float64":
        return pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
    if feature.stored_dtype == "int64" and column.null_count and len(column) > column.null_count:
        bounds = pc.min_max(column).as_py()
        if max(-bounds["min"], bounds["max"]) > _EXACT:
            raise DataError(
                f"feature '{feature.name}' cannot pass the feature store exactly",
                found=f"{column.null_count} nulls and values in {bounds['min']}..{bounds['max']}",
                expected="no nulls, or values within 2**53",
                fix="Declare it as kind 'id' with max_null_share above 0.",
            )
    return pc.cast(column, _STORED[feature.stored_dtype])


def _finish(
    directory: Path,
    head: Mapping[str, Any],
    num_late: int,
    history_bytes: int,
    profile: drift.Profile,
) -> FeatureReport:
    """Returns counts after writing the manifest of the tables in a directory, those of a shard
    without features of users and items.
    """
    tables = sorted(path for path in directory.rglob("*") if path.is_file())
    hashes = {str(path.relative_to(directory)): files.sha256_of(path) for path in tables}
    users, lengths = _users_in(directory)
    known = {
        name: _ids_in(directory / f"{name}_features.parquet", key)
        for name, key in (("user", USER_ID), ("item", ITEM_ID))
    }
    report = FeatureReport(
        num_users=len(users),
        num_events=int(lengths.sum()),
        num_items=len(known["item"]),
        num_parts=sum(name.startswith("user_history/") for name in hashes),
        longest_history=int(lengths.max(initial=0)),
        users_without_events=len(np.setdiff1d(known["user"], users)),
        users_without_features=len(np.setdiff1d(users, known["user"])),
        history_bytes=history_bytes,
        fingerprint=head["fingerprint"],
        version=version_of(hashes),
        num_late=num_late,
    )
    manifest = {
        "format_version": FORMAT_VERSION,
        "version": report.version,
        **head,
        "counts": dataclasses.asdict(report),
        "history_length": layout.quantiles(lengths),
        "profile": profile.to_dict(),
        "files": hashes,
    }
    files.write_json(directory / "manifest.json", manifest)
    return report


def _users_in(directory: Path) -> tuple[Int64, Int64]:
    """Returns the users of feature tables and the lengths of their histories, int64 [U].

    Raises:
        DataError: a user is there twice.
    """
    parts = [
        pq.read_table(path, columns=[USER_ID, HISTORY_LENGTH])
        for path in sorted((directory / "user_history").glob("*.parquet"))
    ]
    users, lengths = (
        np.concatenate([np.zeros(0, np.int64), *(layout.int64_of(part, name) for part in parts)])
        for name in (USER_ID, HISTORY_LENGTH)
    )
    if doubles := len(users) - len(np.unique(users)):
        raise DataError(
            "a user's events are spread over several parts",
            found=f"{doubles} users",
            expected="whole users in each part",
            fix=layout.AGAIN,
        )
    return users, lengths


def _ids_in(path: Path, key: str) -> Int64:
    return (
        layout.int64_of(pq.read_table(path, columns=[key]), key)
        if path.is_file()
        else np.zeros(0, np.int64)
    )


def _log_end(source: layout.Dataset) -> int:
    """Returns the time of the last event, ms."""
    end = (source.facts.get("time_range_ms") or [None, None])[1]
    if end is None:
        raise DataError(f"{source.path} holds no events", expected="at least one")
    return int(end)


def _check_names(schema: Schema) -> None:
    taken = {
        USER_ID,
        ITEM_ID,
        EVENT_TIME,
        CREATED,
        HISTORY,
        HISTORY_LENGTH,
        TAIL,
        TAIL_LENGTH,
        TAIL_BASE,
    }
    codec = {ITEM_ID, USER_ID, TIMESTAMP, EVENT_SEQ, BASKET_ID, CREATED}
    for group, features, reserved in (
        ("item", schema.item[1:], taken),
        ("user", schema.user, taken),
        ("event", schema.event, codec),
    ):
        if clash := sorted(reserved.intersection(feature.name for feature in features)):
            raise DataError(
                f"a feature of the {group}s has a name that longrec uses itself",
                found=", ".join(clash),
                fix="Rename it.",
            )


def _check_replaceable(path: Path) -> None:
    if path.exists() and not (
        path.is_dir() and (not any(path.iterdir()) or (path / "manifest.json").exists())
    ):
        raise DataError(
            f"{path} does not hold feature tables and will not be replaced",
            fix="Choose an empty or new directory.",
        )


def _micros(times_ms: Int64) -> pa.Array:
    return pa.array(times_ms, pa.int64()).view(pa.timestamp("ms", tz="UTC")).cast(_TIME)
