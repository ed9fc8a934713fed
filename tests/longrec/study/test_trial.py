"""Trials: their order, their ids and their results from paths and plain values."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from longrec.config import RunConfig
from longrec.errors import DataError
from longrec.study.collect import collect
from longrec.study.config import StudyConfig, override
from longrec.study.run_trial import run_trial, run_trials
from longrec.study.trial import Trial, from_item, plan, to_items, trials_dir
from tests.longrec.study.small_study import STUDY, Finished, load_study, results_in


def test_trials_are_ordered_by_seed(finished: Finished) -> None:
    study, out = finished
    trials = plan(study)
    assert [(trial.variant, trial.seed) for trial in trials] == [
        ("stca", 0),
        ("mean", 0),
        ("stca", 1),
        ("mean", 1),
    ]
    assert {trial.id for trial in trials} == set(results_in(out))


def test_equal_trials_have_equal_ids(finished: Finished) -> None:
    study, _ = finished
    trials = plan(study)
    wider = {"stca": {"model.width": 32}, "mean": study.variants["mean"]}
    other = plan(StudyConfig("x", study.base, wider))
    assert other[0].id != trials[0].id
    assert other[1].id == trials[1].id
    # so a key that a later version adds, at its default, loses no result
    defaults = {"stca": {"model.id_std": 0.05, "train.clip_norm": 1.0}}
    explicit = plan(StudyConfig("x", study.base, defaults))
    assert explicit[0].id == trials[0].id


def test_ids_are_those_of_former_versions(tmp_path: Path) -> None:
    study = load_study(tmp_path)
    assert [trial.id for trial in plan(study)] == [
        "stca-s0-5a797fdd",
        "mean-s0-4f80ff67",
        "stca-s1-2483e850",
        "mean-s1-1e2de0ac",
    ]


def test_a_trial_survives_as_json(finished: Finished) -> None:
    study, _ = finished
    trial = plan(study)[1]
    text = json.dumps(trial.to_dict())
    assert Trial.from_dict(json.loads(text)) == trial


@pytest.mark.parametrize(("max_items", "sizes"), [(8, [1, 1, 1, 1]), (3, [2, 1, 1]), (1, [4])])
def test_items_hold_all_trials_and_no_defaults(
    finished: Finished, max_items: int, sizes: list[int]
) -> None:
    study, _ = finished
    trials = plan(study)
    found = [from_item(text) for text in to_items(trials, max_items)]
    assert [len(item) for item in found] == sizes
    assert sorted((each for item in found for each in item), key=trials.index) == trials
    assert [item[0] for item in found] == trials[: len(found)], "the first come first"
    default = dataclasses.replace(trials[0], config=RunConfig())
    assert json.loads(to_items([default], 1)[0])[0]["config"] == {}


def test_trials_one_after_the_other_equal_the_study(
    histories_dir: Path, finished: Finished, tmp_path: Path
) -> None:
    study, out = finished
    rows = run_trials(histories_dir, tmp_path, plan(study)[:2])
    for row in rows:
        assert row["auc"] == results_in(out)[row["id"]]["auc"]
    assert collect(tmp_path, study).num_done == 2


def test_one_trial_from_paths_and_plain_values_equals_the_study(
    histories_dir: Path,
    finished: Finished,
    tmp_path: Path,
) -> None:
    study, out = finished
    text = json.dumps(plan(study)[3].to_dict())
    trial = json.loads(text)
    result = run_trial(str(histories_dir), str(tmp_path), trial)
    expected = results_in(out)[trial["id"]]
    for row, expected_row in zip(result["lengths"], expected["lengths"], strict=True):
        assert row["samples"] == expected_row["samples"]
    assert collect(tmp_path, study).num_done == 1


@pytest.mark.parametrize("distribution", ["fixed", "beta", "uniform"])
def test_every_distribution_reads_equal_events_under_a_budget(
    histories_dir: Path,
    distribution: str,
    tmp_path: Path,
) -> None:
    lengths = f"{{distribution: {distribution}, mean: 16, maximum: 32, alpha: 0.2}}"
    text = STUDY.replace("{distribution: full, maximum: 64}", lengths)
    text = text.replace("seeds: [0, 1]", "seeds: [0]\ntrain_events: 9000")
    study = load_study(tmp_path, text)
    trial = plan(study)[0]
    result = run_trial(histories_dir, tmp_path, trial.to_dict())
    assert 9_000 <= result["train_events_read"] < 9_600
    assert result["training"]["num_steps"] > 10
    bounded = dataclasses.replace(study, base=override(study.base, {"train.max_steps": 3}))
    bounded_trial = plan(bounded)[0]
    result = run_trial(histories_dir, tmp_path, bounded_trial.to_dict())
    assert result["training"]["num_steps"] == 3


def test_results_in_the_folder_of_an_older_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(DataError, match=r"folder of an older version; .* Rename it: mv .*runs"):
        trials_dir(tmp_path)
    (tmp_path / "runs").rename(tmp_path / "trials")
    assert trials_dir(tmp_path) == tmp_path / "trials"
