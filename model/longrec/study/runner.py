"""Run a study: many trainings on the same histories, compared on the same requests.

    plan        StudyConfig -> trials
    run_trial   one trial -> OUT/trials/<id>.json
    collect     OUT/trials/*.json -> OUT/trials.csv, curves.csv, differences.csv, fits.csv,
                study.json, report.html, differences.svg

A study may be interrupted and started again: it runs the trials that have no result yet.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeAlias

from longrec import child
from longrec.data import files
from longrec.study.collect import StudyReport, collect
from longrec.study.config import StudyConfig
from longrec.study.run_trial import close_data, prepare, run_trial
from longrec.study.trial import Row, Trial, plan, result_path

Outcome: TypeAlias = tuple[Row, Row | Exception]
"""(trial, its result or the error that it failed with)."""
Listener: TypeAlias = Callable[[Row, int, int], None]
"""Function that gets a new result, the number of finished trials and the number of all trials."""

log = logging.getLogger(__name__)


def run_study(
    histories_dir: str | Path,
    out_dir: str | Path,
    study: StudyConfig,
    *,
    num_workers: int = 1,
    limit_seconds: float = 0,
    on_trial: Listener | None = None,
) -> StudyReport:
    """Run every trial that has no result in `out_dir` yet, then collect all results.

    Args:
        histories_dir: histories that all trials train on. Each histories directory needs an
            `out_dir` of its own.
        out_dir: folder of the study. Results of a former call are used as they are.
        study: the trials. A trial that fails is reported, and the next call tries it again.
        num_workers: number of processes; on a GPU they share it.
        limit_seconds: no trial starts later than this after the call; 0 for no limit.
        on_trial: called with each new result.
    """
    start = time.perf_counter()
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    trials = plan(study)
    missing = [trial for trial in trials if not result_path(out_dir, trial).exists()]
    deadline = start + limit_seconds if limit_seconds else math.inf
    num_done = len(trials) - len(missing)
    failures: list[Row] = []
    with _temporary_folder(out_dir / "encoded") as cache_dir:
        if missing:
            prepare(histories_dir, cache_dir)
        run = functools.partial(
            run_trial,
            str(histories_dir),
            str(out_dir),
            cache_dir=str(cache_dir),
        )
        for trial, result in outcomes(run, _until(deadline, missing), num_workers):
            if isinstance(result, Exception):
                failures.append(_failure(trial, result))
                continue
            num_done += 1
            if on_trial is not None:
                on_trial(result, num_done, len(trials))
    close_data()
    return collect(out_dir, study, failures)


def _until(deadline: float, trials: Sequence[Trial]) -> Iterator[Row]:
    """Yield the JSON form of each trial until a time of `time.perf_counter`."""
    for trial in trials:
        if time.perf_counter() >= deadline:
            return
        yield trial.to_dict()


def _failure(trial: Row, error: Exception) -> Row:
    """Return the row of a failed trial, after logging it."""
    log.error("the trial %s failed: %s", trial["id"], error)
    return {
        "id": trial["id"],
        "variant": trial["variant"],
        "error": f"{type(error).__name__}: {error}",
    }


@contextlib.contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder next to `path` and remove it; also remove those of killed calls."""
    files.remove_leftovers(path)
    folder = files.temporary_path(path, "tmp")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def outcomes(
    run: Callable[[Row], Row],
    queue: Iterator[Row],
    num_workers: int,
) -> Iterator[Outcome]:
    """Yield each trial with its outcome as they finish; one worker is this process."""
    if num_workers > 1:
        yield from run_in_processes(run, queue, num_workers)
        return
    for trial in queue:
        try:
            yield trial, run(trial)
        except Exception as error:
            yield trial, error


def run_in_processes(
    run: Callable[[Row], Row],
    queue: Iterator[Row],
    num_workers: int,
) -> Iterator[Outcome]:
    """Yield each trial with its outcome as they finish, run by several processes.

    A process that dies (for example, out of memory) breaks its pool for good. The trials in the
    pool have failed then; the rest runs in a new one.

    Args:
        run: function that runs one trial.
        queue: the trials. It is read one by one, as processes become free.
        num_workers: number of processes.
    """
    context = multiprocessing.get_context("spawn")
    # Each turn of this loop is one pool: the first, and one after each that broke.
    for first in queue:
        with ProcessPoolExecutor(
            num_workers,
            context,
            child.end_with,
            (os.getpid(),),
        ) as pool:
            batch = [first, *itertools.islice(queue, num_workers - 1)]
            pending = {_submit(pool, run, trial): trial for trial in batch}
            while pending:
                done = next(as_completed(pending))
                trial = pending.pop(done)
                error = done.exception()
                yield trial, error if isinstance(error, Exception) else done.result()
                if isinstance(error, BrokenProcessPool):
                    continue
                next_trial = next(queue, None)
                if next_trial is not None:
                    future = _submit(pool, run, next_trial)
                    pending[future] = next_trial


def _submit(
    pool: ProcessPoolExecutor,
    run: Callable[[Row], Row],
    trial: Row,
) -> Future[Row]:
    """Submit a trial; return a failed future if the pool is broken."""
    try:
        return pool.submit(run, trial)
    except BrokenProcessPool as error:
        failed: Future[Row] = Future()
        failed.set_exception(error)
        return failed
