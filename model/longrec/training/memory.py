"""Estimate the memory of a training before it starts.

It leaves out what depends on the kernels, so it is too small rather than too large. A training that
passes may still run out of memory in a step, which `resources.explain_out_of_memory` then explains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch

from longrec.config import NUM_MIXER_TOKENS, LengthConfig, ModelConfig, TrainConfig
from longrec.data.columns import int64_column
from longrec.data.histories import Histories
from longrec.errors import ConfigError

BYTES_PER_DENSE_PARAMETER = 16
"""Weight, gradient and the two moments of AdamW, float32 each; `ema_decay` adds an average."""
BYTES_PER_VALUE = 4
MEMORY_FIX = "Lower model.width, model.num_layers or train.token_budget."
TABLE_FIX = "Lower model.id_dim, or max_size of the schema's ids."
RATE_FIX = "Set model.item_rates=false, or lower data.max_requests."
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_MEMINFO = Path("/proc/meminfo")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Estimated bytes of a training.

    Args:
        dense_bytes: matrices of the layers, their gradients and the state of AdamW.
        table_bytes: tables of ids and the state of row-wise Adagrad.
        activation_bytes: rows of the events of one step that the backward pass reads.
        rate_bytes: item rates of all targets, with `model.item_rates`.
    """

    dense_bytes: int = 0
    table_bytes: int = 0
    activation_bytes: int = 0
    rate_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Sum of all parts."""
        return sum(dataclasses.astuple(self))

    def check(self, available_bytes: int, device: str) -> None:
        """Check that a training can fit.

        Args:
            available_bytes: memory of the device.
            device: its name, for the error.

        Raises:
            ConfigError: it needs more.
        """
        if self.total_bytes <= available_bytes:
            return
        sizes = {
            MEMORY_FIX: self.dense_bytes + self.activation_bytes,
            TABLE_FIX: self.table_bytes,
            RATE_FIX: self.rate_bytes,
        }
        raise ConfigError(
            f"the training does not fit into memory of the device {device}",
            found=f"at least {format_bytes(self.total_bytes)} ({self._parts()})",
            expected=f"at most the available {format_bytes(available_bytes)}",
            fix=max(sizes, key=lambda fix: sizes[fix]),
        )

    def _parts(self) -> str:
        parts = {
            "layers with optimizer": self.dense_bytes,
            "id tables": self.table_bytes,
            "activations": self.activation_bytes,
            "item rates": self.rate_bytes,
        }
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)


def check_memory(
    model: ModelConfig,
    train: TrainConfig,
    lengths: LengthConfig,
    histories: Histories,
    *,
    device: torch.device,
    table_rows: int = 0,
) -> None:
    """Check that a training can fit into the memory of its device.

    Item rates are in host memory on any device.

    Args:
        model, train, lengths: of the training.
        histories: their requests bound the events of a step.
        device: the device.
        table_rows: rows of the tables of ids on this device, 0 before the encoder is fitted.

    Raises:
        ConfigError: it cannot; the message holds the estimate.
    """
    num_copies = 2 if train.ema_decay else 1
    row_bytes = BYTES_PER_VALUE * (num_copies * model.id_dim + 1)
    parameter_bytes = BYTES_PER_DENSE_PARAMETER + BYTES_PER_VALUE * (num_copies - 1)
    rate_bytes = _rate_bytes(model, histories)
    num_events = _events_of_a_step(train, lengths, histories)
    values_per_event = _values_per_event(model, train, device)
    estimate = MemoryEstimate(
        dense_bytes=parameter_bytes * num_dense_parameters(model),
        table_bytes=table_rows * row_bytes,
        activation_bytes=num_events * values_per_event * _bytes_per_activation(device),
        rate_bytes=rate_bytes if device.type == "cpu" else 0,
    )
    estimate.check(available_bytes(device), device.type)
    if device.type != "cpu" and rate_bytes:
        host = torch.device("cpu")
        MemoryEstimate(rate_bytes=rate_bytes).check(available_bytes(host), host.type)


def num_dense_parameters(model: ModelConfig) -> int:
    """Return a lower bound of the dense parameters: the matrices of fusion, layers and head.

    Everything that depends on the schema or is linear in the width is left out.
    """
    squares = 2 * NUM_MIXER_TOKENS * model.mixer_layers * model.ffn_ratio
    if model.fusion:
        squares += 5 * model.ffn_ratio
    if model.kind == "stca":
        squares += _num_stca_squares(model)
    return squares * model.width**2


def available_bytes(device: torch.device) -> int:
    """Return the bytes of a device that a training can use: free ones, and swap on a CPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    sizes = dict(_meminfo())
    host = sizes["MemAvailable"] + sizes.get("SwapFree", 0)
    return min(host, _cgroup_limit(host))


