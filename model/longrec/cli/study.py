"""The commands that train many models: `longrec study` and `longrec tune`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longrec.cli.options import (
    AsJson,
    Overrides,
    print_result,
    read_config,
    renamed_keys_on_stderr,
)

if TYPE_CHECKING:
    from longrec.config_file import ConfigFile
    from longrec.study.search_space import SearchSpace

StudyFile = Annotated[
    Path, typer.Option(help="A YAML file: base, variants, grid, seeds; see configs/study-*.yaml.")
]
Histories = Annotated[
    Path, typer.Option(help="A histories directory: output of the step join-histories of a run.")
]
ResultsDir = Annotated[
    Path, typer.Option(help="Directory of the results; finished trials in it do not run again.")
]
NumWorkers = Annotated[
    int, typer.Option(min=1, help="Number of processes; on a GPU they share it.")
]
LimitSeconds = Annotated[
    float,
    typer.Option(
        min=0, metavar="SECONDS", help="Start no trial after this many seconds; 0 for no limit."
    ),
]
OnlyReport = Annotated[
    bool,
    typer.Option("--only-report", help="Run nothing; write tables and page of existing results."),
]
BaseConfig = Annotated[
    Path, typer.Option(help="Configuration that every trial starts from, as of `longrec init`.")
]
OutDir = Annotated[
    Path, typer.Option(help="Directory of the search; finished trials in it do not run again.")
]
SpaceFile = Annotated[
    Path | None,
    typer.Option(help="A YAML file of the searched keys; without it, those of the model's kind."),
]
NumTrials = Annotated[int, typer.Option(min=1, help="Number of trials, pruned ones included.")]
AsKatib = Annotated[
    bool,
    typer.Option(
        "--katib",
        help="Train nothing; write OUT/katib.yaml, an Experiment of the same search for Katib.",
    ),
]
SearchSeed = Annotated[int, typer.Option(min=0, help="Seed of the suggestions.")]


def study(
    config: StudyFile,
    histories: Histories,
    out: ResultsDir,
    workers: NumWorkers = 1,
    limit: LimitSeconds = 0,
    only_report: OnlyReport = False,
    sets: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train a grid of models on the same histories and compare them on the same requests.

    Writes OUT/report.html, trials.csv, curves.csv, differences.csv, fits.csv and study.json, and
    one file per trial in OUT/trials. An interrupted study resumes with the remaining trials. Exit
    code 1 means that a trial failed; the next call runs it again.

    \b
    Examples:
      longrec study --config configs/study-synthetic.yaml --histories HISTORIES --out OUT
      longrec study --config configs/study-dev-events.yaml --histories HISTORIES --out OUT \\
          --workers 4 --limit 480
    """
    from longrec.runs.project import find_file
    from longrec.study.collect import collect
    from longrec.study.config import load
    from longrec.study.rows import at_served_length
    from longrec.study.runner import run_study

    with renamed_keys_on_stderr():
        settings = load(find_file(config), sets or [])
    if only_report:
        report = collect(out, settings)
    else:
        report = run_study(
            histories,
            out,
            settings,
            num_workers=workers,
            limit_seconds=limit,
            on_trial=_print_trial,
        )
    page = out / "report.html"
    value = {
        "name": report.name,
        "num_trials": report.num_trials,
        "num_done": report.num_done,
        "recovery": report.recovery,
        "report": str(page),
        "curves": report.curves,
        "failures": report.failures,
    }
    rows = at_served_length(report.curves, max(settings.base.evaluate.served_lengths))
    lines = [_result_line(row) for row in rows]
    lines.append(f"{report.num_done} of {report.num_trials} trials; {page}")
    print_result(value, "\n".join(lines), as_json=as_json)
    if report.failures:
        if not as_json:
            for failure in report.failures:
                typer.echo(f"{failure['id']}: {failure['error']}", err=True)
        raise typer.Exit(1)


def tune(
    config: BaseConfig,
    histories: Histories,
    out: OutDir,
    space: SpaceFile = None,
    trials: NumTrials = 20,
    workers: NumWorkers = 1,
    limit: LimitSeconds = 0,
    seed: SearchSeed = 0,
    katib: AsKatib = False,
    sets: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Search the settings of a model with Optuna, judged on validation requests.

    Writes OUT/best.yaml for `longrec run --config`, trials.csv, tune.json and report.html, which
    shows what mattered. An interrupted search resumes when it is called again.

    \b
    Examples:
      longrec tune --config run.yaml --histories HISTORIES --out OUT
      longrec tune --config run.yaml --histories HISTORIES --out OUT --trials 40 --workers 4 \\
          --space space.yaml --limit 3600
      longrec tune --config run.yaml --histories /var/lib/longrec/histories --out OUT --katib
    """
    from longrec.study import tune as search_trials
    from longrec.study.search_space import SearchSpace
    from longrec.study.tune_report import write_results

    content = read_config(config, sets)
    base = content.run
    chosen_space = SearchSpace.default(base) if space is None else SearchSpace.load(space)
    if katib:
        path = out / "katib.yaml"
        chosen_space.check(base)
        _write_katib(
            path,
            content,
            chosen_space,
            histories=str(histories),
            num_trials=trials,
            num_parallel=workers,
            seed=seed,
        )
        print_result({"path": str(path)}, f"wrote {path}", as_json=as_json)
        return
    search = search_trials.Search(str(histories), str(out), base, chosen_space, seed)
    trials_done = search_trials.tune(
        search,
        trials,
        num_workers=workers,
        limit_seconds=limit,
        on_trial=_print_tuned,
    )
    result = write_results(search, trials_done)
    lines = [f"{key:<34} {value}" for key, value in result["best"].items()]
    lines.append(f"validation AUC {result['auc']:.4f} in trial {result['number']}")
    lines.append(
        f"{result['num_finished']} trials, {result['num_pruned']} pruned; {out}/report.html"
    )
    lines.append(f"next: longrec run --config {out}/best.yaml")
    print_result(result, "\n".join(lines), as_json=as_json)


def _write_katib(path: Path, content: ConfigFile, space: SearchSpace, **options: Any) -> None:
    """Write the Experiment of a search for the platform of a configuration file."""
    from longrec.runs.project import import_module

    module = import_module("pipelines.katib")
    platform = import_module("pipelines.platform_config").build_platform(content.platform)
    module.write(path, module.experiment(content.run, space, platform, **options))


def _result_line(row: Mapping[str, Any]) -> str:
    point = "".join(f", {key} {value}" for key, value in row.items() if "." in key)
    name = f"{row['variant']}{point} at {row['length']:,}"
    auc = "not defined" if row["auc"] is None else f"{row['auc']:.4f}"
    interval = ""
    if row["auc_low"] is not None:
        interval = f"  {row['auc_low']:.4f} to {row['auc_high']:.4f}"
    return f"{name:<40} AUC {auc}{interval}"


def _print_trial(row: dict[str, Any], num_done: int, num_trials: int) -> None:
    auc = row["auc"] or math.nan
    typer.echo(
        f"{num_done:>4}/{num_trials} {row['id']:<52} AUC {auc:.4f}  "
        f"{row['train_events_read']:>12,} events  {row['seconds']:.1f} s",
        err=True,
    )


def _print_tuned(row: dict[str, Any], num_done: int, num_trials: int) -> None:
    auc = "not defined" if row["auc"] is None else f"{row['auc']:.4f}"
    typer.echo(
        f"{num_done:>4}/{num_trials} trial {row['number']:<4} {row['state']:<9} "
        f"validation AUC {auc}  {row['seconds']:.1f} s",
        err=True,
    )
