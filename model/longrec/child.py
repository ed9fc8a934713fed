"""Processes that end with the process that started them, however that one ends.

    python -m longrec.child PARENT -m MODULE [ARGUMENTS]
    python -m longrec.child PARENT SCRIPT [ARGUMENTS]

The system gives a process another parent as soon as its own one is dead, also after SIGKILL. A
thread of the child notices that, on Linux and macOS.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

POLL_SECONDS = 0.25
GRACE_SECONDS = 1.5
"""Time between SIGTERM and SIGKILL: a chain of two processes ends within 5 s."""


def command(*arguments: str) -> list[str]:
    """Return the command line of a Python process that ends with this process.

    Args:
        arguments: `-m` and a module, or a script; then its own arguments.
    """
    return [sys.executable, "-m", "longrec.child", str(os.getpid()), *arguments]


def end_with(parent: int) -> None:
    """End this process soon after it is no child of `parent` any more.

    Args:
        parent: process id of the one that started it.
    """
    watch = threading.Thread(
        target=_watch,
        args=(parent,),
        name="longrec-parent",
        daemon=True,
    )
    watch.start()


def main() -> None:
    """Run a module or a script as the main program."""
    parent, *arguments = sys.argv[1:]
    end_with(int(parent))
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).resolve().parent)
    runpy.run_path(arguments[0], run_name="__main__")


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
