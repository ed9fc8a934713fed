"""Training: it learns, two runs are equal, and its bundle, curve and report are complete."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.checkpoint import checkpoint

from longrec.config import TrainConfig
from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.data.loading.length_sampler import LengthSampler
from longrec.data.loading.request_stream import RequestStream
from longrec.errors import ConfigError
from longrec.nn import stca
from longrec.scoring.bundle import Bundle
from longrec.training import losses
from longrec.training import optimizers as optim
from longrec.training.curve import CurveRow
from longrec.training.encoded_cache import fit_encoder
from longrec.training.loop import make_ranker
from longrec.training.recipe.schedule import learning_rate_scale
from longrec.training.report import TrainReport
from tests.longrec import small_histories
from tests.longrec.training.small_training import (
    LENGTHS,
    MODEL,
    SEED,
    read_curve,
    train_small,
)

Trained: TypeAlias = tuple[Path, TrainReport]
TRAIN = TrainConfig(
    epochs=10,
    token_budget=300,
    max_requests_per_batch=16,
    learning_rate=5e-3,
    log_every=10,
    device="cpu",
)
BRIEF = dataclasses.replace(TRAIN, epochs=2)
CONSTANT_LOSS = 0.475
"""Loss of predicting both rates."""


@pytest.fixture(scope="module")
def trained(histories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    return out, train_small(histories_dir, out, TRAIN)


def weights_of(bundle_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(bundle_dir / "model.safetensors")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_loss_falls(trained: Trained) -> None:
    _, report = trained
    assert report.final_loss < 0.9 * CONSTANT_LOSS
    assert report.first_loss > CONSTANT_LOSS


def test_two_runs_give_the_same_weights_bit_for_bit(histories_dir: Path, tmp_path: Path) -> None:
    # more than one epoch
    config = dataclasses.replace(BRIEF, max_steps=30)
    first = train_small(histories_dir, tmp_path / "first", config)
    # the state of the global generator must not matter
    torch.rand(3)
    again = train_small(histories_dir, tmp_path / "again", config)
    weights = weights_of(tmp_path / "first")
    others = weights_of(tmp_path / "again")
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name])
    assert again.version == first.version
    assert again.final_loss == first.final_loss
    other = train_small(
        histories_dir,
        tmp_path / "other",
        config,
        seed=4,
    )
    assert other.version != first.version


def test_recomputation_changes_no_weight(
    histories_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def counted(function: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(function)
        return checkpoint(function, *arguments, **options)

    monkeypatch.setattr(stca, "checkpoint", counted)
    config = dataclasses.replace(BRIEF, max_steps=10)
    stored = train_small(histories_dir, tmp_path / "stored", config)
    assert not calls
    recomputing = dataclasses.replace(config, recompute=True)
    recomputed = train_small(histories_dir, tmp_path / "recomputed", recomputing)
    assert calls
    assert recomputed.version == stored.version
    assert recomputed.final_loss == stored.final_loss


def test_recomputation_is_refused_for_models_without_separate_histories(
    histories_dir: Path,
    tmp_path: Path,
) -> None:
    config = dataclasses.replace(
        BRIEF,
        recompute=True,
        max_steps=10,
    )
    model = dataclasses.replace(MODEL, kind="din")
    with pytest.raises(ConfigError, match="apart from its targets"):
        train_small(
            histories_dir,
            tmp_path / "other",
            config,
            model=model,
        )


def test_the_loop_equals_a_page_of_plain_pytorch(histories_dir: Path, tmp_path: Path) -> None:
    num_steps = 12
    config = dataclasses.replace(BRIEF, max_steps=num_steps)
    train_small(histories_dir, tmp_path / "bundle", config)
    histories = Histories.open(histories_dir)
    encoder = fit_encoder(histories)
    ranker = make_ranker(MODEL, encoder, SEED)
    encoded = EncodedHistories.encode(histories, encoder, tmp_path / "encoded")
    optimizers = optim.build(ranker, BRIEF)
    stream = RequestStream.for_training(
        encoded,
        LengthSampler(LENGTHS, SEED),
        token_budget=BRIEF.token_budget,
        max_requests=BRIEF.max_requests_per_batch,
        seed=SEED,
    )
    for step in range(num_steps):
        batch = stream.batch(step)
        for parameter in ranker.parameters():
            parameter.grad = None
        losses.total(ranker(batch), batch, BRIEF).backward()
        scale = learning_rate_scale(step, num_steps=num_steps, config=BRIEF)
        optimizers.step(scale)
    trained_weights = weights_of(tmp_path / "bundle")
    for name, tensor in ranker.state_dict().items():
        assert torch.equal(tensor, trained_weights[name]), name


def test_the_global_random_state_is_left_alone(histories_dir: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    config = dataclasses.replace(BRIEF, max_steps=2)
    train_small(histories_dir, tmp_path / "bundle", config)
    assert torch.equal(torch.rand(3), expected)


def test_the_report_counts_what_was_seen(histories_dir: Path, trained: Trained) -> None:
    out, report = trained
    histories = Histories.open(histories_dir)
    splits = histories.requests.column("split").to_pylist()
    assert report.num_requests == TRAIN.epochs * splits.count("train")
    assert report.mean_length == pytest.approx(report.num_events / report.num_requests)
    assert 0 < report.mean_length < 30
    rows = read_curve(out)
    assert int(rows[-1]["events"]) == report.num_events
    assert int(rows[-1]["targets"]) == report.num_targets


def test_the_curve_has_a_row_every_log_every_steps(trained: Trained) -> None:
    out, report = trained
    rows = read_curve(out)
    steps = [int(row["step"]) for row in rows]
    every_tenth = range(10, report.num_steps + 1, 10)
    assert steps == sorted({*every_tenth, report.num_steps})
    weights = np.diff([0, *steps]) / report.num_steps
    row_losses = [float(row["loss"]) for row in rows]
    assert sum(weights * row_losses) < report.first_loss
    rates = [float(row["learning_rate"]) for row in rows]
    assert max(rates) <= TRAIN.learning_rate
    assert rates[-1] == pytest.approx(0.1 * TRAIN.learning_rate)


def test_the_curve_shows_speed_and_memory(trained: Trained) -> None:
    out, report = trained
    rows = read_curve(out)
    # no peak is stated for a CPU
    assert report.mfu is None
    assert report.peak_flops is None
    assert "mfu" not in rows[0]
    seconds = np.diff([0, *(float(row["seconds"]) for row in rows)])
    events = np.diff([0, *(int(row["events"]) for row in rows)])
    events_per_second = [float(row["events_per_second"]) for row in rows]
    assert events_per_second == pytest.approx((events / seconds).tolist())
    assert all(float(row["gradient_norm"]) > 0 for row in rows)
    assert 50e6 < report.memory_bytes < 50e9
    assert float(rows[-1]["memory_bytes"]) == report.memory_bytes


def test_the_bundle_states_its_training(trained: Trained) -> None:
    out, report = trained
    meta = json.loads((out / "bundle.json").read_text())
    assert meta["version"] == report.version
    assert meta["served_length"] == 64
    assert meta["facts"]["num_steps"] == report.num_steps
    assert meta["facts"]["seed"] == SEED
    assert names_in(out) == [
        "bundle.json",
        "encoder",
        "model.safetensors",
        "training_curve.csv",
    ]
    # the encoded cache is gone
    assert names_in(out.parent) == ["bundle", "bundle.tensorboard"]


def test_the_encoder_sees_the_training_window_only(histories_dir: Path) -> None:
    histories = Histories.open(histories_dir)
    encoder = fit_encoder(histories)
    num_items = small_histories.NUM_ITEMS
    counts = np.zeros(num_items, np.int64)
    for batch in histories.event_batches():
        ids = np.asarray(batch.column("item_id"))
        times = np.asarray(batch.column("timestamp"))
        is_before = times < small_histories.SPLIT_MS
        np.add.at(counts, ids[is_before] - small_histories.FIRST_ID, 1)
    targets = histories.targets.to_pydict()
    for request in histories.requests.to_pylist():
        if request["split"] != "train":
            continue
        own = slice(request["target_start"], request["target_end"])
        for item in targets["item_id"][own]:
            if item != small_histories.UNKNOWN_ID:
                counts[item - small_histories.FIRST_ID] += 1
    order = sorted(range(num_items), key=lambda item: (-counts[item], item))
    known = [item for item in order if counts[item] >= 2]
    expected = np.ones(num_items, np.int64)
    expected[known] = 2 + np.arange(len(known))
    assert encoder.item_table[1:, 0].tolist() == expected.tolist()


def test_steps_can_be_bounded_and_progress_is_reported(
    histories_dir: Path,
    tmp_path: Path,
) -> None:
    reported = []

    def listen(row: CurveRow, num_steps: int) -> None:
        reported.append((row.step, num_steps))

    config = dataclasses.replace(
        TRAIN,
        max_steps=7,
        log_every=3,
    )
    report = train_small(
        histories_dir,
        tmp_path / "bundle",
        config,
        on_progress=listen,
    )
    assert report.num_steps == 7
    assert reported == [(3, 7), (6, 7), (7, 7)]


def test_bfloat16_trains_too(histories_dir: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(BRIEF, precision="bfloat16")
    report = train_small(histories_dir, tmp_path / "bundle", config)
    assert report.precision == "bfloat16"
    assert report.final_loss < report.first_loss
    ranker = Bundle.load(tmp_path / "bundle").ranker
    for parameter in ranker.parameters():
        assert parameter.dtype == torch.float32


def test_tensorboard_shows_the_curve(histories_dir: Path, tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    rows: list[CurveRow] = []
    config = dataclasses.replace(
        BRIEF,
        max_steps=9,
        log_every=2,
    )
    train_small(
        histories_dir,
        tmp_path / "bundle",
        config,
        on_progress=lambda row, _: rows.append(row),
    )
    [folder] = (tmp_path / "bundle.tensorboard").iterdir()
    shown = accumulators.EventAccumulator(str(folder))
    shown.Reload()
    tags = set(shown.Tags()["scalars"])
    assert tags >= {
        "train/loss",
        "train/learning_rate",
        "train/gradient_norm",
        "train/events_per_second",
        "train/targets_per_second",
    }
    scalars = [(entry.step, entry.value) for entry in shown.Scalars("train/loss")]
    assert scalars == [(row.step, pytest.approx(row.loss)) for row in rows]
    assert len(rows) == 5


def test_tensorboard_can_be_turned_off(histories_dir: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(
        BRIEF,
        max_steps=9,
        tensorboard=False,
    )
    train_small(histories_dir, tmp_path / "quiet", config)
    assert not (tmp_path / "quiet.tensorboard").exists()
