"""OnlineStore on a real Feast: equal to offline histories, unknown users, new and lost versions."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from longrec.data import features, history
from longrec.data.store import feast_adapter
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import publish
from longrec.data.store.retrieve import retrieve
from longrec.errors import DataError, SchemaMismatch, StoreError
from tests.longrec.data import random_log
from tests.longrec.data.random_log import HUGE, NO_EVENTS, NO_FEATURES, NOBODY, SCHEMA
from tests.longrec.data.store.published_store import REPO, SMALL, PublishedStore


def test_online_histories_are_the_offline_ones_bit_for_bit(store: PublishedStore) -> None:
    opened = store.histories
    online = OnlineStore(store.workdir)
    requests = opened.requests.to_pylist()
    users = [opened.users.column("user_id")[row["user_row"]].as_py() for row in requests]
    for number, (row, answer) in enumerate(zip(requests, online.fetch(users), strict=True)):
        prefix = history.most_recent(
            history.events_before(answer.history, row["timestamp"]), SMALL.max_history
        )
        assert history.pack(prefix, SCHEMA) == history.pack(opened.history(number), SCHEMA)


def test_online_features_are_the_offline_ones(store: PublishedStore) -> None:
    rows = store.histories.users.to_pylist()
    for row, answer in zip(
        rows, OnlineStore(store.workdir).fetch([row["user_id"] for row in rows]), strict=True
    ):
        values = {feature.name: row[feature.name] for feature in SCHEMA.user}
        assert answer.user_id == row["user_id"]
        assert answer.features == (None if set(values.values()) == {None} else values)


def test_users_without_events_or_features_online(store: PublishedStore) -> None:
    no_events, no_features, nobody, again = OnlineStore(store.workdir).fetch(
        [NO_EVENTS, NO_FEATURES, 987_654_321, NO_EVENTS]
    )
    assert no_events.history.num_rows == 0
    assert no_events.features is not None
    assert no_events.features["group"] == HUGE + NO_EVENTS % 3
    assert no_features.history.num_rows > 0
    assert no_features.features is None
    assert nobody.history.equals(history.empty(SCHEMA))
    assert nobody.features is None
    assert again.features == no_events.features
    assert OnlineStore(store.workdir).fetch([]) == []


def test_many_users_are_read_in_batches(
    store: PublishedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = OnlineStore(store.workdir)
    users = [3, NOBODY, HUGE, 0, 3, *range(10), NO_EVENTS]
    whole = online.fetch(users)
    monkeypatch.setattr(feast_adapter, "ONLINE_BATCH_USERS", 3)
    batches = online.fetch(users)
    assert [answer.user_id for answer in whole] == users
    assert any(answer.history.num_rows for answer in whole)
    for found, expected in zip(batches, whole, strict=True):
        assert (found.user_id, found.features) == (expected.user_id, expected.features)
        assert history.pack(found.history, SCHEMA) == history.pack(expected.history, SCHEMA)


def test_an_open_reader_follows_a_new_version(
    private_store: PublishedStore, tmp_path: Path
) -> None:
    online = OnlineStore(private_store.workdir)
    before = {
        user: answer.history.num_rows
        for user, answer in zip(range(19), online.fetch(range(19)), strict=True)
    }
    other = random_log.write(tmp_path / "other", seed=9, num_users=10)
    features.build_features(other.path, tmp_path / "other_features", SMALL)
    publish(tmp_path / "other_features", private_store.workdir, REPO)
    after = {
        user: answer.history.num_rows
        for user, answer in zip(range(19), online.fetch(range(19)), strict=True)
    }
    assert before != after
    assert all(after[user] > 0 for user in range(9))
    assert all(
        after[user] == 0 for user in range(9, 19)
    )  # users of the version before are gone, not stale
    with pytest.raises(StoreError, match="features of another dataset"):
        retrieve(
            private_store.source.path,
            private_store.workdir,
            REPO,
            tmp_path / "x",
            SMALL,
            0,
        )
    assert not (tmp_path / "x").exists()


def test_an_empty_work_directory_is_refused(tmp_path: Path, store: PublishedStore) -> None:
    with pytest.raises(StoreError, match=r"no feature store at .*Publish feature tables first"):
        OnlineStore(tmp_path)
    with pytest.raises(StoreError, match="no feature store at"):
        retrieve(
            store.source.path,
            tmp_path,
            REPO,
            tmp_path / "out",
            SMALL,
            0,
        )


def test_a_lost_online_store_or_registry_is_refused(private_store: PublishedStore) -> None:
    feast = (private_store.workdir / "feast").resolve()
    database = (feast / "online.db").read_bytes()
    (feast / "online.db").unlink()
    with pytest.raises(StoreError, match="the online store is gone"):
        OnlineStore(private_store.workdir)
    assert not (feast / "online.db").exists()  # asking did not make an empty one
    (feast / "online.db").write_bytes(database[:4096])
    with pytest.raises(
        StoreError, match=r"online store cannot be read; found (Operational|Database)Error"
    ):
        OnlineStore(private_store.workdir)
    (feast / "online.db").write_bytes(database)
    (feast / "registry.db").unlink()
    with pytest.raises(StoreError, match="cannot be opened; found"):
        OnlineStore(private_store.workdir)


def test_another_schema_is_refused(private_store: PublishedStore, tmp_path: Path) -> None:
    other = dataclasses.replace(SCHEMA, event=SCHEMA.event[:1])
    with pytest.raises(
        SchemaMismatch, match=r"event.seconds: unexpected; event.source: unexpected"
    ):
        OnlineStore(private_store.workdir, schema=other)
    assert OnlineStore(private_store.workdir, schema=SCHEMA).schema == SCHEMA
    source = random_log.write(tmp_path / "other", schema=other)
    with pytest.raises(SchemaMismatch, match=r"event.seconds: unexpected"):
        retrieve(
            source.path,
            private_store.workdir,
            REPO,
            tmp_path / "out",
            SMALL,
            0,
        )
    path = (private_store.workdir / "features" / "schema.json").resolve()
    path.write_text(path.read_text().replace('"random"', '"changed"'))
    with pytest.raises(StoreError, match="the registry was made for another schema"):
        OnlineStore(private_store.workdir)


def test_a_missing_value_counts_whatever_its_status(
    store: PublishedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis answers PRESENT for an unknown user."""
    from feast import FeatureStore
    from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

    original = FeatureStore.get_online_features

    def present(*args: Any, **options: Any) -> Any:
        answer = original(*args, **options)
        for vector in answer.proto.results:
            vector.statuses[:] = [FieldStatus.PRESENT] * len(vector.statuses)
        return answer

    monkeypatch.setattr(FeatureStore, "get_online_features", present)
    answer = OnlineStore(store.workdir).fetch([NOBODY])[0]
    assert answer.history.num_rows == 0
    assert answer.features is None