def format_bytes(size: int) -> str:
    """Return a size as text, for example `1.5 GiB`."""
    amount = float(size)
    for unit in _UNITS[:-1]:
        if amount < 1024:
            return f"{amount:.3g} {unit}"
        amount /= 1024
    return f"{amount:.3g} {_UNITS[-1]}"


def _rate_bytes(model: ModelConfig, histories: Histories) -> int:
    """Return the bytes of the item rates of all targets (longrec.data.loading.item_rates)."""
    if not model.item_rates:
        return 0
    schema = histories.schema
    num_values = (len(schema.tasks) + 1) * len(schema.item)
    return BYTES_PER_VALUE * num_values * int(histories.targets.num_rows)


def _num_stca_squares(model: ModelConfig) -> int:
    """Return the matrices of STCA in units of width squared."""
    depth = model.num_layers
    ffn = 3 * model.ffn_ratio
    num_ffns = 1 if model.share_ffn else 2
    layers = depth * (num_ffns * ffn + 4)
    fused = 2 * (depth - 1)
    if model.query_fusion:
        fused = depth * (depth + 1) // 2 - 1  # 2 + 3 + ... + depth
    join = depth + 1
    return layers + fused + join + ffn


def _values_per_event(
    model: ModelConfig,
    train: TrainConfig,
    device: torch.device,
) -> int:
    """Return the values of one event that a step holds for its backward pass.

    Counted are the token and, for STCA, the encoding of each layer. The kernels of a GPU compute
    hidden rows again, a CPU holds them unless `train.recompute` is set.
    """
    rows = 1
    if model.kind == "stca":
        holds_hidden = device.type == "cpu" and not train.recompute
        hidden = model.ffn_ratio if holds_hidden else 0
        rows += model.num_layers * (1 + hidden)
    return rows * model.width


def _bytes_per_activation(device: torch.device) -> int:
    """Return the bytes of a value; a GPU may hold it as bfloat16."""
    return BYTES_PER_VALUE if device.type == "cpu" else BYTES_PER_VALUE // 2


def _events_of_a_step(
    train: TrainConfig,
    lengths: LengthConfig,
    histories: Histories,
) -> int:
    """Return the events of a step with histories of the mean training length."""
    starts = int64_column(histories.requests, "event_start")
    ends = int64_column(histories.requests, "event_end")
    is_full = lengths.distribution == "full"
    longest = lengths.maximum if is_full else lengths.mean
    num_events = (ends - starts).clip(0, longest)
    requests = num_events[: train.max_requests_per_batch]
    return int(min(train.token_budget, requests.sum()))


def _meminfo() -> Iterator[tuple[str, int]]:
    """Yield the name and the bytes of each line of /proc/meminfo, which counts KiB."""
    for line in _MEMINFO.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        yield name, int(value.split()[0]) * 1024


def _cgroup_limit(host_bytes: int) -> int:
    """Return the memory limit of the container; that of the host without one."""
    try:
        text = _CGROUP_LIMIT.read_text(encoding="ascii").strip()
    except OSError:
        return host_bytes
    return int(text) if text.isdigit() else host_bytes
