"""Training: it learns, it is the same twice, it stops on a loss that is not finite, and what it writes is whole."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.checkpoint import checkpoint

from longrec import losses, optim
from longrec import train as training
from longrec.bundle import Bundle
from longrec.config import LengthConfig, ModelConfig, TrainConfig
from longrec.data.histories import Histories
from longrec.data.lengths import LengthLaw
from longrec.data.stream import EncodedHistories, RequestStream
from longrec.errors import ConfigError, DataError, LongrecError
from longrec.nn import stca
from tests.longrec import small_world

MODEL = ModelConfig(width=16, num_layers=2, num_heads=2, id_dim=8, feature_dim=4, mixer_layers=1)
LENGTHS = LengthConfig("beta", 0, 32, 64)
TRAIN = TrainConfig(epochs=15, token_budget=300, max_requests_per_batch=16, learning_rate=5e-3, log_every=10, device="cpu")
BRIEF = dataclasses.replace(TRAIN, epochs=2)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world.write(tmp_path_factory.mktemp("world") / "histories")


@pytest.fixture(scope="module")
def trained(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, training.TrainReport]:
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    return out, training.train(directory, out, MODEL, LENGTHS, TRAIN, 64, 3)


def test_the_loss_falls(trained) -> None:
    _, report = trained
    constant = 0.475  # the loss of predicting both rates
    assert report.final_loss < 0.9 * constant < constant < report.first_loss


def test_two_runs_give_the_same_weights_bit_for_bit(directory: Path, tmp_path: Path) -> None:
    first = training.train(directory, tmp_path / "first", MODEL, LENGTHS, BRIEF, 64, 3)
    torch.rand(3)  # the state of the global generator must not matter
    again = training.train(directory, tmp_path / "again", MODEL, LENGTHS, BRIEF, 64, 3)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert again.version == first.version and again.final_loss == first.final_loss
    other = training.train(directory, tmp_path / "other", MODEL, LENGTHS, BRIEF, 64, 4)
    assert other.version != first.version


def test_recomputation_changes_no_weight_and_is_refused_where_it_means_nothing(
        directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recomputing, encoded = dataclasses.replace(BRIEF, recompute=True, max_steps=10), []
    monkeypatch.setattr(stca, "checkpoint", lambda function, *rest, **how: encoded.append(1) or checkpoint(function, *rest, **how))
    kept = training.train(directory, tmp_path / "kept", MODEL, LENGTHS, dataclasses.replace(recomputing, recompute=False), 64, 3)
    assert not encoded
    again = training.train(directory, tmp_path / "again", MODEL, LENGTHS, recomputing, 64, 3)
    assert encoded and again.version == kept.version and again.final_loss == kept.final_loss
    with pytest.raises(ConfigError, match="apart from its targets"):
        training.train(directory, tmp_path / "other", dataclasses.replace(MODEL, kind="din"), LENGTHS, recomputing, 64, 3)


def test_the_loop_equals_a_page_of_plain_pytorch(directory: Path, tmp_path: Path) -> None:
    training.train(directory, tmp_path / "bundle", MODEL, LENGTHS, dataclasses.replace(BRIEF, max_steps=12), 64, 3)
    histories = Histories.open(directory)
    encoder = training.fit_encoder(histories)
    ranker = training.make_ranker(MODEL, encoder, 3)
    encoded = EncodedHistories.make(histories, encoder, tmp_path / "encoded")
    optimizers = optim.build(ranker, BRIEF)
    stream = RequestStream.training(encoded, LengthLaw(LENGTHS, 3), token_budget=300, max_requests=16, seed=3)
    for step in range(12):
        batch = stream.batch(step)
        for p in ranker.parameters():
            p.grad = None
        losses.total(ranker(batch), batch, BRIEF).backward()
        optimizers.step(optim.schedule(step, num_steps=12, warmup_fraction=BRIEF.warmup_fraction))
    trained = load_file(tmp_path / "bundle" / "model.safetensors")
    for name, tensor in ranker.state_dict().items():
        assert torch.equal(tensor, trained[name]), name


def test_the_global_random_state_is_left_alone(directory: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    training.train(directory, tmp_path / "bundle", MODEL, LENGTHS, dataclasses.replace(BRIEF, max_steps=2), 64, 3)
    assert torch.equal(torch.rand(3), expected)


def test_the_report_counts_what_was_seen(directory: Path, trained) -> None:
    out, report = trained
    histories = Histories.open(directory)
    splits = histories.requests.column("split").to_pylist()
    assert report.num_requests == TRAIN.epochs * splits.count("train")
    assert report.mean_length == pytest.approx(report.num_events / report.num_requests)
    assert 0 < report.mean_length < 30
    with open(out / "training_curve.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == sorted({*range(10, report.num_steps + 1, 10), report.num_steps})
    assert int(rows[-1]["events"]) == report.num_events and int(rows[-1]["targets"]) == report.num_targets
    steps = [int(row["step"]) for row in rows]
    weights = np.diff([0, *steps]) / report.num_steps
    assert sum(weights * [float(row["loss"]) for row in rows]) < report.first_loss
    rates = [float(row["learning_rate"]) for row in rows]
    assert max(rates) <= TRAIN.learning_rate and rates[-1] == pytest.approx(0.1 * TRAIN.learning_rate)


def test_the_bundle_states_its_training(trained) -> None:
    out, report = trained
    meta = json.loads((out / "bundle.json").read_text())
    assert meta["version"] == report.version and meta["served_length"] == 64
    assert meta["facts"]["num_steps"] == report.num_steps and meta["facts"]["seed"] == 3
    assert sorted(path.name for path in out.iterdir()) == ["bundle.json", "encoder", "model.safetensors", "training_curve.csv"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["bundle", "bundle.tensorboard"]  # the encoded cache is gone


def test_the_encoder_sees_the_training_window_only(directory: Path) -> None:
    histories = Histories.open(directory)
    encoder = training.fit_encoder(histories)
    counts = np.zeros(small_world.NUM_ITEMS, np.int64)
    for batch in histories.event_batches():
        ids, times = (np.asarray(batch.column(name)) for name in ("item_id", "timestamp"))
        np.add.at(counts, ids[times < small_world.SPLIT_MS] - small_world.FIRST_ID, 1)
    targets, requests = histories.targets.to_pydict(), histories.requests.to_pydict()
    for split, start, end in zip(requests["split"], requests["target_start"], requests["target_end"], strict=True):
        if split == "train":
            for item in targets["item_id"][start:end]:
                if item != 42:
                    counts[item - small_world.FIRST_ID] += 1
    order = sorted(range(small_world.NUM_ITEMS), key=lambda item: (-counts[item], item))
    known = [item for item in order if counts[item] >= 2]
    expected = np.ones(small_world.NUM_ITEMS, np.int64)
    expected[known] = 2 + np.arange(len(known))
    assert encoder.item_table[1:, 0].tolist() == expected.tolist()


def test_steps_can_be_bounded_and_progress_is_told(directory: Path, tmp_path: Path) -> None:
    told = []
    config = dataclasses.replace(TRAIN, max_steps=7, log_every=3)
    report = training.train(directory, tmp_path / "bundle", MODEL, LENGTHS, config, 64, 3, on_progress=lambda *row: told.append(row))
    assert report.num_steps == 7
    assert [(row.step, total) for row, total in told] == [(3, 7), (6, 7), (7, 7)]


def test_a_loss_that_is_not_finite_stops_with_the_batch_saved(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = training.make_ranker

    def poisoned(*arguments):
        ranker = make(*arguments)
        with torch.no_grad():
            next(iter(ranker.parameters())).fill_(float("nan"))
        return ranker

    monkeypatch.setattr(training, "make_ranker", poisoned)
    with pytest.raises(LongrecError, match=r"loss is nan at step 1.*failed_batch"):
        training.train(directory, tmp_path / "bundle", MODEL, LENGTHS, TRAIN, 64, 3)
    saved = load_file(tmp_path / "bundle" / "failed_batch.safetensors")
    assert saved["event_offsets"][-1] == len(saved["event_items"]) and len(saved["labels"]) == len(saved["target_items"])
    assert not (tmp_path / "bundle" / "bundle.json").exists()


def test_no_training_request_is_one_line(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    world = small_world.write(tmp_path / "histories")
    table = pq.read_table(world / "requests.parquet")
    position = table.schema.get_field_index("split")
    pq.write_table(table.set_column(position, "split", pa.array(["eval"] * table.num_rows)), world / "requests.parquet")
    with pytest.raises(DataError, match="no training request") as caught:
        training.train(world, tmp_path / "bundle", MODEL, LENGTHS, TRAIN, 64, 3)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no GPU"):
        training.train(directory, tmp_path / "bundle", MODEL, LENGTHS, dataclasses.replace(BRIEF, device="cuda"), 64, 3)


def test_bfloat16_trains_too(directory: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(BRIEF, precision="bfloat16")
    report = training.train(directory, tmp_path / "bundle", MODEL, LENGTHS, config, 64, 3)
    assert report.precision == "bfloat16" and report.final_loss < report.first_loss
    assert all(p.dtype == torch.float32 for p in Bundle.load(tmp_path / "bundle").ranker.parameters())
