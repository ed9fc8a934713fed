"""Run a pipeline on this machine, one subprocess per step.

kfp.local executes the graph. Its output goes to `<run>/pipeline.log` (`pipelines.step_log`). Where
kfp cannot evaluate a condition, it warns, skips the branch and reports success; here that is an
error. Results of equal inputs come from a cache. kfp keys it by the component's text and inputs, so
the inputs must describe data and code (step `fingerprint`).
"""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from longrec.errors import LongrecError
from longrec.runs.local_run import LocalRun, ProgressListener
from pipelines.kfp_fixes import fixed_commands, fixed_loops, masked
from pipelines.step_log import StepLog, capture_output

LOG_NAME = "pipeline.log"
ARTIFACTS_FOLDER = "artifacts"
SIGNAL_EXIT_CODE = 128
"""Exit code of a process that a signal ended, less the signal's number."""


class StepFailed(LongrecError):
    """A step of a pipeline failed.

    Args:
        step: its name.
        message: the step's error.
        log: file with its output.
    """

    def __init__(self, step: str, message: str, log: Path) -> None:
        what = f"step {step} failed: {message.rstrip('.')}"
        super().__init__(what, fix=f"Its full output is in {log}.")
        self.step = step
        self.log = log


def run(
    pipeline: Callable[..., Any],
    arguments: Mapping[str, Any],
    run_dir: Path,
    listener: ProgressListener,
    *,
    cache: Optional[Path] = None,
) -> LocalRun:
    """Execute every step of a graph in a subprocess of this interpreter.

    Args:
        pipeline: a function decorated with `kfp.dsl.pipeline`.
        arguments: its parameters, small enough for the command line of a step.
        run_dir: gets `artifacts/` and `pipeline.log`.
        listener: receives the progress.
        cache: directory of the cache of results; None executes every step.

    Raises:
        StepFailed: a step failed. The message is the step's own if it has one.
        LongrecError: `run_dir` or `cache` cannot be written.
    """
    artifacts = run_dir / ARTIFACTS_FOLDER
    log = run_dir / LOG_NAME
    _make_folders(artifacts, *([cache] if cache else []))
    with open(log, "a", encoding="utf-8") as stream:
        steps = StepLog(stream, listener)
        with capture_output(steps), _stop_steps_with_process(), fixed_loops(), fixed_commands():
            _initialize_kfp(artifacts, cache)
            try:
                pipeline(**masked(dict(arguments)))
            except (RuntimeError, OSError, ValueError) as error:
                failures = steps.failures or {"(none)": str(error)}
                name, message = next(iter(failures.items()))
                raise StepFailed(name, message, log) from error
    if steps.orchestrator_warnings:
        warning = steps.orchestrator_warnings[0]
        raise StepFailed("(condition)", f"kfp could not evaluate a condition: {warning}", log)
    cached = _cached_outputs(cache, steps.cache_keys) if cache else {}
    return LocalRun(tuple(steps.finished), tuple(steps.skipped), artifacts, log, cached)


def _initialize_kfp(artifacts: Path, cache: Optional[Path]) -> None:
    from kfp import local

    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(artifacts),
        raise_on_error=True,
        enable_caching=cache is not None,
        cache_root=str(cache) if cache else None,
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


def _cached_outputs(cache: Path, keys: Mapping[str, str]) -> dict[tuple[str, str], Path]:
    """Return the artifacts of cached steps by step and output name.

    Args:
        cache: it holds one JSON file per key.
        keys: first digits of the key by step, as in kfp's log.
    """
    artifacts: dict[tuple[str, str], Path] = {}
    for step, key in keys.items():
        for entry in cache.glob(f"{key}*.json"):
            outputs = json.loads(entry.read_text(encoding="utf-8"))
            for name, value in outputs.items():
                if isinstance(value, dict) and "uri" in value:
                    artifacts[step, name] = Path(value["uri"])
    return artifacts


@contextlib.contextmanager
def _stop_steps_with_process() -> Iterator[None]:
    """Stop the running step when this process is stopped; kfp would leave it running."""

    def stop(signum: int, frame: Any) -> None:
        _stop_descendants()
        raise SystemExit(SIGNAL_EXIT_CODE + signum)

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
    """Send SIGTERM to all processes below this one."""
    children = _children_by_process()
    pending = [os.getpid()]
    while pending:
        for child in children.get(pending.pop(), ()):
            pending.append(child)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)


def _children_by_process() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = path.read_text().rpartition(")")[2].split()
            parent = int(fields[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    return children
