"""Checkpoints: the state of a training between two steps.

    DIR/<fingerprint>/step-0000000400/state.safetensors   every tensor by name
    DIR/<fingerprint>/step-0000000400/state.json          format version, identity, plain values,
                                                          SHA-256 of the tensors' file

The fingerprint is a hash of the training's identity: data, configuration and seed. Trainings may
share a folder: a retry finds its own checkpoints and never takes those of another training. A
checkpoint is written to a temporary folder, synced to disk and renamed. A training that is killed
during the write still has the checkpoint before it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from longrec.data import files
from longrec.errors import DataError

FORMAT_VERSION = 1
MAX_CHECKPOINTS = 2
"""Number of checkpoints of a training on disk: the newest may turn out to be damaged."""
TENSORS_NAME = "state.safetensors"
VALUES_NAME = "state.json"
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a training after some steps.

    Args:
        step: number of steps done.
        tensors: tensors by name.
        values: plain values, as JSON holds them.
    """

    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one training.

    Args:
        directory: a folder that many trainings may share, on a volume that outlives the process.
        identity: JSON form of all that affects the results; nested one level at most.
    """

    directory: Path
    identity: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the identity."""
        text = json.dumps(
            self.identity,
            sort_keys=True,
            separators=(",", ":"),
        )
        digest = hashlib.sha256(text.encode())
        return digest.hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Folder of this training's checkpoints."""
        return self.directory / self.fingerprint

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint to disk and remove the oldest ones; return its folder."""
        target = self.folder / f"step-{checkpoint.step:010d}"
        with files.atomic_replace(target) as temporary:
            temporary.mkdir()
            self._write(checkpoint, temporary)
            files.fsync_directory(temporary)
        files.fsync_directory(self.folder)
        for old in self._paths()[:-MAX_CHECKPOINTS]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def latest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint, or None; log a warning for each damaged one.

        Raises:
            DataError: a checkpoint here is of another training, or has another format version.
        """
        for path in reversed(self._paths()):
            try:
                return self._read(path)
            except _DamagedError as error:
                log.warning("%s", error)
        self._warn_about_others()
        return None

    def remove(self) -> None:
        """Remove all checkpoints of this training; those of others stay."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_unfinished(self) -> None:
        """Remove the temporary folders of interrupted writes."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _paths(self) -> list[Path]:
        """Return the folders of this training's checkpoints, the oldest first."""
        return sorted(self.folder.glob("step-*"))

    def _write(
        self,
        checkpoint: Checkpoint,
        folder: Path,
    ) -> None:
        from safetensors.torch import save_file

        path = folder / TENSORS_NAME
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()
        }
        save_file(tensors, path)
        content = {
            "format_version": FORMAT_VERSION,
            "step": checkpoint.step,
            "identity": self.identity,
            "tensors_sha256": files.sha256_of(path),
            "values": checkpoint.values,
        }
        files.write_json(folder / VALUES_NAME, content)

    def _read(self, path: Path) -> Checkpoint:
        """Return the checkpoint in a folder.

        Raises:
            _DamagedError: a file is damaged or missing.
            DataError: it is of another training, or has another format version.
        """
        from safetensors import SafetensorError

        try:
            content = files.read_json(path / VALUES_NAME)
            format_version = content["format_version"]
            # Another format version may not have an identity.
            if format_version == FORMAT_VERSION:
                differences = _differences(self.identity, content["identity"])
                if not differences:
                    return _intact(path, content)
        except (DataError, OSError, SafetensorError, KeyError, TypeError) as error:
            raise _DamagedError(f"{path} is damaged and skipped: {error}") from error
        if format_version != FORMAT_VERSION:
            raise DataError(
                f"the checkpoint {path} has an unknown format version",
                found=format_version,
                expected=FORMAT_VERSION,
                fix=(
                    f"Delete the folder {path.parent} and run the same command again: longrec"
                    " train starts anew. Or resume with the version of longrec that wrote it."
                ),
            )
        raise DataError(
            f"{path} is a checkpoint of another training",
            found="; ".join(differences),
            fix="Choose another checkpoint folder, or delete it to start anew.",
        )

    def _warn_about_others(self) -> None:
        """Log a warning if all checkpoints in the folder are of other trainings."""
        others = sorted(self._others(), key=lambda pair: pair[0])
        if not others:
            return
        _, newest = others[-1]
        log.warning(
            "%s holds no checkpoint of this training; of %d others, the newest differs: %s",
            self.directory,
            len(others),
            "; ".join(_differences(self.identity, newest)),
        )

    def _others(self) -> Iterator[tuple[float, Any]]:
        """Yield (time of writing, identity) of each other training's newest checkpoint.

        Another process may remove them at any time.
        """
        for folder in self.directory.glob("*"):
            paths = sorted(folder.glob("step-*"))
            if folder == self.folder or not paths:
                continue
            newest = paths[-1]
            with contextlib.suppress(DataError, OSError, KeyError, TypeError):
                content = files.read_json(newest / VALUES_NAME)
                yield newest.stat().st_mtime, content["identity"]


class _DamagedError(Exception):
    """A checkpoint with a damaged or missing file."""


def _intact(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint, after comparing the tensors' file with its SHA-256."""
    from safetensors.torch import load_file

    tensors_path = path / TENSORS_NAME
    if files.sha256_of(tensors_path) != content["tensors_sha256"]:
        raise DataError(f"the SHA-256 of {TENSORS_NAME} differs from the recorded one")
    return Checkpoint(
        content["step"],
        load_file(tensors_path),
        content["values"],
    )


def _differences(wanted: Mapping[str, Any], stored: Any) -> list[str]:
    """Return one text for each value in which two identities differ."""
    # Tuples become lists, as in the stored file.
    as_json = json.loads(json.dumps(wanted))
    wanted_values = _flatten(as_json)
    stored_values = _flatten(stored)
    differences = []
    for name in sorted(wanted_values.keys() | stored_values.keys()):
        # A value that is None equals a missing one: older versions did not have its key.
        if stored_values.get(name) == wanted_values.get(name):
            continue
        stored_value = stored_values.get(name, "missing")
        wanted_value = wanted_values.get(name, "missing")
        differences.append(f"{name} {stored_value}, here {wanted_value}")
    return differences


def _flatten(value: Any) -> dict[str, Any]:
    """Return a nested mapping with names `group.key` instead of groups."""
    if not isinstance(value, dict):
        return {"identity": value}
    flat = {}
    for name, entry in value.items():
        if not isinstance(entry, dict):
            flat[name] = entry
            continue
        for key, nested in entry.items():
            flat[f"{name}.{key}"] = nested
    return flat
