"""What a step reads and writes, as versions: of the dataset, features, store, histories, models.

The record of a run names them (`longrec.runs.record.attempts`), and so do OpenLineage events. The
version of an artifact stands in its own files, so a copy or a cached result has the same one.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from longrec.data import location
from longrec.data.files import read_json_object
from longrec.errors import LongrecError
from longrec.openlineage import LineageDataset

log = logging.getLogger(__name__)

DIGEST_LENGTH = 16
STORE = "store"
DATASET = "dataset"
BENTO = "bento"


def inputs_of(executor_input: Mapping[str, Any]) -> list[LineageDataset]:
    """Return what a step reads: artifacts, and the versions among its parameters.

    What cannot be told is a warning and no error, and so for `outputs_of`.

    Args:
        executor_input: inputs and outputs of the step, as kfp passes them.
    """
    return _without_errors(_inputs, executor_input)


def outputs_of(executor_input: Mapping[str, Any]) -> list[LineageDataset]:
    """Return what a step has written, after its end."""
    return _without_errors(_outputs, executor_input)


def step_input(read: Mapping[str, Path], written: Mapping[str, Path]) -> dict[str, Any]:
    """Return the input of a step of this process, in the form that kfp passes.

    Args:
        read, written: path of each artifact by its name.
    """
    sides = {}
    for side, paths in (("inputs", read), ("outputs", written)):
        artifacts = {name: {"artifacts": [_artifact(path)]} for name, path in paths.items()}
        sides[side] = {"artifacts": artifacts}
    return sides


def _artifact(path: Path) -> dict[str, str]:
    return {"uri": str(path), "customPath": str(path)}


def artifact_paths(executor_input: Mapping[str, Any]) -> dict[str, Path]:
    """Return the local path of each artifact that a step reads or writes, by its name."""
    paths = {}
    for side in ("inputs", "outputs"):
        entries = executor_input.get(side, {}).get("artifacts", {})
        for name, entry in entries.items():
            for artifact in entry.get("artifacts", ()):
                paths[name] = _path(artifact)
    return paths


def _without_errors(
    read: Callable[[Mapping[str, Any]], list[LineageDataset]], executor_input: Mapping[str, Any]
) -> list[LineageDataset]:
    try:
        return read(executor_input)
    except Exception as error:  # The record never fails a step.
        log.warning("the lineage of the step is unknown: %s", error)
        return []


def _inputs(executor_input: Mapping[str, Any]) -> list[LineageDataset]:
    inputs = executor_input.get("inputs", {})
    parameters = inputs.get("parameterValues", {})
    found = list(_parameters(parameters))
    found += _artifacts(inputs.get("artifacts", {}))
    return found


def _outputs(executor_input: Mapping[str, Any]) -> list[LineageDataset]:
    return list(_artifacts(executor_input.get("outputs", {}).get("artifacts", {})))


def _parameters(parameters: Mapping[str, Any]) -> Iterator[LineageDataset]:
    uri = parameters.get("data_uri")
    # With a key of the data, the step reads the dataset; without, it only names it.
    if uri and "data_key" in parameters:
        dataset = dataset_at(str(uri))
        if dataset is not None:
            yield dataset
    published = parameters.get("published")
    if isinstance(published, str) and published:
        yield LineageDataset(STORE, published, str(parameters.get("workdir", "")))


def dataset_at(uri: str) -> LineageDataset | None:
    """Return the version of the dataset at an address; None if it cannot be read."""
    try:
        content = location.read_json(uri, "dataset.json")
    except (LongrecError, OSError):
        return None
    version = str(content.get("facts", {}).get("content_hash", ""))
    return LineageDataset(DATASET, version, uri, str(content.get("name", "")))


def _artifacts(entries: Mapping[str, Any]) -> Iterator[LineageDataset]:
    for name, entry in entries.items():
        if name not in _READERS:
            continue
        kind, read = _READERS[name]
        for artifact in entry.get("artifacts", ()):
            version = _version(read, _path(artifact))
            if version:
                yield LineageDataset(kind, version, str(artifact["uri"]))


def _version(read: Callable[[Path], str], path: Path) -> str:
    """Return the version of an artifact; empty if it is not there or damaged."""
    try:
        return read(path)
    except (LongrecError, OSError, KeyError, ValueError):
        return ""


def _path(artifact: Mapping[str, Any]) -> Path:
    if named := artifact.get("customPath"):
        return Path(named)
    # A step runs in kfp's executor. The library does not need kfp otherwise.
    artifact_type = importlib.import_module("kfp.dsl").Artifact
    metadata = artifact.get("metadata", {})
    return Path(artifact_type(uri=artifact["uri"], metadata=metadata).path)


def _of_features(path: Path) -> str:
    return str(read_json_object(path / "manifest.json")["version"])


def _of_shards(path: Path) -> str:
    """Return the digest of the manifests of one item of the loop over shards."""
    return _digest(path.rglob("manifest.json"))


def _of_store(path: Path) -> str:
    return str(read_json_object(path)["digest"])


def _of_histories(path: Path) -> str:
    return _digest([path / "manifest.json"])


def _of_bundle(path: Path) -> str:
    return str(read_json_object(path / "bundle.json")["version"])


def _of_evaluation(path: Path) -> str:
    return _digest([path / "metrics.json"])


def _of_bento(path: Path) -> str:
    content = read_json_object(path / "src" / "release.json")
    return str(content["model"]).rpartition(":")[2]


def _digest(paths: Any) -> str:
    """Return a hash of the content of files; empty without files."""
    found = sorted(paths)
    if not found:
        return ""
    digest = hashlib.sha256()
    for path in found:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:DIGEST_LENGTH]


def _of_any_features(path: Path) -> str:
    """Return the version of joined features, else of the shards of one item."""
    is_joined = (path / "manifest.json").is_file()
    return _of_features(path) if is_joined else _of_shards(path)


_READERS: Mapping[str, tuple[str, Callable[[Path], str]]] = {
    "features": ("features", _of_any_features),
    "shards": ("features", _of_any_features),
    "published": (STORE, _of_store),
    "histories": ("histories", _of_histories),
    "bundle": ("bundle", _of_bundle),
    "evaluation": ("evaluation", _of_evaluation),
    BENTO: (BENTO, _of_bento),
}
"""Name of an input or output of a step -> kind, and how to read its version."""
