"""Item ids that the training window holds too seldom share the embeddings of unknown ids."""

from __future__ import annotations

from pathlib import Path

from longrec.config import TrainConfig
from longrec.data.histories import Histories
from longrec.scoring.bundle import Bundle
from longrec.training import encoded_cache
from tests.longrec.training.small_training import train_small

MIN_COUNT = 40
CONFIG = TrainConfig(max_steps=1, device="cpu", tensorboard=False, id_min_count=MIN_COUNT)


def test_the_encoder_of_the_bundle_leaves_rare_ids_out(validated_dir: Path, tmp_path: Path) -> None:
    train_small(validated_dir, tmp_path / "bundle", CONFIG)
    bundle = Bundle.load(tmp_path / "bundle")
    expected = encoded_cache.fit_encoder(Histories.open(validated_dir), MIN_COUNT)
    every_id = encoded_cache.fit_encoder(Histories.open(validated_dir))
    assert bundle.encoder.fingerprint == expected.fingerprint
    [num_ids, *_] = bundle.encoder.sizes["item"]
    assert 2 < num_ids < every_id.sizes["item"][0]
    assert bundle.ranker.items.ids is not None
    assert bundle.ranker.items.ids.num_embeddings == num_ids


def test_encoded_files_of_another_count_are_not_reused(validated_dir: Path, tmp_path: Path) -> None:
    histories = Histories.open(validated_dir)
    sizes = []
    for count in (0, MIN_COUNT, MIN_COUNT, 0):
        encoder, _ = encoded_cache.encode(histories, tmp_path / "encoded", count)
        sizes.append(encoder.sizes["item"][0])
    assert sizes[0] == sizes[3] > sizes[1] == sizes[2]
