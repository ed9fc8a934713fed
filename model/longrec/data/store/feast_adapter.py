"""FeastAdapter: a published version, opened with Feast. No other file imports Feast.

Online and offline reads return stored values; histories stay packed.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import logging
import shutil
import struct
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longrec import openlineage
from longrec.data.columns import (
    EVENT_TIME,
    HISTORY,
    HISTORY_LENGTH,
    TAIL,
    TAIL_BASE,
    TAIL_LENGTH,
    Column,
    Int64,
    from_stored_column,
    int64_column,
)
from longrec.data.store.tail_files import history_directory, last_feature_time
from longrec.data.store.versions import (
    PUBLISH_FIRST,
    SQLITE,
    PublishedVersion,
    read_settings,
    relative_table,
    table_path,
    table_pattern,
)
from longrec.errors import DataError, SchemaMismatch, StoreError
from longrec.retries import retried
from longrec.schema import ITEM_ID, USER_ID, Feature

SERVICE = "ranker_v1"
OFFLINE_BATCH_IDS = 200_000
"""Ids of one offline query for plain values."""
ONLINE_BATCH_USERS = 1_000
"""Largest number of users in one online query; SQLite allows some ten thousand."""

Values = dict[str, Any]
"""Stored values of a user by feature name; None for a missing one."""
Views = list[tuple[Any, list[str]]]
"""Feature views of a service, and the names of the features to read of each."""


class OnlineReader(Protocol):
    """Reads users from an online store, and removes them."""

    def __call__(self, user_ids: list[int]) -> list[Values]: ...

    def remove(self, user_ids: list[int]) -> int: ...


_LENGTHS = (HISTORY_LENGTH, TAIL_LENGTH)
_FIXED_FILES = ("features/manifest.json", "features/schema.json", "feast/feature_store.yaml")
"""Files that nothing writes once a version is published."""
_PROBED_USERS = 1_000
"""Users among whom one with few events is chosen."""
_BYTES_TAG = 0x0A  # field 1 of a Value, length-delimited
_MAX_VARINT_BYTES = 5
_INT64 = struct.Struct("<q")
_PROBE_USER = -(2**62) + 1
"""A negative id that needs 8 bytes; it shows how Feast writes an id into a key."""


class FeastAdapter:
    """A published version, opened with Feast.

    Args:
        published: the version.

    Raises:
        StoreError: Feast cannot open the version, or its registry is of another schema or of
            another version of longrec.
    """

    def __init__(self, published: PublishedVersion) -> None:
        self.published = published
        with feast_errors(f"the feature store at {published.path} cannot be opened"):
            self.feast = open_feast(published.path)
            self.service = self.feast.get_feature_service(SERVICE)
        self._check_registry()
        names = self._view_features()
        self._check_names(names)
        reader = _READERS.get(self.feast.config.online_store.type, ViewByViewReader)
        self._read_online = reader(self.feast, self._views(names))
        self._watched_files = self._list_watched_files()
        self._file_states = list(map(_file_state, self._watched_files))
        # Retrieval checks the length of a base history, and pushed events are not in it. Current
        # rows include the tail; their lengths are in the payloads.
        self._base_references: list[str] = []
        self._current_references: list[str] = []
        for view, name in names:
            reference = f"{view}:{name}"
            if view != "user_tail":
                self._base_references.append(reference)
            if name not in _LENGTHS:
                self._current_references.append(reference)

    def base_rows(self, user_ids: Int64) -> pa.Table:
        """Return base history, its length and the user features as of the end of the log.

        Args:
            user_ids: int64, sorted and unique; one row per user comes back, null for no value.
        """
        log_end_us = self.published.log_end_us
        return self._historical(
            self._base_references,
            USER_ID,
            user_ids,
            log_end_us,
        )

    def current_rows(self, user_ids: Int64) -> pa.Table:
        """Return base history, tail, its base length and user features as of the last push.

        Args:
            user_ids: int64, sorted and unique; one row per user comes back, null for no value.
        """
        last_push_us = last_feature_time(self.published.path)
        as_of_us = max(self.published.log_end_us, last_push_us)
        table = self._historical(
            self._current_references,
            USER_ID,
            user_ids,
            as_of_us,
        )
        return table.drop_columns([EVENT_TIME])

    def history_lengths(self, user_ids: Int64) -> Int64:
        """Return the number of events of each user (sorted, unique ids)."""
        references = [f"user_history:{HISTORY_LENGTH}"]
        lengths = []
        for ids in _batches(user_ids):
            table = self._historical(
                references,
                USER_ID,
                ids,
                self.published.log_end_us,
            )
            column = table.column(HISTORY_LENGTH).fill_null(0)
            lengths.append(np.asarray(column, np.int64))
        return np.concatenate(lengths)

    def items(self, item_ids: Int64) -> pa.Table:
        """Return item_id and item features of each item (sorted, unique ids)."""
        features = self.published.schema.item[1:]
        references = [f"item_features:{feature.name}" for feature in features]
        table = pa.table({ITEM_ID: item_ids})
        if references:
            tables = []
            for ids in _batches(item_ids):
                rows = self._historical(
                    references,
                    ITEM_ID,
                    ids,
                    self.published.log_end_us,
                )
                tables.append(rows)
            table = pa.concat_tables(tables)
        return pa.table(
            {
                ITEM_ID: table.column(ITEM_ID),
                **restore_features(table, features),
            }
        )

    def is_replaced(self) -> bool:
        """Return whether a file that this adapter has opened is gone or another one."""
        for path, opened in zip(self._watched_files, self._file_states, strict=True):
            found = _file_state(path)
            is_database = path.suffix == ".db"  # pushes write it: only its inode stays
            if found[0] != opened[0] or (found != opened and not is_database):
                return True
        return False

    def read_online(self, user_ids: list[int]) -> list[Values]:
        """Return the stored values of each user, in the given order.

        Raises:
            DataError: a stored value is damaged.
            StoreError: the online store cannot be read, or has lost its rows.
        """
        rows: list[Values] = []
        with feast_errors("the online store cannot be read"):
            for start in range(0, len(user_ids), ONLINE_BATCH_USERS):
                batch = user_ids[start : start + ONLINE_BATCH_USERS]
                rows += self._read_online(batch)
            if not all(map(_is_stored, rows)):
                self._check_not_empty()
        return rows

    def write_online(
        self,
        histories: pa.Table | None,
        tails: pa.Table,
    ) -> None:
        """Write rows of user_history, then of user_tail, to the online store.

        Raises:
            StoreError: the online store cannot be written.
        """
        with feast_errors("the online store cannot be written"), _no_warnings():
            if histories is not None and histories.num_rows:
                frame = histories.to_pandas()
                retried(self.feast.write_to_online_store, "user_history", df=frame)
            if tails.num_rows:
                retried(self.feast.push, "user_tail_push", tails.to_pandas())

    def remove_online(self, user_ids: list[int]) -> int:
        """Remove users from the online store; return the number of removed rows or keys.

        Raises:
            StoreError: the online store cannot be written, or is neither SQLite nor Redis.
        """
        with feast_errors("users cannot be removed from the online store"):
            return retried(self._read_online.remove, user_ids)

    def check_online(self) -> None:
        """Check that the online store answers.

        Raises:
            StoreError: it is gone or cannot be read.
        """
        settings = self.feast.config.online_store
        if settings.type == SQLITE:
            path = Path(settings.path)
            if not path.is_file():
                raise StoreError(
                    "the online store is gone",
                    found=f"no file {path}",
                    fix=PUBLISH_FIRST,
                )
        self.read_online([0])

    def _list_watched_files(self) -> list[Path]:
        paths = [self.published.path / name for name in _FIXED_FILES]
        settings = self.feast.config.online_store
        if settings.type == SQLITE:
            paths.append(Path(settings.path))
        return paths

    def _check_not_empty(self) -> None:
        """Check that a published user is there: the store is not empty where another is not."""
        if self._has(self._published_user):
            return
        user = _published_user(self.published.path)  # the one before may have been removed
        if not self._has(user):
            raise StoreError(
                "the online store has lost its rows",
                found=f"nothing of user {user}, who was published",
                fix=PUBLISH_FIRST,
            )

    def _has(self, user: int | None) -> bool:
        return user is None or _is_stored(self._read_online([user])[0])

    @functools.cached_property
    def _published_user(self) -> int | None:
        return _published_user(self.published.path)

    def _check_registry(self) -> None:
        schema = self.published.schema
        found = self.service.tags.get("schema")
        if found != schema.fingerprint:
            raise StoreError(
                "the registry was made for another schema than the feature tables",
                found=found,
                expected=f"{schema.fingerprint} ({schema.name})",
                fix=PUBLISH_FIRST,
            )

    def _view_features(self) -> list[tuple[str, str]]:
        """Return (view, feature) of all features of the service."""
        return [
            (view.name, feature.name)
            for view in self.service.feature_view_projections
            for feature in view.features
        ]

    def _check_names(self, names: list[tuple[str, str]]) -> None:
        found = {name for _, name in names}
        missing = {HISTORY, TAIL, TAIL_BASE} - found
        if missing:
            raise StoreError(
                f"the feature store at {self.published.path} was published by another version "
                "of longrec",
                found=f"no {', '.join(sorted(missing))} in {SERVICE}",
                fix=PUBLISH_FIRST,
            )

    def _views(self, names: list[tuple[str, str]]) -> Views:
        """Return the feature views and the features to read online."""
        names_of_view: dict[str, list[str]] = {}
        for view, name in names:
            names_of_view.setdefault(view, []).append(name)
        return [
            (self.feast.get_feature_view(view), features)
            for view, features in names_of_view.items()
        ]

    def _historical(
        self,
        references: list[str],
        key: str,
        ids: Int64,
        as_of_us: int,
    ) -> pa.Table:
        """Return one row per id, in their order, as of a time.

        Args:
            references: `view:feature` names.
            key: column of the ids.
            ids: int64, sorted and unique.
            as_of_us: the time, microseconds.
        """
        import pandas as pd

        as_of = pd.Timestamp(as_of_us, unit="us", tz="UTC")
        with feast_errors("the offline store cannot be read"), _no_warnings():
            entities = pd.DataFrame({key: ids, EVENT_TIME: as_of})
            job = self.feast.get_historical_features(entity_df=entities, features=references)
            table: pa.Table = job.to_arrow()
            # Feast leaves Spark's answer there.
            staging = self.published.path / "feast" / "staging"
            shutil.rmtree(staging, ignore_errors=True)
        order = np.argsort(int64_column(table, key), kind="stable")
        table = table.take(pa.array(order))
        if not np.array_equal(int64_column(table, key), ids):
            raise StoreError(
                "the offline store did not return one row per id",
                found=f"{table.num_rows} rows",
                expected=f"{len(ids)} rows",
                fix=PUBLISH_FIRST,
            )
        return table


class ViewByViewReader:
    """Reads users from any online store with Feast's `online_read`, one view at a time.

    The faster readers must return the same values. `get_online_features` would copy each
    value into an answer and parse references anew.
    """

    def __init__(
        self,
        feast: Any,
        views: Views,
    ) -> None:
        self._config = feast.config
        self._views = views
        self._store = feast._get_provider().online_store

    def __call__(self, user_ids: list[int]) -> list[Values]:
        rows: list[Values] = [{} for _ in user_ids]
        keys = [_entity_key(user_id) for user_id in user_ids]
        for view, names in self._views:
            answers = self._store.online_read(
                self._config,
                view,
                keys,
                list(names),  # some stores change the list
            )
            for row, (_, found) in zip(rows, answers, strict=True):
                row |= _values_of(found or {}, names)
        return rows

    def remove(self, user_ids: list[int]) -> int:
        raise StoreError(
            "users cannot be removed from an online store of this type",
            found=type(self._store).__name__,
            expected="sqlite or redis",
            fix="Delete the keys of the user there by hand.",
        )


class SqliteReader:
    """Reads users from SQLite.

    One statement reads all views, so all values are of the same time. A history is copied once.
    """

    def __init__(
        self,
        feast: Any,
        views: Views,
    ) -> None:
        self._config = feast.config
        self._store = feast._get_provider().online_store
        self._key_prefix = _key_prefix(feast.config)
        self._tables: list[str] = []
        self._names: list[list[str]] = []
        for view, names in views:
            self._tables.append(_sqlite_table(feast, view))
            self._names.append(names)
        self._missing: Values = {}
        for names in self._names:
            self._missing |= dict.fromkeys(names)
        self._single_user_query = self._query(1)

    def __call__(self, user_ids: list[int]) -> list[Values]:
        keys = [self._key_prefix + _INT64.pack(user_id) for user_id in user_ids]
        rows: dict[bytes, Values] = {}
        for key in keys:
            rows[key] = dict(self._missing)
        is_single = len(rows) == 1
        query = self._single_user_query if is_single else self._query(len(rows))
        parameters = [*rows] * len(self._tables)
        connection = self._store._get_conn(self._config)
        for key, name, value in connection.execute(query, parameters).fetchall():
            rows[key][name] = _parse_value(value)
        return [dict(rows[key]) for key in keys]

    def remove(self, user_ids: list[int]) -> int:
        """Delete all rows of users; their bytes in the file are overwritten."""
        connection = self._store._get_conn(self._config)
        connection.execute("PRAGMA secure_delete = ON")
        num_removed = 0
        with connection:
            for user_id in user_ids:
                key = self._key_prefix + _INT64.pack(user_id)
                for table in self._tables:
                    statement = f"DELETE FROM {table} WHERE entity_key = ?"  # noqa: S608
                    num_removed += connection.execute(statement, (key,)).rowcount
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return num_removed

    def _query(self, num_keys: int) -> str:
        keys = ", ".join("?" * num_keys)
        selects = []
        for table, names in zip(self._tables, self._names, strict=True):
            features = ", ".join(f"'{name}'" for name in names)
            selects.append(
                f"SELECT entity_key, feature_name, value FROM {table} "  # noqa: S608
                f"WHERE entity_key IN ({keys}) AND feature_name IN ({features})"
            )
        return " UNION ALL ".join(selects)


class RedisReader:
    """Reads users from Redis.

    One HMGET reads all views of a user: Feast stores them under one key per user.
    """

    def __init__(
        self,
        feast: Any,
        views: Views,
    ) -> None:
        from feast.infra.online_stores.redis import RedisClient

        self._config = feast.config
        self._store = feast._get_provider().online_store
        self._key_prefix = _key_prefix(feast.config)
        self._project = feast.project.encode()
        self._is_single_server = feast.config.online_store.client == RedisClient.redis
        self._names: list[str] = []
        self._fields: list[Any] = []
        for view, names in views:
            _, fields = self._store._generate_hset_keys_for_features(view, list(names))
            self._names += names
            self._fields += fields[:-1]  # the last one is the view's timestamp

    def __call__(self, user_ids: list[int]) -> list[Values]:
        keys = []
        for user_id in user_ids:
            key = self._key_prefix + _INT64.pack(user_id)
            keys.append(key + self._project)
        return [
            {name: _parse_value(value) for name, value in zip(self._names, reply, strict=True)}
            for reply in self._replies(keys)
        ]

    def remove(self, user_ids: list[int]) -> int:
        """Delete the keys of users."""
        client = self._store._get_client(self._config.online_store)
        num_removed = 0
        for user_id in user_ids:
            key = self._key_prefix + _INT64.pack(user_id)
            num_removed += client.delete(key + self._project)
        return num_removed

    def _replies(self, keys: list[bytes]) -> list[Any]:
        if len(keys) == 1 and self._is_single_server:  # a pipeline would double the cost
            client = self._store._get_client(self._config.online_store)
            return [client.hmget(keys[0], self._fields)]
        reads = [(key, self._fields) for key in keys]
        return list(self._store._read_hash_fields(self._config, reads))


_READERS: dict[str, Callable[[Any, Views], OnlineReader]] = {
    "sqlite": SqliteReader,
    "redis": RedisReader,
}


def open_feast(version: Path) -> Any:
    """Return Feast's FeatureStore of a version.

    Feast gets absolute paths below the version, wherever the version lies now.

    Raises:
        StoreError: the address of the online store is an unset environment variable.
    """
    from feast import FeatureStore
    from feast.repo_config import RepoConfig

    _prepare_process()
    config = RepoConfig(**read_settings(version))
    config.repo_path = version / "feast"
    address = str(getattr(config.online_store, "connection_string", ""))
    if address.startswith("$"):
        raise StoreError(
            "the address of the online store is not set",
            found=f"{address} as it is",
            expected="host:port",
            fix=f"Set {address.strip('${}')}, for example to 127.0.0.1:6379.",
        )
    feast = FeatureStore(config=config)
    _make_relocatable(feast.registry, version)
    if openlineage.is_configured():
        feast._openlineage_emitter = _lineage_emitter()
    return feast


@functools.cache
def _lineage_emitter() -> Any:
    """Return the emitter of Feast's own lineage: same receiver, same namespace, never in the way.

    Feast would add its project to the namespace, and wait for a receiver that does not answer.
    """
    from feast.openlineage.client import FeastOpenLineageClient
    from feast.openlineage.config import OpenLineageConfig
    from feast.openlineage.emitter import FeastOpenLineageEmitter

    class Client(FeastOpenLineageClient):
        is_enabled = True

        def emit(self, event: Any) -> bool:
            events.put(lambda: event)
            return True

    class Emitter(FeastOpenLineageEmitter):
        def namespace_for(self, project: str) -> str:
            return openlineage.namespace()

    events = openlineage.EventQueue("the feature store")
    atexit.register(events.close)
    config = OpenLineageConfig(namespace=openlineage.namespace(), producer=openlineage.producer())
    client = Client(dataclasses.replace(config, enabled=False))
    return Emitter(config, client)


def _make_relocatable(registry: Any, version: Path) -> None:
    """Let a registry store the paths of tables relative to it, and return absolute ones.

    Feast's DuckDB store would resolve a relative path in the current directory.
    """
    store = registry._registry_store
    read = store.get_registry_proto
    write = store.update_registry_proto

    def read_absolute() -> Any:
        stored = read()
        for source in _data_sources(stored):
            if source.HasField("file_options"):
                uri = table_pattern(version, source.file_options.uri)
                source.file_options.uri = uri
            elif source.HasField("spark_options"):
                path = table_path(version, source.spark_options.path)
                source.spark_options.path = str(path)
        return stored

    def write_relative(values: Any) -> None:
        stored = type(values)()
        stored.CopyFrom(values)
        for source in _data_sources(stored):
            if source.HasField("file_options"):
                source.file_options.uri = relative_table(source.file_options.uri)
            elif source.HasField("spark_options"):
                source.spark_options.path = relative_table(source.spark_options.path)
        write(stored)

    store.get_registry_proto = read_absolute
    store.update_registry_proto = write_relative
    registry.refresh()


def _data_sources(registry: Any) -> Iterator[Any]:
    """Yield the data sources in a registry, also those inside of views and of push sources."""
    sources = list(registry.data_sources)
    for view in registry.feature_views:
        sources += [view.spec.batch_source, view.spec.stream_source]
    while sources:
        source = sources.pop()
        yield source
        if source.HasField("batch_source"):
            sources.append(source.batch_source)


@functools.cache
def _prepare_process() -> None:
    """Silence Feast's log, and let the interpreter end without a list of leaked DuckDB objects.

    Feast logs each refresh of its registry. Its offline store reads with ibis, whose default
    backend holds a DuckDB connection. DuckDB's bindings report that connection as leaked at exit.
    """
    logging.getLogger("feast").setLevel(logging.WARNING)
    atexit.register(_drop_ibis_backend)


def _drop_ibis_backend() -> None:
    ibis: Any = sys.modules.get("ibis")
    if ibis is not None:
        ibis.options.default_backend = None


def declarations(version: Path, project: str) -> list[Any]:
    """Return the Feast objects that the definitions.py of a version declares for its tables.

    Args:
        version: directory of the version.
        project: name of the Feast project in use; other projects are left out.
    """
    import runpy

    from feast import Entity, FeatureService, FeatureView, Project
    from feast.data_source import DataSource

    values = runpy.run_path(str(version / "feast" / "definitions.py")).values()
    kinds = (
        Entity,
        FeatureView,
        FeatureService,
        DataSource,
    )
    found = []
    for value in values:
        is_own_project = isinstance(value, Project) and value.name == project
        if is_own_project or isinstance(value, kinds):
            found.append(value)
    return found


def restore_features(table: pa.Table, features: Sequence[Feature]) -> dict[str, Column]:
    """Return feature columns of the store as the dataset had them, by name."""
    return {
        feature.name: from_stored_column(table.column(feature.name), feature)
        for feature in features
    }


@contextlib.contextmanager
def feast_errors(what: str, fix: str = PUBLISH_FIRST) -> Iterator[None]:
    """Turn any error of Feast into a StoreError.

    Args:
        what: the failed action.
        fix: the next step for the user.
    """
    try:
        yield
    except (StoreError, DataError, SchemaMismatch):
        raise
    except Exception as error:
        lines = str(error).splitlines() or [""]
        text = str(error).lower()
        if "no space left" in text or "disk is full" in text:
            fix = "Free some space and run it again."
        raise StoreError(
            what,
            found=f"{type(error).__name__}: {lines[0]}",
            fix=fix,
        ) from error


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Hide the warnings that Feast turns on; they are about its own libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _sqlite_table(feast: Any, view: Any) -> str:
    """Return the quoted name of a view's table in SQLite."""
    from feast.infra.online_stores.sqlite import _quote_id, _table_id

    is_versioned = feast.config.registry.enable_online_feature_view_versioning
    return str(_quote_id(_table_id(feast.project, view, is_versioned)))


