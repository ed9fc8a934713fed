"""Studies: a grid that is killed goes on, a finished run is never run again, and every table equals
one made another way.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from longrec.cli.main import app
from longrec.config import ModelConfig, RunConfig
from longrec.data.files import read_json
from longrec.data.histories import Histories
from longrec.errors import ConfigError, DataError
from longrec.nn.flops import forward_flops
from longrec.study import runner as study
from longrec.study.runner import Group, StudyConfig, collect, grid, plan, run_one
from tests.longrec import small_histories
from tests.longrec.pages import text_of

BASE = """
name: small
base:
  model: {width: 16, num_layers: 2, num_heads: 2, id_dim: 8, feature_dim: 4, mixer_layers: 1}
  lengths: {distribution: full, maximum: 64}
  train: {epochs: 1, token_budget: 600, max_requests_per_batch: 16, learning_rate: 0.005, device: cpu}
  evaluate: {lengths: [0, 4, 16], served_length: 64, bootstrap_samples: 30}
variants:
  stca: {}
  mean: {model.kind: mean, model.recency: token}
seeds: [0, 1]
"""


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_histories.write(
        tmp_path_factory.mktemp("world") / "histories", num_users=40, requests_per_user=6
    )


def written(folder: Path, text: str = BASE) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def finished(histories: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, Path]:
    folder = tmp_path_factory.mktemp("study")
    config = study.load(written(folder))
    grid(histories, folder / "out", config)
    return config, folder / "out"


def results(out: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((out / "runs").iterdir())}


def test_a_killed_study_goes_on_and_a_finished_run_is_never_run_again(
    histories: Path,
    finished: tuple[StudyConfig, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    config, whole = finished
    seen: list[str] = []

    def killed(row: dict[str, Any], done: int, of: int) -> None:
        seen.append(row["id"])
        assert (done, of) == (len(seen), 4)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grid(histories, tmp_path / "out", config, on_run=killed)
    assert sorted(results(tmp_path / "out")) == sorted(seen) and len(seen) == 3
    again: list[str] = []
    report = grid(
        histories,
        tmp_path / "out",
        config,
        on_run=lambda row, done, of: again.append(f"{row['id']} {done}/{of}"),
    )
    assert len(again) == 1 and again[0].endswith("4/4") and again[0].split()[0] not in seen
    assert (report.num_done, report.num_trials) == (4, 4)
    monkeypatch.setattr(
        study.training, "fit", lambda *args, **kwargs: pytest.fail("a finished run was run again")
    )
    grid(histories, tmp_path / "out", config)
    for name, row in results(whole).items():
        assert (
            results(tmp_path / "out")[name]["lengths"][2]["auc"] == row["lengths"][2]["auc"]
        )  # and equal to the uninterrupted one


def test_cells_are_ordered_by_seed_and_named_by_what_they_are(
    finished: tuple[StudyConfig, Path],
) -> None:
    config, out = finished
    trials = plan(config)
    assert [(trial.variant, trial.seed) for trial in trials] == [
        ("stca", 0),
        ("mean", 0),
        ("stca", 1),
        ("mean", 1),
    ]
    assert {trial.id for trial in trials} == set(results(out))
    other = plan(
        StudyConfig(
            "x", config.base, {"stca": {"model.width": 32}, "mean": config.variants["mean"]}
        )
    )
    assert other[0].id != trials[0].id and other[1].id == trials[1].id
    explicit = plan(
        StudyConfig("x", config.base, {"stca": {"model.id_std": 0.05, "train.clip_norm": 1.0}})
    )
    assert (
        explicit[0].id == trials[0].id
    )  # so that a key that a later version adds, at its default, loses no result
    assert study.Trial.from_dict(json.loads(json.dumps(trials[1].to_dict()))) == trials[1]


def test_one_cell_from_paths_and_plain_values_equals_the_grid(
    histories: Path, finished: tuple[StudyConfig, Path], tmp_path: Path
) -> None:
    config, out = finished
    trial = json.loads(json.dumps(plan(config)[3].to_dict()))
    row = run_one(str(histories), str(tmp_path), trial)
    assert [entry["samples"] for entry in row["lengths"]] == [
        entry["samples"] for entry in results(out)[trial["id"]]["lengths"]
    ]
    assert collect(tmp_path, config).num_done == 1


@pytest.mark.slow
def test_processes_give_the_same_results(
    histories: Path, finished: tuple[StudyConfig, Path], tmp_path: Path
) -> None:
    config, out = finished
    grid(histories, tmp_path / "out", config, num_workers=2)
    for name, row in results(out).items():
        assert results(tmp_path / "out")[name]["auc"] == pytest.approx(
            row["auc"], abs=1e-3
        )  # another number of threads


def test_a_run_that_fails_is_reported_and_the_others_go_on(
    histories: Path,
    finished: tuple[StudyConfig, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    right = study.training.make_ranker

    def broken(model: ModelConfig, *rest: Any) -> Any:
        if model.kind == "mean":
            raise RuntimeError("out of memory")
        return right(model, *rest)

    monkeypatch.setattr(study.training, "make_ranker", broken)
    report = grid(histories, tmp_path / "out", finished[0])
    assert (
        report.num_done == 2
        and [row["error"] for row in report.failures] == ["RuntimeError: out of memory"] * 2
    )
    assert "out of memory" in text_of(tmp_path / "out" / "report.html")
    arguments = [
        "study",
        "--config",
        str(written(tmp_path)),
        "--histories",
        str(histories),
        "--out",
        str(tmp_path / "out"),
    ]
    asked = CliRunner().invoke(app, arguments)
    assert asked.exit_code == 1 and "out of memory" in asked.stderr
    monkeypatch.undo()
    assert grid(histories, tmp_path / "out", finished[0]).num_done == 4


def test_a_process_that_dies_costs_its_own_run_only() -> None:
    found = list(study._side_by_side(eval, iter(["1", "__import__('os')._exit(1)", "2"]), 1))  # type: ignore[arg-type]
    assert [result for _, result in found if not isinstance(result, Exception)] == [1, 2]
    assert "BrokenProcessPool" in repr(found[1][1])


def test_what_a_killed_call_left_is_removed(
    histories: Path, finished: tuple[StudyConfig, Path], tmp_path: Path
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    old, living = (
        tmp_path / f".encoded.tmp-{socket.gethostname()}-{pid}-0"
        for pid in (ended.pid, os.getpid())
    )
    for place in (old, living):
        (place / "histories").mkdir(parents=True)
    shutil.copytree(finished[1] / "runs", tmp_path / "runs")
    grid(histories, tmp_path, finished[0])
    assert not old.exists() and living.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".encoded")] == [
        living.name
    ]


def without(row: dict[str, Any], metric: str, length: int) -> dict[str, Any]:
    """A result whose metric is not defined at one length, as where its scores are not finite or no
    user has both labels.
    """
    lengths = [
        {
            **entry,
            metric: None,
            "samples": {
                name: values for name, values in entry["samples"].items() if name != metric
            },
        }
        if entry["length"] == length
        else entry
        for entry in row["lengths"]
    ]
    return {**row, "lengths": lengths}


@pytest.mark.parametrize("metric", ["gauc", "auc"])
def test_a_metric_that_is_not_defined_leaves_a_dash_and_the_rest(
    finished: tuple[StudyConfig, Path], tmp_path: Path, metric: str
) -> None:
    (tmp_path / "runs").mkdir()
    for name, row in results(finished[1]).items():
        spoilt = without(row, metric, 64) if row["variant"] == "mean" and row["seed"] == 1 else row
        (tmp_path / "runs" / f"{name}.json").write_text(json.dumps(spoilt))
    report = collect(tmp_path, finished[0])
    row = next(row for row in report.curves if row["variant"] == "mean" and row["length"] == 64)
    assert (row[metric], row[f"{metric}_low"]) == (None, None) and row[
        "logloss"
    ] is not None  # nor that of the other seed alone
    assert next(row for row in report.differences if row["length"] == 64)[metric] is None
    fits = [
        row for row in report.fits if row["metric"] == metric and row["against"] == "mean_events"
    ]
    assert all(np.isfinite(row["slope_per_doubling"]) for row in fits)
    assert "NaN" not in (tmp_path / "study.json").read_text()
    assert "mean" in text_of(tmp_path / "report.html")


def test_the_page_of_a_study_without_any_defined_auc_says_so(
    finished: tuple[StudyConfig, Path], tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    for name, row in results(finished[1]).items():
        for length in (0, 4, 16, 64):
            row = without(row, "auc", length)
        (tmp_path / "runs" / f"{name}.json").write_text(json.dumps({**row, "auc": None}))
    collect(tmp_path, finished[0])
    assert "No run has a defined AUC" in text_of(tmp_path / "report.html")
    arguments = [
        "study",
        "--config",
        str(written(tmp_path)),
        "--histories",
        "none",
        "--out",
        str(tmp_path),
        "--only-report",
    ]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0 and "not defined" in found.stdout


def test_a_variant_that_is_not_served_as_long_is_shown_where_it_is(
    finished: tuple[StudyConfig, Path], tmp_path: Path
) -> None:
    config = study.load(
        written(
            tmp_path,
            BASE.replace(
                "mean: {", "mean: {evaluate.lengths: [4, 16], evaluate.served_length: 16, "
            ),
        )
    )
    found = results(finished[1])
    (tmp_path / "runs").mkdir()
    for trial in plan(config):
        row = next(
            row
            for row in found.values()
            if (row["variant"], row["seed"]) == (trial.variant, trial.seed)
        )
        if trial.variant == "mean":
            row = {**row, "served_length": 16, "lengths": row["lengths"][1:3]}
        (tmp_path / "runs" / f"{trial.id}.json").write_text(json.dumps(row))
    assert {row["length"] for row in collect(tmp_path, config).differences} == {4, 16}
    assert "mean (at 16)" in text_of(tmp_path / "report.html")


def test_no_run_starts_after_the_limit(
    histories: Path, finished: tuple[StudyConfig, Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="0 of 4 cells"):
        grid(histories, tmp_path / "out", finished[0], limit_seconds=1e-9)


def test_tables_are_those_of_the_results(finished: tuple[StudyConfig, Path]) -> None:
    config, out = finished
    rows = list(csv.DictReader((out / "runs.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == [trial.id for trial in plan(config)]
    found = results(out)
    for row in rows:
        served = found[row["id"]]["lengths"][3]
        assert float(row["auc"]) == pytest.approx(served["auc"], abs=1e-5) and float(
            row["auc_at_4"]
        ) == pytest.approx(found[row["id"]]["lengths"][1]["auc"], abs=1e-5)
    curves = [row for row in read_json(out / "study.json")["curves"] if row["variant"] == "mean"]
    means = [entry for entry in found.values() if entry["variant"] == "mean"]
    for place, row in enumerate(curves):
        assert row["auc"] == pytest.approx(
            np.mean([entry["lengths"][place]["auc"] for entry in means])
        )
        assert (
            row["gain"] == pytest.approx(row["auc"] - curves[0]["auc"])
            and row["auc_low"] < row["auc"] < row["auc_high"]
        )


def test_differences_are_paired_by_user_and_seed(finished: tuple[StudyConfig, Path]) -> None:
    out = finished[1]
    found = [row for row in read_json(out / "study.json")["differences"] if row["length"] == 64]
    assert [row["variant"] for row in found] == ["mean"]
    by = {(row["variant"], row["seed"]): row["lengths"][3] for row in results(out).values()}
    apart = [by["mean", seed]["auc"] - by["stca", seed]["auc"] for seed in (0, 1)]
    assert found[0]["auc"] == pytest.approx(np.mean(apart))
    resampled = np.array(
        [
            np.array(by["mean", seed]["samples"]["auc"]) - by["stca", seed]["samples"]["auc"]
            for seed in (0, 1)
        ]
    )
    assert (
        resampled.min()
        <= found[0]["auc_low"]
        < found[0]["auc"]
        < found[0]["auc_high"]
        <= resampled.max()
    )
    unpaired = 3.9 * np.sqrt(
        sum(np.std(by[name, 0]["samples"]["auc"]) ** 2 for name in ("mean", "stca"))
    )
    only = study.interval(np.array([[apart[0], *resampled[0]]]))
    assert only.high - only.low < 1.2 * unpaired
    same = study.interval(np.zeros((2, 31)))
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def fake(
    seed_value: float, slope: float, lengths: tuple[int, ...] = (2, 4, 8, 16)
) -> dict[str, Any]:
    entries = []
    for length in lengths:
        value = seed_value + slope * np.log2(length)
        samples = (value + np.linspace(-0.01, 0.01, 50)).tolist()
        entries.append(
            {
                "length": length,
                "mean_events": length,
                "auc": value,
                "gauc": value,
                "logloss": -value,
                "calibration": 1.0,
                "request_flops": 1.0,
                "samples": {name: samples for name in study.METRICS},
            }
        )
    return {
        "lengths": entries,
        "served_length": 16,
        "train_flops": 1.0,
        "num_layer_parameters": 1,
        "train_events_read": 1,
    }


def test_fits_find_the_slope_per_doubling() -> None:
    fits = list(study._fits([Group("a", {}, {0: fake(0.5, 0.03), 1: fake(0.6, 0.03)})]))
    row = next(row for row in fits if row["metric"] == "auc")
    assert row["against"] == "served length" and row["num_points"] == 4
    assert next(row for row in fits if row["against"] == "mean_events")[
        "slope_per_doubling"
    ] == pytest.approx(0.03)
    assert row["slope_per_doubling"] == pytest.approx(0.03) and row["intercept"] == pytest.approx(
        0.55
    )
    assert row["slope_per_doubling_low"] == pytest.approx(0.03) and row[
        "r_squared"
    ] == pytest.approx(1.0)


def test_seeds_widen_the_interval_and_the_value_is_their_mean() -> None:
    samples = np.array([[0.5, *np.full(200, 0.5)], [0.7, *np.full(200, 0.7)]])
    found = study.interval(samples)
    assert (found.value, found.low, found.high) == (
        pytest.approx(0.6),
        pytest.approx(0.5),
        pytest.approx(0.7),
    )


def test_resamples_of_seeds_vary_as_their_mean_does() -> None:
    seeds = np.array([0.1, 0.2, 0.6, 0.3])
    resampled = study.over_seeds(np.repeat(seeds[:, None], 20_001, axis=1))
    assert resampled[0] == pytest.approx(seeds.mean())
    assert resampled[1:].std() == pytest.approx(
        seeds.std(ddof=1) / 2, rel=0.03
    )  # the standard error of a mean of four


def test_a_share_of_no_gain_is_not_defined(finished: tuple[StudyConfig, Path]) -> None:
    config = StudyConfig(
        "x",
        finished[0].base,
        {"short": {}, "full": {}, "beta": {}},
        recovery={"base": ("short", 2), "full": ("full", 16), "extrapolated": ("beta", 16)},
    )
    groups = [
        Group("short", {}, {0: fake(0.5, 0.0)}),
        Group("full", {}, {0: fake(0.4, 0.0)}),
        Group("beta", {}, {0: fake(0.6, 0.0)}),
    ]
    found = study._recovery(groups, config)
    assert found["recovered"] is None and found["full_gain"] == pytest.approx(-0.1)


def test_recovery_is_the_share_of_the_gain(finished: tuple[StudyConfig, Path]) -> None:
    base = finished[0].base
    config = StudyConfig(
        "x",
        base,
        {"short": {}, "full": {}, "beta": {}},
        recovery={"base": ("short", 2), "full": ("full", 16), "extrapolated": ("beta", 16)},
    )
    groups = [
        Group("short", {}, {0: fake(0.5, 0.0)}),
        Group("full", {}, {0: {**fake(0.5, 0.05), "train_events_read": 10}}),
        Group("beta", {}, {0: {**fake(0.5, 0.04), "train_events_read": 3}}),
    ]
    found = study._recovery(groups, config)
    assert found["recovered"] == pytest.approx(0.8) and found["events_share"] == pytest.approx(0.3)
    assert found["full_gain"] == pytest.approx(0.2)


@pytest.mark.parametrize("distribution", ["fixed", "beta", "uniform"])
def test_every_law_reads_equal_events_under_a_budget(
    histories: Path, distribution: str, tmp_path: Path
) -> None:
    text = BASE.replace(
        "lengths: {distribution: full, maximum: 64}",
        f"lengths: {{distribution: {distribution}, mean: 16, maximum: 32, alpha: 0.2}}",
    )
    config = study.load(
        written(tmp_path, text.replace("seeds: [0, 1]", "seeds: [0]\ntrain_events: 9000"))
    )
    row = run_one(histories, tmp_path, plan(config)[0].to_dict())
    assert 9_000 <= row["train_events_read"] < 9_600
    assert row["training"]["num_steps"] > 10
    bounded = study.override(config.base, {"train.max_steps": 3})
    once = run_one(
        histories,
        tmp_path,
        plan(StudyConfig("x", bounded, config.variants, train_events=9_000))[0].to_dict(),
    )
    assert once["training"]["num_steps"] == 3


def test_results_on_other_requests_are_not_mixed(
    histories: Path, finished: tuple[StudyConfig, Path], tmp_path: Path
) -> None:
    config, _ = finished
    other = small_histories.write(tmp_path / "other", num_users=40, requests_per_user=6, seed=9)
    run_one(histories, tmp_path / "out", plan(config)[0].to_dict())
    run_one(other, tmp_path / "out", plan(config)[1].to_dict())
    with pytest.raises(DataError, match="different requests"):
        collect(tmp_path / "out", config)


def test_the_page_shows_every_variant_and_loads_nothing(finished: tuple[StudyConfig, Path]) -> None:
    text = text_of(finished[1] / "report.html")
    for word in (
        "stca",
        "mean",
        "Served length",
        "Paired differences",
        "Scaling",
        "Runs",
        "Calibration",
        "4 of 4 runs",
    ):
        assert word in text
    page = (finished[1] / "report.html").read_text()
    assert (
        "http" not in page.replace("http-equiv", "")
        and "<script" not in page
        and page.count("<svg") == 3
    )


def test_the_drawing_of_differences_is_a_file_of_its_own(
    finished: tuple[StudyConfig, Path],
) -> None:
    root = ElementTree.parse(finished[1] / "differences.svg").getroot()
    found = next(
        row for row in read_json(finished[1] / "study.json")["differences"] if row["length"] == 64
    )
    dots = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(dots) == 1 and f"mean: {found['auc']:+.4f}" in "".join(dots[0].itertext())
    ends = [
        element.attrib
        for element in root.iter()
        if element.attrib.get("class", "").startswith("line s")
    ]
    assert float(ends[0]["x1"]) < float(dots[0].attrib["cx"]) < float(ends[0]["x2"])


def test_plots_show_the_reference_and_the_best(
    finished: tuple[StudyConfig, Path], tmp_path: Path
) -> None:
    variants = {f"v{place}": {"model.id_dim": 8 + place} for place in range(10)}
    config = StudyConfig("many", finished[0].base, variants)
    (tmp_path / "runs").mkdir()
    row = next(iter(results(finished[1]).values()))
    for place, trial in enumerate(plan(config)):
        lengths = [{**entry, "auc": 0.5 + 0.01 * place} for entry in row["lengths"]]
        (tmp_path / "runs" / f"{trial.id}.json").write_text(
            json.dumps({**row, "variant": trial.variant, "lengths": lengths})
        )
    collect(tmp_path, config)
    legend = (
        (tmp_path / "report.html")
        .read_text()
        .partition("<h2>Served length")[2]
        .partition('class="legend">')[2]
        .partition("</div>")[0]
    )
    assert re.findall(r"</i>(v\d)", legend) == ["v0", *(f"v{place}" for place in range(4, 10))]


def test_the_command_runs_a_study_and_writes_it_again(
    histories: Path, finished: tuple[StudyConfig, Path], tmp_path: Path
) -> None:
    runner, path = CliRunner(), written(tmp_path)
    arguments = [
        "study",
        "--config",
        str(path),
        "--histories",
        str(histories),
        "--out",
        str(finished[1]),
        "--json",
    ]
    for more in ([], ["--only-report"]):
        answer = runner.invoke(app, [*arguments, *more])
        assert answer.exit_code == 0, answer.output
        assert json.loads(answer.stdout)["num_done"] == 4
    table = runner.invoke(app, arguments[:-1])
    assert "stca" in table.stdout and "4 of 4 runs" in table.stdout


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model.kind: mean", "model.kynd: mean", "model.kynd"),
        ("seeds: [0, 1]", "sedes: [0, 1]", "sedes"),
        ("seeds: [0, 1]", "grid: {widht: [8]}", "widht"),
        ("seeds: [0, 1]", "reference: din", "din"),
        ("model.recency: token", "model.recency: bias", "recency=token"),
        ("seeds: [0, 1]", "seeds: 3", "is not a study"),
        ("seeds: [0, 1]", "recovery: {base: 3}", "is not a study"),
        ("seeds: [0, 1]", "seeds: [0, 1", "is not YAML"),
    ],
)
def test_a_mistake_in_a_study_is_found_before_anything_runs(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        study.load(written(tmp_path, BASE.replace(old, new)))


def test_an_override_of_a_study_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        study.load(written(tmp_path), ["train.epochs"])


def test_every_study_of_the_repository_loads() -> None:
    for path in sorted((Path(__file__).parents[3] / "configs").glob("study-*.yaml")):
        assert plan(study.load(path))


@pytest.mark.parametrize(
    "kind", ["stca", "mean", "din", "target_attention", "sim", "transformer", "hstu"]
)
def test_counted_flops_follow_the_formula(kind: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from tests.longrec.nn import builders

    options = {
        "kind": kind,
        "width": 64,
        "num_heads": 4,
        "num_layers": 2,
        "recency": "none",
        "retrieved": 8,
        "attention": "plain",
    }
    model, counted = builders.ranker(**options), {}
    for length in (64, 128):
        batch = builders.batch([length], [5])
        with FlopCounterMode(display=False) as counter:
            model(batch)
        counted[length] = counter.get_total_flops()
    config = ModelConfig(**options)  # type: ignore[arg-type]
    expected = forward_flops(config, 128, 5) - forward_flops(config, 64, 5)
    features = (
        64 * 2 * 64 * (2 * 6 + 4 + 2 * 4)
    )  # the projections of item and action embeddings, which the formula leaves out
    half = config.num_layers * 2 * (128**2 - 64**2) * 64  # of all attention weights among events
    unlike = {"hstu": half, "transformer": -half}.get(
        kind, 0
    )  # a CPU computes HSTU's masked half; the Transformer's is not counted
    pooled = (
        2 * 64 * 5 * 64 if kind == "din" else 64 * 64 if kind == "mean" else 0
    )  # sums that are no matrix products
    assert counted[128] - counted[64] == pytest.approx(
        expected + features + unlike - pooled, rel=0.01
    )


def test_an_override_of_the_whole_is_a_key_too() -> None:
    assert study.override(RunConfig(), {"seed": 3, "model.width": 128}).seed == 3
    with pytest.raises(ConfigError, match=r"modle\.width"):
        study.override(RunConfig(), {"modle.width": 8})


def test_data_of_the_page_is_that_of_the_histories(
    histories: Path, finished: tuple[StudyConfig, Path]
) -> None:
    data = read_json(finished[1] / "study.json")["data"]
    splits = np.asarray(Histories.open(histories).requests["split"])
    assert (
        data["requests"] == (splits == "eval").sum()
        and data["training requests"] == (splits == "train").sum()
    )
