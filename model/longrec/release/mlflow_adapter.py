"""MLflow: a run for each pipeline run, a model version for each bento. No other file imports it.

MLflow's own variables configure it: MLFLOW_TRACKING_URI turns it on, MLFLOW_EXPERIMENT_NAME names
the experiment, MLFLOW_REGISTRY_URI another model registry. Without the first, nothing is imported.

MLflow gets JSON, CSV, HTML and safetensors files; no pickle, and no rows of users. A server that
fails is a warning and never fails a run.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrec.data.files import read_json
from longrec.release.catalog import (
    MLFLOW,
    MLFLOW_VARIABLE,
    Alias,
    CatalogEntry,
    CatalogError,
    NewVersion,
)
from longrec.release.model_store import MODEL_NAME

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

EXPERIMENT_NAME = "MLFLOW_EXPERIMENT_NAME"
EXPERIMENT_ID = "MLFLOW_EXPERIMENT_ID"
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Defaults of MLflow's variables: a server that is down delays a run by seconds only, and stdout
holds only what a command prints."""
INSTALL = "pip install 'longrec[mlflow]'"
CURVE_FILE = "training_curve.csv"
RUN_TAG = "longrec_run"
BUNDLE_TAG = "longrec_bundle"
EVALUATION_TAG = "longrec_evaluation"
VERSION_TAG = "longrec_version"
BUNDLE_FOLDER = "bundle"
EVALUATION_FOLDER = "evaluation"
EVALUATION_FILES = ("metrics.json", "report.html", "MODEL_CARD.md")
"""Files of an evaluation that MLflow gets; the predictions name users, who may be forgotten."""
PARAMETER_SECTIONS = ("train", "lengths")
"""Sections of a bundle's facts that are settings."""
LENGTH_METRICS = ("auc", "logloss", "mean_events")
MAX_PARAMETERS = 100
MAX_METRICS = 1_000
"""Largest batches of MLflow's REST API."""


def open_client() -> MlflowClient:
    """Return MLflow's client.

    Raises:
        CatalogError: MLflow is not installed.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError as error:
        raise CatalogError(
            f"{MLFLOW_VARIABLE} is set, but MLflow is not installed", fix=INSTALL
        ) from error
    return MlflowClient()


@dataclasses.dataclass(frozen=True, slots=True)
class MlflowRun:
    """The run of MLflow that belongs to a pipeline run.

    Args:
        client: of MLflow.
        run_id: of the run.
    """

    client: MlflowClient
    run_id: str

    @classmethod
    def open(cls, name: str) -> MlflowRun:
        """Return the run of a pipeline run, a new one if there is none.

        Args:
            name: of the pipeline run.
        """
        found = cls.find(name)
        if found is not None:
            return found
        client = open_client()
        experiment = _experiment_id(client)
        created = client.create_run(experiment, tags={RUN_TAG: name}, run_name=name)
        return cls(client, created.info.run_id)

    @classmethod
    def find(cls, name: str) -> MlflowRun | None:
        """Return the run of a pipeline run; None if there is none."""
        client = open_client()
        experiment = _experiment_id(client)
        found = client.search_runs([experiment], f"tags.{RUN_TAG} = '{name}'", max_results=1)
        return cls(client, found[0].info.run_id) if found else None

    def log_bundle(self, folder: Path) -> None:
        """Log settings, training curve and files of a bundle, once."""
        meta = read_json(folder / "bundle.json")
        if not self._begin(BUNDLE_TAG, str(meta["version"])):
            return
        self._log_parameters(dict(_parameters(meta)))
        self._log_metrics(list(_curve_metrics(folder)))
        self._log_metrics(list(_fact_metrics(meta["facts"])))
        self.client.log_artifacts(self.run_id, str(folder), BUNDLE_FOLDER)
        self._end(BUNDLE_TAG, str(meta["version"]))

    def log_evaluation(self, folder: Path) -> None:
        """Log metrics by task and by served length, and the pages of an evaluation, once."""
        content = read_json(folder / "metrics.json")
        identity = f"{content['date']} {content['bundle']['version']}"
        if not self._begin(EVALUATION_TAG, identity):
            return
        self._log_metrics(list(_evaluation_metrics(content)))
        for name in EVALUATION_FILES:
            if (folder / name).is_file():
                self.client.log_artifact(self.run_id, str(folder / name), EVALUATION_FOLDER)
        self.client.set_tag(self.run_id, "gate", _verdict(content))
        self._end(EVALUATION_TAG, identity)

    def finish(self, status: str) -> None:
        """Set the status of the run: FINISHED or FAILED."""
        self.client.set_terminated(self.run_id, status)

    def _begin(self, tag: str, value: str) -> bool:
        """Return whether something has to be logged; a cached result may come again."""
        return bool(self.client.get_run(self.run_id).data.tags.get(tag) != value)

    def _end(self, tag: str, value: str) -> None:
        self.client.set_tag(self.run_id, tag, value)

    def _log_parameters(self, parameters: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        known = self.client.get_run(self.run_id).data.params
        # MLflow refuses another value; a bundle of other settings has a run of its own.
        new = [Param(name, str(value)) for name, value in parameters.items() if name not in known]
        for batch in _batches(new, MAX_PARAMETERS):
            self.client.log_batch(self.run_id, params=batch)

    def _log_metrics(self, points: Sequence[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1e3)
        metrics = [Metric(name, value, now, step) for name, value, step in points]
        for batch in _batches(metrics, MAX_METRICS):
            self.client.log_batch(self.run_id, metrics=batch)


class MlflowCatalog:
    """The registered model `longrec-ranker` of MLflow, with the aliases champion and challenger."""

    name = MLFLOW

    def add(self, new: NewVersion) -> None:
        """Register a version with its bundle, once; its run of MLflow holds both."""
        run = MlflowRun.open(new.run or new.version)
        run.log_bundle(new.bundle)
        if new.evaluation is not None:
            run.log_evaluation(new.evaluation)
        client = run.client
        _make_model(client)
        if _find(client, new.version) is not None:
            return
        artifacts = client.get_run(run.run_id).info.artifact_uri
        client.create_model_version(
            MODEL_NAME,
            source=f"{artifacts}/{BUNDLE_FOLDER}",
            run_id=run.run_id,
            tags={**new.labels, VERSION_TAG: new.version},
            await_creation_for=0,
        )
        if not new.run:
            run.finish("FINISHED")

    def entries(self) -> list[CatalogEntry]:
        """Return all versions, newest first."""
        client = open_client()
        aliases = _aliases(client)
        found = []
        for entry in _versions(client):
            roles = tuple(name for name, number in aliases.items() if number == str(entry.version))
            version = entry.tags.get(VERSION_TAG, str(entry.version))
            labels = {name: text for name, text in entry.tags.items() if name != VERSION_TAG}
            found.append(CatalogEntry(version, str(entry.version), roles, labels))
        return found

    def assign(self, alias: Alias, version: str | None) -> None:
        """Give an alias to a version, or remove it.

        Raises:
            CatalogError: MLflow does not know the version.
        """
        client = open_client()
        if version is None:
            if alias in _aliases(client):
                client.delete_registered_model_alias(MODEL_NAME, alias)
            return
        entry = _find(client, version)
        if entry is None:
            raise CatalogError(
                f"MLflow has no version {version} of {MODEL_NAME}",
                fix="Register it: longrec models sync",
            )
        client.set_registered_model_alias(MODEL_NAME, alias, str(entry.version))


def _experiment_id(client: MlflowClient) -> str:
    """Return the experiment that MLflow's variables name; by name, a missing one is created."""
    name = os.environ.get(EXPERIMENT_NAME, "")
    if not name:
        return os.environ.get(EXPERIMENT_ID, "0")
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(name))


