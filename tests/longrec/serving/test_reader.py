"""The reader answers in time whatever the store does, says so, and mends itself."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable

import pyarrow as pa
import pytest

from longrec.data import history
from longrec.data.store.reader import UserRows
from longrec.errors import DataError, StoreError
from longrec.serving import reader as module
from longrec.serving.reader import StoreReader
from tests.longrec import small_histories
from tests.longrec.serving.world import User


class FakeStore:
    """A store that does as `mood` says, whichever thread asks."""

    def __init__(self) -> None:
        self.mood, self.opened, self.asked = "well", 0, []
        self.hung, self.release, self.hung_thread = (
            threading.Event(),
            threading.Event(),
            threading.current_thread(),
        )

    def open(self) -> FakeStore:
        self.opened += 1
        if self.mood == "gone":
            raise StoreError("the online store is gone")
        return self

    def fetch(self, user_ids) -> list[UserRows]:
        self.asked.append(list(user_ids))
        if self.mood == "hangs":
            self.hung_thread = threading.current_thread()
            self.hung.set()
            self.release.wait()
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


def fetch(reader: StoreReader, *users: int, timeout: float | None = None) -> list:
    async def together() -> list:
        return await asyncio.gather(*(reader.fetch(user, timeout) for user in users))

    return asyncio.run(together())


@pytest.mark.parametrize(
    ("mood", "which"), [("gone", "reader"), ("odd", "reader"), ("hangs", "hasty")]
)
def test_a_store_in_trouble_gives_what_was_known_and_mends_itself(
    request, store, monkeypatch, mood: str, which: str
) -> None:
    reader = request.getfixturevalue(which)
    monkeypatch.setattr(module, "RETRY_SECONDS", 1_000.0)
    monkeypatch.setattr(module, "ABANDON_SECONDS", 1_000.0)
    eventually(lambda: not fetch(reader, 5)[0].degraded)
    (before,) = fetch(reader, 5)
    assert before.rows.history.num_rows == 5
    store.mood = mood
    known, unknown = fetch(
        reader, 5, 6
    )  # answered although the store hangs, until it is released below
    assert (
        known.degraded
        and known.rows.history.equals(before.rows.history)
        and known.rows.features == {"region": "north"}
    )
    assert unknown.degraded and unknown.rows.history.num_rows == 0 and unknown.rows.features is None
    eventually(reader._known_trouble)
    with monkeypatch.context() as patch:
        patch.setattr(reader, "_ask", pytest.fail)  # nobody waits for it now
        assert all(each.degraded for each in fetch(reader, 5, 6, 7))
    store.mood = "well"
    store.release.set()
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    eventually(lambda: not fetch(reader, 6)[0].degraded)
    assert reader.num_events(6) == 6 and reader.num_events(7) is None


def test_a_read_that_never_ends_is_given_up_and_changes_nothing_later(
    hasty, store, monkeypatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 1_000.0)
    eventually(lambda: not fetch(hasty, 5)[0].degraded)
    store.mood, opened = "hangs", store.opened
    assert fetch(hasty, 5)[0].degraded and store.hung.wait(60)
    store.mood = "well"
    monkeypatch.setattr(module, "ABANDON_SECONDS", 0.0)
    eventually(hasty._known_trouble)  # which starts another thread
    monkeypatch.setattr(module, "ABANDON_SECONDS", 1_000.0)
    eventually(lambda: not fetch(hasty, 5)[0].degraded)
    assert store.opened == opened + 1 and store.hung_thread.is_alive()
    store.mood = "gone"
    store.release.set()
    store.hung_thread.join(60)  # it ends, with an error
    assert not store.hung_thread.is_alive() and not hasty._known_trouble()


def test_garbage_of_one_user_is_that_users_trouble(reader, store) -> None:
    store.mood = "garbage"
    answers = fetch(reader, 1, 2, 3, 4)
    assert [bool(answer.degraded) for answer in answers] == [False, False, True, False]
    assert [answer.rows.history.num_rows for answer in answers] == [1, 2, 0, 4]


def test_a_short_deadline_is_shorter_than_the_readers(reader, store) -> None:
    store.mood, started = "hangs", time.monotonic()
    assert fetch(reader, 5, timeout=0.02)[0].degraded
    assert time.monotonic() - started < 30  # the reader's own is 60


def test_what_is_kept_is_bounded(store) -> None:
    reader = StoreReader(store.open, small_histories.SCHEMA, timeout_seconds=60, keep_bytes=4_000)
    fetch(reader, *range(1, 30))
    assert 0 < reader._known_bytes <= 4_000 and len(reader._known) < 29
    assert history.empty(small_histories.SCHEMA).num_rows == 0
    reader.close()


def test_a_store_that_cannot_be_opened_at_the_start_is_an_error(store) -> None:
    store.mood = "gone"
    with pytest.raises(StoreError, match="gone"):
        StoreReader(store.open, small_histories.SCHEMA)
