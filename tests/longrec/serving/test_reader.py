"""The reader answers in time whatever the store does, says so, and mends itself."""

from __future__ import annotations

import asyncio
import functools
import threading
import time

import pyarrow as pa
import pytest

from longrec.data import history
from longrec.data.store.reader import UserRows
from longrec.errors import DataError, StoreError
from longrec.serving import reader as module
from longrec.serving.reader import StoreReader
from tests.longrec import small_world
from tests.longrec.serving.world import User


class FakeStore:
    """A store that does as `mood` says, whichever thread asks."""

    def __init__(self) -> None:
        self.mood, self.opened, self.asked, self.release = "well", 0, [], threading.Event()

    def open(self) -> FakeStore:
        self.opened += 1
        if self.mood == "gone":
            raise StoreError("the online store is gone")
        return self

    def fetch(self, user_ids) -> list[UserRows]:
        self.asked.append(list(user_ids))
        if self.mood == "hangs":
            self.release.wait(30)
        if self.mood == "gone":
            raise StoreError("the online store cannot be read")
        if self.mood == "odd":
            raise KeyError("odd")
        if self.mood == "garbage" and 3 in user_ids:
            raise DataError("a packed history is not readable")
        return [UserRows(user_id, timeline(user_id), {"region": "north"}) for user_id in user_ids]


@functools.cache
def timeline(count: int) -> pa.RecordBatch:
    user = User(count)
    user.append(count)
    return user.timeline()


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def reader(store, monkeypatch):
    timeline(5)  # pyarrow imports pandas at its first array of Python values
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.1)
    reader = StoreReader(store.open, small_world.SCHEMA, timeout_seconds=0.2)
    yield reader
    store.release.set()
    reader.close()


def fetch(reader: StoreReader, *users: int, timeout: float | None = None) -> list:
    async def together() -> list:
        return await asyncio.gather(*(reader.fetch(user, timeout) for user in users))

    return asyncio.run(together())


@pytest.mark.parametrize("mood", ["gone", "odd", "hangs"])
def test_a_store_in_trouble_gives_what_was_known_and_mends_itself(reader, store, mood: str) -> None:
    (before,) = fetch(reader, 5)
    assert before.rows.history.num_rows == 5 and not before.degraded
    store.mood = mood
    started = time.monotonic()
    known, unknown = fetch(reader, 5, 6)
    assert known.degraded and known.rows.history.equals(before.rows.history) and known.rows.features == {"region": "north"}
    assert unknown.degraded and unknown.rows.history.num_rows == 0 and unknown.rows.features is None
    assert time.monotonic() - started < 1.0
    calls, started = len(store.asked), time.monotonic()
    assert all(each.degraded for each in fetch(reader, 5, 6, 7))
    assert time.monotonic() - started < 0.1 and len(store.asked) == calls  # nobody waits for it now
    store.mood = "well"
    store.release.set()
    time.sleep(0.15)
    (after,) = fetch(reader, 6)
    assert not after.degraded and after.rows.history.num_rows == 6
    assert reader.num_events(6) == 6 and reader.num_events(7) is None


def test_a_read_that_never_ends_is_given_up(reader, store, monkeypatch) -> None:
    monkeypatch.setattr(module, "ABANDON_SECONDS", 0.3)
    fetch(reader, 5)
    store.mood = "hangs"
    assert fetch(reader, 5)[0].degraded
    store.mood, opened = "well", store.opened
    time.sleep(0.3)
    assert fetch(reader, 5)[0].degraded  # this one starts the new thread
    time.sleep(0.2)
    assert not fetch(reader, 5)[0].degraded and store.opened == opened + 1


def test_garbage_of_one_user_is_that_users_trouble(reader, store) -> None:
    store.mood = "garbage"
    answers = fetch(reader, 1, 2, 3, 4)
    assert [bool(answer.degraded) for answer in answers] == [False, False, True, False]
    assert [answer.rows.history.num_rows for answer in answers] == [1, 2, 0, 4]


def test_a_short_deadline_is_shorter_than_the_readers(reader, store) -> None:
    store.mood, started = "hangs", time.monotonic()
    assert fetch(reader, 5, timeout=0.02)[0].degraded
    assert time.monotonic() - started < 0.15


def test_what_is_kept_is_bounded(store) -> None:
    reader = StoreReader(store.open, small_world.SCHEMA, keep_bytes=4_000)
    fetch(reader, *range(1, 30))
    assert 0 < reader._known_bytes <= 4_000 and len(reader._known) < 29
    assert history.empty(small_world.SCHEMA).num_rows == 0
    reader.close()


def test_a_store_that_cannot_be_opened_at_the_start_is_an_error(store) -> None:
    store.mood = "gone"
    with pytest.raises(StoreError, match="gone"):
        StoreReader(store.open, small_world.SCHEMA)
