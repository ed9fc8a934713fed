"""Processes that end with the process that started them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

LIMIT_SECONDS = 5.0
CHILD = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
from longrec import child
if len(sys.argv) == 2:
    subprocess.Popen(child.command(sys.argv[0], sys.argv[1], "last"))
else:
    open(sys.argv[1], "w").close()
time.sleep(900)
"""
PARENT = """
import signal, subprocess, sys, time
from longrec import child
for number in (signal.SIGHUP, signal.SIGINT):  # a job in the background may ignore them
    signal.signal(number, signal.SIG_DFL)
subprocess.Popen(child.command(*sys.argv[1:]))
time.sleep(900)
"""


def descendants_of(process: subprocess.Popen[bytes], started: Path) -> list[psutil.Process]:
    """Return all processes below one, once the last of them has started."""
    limit = time.monotonic() + 60
    while not started.exists():
        assert time.monotonic() < limit
        time.sleep(0.05)
    return psutil.Process(process.pid).children(recursive=True)


def seconds_until_ended(processes: list[psutil.Process]) -> float:
    """Return the seconds until no process runs; one without a reaping parent stays a zombie."""
    start = time.monotonic()
    while any(is_running(process) for process in processes):
        assert time.monotonic() < start + 60, "a process goes on"
        time.sleep(0.05)
    return time.monotonic() - start


def is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGSEGV, signal.SIGINT]
)
def test_a_child_and_its_child_end_however_the_parent_dies(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Both ignore SIGTERM."""
    script = tmp_path / "a script.py"
    script.write_text(CHILD)
    started = tmp_path / "started"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(script), str(started)], stderr=subprocess.DEVNULL
    )
    children = descendants_of(parent, started)
    assert len(children) == 2
    parent.send_signal(number)  # nobody waits for it: it is a zombie
    assert seconds_until_ended(children) < LIMIT_SECONDS
    parent.wait()


def test_a_module_and_a_script_get_their_arguments(tmp_path: Path) -> None:
    from longrec import child

    script = tmp_path / "show.py"
    script.write_text("import sys; print(__name__, sys.argv[1:], sys.path[0])")
    shown = subprocess.check_output(child.command(str(script), "a b", "-m"), text=True)
    assert shown.strip() == f"__main__ ['a b', '-m'] {tmp_path}"
    done = subprocess.run(child.command("-m", "json.tool", "--help"), capture_output=True)
    assert b"json.tool" in done.stdout
    assert done.returncode == 0


def test_an_exit_code_is_that_of_the_module(tmp_path: Path) -> None:
    from longrec import child

    script = tmp_path / "fail.py"
    script.write_text("raise SystemExit(7)")
    assert subprocess.run(child.command(str(script)), check=False).returncode == 7
