"""Bundle: a round trip changes nothing; damage and mismatch are refused in one line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longrec.config import ModelConfig
from longrec.data.histories import Histories
from longrec.errors import DataError, LongrecError, SchemaMismatch
from longrec.schema import Schema
from longrec.scoring.bundle import Bundle
from longrec.training.encoded_cache import fit_encoder
from longrec.training.loop import make_ranker
from tests.longrec import small_histories

MODEL = ModelConfig(
    width=16,
    num_layers=2,
    num_heads=2,
    id_dim=8,
    feature_dim=4,
    mixer_layers=1,
)
SERVED_LENGTH = 64


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("small")
    histories = Histories.open(small_histories.write(folder / "histories"))
    encoder = fit_encoder(histories)
    facts = {"num_steps": 5, "device": "cpu"}
    return Bundle(
        make_ranker(MODEL, encoder, 0),
        encoder,
        MODEL,
        SERVED_LENGTH,
        facts,
    )


def test_a_round_trip_changes_nothing(
    bundle: Bundle,
    tmp_path: Path,
) -> None:
    version = bundle.save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle", schema=small_histories.SCHEMA)
    assert loaded.version == version
    assert loaded.served_length == SERVED_LENGTH
    assert loaded.config == MODEL
    assert dict(loaded.facts) == dict(bundle.facts)
    assert loaded.schema == small_histories.SCHEMA
    assert loaded.encoder.fingerprint == bundle.encoder.fingerprint
    before = bundle.ranker.state_dict()
    after = loaded.ranker.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name])
    assert not loaded.ranker.training
    assert loaded.save(tmp_path / "again") == version


def test_the_version_depends_on_weights_and_served_length(
    bundle: Bundle,
    tmp_path: Path,
) -> None:
    other_ranker = make_ranker(MODEL, bundle.encoder, 1)
    base = bundle.save(tmp_path / "base")
    longer = dataclasses.replace(bundle, served_length=128).save(tmp_path / "longer")
    other = dataclasses.replace(bundle, ranker=other_ranker).save(tmp_path / "other")
    same = dataclasses.replace(bundle, facts={"num_steps": 6}).save(tmp_path / "same")
    assert same == base
    assert len({base, longer, other}) == 3


def test_another_schema_is_refused_with_its_fields(
    bundle: Bundle,
    tmp_path: Path,
) -> None:
    bundle.save(tmp_path / "bundle")
    schema = small_histories.SCHEMA
    other = Schema(
        schema.name,
        schema.item,
        (),
        schema.event,
        schema.tasks,
    )
    with pytest.raises(SchemaMismatch, match=r"user\.region"):
        Bundle.load(tmp_path / "bundle", schema=other)


def test_an_unknown_format_is_refused_with_the_command_that_rebuilds_it(
    bundle: Bundle,
    tmp_path: Path,
) -> None:
    bundle.save(tmp_path / "bundle")
    change("format_version", 99)(tmp_path / "bundle")
    message = (
        r"bundle.json has an unknown format version; found 99; expected 1\. Rebuild the bundle"
        r" with this version of longrec: longrec train HISTORIES OUT"
    )
    with pytest.raises(DataError, match=message):
        Bundle.load(tmp_path / "bundle")


def damage_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def truncate_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def change(
    key: str,
    value: Any,
) -> Callable[[Path], None]:
    """Return a function that changes a key of bundle.json."""

    def write(directory: Path) -> None:
        path = directory / "bundle.json"
        meta = json.loads(path.read_text())
        meta[key] = value
        path.write_text(json.dumps(meta))

    return write


def change_schema_rule(directory: Path) -> None:
    path = directory / "bundle.json"
    meta = json.loads(path.read_text())
    meta["schema"]["item"][1]["num_oov"] = 7
    path.write_text(json.dumps(meta))


def remove(name: str) -> Callable[[Path], None]:
    """Return a function that removes a file of the bundle."""
    return lambda directory: (directory / name).unlink()


def overwrite(
    name: str,
    content: bytes,
) -> Callable[[Path], Any]:
    """Return a function that overwrites a file of the bundle."""
    return lambda directory: (directory / name).write_bytes(content)


DAMAGES = {
    "weights changed": damage_weights,
    "weights truncated": truncate_weights,
    "weights missing": remove("model.safetensors"),
    "meta missing": remove("bundle.json"),
    "meta not JSON": overwrite("bundle.json", b"{"),
    "meta not a mapping": overwrite("bundle.json", b"[1]"),
    "meta incomplete": overwrite("bundle.json", b'{"format_version": 1}'),
    "another format": change("format_version", 99),
    "another length": change("served_length", 7),
    "another model": change("model", {"width": 32}),
    "another schema rule": change_schema_rule,
    "encoder missing": remove("encoder/encoder.json"),
    "encoder of another": overwrite("encoder/encoder.safetensors", b"12345678"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_in_one_line(
    bundle: Bundle,
    tmp_path: Path,
    name: str,
) -> None:
    bundle.save(tmp_path / "bundle")
    DAMAGES[name](tmp_path / "bundle")
    with pytest.raises(LongrecError) as caught:
        Bundle.load(tmp_path / "bundle")
    assert isinstance(caught.value, (DataError, SchemaMismatch))
    assert "\n" not in str(caught.value)


def test_a_missing_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        Bundle.load(tmp_path / "nowhere")
