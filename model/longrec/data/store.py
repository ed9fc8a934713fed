"""The feature store: the one file that knows Feast. Feature tables go in by `publish`, histories come out by two doors.

    feature tables --publish--> LONGREC_HOME/store/<version>/{features,feast} <-- store/current <-- LONGREC_HOME/{features,feast}
                                     |  offline: retrieve(), one entity row per user     |  online: OnlineStore.fetch()
                                     v                                                   v
                                 histories of all requests                           one user now

A version is complete before `current` points to it, and is never changed by us afterwards: a kill at any moment, or a reader at work,
sees the old version or the new one. The version before stays for readers that have it open. Feast is imported inside functions: it costs
seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import hashlib
import io
import logging
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.config import DataConfig
from longrec.data import dataset as layout
from longrec.data import features, files, history, location, pushed
from longrec.data.histories import SPLITS, HistoriesWriter, split_moments, split_names
from longrec.errors import DataError, SchemaMismatch, StoreError
from longrec.schema import CREATED, ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID, Feature, Schema

logger = logging.getLogger(__name__)

SERVICE = "ranker_v1"
DEFAULT_HOME = "../.longrec"
"""The home that feature_store.yaml names; paths below it are moved to the home in use."""
SLICE_BYTES = 256 << 20
"""Packed histories that one materialization or one retrieval holds in memory."""
SLICE_EVENTS = 4_000_000
SLICE_IDS = 200_000
ONLINE_USERS = 1_000
"""Users of one question to the online store; SQLite allows some ten thousand at most."""
TAIL_EVENTS = 256
"""Pushed events of a user that are kept beside the base; more of them are folded into it."""
PUSH_USERS = 200
"""Users whose histories a push has in memory."""
PUSH_WAIT_SECONDS = 60.0
READS = 5
"""Attempts to read a base and its tail that belong together."""
TAIL_PARTS = 64
"""Offline parts of tails before they are made one."""
FOLD, TAIL_PART = "fold-", "part-"
OVERLAY = "LONGREC_FEATURE_OVERLAY"
PUBLISH_FIRST = "Publish feature tables first (step publish of the pipeline)."

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class PublishReport:
    """What `publish` made visible.

    Args:
        version: directory of the version.
        fingerprint: of the schema.
        num_users, num_events, num_items: in the feature tables.
        online_slices: materializations that it took.
        num_verified: users read back from the online store and found equal.
        num_carried: pushed events of the version before that the feature tables lack, and that were pushed again.
        digest: of the feature tables.
        was_current: whether the home pointed to such a version already, and nothing was done.
    """

    version: str
    fingerprint: str
    num_users: int
    num_events: int
    num_items: int
    online_slices: int
    num_verified: int
    num_carried: int = 0
    digest: str = ""
    was_current: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class PushReport:
    """What `push` did.

    Args:
        num_events: different events that were given.
        num_new: of them, those that were not stored yet.
        num_users: users who have a new event.
        num_folds: users whose tail went into the base.
    """

    num_events: int
    num_new: int
    num_users: int
    num_folds: int


@dataclasses.dataclass(frozen=True, slots=True)
class RetrieveReport:
    """What `retrieve` wrote.

    Args:
        num_requests, num_warmup, num_train, num_eval: requests, and those of each split.
        num_targets, num_users, num_events, num_items: rows of the histories' tables.
        users_without_history: users with a request that the store has no history of.
        requests_without_history: requests with no event before them.
        requests_at_the_bound: requests with more events before them than are kept.
        longest_history: events of the longest history kept.
        split_moment_ms: the first moment of the evaluation.
    """

    num_requests: int
    num_warmup: int
    num_train: int
    num_eval: int
    num_targets: int
    num_users: int
    num_events: int
    num_items: int
    users_without_history: int
    requests_without_history: int
    requests_at_the_bound: int
    longest_history: int
    split_moment_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class UserRows:
    """What the feature store knows of one user.

    Args:
        user_id: who was asked for.
        history: events of the user, published and pushed, oldest first (the history codec's columns); no rows when there are none.
        features: value of each user feature by name, None for a missing one; None for a user without features.
    """

    user_id: int
    history: pa.RecordBatch
    features: dict[str, Any] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """The version that a home points to: its directory (links resolved), manifest and schema."""

    path: Path
    manifest: Mapping[str, Any]
    schema: Schema

    @classmethod
    def open(cls, home: str | Path) -> Published:
        """Returns the version of `home`.

        Raises:
            StoreError: nothing was published there, or a part of it is gone.
        """
        tables = (Path(home) / "features").resolve()
        if not (tables / "manifest.json").is_file() or not (tables / "schema.json").is_file():
            raise StoreError(f"no feature store at {home}", found=f"no feature tables in {tables}", fix=PUBLISH_FIRST)
        if not (tables.parent / "feast" / "feature_store.yaml").is_file():
            raise StoreError(f"the feature store at {home} is incomplete", found=f"nothing in {tables.parent / 'feast'}", fix=PUBLISH_FIRST)
        return cls(tables.parent, files.read_json(tables / "manifest.json"), Schema.load(tables / "schema.json"))


def environment(home: str | Path) -> dict[str, str]:
    """Returns the variables with which a `feast` process works on what was published to `home` (run it in the feature repository)."""
    home = Path(home).resolve()
    return {"LONGREC_HOME": str(home), "FEAST_FS_YAML_FILE_PATH": str(home / "feast" / "feature_store.yaml")}


def publish(features_dir: str | Path, home: str | Path, repo_dir: str | Path, *, key: str = "") -> PublishReport:
    """Returns counts after making feature tables the ones that `home` serves, offline and online; all at once, by one rename.

    Args:
        features_dir: written by `features.build`.
        home: LONGREC_HOME.
        repo_dir: the feature repository (feature_store.yaml, definitions.py).
        key: names the code that publishes. Where `home` points to a version made of equal tables under this key, and its online store
            answers, that version stays and nothing is done; always published anew when empty.

    Raises:
        DataError: the feature tables are incomplete or were changed.
        StoreError: the feature repository is missing, another publish is running, or Feast failed.
    """
    tables, home = Path(features_dir), Path(home).resolve()
    manifest = _checked_manifest(tables)
    version = home / "store" / f"{manifest['version']}-{uuid.uuid4().hex[:6]}"
    with _locked(home):
        if key and _is_current(home, manifest, key):
            return _publish_report(home / "store" / str(_current(home)), manifest, was_current=True)
        try:
            with files.disk_errors(version):
                _copy(tables, version / "features")
            _write_settings(Path(repo_dir), version)
            files.write_json(version / "feast" / "key.json", {**_key(key), "before": _before(home, manifest.get("dataset_hash"))})
            published = Published(version, manifest, Schema.load(version / "features" / "schema.json"))
            _add_tail(published.path, _tail_rows([], 0))
            with _feast_errors("publishing failed"):
                slices, verified = _fill(published, Path(repo_dir))
                carried = _carry(home, published, Path(repo_dir))
        except BaseException:
            _remove(version)
            raise
        _switch(home, version)
    return _publish_report(version, manifest, online_slices=slices, num_verified=verified, num_carried=carried)


def push(home: str | Path, repo_dir: str | Path | None, events: pa.Table) -> PushReport:
    """Returns counts after adding live events to the histories that `home` serves, online and offline.

    Events may come late, twice and in any order: what is stored in the end is the same. A push that failed or was killed may have stored
    some of its events; push them again. Opens the feature store; a process that pushes often keeps a `Pusher`.

    Args:
        home, repo_dir: as for `OnlineStore`.
        events: user_id, the history codec's columns (see `history.arrow_schema`), and `created` where a row may have come in late; times as
            int64 ms or timestamps. Others are dropped.

    Raises:
        DataError: the events do not fit the schema, or one has the key of another event; see `pushed.conform`.
        StoreError: nothing was published, another push or publish does not end, or Feast failed.
    """
    return Pusher(home, repo_dir).push(events)


class Pusher:
    """Adds live events to what `home` serves, and follows it when a new version is published. Arguments and errors as of `push`."""

    def __init__(self, home: str | Path, repo_dir: str | Path | None = None) -> None:
        self._home, self._repo_dir = Path(home).resolve(), repo_dir
        self._door = _Door(Published.open(self._home), repo_dir)

    @property
    def schema(self) -> Schema:
        """The published schema."""
        return self._door.published.schema

    @property
    def late_events(self) -> Literal["hold", "ignore"]:
        """What the published histories were built with (`DataConfig.late_events`)."""
        return "ignore" if self._door.published.manifest.get("late_events") == "ignore" else "hold"

    def push(self, events: pa.Table) -> PushReport:
        """Returns counts after adding events; see the function `push`."""
        with _locked(self._home, PUSH_WAIT_SECONDS):
            if _current(self._home) not in (None, self._door.published.path.name):
                self._door = _Door(Published.open(self._home), self._repo_dir)
            self._door.check_online()
            return _push(self._door, pushed.conform(events, self.schema, self.late_events), _refuse_another)


def retrieve(dataset_dir: str | Path, home: str | Path, repo_dir: str | Path, out_dir: str | Path, data: DataConfig,
             seed: int) -> RetrieveReport:
    """Returns counts after writing the histories of a dataset's requests, read through the feature store.

    Feast is asked for one row per user, a bounded number of users at a time, as of the end of the published log: pushed events are not
    in it, so that the same dataset gives the same histories. Requests are offsets into the users' timelines:
    the events strictly before the moment, the `data.max_history` most recent of them.

    Args:
        dataset_dir: the dataset that was published; its targets are used.
        home, repo_dir: as for `publish`.
        out_dir: new, empty, or histories that are replaced.
        data: bounds and shares of the split.
        seed: of the sample of requests, where `data.max_requests` asks for one.

    Raises:
        DataError: the dataset cannot be used or has no request.
        SchemaMismatch: the store was published for another schema.
        StoreError: nothing, or another dataset, was published; or Feast lost a row.
    """
    source, published = layout.Dataset.open(dataset_dir), Published.open(home)
    _check_same(source, published)
    requests = _Requests.of(source).sample(data.max_requests, seed)
    door = _Door(published, repo_dir)
    with HistoriesWriter(out_dir, source.schema) as writer:
        cut = _write_timelines(door, writer, requests, data)
        targets, target_ends = requests.targets(source)
        items = door.items(layout.int64_of(source.items(), ITEM_ID))
        warmup_end, split_moment = split_moments(requests.moments, data.warmup_fraction, data.eval_fraction)
        splits = split_names(requests.moments, warmup_end, split_moment)
        table = pa.table({
            REQUEST_ID: requests.request_ids, "user_row": cut.user_rows, TIMESTAMP: requests.moments, "event_start": cut.starts,
            "event_end": cut.ends, "target_start": np.append(0, target_ends[:-1]), "target_end": target_ends,
            "split": pa.array(splits, pa.string())})
        manifest = {
            "dataset": source.name, "dataset_facts": source.facts, "dataset_hash": source.facts.get("content_hash"),
            "store_version": published.path.name,
            "time_range_ms": [int(requests.moments[0]), int(requests.moments[-1])], "warmup_end_ms": warmup_end,
            "split_moment_ms": split_moment, "max_history": data.max_history, "seed": seed,
            "splits": {name: splits.count(name) for name in SPLITS}, "history_length": layout.quantiles(cut.ends - cut.starts)}
        writer.finish(cut.users, table, targets, items, manifest)
        return _retrieve_report(manifest, cut, targets, items)


def version_before(home: str | Path, data_uri: str) -> str:
    """Returns what names the published version that a dataset is compared with by the checks of its events; empty for none.

    It stays the same when the dataset itself has been published meanwhile, so that a check of equal data is not done again for that.

    Args:
        home: LONGREC_HOME.
        data_uri: of the dataset.

    Raises:
        DataError: there is no dataset.
    """
    return _before(Path(home).resolve(), location.read_json(data_uri, "dataset.json").get("facts", {}).get("content_hash"))


class OnlineStore:
    """The online door, for serving. Follows `home` when a new version is published.

    Args:
        home: LONGREC_HOME.
        repo_dir: what relative paths in feature_store.yaml are relative to; None where there are none.
        schema: what the caller works with; None to take the published one as it is.

    Raises:
        StoreError: nothing was published, the online store is gone, or the registry was made for another schema.
        SchemaMismatch: another schema than `schema` was published; lists the fields.
    """

    def __init__(self, home: str | Path, repo_dir: str | Path | None = None, *, schema: Schema | None = None) -> None:
        self._home, self._repo_dir, self._expected = Path(home), repo_dir, schema
        self._door = self._open()

    @property
    def schema(self) -> Schema:
        """The published schema."""
        return self._door.published.schema

    @property
    def version(self) -> str:
        """Name of the published version that is being read."""
        return self._door.published.path.name

    def fetch(self, user_ids: Sequence[int], *, before_ms: int | None = None, max_history: int | None = None) -> list[UserRows]:
        """Returns what is known of each user, in the order asked for; an unknown user has an empty history and no features.

        Args:
            user_ids: any number, repeats allowed.
            before_ms: only events strictly before this moment; None for all.
            max_history: only so many of them, the most recent; None for all.

        Raises:
            DataError: a stored history is corrupted.
            StoreError: the online store cannot be read.
        """
        if _current(self._home) not in (None, self.version):
            self._door = self._open()
        stored = _read_online(self._door, [int(user_id) for user_id in user_ids])
        return [row.cut(self.schema, before_ms, max_history) for row in stored]

    def _open(self) -> _Door:
        published = Published.open(self._home)
        if self._expected is not None and (lines := self._expected.differences(published.schema)):
            raise SchemaMismatch(f"the feature store at {self._home} was published for another schema", found="; ".join(lines),
                                 fix="Publish the features of this dataset, or serve a model of the published one.")
        door = _Door(published, self._repo_dir)
        door.check_online()
        return door


class OfflineStore:
    """The offline door to what the online one serves: published and pushed events, from the tables on disk. For looking and for proof;
    histories to train on come from `retrieve`.

    Args, Raises: as for `OnlineStore`.
    """

    def __init__(self, home: str | Path, repo_dir: str | Path | None = None) -> None:
        self._door = _Door(Published.open(home), repo_dir)

    @property
    def schema(self) -> Schema:
        """The published schema."""
        return self._door.published.schema

    def fetch(self, user_ids: Sequence[int], *, before_ms: int | None = None, max_history: int | None = None) -> list[UserRows]:
        """Returns what is known of each user; arguments and result as of `OnlineStore.fetch`.

        Raises:
            DataError: a stored history is corrupted.
            StoreError: the offline store cannot be read.
        """
        found: dict[int, UserRows] = {}
        ids = np.unique(np.array([int(user_id) for user_id in user_ids], np.int64))
        for start in range(0, len(ids), ONLINE_USERS):
            rows = self._door.latest(ids[start:start + ONLINE_USERS]).to_pylist()
            for stored in (_Stored.of(row.pop(USER_ID), row, self.schema) for row in rows):
                found[stored.user_id] = stored.cut(self.schema, before_ms, max_history)
        return [found[int(user_id)] for user_id in user_ids]


class _Door:
    """A published version, opened with Feast."""

    def __init__(self, published: Published, repo_dir: str | Path | None) -> None:
        self.published = published
        with _feast_errors(f"the feature store at {published.path} cannot be opened"):
            self.feast = _open_feast(published.path, repo_dir)
            self.service = self.feast.get_feature_service(SERVICE)
        found = self.service.tags.get("schema")
        if found != published.schema.fingerprint:
            raise StoreError("the registry was made for another schema than the feature tables", found=found,
                             expected=f"{published.schema.fingerprint} ({published.schema.name})", fix=PUBLISH_FIRST)
        names = [(view.name, feature.name) for view in self.service.feature_view_projections for feature in view.features]
        self._references = [f"{view}:{name}" for view, name in names if name not in (features.HISTORY_LENGTH, features.TAIL_LENGTH)]
        if missing := {features.HISTORY, features.TAIL, features.TAIL_BASE} - {name for _, name in names}:
            raise StoreError(f"the feature store at {published.path} was published by another version of longrec",
                             found=f"no {', '.join(sorted(missing))} in {SERVICE}", fix=PUBLISH_FIRST)
        self._base = [f"{view}:{name}" for view, name in names if view != "user_tail"]
        self._views = [(self.feast.get_feature_view(view), [name for owner, name in map(_split, self._references) if owner == view])
                       for view in dict.fromkeys(view for view, _ in names)]
        self._provider = self.feast._get_provider()

    def users(self, user_ids: Int64) -> pa.Table:
        """Returns one row per user (sorted, unique ids): history, history_length, user features; null where there is nothing."""
        return self._historical(self._base, USER_ID, user_ids)

    def latest(self, user_ids: Int64) -> pa.Table:
        """Returns one row per user (sorted, unique ids) as of the last push: history, tail and its base, user features."""
        table = self._historical(self._references, USER_ID, user_ids, max(self.log_end_us, _last_stamp(self.published.path)))
        return table.drop_columns([features.EVENT_TIME])

    @property
    def log_end_us(self) -> int:
        """Time of the last event of the published log."""
        return int(self.published.manifest["time_range_ms"][1]) * 1000

    def write(self, fold: pa.Table, tail: pa.Table) -> None:
        """Writes rows of user_history, then of user_tail, to the online store."""
        with _feast_errors("the online store cannot be written"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if fold.num_rows:
                self.feast.write_to_online_store("user_history", df=fold.to_pandas())
            if tail.num_rows:
                self.feast.push("user_tail_push", tail.to_pandas())

    def history_lengths(self, user_ids: Int64) -> Int64:
        """Returns the number of events of each user (sorted, unique ids)."""
        references = [f"user_history:{features.HISTORY_LENGTH}"]
        parts = [self._historical(references, USER_ID, ids).column(features.HISTORY_LENGTH).fill_null(0) for ids in _spans(user_ids)]
        return np.concatenate([np.asarray(part, np.int64) for part in parts])

    def items(self, item_ids: Int64) -> pa.Table:
        """Returns item_id and the item features of each item (sorted, unique ids)."""
        declared = self.published.schema.item[1:]
        references = [f"item_features:{feature.name}" for feature in declared]
        parts = [self._historical(references, ITEM_ID, ids) if references else pa.table({ITEM_ID: ids}) for ids in _spans(item_ids)]
        table = pa.concat_tables(parts)
        return pa.table({ITEM_ID: table.column(ITEM_ID), **_restored(table, declared)})

    def online(self, user_ids: list[int]) -> list[dict[str, Any]]:
        """Returns the stored values of each user by feature name, None where there is none, in the order asked for."""
        return [row for start in range(0, len(user_ids), ONLINE_USERS) for row in self._online(user_ids[start:start + ONLINE_USERS])]

    def _online(self, user_ids: list[int]) -> list[dict[str, Any]]:
        """Asks Feast's online store view by view: `get_online_features` copies each value into an answer and parses references anew."""
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value

        rows: list[dict[str, Any]] = [{} for _ in user_ids]
        with _feast_errors("the online store cannot be read"):
            keys = [EntityKey(join_keys=[USER_ID], entity_values=[Value(int64_val=user_id)]) for user_id in user_ids]
            for (_, names), answers in zip(self._views, self._read_views(keys), strict=True):
                for row, (_, values) in zip(rows, answers, strict=True):
                    row.update({name: _value(values[name]) if values and name in values else None for name in names})
        return rows

    def _read_views(self, keys: list[Any]) -> list[list[tuple[Any, Any]]]:
        """Returns what Feast's online store answers for each view. Redis keeps all views of a user under one key: one trip for all."""
        config, online = self.feast.config, self._provider.online_store
        if config.online_store.type != "redis":  # Feast's stores may change the list of names that they are given
            return [online.online_read(config, view, keys, list(names)) for view, names in self._views]
        asked = [online._generate_hset_keys_for_features(view, list(names)) for view, names in self._views]
        places = online._generate_redis_keys_for_entities(config, keys)
        replies = iter(online._read_hash_fields(config, [(place, fields) for _, fields in asked for place in places]))
        return [online._convert_redis_values_to_protobuf([next(replies) for _ in keys], view.name, names)
                for (view, _), (names, _) in zip(self._views, asked, strict=True)]

    def check_online(self) -> None:
        """Raises StoreError when the online store cannot answer."""
        settings = self.feast.config.online_store
        if settings.type == "sqlite" and not (Path(self.feast.config.repo_path) / settings.path).is_file():
            raise StoreError("the online store is gone", found=f"no file {settings.path}", fix=PUBLISH_FIRST)
        self.online([0])

    def _historical(self, wanted: Any, key: str, ids: Int64, moment_us: int | None = None) -> pa.Table:
        """Returns one row per id, in their order, as of a moment, by default the end of the log."""
        import pandas as pd

        moment = pd.Timestamp(self.log_end_us if moment_us is None else moment_us, unit="us", tz="UTC")
        with _feast_errors("the offline store cannot be read"):
            rows = pd.DataFrame({key: ids, features.EVENT_TIME: moment})
            with warnings.catch_warnings():  # Feast turns on warnings that are about its own libraries
                warnings.simplefilter("ignore")
                table: pa.Table = self.feast.get_historical_features(entity_df=rows, features=wanted).to_arrow()
            shutil.rmtree(self.published.path / "feast" / "staging", ignore_errors=True)  # Spark's answer, which Feast leaves there
        table = table.take(pa.array(np.argsort(layout.int64_of(table, key), kind="stable")))
        if not np.array_equal(layout.int64_of(table, key), ids):
            raise StoreError("the offline store did not return one row per id", found=f"{table.num_rows} rows", expected=f"{len(ids)} rows")
        return table


@dataclasses.dataclass(frozen=True, slots=True)
class _Stored:
    """What a store holds of one user, not yet merged: base, tail, events of the base that the tail continues, user features."""

    user_id: int
    base: pa.RecordBatch
    tail: pa.RecordBatch
    tail_base: int
    features: dict[str, Any] | None

    @classmethod
    def of(cls, user_id: int, answer: dict[str, Any], schema: Schema) -> _Stored:
        base, tail, tail_base = (answer.pop(name) for name in (features.HISTORY, features.TAIL, features.TAIL_BASE))
        return cls(user_id, _history_of(base, schema), _history_of(tail, schema), int(tail_base or 0), _features_of(answer, schema))

    def cut(self, schema: Schema, before_ms: int | None, max_history: int | None) -> UserRows:
        """Returns base and tail as one history, of it what is before a moment, of that the end."""
        events = history.merged(self.base, self.tail, schema)
        events = events if before_ms is None else history.prefix_before(events, before_ms)
        return UserRows(self.user_id, events if max_history is None else history.most_recent(events, max_history), self.features)


def _read_online(door: _Door, user_ids: list[int]) -> list[_Stored]:
    """Returns what is stored online of each user, in the order asked for.

    Base and tail are two reads of the store. A fold between them (base longer, tail cleared) shows as a base that is shorter than
    the tail says; such users are read again. The other mix, old tail and new base, holds some events twice, and merging drops them.
    """
    stored = [_Stored.of(user_id, answer, door.published.schema) for user_id, answer in zip(user_ids, door.online(user_ids), strict=True)]
    for _ in range(READS):
        torn = [row for row, user in enumerate(stored) if user.base.num_rows < user.tail_base]
        if not torn:
            return stored
        again = [user_ids[row] for row in torn]
        for row, answer in zip(torn, door.online(again), strict=True):
            stored[row] = _Stored.of(user_ids[row], answer, door.published.schema)
    raise StoreError("the online store holds a tail without its base", found=f"{len(torn)} users, for example {again[0]}",
                     fix=PUBLISH_FIRST)


def _refuse_another(user: int, events: pa.RecordBatch, known: pa.RecordBatch) -> None:
    pushed.check_same(user, events, known)


def _keep_the_stored(user: int, events: pa.RecordBatch, known: pa.RecordBatch) -> None:
    """What the new log says of an event is taken, whatever was pushed before."""


def _push(door: _Door, events: pa.Table, on_repeat: Callable[[int, pa.RecordBatch, pa.RecordBatch], None]) -> PushReport:
    """Returns counts after adding events; the caller holds the lock.

    The rows go to disk first, as the offline side of Feast; a part of tails is complete with its rename. Then they go online, then
    the part is noted as applied; where that note is missing, the next push writes the part online again.
    """
    _recover(door)
    num_new = num_users = num_folds = 0
    everyone = list(pushed.by_user(events))
    for start in range(0, len(everyone), PUSH_USERS):
        group = everyone[start:start + PUSH_USERS]
        changes = [change for (user, mine), stored in zip(group, _read_online(door, [user for user, _ in group]), strict=True)
                   if (change := _Change.of(stored, mine, door.published.schema, on_repeat))]
        if not changes:
            continue
        stamp = max(door.log_end_us, _last_stamp(door.published.path)) + 1
        fold, tail = _fold_rows(changes, stamp), _tail_rows(changes, stamp)
        if fold.num_rows:
            files_in = door.published.path / "features" / "user_history"
            _place(door.published.path, fold, files_in / f"{FOLD}{stamp:020d}.parquet")
        _add_tail(door.published.path, tail, stamp)
        door.write(fold, tail)
        _note_applied(door.published.path, stamp)
        num_new, num_users = num_new + sum(change.num_new for change in changes), num_users + len(changes)
        num_folds += fold.num_rows
    _compact(door.published.path)
    return PushReport(events.num_rows, num_new, num_users, num_folds)


@dataclasses.dataclass(frozen=True, slots=True)
class _Change:
    """A user's new rows, packed: the base (None where it stays), the tail, and their lengths."""

    user_id: int
    base: bytes | None
    base_length: int
    tail: bytes
    tail_length: int
    num_new: int

    @classmethod
    def of(cls, stored: _Stored, events: pa.RecordBatch, schema: Schema,
           on_repeat: Callable[[int, pa.RecordBatch, pa.RecordBatch], None]) -> _Change | None:
        """Returns the rows after adding events (of this user, sorted, unique), None where all of them are stored already."""
        known = history.merged(stored.base, stored.tail, schema)
        fresh, repeated, places = pushed.fresh(events, known)
        on_repeat(stored.user_id, events.take(pa.array(repeated)), known.take(pa.array(places)))
        if not fresh.num_rows:
            return None
        if schema.has_baskets:
            mine = pa.Table.from_batches([history.merged(known, fresh, schema)])
            pushed.check_baskets(mine.append_column(USER_ID, pa.array(np.full(mine.num_rows, stored.user_id))), schema)
        base, tail = stored.base, history.merged(stored.tail, fresh, schema)
        folds = tail.num_rows > TAIL_EVENTS
        if folds:
            base, tail = history.merged(base, tail, schema), history.empty(schema)
        return cls(stored.user_id, history.pack(base, schema) if folds else None, base.num_rows, history.pack(tail, schema),
                   tail.num_rows, fresh.num_rows)


def _fold_rows(changes: Sequence[_Change], stamp: int) -> pa.Table:
    """Returns the rows of user_history of the changes that have a new base."""
    mine = [change for change in changes if change.base is not None]
    return pa.table({
        **_stamped(mine, stamp), features.HISTORY: pa.array([change.base for change in mine], pa.binary()),
        features.HISTORY_LENGTH: pa.array([change.base_length for change in mine], pa.int64())})


def _tail_rows(changes: Sequence[_Change], stamp: int) -> pa.Table:
    """Returns the rows of user_tail of the changes."""
    return pa.table({
        **_stamped(changes, stamp), features.TAIL: pa.array([change.tail for change in changes], pa.binary()),
        features.TAIL_LENGTH: pa.array([change.tail_length for change in changes], pa.int64()),
        features.TAIL_BASE: pa.array([change.base_length for change in changes], pa.int64())})


def _stamped(changes: Sequence[_Change], stamp: int) -> dict[str, pa.Array]:
    times = pa.array(np.full(len(changes), stamp), pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    return {USER_ID: pa.array([change.user_id for change in changes], pa.int64()), features.EVENT_TIME: times, CREATED: times}


def _tail_dir(version: Path) -> Path:
    return version / "features" / "user_tail"


def _add_tail(version: Path, rows: pa.Table, stamp: int = 0) -> None:
    _tail_dir(version).mkdir(exist_ok=True)
    _place(version, rows, _tail_dir(version) / f"{TAIL_PART}{stamp:020d}.parquet")


def _place(version: Path, table: pa.Table, path: Path) -> None:
    """Writes a Parquet file and moves it to its place by one rename; Feast reads every file that is there."""
    temporary = version / "feast" / f".{path.name}.tmp"
    with open(temporary, "wb") as stream:
        pq.write_table(table, stream, compression="zstd", use_dictionary=False)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def _stamp_of(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _last_stamp(version: Path) -> int:
    """Returns the feature time of the last push, microseconds; 0 for none."""
    return max((_stamp_of(path) for path in _tail_dir(version).glob(f"{TAIL_PART}*.parquet")), default=0)


def _note_applied(version: Path, stamp: int) -> None:
    files.write_json(version / "feast" / "pushed.json", {"applied_us": stamp})


def _recover(door: _Door) -> None:
    """Finishes the push that was killed between disk and online store; what it had not made complete on disk is removed."""
    version, note = door.published.path, door.published.path / "feast" / "pushed.json"
    applied = int(files.read_json(note)["applied_us"]) if note.is_file() else 0
    folds, last = version / "features" / "user_history", _last_stamp(version)
    for path in folds.glob(f"{FOLD}*.parquet"):
        if _stamp_of(path) > last:
            path.unlink()
    for path in sorted(_tail_dir(version).glob(f"{TAIL_PART}*.parquet")):
        if (stamp := _stamp_of(path)) > applied:
            fold = folds / f"{FOLD}{stamp:020d}.parquet"
            door.write(pq.read_table(fold) if fold.is_file() else _fold_rows([], 0), pq.read_table(path))
            _note_applied(version, stamp)


def _compact(version: Path) -> None:
    """Makes one part of many, with the last row of each user. Rows that are there twice meanwhile are equal."""
    paths = sorted(_tail_dir(version).glob(f"{TAIL_PART}*.parquet"))
    if len(paths) < TAIL_PARTS:
        return
    table = _latest_rows(pa.concat_tables(pq.ParquetFile(path).read() for path in paths))
    _place(version, table, paths[-1])
    for path in paths[:-1]:
        path.unlink()


def _latest_rows(table: pa.Table) -> pa.Table:
    """Returns the last row of each user, sorted by user."""
    users = layout.int64_of(table, USER_ID)
    times = np.asarray(table.column(features.EVENT_TIME).cast(pa.int64()), np.int64)
    order = np.lexsort((times, users))
    return table.take(pa.array(order[np.append(users[order[1:]] != users[order[:-1]], True)[:len(order)]]))


def _carry(home: Path, published: Published, repo_dir: Path) -> int:
    """Returns the number of events pushed to the version before that were pushed again, for the feature tables lack them."""
    try:
        before = Published.open(home)
    except StoreError:
        return 0
    users = _users_pushed(before.path)
    if not len(users):
        return 0
    old, new = before.schema, published.schema
    if old.name != new.name or not history.arrow_schema(old).equals(history.arrow_schema(new)):
        logger.warning("pushed events of %d users are not carried over: they were recorded by %s, the new version is of %s", len(users),
                       old.name, new.name)
        return 0
    door, num_carried = _Door(published, repo_dir), 0
    for start in range(0, len(users), PUSH_USERS):
        events = _pushed_events(before, users[start:start + PUSH_USERS])
        num_carried += _push(door, pushed.conform(events, published.schema), _keep_the_stored).num_new
    return num_carried


def _users_pushed(version: Path) -> Int64:
    """Returns the users whom a version has pushed events of, sorted."""
    if not _tail_dir(version).is_dir():
        return np.zeros(0, np.int64)
    return np.unique(layout.int64_of(pq.read_table(_tail_dir(version), columns=[USER_ID]), USER_ID))


def _pushed_events(before: Published, users: Int64) -> pa.Table:
    """Returns user_id and events of users: what a version has of them now, less what it was published with."""
    wanted = [(USER_ID, "in", users.tolist())]
    tails = _latest_rows(pq.read_table(_tail_dir(before.path), filters=wanted)).to_pylist()
    bases = pq.read_table(before.path / "features" / "user_history", filters=wanted)
    end, last = int(before.manifest["time_range_ms"][1]) * 1000, _last_stamp(before.path)
    times = np.asarray(bases.column(features.EVENT_TIME).cast(pa.int64()), np.int64)
    first = {row[USER_ID]: row[features.HISTORY] for row in bases.filter(pa.array(times <= end)).to_pylist()}
    folded = _latest_rows(bases.filter(pa.array((times > end) & (times <= last)))).to_pylist()
    folds = {row[USER_ID]: row[features.HISTORY] for row in folded}
    parts = []
    for row in tails:
        user, schema = row[USER_ID], before.schema
        now = history.merged(_history_of(folds.get(user), schema), _history_of(row[features.TAIL], schema), schema)
        mine = pushed.fresh(now, _history_of(first.get(user), schema))[0] if now.num_rows else now
        parts.append(pa.Table.from_batches([mine]).append_column(USER_ID, pa.array(np.full(mine.num_rows, user))))
    return pa.concat_tables(parts).unify_dictionaries()


@dataclasses.dataclass(frozen=True, slots=True)
class _Requests:
    """Requests sorted by (moment, request_id): ids, users, moments (ms), and where their targets are: part, first row, end row."""

    request_ids: Int64
    user_ids: Int64
    moments: Int64
    parts: Int64
    starts: Int64
    ends: Int64

    @classmethod
    def of(cls, source: layout.Dataset) -> _Requests:
        """Returns all requests of a dataset."""
        columns: list[list[Int64]] = [[] for _ in dataclasses.fields(cls)]
        for part in range(source.num_parts):
            table = source.targets(part, [REQUEST_ID, USER_ID, TIMESTAMP])
            keys = [layout.int64_of(table, name) for name in (REQUEST_ID, USER_ID, TIMESTAMP)]
            starts = layout.group_starts(*keys)
            values = (*(key[starts] for key in keys), np.full(len(starts), part), starts, np.append(starts[1:], len(table)))
            for column, value in zip(columns, values, strict=True):
                column.append(value[:len(starts)])
        requests = cls(*(np.concatenate(column).astype(np.int64) for column in columns))
        ids, counts = np.unique(requests.request_ids, return_counts=True)
        if not len(ids):
            raise DataError(f"{source.path} holds no requests", expected="targets to train on", fix="Import with sampled negatives.")
        if len(doubles := ids[counts > 1]):
            raise DataError("the targets of a request must follow each other and share user and moment",
                            found=f"{len(doubles)} requests that do not, for example {doubles[0]}", fix=layout.AGAIN)
        return requests._take(np.lexsort((requests.request_ids, requests.moments)))

    def sample(self, max_requests: int, seed: int) -> _Requests:
        """Returns a seeded sample of at most `max_requests` requests, in the same order; all for 0."""
        if not 0 < max_requests < len(self.moments):
            return self
        return self._take(np.sort(np.random.default_rng(seed).choice(len(self.moments), max_requests, replace=False)))

    def targets(self, source: layout.Dataset) -> tuple[pa.Table, Int64]:
        """Returns item_id and labels of all targets, request after request, and the end offset of each request."""
        names, tables, counts = [ITEM_ID, *source.schema.task_names], [], self.ends - self.starts
        first, num_rows = np.zeros(len(counts), np.int64), 0
        for part in np.unique(self.parts).tolist():
            mine = np.flatnonzero(self.parts == part)
            tables.append(source.targets(part, names).take(pa.array(_ranges(self.starts[mine], counts[mine]))))
            first[mine] = num_rows + np.cumsum(counts[mine]) - counts[mine]
            num_rows += tables[-1].num_rows
        return pa.concat_tables(tables).take(pa.array(_ranges(first, counts))), np.cumsum(counts)

    def _take(self, rows: Int64) -> _Requests:
        return _Requests(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True, slots=True)
class _Cut:
    """The users' table, and for each request its user's row, its events' offsets, and whether older events were left out."""

    users: pa.Table
    user_rows: Int64
    starts: Int64
    ends: Int64
    bounded: npt.NDArray[np.bool_]


def _write_timelines(door: _Door, writer: HistoriesWriter, requests: _Requests, data: DataConfig) -> _Cut:
    """Returns the cut of all requests after writing the timelines of their users, a bounded number of users at a time."""
    user_ids, user_rows = np.unique(requests.user_ids, return_inverse=True)
    by_user = np.argsort(user_rows, kind="stable")
    request_ends = np.searchsorted(user_rows[by_user], np.arange(len(user_ids)), side="right")
    before, lower, tables = np.zeros(len(user_rows), np.int64), 0, []
    for start, end in _shards(door.history_lengths(user_ids), data.shard_users):
        rows = door.users(user_ids[start:end])
        timelines, offsets = _timelines(rows, door.published.schema)
        times = history.timestamps(timelines)
        for row in range(start, end):
            mine, lower = by_user[lower:request_ends[row]], int(request_ends[row])
            own = times[offsets[row - start]:offsets[row - start + 1]]
            before[mine] = np.searchsorted(own, requests.moments[mine], side="left")
        offsets += writer.add(timelines)[0]
        spans = {"user_row": np.arange(start, end), USER_ID: user_ids[start:end], "event_start": offsets[:-1], "event_end": offsets[1:]}
        tables.append(pa.table({**spans, **_restored(rows, door.published.schema.user)}))
    users = pa.concat_tables(tables)
    first = layout.int64_of(users, "event_start")[user_rows]
    ends = first + before
    return _Cut(users, user_rows.astype(np.int64), np.maximum(first, ends - data.max_history), ends, before > data.max_history)


def _timelines(rows: pa.Table, schema: Schema) -> tuple[pa.RecordBatch, Int64]:
    """Returns the events of all users of a retrieval, one after another, and the offsets of each user in them (one more than users)."""
    parts = [_history_of(value.as_buffer(), schema) for value in rows.column(features.HISTORY)]
    lengths = np.array([part.num_rows for part in parts], np.int64)
    expected = np.asarray(rows.column(features.HISTORY_LENGTH).fill_null(0), np.int64)
    if len(wrong := np.flatnonzero(lengths != expected)):
        raise StoreError("a history does not have its stated length", found=f"{lengths[wrong[0]]} events", expected=f"{expected[wrong[0]]}",
                         fix=PUBLISH_FIRST)
    return history.joined(parts, schema), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _retrieve_report(manifest: Mapping[str, Any], cut: _Cut, targets: pa.Table, items: pa.Table) -> RetrieveReport:
    kept, splits = cut.ends - cut.starts, manifest["splits"]
    lengths = layout.int64_of(cut.users, "event_end") - layout.int64_of(cut.users, "event_start")
    return RetrieveReport(
        num_requests=len(kept), num_warmup=splits["warmup"], num_train=splits["train"], num_eval=splits["eval"],
        num_targets=targets.num_rows, num_users=len(lengths), num_events=int(lengths.sum()), num_items=items.num_rows,
        users_without_history=int((lengths == 0).sum()), requests_without_history=int((kept == 0).sum()),
        requests_at_the_bound=int(cut.bounded.sum()), longest_history=int(kept.max()), split_moment_ms=manifest["split_moment_ms"])


def _history_of(payload: bytes | pa.Buffer | None, schema: Schema) -> pa.RecordBatch:
    return history.empty(schema) if payload is None else history.unpack(payload, schema)


def _features_of(answer: Mapping[str, Any], schema: Schema) -> dict[str, Any] | None:
    """Returns the user features with the types of the dataset, or None when there is no value at all."""
    if all(value is None for value in answer.values()):
        return None
    return {feature.name: _plain(answer.get(feature.name), feature) for feature in schema.user}


def _plain(value: Any, feature: Feature) -> Any:
    if value is None or value != value:  # NaN is how Feast stores a missing number
        return None
    return int(value) if feature.dtype == "int64" else value


def _split(reference: str) -> tuple[str, str]:
    view, _, name = reference.partition(":")
    return view, name


def _value(value: Any) -> Any:
    """Returns the value of a Feast Value; a miss is told by the value, for stores disagree about the status."""
    kind = value.WhichOneof("val")
    return None if kind is None else getattr(value, kind)


def _restored(table: pa.Table, declared: Sequence[Feature]) -> dict[str, pa.ChunkedArray]:
    return {feature.name: features.restored(table.column(feature.name), feature) for feature in declared}


def _ranges(starts: Int64, counts: Int64) -> Int64:
    """Returns starts[0], starts[0]+1, ... (counts[0] values), then those of starts[1], and so on."""
    ends = np.cumsum(counts)
    shifts: Int64 = np.repeat(starts - (ends - counts), counts)
    return np.arange(len(shifts)) + shifts


def _spans(ids: Int64) -> list[Int64]:
    return [ids[row:row + SLICE_IDS] for row in range(0, len(ids), SLICE_IDS)] or [ids]


def _shards(lengths: Int64, shard_users: int) -> Iterator[tuple[int, int]]:
    """Yields [start, end) rows of users: at most `shard_users` of them, and at most SLICE_EVENTS events unless one user has more."""
    ends, start = np.cumsum(lengths), 0
    while start < len(lengths):
        base = int(ends[start] - lengths[start])
        end = max(start + 1, min(start + shard_users, int(np.searchsorted(ends, base + SLICE_EVENTS, side="right"))))
        yield start, end
        start = end


def _check_same(source: layout.Dataset, published: Published) -> None:
    if lines := source.schema.differences(published.schema):
        raise SchemaMismatch("the feature store was published for another schema", found="; ".join(lines), fix=PUBLISH_FIRST)
    if source.facts.get("content_hash") != published.manifest.get("dataset_hash"):
        raise StoreError(f"the feature store holds features of another dataset than {source.path}", found=published.manifest.get("name"),
                         expected=source.name, fix=PUBLISH_FIRST)


def _checked_manifest(tables: Path) -> dict[str, Any]:
    """Returns the manifest of feature tables after comparing their content with it."""
    manifest: dict[str, Any] = files.read_json(tables / "manifest.json")
    for name, expected in manifest.get("files", {}).items():
        if not (tables / name).is_file() or files.sha256_of(tables / name) != expected:
            raise DataError(f"{tables / name} is missing or was changed", fix="Build the features again.")
    if (found := features.version_of(manifest.get("files", {}))) != manifest.get("version"):
        raise DataError(f"{tables / 'manifest.json'} was changed", found=f"version {manifest.get('version')}", expected=found,
                        fix="Build the features again.")
    return manifest


def _copy(source: Path, target: Path) -> None:
    """Copies a directory; the first error of a file is raised as it is."""
    try:
        shutil.copytree(source, target)
    except shutil.Error as error:
        raise OSError(errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO, str(error)) from error


def _publish_report(version: Path, manifest: Mapping[str, Any], *, online_slices: int = 0, num_verified: int = 0, num_carried: int = 0,
                    was_current: bool = False) -> PublishReport:
    counts = manifest["counts"]
    return PublishReport(version=str(version), fingerprint=manifest["fingerprint"], num_users=counts["num_users"],
                         num_events=counts["num_events"], num_items=counts["num_items"], online_slices=online_slices,
                         num_verified=num_verified, num_carried=num_carried, digest=manifest["version"], was_current=was_current)


def _is_current(home: Path, manifest: Mapping[str, Any], key: str) -> bool:
    """Returns whether `home` points to a whole version that was made of these feature tables under this key."""
    version = home / "store" / (_current(home) or "none")
    try:
        known, note = files.read_json(version / "features" / "manifest.json"), files.read_json(version / "feast" / "key.json")
        if known != manifest or {**note, **_key(key)} != note:
            return False
        if not all((version / "features" / name).is_file() for name in manifest["files"]):
            return False
        if "type: sqlite" in (version / "feast" / "feature_store.yaml").read_text(encoding="utf-8"):
            return all((version / "feast" / name).is_file() for name in ("online.db", "registry.db"))  # Feast costs seconds to ask
        return _verify(_Door(Published.open(home), None)) > 0
    except (OSError, DataError, StoreError):
        return False


def _before(home: Path, dataset_hash: str | None) -> str:
    """Returns the digest of the published version that is not of this dataset, or of the one before it; empty for none."""
    version = home / "store" / (_current(home) or "none")
    try:
        manifest = files.read_json(version / "features" / "manifest.json")
        if dataset_hash != manifest.get("dataset_hash"):
            return str(manifest["version"])
        return str(files.read_json(version / "feast" / "key.json")["before"])
    except (DataError, KeyError):
        return ""


def _key(key: str) -> dict[str, str]:
    return {"key": key, "overlay": os.environ.get(OVERLAY, "")}


def _write_settings(repo_dir: Path, version: Path) -> None:
    """Writes feature_store.yaml of the repository into the version, with the paths of the default home moved there."""
    overlay = os.environ.get(OVERLAY, "")
    settings = f"overlays/{overlay}/feature_store.yaml" if overlay else "feature_store.yaml"
    for name in ("feature_store.yaml", "definitions.py", settings):
        if not (repo_dir / name).is_file():
            raise StoreError(f"no feature repository at {repo_dir}", found=f"no {name}", fix=f"Set LONGREC_FEATURE_REPO to its folder, or "
                             f"{OVERLAY} to one of its overlays.")
    (version / "feast").mkdir()
    text = (repo_dir / settings).read_text(encoding="utf-8")
    if "type: redis" in text:  # one Redis serves all versions and homes: each version's keys end with a name of its own
        text = text.replace("project: longrec\n", f"project: {_project_of(version)}\n")
    (version / "feast" / "feature_store.yaml").write_text(text.replace(f"{DEFAULT_HOME}/", f"{version}/"), encoding="utf-8")


def _project_of(version: Path) -> str:
    place = hashlib.sha256(str(version.parent).encode()).hexdigest()[:8]
    return f"longrec_{version.name.replace('-', '_')}_{place}"


def _remove(version: Path) -> None:
    """Removes a version, and its keys from an online store that is not in it; whatever goes wrong, for nobody reads it any more."""
    with contextlib.suppress(Exception):
        if "type: redis" in (version / "feast" / "feature_store.yaml").read_text(encoding="utf-8"):
            feast = _open_feast(version, None)
            feast._get_provider().online_store.teardown(feast.config, feast.list_feature_views(), feast.list_entities())
    shutil.rmtree(version, ignore_errors=True)


def _open_feast(version: Path, repo_dir: str | Path | None) -> Any:
    from feast import FeatureStore
    from feast.repo_config import load_repo_config

    folder = version / "feast"
    config = load_repo_config(Path(repo_dir or folder).resolve(), folder / "feature_store.yaml")
    address = str(getattr(config.online_store, "connection_string", ""))
    if address.startswith("$"):
        raise StoreError("the address of the online store is not set", found=f"{address} as it is", expected="host:port",
                         fix=f"Set {address.strip('${}')}, for example to 127.0.0.1:6379.")
    return FeatureStore(config=config)


def _fill(published: Published, repo_dir: Path) -> tuple[int, int]:
    """Returns (materializations, users compared) after applying the declarations and filling the online store of a new version."""
    feast = _open_feast(published.path, repo_dir)
    feast.apply(_declarations(repo_dir, published.path, feast.project))
    door = _Door(published, repo_dir)
    slices = _materialize(door)
    return slices, _verify(door)


def _declarations(repo_dir: Path, version: Path, project: str) -> list[Any]:
    """Returns the Feast objects of definitions.py, made for the tables of a version; the project only where it is the one in use."""
    import runpy

    from feast import Entity, FeatureService, FeatureView, Project
    from feast.data_source import DataSource

    before = os.environ.get("LONGREC_HOME")
    os.environ["LONGREC_HOME"] = str(version)
    try:
        values = runpy.run_path(str(repo_dir / "definitions.py")).values()
    finally:
        if before is None:
            del os.environ["LONGREC_HOME"]
        else:
            os.environ["LONGREC_HOME"] = before
    kinds = (Entity, FeatureView, FeatureService, DataSource, Project)
    return [value for value in values if isinstance(value, kinds) and not (isinstance(value, Project) and value.name != project)]


def _materialize(door: _Door) -> int:
    """Returns the number of materializations after filling the online store, a bounded number of bytes at a time."""
    online = {view.name for view in door.feast.list_feature_views() if view.online}
    tables = pq.read_table(door.published.path / "features" / "user_history", columns=[features.EVENT_TIME, features.HISTORY_LENGTH])
    counts = door.published.manifest["counts"]
    bytes_per_event = counts["history_bytes"] / max(counts["num_events"], 1)
    times = np.asarray(tables.column(features.EVENT_TIME).cast(pa.int64()), np.int64)
    slices = list(_time_slices(times, layout.int64_of(tables, features.HISTORY_LENGTH) * bytes_per_event))
    end = int(door.published.manifest["time_range_ms"][1]) * 1000
    jobs = [("user_history", *span) for span in slices] + [(name, end, end) for name in sorted(online - {"user_history", "user_tail"})]
    for name, start, stop in jobs:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            door.feast.materialize(_moment(start), _moment(stop), feature_views=[name])
        logger.debug("materialized %s: %s", name, printed.getvalue())
    return len(jobs)


def _time_slices(times_us: Int64, sizes: npt.NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """Yields (first, last) microseconds of consecutive slices of about SLICE_BYTES; rows of one time are in one slice."""
    order = np.argsort(times_us, kind="stable")
    times, ends = times_us[order], np.cumsum(sizes[order])
    row, done = 0, 0.0
    while row < len(times):
        full = min(int(np.searchsorted(ends, done + SLICE_BYTES)), len(times) - 1)
        last = int(times[full])
        yield int(times[row]), last
        row = int(np.searchsorted(times, last, side="right"))
        done = float(ends[row - 1])


def _verify(door: _Door) -> int:
    """Returns the number of users whose online history was compared with the tables: some of the first and the last part."""
    parts = sorted((door.published.path / "features" / "user_history").glob("*.parquet"))
    num_verified = 0
    for path in sorted({parts[0], parts[-1]}):
        with pq.ParquetFile(path) as part:
            table = part.read_row_group(part.num_row_groups - 1, columns=[USER_ID, features.HISTORY]).slice(0, 16)
        answers = door.online(layout.int64_of(table, USER_ID).tolist())
        for value, answer in zip(table.column(features.HISTORY), answers, strict=True):
            if answer[features.HISTORY] != value.as_py():
                raise StoreError("the online store does not return what was published", fix=PUBLISH_FIRST)
        num_verified += len(answers)
    return num_verified


def _moment(micros: int) -> datetime.datetime:
    return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=micros)


@contextlib.contextmanager
def _locked(home: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    (home / "store").mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    with open(home / "store" / ".lock", "w") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise StoreError(f"another publish or push to {home} is running", fix="Wait for it to end.") from error
                time.sleep(0.02)
        yield


def _current(home: Path) -> str | None:
    """Returns the name of the version that `home` points to, None for none."""
    try:
        return str((home / "store" / "current").readlink())
    except OSError:
        return None


def _switch(home: Path, version: Path) -> None:
    """Points `home` to a version by one rename; versions other than it and the one before are removed."""
    previous = _current(home)
    _link(home / "store" / "current", version.name)
    for name in ("features", "feast"):
        _link(home / name, f"store/current/{name}")
    for entry in (home / "store").iterdir():
        if entry.is_dir() and not entry.is_symlink() and entry.name not in (version.name, previous):
            _remove(entry)


def _link(link: Path, target: str) -> None:
    if link.is_symlink() and str(link.readlink()) == target:
        return
    token = uuid.uuid4().hex[:8]
    if link.is_dir() and not link.is_symlink():  # a plain `feast apply` was here
        os.replace(link, link.parent / "store" / f".replaced-{token}")
    temporary = link.parent / f".{link.name}.tmp-{token}"
    temporary.symlink_to(target)
    os.replace(temporary, link)


@contextlib.contextmanager
def _feast_errors(what: str) -> Iterator[None]:
    """Turns whatever Feast raises into a StoreError that says what was tried."""
    try:
        yield
    except (StoreError, DataError, SchemaMismatch):
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise StoreError(what, found=found, fix=PUBLISH_FIRST) from error
