"""A published version, opened with Feast: the one file that imports it. Both doors answer in the
stored values, packed as they are.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.data import dataset as layout
from longrec.data import features
from longrec.data.store import tails
from longrec.data.store.versions import PUBLISH_FIRST, Published
from longrec.errors import DataError, SchemaMismatch, StoreError
from longrec.schema import ITEM_ID, USER_ID, Feature

SERVICE = "ranker_v1"
SLICE_IDS = 200_000
"""Ids of one question to the offline store for plain values."""
ONLINE_USERS = 1_000
"""Users of one question to the online store; SQLite allows some ten thousand at most."""

_BYTES_TAG = 0x0A  # field 1 of a Value, length-delimited

Int64 = npt.NDArray[np.int64]
Views = list[tuple[Any, list[str]]]
"""Feature views of a service, and the names of the features to read of each."""
OnlineRead = Callable[[list[int]], list[dict[str, Any]]]


class Door:
    """A published version, opened with Feast."""

    def __init__(self, published: Published, repo_dir: str | Path | None) -> None:
        self.published = published
        with feast_errors(f"the feature store at {published.path} cannot be opened"):
            self.feast = open_feast(published.path, repo_dir)
            self.service = self.feast.get_feature_service(SERVICE)
        found = self.service.tags.get("schema")
        if found != published.schema.fingerprint:
            raise StoreError(
                "the registry was made for another schema than the feature tables",
                found=found,
                expected=f"{published.schema.fingerprint} ({published.schema.name})",
                fix=PUBLISH_FIRST,
            )
        names = [
            (view.name, feature.name)
            for view in self.service.feature_view_projections
            for feature in view.features
        ]
        self._references = [
            f"{view}:{name}"
            for view, name in names
            if name not in (features.HISTORY_LENGTH, features.TAIL_LENGTH)
        ]
        if missing := {features.HISTORY, features.TAIL, features.TAIL_BASE} - {
            name for _, name in names
        }:
            raise StoreError(
                f"the feature store at {published.path} was published by another version of longrec",
                found=f"no {', '.join(sorted(missing))} in {SERVICE}",
                fix=PUBLISH_FIRST,
            )
        self._base = [f"{view}:{name}" for view, name in names if view != "user_tail"]
        views = [
            (
                self.feast.get_feature_view(view),
                [name for owner, name in map(_split, self._references) if owner == view],
            )
            for view in dict.fromkeys(view for view, _ in names)
        ]
        self._read = _READS.get(self.feast.config.online_store.type, ViewByView)(self.feast, views)

    def users(self, user_ids: Int64) -> pa.Table:
        """Returns one row per user (sorted, unique ids): history, history_length, user features;
        null where there is nothing.
        """
        return self._historical(self._base, USER_ID, user_ids)

    def latest(self, user_ids: Int64) -> pa.Table:
        """Returns one row per user (sorted, unique ids) as of the last push: history, tail and its
        base, user features.
        """
        table = self._historical(
            self._references,
            USER_ID,
            user_ids,
            max(self.log_end_us, tails.last_stamp(self.published.path)),
        )
        return table.drop_columns([features.EVENT_TIME])

    @property
    def log_end_us(self) -> int:
        """Time of the last event of the published log."""
        return int(self.published.manifest["time_range_ms"][1]) * 1000

    def write(self, fold: pa.Table, tail: pa.Table) -> None:
        """Writes rows of user_history, then of user_tail, to the online store."""
        with feast_errors("the online store cannot be written"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if fold.num_rows:
                self.feast.write_to_online_store("user_history", df=fold.to_pandas())
            if tail.num_rows:
                self.feast.push("user_tail_push", tail.to_pandas())

    def history_lengths(self, user_ids: Int64) -> Int64:
        """Returns the number of events of each user (sorted, unique ids)."""
        references = [f"user_history:{features.HISTORY_LENGTH}"]
        parts = [
            self._historical(references, USER_ID, ids).column(features.HISTORY_LENGTH).fill_null(0)
            for ids in _spans(user_ids)
        ]
        return np.concatenate([np.asarray(part, np.int64) for part in parts])

    def items(self, item_ids: Int64) -> pa.Table:
        """Returns item_id and the item features of each item (sorted, unique ids)."""
        declared = self.published.schema.item[1:]
        references = [f"item_features:{feature.name}" for feature in declared]
        parts = [
            self._historical(references, ITEM_ID, ids) if references else pa.table({ITEM_ID: ids})
            for ids in _spans(item_ids)
        ]
        table = pa.concat_tables(parts)
        return pa.table({ITEM_ID: table.column(ITEM_ID), **restored(table, declared)})

    def online(self, user_ids: list[int]) -> list[dict[str, Any]]:
        """Returns the stored values of each user by feature name, None where there is none, in the
        order asked for.
        """
        with feast_errors("the online store cannot be read"):
            return [
                row
                for start in range(0, len(user_ids), ONLINE_USERS)
                for row in self._read(user_ids[start : start + ONLINE_USERS])
            ]

    def check_online(self) -> None:
        """Raises StoreError when the online store cannot answer."""
        settings = self.feast.config.online_store
        if (
            settings.type == "sqlite"
            and not (Path(self.feast.config.repo_path) / settings.path).is_file()
        ):
            raise StoreError(
                "the online store is gone", found=f"no file {settings.path}", fix=PUBLISH_FIRST
            )
        self.online([0])

    def _historical(
        self, wanted: Any, key: str, ids: Int64, moment_us: int | None = None
    ) -> pa.Table:
        """Returns one row per id, in their order, as of a moment, by default the end of the log."""
        import pandas as pd

        request_time = pd.Timestamp(
            self.log_end_us if moment_us is None else moment_us, unit="us", tz="UTC"
        )
        with feast_errors("the offline store cannot be read"):
            rows = pd.DataFrame({key: ids, features.EVENT_TIME: request_time})
            with (
                warnings.catch_warnings()
            ):  # Feast turns on warnings that are about its own libraries
                warnings.simplefilter("ignore")
                table: pa.Table = self.feast.get_historical_features(
                    entity_df=rows, features=wanted
                ).to_arrow()
            shutil.rmtree(
                self.published.path / "feast" / "staging", ignore_errors=True
            )  # Spark's answer, which Feast leaves there
        table = table.take(pa.array(np.argsort(layout.int64_of(table, key), kind="stable")))
        if not np.array_equal(layout.int64_of(table, key), ids):
            raise StoreError(
                "the offline store did not return one row per id",
                found=f"{table.num_rows} rows",
                expected=f"{len(ids)} rows",
            )
        return table


class ViewByView:
    """The stored values of users by feature name, None where there is none: what Feast's
    `online_read` answers for each view, of any store.

    `get_online_features` copies each value into an answer and parses references anew.
    """

    def __init__(self, feast: Any, views: Views) -> None:
        self._config, self._views, self._store = (
            feast.config,
            views,
            feast._get_provider().online_store,
        )

    def __call__(self, user_ids: list[int]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{} for _ in user_ids]
        keys = [_entity_key(user_id) for user_id in user_ids]
        for (
            view,
            names,
        ) in self._views:  # Feast's stores may change the list of names that they are given
            for row, (_, values) in zip(
                rows, self._store.online_read(self._config, view, keys, list(names)), strict=True
            ):
                row.update(
                    {
                        name: _value(values[name]) if values and name in values else None
                        for name in names
                    }
                )
        return rows


class SqliteRead:
    """`ViewByView` of SQLite by one statement for all views, hence as of one moment; no copy of a
    history but one.
    """

    def __init__(self, feast: Any, views: Views) -> None:
        from feast.infra.online_stores.sqlite import _quote_id, _table_id

        self._config, self._store, self._prefix = (
            feast.config,
            feast._get_provider().online_store,
            _key_prefix(feast.config),
        )
        self._wanted = [
            (
                _quote_id(
                    _table_id(
                        feast.project,
                        view,
                        feast.config.registry.enable_online_feature_view_versioning,
                    )
                ),
                ", ".join(f"'{name}'" for name in names),
            )
            for view, names in views
        ]
        self._missing = {name: None for _, names in views for name in names}
        self._query_of_one = self._query(1)

    def __call__(self, user_ids: list[int]) -> list[dict[str, Any]]:
        keys = [self._prefix + _INT64.pack(user_id) for user_id in user_ids]
        rows: dict[bytes, dict[str, Any]] = {key: dict(self._missing) for key in keys}
        query = self._query_of_one if len(rows) == 1 else self._query(len(rows))
        found = (
            self._store._get_conn(self._config)
            .execute(query, [*rows] * len(self._wanted))
            .fetchall()
        )
        for key, name, value in found:
            rows[key][name] = _stored_value(value)
        return [dict(rows[key]) for key in keys]

    def _query(self, num_keys: int) -> str:
        keys = ", ".join("?" * num_keys)
        return " UNION ALL ".join(
            f"SELECT entity_key, feature_name, value FROM {table} WHERE entity_key IN ({keys}) AND "  # noqa: S608
            f"feature_name IN ({names})"
            for table, names in self._wanted
        )


class RedisRead:
    """`ViewByView` of Redis, which keeps all views of a user under one key: one HMGET for all of
    them.
    """

    def __init__(self, feast: Any, views: Views) -> None:
        from feast.infra.online_stores.redis import RedisClient

        self._config, self._store, self._prefix = (
            feast.config,
            feast._get_provider().online_store,
            _key_prefix(feast.config),
        )
        self._project = feast.project.encode()
        self._is_plain = feast.config.online_store.client == RedisClient.redis
        self._names = [name for _, names in views for name in names]
        self._fields = [
            field
            for view, names in views
            for field in self._store._generate_hset_keys_for_features(view, list(names))[1][:-1]
        ]

    def __call__(self, user_ids: list[int]) -> list[dict[str, Any]]:
        places = [self._prefix + _INT64.pack(user_id) + self._project for user_id in user_ids]
        if len(places) == 1 and self._is_plain:  # a pipeline of one costs as much as Redis itself
            replies = [
                self._store._get_client(self._config.online_store).hmget(places[0], self._fields)
            ]
        else:
            replies = self._store._read_hash_fields(
                self._config, [(place, self._fields) for place in places]
            )
        return [dict(zip(self._names, map(_stored_value, reply), strict=True)) for reply in replies]


_READS: dict[str, Callable[[Any, Views], OnlineRead]] = {"sqlite": SqliteRead, "redis": RedisRead}
_INT64 = struct.Struct("<q")


def _entity_key(user_id: int) -> Any:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    return EntityKey(join_keys=[USER_ID], entity_values=[Value(int64_val=user_id)])


def _key_prefix(config: Any) -> bytes:
    """Returns what Feast puts before the 8 bytes of a user's id to make the user's key."""
    from feast.infra.key_encoding_utils import serialize_entity_key

    zero, probe = (
        serialize_entity_key(_entity_key(user_id), config.entity_key_serialization_version)
        for user_id in (0, -(2**62) + 1)
    )
    if probe != zero[:-8] + _INT64.pack(-(2**62) + 1):
        raise StoreError(
            "this version of Feast writes the keys of users in another way",
            fix="Install the versions of constraints.txt.",
        )
    return bytes(zero[:-8])


def _stored_value(serialized: bytes | None) -> Any:
    """Returns the value of a serialized Feast Value, None for none.

    Parsing would copy the bytes of a history twice; they are what is left behind the field's tag
    and their length (a varint).
    """
    if not serialized:
        return None
    if serialized[0] == _BYTES_TAG:
        size, place = 0, 0
        for place in range(1, min(len(serialized), 6)):
            size |= (serialized[place] & 0x7F) << 7 * (place - 1)
            if serialized[place] < 0x80:
                break
        if place + 1 + size == len(serialized):
            return serialized[place + 1 :]
    from feast.protos.feast.types.Value_pb2 import Value

    return _value(Value.FromString(serialized))


def open_feast(version: Path, repo_dir: str | Path | None) -> Any:
    from feast import FeatureStore
    from feast.repo_config import load_repo_config

    folder = version / "feast"
    config = load_repo_config(Path(repo_dir or folder).resolve(), folder / "feature_store.yaml")
    address = str(getattr(config.online_store, "connection_string", ""))
    if address.startswith("$"):
        raise StoreError(
            "the address of the online store is not set",
            found=f"{address} as it is",
            expected="host:port",
            fix=f"Set {address.strip('${}')}, for example to 127.0.0.1:6379.",
        )
    return FeatureStore(config=config)


def declarations(repo_dir: Path, version: Path, project: str) -> list[Any]:
    """Returns the Feast objects of definitions.py, made for the tables of a version; the project
    only where it is the one in use.
    """
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
    return [
        value
        for value in values
        if isinstance(value, kinds) and not (isinstance(value, Project) and value.name != project)
    ]


def restored(table: pa.Table, declared: Sequence[Feature]) -> dict[str, pa.ChunkedArray]:
    return {
        feature.name: features.restored(table.column(feature.name), feature) for feature in declared
    }


@contextlib.contextmanager
def feast_errors(what: str, fix: str = PUBLISH_FIRST) -> Iterator[None]:
    """Turns whatever Feast raises into a StoreError that says what was tried and what to do."""
    try:
        yield
    except (StoreError, DataError, SchemaMismatch):
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        is_full = any(text in str(error).lower() for text in ("no space left", "disk is full"))
        raise StoreError(
            what, found=found, fix="Free some space and run it again." if is_full else fix
        ) from error


def _split(reference: str) -> tuple[str, str]:
    view, _, name = reference.partition(":")
    return view, name


def _value(value: Any) -> Any:
    """Returns the value of a Feast Value; a miss is told by the value, for stores disagree about
    the status.
    """
    kind = value.WhichOneof("val")
    return None if kind is None else getattr(value, kind)


def _spans(ids: Int64) -> list[Int64]:
    return [ids[row : row + SLICE_IDS] for row in range(0, len(ids), SLICE_IDS)] or [ids]
