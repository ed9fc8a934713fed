"""Running the pipeline on this machine: where things are, what the steps are given, and the summary of what came out.

The rooms (`pipelines`, `bento`) are found in the checkout at run time; this module imports none of them by itself.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from longrec.config import RunConfig
from longrec.data.files import write_json
from longrec.errors import LongrecError

VERSIONS = ("longrec", "torch", "pyarrow", "duckdb", "feast", "great_expectations", "kfp", "bentoml")
PAGES = {"check-events": ("check-events", "report"), "check-histories": ("check-histories", "report"), "report": ("evaluate", "report")}
"""HTML pages that a run leaves in its folder, by name, and the output artifact that each is a copy of."""


class CheckoutError(LongrecError):
    """The rooms around the library (pipelines, feature_repo, bento) are not where they should be."""


class BusyError(LongrecError):
    """Another run is using the same work directory."""


def find_root() -> Path:
    """Returns the checkout: `LONGREC_ROOT`, else the nearest parent of the current directory that is one, else the editable install.

    Raises:
        CheckoutError: there is none.
    """
    named = os.environ.get("LONGREC_ROOT")
    if named:
        if _is_checkout(Path(named)):
            return Path(named).resolve()
        raise CheckoutError("LONGREC_ROOT is not a checkout of longrec", found=named, expected="a folder with pipelines/ and feature_repo/")
    here = Path.cwd()
    for folder in (here, *here.parents, *Path(__file__).resolve().parents):
        if _is_checkout(folder):
            return folder
    raise CheckoutError("no checkout of longrec was found", found=f"the current directory {here}",
                        expected="a folder with pipelines/ and feature_repo/", fix="Change into your clone, or set LONGREC_ROOT to it.")


def room(name: str) -> ModuleType:
    """Returns a module of the checkout, for example `pipelines.local`.

    Raises:
        CheckoutError: there is no checkout, or a package that the room needs is not installed.
    """
    root = str(find_root())
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise CheckoutError(f"{name} cannot be imported", found=f"no module {error.name}",
                            fix="Install everything: pip install -e '.[all]' -c constraints.txt") from error


def pipeline_arguments(config: RunConfig, data_uri: str, run_id: str = "", **places: str) -> dict[str, Any]:
    """Returns the parameters of the training pipeline: the sections of the configuration, the dataset, the seed.

    Args:
        places: `home` and `repo_dir` of the feature store, where they differ from the image's.
    """
    sections = config.to_dict()
    served_length = sections["evaluate"].pop("served_length")
    sections.pop("name")
    return {"data_uri": data_uri, "run_id": run_id, "served_length": served_length, **sections, **places}


def run_training(config: RunConfig, dataset: Path, workdir: Path, listener: Any) -> tuple[Path, Any]:
    """Returns the folder of a new run and the finished local run after executing the training pipeline.

    Args:
        dataset: directory written by an importer or by `synth`.
        workdir: the feature store lives in it (LONGREC_HOME); the run in `runs/<id>`.
        listener: hears of the progress (`pipelines.local.Listener`).

    Raises:
        BusyError: another run is using `workdir`.
        LongrecError: a step failed; pages that it wrote before are in the folder of the run.
    """
    root, local, training = find_root(), room("pipelines.local"), room("pipelines.training")
    workdir = workdir.resolve()
    with _locked(workdir), _environment(LONGREC_HOME=str(workdir), BENTOML_DO_NOT_TRACK="True"):
        folder = _new_run(workdir / "runs", config.name)
        arguments = pipeline_arguments(config, str(dataset.resolve()), folder.name, home=str(workdir), repo_dir=str(root / "feature_repo"))
        try:
            return folder, local.run(training.training, arguments, folder, listener)
        finally:
            for name, (step, output) in PAGES.items():
                page = local.find_output(folder / "artifacts", step, output)
                if page is not None and page.is_file():
                    shutil.copyfile(page, folder / f"{name}.html")


def finish(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Returns the path of `summary.json` after writing it and pointing `runs/latest` at the run, in that order."""
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


def _is_checkout(folder: Path) -> bool:
    return (folder / "pipelines" / "training.py").is_file() and (folder / "feature_repo").is_dir()


def _new_run(runs: Path, name: str) -> Path:
    """Returns a new empty folder `<UTC time>-<name>`; a second start within the second gets a suffix."""
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
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / ".lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"another run is using {workdir}", fix="Wait for it, or choose another --workdir.") from error
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
