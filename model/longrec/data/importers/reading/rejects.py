"""Rows of an import by what became of them: accepted, filtered by a rule, or rejected as bad.

Every row that is read is one of the three. A bad row never stops an import by itself. It is
written with its file, line and reason, and the share of bad rows is limited.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from longrec.data.columns import Int64
from longrec.data.files import temporary_path
from longrec.data.timelines import Mask
from longrec.errors import DataError

MAX_WRITTEN_REJECTS = 100_000
"""Largest number of rejected rows in the CSV file; the counts cover all of them."""
MAX_ROW_TEXT = 500
"""Number of characters of a rejected row that are written."""
GROUPS = ("events", "items", "users")
CSV_HEADER = ("file", "line", "reason", "row")


class Rejects:
    """Counts of the rows of one import, and its rejected rows, written to a CSV file.

    The file is next to the dataset directory until `move_to` or `check_share` moves it.

    Args:
        directory: the dataset directory of the import.
        max_share: largest share of rejected rows in each group (`events`, `items`, `users`).
    """

    def __init__(self, directory: Path, max_share: float) -> None:
        if not 0 <= max_share <= 1:
            raise DataError("max_reject_share must be between 0 and 1", found=max_share)
        self.max_share = max_share
        self.num_read: Counter[str] = Counter()
        self.num_accepted: Counter[str] = Counter()
        self.num_filtered: Counter[str] = Counter()
        self.num_rejected: Counter[str] = Counter()
        self.filters: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.failed_import_path = directory.parent / f"{directory.name}.rejects.csv"
        self._path = temporary_path(directory, "rejects")
        self._stream: io.TextIOBase | None = None
        self._num_written = 0

    def __enter__(self) -> Rejects:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()
        self._path.unlink(missing_ok=True)

    def add(
        self,
        file: LogFile,
        reason: str,
        lines: Sequence[int],
        texts: Iterable[str],
        *,
        num_lines: int | None = None,
    ) -> None:
        """Count rejected rows and write them to the CSV file.

        Args:
            file: the file of the rows.
            reason: why they were rejected.
            lines: the line of each row.
            texts: the text of each row; read only as far as rows are written.
            num_lines: number of lines that the rows cover; None for one line per row.
        """
        count = len(lines) if num_lines is None else num_lines
        self.num_rejected[file.group] += count
        self.reasons[f"{file.group}: {reason}"] += count
        stream = self._open()
        writer = csv.writer(stream)
        num_left = MAX_WRITTEN_REJECTS - self._num_written
        # The texts may be more than the lines that may still be written.
        for line, text in zip(lines[:num_left], texts, strict=False):
            self._num_written += 1
            writer.writerow([file.path.name, line, reason, text[:MAX_ROW_TEXT]])

    def filter(
        self,
        group: str,
        name: str,
        count: int,
    ) -> None:
        """Count rows that a filter left out.

        Args:
            group: `events`, `items` or `users`.
            name: of the filter.
            count: number of rows.
        """
        if count:
            self.num_filtered[group] += count
            self.filters[f"{group}: {name}"] += count

    def counts(self) -> dict[str, dict[str, int]]:
        """Return group -> numbers of rows: read, accepted, filtered, rejected."""
        counters = {
            "read": self.num_read,
            "accepted": self.num_accepted,
            "filtered": self.num_filtered,
            "rejected": self.num_rejected,
        }
        groups = [group for group in GROUPS if self.num_read[group]]
        return {
            group: {name: counter[group] for name, counter in counters.items()} for group in groups
        }

    def describe(self, group: str) -> str:
        """Return how many rows of a group were read and what became of them, in words."""
        counts = (self.filters + self.reasons).most_common()
        names = [
            f"{count:,} {name.removeprefix(f'{group}: ')}"
            for name, count in counts
            if name.startswith(f"{group}: ")
        ]
        return "; ".join([f"{self.num_read[group]:,} rows", *names])

    def check_share(self, group: str) -> None:
        """Raise a DataError when too large a share of a group was rejected.

        The CSV file then stays next to the dataset directory, as NAME.rejects.csv.
        """
        num_rejected = self.num_rejected[group]
        num_read = self.num_read[group]
        if num_rejected <= self.max_share * num_read:
            return
        self._close()
        self._path.replace(self.failed_import_path)
        raise DataError(
            f"too many rows of the {group} were rejected, nothing was imported",
            found=f"{num_rejected:,} of {num_read:,} ({self._reasons_of(group)})",
            expected=f"at most a share of {self.max_share:g}",
            fix=f"See {self.failed_import_path}; fix the rows or raise --max-reject-share.",
        )

    def move_to(self, path: Path) -> bool:
        """Move the CSV file to `path`; return False when no row was rejected."""
        self._close()
        if not self._path.exists():
            return False
        self._path.replace(path)
        return True

    def _reasons_of(self, group: str) -> str:
        prefix = f"{group}: "
        counts = [
            f"{count:,} {reason.removeprefix(prefix)}"
            for reason, count in self.reasons.most_common()
            if reason.startswith(prefix)
        ]
        return "; ".join(counts)

    def _open(self) -> io.TextIOBase:
        if self._stream is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._path.open(
                "w",
                encoding="utf-8",
                newline="",
                errors="backslashreplace",
            )
            csv.writer(self._stream).writerow(CSV_HEADER)
        return self._stream

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()


@dataclasses.dataclass(frozen=True, slots=True)
class LogFile:
    """A log file to read, and the destination of its bad rows.

    Args:
        path: the file.
        group: `events`, `items` or `users`; rows are counted by group.
        rejects: receives the bad rows.
    """

    path: Path
    group: str
    rejects: Rejects

    def count_rows(self, count: int) -> None:
        """Add rows to the number of rows read."""
        self.rejects.num_read[self.group] += count


@dataclasses.dataclass(frozen=True, slots=True)
class LogBatch:
    """Some rows of a log file.

    Args:
        file: the file that holds them.
        table: the rows.
        lines: int64 [N], line of each row in a text file or its number in a Parquet file, from 1.
    """

    file: LogFile
    table: pa.RecordBatch
    lines: Int64

    def reject(
        self,
        is_bad: Mask,
        reason: str,
        num_lines: Int64 | None = None,
    ) -> None:
        """Count and write bad rows; the batch itself does not change.

        Args:
            is_bad: bool [N], the rows to reject.
            reason: why they are rejected.
            num_lines: int64 [N], number of lines that each row covers; None for one each.
        """
        rows = np.flatnonzero(is_bad)
        if not len(rows):
            return
        self.file.rejects.add(
            self.file,
            reason,
            self.lines[rows].tolist(),
            (_row_text(self.table, int(row)) for row in rows),
            num_lines=None if num_lines is None else int(num_lines[rows].sum()),
        )

    def leave_out(self, is_out: Mask, name: str) -> LogBatch:
        """Return the other rows; count the rows that the filter leaves out.

        Args:
            is_out: bool [N], the rows to leave out.
            name: of the filter.
        """
        if not is_out.any():
            return self
        self.file.rejects.filter(self.file.group, name, int(is_out.sum()))
        return self.filter(~is_out)

    def filter(self, mask: Mask) -> LogBatch:
        """Return the batch with the masked rows only; nothing is counted."""
        return LogBatch(
            self.file,
            self.table.filter(pa.array(mask)),
            self.lines[mask],
        )

    def with_table(self, table: pa.RecordBatch) -> LogBatch:
        """Return the same lines with other columns."""
        return LogBatch(self.file, table, self.lines)


def _row_text(table: pa.RecordBatch, row: int) -> str:
    stream = io.StringIO()
    values = [column[row].as_py() for column in table.columns]
    csv.writer(stream, lineterminator="").writerow(values)
    return stream.getvalue()
