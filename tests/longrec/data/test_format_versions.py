"""Format versions: older datasets, histories, feature tables and encoders are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longrec.config import DataConfig
from longrec.data import features
from longrec.data.dataset import Dataset
from longrec.data.encoder import Encoder
from longrec.data.histories import Histories
from longrec.errors import DataError
from tests.longrec import small_histories
from tests.longrec.data import random_log


def rewrite_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def set_version(path: Path, version: int | None) -> None:
    """Write another format version into a JSON file; None removes the key."""

    def change(content: dict[str, Any]) -> None:
        content["format_version"] = version
        if version is None:
            del content["format_version"]

    rewrite_json(path, change)


def test_a_dataset_of_version_1_is_refused_with_the_import_command(tmp_path: Path) -> None:
    """Version 1 called the fact `best_possible_auc` `bayes_auc`."""
    source = random_log.write(tmp_path / "data")
    set_version(source.path / "dataset.json", 1)
    message = (
        r"dataset.json has another format version; found 1; expected 2\. "
        r"Import the data again \(longrec import, longrec synth\)"
    )
    with pytest.raises(DataError, match=message):
        Dataset.open(source.path)


def test_histories_of_version_1_are_refused_with_the_retrieve_step(tmp_path: Path) -> None:
    """Version 1 called the key `split_time_ms` `split_moment_ms`."""
    directory = small_histories.write(tmp_path / "histories")
    set_version(directory / "manifest.json", 1)
    message = (
        r"manifest.json has another format version; found 1; expected 2\. "
        r"Make the histories again \(step retrieve of longrec run\)"
    )
    with pytest.raises(DataError, match=message):
        Histories.open(directory)


def test_feature_tables_without_a_version_are_not_joined(tmp_path: Path) -> None:
    source = random_log.write(tmp_path / "data")
    features.build_features(source.path, tmp_path / "tables", DataConfig())
    set_version(tmp_path / "tables" / "manifest.json", None)
    message = (
        r"manifest.json has another format version; expected 1\. "
        r"Build all shards again \(step build-features of longrec run\)"
    )
    with pytest.raises(DataError, match=message):
        features.join_shards([tmp_path / "tables"], tmp_path / "joined")


def test_an_encoder_of_another_version_is_refused_with_the_train_command(tmp_path: Path) -> None:
    source = random_log.write(tmp_path / "data")
    encoder = Encoder.fit(
        source.schema,
        source.items(),
        source.users(),
        [],
    )
    encoder.save(tmp_path / "encoder")
    set_version(tmp_path / "encoder" / "encoder.json", 0)
    message = r"another format version; found 0; expected 1\. Train again \(longrec train\)"
    with pytest.raises(DataError, match=message):
        Encoder.load(tmp_path / "encoder")


@pytest.mark.parametrize("content", [[], "text", None])
def test_a_file_that_holds_no_object_is_refused(tmp_path: Path, content: object) -> None:
    source = random_log.write(tmp_path / "data")
    (source.path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="has another format version"):
        Dataset.open(source.path)
