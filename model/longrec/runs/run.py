"""Running the pipeline on this machine: where things are, what the steps are given, and the summary
of what came out.

The rooms (`pipelines`, `bento`) are found in the checkout at run time; this module imports none of
them by itself.
"""

from __future__ import annotations

import ast
import contextlib
import datetime
import fcntl
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import sys
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from longrec.config import RunConfig
from longrec.data import location
from longrec.data.dataset import shards
from longrec.data.files import read_json, write_json
from longrec.errors import LongrecError
from longrec.release import registry

VERSIONS = (
    "longrec",
    "torch",
    "pyarrow",
    "duckdb",
    "feast",
    "great_expectations",
    "kfp",
    "bentoml",
)
PAGES = {
    "check-events": ("check-events", "report"),
    "check-histories": ("check-histories", "report"),
    "report": ("evaluate", "report"),
    "drift": ("drift", "report"),
}
"""HTML pages that a run leaves in its folder, by name, and the output artifact that each is a copy
of.
"""


THREADING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait sleep. By default they spin, which on a machine with other work made training
20 to 60 times slower (docs/log.md).
"""
SILENT_STEPS = ("fingerprint", "finish")
"""Steps that take no time."""


class CheckoutError(LongrecError):
    """The rooms around the library (pipelines, feature_repo, bento) are not where they should
    be.
    """


class BusyError(LongrecError):
    """Another run is using the same work directory."""


def run(
    config: RunConfig,
    dataset: str,
    workdir: Path,
    listener: Any,
    *,
    command: str = "",
    cache: bool = True,
) -> dict[str, Any]:
    """Returns the summary of a finished run, which is also in `<workdir>/runs/latest/summary.json`.

    A model that the gate refused is a finished run too: its summary says why, and its `bento_tag`
    is None.

    Args:
        config: of the run.
        dataset: directory written by an importer or by `synthesize`, or its address in an object
            store.
        workdir: the feature store lives in it (LONGREC_HOME); the run in `runs/<id>`.
        listener: hears of the progress (`pipelines.local_runner.Listener`).
        command: what was typed, for the summary.
        cache: whether steps whose data, code and settings did not change since an earlier run are
            left out.

    Raises:
        BusyError: another run is using `workdir`.
        LongrecError: a step failed; pages that it wrote before are in the folder of the run.
    """
    dataset = absolute(dataset)
    head = location.read_json(dataset, "dataset.json")
    folder, finished = run_pipeline(
        "training", pipeline_arguments(config, dataset), config.name, workdir, listener, cache=cache
    )
    _restore_bento(finished)
    summary = summarize(config, folder, finished, {"path": dataset, **head}, command)
    finish(folder, summary)
    return summary


def refresh(
    config: RunConfig, dataset: str, workdir: Path, listener: Any, *, cache: bool = True
) -> dict[str, Any]:
    """Returns what was published (`store.PublishReport`) after checking a dataset and making its
    features the ones that are served.

    Args, Raises: as of `run`; no model is made.
    """
    arguments = pipeline_arguments(
        config, absolute(dataset), only=("data_uri", "shards", "data", "checks")
    )
    _, finished = run_pipeline(
        "refresh", arguments, f"{config.name}-refresh", workdir, listener, cache=cache
    )
    report: dict[str, Any] = read_json(finished.output("publish", "published"))
    return report


def drift(config: RunConfig, workdir: Path, listener: Any) -> dict[str, Any]:
    """Returns the numbers of `monitor.check_drift` (flags as 0 and 1) and the path of its `report`,
    for requests answered from `workdir`.

    Args, Raises: as of `run`; what has drifted is an error too.
    """
    _, finished = run_pipeline(
        "drift", {"drift": config.to_dict()["drift"]}, f"{config.name}-drift", workdir, listener
    )
    numbers: dict[str, Any] = read_json(finished.output("drift", "metrics"))
    return {**numbers, "report": str(finished.output("drift", "report"))}


def summarize(
    config: RunConfig, folder: Path, finished: Any, dataset: Mapping[str, Any], command: str = ""
) -> dict[str, Any]:
    """Returns what summary.json holds.

    Args:
        config: of the run.
        folder: of the run.
        finished: the local run (`pipelines.local_runner.LocalRun`).
        dataset: content of dataset.json, and `path`.
        command: what was typed.
    """
    evaluation = finished.output("evaluate", "evaluation")
    if evaluation is None:
        raise LongrecError(
            "the run has no evaluation",
            found=f"nothing in {finished.artifacts}",
            fix=f"See {finished.log}.",
        )
    found = read_json(evaluation / "metrics.json")
    packaged = finished.output("package", "packaged")
    best_possible = {row["length"]: row["auc"] for row in found["best_possible"]}
    return {
        "run": folder.name,
        "name": config.name,
        "command": command,
        "seed": config.seed,
        "dataset": {
            "name": dataset["name"],
            "path": dataset["path"],
            "fingerprint": found["bundle"]["schema_fingerprint"],
            "facts": dataset["facts"],
        },
        "num_requests": found["num_requests"],
        "num_targets": found["num_targets"],
        "num_users": found["num_users"],
        "served_length": found["served_length"],
        "longest_history": found["longest_history"],
        "metrics": {task: _task_metrics(row) for task, row in found["metrics"].items()},
        "popularity": {
            task: {"name": row["name"], **_task_metrics(row)}
            for task, row in found["popularity"].items()
        },
        "gain_over_popularity": found["gain"],
        "lengths": [
            {
                **{
                    key: row[key]
                    for key in ("length", "auc", "auc_low", "auc_high", "logloss", "mean_events")
                },
                "best_possible_auc": best_possible.get(row["length"]),
            }
            for row in found["lengths"]
        ],
        "best_possible_auc_full": found["bayes_full"],
        "gate": {"passed": found["gate"]["passed"], "reasons": found["gate"]["reasons"]},
        "bento_tag": None if packaged is None else read_json(packaged)["tag"],
        "report": str(folder / "report.html"),
        "log": str(finished.log),
        "artifacts": str(finished.artifacts),
        **_steps([step for step in finished.steps if step.name not in SILENT_STEPS]),
        "example": _example(evaluation / "predictions.parquet"),
        "training": found["training"],
        "config": config.to_dict(),
        "versions": versions(),
    }


def synthetic_dataset(workdir: Path, config: RunConfig, **world: int) -> tuple[Path, bool]:
    """Returns the directory of a synthetic dataset and whether it was made just now; equal arguments
    find the old one again.

    Args:
        workdir: it goes to `<workdir>/data/synthetic_schema-<digest of the arguments>`.
        config: its seed, and its evaluation lengths, at which the best possible AUC is measured.
        world: arguments of `synthesize`.
    """
    from longrec.data.importers.synthetic import synthesize

    arguments: dict[str, Any] = {
        **world,
        "seed": config.seed,
        "lengths": sorted(set(config.evaluate.lengths)),
    }
    digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:8]
    path = workdir / "data" / f"synthetic-{digest}"
    if (path / "dataset.json").is_file():
        return path, False
    synthesize(path, **arguments)
    return path, True


def serve_command(workdir: Path, host: str, port: int) -> tuple[list[str], Path, dict[str, str]]:
    """Returns the command that serves a work directory, the folder to start it in, its environment.

    The champion of its registry is served and followed; without one, the model of its newest run.

    Raises:
        CheckoutError: no run has packaged a model, bentoml is not installed, or the port is taken.
    """
    packaged = [read_json(path) for path in sorted((workdir / "runs").glob("[0-9]*/summary.json"))]
    tags = [summary["bento_tag"] for summary in packaged if summary["bento_tag"]]
    if not tags:
        raise CheckoutError(
            f"{workdir} holds no packaged model",
            found=f"{len(packaged)} finished runs",
            fix="Make one with: longrec run",
        )
    program = Path(sys.executable).with_name("bentoml")
    if not program.exists():
        raise CheckoutError(
            "bentoml is not installed",
            fix="Install everything: pip install -e '.[all]' -c constraints.txt",
        )
    _check_free(host, port)
    command = [str(program), "serve", "bento.service:Ranker", "--host", host, "--port", str(port)]
    environment = {"LONGREC_HOME": str(workdir.resolve()), "BENTOML_DO_NOT_TRACK": "True"}
    if registry.read(workdir).champion is None:
        environment["LONGREC_MODEL"] = tags[-1]
    return command, find_root(), {**THREADING, **os.environ, **environment}


def _check_free(host: str, port: int) -> None:
    """Returns nothing where a server may listen; bentoml itself would end in a traceback."""
    try:
        socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ).close()
    except OSError as error:
        raise CheckoutError(
            f"nothing can listen at {host}:{port}",
            found=error.strerror or error,
            fix="Choose another --port or --host.",
        ) from error


def benchmarks() -> dict[str, tuple[Path, str]]:
    """Returns the benchmarks by name: script and the first line of its docstring."""
    folder = find_root() / "model" / "benchmarks"
    found = {}
    for path in sorted(folder.glob("[a-z]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem] = (path, text.partition("\n")[0])
    return found


def find_root() -> Path:
    """Returns the checkout: `LONGREC_ROOT`, else the nearest parent of the current directory that
    is one, else the editable install.

    Raises:
        CheckoutError: there is none.
    """
    named = os.environ.get("LONGREC_ROOT")
    if named:
        if _is_checkout(Path(named)):
            return Path(named).resolve()
        raise CheckoutError(
            "LONGREC_ROOT is not a checkout of longrec",
            found=named,
            expected="a folder with pipelines/ and feature_repo/",
        )
    here = Path.cwd()
    for folder in (here, *here.parents, *Path(__file__).resolve().parents):
        if _is_checkout(folder):
            return folder
    raise CheckoutError(
        "no checkout of longrec was found",
        found=f"the current directory {here}",
        expected="a folder with pipelines/ and feature_repo/",
        fix="Change into your clone, or set LONGREC_ROOT to it.",
    )


def room(name: str) -> ModuleType:
    """Returns a module of the checkout, for example `pipelines.local_runner`.

    Raises:
        CheckoutError: there is no checkout, or a package that the room needs is not installed.
    """
    root = str(find_root())
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise CheckoutError(
            f"{name} cannot be imported",
            found=f"no module {error.name}",
            fix="Install everything: pip install -e '.[all]' -c constraints.txt",
        ) from error


def pipeline_arguments(
    config: RunConfig, data_uri: str, *, only: Collection[str] = (), **others: Any
) -> dict[str, Any]:
    """Returns the parameters of the training pipeline: the sections of the configuration, the
    dataset, its shards, the seed, and `others`.

    The platform's section is none of them: it is compiled in; nor is that of the drift pipeline.
    `only` names the parameters that another
    pipeline wants.
    """
    sections = config.to_dict()
    served_length = sections["evaluate"].pop("served_length")
    for name in ("name", "drift", "platform"):
        sections.pop(name)
    found = {
        "data_uri": data_uri,
        "shards": shards(sections["data"].pop("shards")),
        "served_length": served_length,
        **sections,
        **others,
    }
    return {name: value for name, value in found.items() if not only or name in only}


def absolute(uri: str) -> str:
    """Returns the address of a dataset with a relative path made absolute."""
    return uri if "://" in uri else str(Path(uri).resolve())


def _restore_bento(finished: Any) -> None:
    """Puts the bento of a cached packaging back into the BentoML store where it is gone from
    there.
    """
    from longrec.release.packaging import keep

    packaged, folder = finished.output("package", "packaged"), finished.output("package", "bento")
    if packaged is not None and folder is not None:
        keep(read_json(packaged)["tag"], folder, find_root() / "feature_repo")


def run_pipeline(
    name: str,
    arguments: Mapping[str, Any],
    title: str,
    workdir: Path,
    listener: Any,
    *,
    cache: bool = True,
) -> tuple[Path, Any]:
    """Returns the folder of a new run and the finished local run after executing a pipeline on this
    machine.

    Args:
        name: of the pipeline (`pipelines.compiler.PIPELINES`).
        arguments: its parameters but `workdir`, `repo_dir` and `run_id`.
        title: part of the folder's name.
        workdir: the feature store lives in it (LONGREC_HOME); the run in `runs/<id>`.
        listener: hears of the progress (`pipelines.local_runner.Listener`).

    Raises:
        BusyError: another run is using `workdir`.
        LongrecError: a step failed; pages that it wrote before are in the folder of the run.
    """
    root, local, pipeline = (
        find_root(),
        room("pipelines.local_runner"),
        room("pipelines.compiler").pipeline(name, None),
    )
    workdir = workdir.resolve()
    environment = {
        **THREADING,
        **os.environ,
        "LONGREC_HOME": str(workdir),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    with _locked(workdir), _environment(**environment):
        folder = _new_run(workdir / "runs", title)
        given = {
            **arguments,
            "run_id": folder.name,
            "workdir": str(workdir),
            "repo_dir": str(root / "feature_repo"),
        }
        finished = None
        try:
            finished = local.run(
                pipeline, given, folder, listener, cache=workdir / "cache" if cache else None
            )
        finally:
            for page, (step, output) in PAGES.items():
                path = (
                    finished.output(step, output)
                    if finished
                    else local.find_output(folder / "artifacts", step, output)
                )
                if path is not None and path.is_file():
                    shutil.copyfile(path, folder / f"{page}.html")
        return folder, finished


def finish(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Returns the path of `summary.json` after writing it and pointing `runs/latest` at the run, in
    that order.
    """
    path = folder / "summary.json"
    write_json(path, summary)
    temporary = folder.parent / f".latest-{uuid.uuid4().hex[:8]}"
    temporary.symlink_to(folder.name)
    os.replace(temporary, folder.parent / "latest")
    return path


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _example(predictions: Path) -> dict[str, Any]:
    """Returns the user and candidates of the first evaluated request, to try the service with."""
    import pyarrow.parquet as pq

    rows = next(
        pq.ParquetFile(predictions).iter_batches(
            1_000, columns=["request_id", "user_id", "item_id"]
        )
    ).to_pylist()
    candidates = [row["item_id"] for row in rows if row["request_id"] == rows[0]["request_id"]]
    return {"user_id": rows[0]["user_id"], "candidates": candidates[:5]}


