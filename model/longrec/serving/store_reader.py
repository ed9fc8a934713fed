"""StoreReader: rows of users in time, even when the feature store is slow or down.

One thread reads the store, for all waiting users in one query. The last rows of each user are
cached. When the store does not answer in time, a request gets those rows, or an empty history, and
its answer is marked as degraded. While the store is known to be down, requests do not wait for it:
one of them tries it again every RETRY_SECONDS.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from longrec.data import history
from longrec.data.store.user_record import UserRecord
from longrec.data.upkeep.forget_list import ForgetWatcher
from longrec.errors import DataError, LongrecError, StoreError
from longrec.schema import Schema

logger = logging.getLogger(__name__)

MAX_USERS_PER_READ = 64
RETRY_SECONDS = 0.5
"""Time between two attempts at a failed store; requests in between do not wait for it."""
ABANDON_SECONDS = 10.0
"""A longer read is abandoned: another thread opens the store again, this one may hang for ever."""
MAX_ABANDONED = 8
"""Threads that may be abandoned in the life of a reader."""
LOG_SECONDS = 1.0
"""Shortest time between two log lines about degraded answers."""
OBJECT_BYTES = 256
"""Estimated size of a cached user without the history."""


class Store(Protocol):
    """A readable store: longrec.data.store.online_store.OnlineStore."""

    @property
    def behind(self) -> str:
        """Why the last read may lack pushed events; empty if it lacks none."""

    def fetch(self, user_ids: Sequence[int]) -> list[UserRecord]:
        """Return the rows of each user, in the order of the ids."""


@dataclasses.dataclass(frozen=True, slots=True)
class FetchResult:
    """Rows of a user, and whether they are fresh.

    Args:
        rows: rows of the user; when degraded, the last ones read or an empty history.
        degraded: reason why the rows may not be the newest; empty if they are.
    """

    rows: UserRecord
    degraded: str = ""


_Waiting = dict[int, concurrent.futures.Future[UserRecord]]
"""Users that requests wait for."""


class StoreReader:
    """Reader of users from a store that may fail.

    Args:
        open_store: opens the store; called in the reading thread.
        schema: schema of empty histories.
        timeout_seconds: longest wait for the store.
        cache_bytes: bytes of cached rows.
        forgotten: tells whose rows to remove; None to keep all.

    Raises:
        LongrecError: the store cannot be opened at the start.
    """

    def __init__(
        self,
        open_store: Callable[[], Store],
        schema: Schema,
        *,
        timeout_seconds: float = 0.5,
        cache_bytes: int = 64 << 20,
        forgotten: ForgetWatcher | None = None,
    ) -> None:
        self._open_store = open_store
        self._schema = schema
        self._timeout_seconds = timeout_seconds
        self._cache_bytes = cache_bytes
        self._forgotten = forgotten
        self._cached = collections.OrderedDict[int, UserRecord]()
        self._num_cached_bytes = 0
        self._changed = threading.Condition()
        self._waiting = _Waiting()
        self._is_closed = False
        self._current_thread = 0
        self._num_abandoned = 0
        self._busy_since: float | None = None
        self._behind = ""
        self._failure = ""
        self._failed_at = -RETRY_SECONDS
        self._logged_at = 0.0
        is_open = concurrent.futures.Future[None]()
        self._start_thread(is_open)
        is_open.result()

    def num_events(self, user_id: int) -> int | None:
        """Return the number of events at the last read of a user, None for a user never read."""
        rows = self._cached.get(user_id)
        if rows is None:
            return None
        return int(rows.history.num_rows)

    async def fetch(self, user_id: int, timeout_seconds: float | None = None) -> FetchResult:
        """Return the rows of a user in time; a failing store gives a degraded result.

        Args:
            user_id: id of the user.
            timeout_seconds: longest wait, if shorter than the reader's own.
        """
        timeout = self._timeout_seconds
        if timeout_seconds is not None:
            timeout = min(timeout, timeout_seconds)
        reason = self._unavailable_reason()
        if reason:
            return self._degraded(user_id, reason)
        rows = asyncio.shield(asyncio.wrap_future(self._enqueue(user_id)))
        try:
            return FetchResult(await asyncio.wait_for(rows, timeout), self._behind)
        except TimeoutError:
            return self._degraded(user_id, f"no answer within {timeout * 1e3:.0f} ms")
        except LongrecError as error:
            return self._degraded(user_id, str(error))

    def close(self) -> None:
        """Stop reading."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _unavailable_reason(self) -> str:
        """Return why the store is unavailable, empty if a read is worth trying.

        A read that hangs too long is abandoned here.
        """
        now = time.monotonic()
        busy_since = self._busy_since
        if busy_since is None or now - busy_since < self._timeout_seconds:
            has_just_failed = now - self._failed_at < RETRY_SECONDS
            return self._failure if has_just_failed else ""
        busy_seconds = now - busy_since
        if busy_seconds > ABANDON_SECONDS and self._num_abandoned < MAX_ABANDONED:
            self._num_abandoned += 1
            self._start_thread(concurrent.futures.Future())
        return f"no answer for {busy_seconds:.1f} s"

    def _enqueue(self, user_id: int) -> concurrent.futures.Future[UserRecord]:
        with self._changed:
            if user_id not in self._waiting:
                self._waiting[user_id] = concurrent.futures.Future()
                self._changed.notify_all()
            return self._waiting[user_id]

    def _degraded(self, user_id: int, reason: str) -> FetchResult:
        """Return the cached rows of a user, or an empty history."""
        now = time.monotonic()
        if now - self._logged_at > LOG_SECONDS:
            self._logged_at = now
            logger.error("degraded answers, the feature store cannot be read: %s", reason)
        rows = self._cached.get(user_id)
        if rows is None:
            rows = UserRecord(user_id, history.empty(self._schema), None)
        return FetchResult(rows, reason)

    def _start_thread(self, is_open: concurrent.futures.Future[None]) -> None:
        """Start another reading thread; the one before it ends as soon as it is free."""
        with self._changed:
            self._current_thread += 1
            self._busy_since = time.monotonic()
        thread = threading.Thread(
            target=self._run,
            args=(self._current_thread, is_open),
            name="longrec-reader",
            daemon=True,
        )
        thread.start()

    def _run(self, number: int, is_open: concurrent.futures.Future[None]) -> None:
        store: Store | None = None
        try:
            store = self._open_store()
            is_open.set_result(None)
        except BaseException as error:
            is_open.set_exception(error)
            if not isinstance(error, LongrecError):
                return
            # A thread that replaces an abandoned one goes on: the store may come back.
        while (users := self._next_users(number)) is not None:
            try:
                self._remove_forgotten()
                store = store or self._open_store()
                self._read(store, users, number)
            except Exception as error:
                store = None
                self._report_failure(number, error)
                _fail(users, error)

    def _next_users(self, number: int) -> _Waiting | None:
        """Wait for users; return None when this thread must end."""
        with self._changed:
            if number != self._current_thread:
                return None
            self._busy_since = None
            while not self._waiting and not self._is_closed:
                self._changed.wait()
                if number != self._current_thread:
                    return None
            if self._is_closed:
                return None
            self._busy_since = time.monotonic()
            user_ids = list(self._waiting)[:MAX_USERS_PER_READ]
            return {user_id: self._waiting.pop(user_id) for user_id in user_ids}

    def _read(
        self,
        store: Store,
        users: _Waiting,
        number: int,
    ) -> None:
        try:
            found = store.fetch(list(users))
        except DataError as error:
            if len(users) == 1:
                _fail(users, error)
                return
            # The damaged rows may be those of one user: read each user alone.
            for user_id, future in users.items():
                self._read(store, {user_id: future}, number)
            return
        if number == self._current_thread:
            self._note_behind(store.behind)
        for rows, future in zip(found, users.values(), strict=True):
            if number == self._current_thread:
                # Rows of an abandoned thread are old: they must not replace newer ones.
                self._cache(rows)
            future.set_result(rows)

    def _note_behind(self, reason: str) -> None:
        """Remember why the store lacks pushed events, and log it when that begins."""
        if reason and not self._behind:
            logger.error("degraded answers, the feature store lacks pushed events: %s", reason)
        self._behind = reason

    def _report_failure(self, number: int, error: Exception) -> None:
        if number != self._current_thread:
            return  # an abandoned thread knows nothing about the store of now
        self._failure = f"{type(error).__name__}: {error}"
        self._failed_at = time.monotonic()

    def _remove_forgotten(self) -> None:
        """Remove the rows of users who were forgotten meanwhile."""
        if self._forgotten is not None:
            for user_id in self._forgotten.newly_forgotten():
                self._remove(user_id)

    def _remove(self, user_id: int) -> None:
        before = self._cached.pop(user_id, None)
        if before is not None:
            self._num_cached_bytes -= _num_bytes(before)

    def _cache(self, rows: UserRecord) -> None:
        self._remove(rows.user_id)
        self._cached[rows.user_id] = rows
        self._num_cached_bytes += _num_bytes(rows)
        while self._num_cached_bytes > self._cache_bytes and self._cached:
            _, oldest = self._cached.popitem(last=False)
            self._num_cached_bytes -= _num_bytes(oldest)


def _fail(users: _Waiting, error: Exception) -> None:
    """Fail all requests that wait for these users."""
    if not isinstance(error, LongrecError):
        error = StoreError("the online store cannot be read", found=repr(error))
    for future in users.values():
        if not future.done():
            future.set_exception(error)


def _num_bytes(rows: UserRecord) -> int:
    return OBJECT_BYTES + int(rows.history.get_total_buffer_size())
