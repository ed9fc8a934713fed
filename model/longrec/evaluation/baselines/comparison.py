"""Score the evaluated targets with every baseline, and compare the ranker with each.

All are fitted on the training requests: rates on all of them, parameters on the latest
`MAX_FITTED_TARGETS` targets. The fit of the trees ends by the validation requests; without any, by
the latest part of the training requests.

Shape letters: N targets of the sample.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.evaluation import bootstrap
from longrec.evaluation.baselines import fits
from longrec.evaluation.baselines.features import TargetFeatures
from longrec.evaluation.baselines.fits import BaselineError, Examples
from longrec.evaluation.baselines.rates import combined_rates
from longrec.evaluation.baselines.repeats import Repeats
from longrec.evaluation.baselines.standing import standing
from longrec.evaluation.bootstrap import TaskMetrics
from longrec.evaluation.sample import EvaluationInputs

log = logging.getLogger(__name__)

Array: TypeAlias = npt.NDArray[Any]
Float: TypeAlias = npt.NDArray[np.float64]
Int: TypeAlias = npt.NDArray[np.int64]
Row: TypeAlias = dict[str, Any]

MAX_FITTED_TARGETS = 500_000
"""Latest training targets that a fit reads."""
LATER_SHARE = 0.1
"""Share of the training targets, the latest, that end the fit of the trees."""
ITEM_RATE = "item rate"
ITEM_COUNT = "item count"
POPULARITY = (ITEM_RATE, ITEM_COUNT)
"""Baselines that know the item only."""
REPEAT_COLUMNS = {"recency": fits.recency_columns, "frequency": fits.frequency_columns}


@dataclasses.dataclass(
    frozen=True,
    slots=True,
)
class Baseline:
    """One baseline of one task, measured on the sample.

    Args:
        name: see `longrec.evaluation.baselines`.
        scores: float64 [N]; nan if it cannot be fitted.
        metrics: of the scores; without values if it cannot be fitted.
    """

    name: str
    scores: Float
    metrics: TaskMetrics

    @property
    def auc(self) -> float:
        """AUC on the sample; -1 if it is not defined."""
        return self.metrics.values.get("auc", -1.0)


@dataclasses.dataclass(
    frozen=True,
    slots=True,
)
class _Window:
    """Features and labels of the targets of the fit, of its end, and of the sample.

    Args:
        train, later, sample: features.
        train_labels, later_labels: [., K].
        seed: of the fits.
    """

    train: TargetFeatures
    later: TargetFeatures
    sample: TargetFeatures
    train_labels: Array
    later_labels: Array
    seed: int


def measure_baselines(inputs: EvaluationInputs) -> dict[str, tuple[Baseline, ...]]:
    """Return the baselines of each task, in the order of reports."""
    started = time.perf_counter()
    window = _read_window(inputs)
    measured = {}
    for position, task in enumerate(inputs.task_names):
        labels = inputs.sample.labels[:, position]
        measured[task] = tuple(
            _measure(name, score, labels, inputs)
            for name, score in _scorers(window, position).items()
        )
    seconds = time.perf_counter() - started
    log.info("baselines of %d tasks in %.1f s", len(measured), seconds)
    return measured


def best(
    baselines: tuple[Baseline, ...],
    names: tuple[str, ...] = (),
) -> Baseline:
    """Return the baseline with the highest AUC on the sample.

    Args:
        baselines: of one task.
        names: names to choose from; empty for all.
    """
    candidates = [entry for entry in baselines if not names or entry.name in names]
    return max(candidates, key=lambda entry: entry.auc)


def comparison_rows(
    baselines: tuple[Baseline, ...],
    ours: TaskMetrics,
) -> tuple[Row, ...]:
    """Return the JSON form of the baselines of one task, best first.

    Args:
        baselines: of the task.
        ours: metrics of the ranker; the difference is its AUC minus that of the baseline, paired.
    """
    by_auc = sorted(baselines, key=lambda entry: -entry.auc)
    return tuple(_comparison_row(entry, ours) for entry in by_auc)


def _comparison_row(
    baseline: Baseline,
    ours: TaskMetrics,
) -> Row:
    difference = bootstrap.paired_difference(ours, baseline.metrics)
    return {
        "name": baseline.name,
        **baseline.metrics.to_dict(),
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "standing": standing(difference),
        "reason": difference.reason,
    }


def _measure(
    name: str,
    score: Callable[[], Float],
    labels: Array,
    inputs: EvaluationInputs,
) -> Baseline:
    resamples = inputs.sample.resamples
    try:
        scores = score()
    except BaselineError as error:
        log.warning("no baseline %s: %s", name, error)
        return Baseline(
            name, np.full(len(labels), np.nan), bootstrap.unmeasured(labels, resamples, str(error))
        )
    return Baseline(name, scores, bootstrap.measure(labels, scores, resamples))


def _scorers(
    window: _Window,
    task: int,
) -> dict[str, Callable[[], Float]]:
    """Return name -> function that scores the sample, for one task."""
    sample = window.sample
    scorers: dict[str, Callable[[], Float]] = {
        ITEM_RATE: lambda: sample.item_rates[:, task],
        ITEM_COUNT: lambda: _shares(sample.item_counts),
        "item and user rate": lambda: combined_rates(
            sample.item_rates[:, task],
            sample.user_rates[:, task],
            sample.overall_rates[:, task],
        ),
    }
    for feature in sample.repeats:
        for kind, columns in REPEAT_COLUMNS.items():
            scorers[f"{kind} of {feature}"] = functools.partial(
                _repeat_scores,
                window,
                task,
                feature=feature,
                columns=columns,
            )
    scorers["boosted trees"] = functools.partial(_tree_scores, window, task)
    return scorers


def _repeat_scores(
    window: _Window,
    task: int,
    *,
    feature: str,
    columns: Callable[[Repeats], Float],
) -> Float:
    train = Examples(columns(window.train.repeats[feature]), window.train_labels[:, task])
    return fits.logistic_scores(train, columns(window.sample.repeats[feature]))


def _tree_scores(
    window: _Window,
    task: int,
) -> Float:
    return fits.tree_scores(
        Examples(window.train.matrix(task), window.train_labels[:, task]),
        Examples(window.later.matrix(task), window.later_labels[:, task]),
        window.sample.matrix(task),
        window.seed,
    )


def _shares(counts: Int) -> Float:
    """Return counts over the largest one: metrics expect probabilities, AUC reads the order."""
    shares: Float = counts / max(1, int(counts.max(initial=0)))
    return shares


def _read_window(inputs: EvaluationInputs) -> _Window:
    encoded = inputs.encoded
    train, later = _split_fit(encoded)
    sample = inputs.sample
    parts = [train, later, (sample.target_positions, sample.target_requests)]
    positions = np.concatenate([part[0] for part in parts])
    requests = np.concatenate([part[1] for part in parts])
    # One pass over the events serves all parts.
    features = TargetFeatures.compute(
        inputs.histories,
        encoded,
        positions,
        requests,
    )
    later_start = len(train[0])
    sample_start = later_start + len(later[0])
    return _Window(
        train=features.take(slice(0, later_start)),
        later=features.take(slice(later_start, sample_start)),
        sample=features.take(slice(sample_start, None)),
        train_labels=encoded.labels[train[0]],
        later_labels=encoded.labels[later[0]],
        seed=inputs.seed,
    )


def _split_fit(encoded: EncodedHistories) -> tuple[tuple[Int, Int], tuple[Int, Int]]:
    """Return positions and requests of the targets to fit, and of those that end the fit."""
    train = _latest(encoded.targets_of(encoded.requests("train")))
    validation = encoded.requests("validation")
    if len(validation):
        return train, _latest(encoded.targets_of(validation))
    positions, requests = train
    first_later = int(len(positions) * (1 - LATER_SHARE))
    # A request is not split.
    border = np.searchsorted(requests, requests[first_later]) if len(requests) else 0
    if border == 0:
        border = len(requests)
    return (positions[:border], requests[:border]), (positions[border:], requests[border:])


def _latest(targets: tuple[Int, Int]) -> tuple[Int, Int]:
    positions, requests = targets
    return positions[-MAX_FITTED_TARGETS:], requests[-MAX_FITTED_TARGETS:]
