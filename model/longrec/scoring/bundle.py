"""Bundle: one directory with all that scoring needs.

DIR/model.safetensors    parameters and buffers of the ranker
DIR/bundle.json          format version, version, model, schema, fingerprints, training facts
DIR/encoder/             the Encoder's own files
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from longrec.config import ModelConfig
from longrec.data import files
from longrec.data.encoder import Encoder
from longrec.errors import DataError, SchemaMismatch
from longrec.nn.ranker import Ranker
from longrec.schema import Schema

FORMAT_VERSION = 1
WEIGHTS_NAME = "model.safetensors"
META_NAME = "bundle.json"
ENCODER_NAME = "encoder"
CURVE_NAME = "training_curve.csv"
"""Written by the training beside the bundle's own files, and shown by the evaluation."""
VERSIONED_KEYS = (
    "format_version",
    "schema_fingerprint",
    "encoder_fingerprint",
    "weights_sha256",
    "served_length",
    "model",
)
"""Keys of bundle.json that decide the scores; the version is a hash of them."""
REQUIRED_KEYS = frozenset({*VERSIONED_KEYS, "version", "schema", "facts"})
COPY_OR_TRAIN = "Copy the bundle again, or rebuild it: longrec train HISTORIES OUT."
"""Advice in the errors about damaged bundles."""


@dataclasses.dataclass(frozen=True, slots=True)
class Bundle:
    """A trained ranker with the encoder and the configuration that it was trained with.

    Args:
        ranker: the model.
        encoder: the encoder of its inputs.
        config: sizes and options of the model.
        served_length: default number of most recent events that scoring uses.
        facts: JSON values about the training.
        version: first 16 hex digits of a hash of weights, encoder, configuration and served length.
            Equal versions give equal scores. It is empty unless the bundle was loaded; `save`
            returns it.
    """

    ranker: Ranker
    encoder: Encoder
    config: ModelConfig
    served_length: int
    facts: Mapping[str, Any]
    version: str = ""

    @property
    def schema(self) -> Schema:
        """The schema that the model was trained for."""
        return self.encoder.schema

    def save(self, directory: str | Path) -> str:
        """Replace `directory` by the bundle in one step; return the version."""
        with files.atomic_replace(directory) as temporary:
            temporary.mkdir()
            return self.write(temporary)

    def write(self, directory: Path) -> str:
        """Write the bundle's files into an existing directory; return the version."""
        from safetensors.torch import save_file  # loaded on first use only

        weights_path = directory / WEIGHTS_NAME
        save_file(_host_tensors(self.ranker), weights_path)
        self.encoder.save(directory / ENCODER_NAME)
        meta = {
            "format_version": FORMAT_VERSION,
            "schema_fingerprint": self.schema.fingerprint,
            "encoder_fingerprint": self.encoder.fingerprint,
            "weights_sha256": files.sha256_of(weights_path),
            "served_length": self.served_length,
            "model": dataclasses.asdict(self.config),
            "schema": self.schema.to_dict(),
        }
        version = _version(meta)
        content = {"version": version, **meta, "facts": dict(self.facts)}
        files.write_json(directory / META_NAME, content)
        return version

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: str | torch.device = "cpu",
        schema: Schema | None = None,
    ) -> Bundle:
        """Return the bundle in a directory, its ranker on `device` and in evaluation mode.

        Args:
            directory: a saved bundle.
            device: device of the ranker.
            schema: schema of the caller; None accepts the saved one.

        Raises:
            SchemaMismatch: the bundle was trained for another schema; lists the fields.
            DataError: a file is missing or damaged, or has another format version.
        """
        directory = Path(directory)
        meta = _read_meta(directory)
        saved_schema = Schema.from_dict(meta["schema"])
        _check_schema_fingerprint(directory, meta, saved_schema)
        _check_expected_schema(schema, saved_schema)
        encoder = Encoder.load(directory / ENCODER_NAME, saved_schema)
        _check_hashes(directory, meta, encoder)
        from longrec.config_file import build  # it loads Pydantic, on first use only

        config = build(ModelConfig, meta["model"], where="model")
        item_table = torch.from_numpy(encoder.item_table)
        ranker = Ranker(config, saved_schema, encoder.sizes, item_table)
        _load_weights(ranker, directory / WEIGHTS_NAME)
        ranker = ranker.to(device).eval()
        return cls(
            ranker,
            encoder,
            config,
            meta["served_length"],
            meta["facts"],
            meta["version"],
        )


