"""Search for log files: by name, in a directory, or by a pattern across directories.

Hidden and temporary files and folders are no data: `.ipynb_checkpoints`, `_temporary`, `__MACOSX`.
"""

from __future__ import annotations

import fnmatch
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from longrec.errors import DataError

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
WILDCARDS = "*?["
TEMPORARY_SUFFIXES = (".tmp", ".temp", "~")
REJECTS_SUFFIX = ".rejects.csv"
"""End of the file that a failed import leaves beside its output."""
DATASET_FILE = "dataset.json"
HIVE_FOLDER = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def list_log_files(src: str | Path) -> list[Path]:
    """Return the log files of a file name, a directory or a pattern, in natural order.

    Raises:
        DataError: there are none, or files of several formats, or a dataset lies among them.
    """
    found = sorted(_matching_files(Path(src)), key=natural_sort_key)
    if not found:
        raise DataError(
            f"no log at {src}",
            expected=f"a file, a pattern, or a directory with {', '.join(SUFFIXES)} files",
        )
    suffixes = {path.suffix for path in found}
    unknown = sorted(suffixes - set(SUFFIXES))
    if unknown or len(suffixes) > 1:
        raise DataError(
            f"cannot tell the format of {src}",
            found=", ".join(unknown) or "several formats",
            expected=f"files of one kind: {', '.join(SUFFIXES)}",
        )
    return found


def name_of_log(src: str | Path) -> str:
    """Return a name for the data of a file, a directory or a pattern."""
    path = Path(src)
    if path.exists():
        return path.resolve().stem if path.name in ("", "..") else path.stem
    root, patterns = _split_pattern(path)
    return root.resolve().name if patterns else path.stem


def natural_sort_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Return a sort key that puts part2 before part10."""
    runs = re.findall(r"\d+|\D+", path.name)  # of digits, and of other characters
    key = [(int(run), "") if run.isdigit() else (-1, run) for run in runs]
    return key, str(path)


def with_subdirectories(directory: Path) -> list[Path]:
    """Return a directory and those right below it, sorted; only itself when it does not exist."""
    entries = sorted(directory.iterdir()) if directory.is_dir() else []
    folders = [entry for entry in entries if entry.is_dir() and not _is_hidden(entry.name)]
    return [directory, *folders]


def partition_columns(path: Path) -> dict[str, str | None]:
    """Return the columns in the names of a file's folders, such as `date=2024-05-01`."""
    columns: dict[str, str | None] = {}
    for folder in path.parts[:-1]:
        match = HIVE_FOLDER.fullmatch(folder)
        if match:
            value = urllib.parse.unquote(match[2])
            columns[match[1]] = None if value == HIVE_NULL else value
    return columns


def _matching_files(path: Path) -> set[Path]:
    if path.is_file():
        return {path}
    if path.is_dir():
        return set(_files_below(path, path.rglob("*")))
    root, patterns = _split_pattern(path)
    found: set[Path] = set()
    if not patterns or not root.is_dir():
        return found
    for entry in root.glob("/".join(patterns)):
        if _has_hidden_part(entry, root, patterns):
            continue
        found |= _matching_files(entry)
    return found


def _files_below(directory: Path, entries: Iterable[Path]) -> Iterator[Path]:
    for entry in entries:
        if _has_hidden_part(entry, directory, ()):
            continue
        if entry.name == DATASET_FILE:
            _refuse_dataset(entry.parent)
        if entry.suffix in SUFFIXES and entry.is_file():
            yield entry


def _split_pattern(path: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the directory before the first part with a wildcard, and the parts from there."""
    for index, part in enumerate(path.parts):
        if any(letter in part for letter in WILDCARDS):
            return Path(*path.parts[:index]), path.parts[index:]
    return path, ()


def _has_hidden_part(
    entry: Path,
    root: Path,
    patterns: Sequence[str],
) -> bool:
    """Return whether a part below the root is hidden, unless a pattern asks for such names."""
    asked = [pattern for pattern in patterns if _is_hidden(pattern)]
    for part in entry.relative_to(root).parts:
        is_asked = any(fnmatch.fnmatchcase(part, pattern) for pattern in asked)
        if _is_hidden(part) and not is_asked:
            return True
    return False


def _is_hidden(name: str) -> bool:
    is_partition = HIVE_FOLDER.fullmatch(name) is not None  # such as _date=2024-05-01
    is_hidden = name.startswith((".", "_")) and not is_partition
    return is_hidden or name.endswith((*TEMPORARY_SUFFIXES, REJECTS_SUFFIX))


def _refuse_dataset(directory: Path) -> None:
    """Raise the error of a directory that holds a dataset beside logs, or is one."""
    if not (directory / "events").is_dir():
        return  # another file of this name
    raise DataError(
        f"{directory} is a dataset that longrec wrote, not a log",
        fix="Name the files of the log, or write datasets outside their directory.",
    )
