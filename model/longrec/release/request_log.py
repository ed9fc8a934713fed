"""Write a bounded log of answered requests, the input of the live drift report.

    LONGREC_HOME/requests/*.parquet

A row is one candidate of one answered request. It has the columns of predictions.parquet without
the labels, the model version, and whether the answer was degraded.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data import files
from longrec.data.upkeep.forget_list import forgotten_users, without_users
from longrec.errors import DataError
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID

log = logging.getLogger("bentoml.longrec.request_log")

FILE_ROWS = 20_000
"""Rows after which a file is written."""
FILE_SECONDS = 60.0
"""Longest wait until a file is written."""
MAX_FILES = 64
"""Files of a work directory; the oldest are deleted."""
MAX_PENDING = 100_000
"""Rows in memory above which answers are dropped."""
MAX_LOGGED_CANDIDATES = 50
"""Candidates of one answer that are logged, the first ones."""


class RequestLog:
    """Writes a share of the answers to files, in a thread of its own.

    Args:
        workdir: LONGREC_HOME.
        share: share of the requests that are logged, 0 to 1.
    """

    def __init__(self, workdir: str | Path, share: float) -> None:
        self.num_dropped = 0
        self._folder = Path(workdir) / "requests"
        self._share = share
        self._rows: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_stopped = False
        # Workers of one service are to log different requests.
        self._random = random.Random(os.getpid())  # noqa: S311
        self._thread = threading.Thread(
            target=self._run,
            name="requestlog",
            daemon=True,
        )
        if share > 0:
            self._thread.start()

    def add(
        self,
        user_id: int,
        request_time_ms: int,
        items: Sequence[int],
        scores: Mapping[str, Sequence[float]],
        **columns: Any,
    ) -> None:
        """Log an answer, or skip it by chance; never wait.

        Args:
            user_id: of the request.
            request_time_ms: of the request.
            items: candidates.
            scores: per task, in the order of the items.
            columns: values of further columns: history_length, model_version, degraded.
        """
        if self._random.random() >= self._share:
            return
        if len(self._rows) > MAX_PENDING:
            self.num_dropped += 1
            return
        # 63 random bits: the id fits an int64 and is not negative.
        request_id = uuid.uuid4().int >> 65
        request = {
            REQUEST_ID: request_id,
            USER_ID: user_id,
            TIMESTAMP: request_time_ms,
            **columns,
        }
        rows = []
        for position, item in enumerate(items[:MAX_LOGGED_CANDIDATES]):
            row = {**request, ITEM_ID: item}
            for task, values in scores.items():
                row[f"{task}_score"] = float(values[position])
            rows.append(row)
        with self._lock:
            self._rows += rows
        if len(self._rows) >= FILE_ROWS:
            self._wake.set()

    def stop(self) -> None:
        """Write the remaining rows and stop the thread."""
        self._is_stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._is_stopped:
            self._wake.wait(FILE_SECONDS)
            self._wake.clear()
            self._try_to_write()
        # Rows may have come while the loop wrote the ones before.
        self._try_to_write()

    def _try_to_write(self) -> None:
        """Write the rows in memory; log a warning if that fails, for example on a full disk."""
        try:
            self._write()
        except (OSError, DataError) as error:
            log.warning("the log of requests cannot be written: %s", error)

    def _write(self) -> None:
        with self._lock:
            rows = self._rows
            self._rows = []
        if not rows:
            return
        # Sorted by name, files are sorted by time.
        time_ms = time.time_ns() // 1_000_000
        name = f"{time_ms:015d}-{socket.gethostname()}-{os.getpid()}.parquet"
        table = without_users(pa.Table.from_pylist(rows), forgotten_users(self._folder.parent))
        with files.atomic_replace(self._folder / name) as temporary:
            pq.write_table(table, temporary)
        paths = sorted(self._folder.glob("*.parquet"))
        for path in paths[:-MAX_FILES]:
            path.unlink(missing_ok=True)


def log_files(workdir: str | Path) -> list[Path]:
    """Return the files of the log, oldest first."""
    return sorted((Path(workdir) / "requests").glob("*.parquet"))
