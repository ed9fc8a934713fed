"""Checkpoints: the state of a training between two steps, so that a killed one goes on where it
was.

    DIR/<fingerprint>/step-0000000400/state.safetensors   every tensor by name
    DIR/<fingerprint>/step-0000000400/state.json          format version, identity, digest of the
    tensors' file, plain values

The fingerprint is that of the training's identity: its data, configuration and seed. So trainings
may share a folder, a retry finds
its own checkpoints, and those of another training are never taken. Each is written aside, forced to
disk and renamed: a kill at any
moment leaves the one before.
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
"""Checkpoints that stay: the newest may turn out to be damaged."""
TENSORS, VALUES = "state.safetensors", "state.json"
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a training after `step` steps: tensors by name, and plain values as JSON has
    them.
    """

    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one training.

    Args:
        directory: may be shared by many trainings; a volume that outlives the process.
        identity: JSON form of all that decides what the training computes; nested one level at
            most.
    """

    directory: Path
    identity: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the identity."""
        return hashlib.sha256(
            json.dumps(self.identity, sort_keys=True, separators=(",", ":")).encode()
        ).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        return self.directory / self.fingerprint

    def save(self, checkpoint: Checkpoint) -> Path:
        """Returns the folder of the checkpoint, which is on disk by then; older ones but the last
        before it are removed.
        """
        from safetensors.torch import save_file

        target = self.folder / f"step-{checkpoint.step:010d}"
        with files.replacing(target) as temporary:
            temporary.mkdir()
            save_file(
                {
                    name: tensor.detach().cpu().contiguous()
                    for name, tensor in checkpoint.tensors.items()
                },
                temporary / TENSORS,
            )
            files.write_json(
                temporary / VALUES,
                {
                    "format_version": FORMAT_VERSION,
                    "step": checkpoint.step,
                    "identity": self.identity,
                    "tensors_sha256": files.sha256_of(temporary / TENSORS),
                    "values": checkpoint.values,
                },
            )
            files.sync(temporary)
        files.sync(self.folder)
        for old in self._steps()[:-MAX_CHECKPOINTS]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def latest(self) -> Checkpoint | None:
        """Returns the newest checkpoint that is whole, with a warning for each damaged one; None
        when there is none.

        Raises:
            DataError: a checkpoint here is of another training; lists what differs.
        """
        for path in reversed(self._steps()):
            try:
                return self._read(path)
            except _DamagedError as error:
                log.warning("%s", error)
        others = [identity for _, identity in sorted(self._others(), key=lambda pair: pair[0])]
        if others:
            log.warning(
                "%s holds no checkpoint of this training; of %d others, the newest differs: %s",
                self.directory,
                len(others),
                "; ".join(_differences(self.identity, others[-1])),
            )
        return None

    def remove(self) -> None:
        """Removes all checkpoints of this training; those of others stay."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Removes what killed writes left."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _read(self, path: Path) -> Checkpoint:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found = files.read_json(path / VALUES)
            if found["format_version"] != FORMAT_VERSION:
                raise DataError(
                    "another format version", found=found["format_version"], expected=FORMAT_VERSION
                )
            if lines := _differences(self.identity, found["identity"]):
                raise _OtherError(
                    f"{path} is a checkpoint of another training",
                    found="; ".join(lines),
                    fix="Choose another checkpoint folder, or delete it to start anew.",
                )
            if files.sha256_of(path / TENSORS) != found["tensors_sha256"]:
                raise DataError(f"{TENSORS} has other bytes than were written")
            return Checkpoint(found["step"], load_file(path / TENSORS), found["values"])
        except _OtherError:
            raise
        except (DataError, OSError, SafetensorError, KeyError, TypeError) as error:
            raise _DamagedError(f"{path} is damaged and left out: {error}") from error

    def _others(self) -> Iterator[tuple[float, Any]]:
        """Yields (when it was written, identity) of the newest readable checkpoint of each other
        training; they may come and go.
        """
        for folder in self.directory.glob("*"):
            for path in sorted(folder.glob("step-*"))[-1:] if folder != self.folder else []:
                with contextlib.suppress(DataError, OSError, KeyError, TypeError):
                    yield path.stat().st_mtime, files.read_json(path / VALUES)["identity"]


class _DamagedError(Exception):
    """A checkpoint that cannot be used."""


class _OtherError(DataError):
    """A checkpoint of another training."""


def _differences(wanted: Mapping[str, Any], found: Any) -> list[str]:
    """Returns one text for each value in which two identities differ."""
    left, right = _flat(json.loads(json.dumps(wanted))), _flat(found)
    return [
        f"{name} {right.get(name, 'missing')}, here {left.get(name, 'missing')}"
        for name in sorted(left.keys() | right.keys())
        if left.get(name) != right.get(name)
    ]


def _flat(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {"identity": value}
    pairs = (
        (f"{name}.{key}", entry)
        for name, group in value.items()
        if isinstance(group, dict)
        for key, entry in group.items()
    )
    return {
        **{name: entry for name, entry in value.items() if not isinstance(entry, dict)},
        **dict(pairs),
    }