def _make_model(client: MlflowClient) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(MODEL_NAME)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(MODEL_NAME)


def _versions(client: MlflowClient) -> list[Any]:
    found = client.search_model_versions(f"name = '{MODEL_NAME}'")
    return sorted(found, key=lambda entry: int(entry.version), reverse=True)


def _find(client: MlflowClient, version: str) -> Any:
    """Return the model version of MLflow; None if there is none."""
    for entry in _versions(client):
        if entry.tags.get(VERSION_TAG) == version:
            return entry
    return None


def _aliases(client: MlflowClient) -> dict[str, str]:
    """Return the version number by alias; empty without the model."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(MODEL_NAME)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return {name: str(number) for name, number in model.aliases.items()}


def _parameters(meta: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a bundle as `section.key`."""
    facts = meta["facts"]
    sections = {"model": meta["model"], **{name: facts.get(name) for name in PARAMETER_SECTIONS}}
    for section, values in sections.items():
        for key, value in (values or {}).items():
            yield f"{section}.{key}", value
    yield "seed", facts.get("seed")
    yield "served_length", meta["served_length"]


def _curve_metrics(folder: Path) -> Iterator[tuple[str, float, int]]:
    """Yield name, value and step of the training curve; nothing without the file."""
    path = folder / CURVE_FILE
    if not path.is_file():
        return
    with open(path, newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            step = int(float(row.pop("step")))
            for name, text in row.items():
                if text:
                    yield f"train.{name}", float(text), step


def _fact_metrics(facts: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Yield the results of a training, and its validations by step."""
    step = int(facts.get("num_steps") or 0)
    for name, value in facts.items():
        if _is_finite(value) and name not in ("seed", "num_steps"):
            yield f"summary.{name}", float(value), step
    for row in (facts.get("validation") or {}).get("curve", ()):
        for name in ("auc", "logloss"):
            if _is_finite(row.get(name)):
                yield f"validation.{name}", float(row[name]), int(row["step"])


def _evaluation_metrics(content: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Yield the metrics of each task, and those by served length with the length as the step."""
    for task, row in content["metrics"].items():
        for name, value in row.items():
            if _is_finite(value):
                yield f"eval.{task}.{name}", float(value), 0
    for row in content["lengths"]:
        for name in LENGTH_METRICS:
            if _is_finite(row.get(name)):
                yield f"by_length.{name}", float(row[name]), int(row["length"])


def _verdict(content: Mapping[str, Any]) -> str:
    return "passed" if content["gate"]["passed"] else "refused"


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _batches(entries: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]