def test_a_corrupted_history_online_is_an_error_not_a_wrong_history(
    private_store: PublishedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(
        sqlite3.connect((private_store.workdir / "feast" / "online.db").resolve())
    ) as database:
        select = (
            "select rowid, value from longrec_user_history where feature_name = 'history' limit 1"
        )
        row, value = database.execute(select).fetchone()
        damaged = bytearray(value)
        damaged[len(damaged) // 2] ^= 1
        database.execute(
            "update longrec_user_history set value = ? where rowid = ?", (bytes(damaged), row)
        )
        database.commit()
    with pytest.raises(DataError, match="not readable"):
        OnlineStore(private_store.workdir).fetch(list(private_store.events()))


def test_importing_the_store_is_cheap() -> None:
    """Feast, DuckDB and pandas are imported by a publish or a read, not before."""
    code = (
        "import sys, longrec.data.store.publish, longrec.data.store.retrieve\n"
        "print([name for name in ('feast', 'duckdb', 'pandas', 'ibis') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_an_online_read_loads_no_feature_building_checks_or_training() -> None:
    forbidden = (
        "longrec.data.features",
        "longrec.data.quality",
        "longrec.data.importers",
        "longrec.training",
        "longrec.evaluation",
    )
    code = (
        "import sys, longrec.data.store.online_store\n"
        "print('\\n'.join(name for name in sys.modules if name.startswith('longrec')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = done.stdout.split()
    assert "longrec.data.store.online_store" in loaded
    assert [name for name in loaded if name.startswith(forbidden)] == []
