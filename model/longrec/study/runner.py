"""study: many trainings on the same histories, compared on the same requests; a grid that can be killed and started again.

    StudyConfig --plan--> cells --run_one, each once--> OUT/runs/<cell>.json --collect--> runs.csv, curves.csv, differences.csv,
                                                                                          fits.csv, study.json, report.html, differences.svg

A cell is a whole configuration: a variant (named overrides), a point of the grid, a seed. Its file holds the metrics and the
bootstrap values behind their intervals, on resamples that are equal in all cells, so that any two cells can be compared as a pair
from their files alone. Everything takes paths and plain values: a cell can run in another process, or on another machine.

Intervals (95 %) resample users, and the seeds of a variant with them; from three seeds they reach about from the worst to the best of them.
A metric that one seed of a variant does not define is not defined for the variant: to leave out a seed that went wrong would flatter it.
Shape letters: S seeds, B resamples.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from longrec import config as configuration
from longrec.config import RunConfig
from longrec.data import files
from longrec.data.encoder import Encoder
from longrec.data.histories import Histories
from longrec.data.length_sampler import LengthSampler
from longrec.data.loader import EncodedHistories, RequestStream
from longrec.errors import ConfigError, DataError
from longrec.evaluation import evaluate as evaluation
from longrec.evaluation import metrics
from longrec.evaluation.metrics import Estimate
from longrec.nn.flops import forward_flops
from longrec.scoring.bundle import Bundle
from longrec.scoring.scorer import Scorer
from longrec.study import report as study_page
from longrec.training import train as training

log = logging.getLogger(__name__)

Float: TypeAlias = npt.NDArray[np.float64]
Row: TypeAlias = dict[str, Any]
METRICS = ("auc", "gauc", "logloss", "calibration")
"""Metrics whose resampled values a run keeps at each served length."""
DIGITS = 6
MAX_EPOCHS = 1_000
RUNS = "runs"


@dataclasses.dataclass(frozen=True, slots=True)
class StudyConfig:
    """A grid of trainings.

    Args:
        name: of the study.
        base: configuration that every cell starts from, as in a run's YAML (sections model,
            lengths, train, evaluate).
        variants: name -> overrides, {"section.key": value}; what is compared.
        grid: "section.key" -> values; each variant runs at every combination.
        seeds: each cell runs once with every seed (weights, order, lengths); the evaluated requests
            are those of `base.seed`.
        reference: variant that the others are compared with; empty for the first.
        train_events: events that a run may read, whatever its training length distribution: as many epochs as that
            takes; 0 for `train.epochs`.
        recovery: {"base": [variant, length], "full": [...], "extrapolated": [...]}: which share of
            the gain of `full` over `base` the
            third reaches, and at what share of the events.
    """

    name: str
    base: RunConfig
    variants: Mapping[str, Mapping[str, Any]]
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    reference: str = ""
    train_events: int = 0
    recovery: Mapping[str, tuple[str, int]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds:
            raise ConfigError(
                "a study needs at least one variant and one seed",
                found=f"{len(self.variants)} and {len(self.seeds)}",
            )
        for name in [
            *([self.reference] if self.reference else []),
            *(entry[0] for entry in self.recovery.values()),
        ]:
            if name not in self.variants:
                raise ConfigError(
                    "a study names a variant that it does not have",
                    found=name,
                    expected=", ".join(self.variants),
                )
        if self.recovery and set(self.recovery) != {"base", "full", "extrapolated"}:
            raise ConfigError(
                "study.recovery must name three variants",
                found=", ".join(self.recovery),
                expected="base, full, extrapolated",
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """One training of a study.

    Args:
        id: of its file; equal cells have equal ids, in any study.
        variant: name; point: {"section.key": value} of the grid.
        seed: of the training.
        train_events: see StudyConfig.
        config: the whole configuration.
    """

    id: str
    variant: str
    point: Mapping[str, Any]
    seed: int
    train_events: int
    config: RunConfig

    def to_dict(self) -> Row:
        """Returns the JSON form."""
        return {
            "id": self.id,
            "variant": self.variant,
            "point": dict(self.point),
            "seed": self.seed,
            "train_events": self.train_events,
            "config": self.config.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Trial:
        """Returns the cell of a JSON form, whose numbers may all be floats: so KFP carries them."""
        numbers = {name: int(value[name]) for name in ("seed", "train_events")}
        return cls(
            **{**value, **numbers, "config": configuration.build(RunConfig, value["config"])}
        )


@dataclasses.dataclass(frozen=True, slots=True)
class StudyReport:
    """What a study has so far.

    Args:
        name: of the study.
        num_cells, num_done: cells, and those with a result.
        runs: one row per finished cell; curves: per variant, grid point and served length;
            differences: of those from the reference;
            fits: metric against the logarithm of length, FLOPs, parameters; recovery: of the length
                extrapolation.
        failures: runs of this call that failed, {"id", "variant", "error"}.
        path: directory with the tables and report.html.
    """

    name: str
    num_trials: int
    num_done: int
    runs: tuple[Row, ...]
    curves: tuple[Row, ...]
    differences: tuple[Row, ...]
    fits: tuple[Row, ...]
    recovery: Row
    failures: tuple[Row, ...]
    path: str


def load(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Returns the study in a YAML file; `base` is a configuration or the path of one, relative to
    the file, `set` overrides it.

    Args:
        path: of the file.
        overrides: `section.key=value` of the base configuration, stronger than the file's.

    Raises:
        ConfigError: the file is missing or wrong, or a variant or grid key is.
    """
    return parse(configuration.text_of(path), overrides, path=path)


