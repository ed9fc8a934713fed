"""Training on a GPU: it states its share of the peak, resumes, and a step waits for nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from longrec.config import TrainConfig
from longrec.data.histories import Histories
from longrec.data.loading.length_sampler import LengthSampler
from longrec.data.loading.prefetch import prefetch, prefetch_to_device
from longrec.training import encoded_cache, loop
from longrec.training.curve import CurveRow
from longrec.training.trainer import LOSS_LAG, Trainer
from tests.longrec.training.small_training import LENGTHS, MODEL, SEED, train_small

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="this machine has no GPU",
)
CONFIG = TrainConfig(
    epochs=2,
    token_budget=300,
    max_requests_per_batch=16,
    learning_rate=5e-3,
    log_every=10,
    device="cuda",
)
NUM_STEPS = 8


def test_the_share_of_the_peak_is_stated(histories_dir: Path, tmp_path: Path) -> None:
    report = train_small(histories_dir, tmp_path / "bundle", CONFIG)
    assert report.mfu is not None
    assert 0 < report.mfu < 1
    assert report.peak_flops
    assert report.peak_flops > 1e14


def test_an_interrupted_training_resumes(histories_dir: Path, tmp_path: Path) -> None:
    """In float32: sums in any order change the last loss by 1e-3, in bfloat16 by 1e-2."""

    def stop(row: CurveRow, _: int) -> None:
        if row.step == 10:
            raise KeyboardInterrupt

    config = dataclasses.replace(
        CONFIG,
        precision="float32",
        log_every=1,
        checkpoint_every=4,
    )
    whole = train_small(histories_dir, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train_small(
            histories_dir,
            tmp_path / "stopped",
            config,
            on_progress=stop,
        )
    resumed = train_small(histories_dir, tmp_path / "stopped", config)
    assert resumed.num_events == whole.num_events
    assert resumed.final_loss == pytest.approx(whole.final_loss, abs=0.02)


def test_a_step_waits_for_nothing(histories_dir: Path, tmp_path: Path) -> None:
    histories = Histories.open(histories_dir)
    encoder, encoded = encoded_cache.encode(histories, tmp_path / "encoded")
    [stream, _] = loop.training_streams(
        encoded,
        LengthSampler(LENGTHS, SEED),
        CONFIG,
        seed=SEED,
    )
    ranker = loop.make_ranker(MODEL, encoder, SEED).cuda()
    trainer = Trainer(
        ranker,
        CONFIG,
        num_steps=50,
        precision="bfloat16",
        failed_batch=tmp_path / "failed",
    )
    packed = prefetch(
        [stream],
        num_workers=2,
        pin=True,
    )
    batches = prefetch_to_device(packed, trainer.device)
    trainer.start()
    for number, (host, batch) in zip(range(NUM_STEPS), batches, strict=False):
        assert torch.equal(batch.event_items.cpu(), stream.batch(number).event_items)
        torch.cuda.set_sync_debug_mode("error" if number > 2 else "default")
        try:
            trainer.step([(host, batch)])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # the last losses have not been read yet
    assert trainer.state.step == NUM_STEPS - LOSS_LAG
    trainer.flush()
    assert trainer.state.step == NUM_STEPS