def _steps(steps: Sequence[Any]) -> dict[str, Any]:
    """Returns status and seconds of each step by name; of a step in a loop all runs together: what
    is not cached counts as done.
    """
    status, seconds = dict[str, str](), dict[str, float]()
    for step in steps:
        status[step.name] = (
            step.status if status.get(step.name, "cached") == "cached" else status[step.name]
        )
        seconds[step.name] = round(seconds.get(step.name, 0.0) + step.seconds, 2)
    return {"steps": status, "seconds": seconds}


def _task_metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metrics of a task by name, with the 95 % interval of the AUC as a pair."""
    return {**row, "auc_interval": [row.get("auc_low"), row.get("auc_high")]}


def _is_checkout(folder: Path) -> bool:
    return (folder / "pipelines" / "training.py").is_file() and (folder / "feature_repo").is_dir()


def _new_run(runs: Path, name: str) -> Path:
    """Returns a new empty folder `<UTC time>-<name>`; a second start within the second gets a
    suffix.
    """
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    slug = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-") or "run"
    for suffix in ("", f"-{uuid.uuid4().hex[:6]}"):
        with contextlib.suppress(FileExistsError):
            folder = runs / f"{stamp}-{slug}{suffix}"
            folder.mkdir(parents=True)
            return folder
    raise BusyError("two runs started at the same moment", fix="Start again.")


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Holds the work directory: its feature store has one writer at a time."""
    with _writable(workdir), open(workdir / ".lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                f"another run is using {workdir}", fix="Wait for it, or choose another --workdir."
            ) from error
        yield


@contextlib.contextmanager
def _writable(workdir: Path) -> Iterator[None]:
    """Makes the work directory; what keeps it from being written is one line."""
    try:
        (workdir / "runs").mkdir(parents=True, exist_ok=True)
        (workdir / ".lock").touch()
    except OSError as error:
        raise CheckoutError(
            f"{workdir} cannot be written", found=error.strerror, fix="Choose another --workdir."
        ) from error
    yield


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
