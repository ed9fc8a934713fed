"""The bundle: a round trip changes nothing, damage and mismatch are refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

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

MODEL = ModelConfig(width=16, num_layers=2, num_heads=2, id_dim=8, feature_dim=4, mixer_layers=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    encoder = fit_encoder(
        Histories.open(small_histories.write(tmp_path_factory.mktemp("world") / "histories"))
    )
    return Bundle(
        make_ranker(MODEL, encoder, 0), encoder, MODEL, 64, {"num_steps": 5, "device": "cpu"}
    )


def test_a_round_trip_changes_nothing(bundle: Bundle, tmp_path: Path) -> None:
    version = bundle.save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle", schema=small_histories.SCHEMA)
    assert (loaded.version, loaded.served_length, loaded.config, dict(loaded.facts)) == (
        version,
        64,
        MODEL,
        dict(bundle.facts),
    )
    assert (
        loaded.schema == small_histories.SCHEMA
        and loaded.encoder.fingerprint == bundle.encoder.fingerprint
    )
    before, after = bundle.ranker.state_dict(), loaded.ranker.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )
    assert not loaded.ranker.training
    assert loaded.save(tmp_path / "again") == version


def test_the_version_is_of_the_weights_and_what_is_served(bundle: Bundle, tmp_path: Path) -> None:
    base = bundle.save(tmp_path / "a")
    longer = Bundle(bundle.ranker, bundle.encoder, MODEL, 128, bundle.facts).save(tmp_path / "b")
    other = Bundle(
        make_ranker(MODEL, bundle.encoder, 1), bundle.encoder, MODEL, 64, bundle.facts
    ).save(tmp_path / "c")
    same = Bundle(bundle.ranker, bundle.encoder, MODEL, 64, {"num_steps": 6}).save(tmp_path / "d")
    assert same == base and len({base, longer, other}) == 3


def test_another_schema_is_refused_with_its_fields(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "bundle")
    schema = small_histories.SCHEMA
    other = Schema(schema.name, schema.item, (), schema.event, schema.tasks)
    with pytest.raises(SchemaMismatch, match=r"user\.region"):
        Bundle.load(tmp_path / "bundle", schema=other)


def damage_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def truncate_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def change(key: str, value: object):
    def write(directory: Path) -> None:
        path = directory / "bundle.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return write


def change_rule(directory: Path) -> None:
    path = directory / "bundle.json"
    meta = json.loads(path.read_text())
    meta["schema"]["item"][1]["num_oov"] = 7
    path.write_text(json.dumps(meta))


DAMAGES = {
    "weights changed": damage_weights,
    "weights truncated": truncate_weights,
    "weights missing": lambda directory: (directory / "model.safetensors").unlink(),
    "meta missing": lambda directory: (directory / "bundle.json").unlink(),
    "meta not JSON": lambda directory: (directory / "bundle.json").write_text("{"),
    "meta not a mapping": lambda directory: (directory / "bundle.json").write_text("[1]"),
    "meta incomplete": lambda directory: (directory / "bundle.json").write_text(
        '{"format_version": 1}'
    ),
    "another format": change("format_version", 99),
    "another length": change("served_length", 7),
    "another model": change("model", {"width": 32}),
    "another schema rule": change_rule,
    "encoder missing": lambda directory: (directory / "encoder" / "encoder.json").unlink(),
    "encoder of another": lambda directory: (
        directory / "encoder" / "encoder.safetensors"
    ).write_bytes(b"12345678"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_in_one_line(bundle: Bundle, tmp_path: Path, name: str) -> None:
    bundle.save(tmp_path / "bundle")
    DAMAGES[name](tmp_path / "bundle")
    with pytest.raises(LongrecError) as caught:
        Bundle.load(tmp_path / "bundle")
    assert isinstance(caught.value, (DataError, SchemaMismatch)) and "\n" not in str(caught.value)


def test_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        Bundle.load(tmp_path / "nowhere")
