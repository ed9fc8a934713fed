"""StoreReader: rows of users within a time, whatever the feature store does: slow, gone, or full of
garbage.

One thread reads, all users that are asked for at the moment in one question. What was read last of
a user is kept; when the store
does not answer in time, or with an error, that is what the request gets, or an empty history, and
it is told so. Nobody waits for a
store that is known not to answer; it is opened anew until it does, so it mends itself.
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
from longrec.data.store.reader import UserRows
from longrec.errors import DataError, LongrecError, SchemaMismatch, StoreError
from longrec.schema import Schema

logger = logging.getLogger(__name__)

USERS_PER_READ = 64
RETRY_SECONDS = 0.5
"""Between two attempts at a store that failed; requests in between do not wait for it."""
ABANDON_SECONDS = 10.0
"""After which a read is given up for good and another thread opens the store anew; such a thread
may hang for ever.
"""
MAX_ABANDONED = 8
LOG_SECONDS = 1.0


class Store(Protocol):
    """What is read: longrec.data.store.reader.OnlineStore."""

    def fetch(self, user_ids: Sequence[int]) -> list[UserRows]:
        """Returns what is known of each user, in the order asked for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fetched:
    """Rows of a user, and what is wrong with them.

    Args:
        rows: as the store gave them, now or, when degraded, before; or an empty history without
            features.
        degraded: why the store was not read, empty when it was.
    """

    rows: UserRows
    degraded: str = ""


_Waiting = dict[int, concurrent.futures.Future[UserRows]]


class StoreReader:
    """Reads users from a store that may fail.

    Args:
        open_store: opens it; called in the thread that reads.
        schema: of empty histories.
        timeout_seconds: longest wait for the store.
        keep_bytes: of the rows kept for when it fails.

    Raises:
        LongrecError: the store cannot be opened now, at the start.
    """

    def __init__(
        self,
        open_store: Callable[[], Store],
        schema: Schema,
        *,
        timeout_seconds: float = 0.5,
        keep_bytes: int = 64 << 20,
    ) -> None:
        self._open_store, self._schema, self._timeout, self._keep_bytes = (
            open_store,
            schema,
            timeout_seconds,
            keep_bytes,
        )
        self._wake, self._waiting, self._closed = threading.Condition(), _Waiting(), False
        self._known: collections.OrderedDict[int, UserRows] = collections.OrderedDict()
        self._known_bytes, self._num_abandoned, self._logged_at = 0, 0, 0.0
        self._failed_at, self._failure, self._reader = -RETRY_SECONDS, "", 0
        self._busy_since: float | None = None
        opened = concurrent.futures.Future[None]()
        self._start(opened)
        opened.result()

    def num_events(self, user_id: int) -> int | None:
        """Returns the events of a user when last read, None for a user who was not."""
        rows = self._known.get(user_id)
        return None if rows is None else int(rows.history.num_rows)

    async def fetch(self, user_id: int, timeout_seconds: float | None = None) -> Fetched:
        """Returns the rows of a user after `timeout_seconds` at most, by default those of the
        reader; never fails.
        """
        allowed = self._timeout if timeout_seconds is None else min(self._timeout, timeout_seconds)
        if reason := self._known_trouble():
            return self._fallback(user_id, reason)
        try:
            return Fetched(
                await asyncio.wait_for(
                    asyncio.shield(asyncio.wrap_future(self._ask(user_id))), allowed
                )
            )
        except TimeoutError:
            return self._fallback(user_id, f"no answer within {allowed * 1e3:.0f} ms")
        except (StoreError, DataError, SchemaMismatch) as error:
            return self._fallback(user_id, str(error))

    def close(self) -> None:
        """Reads nothing more."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def _known_trouble(self) -> str:
        """Returns why asking the store is no use now, empty when it is worth trying; gives a reader
        up that hangs.
        """
        now, since = time.monotonic(), self._busy_since
        if since is None or now - since < self._timeout:
            return self._failure if now - self._failed_at < RETRY_SECONDS else ""
        if now - since > ABANDON_SECONDS and self._num_abandoned < MAX_ABANDONED:
            self._num_abandoned += 1
            self._start(concurrent.futures.Future())
        return f"no answer for {now - since:.1f} s"

    def _ask(self, user_id: int) -> concurrent.futures.Future[UserRows]:
        with self._wake:
            if user_id not in self._waiting:
                self._waiting[user_id] = concurrent.futures.Future()
                self._wake.notify_all()
            return self._waiting[user_id]

    def _fallback(self, user_id: int, reason: str) -> Fetched:
        if time.monotonic() - self._logged_at > LOG_SECONDS:
            self._logged_at = time.monotonic()
            logger.error("degraded answers, the feature store cannot be read: %s", reason)
        rows = self._known.get(user_id)
        return Fetched(
            UserRows(user_id, history.empty(self._schema), None) if rows is None else rows, reason
        )

    def _start(self, opened: concurrent.futures.Future[None]) -> None:
        with self._wake:
            self._reader += 1
            self._busy_since = time.monotonic()
        threading.Thread(
            target=self._run, args=(self._reader, opened), name="longrec-reader", daemon=True
        ).start()

    def _run(self, number: int, opened: concurrent.futures.Future[None]) -> None:
        store: Store | None = None
        try:
            store = self._open_store()
            opened.set_result(None)
        except BaseException as error:
            opened.set_exception(error)
            if not isinstance(error, LongrecError):
                return
        while (users := self._next(number)) is not None:
            try:
                store = store or self._open_store()
                self._read(store, users)
            except Exception as error:
                store = None
                if (
                    number == self._reader
                ):  # what a reader that was given up finds in the end says nothing of now
                    self._failure, self._failed_at = (
                        f"{type(error).__name__}: {error}",
                        time.monotonic(),
                    )
                self._fail(users, error)

    def _next(self, number: int) -> _Waiting | None:
        """Returns users who are waited for; None when this thread is to end."""
        with self._wake:
            if number != self._reader:
                return None
            self._busy_since = None
            while not self._waiting and not self._closed:
                self._wake.wait()
                if number != self._reader:
                    return None
            if self._closed:
                return None
            self._busy_since = time.monotonic()
            return {
                user_id: self._waiting.pop(user_id)
                for user_id in list(self._waiting)[:USERS_PER_READ]
            }

    def _read(self, store: Store, users: _Waiting) -> None:
        try:
            found = store.fetch(list(users))
        except DataError as error:  # of one of them, perhaps
            if len(users) == 1:
                self._fail(users, error)
                return
            for user_id, future in users.items():
                self._read(store, {user_id: future})
            return
        for rows, future in zip(found, users.values(), strict=True):
            self._keep(rows)
            future.set_result(rows)

    def _fail(self, users: _Waiting, error: Exception) -> None:
        known = (
            error
            if isinstance(error, LongrecError)
            else StoreError("the online store cannot be read", found=repr(error))
        )
        for future in users.values():
            if not future.done():
                future.set_exception(known)

    def _keep(self, rows: UserRows) -> None:
        before = self._known.pop(rows.user_id, None)
        self._known[rows.user_id] = rows
        self._known_bytes += _num_bytes(rows) - (0 if before is None else _num_bytes(before))
        while self._known_bytes > self._keep_bytes and self._known:
            self._known_bytes -= _num_bytes(self._known.popitem(last=False)[1])


def _num_bytes(rows: UserRows) -> int:
    return 256 + int(rows.history.get_total_buffer_size())