def _entity_key(user_id: int) -> Any:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    return EntityKey(join_keys=[USER_ID], entity_values=[Value(int64_val=user_id)])


def _key_prefix(config: Any) -> bytes:
    """Return the bytes before the 8 bytes of a user's id in Feast's key of the user."""
    prefix = _serialized_key(0, config)[: -_INT64.size]
    expected = prefix + _INT64.pack(_PROBE_USER)
    if _serialized_key(_PROBE_USER, config) != expected:
        raise StoreError(
            "this version of Feast writes the keys of users in another way",
            fix="Install the versions of constraints.txt.",
        )
    return prefix


def _serialized_key(user_id: int, config: Any) -> bytes:
    from feast.infra.key_encoding_utils import serialize_entity_key

    version = config.entity_key_serialization_version
    return bytes(serialize_entity_key(_entity_key(user_id), version))


def _published_user(version: Path) -> int | None:
    """Return a published user with few events, None if no user was published."""
    for path in sorted(history_directory(version).glob("part-*.parquet")):
        with pq.ParquetFile(path) as file:
            columns = [USER_ID, HISTORY_LENGTH]
            batch = next(file.iter_batches(_PROBED_USERS, columns=columns), None)
        if batch is not None and batch.num_rows:
            row = int(np.argmin(batch.column(HISTORY_LENGTH).to_numpy()))
            return int(batch.column(USER_ID)[row].as_py())
    return None


