"""Mistakes in a training are one line that names the cause; a failed batch is saved."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from longrec.config import TrainConfig
from longrec.data.batch import RequestBatch
from longrec.data.histories import Histories
from longrec.errors import ConfigError, DataError, LongrecError
from longrec.training import encoded_cache, loop
from longrec.training.trainer import Trainer
from tests.longrec import small_histories
from tests.longrec.training.small_training import LENGTHS, MODEL, SEED, train_small

CONFIG = TrainConfig(
    epochs=2,
    token_budget=300,
    max_requests_per_batch=16,
    learning_rate=5e-3,
    log_every=10,
    device="cpu",
)
NEEDS_GPU = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="this machine has no GPU",
)
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]
FAILED_STEP = 6
GPU_OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
CPU_OUT_OF_MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"
    " to allocate 9 bytes"
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_with_its_batch(
    histories_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    device: str,
) -> None:
    seen: list[RequestBatch] = []
    compute_loss = Trainer.loss

    def broken_loss(trainer: Trainer, batch: RequestBatch) -> torch.Tensor:
        seen.append(batch)
        loss = compute_loss(trainer, batch)
        if len(seen) != FAILED_STEP:
            return loss
        if broken == "loss":
            return loss * float("nan")
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    monkeypatch.setattr(Trainer, "loss", broken_loss)
    config = dataclasses.replace(
        CONFIG,
        device=device,
        precision="float32",
        checkpoint_every=4,
    )
    what = "training loss is nan" if broken == "loss" else "gradient norm is (nan|inf)"
    with pytest.raises(LongrecError, match=rf"the {what} at step 6;.*failed_batch"):
        train_small(histories_dir, tmp_path / "bundle", config)
    saved = load_file(tmp_path / "bundle" / "failed_batch.safetensors")
    failed = seen[FAILED_STEP - 1]
    names = (
        "event_items",
        "event_offsets",
        "target_items",
        "labels",
        "request_timestamps",
    )
    for name in names:
        assert torch.equal(saved[name], getattr(failed, name).cpu()), name
    assert not (tmp_path / "bundle" / "bundle.json").exists()
    # the checkpoint of step 4, before the mistake
    checkpoints = tmp_path.glob(".bundle.work/checkpoints/*/step-*")
    assert len(list(checkpoints)) == 1


def test_no_training_request_is_one_line(tmp_path: Path) -> None:
    histories_dir = small_histories.write(tmp_path / "histories")
    path = histories_dir / "requests.parquet"
    table = pq.read_table(path)
    position = table.schema.get_field_index("split")
    splits = pa.array(["eval"] * table.num_rows)
    pq.write_table(table.set_column(position, "split", splits), path)
    with pytest.raises(DataError, match="no training request") as caught:
        train_small(histories_dir, tmp_path / "bundle", CONFIG)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_refused(histories_dir: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, device="cuda")
    with pytest.raises(ConfigError, match="no GPU"):
        train_small(histories_dir, tmp_path / "bundle", config)


@pytest.mark.parametrize(
    ("error", "num_requests", "key"),
    [
        (GPU_OUT_OF_MEMORY, 2, "train.token_budget"),
        (CPU_OUT_OF_MEMORY, 2, "train.token_budget"),
        (GPU_OUT_OF_MEMORY, 1, "lengths.maximum"),
    ],
)
def test_too_little_memory_names_what_to_lower(
    histories_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    num_requests: int,
    key: str,
) -> None:
    def out_of_memory(*_: object) -> torch.Tensor:
        raise error

    monkeypatch.setattr(Trainer, "loss", out_of_memory)
    config = dataclasses.replace(
        CONFIG,
        max_requests_per_batch=num_requests,
        token_budget=10_000,
    )
    message = (
        rf"a training step of {num_requests} requests, .* does not fit into memory; found"
        rf" .*Lower {key}.*train.recompute"
    )
    with pytest.raises(ConfigError, match=message) as caught:
        train_small(histories_dir, tmp_path / "bundle", config)
    assert "\n" not in str(caught.value)


def test_another_runtime_error_is_not_renamed(
    histories_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(Trainer, "loss", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied") as caught:
        train_small(histories_dir, tmp_path / "bundle", CONFIG)
    assert not isinstance(caught.value, LongrecError)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "event_items",
            small_histories.NUM_ITEMS + 1,
            r"event_items of the histories are outside the item table; found .*61; expected 0..60",
        ),
        (
            "target_items",
            -1,
            "target_items of the histories are outside the item table",
        ),
        (
            "event_features",
            99,
            r"event_features of the histories: an index of 'action' is outside its table; found"
            r" .*99; expected 0..3",
        ),
        (
            "user_features",
            99,
            "user_features of the histories: an index of 'region' is outside its table",
        ),
    ],
)
def test_an_index_beyond_its_table_is_refused(
    histories_dir: Path,
    tmp_path: Path,
    name: str,
    value: int,
    message: str,
) -> None:
    histories = Histories.open(histories_dir)
    encoder, encoded = encoded_cache.encode(histories, tmp_path / "encoded")
    array = getattr(encoded, name).copy()
    array.flat[0] = value
    wrong = dataclasses.replace(encoded, **{name: array})
    ranker = loop.make_ranker(MODEL, encoder, SEED)
    with pytest.raises(DataError, match=message) as caught:
        loop.fit(
            ranker,
            wrong,
            LENGTHS,
            CONFIG,
            seed=SEED,
            out_dir=tmp_path,
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "timelines.arrow",
        "manifest.json",
        "requests.parquet",
        "targets.parquet",
        "users.parquet",
        "items.parquet",
    ],
)
def test_truncated_histories_are_one_line(
    histories_dir: Path,
    tmp_path: Path,
    name: str,
) -> None:
    copied = tmp_path / "histories"
    shutil.copytree(histories_dir, copied)
    path = copied / name
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=name) as caught:
        train_small(copied, tmp_path / "bundle", CONFIG)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["histories"]


@NEEDS_GPU
@pytest.mark.parametrize(
    ("width", "num_layers", "message"),
    [
        (256, 8, r"training step of .*Lower train\.token_budget"),
        (2048, 2, r"the ranker does not fit.*Lower model\.width"),
    ],
)
def test_a_gpu_that_is_too_small_names_what_to_lower(
    histories_dir: Path,
    tmp_path: Path,
    width: int,
    num_layers: int,
    message: str,
) -> None:
    config = dataclasses.replace(
        CONFIG,
        device="cuda",
        token_budget=1_000_000,
        max_requests_per_batch=10_000,
    )
    model = dataclasses.replace(
        MODEL,
        width=width,
        num_layers=num_layers,
        num_heads=8,
    )
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(4e-3)
    try:
        with pytest.raises(ConfigError, match=message):
            train_small(
                histories_dir,
                tmp_path / "bundle",
                config,
                model=model,
            )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
