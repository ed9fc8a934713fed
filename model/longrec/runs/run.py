"""Run a pipeline on this machine: training, refresh or drift."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from longrec.config import RunConfig
from longrec.config_file import changed_settings, to_yaml
from longrec.data import location
from longrec.data.dataset import DATASET_FORMAT_VERSION
from longrec.data.files import read_json
from longrec.data.shards import MAX_ITEMS, shard_items
from longrec.data.store.workdir import check_workdir
from longrec.errors import LongrecError
from longrec.runs.local_run import LocalRun, ProgressListener, find_output
from longrec.runs.project import find_root, import_module
from longrec.runs.record.attempts import RUN_VARIABLE
from longrec.runs.steps import STEPS
from longrec.runs.summary import (
    LATEST,
    METRICS_NAME,
    SUMMARY_NAME,
    summarize,
    write_report,
    write_summary,
)
from longrec.runs.workdir import (
    RUNS_FOLDER,
    environment,
    locked,
    new_run_folder,
    run_environment,
)
from longrec.tracing import pipeline_span

DATA_FOLDER = "data"
"""Folder of a work directory with its synthetic datasets."""
CONFIG_NAME = "config.yaml"
"""File in the folder of a run with its configuration."""
REFRESH_PARAMETERS = ("data_uri", "shards", "data", "checks")
SECTIONS = ("data", "checks", "model", "lengths", "train", "evaluate", "gate")
"""Sections of a configuration that are parameters of the training pipeline."""


def run(
    config: RunConfig,
    dataset: str,
    workdir: Path,
    listener: ProgressListener,
    *,
    command: str = "",
    cache: bool = True,
    config_text: str = "",
) -> dict[str, Any]:
    """Run the training pipeline and return its summary.

    The summary is also in `<workdir>/runs/latest/summary.json`. A run whose model the gate refused
    is finished too: its summary names the reasons, and its `bento_tag` is None.

    Args:
        config: configuration of the run.
        dataset: directory of an importer or of `synthesize`, or its address in an object store.
        workdir: folder of the feature store (LONGREC_HOME) and of the runs.
        listener: receives the progress.
        command: the command line, for the summary.
        cache: whether steps with unchanged data, code and settings are skipped.
        config_text: content of the run's config.yaml; empty to write `config` there.

    Raises:
        BusyError: another run is using `workdir`.
        LongrecError: a step failed. Pages that it wrote before are in the folder of the run.
    """
    dataset = absolute(dataset)
    facts = location.read_json(dataset, "dataset.json")
    arguments = pipeline_arguments(config, dataset)
    folder, finished = run_pipeline(
        "training",
        arguments,
        config.name,
        workdir,
        listener,
        cache=cache,
        config_text=config_text or to_yaml(config),
    )
    summary = summarize(config, folder, finished, {"path": dataset, **facts}, command)
    write_summary(folder, summary)
    return summary


def refresh(
    config: RunConfig,
    dataset: str,
    workdir: Path,
    listener: ProgressListener,
    *,
    cache: bool = True,
) -> dict[str, Any]:
    """Check a dataset and publish its features for serving; return the `PublishReport`.

    No model is trained.

    Args, Raises: see `run`.
    """
    dataset = absolute(dataset)
    location.read_json(dataset, "dataset.json")  # a missing one is found before the first step
    arguments = pipeline_arguments(config, dataset, only=REFRESH_PARAMETERS)
    _, finished = run_pipeline(
        "refresh", arguments, f"{config.name}-refresh", workdir, listener, cache=cache
    )
    report: dict[str, Any] = read_json(_require_output(finished, "publish", "published"))
    return report


def drift(config: RunConfig, workdir: Path, listener: ProgressListener) -> dict[str, Any]:
    """Compare requests answered from `workdir` with the evaluation of their model.

    Return the numbers of `monitoring.check_drift` and the path of its `report`. Metrics of a step
    are floats: counts are floats too, and flags are 0 and 1.

    Args, Raises: see `run`; drift beyond the bounds is an error too.
    """
    arguments = {"drift": changed_settings(config).get("drift", {})}
    _, finished = run_pipeline("drift", arguments, f"{config.name}-drift", workdir, listener)
    numbers: dict[str, Any] = read_json(_require_output(finished, "drift", "metrics"))
    return {**numbers, "report": str(_require_output(finished, "drift", "report"))}


def run_pipeline(
    name: str,
    arguments: Mapping[str, Any],
    run_name: str,
    workdir: Path,
    listener: ProgressListener,
    *,
    cache: bool = True,
    config_text: str = "",
) -> tuple[Path, LocalRun]:
    """Execute a pipeline on this machine; return the folder of the run and its result.

    Args:
        name: name of the pipeline (`pipelines.compiler.PIPELINES`).
        arguments: its parameters without `workdir`, `repo_dir` and `run_id`.
        run_name: part of the name of the run's folder.
        workdir: folder of the feature store (LONGREC_HOME) and of the runs.
        listener: receives the progress.
        cache: whether steps with unchanged data, code and settings are skipped.
        config_text: content of config.yaml in the folder of the run; empty for no file.

    Raises:
        BusyError: another run is using `workdir`.
        LongrecError: a step failed. Pages that it wrote before are in the folder of the run.
    """
    root = find_root()
    local_runner = import_module("pipelines.local_runner")
    pipeline = import_module("pipelines.compiler").pipeline(name, None)
    workdir = workdir.resolve()
    with locked(workdir), environment(run_environment(workdir)):
        check_workdir(workdir)
        folder = new_run_folder(workdir / RUNS_FOLDER, run_name)
        if config_text:
            (folder / CONFIG_NAME).write_text(config_text, encoding="utf-8")
        parameters = {
            **arguments,
            "run_id": folder.name,
            "workdir": str(workdir),
            "repo_dir": str(root / "feature_repo"),
        }
        finished: LocalRun | None = None
        cache_folder = workdir / "cache" if cache else None
        facts = {"longrec.pipeline": name, "longrec.run": folder.name}
        traced = pipeline_span(f"pipeline {name}", facts)
        try:
            with environment({RUN_VARIABLE: folder.name}), traced:
                finished = local_runner.run(
                    pipeline, parameters, folder, listener, cache=cache_folder
                )
        finally:
            _write_pages(folder, finished)
        return folder, finished


def pipeline_arguments(
    config: RunConfig,
    data_uri: str,
    *,
    only: Collection[str] = (),
    max_items: int = MAX_ITEMS,
    **others: Any,
) -> dict[str, Any]:
    """Return the parameters of the training pipeline.

    A section holds the settings that differ from their defaults: Kubeflow repeats them in each node
    of a workflow.

    Args:
        config: its sections are parameters.
        data_uri: address of the dataset.
        only: names of the parameters to return; empty for all.
        max_items: largest number of items in a loop over the shards.
        others: further parameters.
    """
    changed = changed_settings(config)
    sections = {name: changed.get(name, {}) for name in SECTIONS}
    sections["data"].pop("shards", None)
    parameters = {
        "data_uri": data_uri,
        "seed": config.seed,
        "shards": shard_items(config.data.shards, max_items),
        "served_lengths": list(config.evaluate.served_lengths),
        **sections,
        **others,
    }
    return {name: value for name, value in parameters.items() if not only or name in only}


def latest_config(workdir: Path) -> Path | None:
    """Return the configuration file of the latest run of a work directory, if it has one."""
    path = workdir / RUNS_FOLDER / LATEST / CONFIG_NAME
    return path if path.is_file() else None


def latest_dataset(workdir: Path) -> str:
    """Return the address of the dataset of the latest run of a work directory.

    Raises:
        LongrecError: there is no finished run.
    """
    summary = read_json(_latest_run(workdir) / SUMMARY_NAME)
    path = str(summary["dataset"]["path"])
    # A dataset in the work directory moves with it.
    inside = workdir / DATA_FOLDER / Path(path).name
    is_lost = "://" not in path and not Path(path).is_dir()
    return str(inside) if is_lost and inside.is_dir() else path


def _latest_run(workdir: Path) -> Path:
    folder = workdir / RUNS_FOLDER / LATEST
    if not (folder / SUMMARY_NAME).is_file():
        raise LongrecError(
            f"{workdir} holds no finished run",
            expected="a work directory of longrec run",
            fix="Run longrec run first, or name the work directory with --workdir.",
        )
    return folder


def absolute(uri: str) -> str:
    """Return the address of a dataset, a relative path made absolute."""
    return uri if "://" in uri else str(Path(uri).resolve())


def synthetic_dataset(workdir: Path, config: RunConfig, **sizes: int) -> tuple[Path, bool]:
    """Return the directory of a synthetic dataset, and whether it is new.

    Equal arguments find the existing dataset again.

    Args:
        workdir: the dataset goes to `<workdir>/data/synthetic-<digest of the arguments>`.
        config: its seed, and its evaluation lengths for the best possible AUC.
        sizes: arguments of `synthesize`.
    """
    from longrec.data.importers.synthetic import synthesize

    lengths = sorted(set(config.evaluate.lengths))
    arguments: dict[str, Any] = {**sizes, "seed": config.seed, "lengths": lengths}
    identity = {**arguments, "format_version": DATASET_FORMAT_VERSION}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    path = workdir / DATA_FOLDER / f"synthetic-{digest}"
    if (path / "dataset.json").is_file():
        return path, False
    synthesize(path, **arguments)
    return path, True


def _require_output(finished: LocalRun, step: str, name: str) -> Path:
    path = finished.output(step, name)
    if path is None:
        raise LongrecError(
            f"step {step} left no output {name}",
            found=f"nothing in {finished.artifacts}",
            fix=f"See {finished.log}.",
        )
    return path


def _write_pages(folder: Path, finished: LocalRun | None) -> None:
    """Write the pages of the steps into the folder of the run, after a failure too."""
    find_after_failure = functools.partial(find_output, folder / "artifacts")
    find = finished.output if finished else find_after_failure
    for step in STEPS.values():
        path = find(step.name, "report") if step.page else None
        if path is not None and path.is_file():
            shutil.copyfile(path, folder / f"{step.page}.html")
    evaluation = find("evaluate", "evaluation")
    if evaluation is not None and (evaluation / METRICS_NAME).is_file():
        write_report(evaluation, folder / "report.html", folder)
