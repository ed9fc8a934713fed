"""The output of kfp's local runner, read line by line.

kfp.local prints about 55 lines per step. All of them go to the log of the run. Lines about tasks
and the messages of a step become progress.
"""

import contextlib
import io
import logging
import re
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from longrec.runs.local_run import FinishedStep, ProgressListener, StepStatus

ANSI_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
TASK_BEGINS = re.compile(r"Executing task '(?P<name>[^']+)'")
TASK_ENDS = re.compile(r"Task '(?P<name>[^']+)' finished with status '?(?P<status>[A-Z]+)")
CACHE_HIT = re.compile(r"Task (?P<name>\S+) cache hit \(key=(?P<key>[0-9a-f]+)\)")
TASK_SKIPPED = re.compile(r"Skipping conditional task (?P<name>\S+)")
STEP_MESSAGE = re.compile(r"^\s*\[KFP Executor [^\]]* INFO\]: (?P<text>.+)")
KFP_MESSAGES = (
    "Looking for component",
    "Loading KFP component",
    "Got executor_input",
    "Wrote executor output",
)
"""Beginnings of kfp's own messages in the output of a step."""
LONGREC_ERROR = re.compile(r"^longrec\.errors\.\w+: (?P<text>.*)")
OTHER_ERROR = re.compile(
    r"^[A-Za-z_][\w.]*"
    r"(Error|Exception|Interrupt|Exit|Warning|Failure|Failed|Refused|Mismatch)\b(: .*)?$"
)
END_OF_ERROR = re.compile(
    r"^(\s*$|nanobind: | - leaked|\[KFP Executor |\d\d:\d\d:\d\d|[IWEF]\d{4} |time=)"
)
"""First line after the message of an error; on a cluster, lines of Kubeflow's launcher."""
NO_MESSAGE = "it was stopped, or ended without a message (out of memory?)"
MAX_TAIL_LINES = 400
ORCHESTRATOR = "orchestrator"
"""Folder of kfp's modules for conditions and loops.

They warn when they cannot evaluate a condition, and then skip its branch.
"""


class StepLog(io.TextIOBase):
    """A stdout for kfp.local that writes all lines to the log and reports progress.

    Args:
        stream: the log.
        listener: receives the progress.
    """

    def __init__(self, stream: TextIO, listener: ProgressListener) -> None:
        self.finished: list[FinishedStep] = []
        self.skipped: list[str] = []
        self.orchestrator_warnings: list[str] = []
        self.cache_keys: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self._tail: deque[str] = deque(maxlen=MAX_TAIL_LINES)
        self._start_times: dict[str, list[float]] = {}
        self._lock = threading.RLock()  # Iterations of a loop run in threads.
        self._stream = stream
        self._listener = listener
        self._incomplete_line = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._incomplete_line = (self._incomplete_line + text).split("\n")
            for line in lines:
                self._read_line(ANSI_ESCAPE.sub("", line))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def _read_line(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()
        self._tail.append(line)
        if match := TASK_BEGINS.search(line):
            self._begin(match["name"])
        elif match := STEP_MESSAGE.match(line):
            if not match["text"].startswith(KFP_MESSAGES):
                self._listener.detail(match["text"])
        elif match := CACHE_HIT.search(line):
            self.cache_keys[match["name"]] = match["key"]
            self._finish(match["name"], "cached")
        elif match := TASK_SKIPPED.search(line):
            self.skipped.append(match["name"])
        elif (match := TASK_ENDS.search(line)) and match["name"] in self._start_times:
            self._finish(match["name"], "done" if match["status"] == "SUCCESS" else "failed")

    def _begin(self, name: str) -> None:
        if not self._start_times:
            self._tail.clear()
        self._start_times.setdefault(name, []).append(time.perf_counter())
        self._listener.begin(name)

    def _finish(self, name: str, status: StepStatus) -> None:
        start_times = self._start_times.pop(name, [])
        seconds = time.perf_counter() - start_times.pop(0) if start_times else 0.0
        if start_times:
            self._start_times[name] = start_times
        if status == "failed":
            self.failures[name] = error_message(self._tail)
        else:
            self.failures.pop(name, None)  # A retry succeeded.
        step = FinishedStep(name, status, round(seconds, 3))
        self.finished.append(step)
        self._listener.end(step)


class _RecordHandler(logging.Handler):
    """A handler that sends log records to the step log and collects kfp's warnings."""

    def __init__(self, steps: StepLog) -> None:
        super().__init__(logging.INFO)
        self._steps = steps

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        self._steps.write(f"{record.levelname} - {message}\n")
        folder = Path(record.pathname).parent.name
        if record.levelno >= logging.WARNING and folder == ORCHESTRATOR:
            self._steps.orchestrator_warnings.append(message)


@contextlib.contextmanager
def capture_output(steps: StepLog) -> Iterator[None]:
    """Send stdout, log records and warnings of this process to a step log."""
    root = logging.getLogger()
    level = root.level
    handlers = root.handlers[:]
    root.handlers[:] = [_RecordHandler(steps)]
    root.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(steps), warnings.catch_warnings():
            logging.captureWarnings(True)
            yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(level)
        steps.flush()


def error_message(output: Iterable[str]) -> str:
    """Return the last error in the output of a step.

    An error of longrec is returned whole, any other one by its last line.
    """
    lines = list(output)
    for index in reversed(range(len(lines))):
        match = LONGREC_ERROR.match(lines[index])
        if match:
            further_lines = _lines_of_error(lines[index + 1 :])
            return "\n".join([match["text"], *further_lines]).strip()
    for line in reversed(lines):
        if OTHER_ERROR.match(line):
            return line
    return NO_MESSAGE


def _lines_of_error(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if END_OF_ERROR.match(line) or TASK_ENDS.search(line):
            return
        yield line
