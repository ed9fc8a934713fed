"""Stored values that are damaged, and stores that change under an open reader, are noticed."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from longrec.data.store.online_store import OnlineStore
from longrec.errors import DataError, LongrecError, StoreError
from tests.longrec.data.random_log import NOBODY
from tests.longrec.data.store.published_store import PublishedStore

USER = 1
UNDAMAGED_USER = 2


@pytest.fixture
def workdir(store: PublishedStore, tmp_path: Path) -> Path:
    """A copy of a published work directory."""
    copy = tmp_path / "workdir"
    shutil.copytree(store.workdir, copy, symlinks=True)
    return copy


@pytest.fixture
def online(workdir: Path) -> OnlineStore:
    """An open reader that has read a user."""
    online = OnlineStore(workdir)
    [record] = online.fetch([USER])
    assert record.history.num_rows > 0
    return online


@pytest.fixture
def database(workdir: Path) -> Path:
    return (workdir / "feast" / "online.db").resolve()


@contextlib.contextmanager
def changing(database: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        yield connection
        connection.commit()


def key_of(connection: sqlite3.Connection) -> bytes:
    """Return the key of USER: its id is the last 8 bytes."""
    keys = connection.execute("select distinct entity_key from longrec_user_history").fetchall()
    [key] = [key for (key,) in keys if key.endswith(USER.to_bytes(8, "little"))]
    return key


def set_value(
    database: Path,
    name: str,
    value: object,
    view: str = "user_history",
) -> None:
    """Store a value of USER, or remove it."""
    with changing(database) as connection:
        where = "where entity_key = ? and feature_name = ?"
        key = key_of(connection)
        if value is None:
            connection.execute(f"delete from longrec_{view} {where}", (key, name))
        else:
            statement = f"update longrec_{view} set value = ? {where}"
            changed = connection.execute(statement, (value, key, name))
            assert changed.rowcount == 1


def stored(**value: object) -> bytes:
    from feast.protos.feast.types.Value_pb2 import Value

    return Value(**value).SerializeToString()


def test_a_length_without_its_events_is_no_empty_history(online, database) -> None:
    set_value(database, "history", None)
    with pytest.raises(DataError, match="lacks events that it says a user has"):
        online.fetch([USER])


def test_events_without_their_length_are_noticed(online, database) -> None:
    set_value(database, "history_length", None)
    with pytest.raises(DataError, match="lacks events that it says a user has"):
        online.fetch([USER])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("history", b"\xff" * 9),
        ("history", stored(string_val="text")),
        ("history", stored(int64_val=5)),
        ("history", "a text"),
        ("history", stored(bytes_val=b"")),
        ("history_length", b"\xff" * 9),
        ("history_length", stored(int64_val=-1)),
        ("history_length", stored(int64_val=10**6)),
        ("history_length", stored(string_val="9")),
        ("history_length", stored(float_val=9.0)),
    ],
)
def test_a_damaged_value_is_an_error_of_its_user_alone(
    online,
    database,
    name: str,
    value: object,
) -> None:
    set_value(database, name, value)
    with pytest.raises(DataError):
        online.fetch([USER])
    [record] = online.fetch([UNDAMAGED_USER])
    assert record.history.num_rows > 0


@pytest.mark.parametrize("value", [b"\xff" * 9, stored(bytes_val=b"x"), stored(string_val="x")])
def test_a_damaged_feature_is_an_error_of_its_user_alone(online, database, value: bytes) -> None:
    set_value(database, "group", value, view="user_features")
    with pytest.raises(DataError):
        online.fetch([USER])
    [record] = online.fetch([UNDAMAGED_USER])
    assert record.features is not None


def test_a_store_that_lost_its_rows_is_not_a_store_of_unknown_users(online, database) -> None:
    [nobody] = online.fetch([NOBODY])
    assert nobody.history.num_rows == 0
    with changing(database) as connection:
        for view in ("user_history", "user_tail", "user_features"):
            connection.execute(f"delete from longrec_{view}")
    for user in (USER, NOBODY):
        with pytest.raises(StoreError, match="has lost its rows"):
            online.fetch([user])


def test_a_dropped_table_is_an_error(online, database) -> None:
    with changing(database) as connection:
        connection.execute("drop table longrec_user_history")
    with pytest.raises(StoreError, match="cannot be read"):
        online.fetch([USER])


def test_a_replaced_database_is_read(online, database) -> None:
    copy = database.with_name("copy")
    shutil.copyfile(database, copy)
    with changing(copy) as connection:
        connection.execute(
            "delete from longrec_user_history where entity_key = ?",
            (key_of(connection),),
        )
    os.replace(copy, database)
    user, other = online.fetch([USER, UNDAMAGED_USER])
    assert user.history.num_rows == 0
    assert other.history.num_rows > 0


@pytest.mark.parametrize("name", ["features/schema.json", "features/manifest.json"])
def test_a_changed_file_is_read_again_and_checked(online, workdir: Path, name: str) -> None:
    path = (workdir / name).resolve()
    path.write_text("{}")
    with pytest.raises(LongrecError):
        online.fetch([USER])


def test_a_touched_file_changes_nothing(online, workdir: Path) -> None:
    (workdir / "features" / "schema.json").touch()
    [record] = online.fetch([USER])
    assert record.history.num_rows > 0


def test_a_lost_database_is_noticed(online, database) -> None:
    database.unlink()
    with pytest.raises(StoreError, match="the online store is gone"):
        online.fetch([USER])
    assert not database.exists()


def test_a_moved_version_is_noticed(online, workdir: Path) -> None:
    version = (workdir / "features").resolve().parent
    version.rename(version.with_name("moved"))
    with pytest.raises(StoreError, match="no feature store"):
        online.fetch([USER])
