"""The reader answers in time whatever the store does, says so, and recovers by itself."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable

import pyarrow as pa
import pytest

from longrec.data import history
from longrec.data.store.user_record import UserRecord
from longrec.data.upkeep import forget_list
from longrec.errors import DataError, StoreError
from longrec.serving import store_reader as reader_module
from longrec.serving.store_reader import FetchResult, StoreReader
from tests.longrec import small_histories
from tests.longrec.serving.small_scorer import User

NEVER_SECONDS = 1_000.0


class FakeStore:
    """A store that behaves as `state` says, in any thread."""

    def __init__(self) -> None:
        self.state = "well"
        self.behind = ""
        self.num_opened = 0
        self.is_hanging = threading.Event()
        self.release = threading.Event()
        self.hanging_thread = threading.current_thread()

    def open(self) -> FakeStore:
        self.num_opened += 1
        if self.state == "down":
            raise StoreError("the online store is gone")
        return self

    def fetch(self, user_ids) -> list[UserRecord]:
        if self.state == "hangs":
            self.hanging_thread = threading.current_thread()
            self.is_hanging.set()
            self.release.wait()
        if self.state == "down":
            raise StoreError("the online store cannot be read")
        if self.state == "odd":
            raise KeyError("odd")
        if self.state == "damaged" and 3 in user_ids:
            raise DataError("a packed history is not readable")
        return [UserRecord(user_id, timeline(user_id), {"region": "north"}) for user_id in user_ids]


@functools.cache
def timeline(num_events: int) -> pa.RecordBatch:
    user = User(num_events)
    user.append(num_events)
    return user.timeline()


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def reader(store):
    """A reader that waits as long as a busy machine may need."""
    reader = StoreReader(store.open, small_histories.SCHEMA, timeout_seconds=60)
    yield reader
    store.release.set()
    reader.close()


@pytest.fixture
def hasty(store):
    """A reader that hardly waits."""
    reader = StoreReader(store.open, small_histories.SCHEMA, timeout_seconds=0.1)
    yield reader
    store.release.set()
    reader.close()


def eventually(holds: Callable[[], object]) -> None:
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit, "it does not happen"
        time.sleep(0.01)


def fetch(
    reader: StoreReader,
    *users: int,
    timeout: float | None = None,
) -> list[FetchResult]:
    """Return the results of users that are fetched at the same time."""

    async def fetch_all() -> list:
        return await asyncio.gather(*(reader.fetch(user, timeout) for user in users))

    return asyncio.run(fetch_all())


def is_fresh(reader: StoreReader, user: int) -> bool:
    return not fetch(reader, user)[0].degraded


def test_answers_are_degraded_while_the_store_lacks_pushed_events(store, reader) -> None:
    store.behind = "a push was killed"
    (behind,) = fetch(reader, 5)
    assert behind.degraded == "a push was killed"
    assert behind.rows.history.num_rows == 5
    store.behind = ""
    assert is_fresh(reader, 5)


@pytest.mark.parametrize(
    ("state", "reader_name"),
    [("down", "reader"), ("odd", "reader"), ("hangs", "hasty")],
)
def test_a_failing_store_gives_cached_rows_until_it_recovers(
    request,
    store,
    monkeypatch,
    state: str,
    reader_name: str,
) -> None:
    reader = request.getfixturevalue(reader_name)
    monkeypatch.setattr(reader_module, "RETRY_SECONDS", NEVER_SECONDS)
    monkeypatch.setattr(reader_module, "ABANDON_SECONDS", NEVER_SECONDS)
    eventually(lambda: is_fresh(reader, 5))
    (before,) = fetch(reader, 5)
    assert before.rows.history.num_rows == 5
    store.state = state
    known, unknown = fetch(reader, 5, 6)  # answered even while the store hangs
    assert known.degraded
    assert known.rows.history.equals(before.rows.history)
    assert known.rows.features == {"region": "north"}
    assert unknown.degraded
    assert unknown.rows.history.num_rows == 0
    assert unknown.rows.history.equals(history.empty(small_histories.SCHEMA))
    assert unknown.rows.features is None
    eventually(reader._unavailable_reason)
    with monkeypatch.context() as patch:
        patch.setattr(reader, "_enqueue", pytest.fail)  # no request waits for it now
        assert all(result.degraded for result in fetch(reader, 5, 6, 7))
    store.state = "well"
    store.release.set()
    monkeypatch.setattr(reader_module, "RETRY_SECONDS", 0.0)
    eventually(lambda: is_fresh(reader, 6))
    assert reader.num_events(6) == 6
    assert reader.num_events(7) is None


def test_the_rows_of_a_forgotten_user_leave_the_cache(store, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(forget_list, "LOOK_SECONDS", 0.0)
    watcher = forget_list.ForgetWatcher(tmp_path)
    reader = StoreReader(store.open, small_histories.SCHEMA, timeout_seconds=60, forgotten=watcher)
    assert [rows.rows.history.num_rows for rows in fetch(reader, 5, 6)] == [5, 6]
    forget_list.add_users(tmp_path, [5])
    fetch(reader, 6)
    assert reader.num_events(5) is None
    assert reader.num_events(6) == 6
    store.state = "down"
    assert fetch(reader, 5)[0].rows.history.num_rows == 0
    reader.close()


def test_an_endless_read_is_abandoned_and_changes_nothing_later(hasty, store, monkeypatch) -> None:
    monkeypatch.setattr(reader_module, "RETRY_SECONDS", NEVER_SECONDS)
    eventually(lambda: is_fresh(hasty, 5))
    store.state = "hangs"
    num_opened = store.num_opened
    assert fetch(hasty, 5)[0].degraded
    assert store.is_hanging.wait(60)
    store.state = "well"
    monkeypatch.setattr(reader_module, "ABANDON_SECONDS", 0.0)
    eventually(hasty._unavailable_reason)  # this starts another thread
    monkeypatch.setattr(reader_module, "ABANDON_SECONDS", NEVER_SECONDS)
    eventually(lambda: is_fresh(hasty, 5))
    assert store.num_opened == num_opened + 1
    assert store.hanging_thread.is_alive()
    store.state = "down"
    store.release.set()
    store.hanging_thread.join(60)  # it ends, with an error
    assert not store.hanging_thread.is_alive()
    assert not hasty._unavailable_reason()


def test_late_rows_of_an_abandoned_read_are_not_cached(hasty, store, monkeypatch) -> None:
    eventually(lambda: is_fresh(hasty, 5))
    store.state = "hangs"
    assert fetch(hasty, 8)[0].degraded
    assert store.is_hanging.wait(60)
    store.state = "well"
    monkeypatch.setattr(reader_module, "ABANDON_SECONDS", 0.0)
    eventually(hasty._unavailable_reason)  # this starts another thread
    monkeypatch.setattr(reader_module, "ABANDON_SECONDS", NEVER_SECONDS)
    eventually(lambda: is_fresh(hasty, 5))
    store.release.set()
    store.hanging_thread.join(60)
    assert hasty.num_events(8) is None


def test_damaged_rows_of_one_user_degrade_only_that_user(reader, store) -> None:
    store.state = "damaged"
    results = fetch(reader, 1, 2, 3, 4)
    assert [bool(result.degraded) for result in results] == [False, False, True, False]
    assert [result.rows.history.num_rows for result in results] == [1, 2, 0, 4]


def test_a_short_deadline_is_shorter_than_that_of_the_reader(reader, store) -> None:
    store.state = "hangs"
    started = time.monotonic()
    assert fetch(reader, 5, timeout=0.02)[0].degraded
    assert time.monotonic() - started < 30  # the reader's own is 60


def test_cached_rows_are_bounded(store) -> None:
    reader = StoreReader(
        store.open,
        small_histories.SCHEMA,
        timeout_seconds=60,
        cache_bytes=4_000,
    )
    fetch(reader, *range(1, 30))
    assert 0 < reader._num_cached_bytes <= 4_000
    assert len(reader._cached) < 29
    reader.close()


def test_a_store_that_cannot_be_opened_at_the_start_is_an_error(store) -> None:
    store.state = "down"
    with pytest.raises(StoreError, match="gone"):
        StoreReader(store.open, small_histories.SCHEMA)
