"""Runs a pipeline on this machine, one subprocess per step, with a line per step on the terminal
and the rest in a log.

kfp.local prints about 55 lines per step to stdout; here they go to `<run>/pipeline.log`, and the
lines in which it says
that a task begins, ends or is skipped become progress. Its warnings about conditions that it could
not evaluate (it then
skips the branch and reports success) become errors. Results of equal inputs are taken from a cache
where one is given; kfp keys
them by the text of the component and its inputs, so the inputs must tell of data and code (step
`fingerprint`).
"""

import contextlib
import dataclasses
import io
import json
import logging
import os
import re
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional, Protocol, TextIO

from longrec.errors import LongrecError

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_BEGIN = re.compile(r"Executing task '(?P<name>[^']+)'")
_END = re.compile(r"Task '(?P<name>[^']+)' finished with status '?(?P<status>[A-Z]+)")
_HIT = re.compile(r"Task (?P<name>\S+) cache hit \(key=(?P<key>[0-9a-f]+)\)")
_SKIP = re.compile(r"Skipping conditional task (?P<name>\S+)")
_MISTAKE = re.compile(r"^longrec\.errors\.\w+: (?P<text>.*)")
_EXCEPTION = re.compile(
    r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Warning|Failure|Failed|Refused|Mismatch)\b(: .*)?$"
)
_SAID = re.compile(r"^\s*\[KFP Executor [^\]]* INFO\]: (?P<text>.+)")
_OWN = (
    "Looking for component",
    "Loading KFP component",
    "Got executor_input",
    "Wrote executor output",
)
"""How kfp's own messages begin."""
_NOISE = re.compile(r"^(nanobind: | - leaked|\[KFP Executor )")


class StepFailed(LongrecError):
    """A step of a pipeline ended with an error; `step` and `log` say which one and where its output
    is.
    """

    def __init__(
        self,
        step: str,
        message: str,
        log: Path,
    ) -> None:
        super().__init__(
            f"step {step} failed: {message.rstrip('.')}", fix=f"Its full output is in {log}."
        )
        self.step, self.log = step, log


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One step that was executed; `status` is `done`, `failed` or `cached`."""

    name: str
    status: str
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class LocalRun:
    """A finished pipeline: its steps in the order of execution, and where their artifacts are.

    Args:
        steps: executed and cached ones.
        skipped: conditions that did not hold.
        artifacts: of the executed steps.
        log: what all of them wrote.
        cached: artifacts of the cached steps, by step and name of the output; they lie in the
            folders of earlier runs.
    """

    steps: tuple[Step, ...]
    skipped: tuple[str, ...]
    artifacts: Path
    log: Path
    cached: Mapping[tuple[str, str], Path] = dataclasses.field(default_factory=dict)

    def output(self, step: str, name: str) -> Optional[Path]:
        """Returns the path of an output artifact, or None where the step did not write it."""
        return self.cached.get((step, name)) or find_output(self.artifacts, step, name)


class Listener(Protocol):
    """What hears of progress: a step begins, says something of itself, ends."""

    def begin(self, name: str) -> None: ...

    def detail(self, text: str) -> None: ...

    def end(self, step: Step) -> None: ...


def find_output(artifacts: Path, step: str, name: str) -> Optional[Path]:
    """Returns the path of an output below the artifacts of one run; steps inside conditions lie one
    level deeper.
    """
    for depth in ("*", "*/*", "*/*/*"):
        for path in sorted(artifacts.glob(f"{depth}/{step}/{name}")):
            return path
    return None


def run(
    pipeline: Callable[..., Any],
    arguments: Mapping[str, Any],
    run_dir: Path,
    listener: Listener,
    *,
    cache: Optional[Path] = None,
) -> LocalRun:
    """Returns the finished run after executing every step of the graph in a subprocess of this
    interpreter.

    Args:
        pipeline: a function decorated with `kfp.dsl.pipeline`.
        arguments: its parameters; they travel on the command line of the steps, so keep them small.
        run_dir: gets `artifacts/` and `pipeline.log`.
        listener: hears of the progress.
        cache: directory of the cache of results; None executes every step.

    Raises:
        StepFailed: a step ended with an error; its message is the step's own where it has one.
        LongrecError: `run_dir` or `cache` cannot be written.
    """
    from kfp import local

    artifacts, log = run_dir / "artifacts", run_dir / "pipeline.log"
    _make_folders(artifacts, *([cache] if cache else []))
    with (
        open(log, "a", encoding="utf-8") as stream,
        _captured(_StepLog(stream, listener)) as steps,
        _stopping_steps(),
        _mended(),
    ):
        runner = local.SubprocessRunner(use_venv=False)
        local.init(
            runner=runner,
            pipeline_root=str(artifacts),
            raise_on_error=True,
            enable_caching=cache is not None,
            cache_root=str(cache) if cache else None,
        )
        try:
            pipeline(**arguments)
        except (RuntimeError, OSError, ValueError) as error:
            name, message = next(iter(steps.failures.items()), ("(none)", str(error)))
            raise StepFailed(name, message, log) from error
    if steps.complaints:
        raise StepFailed(
            "(condition)", f"kfp could not evaluate a condition: {steps.complaints[0]}", log
        )
    return LocalRun(
        tuple(steps.finished),
        tuple(steps.skipped),
        artifacts,
        log,
        _cached_outputs(cache, steps.hits),
    )


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LongrecError(
                f"artifacts cannot be written to {folder}",
                found=error.strerror,
                fix="Choose another --workdir.",
            ) from error


def _cached_outputs(cache: Optional[Path], hits: Mapping[str, str]) -> dict[tuple[str, str], Path]:
    """Returns the artifacts of cached steps; kfp's log gives the first digits of their keys, its
    cache a JSON file per key.
    """
    found: dict[tuple[str, str], Path] = {}
    for step, key in hits.items() if cache else ():
        for entry in (cache or Path()).glob(f"{key}*.json"):
            outputs = json.loads(entry.read_text(encoding="utf-8"))
            found |= {
                (step, name): Path(value["uri"])
                for name, value in outputs.items()
                if isinstance(value, dict) and "uri" in value
            }
    return found


class _StepLog(io.TextIOBase):
    """The stdout of kfp.local: everything goes to the log, lines about tasks become progress."""

    def __init__(self, stream: TextIO, listener: Listener) -> None:
        self.finished: list[Step] = []
        self.skipped: list[str] = []
        self.complaints: list[str] = []
        self.hits: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self._tail: deque[str] = deque(maxlen=400)
        self._running: dict[str, list[float]] = {}
        self._lock = threading.RLock()  # the iterations of a loop run in threads
        self._stream, self._listener, self._rest = stream, listener, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                self._line(_ANSI.sub("", line))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def _line(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()
        self._tail.append(line)
        if match := _BEGIN.search(line):
            self._begin(match["name"])
        elif match := _SAID.match(line):
            if not match["text"].startswith(_OWN):
                self._listener.detail(match["text"])
        elif match := _HIT.search(line):
            self.hits[match["name"]] = match["key"]
            self._finish(match["name"], "cached")
        elif match := _SKIP.search(line):
            self.skipped.append(match["name"])
        elif (match := _END.search(line)) and match["name"] in self._running:
            self._finish(match["name"], "done" if match["status"] == "SUCCESS" else "failed")

    def _begin(self, name: str) -> None:
        if not self._running:
            self._tail.clear()
        self._running.setdefault(name, []).append(time.perf_counter())
        self._listener.begin(name)

    def _finish(self, name: str, status: str) -> None:
        began = self._running.pop(name, [])
        seconds = time.perf_counter() - began.pop(0) if began else 0.0
        if began:
            self._running[name] = began
        if status == "failed":
            self.failures[name] = _message(self._tail)
        else:
            self.failures.pop(name, None)  # a retry went well
        self.finished.append(Step(name, status, round(seconds, 3)))
        self._listener.end(self.finished[-1])


class _Records(logging.Handler):
    """Log records of the process: all go to the log, complaints of kfp's orchestrator are kept."""

    def __init__(self, steps: _StepLog) -> None:
        super().__init__(logging.INFO)
        self._steps = steps

    def emit(self, record: logging.LogRecord) -> None:
        self._steps.write(f"{record.levelname} - {record.getMessage()}\n")
        if (
            record.levelno >= logging.WARNING
            and Path(record.pathname).parent.name == "orchestrator"
        ):
            self._steps.complaints.append(record.getMessage())


