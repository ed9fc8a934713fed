"""Search settings with Optuna: every trial is a training, judged on validation requests.

    SearchSpace -> trials (OUT/journal.log) -> OUT/best.yaml, trials.csv, tune.json, report.html

The evaluation part is never read: a tuned configuration can still be measured on it. The journal
holds every finished trial, so a search that was killed goes on where it ended. With one worker the
same seed gives the same trials, interrupted or not. Several workers see each other's results in the
order in which they finish.

Source: TPE (Bergstra et al. 2011) and the median rule (Golovin et al. 2017, section 3.2), as Optuna
implements them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from longrec.config import RunConfig
from longrec.data.histories import Histories
from longrec.errors import ConfigError, DataError, LongrecError
from longrec.study.config import override
from longrec.study.run_trial import close_data, prepare, train_on_cache
from longrec.study.runner import outcomes
from longrec.study.search_space import SearchSpace
from longrec.training import encoded_cache
from longrec.training.curve import CurveRow, best_of

if TYPE_CHECKING:
    import optuna

JOURNAL_NAME = "journal.log"
STUDY_NAME = "longrec"
ENCODED_NAME = "encoded"
NUM_STARTUP_TRIALS = 5
"""Trials that finish before the first is pruned, and that are drawn at random."""
FIRST_PRUNED_VALIDATION = 2
"""Dropout and low rates cost most in the first epoch, so the first validation prunes nothing."""
MAX_FAILURES = 3
"""Trials that may fail before the first one has finished."""
SUGGESTION_ATTRIBUTE = "suggestion"
SHARE_ATTRIBUTE = "share"
ERROR_ATTRIBUTE = "error"
SEED_STRIDE = 100_003
"""Distance of the seeds of two searches: more than the trials of one."""
Row: TypeAlias = dict[str, Any]
Listener: TypeAlias = Callable[[Row, int, int], None]
"""Function that gets a finished trial, the number of finished trials and the number asked for."""
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Search:
    """What a search trains and where it writes; a plain value that another process can read.

    Args:
        histories_dir: histories that all trials train on.
        out_dir: folder of the journal and of the encoded histories.
        config: configuration that every trial starts from.
        space: what is searched.
        seed: of the suggestions; the trainings have the seed of `config`.
        cache_dir: folder of the encoded histories; empty for one in `out_dir`.
        share: `i/n`, the i-th of n shares of the trials, where several machines share a journal;
            empty for all trials.
    """

    histories_dir: str
    out_dir: str
    config: RunConfig
    space: SearchSpace
    seed: int = 0
    cache_dir: str = ""
    share: str = ""

    @property
    def encoded_dir(self) -> str:
        """Folder of the encoded histories, which the trials of one machine share."""
        return self.cache_dir or str(Path(self.out_dir) / ENCODED_NAME)


def tune(
    search: Search,
    num_trials: int,
    *,
    num_workers: int = 1,
    limit_seconds: float = 0,
    on_trial: Listener | None = None,
) -> optuna.Study:
    """Run trials until `num_trials` have finished; return Optuna's study.

    Args:
        search: the search. Finished trials of an earlier call count.
        num_trials: number of finished trials, pruned ones included.
        num_workers: number of processes; on a GPU they share it.
        limit_seconds: no trial starts later than this after the call; 0 for no limit.
        on_trial: called with each finished trial.

    Raises:
        ConfigError: Optuna is not installed; or a value of the space does not fit.
        DataError: the histories have no validation requests; or the journal is of another search.
    """
    start = time.perf_counter()
    search.space.check(search.config)
    study = open_study(search)
    _give_back_interrupted(study, search.share)
    prepare(search.histories_dir, search.encoded_dir)
    _check_histories(study, search)
    num_missing = num_trials - num_finished(study, search.share)
    numbers = list(itertools.islice(_unused_numbers(study, search.share), max(num_missing, 0)))
    rows = _until(start + limit_seconds if limit_seconds else None, numbers)
    run = functools.partial(_run_trial, search)
    failures: list[Exception] = []
    for _, result in outcomes(run, rows, num_workers):
        num_done = num_finished(study, search.share)
        if isinstance(result, Exception):
            failures.append(result)
            log.error("a trial failed: %s: %s", type(result).__name__, result)
            if not num_done and len(failures) == MAX_FAILURES:
                break
        elif on_trial is not None:
            on_trial(result, num_done, num_trials)
    close_data()
    if failures and not num_finished(study, search.share):
        raise _explained(failures[0])
    return study


def open_study(search: Search) -> optuna.Study:
    """Return the study in the journal of a search, a new one where there is none.

    Raises:
        ConfigError: Optuna is not installed.
        DataError: the journal is of another search.
    """
    library = _optuna()
    Path(search.out_dir).mkdir(parents=True, exist_ok=True)
    backend = library.storages.journal.JournalFileBackend(
        str(Path(search.out_dir) / JOURNAL_NAME),
        # Optuna's default lock is a symbolic link, which some shared volumes cannot have.
        lock_obj=library.storages.journal.JournalFileOpenLock(
            str(Path(search.out_dir) / JOURNAL_NAME)
        ),
    )
    study: optuna.Study = library.create_study(
        storage=library.storages.JournalStorage(backend),
        study_name=STUDY_NAME,
        direction="maximize",
        load_if_exists=True,
        pruner=library.pruners.MedianPruner(
            n_startup_trials=NUM_STARTUP_TRIALS,
            n_warmup_steps=FIRST_PRUNED_VALIDATION,
        ),
    )
    content = {"config": search.config.to_dict(), "space": dict(search.space.entries)}
    found = study.user_attrs.get("search")
    if found is None:
        study.set_user_attr("search", content)
    elif found != content:
        raise DataError(
            f"{search.out_dir} holds another search",
            found="another configuration or space",
            fix="Use another --out, or the configuration and the space of that search.",
        )
    return study


def num_finished(study: optuna.Study, share: str = "") -> int:
    """Return the number of trials with a result, pruned ones included.

    Args:
        study: result of `open_study`.
        share: counts those of one share alone; empty for all.
    """
    trials = study.get_trials(deepcopy=False)
    finished = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    return sum(_is_of(trial, share) for trial in finished)


def best_config(search: Search, study: optuna.Study) -> RunConfig:
    """Return the configuration of the best finished trial.

    Raises:
        LongrecError: no trial has finished.
    """
    if not any(trial.state.name == "COMPLETE" for trial in study.get_trials()):
        raise LongrecError(
            "no trial of the search has finished",
            found=f"{len(study.get_trials())} trials in {search.out_dir}",
            fix="Call longrec tune again with more --trials or a longer --limit.",
        )
    return override(search.config, study.best_params)


def _is_of(trial: optuna.trial.FrozenTrial, share: str) -> bool:
    return not share or trial.user_attrs.get(SHARE_ATTRIBUTE) == share


def _give_back_interrupted(study: optuna.Study, share: str) -> None:
    """Queue the settings of trials again that a killed call of a share left behind."""
    optuna = _optuna()
    for trial in study.get_trials():
        if trial.state is not optuna.trial.TrialState.RUNNING or not _is_of(trial, share):
            continue
        log.warning("trial %d was interrupted; its settings are tried again", trial.number)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)


def _check_histories(study: optuna.Study, search: Search) -> None:
    """Refuse histories without validation requests, or others than those of the journal."""
    histories = Histories.open(search.histories_dir)
    _, encoded = encoded_cache.open_encoded(histories, Path(search.encoded_dir))
    if not len(encoded.requests("validation")):
        raise DataError(
            f"{search.histories_dir} has no validation requests",
            found="data.validation_fraction 0, or a very short log",
            fix="Raise data.validation_fraction, and make the histories again.",
        )
    digest = encoded_cache.digest_of(Path(search.encoded_dir))
    found = study.user_attrs.get("histories")
    if found is None:
        study.set_user_attr("histories", digest)
    elif found != digest:
        raise DataError(
            f"{search.out_dir} holds another search",
            found=f"histories with the digest {found}",
            expected=digest,
            fix="Use another --out for other histories.",
        )


def parse_share(share: str) -> tuple[int, int]:
    """Return i and n of a share `i/n`; 1 and 1 for an empty one.

    Raises:
        ConfigError: it is not valid.
    """
    index, _, count = (share or "1/1").partition("/")
    if not index.isdecimal() or not count.isdecimal() or not 1 <= int(index) <= int(count):
        raise ConfigError(
            "a share of a search is not valid",
            found=share,
            expected="i/n with i from 1 to n, for example 2/4",
        )
    return int(index), int(count)


def _unused_numbers(study: optuna.Study, share: str) -> Iterator[int]:
    """Yield the numbers of a share whose suggestions no trial has finished, nor failed with.

    They seed the suggestions, so no two shares have one in common. An interrupted trial's number
    comes again, so a search that was killed goes on like one that was not.
    """
    used = set()
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name in ("COMPLETE", "PRUNED") or ERROR_ATTRIBUTE in trial.user_attrs:
            used.add(trial.user_attrs.get(SUGGESTION_ATTRIBUTE))
    index, count = parse_share(share)
    return itertools.filterfalse(used.__contains__, itertools.count(index - 1, count))


def _until(deadline: float | None, numbers: Sequence[int]) -> Iterator[Row]:
    """Yield one row per trial that shall start, until a time of `time.perf_counter`."""
    for number in numbers:
        if deadline is not None and time.perf_counter() >= deadline:
            return
        yield {"id": str(number)}


def _explained(error: Exception) -> Exception:
    """Return the error of a search in which no trial has finished."""
    if not isinstance(error, BrokenProcessPool):
        return error
    return LongrecError(
        "a process that ran trials died",
        found=str(error),
        expected="enough memory for all of them",
        fix="Use fewer --workers.",
    )


def _run_trial(search: Search, row: Row) -> Row:
    """Run one trial; return its number, its state, its value and its settings."""
    optuna = _optuna()
    study = open_study(search)
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=NUM_STARTUP_TRIALS,
        multivariate=True,
        constant_liar=True,
        seed=search.seed * SEED_STRIDE + int(row["id"]),
    )
    finished: list[Row] = []

    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr(SUGGESTION_ATTRIBUTE, int(row["id"]))
        trial.set_user_attr(SHARE_ATTRIBUTE, search.share)
        try:
            return _objective(search, trial)
        except optuna.TrialPruned:
            raise
        except Exception as error:
            trial.set_user_attr(ERROR_ATTRIBUTE, f"{type(error).__name__}: {error}")
            raise

    def keep(_: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        finished.append(trial_row(trial))

    study.optimize(objective, n_trials=1, callbacks=[keep])
    return finished[0]


def trial_row(trial: optuna.trial.FrozenTrial) -> Row:
    """Return a trial as a row of trials.csv."""
    duration = trial.duration
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "auc": trial.value if trial.value is not None else trial.user_attrs.get("best"),
        "seconds": duration.total_seconds() if duration else None,
        **trial.params,
    }


def _objective(search: Search, trial: optuna.Trial) -> float:
    """Return the best validation AUC of a training with the suggested settings."""
    optuna = _optuna()
    config = override(search.config, search.space.suggest(trial))
    seen: list[float | None] = [None]

    def prune(row: CurveRow, num_steps: int) -> None:
        # A row repeats the newest validation until there is another one.
        if row.validation_auc is None or row.validation_logloss == seen[-1]:
            return
        seen.append(row.validation_logloss)
        best = max(row.validation_auc, trial.user_attrs.get("best", 0.0))
        trial.set_user_attr("best", best)
        # By validation, not by step: trials with other batch sizes stay comparable.
        trial.report(best, len(seen) - 1)
        if row.step < num_steps and trial.should_prune():
            raise optuna.TrialPruned

    with tempfile.TemporaryDirectory(prefix="longrec-tune-") as folder:
        trainer = train_on_cache(
            search.histories_dir,
            search.encoded_dir,
            config,
            out_dir=Path(folder),
            on_progress=prune,
        )
    best_validation = best_of(trainer.state.validations)
    if best_validation is None or best_validation.auc is None:
        raise DataError(
            "a trial has no validation AUC",
            found="validation labels of one kind",
            fix="Raise train.validation_requests, or data.validation_fraction.",
        )
    return best_validation.auc


def _optuna() -> Any:
    """Return the module, which only `longrec tune` needs.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "longrec tune needs Optuna",
            found="no module 'optuna'",
            fix='Install it: pip install "longrec[tune]"',
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
