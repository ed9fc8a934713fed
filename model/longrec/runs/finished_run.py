"""Evaluate or package the model of a finished run once more."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longrec.config import RunConfig
from longrec.config_file import build, parse_override, set_key
from longrec.data.files import read_json, write_json
from longrec.errors import LongrecError
from longrec.runs.code_fingerprint import of_steps
from longrec.runs.local_run import find_output
from longrec.runs.project import find_root
from longrec.runs.record.artifacts import step_input
from longrec.runs.record.attempts import RUN_VARIABLE, recorded
from longrec.runs.summary import (
    LATEST,
    METRICS_NAME,
    OUTPUT_STEPS,
    SUMMARY_NAME,
    summarize_metrics,
    write_report,
)
from longrec.runs.workdir import (
    RUNS_FOLDER,
    environment,
    locked,
    new_run_folder,
    run_environment,
)

EVALUATIONS_FOLDER = "evaluations"
"""Folder of a run with the evaluations that `longrec evaluate` made."""
RUN_AGAIN = "Run it again: longrec run. Steps with unchanged inputs are not repeated."


class FinishedRunError(LongrecError):
    """A run that is not finished, or whose files are gone."""


@dataclasses.dataclass(frozen=True, slots=True)
class FinishedRun:
    """A finished run of a work directory.

    Args:
        workdir: the work directory.
        folder: folder of the run.
        summary: content of its summary.json.
    """

    workdir: Path
    folder: Path
    summary: dict[str, Any]

    @classmethod
    def open(cls, workdir: Path, run_id: str = "") -> FinishedRun:
        """Return a run by its id; without one, the latest.

        Raises:
            FinishedRunError: there is no such finished run.
        """
        workdir = workdir.resolve()
        folder = (workdir / RUNS_FOLDER / (run_id or LATEST)).resolve()
        path = folder / SUMMARY_NAME
        is_run_of_workdir = folder.parent == workdir / RUNS_FOLDER
        if not is_run_of_workdir or not path.is_file():
            finished = sorted(
                entry.parent.name for entry in (workdir / RUNS_FOLDER).glob("[0-9]*/summary.json")
            )
            raise FinishedRunError(
                f"{workdir} holds no finished run {run_id}".rstrip(),
                found=", ".join(finished[-5:]) or "no finished run",
                fix="Give another --run or --workdir, or make one with: longrec run",
            )
        return cls(workdir, folder, read_json(path))

    def config(self, overrides: Sequence[str] = ()) -> RunConfig:
        """Return the configuration of the run.

        Args:
            overrides: `section.key=value` texts that replace its values.

        Raises:
            ConfigError: a key or a value is wrong.
        """
        value: dict[str, Any] = self.summary["config"]
        for text in overrides:
            key, entry = parse_override(text)
            set_key(value, key, entry)
        return build(RunConfig, value)

    def output(self, name: str) -> Path:
        """Return a folder that the run made or took from an earlier run.

        Args:
            name: `bundle`, `histories` or `evaluation`.

        Raises:
            FinishedRunError: it is gone.
        """
        recorded = self.summary.get("outputs", {}).get(name)
        if recorded is None:
            found = find_output(self.folder / "artifacts", OUTPUT_STEPS[name], name)
        else:
            found = self.workdir / recorded
        if found is None or not found.exists():
            raise FinishedRunError(
                f"run {self.folder.name} has no {name} any more",
                found=f"nothing at {found or self.folder / 'artifacts'}",
                fix=RUN_AGAIN,
            )
        return found


def evaluate_again(
    run: FinishedRun,
    config: RunConfig,
    *,
    bundle_dir: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a bundle on the histories of a run; return its results as in summary.json.

    They are written to a new folder in the folder of the run.

    Args:
        run: its histories and, by default, its bundle.
        config: sections `evaluate` and `gate`, and the seed.
        bundle_dir: another bundle of the same schema.

    Raises:
        LongrecError: a file is gone, or the bundle has another schema.
    """
    from longrec.evaluation.evaluate import evaluate
    from longrec.release.model_store import store_dir
    from longrec.release.registry import champion_bundle, compared_champion

    bundle = bundle_dir or run.output("bundle")
    histories = run.output("histories")
    out_dir = new_run_folder(run.folder / EVALUATIONS_FOLDER, "evaluation")
    with environment(run_environment(run.workdir)):
        version = compared_champion(run.workdir, config.gate)
        evaluate(
            bundle,
            histories,
            out_dir,
            config=config.evaluate,
            gate=config.gate,
            seed=config.seed,
            champion_dir=champion_bundle(run.workdir, store_dir(), version),
        )
    page = out_dir / "report.html"
    write_report(out_dir, page, run.folder)
    results = summarize_metrics(read_json(out_dir / METRICS_NAME))
    return {"run": run.folder.name, **results, "report": str(page)}


def package_again(run: FinishedRun, *, force: bool) -> dict[str, Any]:
    """Package the model of a run and record it in the run's summary; return the summary.

    Args:
        run: with bundle, evaluation and histories.
        force: whether a model that the gate refused is packaged too; it is marked as such.

    Raises:
        BusyError: another run is using the work directory.
        GateRefused: the gate refused the model, without `force`; or its scores differ.
    """
    from longrec.release.packaging import package, register

    config = run.config()
    repo_dir = find_root() / "feature_repo"
    bundle = run.output("bundle")
    evaluation = run.output("evaluation")
    histories = run.output("histories")
    run_variables = {**run_environment(run.workdir), RUN_VARIABLE: run.folder.name}
    read = {"bundle": bundle, "evaluation": evaluation, "histories": histories}
    written = {"bento": run.folder / "bento"}
    with (
        locked(run.workdir),
        environment(run_variables),
        recorded("package", step_input(read, written)),
    ):
        report = package(
            bundle,
            evaluation,
            histories,
            written["bento"],
            parity_path=run.folder / "parity.json",
            version="",
            workdir=run.workdir,
            repo_dir=repo_dir,
            gate=config.gate,
            seed=config.seed,
            code_key=of_steps(repo_dir)["package"],
            force=force,
        )
        register(report.path, evaluation, workdir=run.workdir, repo_dir=repo_dir)
    is_forced = not run.summary["gate"]["passed"]
    summary = {**run.summary, "bento_tag": report.tag, "forced": is_forced}
    write_json(run.folder / SUMMARY_NAME, summary)
    return summary