@contextlib.contextmanager
def _mended() -> Iterator[None]:
    """Mends two faults of loops in kfp 2.17's local runner.

    It puts the loop's item in the place of every output of an earlier step, of keys of the cache
    too. And it indents what steps say by
    replacing `print`, which threads of a loop do not give back in order: nothing is indented here.
    """
    from kfp.local import logging_utils
    from kfp.local.orchestrator import task_spec_utils

    indented = logging_utils.indented_print
    broken = task_spec_utils.create_parameter_loop_iteration_task_spec

    def mended(original_task_spec: Any, loop_item: Any, loop_task_name: str) -> Any:
        made = broken(original_task_spec, loop_item, loop_task_name)
        for name, given in original_task_spec.inputs.parameters.items():
            if given.HasField("task_output_parameter"):
                made.inputs.parameters[name].CopyFrom(given)
        return made

    task_spec_utils.create_parameter_loop_iteration_task_spec = mended
    logging_utils.indented_print = contextlib.nullcontext
    try:
        yield
    finally:
        logging_utils.indented_print = indented
        task_spec_utils.create_parameter_loop_iteration_task_spec = broken


@contextlib.contextmanager
def _stopping_steps() -> Iterator[None]:
    """Ends the running step when this process is told to stop; kfp would leave it running."""

    def stop(signum: int, frame: Any) -> None:
        _stop_descendants()
        raise SystemExit(128 + signum)

    is_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, stop) if is_main else None
    try:
        yield
    except KeyboardInterrupt:
        _stop_descendants()
        raise
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, previous)


def _stop_descendants() -> None:
    """Sends SIGTERM to all processes below this one."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = path.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    waiting = [os.getpid()]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            waiting.append(child)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)


@contextlib.contextmanager
def _captured(steps: _StepLog) -> Iterator[_StepLog]:
    """Yields `steps` while it hears stdout, logging and warnings of this process."""
    root, handler = logging.getLogger(), _Records(steps)
    level, handlers = root.level, root.handlers[:]
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(steps), warnings.catch_warnings():
            logging.captureWarnings(True)
            yield steps
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(level)
        steps.flush()


def _message(lines: "deque[str]") -> str:
    """Returns the message of the last exception in the output of a step: a longrec error whole,
    another by its last line.
    """
    text = list(lines)
    for index in range(len(text) - 1, -1, -1):
        if match := _MISTAKE.match(text[index]):
            rest = iter(text[index + 1 :])
            return "\n".join([match["text"], *(line for line in _until_noise(rest))]).strip()
    for line in reversed(text):
        if _EXCEPTION.match(line):
            return line
    return "it was stopped, or ended without saying why (out of memory?)"


def _until_noise(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if (
            not line.strip()
            or _NOISE.match(line)
            or _END.search(line)
            or re.match(r"^\d\d:\d\d:\d\d", line)
        ):
            return
        yield line
