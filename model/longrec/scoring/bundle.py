"""Bundle: everything that scoring needs, in one directory: weights, configuration, schema, encoder,
training facts.

DIR/model.safetensors    parameters and buffers of the ranker
DIR/bundle.json          format version, version, model config, schema, fingerprints, served length,
facts of the training
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

from longrec import config as configuration
from longrec.config import ModelConfig
from longrec.data import files
from longrec.data.encoder import Encoder
from longrec.errors import DataError, SchemaMismatch
from longrec.nn.ranker import Ranker
from longrec.schema import Schema

FORMAT_VERSION = 1
WEIGHTS, META, ENCODER = "model.safetensors", "bundle.json", "encoder"


@dataclasses.dataclass(frozen=True, slots=True)
class Bundle:
    """A trained ranker with what it was trained for.

    Args:
        ranker: the model.
        encoder: of its inputs.
        config: sizes and options of the model.
        served_length: most recent events of a history that scoring uses by default.
        facts: of the training; numbers and texts.
        version: first 16 hex digits of a hash of weights, encoder, configuration and served length:
            equal versions give equal scores.
    """

    ranker: Ranker
    encoder: Encoder
    config: ModelConfig
    served_length: int
    facts: Mapping[str, Any]
    version: str = ""

    @property
    def schema(self) -> Schema:
        return self.encoder.schema

    def save(self, directory: str | Path) -> str:
        """Writes the bundle, replacing `directory` at once; returns its version."""
        with files.replacing(directory) as temporary:
            temporary.mkdir()
            return self.write(temporary)

    def write(self, directory: Path) -> str:
        """Writes the files of the bundle into an existing directory; returns the version."""
        from safetensors.torch import save_file

        save_file(
            {
                name: tensor.detach().cpu().contiguous()
                for name, tensor in self.ranker.state_dict().items()
            },
            directory / WEIGHTS,
        )
        self.encoder.save(directory / ENCODER)
        meta = {
            "format_version": FORMAT_VERSION,
            "schema_fingerprint": self.schema.fingerprint,
            "encoder_fingerprint": self.encoder.fingerprint,
            "weights_sha256": files.sha256_of(directory / WEIGHTS),
            "served_length": self.served_length,
            "model": dataclasses.asdict(self.config),
            "schema": self.schema.to_dict(),
        }
        version = _version(meta)
        files.write_json(directory / META, {"version": version, **meta, "facts": dict(self.facts)})
        return version

    @classmethod
    def load(
        cls, directory: str | Path, device: str | torch.device = "cpu", schema: Schema | None = None
    ) -> Bundle:
        """Returns the bundle in a directory, its ranker on `device` and in evaluation mode.

        Args:
            directory: where it was saved.
            device: of the ranker.
            schema: what the caller works with; None to take the saved one as it is.

        Raises:
            SchemaMismatch: the bundle was trained for another schema; lists the fields.
            DataError: a file is missing, damaged, of another format or does not fit the others.
        """
        directory = Path(directory)
        meta = _read_meta(directory)
        saved = Schema.from_dict(meta["schema"])
        if saved.fingerprint != meta["schema_fingerprint"]:
            raise DataError(
                f"{directory / META} is damaged",
                found=f"schema {saved.fingerprint}",
                expected=meta["schema_fingerprint"],
            )
        if schema is not None and (lines := schema.differences(saved)):
            raise SchemaMismatch(
                "the bundle was trained for another schema",
                found="; ".join(lines),
                fix="Train again on this schema.",
            )
        encoder = Encoder.load(directory / ENCODER, saved)
        for name, found in (
            ("encoder_fingerprint", encoder.fingerprint),
            ("weights_sha256", _sha256(directory / WEIGHTS)),
            ("version", _version(meta)),
        ):
            if meta[name] != found:
                what = f"{directory} is damaged: {name} does not fit"
                raise DataError(
                    what, found=found, expected=meta[name], fix="Copy or train it again."
                )
        config = configuration.build(ModelConfig, meta["model"], where="model")
        ranker = Ranker(config, saved, encoder.sizes, torch.from_numpy(encoder.item_table))
        _load_weights(ranker, directory / WEIGHTS)
        return cls(
            ranker.to(device).eval(),
            encoder,
            config,
            meta["served_length"],
            meta["facts"],
            meta["version"],
        )


def _version(meta: Mapping[str, Any]) -> str:
    names = (
        "format_version",
        "schema_fingerprint",
        "encoder_fingerprint",
        "weights_sha256",
        "served_length",
        "model",
    )
    text = json.dumps({name: meta[name] for name in names}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_meta(directory: Path) -> dict[str, Any]:
    meta = files.read_json(directory / META)
    if not isinstance(meta, dict) or meta.get("format_version") != FORMAT_VERSION:
        found = meta.get("format_version") if isinstance(meta, dict) else type(meta).__name__
        raise DataError(
            f"{directory / META} has another format", found=found, expected=FORMAT_VERSION
        )
    expected = {
        "version",
        "schema_fingerprint",
        "encoder_fingerprint",
        "weights_sha256",
        "served_length",
        "model",
        "schema",
        "facts",
    }
    if missing := sorted(expected - meta.keys()):
        raise DataError(
            f"{directory / META} is incomplete",
            found=f"no {', '.join(missing)}",
            fix="Copy or train it again.",
        )
    return cast("dict[str, Any]", meta)


def _sha256(path: Path) -> str:
    try:
        return files.sha256_of(path)
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist",
            expected="the weights of a bundle",
            fix="Copy or train it again.",
        ) from error


def _load_weights(ranker: Ranker, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(path)
        ranker.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise DataError(
            f"{path} does not fit the model", found=first, fix="Copy or train it again."
        ) from error
