"""Training: it learns, it is the same twice, it stops on a loss that is not finite, and what it
writes is whole.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.checkpoint import checkpoint

from longrec.config import LengthConfig, ModelConfig, TrainConfig
from longrec.data.batch import RequestBatch
from longrec.data.histories import Histories
from longrec.data.length_sampler import LengthSampler
from longrec.data.loader import EncodedHistories, RequestStream, moved, prefetch
from longrec.errors import ConfigError, DataError, LongrecError
from longrec.nn import stca
from longrec.scoring.bundle import Bundle
from longrec.training import losses
from longrec.training import optimizers as optim
from longrec.training import train as training
from longrec.training.trainer import CurveRow, Trainer
from tests.longrec import small_histories

MODEL = ModelConfig(width=16, num_layers=2, num_heads=2, id_dim=8, feature_dim=4, mixer_layers=1)
LENGTHS = LengthConfig("beta", 0, 32, 64)
TRAIN = TrainConfig(
    epochs=15,
    token_budget=300,
    max_requests_per_batch=16,
    learning_rate=5e-3,
    log_every=10,
    device="cpu",
)
BRIEF = dataclasses.replace(TRAIN, epochs=2)


ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_histories.write(tmp_path_factory.mktemp("world") / "histories")


@pytest.fixture(scope="module")
def trained(
    directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, training.TrainReport]:
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
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recomputing, encoded = dataclasses.replace(BRIEF, recompute=True, max_steps=10), []
    monkeypatch.setattr(
        stca,
        "checkpoint",
        lambda function, *rest, **how: encoded.append(1) or checkpoint(function, *rest, **how),
    )
    kept = training.train(
        directory,
        tmp_path / "kept",
        MODEL,
        LENGTHS,
        dataclasses.replace(recomputing, recompute=False),
        64,
        3,
    )
    assert not encoded
    again = training.train(directory, tmp_path / "again", MODEL, LENGTHS, recomputing, 64, 3)
    assert encoded and again.version == kept.version and again.final_loss == kept.final_loss
    with pytest.raises(ConfigError, match="apart from its targets"):
        training.train(
            directory,
            tmp_path / "other",
            dataclasses.replace(MODEL, kind="din"),
            LENGTHS,
            recomputing,
            64,
            3,
        )


def test_the_loop_equals_a_page_of_plain_pytorch(directory: Path, tmp_path: Path) -> None:
    training.train(
        directory,
        tmp_path / "bundle",
        MODEL,
        LENGTHS,
        dataclasses.replace(BRIEF, max_steps=12),
        64,
        3,
    )
    histories = Histories.open(directory)
    encoder = training.fit_encoder(histories)
    ranker = training.make_ranker(MODEL, encoder, 3)
    encoded = EncodedHistories.make(histories, encoder, tmp_path / "encoded")
    optimizers = optim.build(ranker, BRIEF)
    stream = RequestStream.training(
        encoded, LengthSampler(LENGTHS, 3), token_budget=300, max_requests=16, seed=3
    )
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
    training.train(
        directory,
        tmp_path / "bundle",
        MODEL,
        LENGTHS,
        dataclasses.replace(BRIEF, max_steps=2),
        64,
        3,
    )
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
    assert [int(row["step"]) for row in rows] == sorted(
        {*range(10, report.num_steps + 1, 10), report.num_steps}
    )
    assert (
        int(rows[-1]["events"]) == report.num_events
        and int(rows[-1]["targets"]) == report.num_targets
    )
    steps = [int(row["step"]) for row in rows]
    weights = np.diff([0, *steps]) / report.num_steps
    assert sum(weights * [float(row["loss"]) for row in rows]) < report.first_loss
    rates = [float(row["learning_rate"]) for row in rows]
    assert max(rates) <= TRAIN.learning_rate and rates[-1] == pytest.approx(
        0.1 * TRAIN.learning_rate
    )


def test_the_bundle_states_its_training(trained) -> None:
    out, report = trained
    meta = json.loads((out / "bundle.json").read_text())
    assert meta["version"] == report.version and meta["served_length"] == 64
    assert meta["facts"]["num_steps"] == report.num_steps and meta["facts"]["seed"] == 3
    assert sorted(path.name for path in out.iterdir()) == [
        "bundle.json",
        "encoder",
        "model.safetensors",
        "training_curve.csv",
    ]
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "bundle",
        "bundle.tensorboard",
    ]  # the encoded cache is gone


def test_the_encoder_sees_the_training_window_only(directory: Path) -> None:
    histories = Histories.open(directory)
    encoder = training.fit_encoder(histories)
    counts = np.zeros(small_histories.NUM_ITEMS, np.int64)
    for batch in histories.event_batches():
        ids, times = (np.asarray(batch.column(name)) for name in ("item_id", "timestamp"))
        np.add.at(counts, ids[times < small_histories.SPLIT_MS] - small_histories.FIRST_ID, 1)
    targets, requests = histories.targets.to_pydict(), histories.requests.to_pydict()
    for split, start, end in zip(
        requests["split"], requests["target_start"], requests["target_end"], strict=True
    ):
        if split == "train":
            for item in targets["item_id"][start:end]:
                if item != 42:
                    counts[item - small_histories.FIRST_ID] += 1
    order = sorted(range(small_histories.NUM_ITEMS), key=lambda item: (-counts[item], item))
    known = [item for item in order if counts[item] >= 2]
    expected = np.ones(small_histories.NUM_ITEMS, np.int64)
    expected[known] = 2 + np.arange(len(known))
    assert encoder.item_table[1:, 0].tolist() == expected.tolist()


def test_steps_can_be_bounded_and_progress_is_told(directory: Path, tmp_path: Path) -> None:
    told = []
    config = dataclasses.replace(TRAIN, max_steps=7, log_every=3)
    report = training.train(
        directory,
        tmp_path / "bundle",
        MODEL,
        LENGTHS,
        config,
        64,
        3,
        on_progress=lambda *row: told.append(row),
    )
    assert report.num_steps == 7
    assert [(row.step, total) for row, total in told] == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_with_the_batch_it_came_from(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, device: str
) -> None:
    seen: list[RequestBatch] = []
    right = Trainer.loss

    def wrong(trainer: Trainer, batch: RequestBatch) -> torch.Tensor:
        seen.append(batch)
        loss = right(trainer, batch)
        if len(seen) != 6:
            return loss
        if broken == "gradient":
            loss.register_hook(lambda gradient: gradient * float("inf"))
            return loss
        return loss * float("nan")

    monkeypatch.setattr(Trainer, "loss", wrong)
    what = "training loss is nan" if broken == "loss" else "gradient norm is (nan|inf)"
    config = dataclasses.replace(BRIEF, device=device, precision="float32", checkpoint_every=4)
    with pytest.raises(LongrecError, match=rf"the {what} at step 6;.*failed_batch"):
        training.train(directory, tmp_path / "bundle", MODEL, LENGTHS, config, 64, 3)
    saved = load_file(tmp_path / "bundle" / "failed_batch.safetensors")
    for name in ("event_items", "event_offsets", "target_items", "labels", "request_timestamps"):
        assert torch.equal(saved[name], getattr(seen[5], name).cpu()), name
    assert not (tmp_path / "bundle" / "bundle.json").exists()
    assert (
        len(list(tmp_path.glob(".bundle.work/checkpoints/*/step-*"))) == 1
    )  # that of step 4: before the mistake


def test_no_training_request_is_one_line(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    world = small_histories.write(tmp_path / "histories")
    table = pq.read_table(world / "requests.parquet")
    position = table.schema.get_field_index("split")
    pq.write_table(
        table.set_column(position, "split", pa.array(["eval"] * table.num_rows)),
        world / "requests.parquet",
    )
    with pytest.raises(DataError, match="no training request") as caught:
        training.train(world, tmp_path / "bundle", MODEL, LENGTHS, TRAIN, 64, 3)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no GPU"):
        training.train(
            directory,
            tmp_path / "bundle",
            MODEL,
            LENGTHS,
            dataclasses.replace(BRIEF, device="cuda"),
            64,
            3,
        )


def test_bfloat16_trains_too(directory: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(BRIEF, precision="bfloat16")
    report = training.train(directory, tmp_path / "bundle", MODEL, LENGTHS, config, 64, 3)
    assert report.precision == "bfloat16" and report.final_loss < report.first_loss
    assert all(
        p.dtype == torch.float32 for p in Bundle.load(tmp_path / "bundle").ranker.parameters()
    )


def test_the_curve_tells_of_pace_and_memory(trained) -> None:
    out, report = trained
    with open(out / "training_curve.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert (
        report.mfu is None and report.peak_flops is None and "mfu" not in rows[0]
    )  # no peak is stated for a CPU
    seconds = np.diff([0, *(float(row["seconds"]) for row in rows)])
    events = np.diff([0, *(int(row["events"]) for row in rows)])
    assert [float(row["events_per_second"]) for row in rows] == pytest.approx(
        (events / seconds).tolist()
    )
    assert all(float(row["gradient_norm"]) > 0 for row in rows)
    assert (
        50e6 < report.memory_bytes < 50e9 and float(rows[-1]["memory_bytes"]) == report.memory_bytes
    )


def test_tensorboard_shows_the_curve(directory: Path, tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = dataclasses.replace(BRIEF, max_steps=9, log_every=2)
    rows = []
    training.train(
        directory,
        tmp_path / "bundle",
        MODEL,
        LENGTHS,
        config,
        64,
        3,
        on_progress=lambda row, _: rows.append(row),
    )
    [folder] = (tmp_path / "bundle.tensorboard").iterdir()
    shown = accumulators.EventAccumulator(str(folder))
    shown.Reload()
    names = {
        f"train/{name}"
        for name in (
            "loss",
            "learning_rate",
            "gradient_norm",
            "events_per_second",
            "targets_per_second",
        )
    }
    assert names <= set(shown.Tags()["scalars"])
    scalars = [(entry.step, entry.value) for entry in shown.Scalars("train/loss")]
    assert scalars == [(row.step, pytest.approx(row.loss)) for row in rows] and len(rows) == 5
    training.train(
        directory,
        tmp_path / "quiet",
        MODEL,
        LENGTHS,
        dataclasses.replace(config, tensorboard=False),
        64,
        3,
    )
    assert not (tmp_path / "quiet.tensorboard").exists()


@pytest.mark.parametrize(
    ("error", "num_requests", "knob"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."),
            2,
            "train.token_budget",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            ),
            2,
            "train.token_budget",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."),
            1,
            "lengths.maximum",
        ),
    ],
)
def test_too_little_memory_names_what_to_lower(
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    num_requests: int,
    knob: str,
) -> None:
    def full(*_: object) -> torch.Tensor:
        raise error

    monkeypatch.setattr(Trainer, "loss", full)
    config = dataclasses.replace(BRIEF, max_requests_per_batch=num_requests, token_budget=10_000)
    what = rf"a training step of {num_requests} requests, .* does not fit into memory; found .*Lower {knob}.*train.recompute"
    with pytest.raises(ConfigError, match=what) as caught:
        training.train(directory, tmp_path / "bundle", MODEL, LENGTHS, config, 64, 3)
    assert "\n" not in str(caught.value)


def test_another_runtime_error_keeps_its_name(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(Trainer, "loss", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied") as caught:
        training.train(directory, tmp_path / "bundle", MODEL, LENGTHS, BRIEF, 64, 3)
    assert not isinstance(caught.value, LongrecError)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        (
            "event_items",
            small_histories.NUM_ITEMS + 1,
            r"event_items of the histories are outside the item table; found .*61; expected 0..60",
        ),
        ("target_items", -1, "target_items of the histories are outside the item table"),
        (
            "event_features",
            99,
            r"event_features of the histories: an index of 'action' is outside its table; found .*99; expected 0..3",
        ),
        (
            "user_features",
            99,
            "user_features of the histories: an index of 'region' is outside its table",
        ),
    ],
)
def test_an_index_beyond_its_table_is_refused(
    directory: Path, tmp_path: Path, name: str, value: int, what: str
) -> None:
    encoder, encoded = training.encode(Histories.open(directory), tmp_path / "encoded")
    array = getattr(encoded, name).copy()
    array.flat[0] = value
    ranker = training.make_ranker(MODEL, encoder, 3)
    with pytest.raises(DataError, match=what) as caught:
        training.fit(
            ranker, dataclasses.replace(encoded, **{name: array}), LENGTHS, BRIEF, 3, tmp_path
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "timelines.arrow",
        "manifest.json",
        *(f"{table}.parquet" for table in ("requests", "targets", "users", "items")),
    ],
)
def test_truncated_histories_are_one_line(directory: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(directory, tmp_path / "histories")
    path = tmp_path / "histories" / name
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=name) as caught:
        training.train(tmp_path / "histories", tmp_path / "bundle", MODEL, LENGTHS, BRIEF, 64, 3)
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == [
        "histories"
    ]


@ON_GPU
@pytest.mark.parametrize(
    ("width", "layers", "what"),
    [
        (256, 8, r"training step of .*Lower train\.token_budget"),
        (2048, 2, r"the ranker does not fit.*Lower model\.width"),
    ],
)
def test_a_gpu_that_is_too_small_names_what_to_lower(
    directory: Path, tmp_path: Path, width: int, layers: int, what: str
) -> None:
    config = dataclasses.replace(
        BRIEF, device="cuda", token_budget=1_000_000, max_requests_per_batch=10_000
    )
    model = dataclasses.replace(MODEL, width=width, num_layers=layers, num_heads=8)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(4e-3)
    try:
        with pytest.raises(ConfigError, match=what):
            training.train(directory, tmp_path / "bundle", model, LENGTHS, config, 64, 3)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@ON_GPU
def test_a_gpu_run_tells_its_share_of_the_peak_and_goes_on_where_it_stopped(
    directory: Path, tmp_path: Path
) -> None:
    def stop(row: CurveRow, _: int) -> None:
        if row.step == 10:
            raise KeyboardInterrupt

    config = dataclasses.replace(BRIEF, device="cuda", log_every=1, checkpoint_every=4)
    whole = training.train(directory, tmp_path / "whole", MODEL, LENGTHS, config, 64, 3)
    assert (
        whole.mfu is not None and 0 < whole.mfu < 1 and whole.peak_flops and whole.peak_flops > 1e14
    )
    config = dataclasses.replace(
        config, precision="float32"
    )  # sums in any order: the last loss varies by 1e-3, in bfloat16 by 1e-2
    whole = training.train(directory, tmp_path / "exact", MODEL, LENGTHS, config, 64, 3)
    with pytest.raises(KeyboardInterrupt):
        training.train(
            directory, tmp_path / "stopped", MODEL, LENGTHS, config, 64, 3, on_progress=stop
        )
    resumed = training.train(directory, tmp_path / "stopped", MODEL, LENGTHS, config, 64, 3)
    assert resumed.num_events == whole.num_events and resumed.final_loss == pytest.approx(
        whole.final_loss, abs=0.02
    )


@ON_GPU
def test_a_step_on_a_gpu_waits_for_nothing(directory: Path, tmp_path: Path) -> None:
    histories = Histories.open(directory)
    encoder, encoded = training.encode(histories, tmp_path / "encoded")
    config = dataclasses.replace(BRIEF, device="cuda")
    [stream, _] = training.training_streams(encoded, LengthSampler(LENGTHS, 3), config, 3)
    ranker = training.make_ranker(MODEL, encoder, 3).cuda()
    trainer = Trainer(
        ranker, config, num_steps=50, precision="bfloat16", failed_batch=tmp_path / "failed"
    )
    batches = moved(prefetch([stream], num_workers=2, pin=True), trainer.device)
    trainer.start()
    for number, (host, batch) in zip(range(8), batches, strict=False):
        assert torch.equal(batch.event_items.cpu(), stream.batch(number).event_items)
        torch.cuda.set_sync_debug_mode("error" if number > 2 else "default")
        try:
            trainer.step(host, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert trainer.state.step == 6  # two losses are still owed
    trainer.flush()
    assert trainer.state.step == 8
