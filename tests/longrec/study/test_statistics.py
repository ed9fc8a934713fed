"""Statistics of a study: intervals, paired differences, fits and recovery, by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from longrec.config import RunConfig
from longrec.data.files import read_json
from longrec.errors import ConfigError
from longrec.study.config import StudyConfig
from longrec.study.run_trial import RESAMPLED_METRICS
from longrec.study.statistics import TrialGroup, fits, interval, over_seeds, recovery
from tests.longrec.study.small_study import SERVED_LENGTH, Finished, Result, at_length, results_in

FAKE_LENGTHS = (2, 4, 8, 16)
SEEDS = (0, 1)


def fake_result(
    first_auc: float,
    slope: float,
    **values: Any,
) -> Result:
    """Return a result with an AUC of first_auc + slope log2(length)."""
    rows = []
    for length in FAKE_LENGTHS:
        auc = first_auc + slope * np.log2(length)
        samples = (auc + np.linspace(-0.01, 0.01, 50)).tolist()
        row = {
            "length": length,
            "mean_events": length,
            "auc": auc,
            "gauc": auc,
            "logloss": -auc,
            "calibration": 1.0,
            "request_flops": 1.0,
            "samples": dict.fromkeys(RESAMPLED_METRICS, samples),
        }
        rows.append(row)
    return {
        "lengths": rows,
        "served_length": 16,
        "train_flops": 1.0,
        "num_layer_parameters": 1,
        "train_events_read": 1,
        **values,
    }


def group_of(
    variant: str,
    result: Result,
) -> TrialGroup:
    return TrialGroup(variant, {}, {0: result})


def recovery_study() -> StudyConfig:
    return StudyConfig(
        "x",
        RunConfig(),
        {
            "short": {},
            "full": {},
            "beta": {},
        },
        recovery={
            "base": ("short", 2),
            "full": ("full", 16),
            "extrapolated": ("beta", 16),
        },
    )


def test_differences_are_paired_by_user_and_seed(finished: Finished) -> None:
    _, out = finished
    facts = read_json(out / "study.json")
    [found] = [row for row in facts["differences"] if row["length"] == SERVED_LENGTH]
    assert found["variant"] == "mean"
    row_of = {}
    for result in results_in(out).values():
        row_of[result["variant"], result["seed"]] = at_length(result, SERVED_LENGTH)
    values = []
    resampled = []
    for seed in SEEDS:
        ours = row_of["mean", seed]
        theirs = row_of["stca", seed]
        values.append(ours["auc"] - theirs["auc"])
        resampled.append(np.array(ours["samples"]["auc"]) - theirs["samples"]["auc"])
    assert found["auc"] == pytest.approx(np.mean(values))
    assert np.min(resampled) <= found["auc_low"] < found["auc"]
    assert found["auc"] < found["auc_high"] <= np.max(resampled)
    # pairing makes the interval narrower than that of independent resamples
    only = interval(np.array([[values[0], *resampled[0]]]))
    variance = 0.0
    for variant in ("mean", "stca"):
        variance += np.std(row_of[variant, 0]["samples"]["auc"]) ** 2
    unpaired_width = 3.9 * np.sqrt(variance)
    assert only.high - only.low < 1.2 * unpaired_width


def test_no_difference_has_no_width() -> None:
    same = interval(np.zeros((2, 31)))
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_fits_find_the_slope_per_doubling() -> None:
    results = {0: fake_result(0.5, 0.03), 1: fake_result(0.6, 0.03)}
    rows = list(fits([TrialGroup("a", {}, results)]))
    row_of = {(row["metric"], row["against"]): row for row in rows}
    assert rows[0]["metric"] == "auc"
    assert rows[0]["against"] == "served length"
    by_length = row_of["auc", "served length"]
    assert by_length["num_points"] == 4
    assert by_length["slope_per_doubling"] == pytest.approx(0.03)
    assert by_length["slope_per_doubling_low"] == pytest.approx(0.03)
    assert by_length["intercept"] == pytest.approx(0.55)
    assert by_length["r_squared"] == pytest.approx(1.0)
    # one row per metric: gauc and log loss are as straight
    by_events = next(row for row in rows if row["against"] == "mean_events")
    assert by_events["slope_per_doubling"] == pytest.approx(0.03)


def test_seeds_widen_the_interval_and_the_value_is_their_mean() -> None:
    samples = np.array(
        [
            [0.5, *np.full(200, 0.5)],
            [0.7, *np.full(200, 0.7)],
        ]
    )
    estimate = interval(samples)
    assert estimate.value == pytest.approx(0.6)
    assert estimate.low == pytest.approx(0.5)
    assert estimate.high == pytest.approx(0.7)


def test_resamples_of_seeds_vary_as_their_mean_does() -> None:
    seeds = np.array([0.1, 0.2, 0.6, 0.3])
    samples = np.repeat(seeds[:, None], 20_001, axis=1)
    means = over_seeds(samples)
    assert means[0] == pytest.approx(seeds.mean())
    # the standard error of a mean of four
    standard_error = seeds.std(ddof=1) / 2
    assert means[1:].std() == pytest.approx(standard_error, rel=0.03)


def test_a_share_of_no_gain_is_not_defined() -> None:
    groups = [
        group_of("short", fake_result(0.5, 0.0)),
        group_of("full", fake_result(0.4, 0.0)),
        group_of("beta", fake_result(0.6, 0.0)),
    ]
    row = recovery(groups, recovery_study())
    assert row["recovered"] is None
    assert row["full_gain"] == pytest.approx(-0.1)


def test_recovery_is_the_share_of_the_gain() -> None:
    groups = [
        group_of("short", fake_result(0.5, 0.0)),
        group_of("full", fake_result(0.5, 0.05, train_events_read=10)),
        group_of("beta", fake_result(0.5, 0.04, train_events_read=3)),
    ]
    row = recovery(groups, recovery_study())
    assert row["recovered"] == pytest.approx(0.8)
    assert row["events_share"] == pytest.approx(0.3)
    assert row["full_gain"] == pytest.approx(0.2)


def test_recovery_without_one_of_its_variants_is_empty() -> None:
    groups = [group_of("short", fake_result(0.5, 0.0))]
    assert recovery(groups, recovery_study()) == {}


def test_recovery_is_over_the_seeds_that_all_variants_have() -> None:
    base = {0: fake_result(0.5, 0.0), 1: fake_result(0.9, 0.0)}
    groups = [
        TrialGroup("short", {}, base),
        group_of("full", fake_result(0.5, 0.05, train_events_read=10)),
        group_of("beta", fake_result(0.5, 0.04, train_events_read=3)),
    ]
    row = recovery(groups, recovery_study())
    assert row["recovered"] == pytest.approx(0.8)
    assert row["full_gain"] == pytest.approx(0.2)


def test_recovery_of_a_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="without a grid"):
        dataclasses.replace(recovery_study(), grid={"model.width": [16, 32]})
