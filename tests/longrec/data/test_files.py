"""Atomic file writes: old or new content after any failure; a full disk is one line."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from longrec.data import files
from longrec.errors import DataError, LongrecError


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def write(path: Path, text: str) -> None:
    with files.atomic_replace(path) as temporary:
        temporary.mkdir()
        (temporary / "a").write_text(text)


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_directory_is_replaced_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda left, right: False)
    write(tmp_path / "out", "old")
    write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "a").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_two_directories_change_places_in_one_step(tmp_path: Path) -> None:
    """One of the versions exists at any time, which two renames cannot ensure."""
    write(tmp_path / "x", "x")
    write(tmp_path / "y", "y")
    assert files._exchange(tmp_path / "x", tmp_path / "y")
    assert [(tmp_path / name / "a").read_text() for name in "xy"] == ["y", "x"]
    assert not files._exchange(tmp_path / "x", tmp_path / "none")


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(
    tmp_path: Path,
) -> None:
    host = socket.gethostname()
    dead = dead_pid()
    alive = os.getppid()
    for name in (f".out.tmp-{host}-{dead}-00", f".out.spill-{host}-{dead}-00"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    untouched = [
        f".out.tmp-{host}-{alive}-00",
        f".out.tmp-elsewhere-{dead}-00",
        f".other.tmp-{host}-{dead}-00",
    ]
    for name in untouched:
        (tmp_path / name).touch()
    write(tmp_path / "out", "new")
    assert names(tmp_path) == sorted(["out", *untouched])


def test_an_old_version_that_was_moved_aside_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / f".out.old-{socket.gethostname()}-{dead_pid()}-00"
    write(aside, "old")
    files.remove_leftovers(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_leaves_the_old_version(tmp_path: Path, number: int) -> None:
    write(tmp_path / "out", "old")
    message = r"no space is left to write .*out; found .*\. Free some space"
    with pytest.raises(DataError, match=message), files.atomic_replace(tmp_path / "out") as path:
        path.mkdir()
        raise OSError(number, os.strerror(number))
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert names(tmp_path) == ["out"]


HOLD = """
import sys, time
from pathlib import Path
from longrec.data import files
from longrec.errors import LongrecError

with files.locked(Path(sys.argv[1]), LongrecError("held")):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    busy = LongrecError("another holds it")
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(LongrecError, match="another holds it"), files.locked(path, busy, 0.1):
            pass
    finally:
        child.kill()
        child.wait()
    with files.locked(path, busy):
        pass
    with files.locked(path, busy):
        pass


def test_two_holders_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    busy = LongrecError("another holds it")
    with (
        files.locked(tmp_path / ".lock", busy),
        pytest.raises(LongrecError, match="another holds it"),
        files.locked(tmp_path / ".lock", busy),
    ):
        pass


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), files.atomic_replace(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "no")


def test_a_disk_that_cannot_be_written_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ValueError, match="the first"), files.atomic_replace(tmp_path / "out"):
        raise ValueError("the first")
