"""Statistics of a study: intervals, paired differences, scaling fits and length extrapolation.

Intervals (95 %) resample users, and the seeds of a variant with them; from three seeds on, they
span about the worst to the best seed. A metric that one seed does not define is not defined
for the variant: leaving out a failed seed would flatter the variant.

Shape letters: S seeds, B resamples, P points of a fit.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from longrec.evaluation.bootstrap import TOO_FEW_USERS, Estimate, percentile_interval
from longrec.study.config import RECOVERY_ROLES, StudyConfig
from longrec.study.rows import at_length
from longrec.study.run_trial import RESAMPLED_METRICS
from longrec.study.trial import Row, Trial

Float: TypeAlias = npt.NDArray[np.float64]
COMPARED_METRICS = ("auc", "gauc", "logloss")
"""Metrics of differences and fits."""
COST_KEYS = ("train_flops", "num_layer_parameters", "train_events_read")
"""Numbers of a result that metrics are fitted against."""
MIN_FIT_POINTS = 3


@dataclasses.dataclass(frozen=True, slots=True)
class TrialGroup:
    """The trials of one variant at one grid point, one per seed.

    Args:
        variant: name of the variant.
        point: the grid point.
        results: results by seed.
    """

    variant: str
    point: Mapping[str, Any]
    results: Mapping[int, Row]

    @property
    def first_result(self) -> Row:
        """The result of the first seed."""
        return next(iter(self.results.values()))

    @property
    def lengths(self) -> list[int]:
        """The measured served lengths."""
        return [row["length"] for row in self.first_result["lengths"]]

    @property
    def served_length(self) -> int:
        """The length of the metrics without a length in their name."""
        return int(self.first_result["served_length"])

    @property
    def point_key(self) -> str:
        """Text that is equal for equal grid points."""
        return _text_of(self.point)

    def names(self) -> Row:
        """Return the columns that name the group."""
        return {"variant": self.variant, **self.point}

    def with_seeds(self, seeds: Sequence[int]) -> TrialGroup:
        """Return the group with some of its seeds."""
        results = {seed: self.results[seed] for seed in seeds}
        return dataclasses.replace(self, results=results)

    def mean(self, key: str) -> float:
        """Return the mean of a number over seeds."""
        values = [result[key] for result in self.results.values()]
        return float(np.mean(values))

    def samples(
        self,
        metric: str,
        length: int,
    ) -> Float:
        """Return the values of a metric at a served length, float64 [S, B + 1].

        The first column is the value itself, the others are its resamples. If a seed does not
        define it: nan, [S, 1].
        """
        rows = []
        for result in self.results.values():
            row = at_length(result["lengths"], length)
            if metric not in row["samples"]:
                return np.full((len(self.results), 1), np.nan)
            rows.append(row)
        values = []
        for row in rows:
            resampled = row["samples"][metric]
            values.append([row[metric], *resampled])
        return np.array(values, np.float64)

    def curve(self) -> Iterator[Row]:
        """Yield a row per served length: metrics, gain over the shortest length, cost."""
        shortest = self.samples("auc", self.lengths[0])
        for length in self.lengths:
            row = {
                **self.names(),
                "length": length,
                "num_seeds": len(self.results),
            }
            for metric in RESAMPLED_METRICS:
                estimate = interval(self.samples(metric, length))
                row |= columns(metric, estimate)
            gain = interval(self.samples("auc", length) - shortest)
            row |= columns("gain", gain)
            measured = at_length(self.first_result["lengths"], length)
            row["mean_events"] = measured["mean_events"]
            row["request_flops"] = measured["request_flops"]
            yield row


def group_trials(trials: Sequence[Trial], results: Mapping[str, Row]) -> list[TrialGroup]:
    """Group trials by variant and grid point.

    Args:
        trials: trials with a result.
        results: results by trial id.
    """
    first_trials: dict[str, Trial] = {}
    results_by_seed: dict[str, dict[int, Row]] = {}
    for trial in trials:
        key = _text_of([trial.variant, trial.point])
        first_trials.setdefault(key, trial)
        by_seed = results_by_seed.setdefault(key, {})
        by_seed[trial.seed] = results[trial.id]
    groups = []
    for key, first in first_trials.items():
        group = TrialGroup(
            first.variant,
            first.point,
            results_by_seed[key],
        )
        groups.append(group)
    return groups


def interval(samples: Float) -> Estimate:
    """Return the mean over seeds and its interval over users and seeds.

    Args:
        samples: float64 [S, B + 1], the values, then their resamples.
    """
    value = float(samples[:, 0].mean())
    resampled = over_seeds(samples)[1:]
    if not np.isfinite(value):
        return Estimate(None, reason=TOO_FEW_USERS)
    return percentile_interval(value, resampled)


def over_seeds(samples: Float) -> Float:
    """Return the mean over seeds, float64 [B + 1].

    The value itself is the mean of all seeds. A resample is the mean of S - 1 seeds drawn with
    replacement: S - 1, not S, so the resamples vary as the mean of S seeds does.

    Source: Rao and Wu 1988, Resampling inference with complex survey data, section 2.

    Args:
        samples: float64 [S, B + 1].
    """
    num_seeds, num_columns = samples.shape
    num_drawn = max(num_seeds - 1, 1)
    # Always the same draws: differences of metrics and of variants stay paired by seed.
    generator = np.random.default_rng(0)
    drawn = generator.integers(num_seeds, size=(num_drawn, num_columns))
    resampled = np.take_along_axis(
        samples,
        drawn,
        axis=0,
    )
    mean: Float = resampled.mean(0)
    mean[0] = samples[:, 0].mean()
    return mean


def differences(groups: Sequence[TrialGroup], reference: str) -> Iterator[Row]:
    """Yield variant minus reference at equal grid points, per served length.

    A difference is over the seeds that both have.
    """
    references = {}
    for group in groups:
        if group.variant == reference:
            references[group.point_key] = group
    for group in groups:
        baseline = references.get(group.point_key)
        if baseline is None or group is baseline:
            continue
        seeds = _common_seeds([group, baseline])
        if seeds:
            yield from _paired_differences(group.with_seeds(seeds), baseline.with_seeds(seeds))


def _paired_differences(group: TrialGroup, baseline: TrialGroup) -> Iterator[Row]:
    """Yield the differences of two groups with equal seeds, per served length that both have."""
    for length in group.lengths:
        if length not in baseline.lengths:
            continue
        row = {
            **group.names(),
            "reference": baseline.variant,
            "length": length,
            "num_seeds": len(group.results),
        }
        for metric in COMPARED_METRICS:
            ours = group.samples(metric, length)
            theirs = baseline.samples(metric, length)
            row |= columns(metric, interval(ours - theirs))
        yield row


def fits(groups: Sequence[TrialGroup]) -> Iterator[Row]:
    """Yield the slope per doubling of each metric against lengths and costs.

    Each group has fits against the served length, which cuts only the longest histories, and
    against the mean number of events that requests have at that length. Each variant has fits
    against training FLOPs, parameters and events read.
    """
    for group in groups:
        yield from _length_fits(group)
    groups_of: dict[str, list[TrialGroup]] = {}
    for group in groups:
        groups_of.setdefault(group.variant, []).append(group)
    for variant, own_groups in groups_of.items():
        yield from _cost_fits(variant, own_groups)


def _length_fits(group: TrialGroup) -> Iterator[Row]:
    """Yield the fits of one group against served lengths; a number of events counts once."""
    length_of = {}
    # backwards: of several lengths with the same events, the shortest stays
    for row in reversed(group.first_result["lengths"]):
        if row["length"] > 0:
            length_of[row["mean_events"]] = row["length"]
    mean_events = sorted(length_of)
    # The keys are values of `against` in fits.csv.
    xs = {
        "served length": [length_of[events] for events in mean_events],
        "mean_events": mean_events,
    }
    for metric in COMPARED_METRICS:
        values = []
        for length in xs["served length"]:
            samples = group.samples(metric, length)
            values.append(over_seeds(samples))
        for against, own_xs in xs.items():
            fit = fit_doubling(own_xs, values)
            if fit is None:
                continue
            yield {
                **group.names(),
                "metric": metric,
                "against": against,
                **fit,
            }


def _cost_fits(variant: str, groups: Sequence[TrialGroup]) -> Iterator[Row]:
    """Yield the fits of one variant against its costs, over its grid points."""
    for metric, key in itertools.product(COMPARED_METRICS, COST_KEYS):
        costs = []
        values = []
        for group in groups:
            samples = group.samples(metric, group.served_length)
            values.append(over_seeds(samples))
            costs.append(group.mean(key))
        fit = fit_doubling(costs, values)
        if fit is None:
            continue
        yield {
            "variant": variant,
            "metric": metric,
            "against": key,
            **fit,
        }


def fit_doubling(xs: Sequence[float], ys: Sequence[Float]) -> Row | None:
    """Fit metric = intercept + slope log2(x) by least squares, to the values and each resample.

    Points with an undefined metric are left out. Fewer than MIN_FIT_POINTS different x give None.

    Args:
        xs: x of each point, [P].
        ys: float64 [B + 1] of each point, the value and its resamples.
    """
    known_xs = []
    known_ys = []
    for x, y in zip(xs, ys, strict=True):
        if x > 0 and np.isfinite(y[0]):
            known_xs.append(x)
            known_ys.append(y)
    if len(set(known_xs)) < MIN_FIT_POINTS:
        return None
    log_x = np.log2(np.array(known_xs))
    values = np.stack(known_ys)
    # slope = covariance(x, y) / variance(x), for the value and for each resample
    centred = log_x - log_x.mean()
    deviations = values - values.mean(0)
    slopes = centred @ deviations / (centred @ centred)
    own_values = values[:, 0]
    own_slope = slopes[0]
    intercept = own_values.mean() - own_slope * log_x.mean()
    residuals = own_values - intercept - own_slope * log_x
    spread = _sum_of_squares(own_values - own_values.mean())
    r_squared = None
    if spread:
        r_squared = 1 - _sum_of_squares(residuals) / spread
    return {
        "num_points": len(known_xs),
        **columns("slope_per_doubling", interval(slopes[None])),
        "intercept": float(intercept),
        "r_squared": r_squared,
    }


def _sum_of_squares(values: Float) -> float:
    squares = values**2
    return float(squares.sum())


def recovery(groups: Sequence[TrialGroup], study: StudyConfig) -> Row:
    """Return the share of the gain of full-length training that the extrapolated model reaches.

    The three variants are compared over the seeds that all of them have. Empty if the study does
    not ask for it, or if there is no such seed.
    """
    group_of = {}
    for role, (variant, _) in study.recovery.items():
        for group in groups:
            if group.variant == variant:
                group_of[role] = group
    if len(group_of) < len(RECOVERY_ROLES):
        return {}
    seeds = _common_seeds(list(group_of.values()))
    if not seeds:
        return {}
    auc_of = {}
    events_of = {}
    for role, group in group_of.items():
        _, length = study.recovery[role]
        compared = group.with_seeds(seeds)
        samples = compared.samples("auc", length)
        auc_of[role] = over_seeds(samples)
        events_of[role] = compared.mean("train_events_read")
    full_gain = auc_of["full"] - auc_of["base"]
    extrapolated_gain = auc_of["extrapolated"] - auc_of["base"]
    # without a gain, a share of it means nothing
    recovered = np.full(1, np.nan)
    if full_gain[0] > 0:
        recovered = extrapolated_gain / full_gain
    row = {
        **columns("recovered", interval(recovered[None])),
        **columns("full_gain", interval(full_gain[None])),
        **columns("extrapolated_gain", interval(extrapolated_gain[None])),
        "events_share": events_of["extrapolated"] / events_of["full"],
    }
    for role, num_events in events_of.items():
        row[f"{role}_events"] = num_events
    return row


def columns(name: str, estimate: Estimate) -> Row:
    """Return the columns of an estimate: its value and both ends of its interval."""
    return {
        name: estimate.value,
        f"{name}_low": estimate.low,
        f"{name}_high": estimate.high,
    }


def _common_seeds(groups: Sequence[TrialGroup]) -> list[int]:
    """Return the seeds that all groups have, in the order of the first group."""
    first = groups[0]
    return [seed for seed in first.results if all(seed in group.results for group in groups)]


def _text_of(value: object) -> str:
    """Return text that is equal for equal values."""
    return json.dumps(value, sort_keys=True)