def _file_state(path: Path) -> tuple[int, int]:
    """Return inode and time of the last change of a file, zeros for a missing one."""
    try:
        facts = path.stat()
    except OSError:
        return 0, 0
    return facts.st_ino, facts.st_mtime_ns


def _is_stored(values: Values) -> bool:
    """Return whether a user has any value."""
    return any(value is not None for value in values.values())


def _parse_value(serialized: bytes | None) -> Any:
    """Return the value of a serialized Feast Value, None for none.

    Parsing would copy the bytes of a history twice. They are the rest of the message behind the
    field's tag and their length, a varint.

    Raises:
        DataError: the bytes are no Value.
    """
    if not serialized:
        return None
    if serialized[0] == _BYTES_TAG:
        size, end = _read_varint(serialized, 1)
        payload = serialized[end:]
        if len(payload) == size:
            return payload
    from feast.protos.feast.types.Value_pb2 import Value
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return _value_of(Value.FromString(serialized))
    except (DecodeError, TypeError) as error:
        raise DataError(
            "a stored value is damaged",
            found=f"{len(serialized)} bytes that are no Feast value",
            fix=PUBLISH_FIRST,
        ) from error


def _read_varint(serialized: bytes, start: int) -> tuple[int, int]:
    """Return the number that starts at a position, and the position after it.

    Each byte holds 7 bits, lowest first. The highest bit tells that another byte follows.
    """
    limit = min(len(serialized), start + _MAX_VARINT_BYTES)
    number = 0
    for position in range(start, limit):
        byte = serialized[position]
        number |= (byte & 0x7F) << 7 * (position - start)
        if byte < 0x80:
            return number, position + 1
    return number, limit


def _values_of(found: dict[str, Any], names: list[str]) -> Values:
    values: Values = dict.fromkeys(names)
    for name in names:
        if name in found:
            values[name] = _value_of(found[name])
    return values


def _value_of(value: Any) -> Any:
    """Return the value of a Feast Value; None for a null, which arrives as an unset Value."""
    kind = value.WhichOneof("val")
    if kind is None:
        return None
    return getattr(value, kind)


def _batches(ids: Int64) -> list[Int64]:
    bounds = np.arange(OFFLINE_BATCH_IDS, len(ids), OFFLINE_BATCH_IDS)
    return np.split(ids, bounds)
