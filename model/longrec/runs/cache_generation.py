"""The generation of cached results, and what happens when the artifact of one is gone.

    WORKDIR/cache-generation.json     a word that is part of the keys of all steps

A pipeline server answers from its cache without a look at the artifacts. When a lifecycle rule has
deleted them, the next step finds nothing. Then it starts a new generation, so that the next run
takes nothing from the cache, and its error says so.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from longrec.data import files
from longrec.errors import LongrecError
from longrec.runs.code_fingerprint import of_steps

GENERATION_FILE = "cache-generation.json"
CACHE_SETTING = "platform.steps.all.cache=false"


class ArtifactGoneError(LongrecError):
    """An artifact that an earlier run made is not in the store of artifacts any more."""


def generation(workdir: str | Path) -> str:
    """Return the generation of a work directory; empty for the first.

    Raises:
        DataError: the file is damaged.
    """
    path = Path(workdir) / GENERATION_FILE
    if not path.is_file():
        return ""
    return str(files.read_json_object(path).get("generation", ""))


def start_generation(workdir: str | Path) -> str:
    """Begin a new generation, which no run had before; return it."""
    name = uuid.uuid4().hex[:8]
    files.write_json(Path(workdir) / GENERATION_FILE, {"generation": name})
    return name


def keys_of_steps(repo_dir: str | Path, workdir: str | Path) -> dict[str, str]:
    """Return the key of each step's code and of the generation, by its code key.

    Args:
        repo_dir: see `code_fingerprint.of_steps`.
        workdir: the work directory.
    """
    current = generation(workdir)
    suffix = f"-{current}" if current else ""
    return {key: f"{digest}{suffix}" for key, digest in of_steps(repo_dir).items()}


@contextlib.contextmanager
def checked_artifacts(executor_input: Mapping[str, Any], workdir: str | Path) -> Iterator[None]:
    """Check the artifacts that a step reads; tell an error of the block that comes from a lost one.

    Args:
        executor_input: inputs and outputs of the step, as kfp passes them.
        workdir: gets the new generation; empty if the step has none.

    Raises:
        ArtifactGoneError: an artifact or a file in it is gone.
    """
    paths = _input_paths(executor_input)
    for uri, path in paths.items():
        if _is_gone(path):
            raise _gone(uri, workdir)
    try:
        yield
    except Exception as error:
        for uri, path in paths.items():
            if _names_missing_file(str(error), path):
                raise _gone(uri, workdir) from error
        raise


def _input_paths(executor_input: Mapping[str, Any]) -> dict[str, Path]:
    """Return the local path of each artifact that a step reads, by its address."""
    # A step runs in kfp's executor. The library does not need kfp otherwise.
    artifact_type = importlib.import_module("kfp.dsl").Artifact
    paths = {}
    for entry in executor_input.get("inputs", {}).get("artifacts", {}).values():
        for artifact in entry.get("artifacts", ()):
            uri = artifact["uri"]
            named = artifact.get("customPath")
            metadata = artifact.get("metadata", {})
            paths[uri] = Path(named or artifact_type(uri=uri, metadata=metadata).path)
    return paths


def _is_gone(path: Path) -> bool:
    """Return whether nothing is at a path; a store of objects holds no empty folder."""
    if path.is_dir():
        return not any(path.iterdir())
    return not path.exists()


def _names_missing_file(text: str, path: Path) -> bool:
    """Return whether an error names a file of an artifact that is not there."""
    named = re.findall(rf"{re.escape(str(path))}/[^\s;,:'\"]+", text)
    return any(not Path(name.rstrip(".")).exists() for name in named)


def _gone(uri: str, workdir: str | Path) -> ArtifactGoneError:
    return ArtifactGoneError(
        "an artifact that an earlier run made is gone, but the cache still names it",
        found=f"nothing, or not all of it, at {uri}",
        fix=f"{_renew(workdir)} To keep it from happening again, let the lifecycle rule of the "
        f"bucket keep artifacts longer than the cache, or set {CACHE_SETTING}.",
    )


def _renew(workdir: str | Path) -> str:
    """Start a new generation if that is possible; return what the user has to do."""
    with contextlib.suppress(OSError, LongrecError):
        if workdir and Path(workdir).is_dir():
            start_generation(workdir)
            return "Start the run again: it takes nothing from the cache now."
    return f"Start the run again with --set {CACHE_SETTING}."
