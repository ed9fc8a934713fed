"""The estimate of a training's memory: answered before the work, near the truth, never above it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from longrec.config import LengthConfig, ModelConfig, TrainConfig
from longrec.data.histories import Histories
from longrec.errors import ConfigError, DataError
from longrec.nn.ranker import Ranker
from longrec.training import encoded_cache, loop, memory
from tests.longrec import small_histories
from tests.longrec.training.small_training import train_small

CONFIG = TrainConfig(device="cpu", epochs=1)
CPU = torch.device("cpu")
SIZES = {"item": (9, 9, 9), "user": (9,), "event": (9, 9)}


@pytest.fixture(scope="module")
def histories_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_histories.write(tmp_path_factory.mktemp("histories") / "histories", num_users=8)


@pytest.mark.parametrize(
    "keys",
    [
        {"width": 100_000_000},
        {"width": 4 * 10**18},
        {"num_layers": 10**10},
        {"ffn_ratio": 10**12},
        {"mixer_layers": 10**10},
        {"id_dim": 10**13},
    ],
    ids=str,
)
def test_a_model_that_cannot_fit_is_refused_at_once(
    histories_dir: Path,
    tmp_path: Path,
    keys: dict[str, int],
) -> None:
    model = ModelConfig(**keys)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"does not fit into memory.*found at least .*iB \("):
        train_small(histories_dir, tmp_path / "bundle", CONFIG, model=model)
    assert time.monotonic() - started < 10
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("kind", ["stca", "mean", "din", "sim", "transformer", "hstu"])
@pytest.mark.parametrize("share_ffn", [True, False])
def test_the_parameters_of_wide_models_are_counted_but_not_more_than_there_are(
    kind: str,
    share_ffn: bool,
) -> None:
    model = ModelConfig(kind=kind, width=128, num_layers=3, recency="none", share_ffn=share_ffn)
    items = torch.zeros((1, 3), dtype=torch.int32)
    ranker = Ranker(model, small_histories.SCHEMA, SIZES, items)
    num_parameters = sum(parameter.numel() for parameter in ranker.parameters())
    counted = memory.num_dense_parameters(model)
    assert counted <= num_parameters
    if kind == "stca":
        assert counted > 0.9 * num_parameters


def test_the_events_of_a_step_count(histories_dir: Path) -> None:
    histories = Histories.open(histories_dir)
    wide = ModelConfig(width=8_192, num_layers=2)
    spans = (
        histories.requests["event_end"].to_numpy() - histories.requests["event_start"].to_numpy()
    )
    lengths = LengthConfig("full", maximum=100)
    config = dataclasses.replace(CONFIG, token_budget=50)
    num_events = memory._events_of_a_step(config, lengths, histories)
    assert num_events == 50
    config = dataclasses.replace(CONFIG, token_budget=10**9)
    assert memory._events_of_a_step(config, lengths, histories) == np.sum(spans[:64])
    gpu = torch.device("cuda")
    on_cpu = memory._values_per_event(wide, config, CPU)
    recomputed = dataclasses.replace(config, recompute=True)
    assert on_cpu > memory._values_per_event(wide, recomputed, CPU)
    assert memory._values_per_event(wide, config, gpu) == 8_192 * 3


def test_the_larger_part_decides_the_advice() -> None:
    gib = 2**30
    with pytest.raises(ConfigError, match=r"id tables 3 GiB.*at most the available 2 GiB.*id_dim"):
        memory.MemoryEstimate(gib, 3 * gib, 0).check(2 * gib, "cpu")
    with pytest.raises(ConfigError, match=r"activations 3 GiB.*token_budget"):
        memory.MemoryEstimate(gib, 0, 3 * gib).check(2 * gib, "cpu")
    memory.MemoryEstimate(gib, gib, 0).check(2 * gib, "cpu")


def estimated_bytes(
    monkeypatch: pytest.MonkeyPatch,
    histories: Histories,
    *,
    model: ModelConfig,
    train: TrainConfig,
    device: torch.device = CPU,
) -> list[memory.MemoryEstimate]:
    """Return the estimates that a training checks."""
    estimates = []
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1)
    monkeypatch.setattr(
        memory.MemoryEstimate, "check", lambda estimate, *_: estimates.append(estimate)
    )
    memory.check_memory(model, train, LengthConfig(), histories, device=device, table_rows=1_000)
    return estimates


def test_a_moving_average_needs_one_more_copy_of_the_weights(
    histories_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = Histories.open(histories_dir)
    model = ModelConfig(id_dim=32)
    averaged = dataclasses.replace(CONFIG, ema_decay=0.9)
    [plain] = estimated_bytes(monkeypatch, histories, model=model, train=CONFIG)
    [more] = estimated_bytes(monkeypatch, histories, model=model, train=averaged)
    assert more.dense_bytes - plain.dense_bytes == 4 * memory.num_dense_parameters(model)
    assert more.table_bytes - plain.table_bytes == 4 * 32 * 1_000


def test_item_rates_are_counted_in_host_memory(
    histories_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = Histories.open(histories_dir)
    encoder, encoded = encoded_cache.encode(histories, tmp_path / "encoded")
    model = ModelConfig(item_rates=True)
    ranker = loop.make_ranker(model, encoder, seed=1)
    rates = loop.set_item_rates(ranker, encoded).target_rates
    assert rates is not None
    [on_cpu] = estimated_bytes(monkeypatch, histories, model=model, train=CONFIG)
    assert on_cpu.rate_bytes == rates.nbytes
    gpu = torch.device("cuda")
    on_gpu, on_host = estimated_bytes(monkeypatch, histories, model=model, train=CONFIG, device=gpu)
    assert on_gpu.rate_bytes == 0
    assert on_host == memory.MemoryEstimate(rate_bytes=rates.nbytes)
    estimate = memory.MemoryEstimate(2**30, rate_bytes=2**31)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"item rates 2 GiB.*model\.item_rates=false"):
        estimate.check(2**31, "cpu")


def test_the_memory_of_a_container_is_a_limit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", limit)
    whole = memory.available_bytes(CPU)
    limit.write_text("1048576\n")
    assert memory.available_bytes(CPU) == 1_048_576
    limit.write_text("max\n")
    assert memory.available_bytes(CPU) == pytest.approx(whole, rel=0.2)


@pytest.mark.parametrize("place", ["bundle", "checkpoints", "tensorboard"])
def test_an_output_that_cannot_be_written_is_found_before_the_training(
    histories_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    monkeypatch.setattr("longrec.training.encoded_cache.encode", pytest.fail)
    paths = {name: tmp_path / name for name in ("bundle", "checkpoints", "tensorboard")}
    (tmp_path / "file").write_text("mine")
    paths[place] = tmp_path / "file"
    with pytest.raises(NotADirectoryError):
        train_small(
            histories_dir,
            paths["bundle"],
            CONFIG,
            checkpoint_dir=paths["checkpoints"],
            log_dir=paths["tensorboard"],
        )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_no_bundle_is_not_replaced(histories_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="does not hold a bundle and will not be replaced"):
        train_small(histories_dir, tmp_path / "mine", CONFIG)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
