"""Bookkeeping of runs: parameters, run folders, `latest`, the lock, the summary."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from longrec.config import EvaluateConfig, RunConfig
from longrec.reporting.summary import as_dict, scalar_metrics
from longrec.runs import project, run, summary, workdir
from tests.longrec.evaluation.example_results import example_results
from tests.longrec.pages import text_of

ROOT = Path(__file__).parents[3]


def test_the_checkout_is_found_from_a_folder_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LONGREC_ROOT", raising=False)
    monkeypatch.chdir(ROOT / "model" / "longrec")
    assert project.find_root() == ROOT


def test_a_wrong_longrec_root_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LONGREC_ROOT", str(tmp_path))
    with pytest.raises(project.ProjectError, match="LONGREC_ROOT is not a checkout"):
        project.find_root()


def test_no_checkout_anywhere_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LONGREC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "site-packages" / "longrec" / "runs" / "project.py"
    monkeypatch.setattr(project, "__file__", str(path))
    with pytest.raises(
        project.ProjectError, match=r"no checkout of longrec was found.*LONGREC_ROOT"
    ):
        project.find_root()


def test_a_module_without_its_packages_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LONGREC_ROOT", str(ROOT))
    with pytest.raises(project.ProjectError, match=r"no module pipelines\.absent.*pip install"):
        project.import_module("pipelines.absent")


def test_pipeline_arguments_are_the_parameters_of_the_pipeline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LONGREC_ROOT", str(ROOT))
    training = project.import_module("pipelines.training").training
    others = {"run_id": "id", "workdir": "h", "repo_dir": "r", "webhook": "w"}
    config = RunConfig(seed=5, evaluate=EvaluateConfig(served_length=77))
    arguments = run.pipeline_arguments(config, "data", **others)
    assert set(arguments) == set(training.component_spec.inputs), (
        "every parameter is given, none is unknown"
    )
    assert arguments["served_lengths"] == [77]
    assert arguments["seed"] == 5
    assert arguments["evaluate"]["served_length"] == 77
    chosen = RunConfig(evaluate=EvaluateConfig(lengths=(0, 50, 10)))
    assert run.pipeline_arguments(chosen, "data", **others)["served_lengths"] == [10, 50]
    assert json.loads(json.dumps(arguments)) == arguments, "only JSON values"


def test_run_folders_are_new_and_named_after_the_configuration(tmp_path: Path) -> None:
    folders = {workdir.new_run_folder(tmp_path, "My Run/1") for _ in range(3)}
    assert len(folders) == 3
    assert all("-my-run-1" in folder.name and folder.is_dir() for folder in folders)


def test_latest_points_at_the_newest_summary_and_is_replaced(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        summary.write_summary(tmp_path / name, {"run": name})
        assert json.loads((tmp_path / "latest" / "summary.json").read_text()) == {"run": name}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "latest"]
    assert (tmp_path / "latest").is_symlink()


def _hold(path: str, held: Any, release: Any) -> None:
    with workdir.locked(Path(path)):
        held.set()
        release.wait(30)


def test_a_second_run_in_the_same_work_directory_is_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), held, release))
    other.start()
    try:
        assert held.wait(30)
        with (
            pytest.raises(workdir.BusyError, match="another run is using"),
            workdir.locked(tmp_path),
        ):
            pass
    finally:
        release.set()
        other.join(30)
    with workdir.locked(tmp_path):
        pass


def test_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGREC_HOME", "before")
    monkeypatch.delenv("LONGREC_OTHER", raising=False)
    with workdir.environment({"LONGREC_HOME": "inside", "LONGREC_OTHER": "new"}):
        assert os.environ["LONGREC_HOME"] == "inside"
        assert os.environ["LONGREC_OTHER"] == "new"
    assert os.environ["LONGREC_HOME"] == "before"
    assert "LONGREC_OTHER" not in os.environ


def test_a_synthetic_dataset_is_reused_for_equal_arguments_only(tmp_path: Path) -> None:
    config = RunConfig(evaluate=EvaluateConfig(lengths=(5, 10), served_length=10))
    sizes = {"num_users": 6, "events_per_user": 20}
    path, is_new = run.synthetic_dataset(tmp_path, config, **sizes)
    stamp = (path / "dataset.json").stat().st_mtime_ns
    assert is_new
    assert [
        row["length"]
        for row in json.loads((path / "dataset.json").read_text())["facts"]["best_possible_auc"]
    ] == [5, 10]
    assert run.synthetic_dataset(tmp_path, config, **sizes) == (path, False)
    assert (path / "dataset.json").stat().st_mtime_ns == stamp
    assert (
        run.synthetic_dataset(tmp_path, RunConfig(seed=1, evaluate=config.evaluate), **sizes)[0]
        != path
    )


def test_benchmarks_are_listed_by_their_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGREC_ROOT", str(ROOT))
    found = project.benchmarks()
    assert found["train"][0].is_file()
    assert found["train"][1].startswith("Time one training step")


def test_numbers_of_a_report_are_finite_flat_and_leave_lists_out() -> None:
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Inner:
        passed: bool
        share: float

    @dataclasses.dataclass(frozen=True)
    class Report:
        rows: int
        inner: Inner
        by_task: dict[str, dict[str, float]]
        path: Path
        nothing: float | None = None
        undefined: float = float("nan")
        many: tuple[Inner, ...] = ()

    report = Report(
        3, Inner(True, 0.5), {"click": {"auc": 0.7}}, Path("x"), many=(Inner(False, 1.0),)
    )
    assert scalar_metrics(report) == {
        "rows": 3.0,
        "inner.passed": 1.0,
        "inner.share": 0.5,
        "by_task.click.auc": 0.7,
    }
    assert as_dict(report)["path"] == "x"
    assert as_dict(report)["many"] == [{"passed": False, "share": 1.0}]


def test_the_report_of_a_run_names_it_and_links_its_other_pages(tmp_path: Path) -> None:
    evaluation = tmp_path / "artifacts" / "evaluation"
    evaluation.mkdir(parents=True)
    (evaluation / "metrics.json").write_text(json.dumps(example_results()))
    (tmp_path / "check-events.html").write_text("")
    summary.write_report(evaluation, tmp_path / "report.html", tmp_path)
    assert f"Run {tmp_path.name}." in text_of(tmp_path / "report.html")
    nested = tmp_path / "evaluations" / "1"
    nested.mkdir(parents=True)
    summary.write_report(evaluation, nested / "report.html", tmp_path)
    page = (nested / "report.html").read_text()
    assert '<a href="../../check-events.html">check events</a>' in page
    assert "report.html" not in page