def parse(text: str, overrides: Sequence[str] = (), *, path: str | Path = "study") -> StudyConfig:
    """Returns the study in YAML text, as `load` does; `path` names it, and what a base that is a
    path is relative to.
    """
    value = configuration.from_yaml(text, str(path))
    names = {field.name for field in dataclasses.fields(StudyConfig)} | {"set"}
    if not isinstance(value, dict) or not {"base", "variants"} <= value.keys() <= names:
        raise ConfigError(
            f"{path} is not a study",
            found=", ".join(value) if isinstance(value, dict) else type(value).__name__,
            expected=f"base, variants, and of {', '.join(sorted(names))}",
        )
    try:
        study = _study(value, overrides, Path(path))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path} is not a study", found=str(error), fix="See configs/study-*.yaml."
        ) from error
    plan(study)
    return study


def _study(value: dict[str, Any], overrides: Sequence[str], path: Path) -> StudyConfig:
    base, sets = value.pop("base"), value.pop("set", {})
    plain = configuration.load(path.parent / base).to_dict() if isinstance(base, str) else base
    typed = dict(configuration.override_of(each) for each in overrides)
    config = override(configuration.build(RunConfig, plain), {**sets, **typed})
    recovery = {
        name: (str(entry[0]), int(entry[1]))
        for name, entry in (value.pop("recovery", None) or {}).items()
    }
    return StudyConfig(
        **{
            "name": path.stem,
            **value,
            "base": config,
            "seeds": tuple(value.get("seeds", (0,))),
            "recovery": recovery,
        }
    )


def to_text(study: StudyConfig) -> str:
    """Returns the study as `parse` reads it, its base written out."""
    return json.dumps({**dataclasses.asdict(study), "base": study.base.to_dict()}, indent=1)


def gather(result_dirs: Sequence[str | Path], out_dir: str | Path) -> None:
    """Copies the results of runs that were made elsewhere (each in a directory of its own) into the
    directory of a study.
    """
    runs = Path(out_dir) / RUNS
    runs.mkdir(parents=True, exist_ok=True)
    for path in (path for folder in result_dirs for path in (Path(folder) / RUNS).glob("*.json")):
        shutil.copyfile(path, runs / path.name)


