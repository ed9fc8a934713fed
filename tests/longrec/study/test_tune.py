"""A search: suggested trials, pruning, resuming, and its results."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import optuna
import pytest
from typer.testing import CliRunner

from longrec import config_file
from longrec.cli.main import app
from longrec.config import RunConfig
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.errors import ConfigError, DataError, LongrecError
from longrec.study import tune as module
from longrec.study.search_space import SearchSpace
from longrec.study.share import choose, run_share
from longrec.study.tune import Row, Search, num_finished, open_study, tune
from longrec.study.tune_report import MIN_TRIALS_OF_IMPORTANCE, write_results
from longrec.training.curve import NO_ROW, ValidationRow
from tests.longrec import small_histories
from tests.longrec.study.small_study import load_study

SPACE = {
    "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "train.epochs": {"low": 1, "high": 2},
    "model.id_std": [0.05, 0.5],
}
NUM_TRIALS = 3


@pytest.fixture(scope="module")
def validated_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small histories with validation requests; tests must not change them."""
    return small_histories.write(
        tmp_path_factory.mktemp("validated") / "histories",
        num_users=40,
        requests_per_user=6,
        validation_fraction=0.3,
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    base = load_study(tmp_path_factory.mktemp("base")).base
    return dataclasses.replace(
        base, model=dataclasses.replace(base.model, kind="mean", recency="token")
    )


def _search(histories_dir: Path, out: Path, config: RunConfig, **changes: Any) -> Search:
    search = Search(str(histories_dir), str(out), config, SearchSpace(SPACE))
    return dataclasses.replace(search, **changes)


@pytest.fixture(scope="module")
def finished(
    validated_dir: Path, config: RunConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Search, optuna.Study]:
    """A search with all trials; tests must not change it."""
    search = _search(validated_dir, tmp_path_factory.mktemp("tune") / "out", config)
    return search, tune(search, NUM_TRIALS)


def _suggestions(study: optuna.Study) -> list[tuple[dict[str, Any], float | None]]:
    """Return settings and value of each finished trial."""
    rows = []
    for trial in study.get_trials():
        if trial.state.name in ("COMPLETE", "PRUNED"):
            rows.append((trial.params, trial.value))
    return rows


def test_each_trial_is_a_training_with_other_settings(
    finished: tuple[Search, optuna.Study],
) -> None:
    rows = _suggestions(finished[1])
    assert len(rows) == NUM_TRIALS
    assert len({settings["train.learning_rate"] for settings, _ in rows}) == NUM_TRIALS
    for settings, auc in rows:
        assert settings.keys() == SPACE.keys()
        assert auc is not None
        assert 0 < auc < 1


def test_the_same_seed_gives_the_same_search_after_an_interruption(
    finished: tuple[Search, optuna.Study],
    validated_dir: Path,
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search = _search(validated_dir, tmp_path / "out", config)
    tune(search, 1)

    def die(*_: Any, **__: Any) -> NoReturn:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        # As a killed process: the journal has a trial that never ends.
        patch.setattr(module, "train_on_cache", die)
        tune(search, NUM_TRIALS)
    states = [trial.state.name for trial in open_study(search).get_trials()]
    assert states == ["COMPLETE", "RUNNING"]
    assert _suggestions(tune(search, NUM_TRIALS)) == _suggestions(finished[1])


def test_a_finished_search_trains_nothing(
    finished: tuple[Search, optuna.Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a training starts")

    monkeypatch.setattr(module, "train_on_cache", fail)
    assert _suggestions(tune(finished[0], NUM_TRIALS)) == _suggestions(finished[1])


def test_another_seed_searches_other_settings(
    finished: tuple[Search, optuna.Study], validated_dir: Path, config: RunConfig, tmp_path: Path
) -> None:
    other = tune(_search(validated_dir, tmp_path / "out", config, seed=1), 1)
    assert _suggestions(other)[0][0] != _suggestions(finished[1])[0][0]


def test_no_trial_reads_the_evaluation_part(
    validated_dir: Path,
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    requests = EncodedHistories.requests

    def record(self: EncodedHistories, split: Any) -> Any:
        read.append(split)
        return requests(self, split)

    monkeypatch.setattr(EncodedHistories, "requests", record)
    tune(_search(validated_dir, tmp_path / "out", config), 1)
    assert set(read) == {"train", "validation"}


class _Trained:
    """A trainer whose best validation had an AUC of 0.9."""

    def __init__(self, num_validations: int) -> None:
        row = ValidationRow(step=num_validations, auc=0.9, logloss=0.1, seconds=0.0)
        self.state = SimpleNamespace(validations=[row])


def test_a_trial_below_the_median_ends_after_its_second_validation(
    validated_dir: Path,
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A row of the curve that repeats a validation is none of its own."""
    monkeypatch.setattr(module, "NUM_STARTUP_TRIALS", 1)
    aucs = iter([0.9, 0.6])
    steps: list[int] = []

    def train(*_: Any, on_progress: Any, **__: Any) -> _Trained:
        auc = next(aucs)
        steps.clear()
        for step in range(1, 7):
            steps.append(step)
            validation = step // 2
            logloss = 1 / validation if validation else None
            row = dataclasses.replace(
                NO_ROW, step=step, validation_auc=auc, validation_logloss=logloss
            )
            on_progress(row, 6)
        return _Trained(6)

    monkeypatch.setattr(module, "train_on_cache", train)
    study = tune(_search(validated_dir, tmp_path / "out", config), 2)
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "PRUNED"]
    assert steps == [1, 2, 3, 4]


def test_a_share_leaves_the_running_trials_of_others_alone(
    finished: tuple[Search, optuna.Study], tmp_path: Path
) -> None:
    """Steps of a pipeline run at the same time on one journal."""
    search = dataclasses.replace(finished[0], out_dir=str(tmp_path / "out"), share="1/2")
    running = open_study(search).ask()
    running.set_user_attr("share", "2/2")
    study = tune(search, 1)
    assert [trial.state.name for trial in study.get_trials()] == ["RUNNING", "COMPLETE"]
    assert num_finished(study, "1/2") == 1
    assert num_finished(study, "2/2") == 0


def test_shares_search_different_settings_and_continue(
    finished: tuple[Search, optuna.Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = dataclasses.replace(finished[0], out_dir=str(tmp_path / "out"), cache_dir="")
    for share in ("1/2", "2/2"):
        value = run_share(dataclasses.replace(search, share=share), 3)
    result = choose(json.loads(json.dumps(value)), tmp_path / "chosen")
    assert result["num_finished"] == 3
    assert len({row["train.learning_rate"] for row in result["trials"]}) == 3
    assert (tmp_path / "chosen" / "best.yaml").exists()

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a training starts")

    monkeypatch.setattr(module, "train_on_cache", fail)
    run_share(dataclasses.replace(search, share="1/2"), 3)


def test_the_chosen_configuration_is_a_file_that_a_run_takes(
    finished: tuple[Search, optuna.Study],
) -> None:
    search, study = finished
    result = write_results(search, study)
    chosen = config_file.load_config(Path(search.out_dir) / "best.yaml", [])
    assert chosen.train.learning_rate == study.best_params["train.learning_rate"]
    assert chosen.model.kind == "mean"
    assert result["auc"] == max(auc for _, auc in _suggestions(study) if auc is not None)
    with open(Path(search.out_dir) / "trials.csv", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == NUM_TRIALS
    page = (Path(search.out_dir) / "report.html").read_text()
    assert "train.learning_rate" in page


def test_importance_names_the_setting_that_matters(
    finished: tuple[Search, optuna.Study], tmp_path: Path
) -> None:
    search = dataclasses.replace(finished[0], out_dir=str(tmp_path / "out"))
    study = open_study(search)

    def objective(trial: optuna.Trial) -> float:
        settings = search.space.suggest(trial)
        return 0.6 + 0.1 * (settings["model.id_std"] == 0.5)

    study.sampler = optuna.samplers.RandomSampler(seed=0)
    study.optimize(objective, n_trials=2 * MIN_TRIALS_OF_IMPORTANCE)
    importance = write_results(search, study)["importance"]
    assert importance["model.id_std"] > 0.9


def test_a_folder_of_another_search_is_refused(
    finished: tuple[Search, optuna.Study], config: RunConfig
) -> None:
    other = dataclasses.replace(config, seed=7)
    with pytest.raises(DataError, match="holds another search"):
        tune(dataclasses.replace(finished[0], config=other), 1)


def test_a_folder_of_other_histories_is_refused(
    finished: tuple[Search, optuna.Study], tmp_path: Path
) -> None:
    other = small_histories.write(tmp_path / "h", validation_fraction=0.3, seed=1)
    with pytest.raises(DataError, match="holds another search"):
        tune(dataclasses.replace(finished[0], histories_dir=str(other)), 1)


def test_histories_without_validation_requests_are_an_error(
    histories_dir: Path, config: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(LongrecError, match="validation"):
        tune(_search(histories_dir, tmp_path / "out", config), 1)


def test_a_trial_that_diverges_does_not_end_the_search(
    validated_dir: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = module.train_on_cache
    outcomes: Iterator[bool] = iter([False, True])

    def diverge_once(*arguments: Any, **options: Any) -> Any:
        if not next(outcomes):
            raise LongrecError("the loss is not finite")
        return train(*arguments, **options)

    monkeypatch.setattr(module, "train_on_cache", diverge_once)
    study = tune(_search(validated_dir, tmp_path / "out", config), 2)
    assert [trial.state.name for trial in study.get_trials()] == ["FAIL", "COMPLETE"]


def test_a_search_whose_trials_all_fail_says_why(
    validated_dir: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise LongrecError("the loss is not finite")

    monkeypatch.setattr(module, "train_on_cache", fail)
    with pytest.raises(LongrecError, match="the loss is not finite"):
        tune(_search(validated_dir, tmp_path / "out", config), 20)


def test_optuna_is_named_where_it_is_missing(
    validated_dir: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"longrec\[tune\]"):
        tune(_search(validated_dir, tmp_path / "out", config), 1)


def _arguments(search: Search, folder: Path, *options: str) -> list[str]:
    config = folder / "run.yaml"
    config.write_text(config_file.to_yaml(search.config))
    space = folder / "space.yaml"
    space.write_text(json.dumps(dict(search.space.entries)))
    paths = ["--config", str(config), "--space", str(space)]
    folders = ["--histories", search.histories_dir, "--out", search.out_dir]
    return ["tune", *paths, *folders, *options]


def test_the_command_prints_the_choice(
    finished: tuple[Search, optuna.Study], tmp_path: Path
) -> None:
    options = ("--trials", str(NUM_TRIALS), "--json")
    answer = CliRunner().invoke(app, _arguments(finished[0], tmp_path, *options))
    assert answer.exit_code == 0, answer.output
    result: Row = json.loads(answer.stdout)
    assert result["best"] == finished[1].best_params


def test_a_time_limit_that_ends_all_is_one_message(
    finished: tuple[Search, optuna.Study], tmp_path: Path
) -> None:
    search = dataclasses.replace(finished[0], out_dir=str(tmp_path / "out"))
    answer = CliRunner().invoke(app, _arguments(search, tmp_path, "--limit", "0.000001"))
    assert answer.exit_code == 1
    assert "no trial of the search has finished" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
def test_processes_search_different_settings(
    finished: tuple[Search, optuna.Study], tmp_path: Path
) -> None:
    search = dataclasses.replace(finished[0], out_dir=str(tmp_path / "out"))
    rows = _suggestions(tune(search, 4, num_workers=2))
    assert len({settings["train.learning_rate"] for settings, _ in rows}) == 4