def _host_tensors(ranker: Ranker) -> dict[str, Tensor]:
    """Return parameters and buffers by name, contiguous and in host memory."""
    state = ranker.state_dict()
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _version(meta: Mapping[str, Any]) -> str:
    """Return the version: a hash of the values that decide the scores."""
    content = {key: meta[key] for key in VERSIONED_KEYS}
    text = json.dumps(
        content,
        sort_keys=True,
        separators=(",", ":"),
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_meta(directory: Path) -> dict[str, Any]:
    """Return the content of bundle.json.

    Raises:
        DataError: the format version is unknown, or a key is missing.
    """
    path = directory / META_NAME
    meta = files.read_json(path)
    if not isinstance(meta, dict):
        raise DataError(
            f"{path} is damaged",
            found=type(meta).__name__,
            expected="a JSON object",
            fix=COPY_OR_TRAIN,
        )
    if meta.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path} has an unknown format version",
            found=meta.get("format_version"),
            expected=FORMAT_VERSION,
            fix="Rebuild the bundle with this version of longrec: longrec train HISTORIES OUT.",
        )
    missing = sorted(REQUIRED_KEYS - meta.keys())
    if missing:
        raise DataError(
            f"{path} is incomplete",
            found=f"no {', '.join(missing)}",
            fix=COPY_OR_TRAIN,
        )
    return cast("dict[str, Any]", meta)


def _check_schema_fingerprint(
    directory: Path,
    meta: Mapping[str, Any],
    schema: Schema,
) -> None:
    """Refuse a stored schema that differs from its fingerprint."""
    expected = meta["schema_fingerprint"]
    if schema.fingerprint == expected:
        return
    raise DataError(
        f"{directory / META_NAME} is damaged",
        found=f"schema {schema.fingerprint}",
        expected=expected,
        fix=COPY_OR_TRAIN,
    )


def _check_expected_schema(schema: Schema | None, saved_schema: Schema) -> None:
    """Refuse a bundle of another schema than the caller's, and list the fields."""
    if schema is None:
        return
    differences = schema.differences(saved_schema)
    if differences:
        raise SchemaMismatch(
            "the bundle was trained for another schema",
            found="; ".join(differences),
            fix="Train again on this schema.",
        )


def _check_hashes(
    directory: Path,
    meta: Mapping[str, Any],
    encoder: Encoder,
) -> None:
    """Refuse files that differ from the hashes in bundle.json."""
    hashes = {
        "encoder_fingerprint": encoder.fingerprint,
        "weights_sha256": _sha256(directory / WEIGHTS_NAME),
        "version": _version(meta),
    }
    for key, found in hashes.items():
        if meta[key] != found:
            raise DataError(
                f"{directory} is damaged: its {key} differs from the one in {META_NAME}",
                found=found,
                expected=meta[key],
                fix=COPY_OR_TRAIN,
            )


def _sha256(path: Path) -> str:
    """Return the hash of the weights' file."""
    try:
        return files.sha256_of(path)
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist",
            expected="the weights of a bundle",
            fix=COPY_OR_TRAIN,
        ) from error


def _load_weights(ranker: Ranker, path: Path) -> None:
    """Load the weights into the ranker, in place."""
    from safetensors import SafetensorError  # loaded on first use only
    from safetensors.torch import load_file

    try:
        ranker.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise DataError(
            f"{path} does not fit the model",
            found=first_line,
            fix=COPY_OR_TRAIN,
        ) from error