def override(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Returns the configuration with {"section.key": value} replaced.

    Raises:
        ConfigError: a key is unknown or a value does not fit.
    """
    plain = config.to_dict()
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        place = plain.get(section) if section else plain
        if not isinstance(place, dict):
            raise ConfigError(
                f"'{key}' does not name a configuration key",
                expected="section.key, for example model.width",
            )
        place[name] = value
    return configuration.build(RunConfig, plain)


def plan(study: StudyConfig) -> list[Trial]:
    """Returns all cells, the first seed of everything before the second: a study that is stopped
    has whole comparisons.
    """
    points = [
        dict(zip(study.grid, values, strict=True))
        for values in itertools.product(*study.grid.values())
    ]
    return [
        _trial(study, name, point, seed)
        for seed, point, name in itertools.product(study.seeds, points, study.variants)
    ]


def grid(
    histories_dir: str | Path,
    out_dir: str | Path,
    study: StudyConfig,
    *,
    num_workers: int = 1,
    limit_seconds: float = 0,
    on_run: Callable[[Row, int, int], None] | None = None,
) -> StudyReport:
    """Returns the report after running every cell that has no result yet in `out_dir` and
    collecting all of them.

    Args:
        histories_dir: what all cells train on; cells of another one do not belong into the same
            `out_dir`.
        out_dir: results of a former call are taken as they are.
        study: what runs; a run that fails is reported, and tried again by the next call.
        num_workers: processes; on a GPU they share it.
        limit_seconds: no run is started later than this after the call; 0 for no limit.
        on_run: called with each new result, the number of finished cells and of all.
    """
    started, trials = time.perf_counter(), plan(study)
    left = [trial for trial in trials if not (Path(out_dir) / RUNS / f"{trial.id}.json").exists()]
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    failures: list[Row] = []
    with _scratch(Path(out_dir) / "encoded") as cache:
        if left:
            prepare(histories_dir, cache)
        due = (
            trial.to_dict()
            for trial in left
            if not limit_seconds or time.perf_counter() - started < limit_seconds
        )
        number = len(trials) - len(left)
        for trial, result in _results(
            str(histories_dir), str(out_dir), due, str(cache), num_workers
        ):
            if isinstance(result, Exception):
                log.error("the run %s failed: %s", trial["id"], result)
                failures.append(
                    {
                        "id": trial["id"],
                        "variant": trial["variant"],
                        "error": f"{type(result).__name__}: {result}",
                    }
                )
                continue
            number += 1
            if on_run is not None:
                on_run(result, number, len(trials))
    _opened.cache_clear()
    return collect(out_dir, study, failures)


@contextlib.contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """Yields a new directory beside `place` and removes it; those of killed calls go too."""
    files.tidy(place)
    directory = files.beside(place, "tmp")
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run_one(
    histories_dir: str | Path,
    out_dir: str | Path,
    trial: Mapping[str, Any],
    *,
    cache_dir: str | Path | None = None,
) -> Row:
    """Returns the result of one cell, trained and evaluated now unless `out_dir` has it; it is the
    content of runs/<id>.json.

    Args:
        histories_dir: made by `store.retrieve`.
        out_dir: of the study.
        cell: `Trial.to_dict()`.
        cache_dir: where `prepare` was called for these histories; None to prepare for this cell
            alone.

    Raises:
        DataError: the histories cannot be used.
        LongrecError: the training failed.
    """
    wanted = Trial.from_dict(trial)
    path = Path(out_dir) / RUNS / f"{wanted.id}.json"
    if path.exists():
        return dict(files.read_json(path))
    with contextlib.ExitStack() as stack:
        if cache_dir is None:
            cache_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="longrec-study-"))
            prepare(histories_dir, cache_dir)
        row = _train_and_measure(
            *_opened(str(histories_dir), str(cache_dir)), wanted, Path(out_dir)
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, row)
    return row


def prepare(histories_dir: str | Path, cache_dir: str | Path) -> None:
    """Fits the encoder and encodes the histories into `cache_dir`, once for all cells."""
    training.encode(Histories.open(histories_dir), Path(cache_dir))


def collect(out_dir: str | Path, study: StudyConfig, failures: Sequence[Row] = ()) -> StudyReport:
    """Returns the report of the results in `out_dir` after writing the tables (CSV, study.json),
    page and drawing beside them.

    Args:
        out_dir: of the study.
        study: what was asked for.
        failures: {"id", "variant", "error"} of runs that failed, for the report.

    Raises:
        DataError: there is no result, or results were measured on different requests.
    """
    out_dir, trials = Path(out_dir), plan(study)
    found = {
        trial.id: files.read_json(path)
        for trial in trials
        if (path := out_dir / RUNS / f"{trial.id}.json").exists()
    }
    if not found:
        first = f"; the first failure: {failures[0]['error']}" if failures else ""
        raise DataError(
            f"{out_dir} holds no result of the study",
            found=f"0 of {len(trials)} cells{first}",
            fix="Run it: longrec study.",
        )
    if len(samples := {row["sample"] for row in found.values()}) > 1:
        raise DataError(
            "the results were measured on different requests",
            found=f"{len(samples)} samples",
            fix="Keep each histories directory in an output directory of its own.",
        )
    groups = _groups([trial for trial in trials if trial.id in found], found)
    reference = study.reference or next(iter(study.variants))
    curves = [row for group in groups for row in group.curve()]
    runs = tuple(_flat(row) for row in found.values())
    report = StudyReport(
        study.name,
        len(trials),
        len(found),
        runs,
        tuple(curves),
        tuple(_differences(groups, reference)),
        tuple(_fits(groups)),
        _recovery(groups, study),
        tuple(failures),
        str(out_dir),
    )
    for name in ("runs", "curves", "differences", "fits"):
        _write_csv(out_dir / f"{name}.csv", getattr(report, name))
    facts = {
        **dataclasses.asdict(report),
        "reference": reference,
        "seeds": list(study.seeds),
        "train_events": study.train_events,
        "best_possible": next(iter(found.values()))["best_possible"],
        "data": next(iter(found.values()))["data"],
        "base": study.base.to_dict(),
        "variants": {name: dict(values) for name, values in study.variants.items()},
    }
    files.write_json(out_dir / "study.json", facts)
    for name, text in study_page.files_of(facts).items():
        with files.replacing(out_dir / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return report


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """The runs of one variant at one grid point, one per seed.

    Args:
        variant, point: which.
        rows: results, by seed.
    """

    variant: str
    point: Mapping[str, Any]
    rows: Mapping[int, Row]

    @property
    def lengths(self) -> list[int]:
        return [entry["length"] for entry in next(iter(self.rows.values()))["lengths"]]

    @property
    def served_length(self) -> int:
        return int(next(iter(self.rows.values()))["served_length"])

    def samples(self, metric: str, length: int) -> Float:
        """Returns the resampled values of a metric at a served length, float64 [S, B + 1]; the
        first of each row is the value itself.

        Where a seed does not define it, nan of [S, 1].
        """
        entries = [
            next(entry for entry in row["lengths"] if entry["length"] == length)
            for row in self.rows.values()
        ]
        if not all(metric in entry["samples"] for entry in entries):
            return np.full((len(entries), 1), np.nan)
        return np.array(
            [[entry[metric], *entry["samples"][metric]] for entry in entries], np.float64
        )

    def mean(self, name: str) -> float:
        """Returns the mean of a number over seeds."""
        return float(np.mean([row[name] for row in self.rows.values()]))

    def curve(self) -> Iterator[Row]:
        """Yields the row of each served length: metrics, gain over the shortest length, cost."""
        for length in self.lengths:
            row = {**self.name(), "length": length, "num_seeds": len(self.rows)}
            for metric in METRICS:
                row |= _named(metric, interval(self.samples(metric, length)))
            row |= _named(
                "gain", interval(self.samples("auc", length) - self.samples("auc", self.lengths[0]))
            )
            entry = next(
                entry
                for entry in next(iter(self.rows.values()))["lengths"]
                if entry["length"] == length
            )
            yield {
                **row,
                "mean_events": entry["mean_events"],
                "request_flops": entry["request_flops"],
            }

    def name(self) -> Row:
        """Returns the columns that name the group."""
        return {"variant": self.variant, **self.point}


def interval(samples: Float) -> Estimate:
    """Returns the mean over seeds and its interval over users and seeds.

    Args:
        samples: float64 [S, B + 1], the values, then those of each resample.
    """
    value, resampled = float(samples[:, 0].mean()), over_seeds(samples)[1:]
    if not np.isfinite(value) or np.isfinite(resampled).sum() < 2:
        return Estimate(
            value if np.isfinite(value) else None, reason="there are too few users for an interval"
        )
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def over_seeds(samples: Float) -> Float:
    """Returns the mean over seeds, float64 [B + 1]: of all for the value itself, of S - 1 drawn
    with replacement for each resample.

    S - 1, not S, so that the resamples vary as the mean of S seeds does (of one, that one).
    Source: Rao and Wu 1988, Resampling inference with complex survey data, section 2.
    """
    seeds, columns = samples.shape
    drawn = np.random.default_rng(0).integers(seeds, size=(max(seeds - 1, 1), columns))
    mean: Float = np.take_along_axis(samples, drawn, axis=0).mean(0)
    mean[0] = samples[:, 0].mean()
    return mean


def _trial(
    study: StudyConfig,
    variant: str,
    point: Mapping[str, Any],
    seed: int,
) -> Trial:
    config = override(study.base, {**study.variants[variant], **point})
    text = json.dumps([_beside_defaults(config), seed, study.train_events], sort_keys=True)
    place = "".join(f"-{key.rpartition('.')[2]}{value}" for key, value in point.items())
    slug = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{variant}{place}")
    return Trial(
        f"{slug}-s{seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}",
        variant,
        dict(point),
        seed,
        study.train_events,
        config,
    )


def _beside_defaults(config: RunConfig) -> Row:
    """What a run depends on and is not a default: a key that a later version adds leaves the ids of
    finished runs as they are.
    """
    default, plain = RunConfig().to_dict(), config.to_dict()
    sections = {
        name: {key: value for key, value in plain[name].items() if value != default[name][key]}
        for name in ("model", "lengths", "train", "evaluate")
    }
    return {"seed": config.seed, **sections}


def _results(
    histories_dir: str, out_dir: str, due: Iterator[Row], cache_dir: str, num_workers: int
) -> Iterator[tuple[Row, Row | Exception]]:
    """Yields each cell with its result, or with what it failed of, as they come; with one worker in
    this process.
    """
    if num_workers <= 1:
        for trial in due:
            try:
                yield trial, run_one(histories_dir, out_dir, trial, cache_dir=cache_dir)
            except Exception as error:
                yield trial, error
        return
    yield from _side_by_side(
        functools.partial(run_one, histories_dir, out_dir, cache_dir=cache_dir), due, num_workers
    )


def _side_by_side(
    run: Callable[[Row], Row], due: Iterator[Row], num_workers: int
) -> Iterator[tuple[Row, Row | Exception]]:
    """Yields each cell with its result or failure. A process that dies (out of memory, say) breaks
    its pool for good: what ran there
    has failed, the rest goes on in a new one."""
    for first in due:
        with ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn")) as pool:
            pending = {
                _submit(pool, run, trial): trial
                for trial in (first, *itertools.islice(due, num_workers - 1))
            }
            while pending:
                done = next(as_completed(pending))
                failure = done.exception()
                yield (
                    pending.pop(done),
                    failure if isinstance(failure, Exception) else done.result(),
                )
                if not isinstance(failure, BrokenProcessPool):
                    pending |= {
                        _submit(pool, run, trial): trial for trial in itertools.islice(due, 1)
                    }


def _submit(pool: ProcessPoolExecutor, run: Callable[[Row], Row], trial: Row) -> Future[Row]:
    try:
        return pool.submit(run, trial)
    except BrokenProcessPool as error:
        failed: Future[Row] = Future()
        failed.set_exception(error)
        return failed


@functools.lru_cache(maxsize=1)
def _opened(histories_dir: str, cache_dir: str) -> tuple[Histories, Encoder, EncodedHistories]:
    """What the cells of one process share."""
    histories = Histories.open(histories_dir)
    return histories, *training.encode(histories, Path(cache_dir))


def _train_and_measure(
    histories: Histories, encoder: Encoder, encoded: EncodedHistories, trial: Trial, out_dir: Path
) -> Row:
    started, config = time.perf_counter(), trial.config
    settings = within_events(encoded, config, trial.train_events, trial.seed)
    device, precision = training.choose_device(settings)
    ranker = training.make_ranker(config.model, encoder, trial.seed).to(device)
    trained, curve = training.fit(
        ranker,
        encoded,
        config.lengths,
        settings,
        trial.seed,
        out_dir,
        on_progress=lambda row, steps: None,
    )
    scorer = Scorer(
        Bundle(ranker, encoder, config.model, config.evaluate.served_length, {}),
        device,
        settings.token_budget,
        settings.max_requests_per_batch,
    )
    sample = evaluation.draw(encoded, config.evaluate, config.seed)
    with _scoring(device.type, precision):
        lengths = [
            _measure(entry, sample, config)
            for entry in evaluation.scores_by_length(
                scorer, encoded, sample, (*config.evaluate.lengths, config.evaluate.served_length)
            )
        ]
    facts = histories.manifest.get("dataset_facts", {})
    served = next(entry for entry in lengths if entry["length"] == config.evaluate.served_length)
    return {
        **trial.to_dict(),
        "served_length": config.evaluate.served_length,
        "lengths": lengths,
        "training": dataclasses.asdict(trained),
        "auc": served["auc"],
        "num_parameters": trained.num_parameters,
        "train_events_read": trained.num_events,
        "mean_length": trained.mean_length,
        "num_layer_parameters": trained.num_parameters - trained.num_table_parameters,
        "train_flops": 3.0
        * trained.num_requests
        * forward_flops(
            config.model, trained.mean_length, trained.num_targets / trained.num_requests
        ),
        "curve": [[row.step, round(row.loss, DIGITS)] for row in curve],
        "sample": _sample_id(sample),
        "best_possible": [dict(row) for row in facts.get("best_possible_auc", ())],
        "seconds": time.perf_counter() - started,
        "data": {
            "name": histories.manifest.get("dataset", histories.schema.name),
            "requests": len(sample.requests),
            "targets": len(sample.positions),
            "users": sample.resamples.num_users,
            "training requests": len(encoded.requests("train")),
            "longest history": int(sample.lengths.max(initial=0)),
        },
    }


def within_events(
    encoded: EncodedHistories, config: RunConfig, train_events: int, seed: int
) -> configuration.TrainConfig:
    """Returns the training configuration with as many epochs and steps as read `train_events`
    events, to within one batch.

    A bound in `train.max_steps` stays: whichever is reached first.

    Args:
        encoded: the histories.
        config: of the run; its training length distribution decides how many requests that is.
        train_events: events; 0 leaves the configuration as it is.
        seed: of the run.
    """
    settings, total, steps = config.train, 0, 0
    if not train_events:
        return settings
    for epoch in range(MAX_EPOCHS):
        stream = RequestStream.training(
            encoded,
            LengthSampler(config.lengths, seed),
            token_budget=settings.token_budget,
            max_requests=settings.max_requests_per_batch,
            seed=seed,
            epoch=epoch,
        )
        read = total + np.cumsum(np.add.reduceat(stream.ends - stream.starts, stream.bounds[:-1]))
        if read[-1] >= train_events or (
            settings.max_steps and steps + len(read) >= settings.max_steps
        ):
            steps += min(int(np.searchsorted(read, train_events)) + 1, len(read))
            return dataclasses.replace(
                settings, epochs=epoch + 1, max_steps=min(steps, settings.max_steps or steps)
            )
        total, steps = int(read[-1]), steps + len(read)
    raise ConfigError(
        "study.train_events cannot be reached",
        found=f"{total:,} events after {MAX_EPOCHS} epochs",
        expected=f"{train_events:,}",
    )


def _scoring(device: str, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Scores in the precision of the training, for speed; the served precision is what `evaluate`
    measures.
    """
    import torch

    return (
        torch.autocast(device, torch.bfloat16)
        if precision == "bfloat16"
        else contextlib.nullcontext()
    )


def _measure(entry: evaluation.LengthScores, sample: evaluation.Sample, config: RunConfig) -> Row:
    """The first task at one served length, with its resampled values."""
    found = metrics.measure(sample.labels[:, 0], entry.scores[:, 0], sample.resamples)
    targets = len(sample.positions) / len(sample.requests)
    return {
        "length": entry.length,
        "mean_events": entry.mean_events,
        "seconds": entry.seconds,
        "request_flops": forward_flops(config.model, entry.mean_events, targets),
        **{metric: found.values.get(metric) for metric in metrics.METRICS},
        "samples": {
            metric: np.round(found.samples[metric], DIGITS).tolist()
            for metric in METRICS
            if metric in found.samples
        },
    }


def _sample_id(sample: evaluation.Sample) -> str:
    parts = (
        sample.positions,
        sample.owners,
        sample.labels,
        np.array([sample.resamples.num_samples, sample.resamples.seed]),
    )
    return hashlib.sha256(
        b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
    ).hexdigest()[:16]


def _groups(trials: Sequence[Trial], found: Mapping[str, Row]) -> list[Group]:
    by_name: dict[str, list[Trial]] = {}
    for trial in trials:
        by_name.setdefault(json.dumps([trial.variant, trial.point], sort_keys=True), []).append(
            trial
        )
    return [
        Group(some[0].variant, some[0].point, {trial.seed: found[trial.id] for trial in some})
        for some in by_name.values()
    ]


def _differences(groups: Sequence[Group], reference: str) -> Iterator[Row]:
    """Yields variant minus reference at equal grid points, per served length, over the seeds that
    both have.
    """
    peers = {
        json.dumps(group.point, sort_keys=True): group
        for group in groups
        if group.variant == reference
    }
    for group in groups:
        baseline = peers.get(json.dumps(group.point, sort_keys=True))
        if (
            baseline is None
            or group is baseline
            or not (seeds := [seed for seed in group.rows if seed in baseline.rows])
        ):
            continue
        ours, theirs = (
            Group(side.variant, side.point, {seed: side.rows[seed] for seed in seeds})
            for side in (group, baseline)
        )
        for length in (length for length in ours.lengths if length in theirs.lengths):
            row = {
                **group.name(),
                "reference": reference,
                "length": length,
                "num_seeds": len(seeds),
            }
            for metric in METRICS[:3]:
                row |= _named(
                    metric, interval(ours.samples(metric, length) - theirs.samples(metric, length))
                )
            yield row


def _fits(groups: Sequence[Group]) -> Iterator[Row]:
    """Yields the slope per doubling of each metric against served events (each group), FLOPs of
    training and parameters (each variant).

    Served events twice: the length, which cuts the longest histories only, and the mean of the
    events that a request has then.
    """
    for group in groups:
        lengths = [
            entry for entry in next(iter(group.rows.values()))["lengths"] if entry["length"] > 0
        ]
        distinct = sorted(
            {entry["mean_events"]: entry["length"] for entry in reversed(lengths)}.items()
        )
        for metric in METRICS[:3]:
            ys = [over_seeds(group.samples(metric, length)) for _, length in distinct]
            yield from _fit(
                group.name(), "served length", metric, [length for _, length in distinct], ys
            )
            yield from _fit(
                group.name(), "mean_events", metric, [events for events, _ in distinct], ys
            )
    for variant in dict.fromkeys(group.variant for group in groups):
        same = [group for group in groups if group.variant == variant]
        for metric, name in itertools.product(
            METRICS[:3], ("train_flops", "num_layer_parameters", "train_events_read")
        ):
            ys = [over_seeds(group.samples(metric, group.served_length)) for group in same]
            yield from _fit(
                {"variant": variant}, name, metric, [group.mean(name) for group in same], ys
            )


def _fit(
    name: Row, against: str, metric: str, xs: Sequence[float], ys: Sequence[Float]
) -> Iterator[Row]:
    """Least squares of metric = intercept + slope log2(x) on the values and on every resample;
    three different x at least.

    Points where the metric is not defined do not count.
    """
    known = [
        (place, values)
        for place, values in zip(xs, ys, strict=True)
        if place > 0 and np.isfinite(values[0])
    ]
    if len({place for place, _ in known}) < 3:
        return
    x, y = (
        np.log2(np.array([place for place, _ in known])),
        np.stack([values for _, values in known]),
    )
    centred = x - x.mean()
    slopes = centred @ (y - y.mean(0)) / (centred @ centred)
    intercept = float(y[:, 0].mean() - slopes[0] * x.mean())
    left = y[:, 0] - intercept - slopes[0] * x
    spread = float(((y[:, 0] - y[:, 0].mean()) ** 2).sum())
    yield {
        **name,
        "metric": metric,
        "against": against,
        "num_points": len(known),
        **_named("slope_per_doubling", interval(slopes[None])),
        "intercept": intercept,
        "r_squared": 1 - float((left**2).sum()) / spread if spread else None,
    }


def _recovery(groups: Sequence[Group], study: StudyConfig) -> Row:
    """Which share of the gain of training at full length the extrapolated model reaches, and of its
    events; {} if not asked for.
    """
    sides = {
        name: (group, length)
        for name, (variant, length) in study.recovery.items()
        for group in groups
        if group.variant == variant
    }
    if len(sides) < 3:
        return {}
    base, full, ours = (
        over_seeds(group.samples("auc", length))
        for group, length in (sides[n] for n in ("base", "full", "extrapolated"))
    )
    share = (
        (ours - base) / (full - base) if full[0] > base[0] else np.full(1, np.nan)
    )  # a share of no gain says nothing
    events = {name: group.mean("train_events_read") for name, (group, _) in sides.items()}
    return {
        **_named("recovered", interval(share[None])),
        **_named("full_gain", interval((full - base)[None])),
        **_named("extrapolated_gain", interval((ours - base)[None])),
        "events_share": events["extrapolated"] / events["full"],
        **{f"{name}_events": value for name, value in events.items()},
    }


def _flat(row: Row) -> Row:
    """A result as one line of runs.csv."""
    served = next(entry for entry in row["lengths"] if entry["length"] == row["served_length"])
    names = (
        "num_steps",
        "num_requests",
        "num_targets",
        "seconds",
        "events_per_second",
        "first_loss",
        "final_loss",
        "device",
        "precision",
    )
    return {
        "id": row["id"],
        "variant": row["variant"],
        **row["point"],
        "seed": row["seed"],
        "served_length": row["served_length"],
        **{metric: served[metric] for metric in metrics.METRICS},
        "num_parameters": row["num_parameters"],
        "num_layer_parameters": row["num_layer_parameters"],
        "train_events_read": row["train_events_read"],
        "mean_length": row["mean_length"],
        "train_flops": row["train_flops"],
        "request_flops": served["request_flops"],
        **{f"train_{name}": row["training"][name] for name in names},
        "total_seconds": row["seconds"],
        **{f"auc_at_{entry['length']}": entry["auc"] for entry in row["lengths"]},
    }


def _named(metric: str, estimate: Estimate) -> Row:
    return {metric: estimate.value, f"{metric}_low": estimate.low, f"{metric}_high": estimate.high}


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (
        files.replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(
            {
                name: f"{value:.6g}" if isinstance(value, float) else value
                for name, value in row.items()
            }
            for row in rows
        )
