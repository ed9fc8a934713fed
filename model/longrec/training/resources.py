"""Choose the device and precision of a training, and measure its memory and peak rate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from longrec.config import TrainConfig
from longrec.errors import ConfigError

PEAK_MATRIX_SIZE = 4096
"""Side of the square matrices whose product measures the peak rate."""
NUM_PEAK_PRODUCTS = 20
"""Matrix products in one measurement."""


def choose_device(config: TrainConfig) -> tuple[torch.device, str]:
    """Return (device, precision `float32` or `bfloat16`) of a configuration, `auto` resolved.

    Raises:
        ConfigError: the configuration asks for a GPU and there is none.
    """
    is_available = torch.cuda.is_available()
    if config.device == "cuda" and not is_available:
        raise ConfigError(
            "no GPU is available",
            found="train.device=cuda",
            expected="cpu or auto",
            fix="Set train.device=auto.",
        )
    uses_gpu = is_available and config.device != "cpu"
    device = torch.device("cuda" if uses_gpu else "cpu")
    if config.precision != "auto":
        return device, config.precision
    return device, "bfloat16" if uses_gpu else "float32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return a context that computes in a precision: `float32` or `bfloat16`."""
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def explain_out_of_memory(what: str, fix: str) -> Iterator[None]:
    """Turn an out-of-memory error within the block into a one-line error.

    Args:
        what: the thing that does not fit.
        fix: advice on what to lower.

    Raises:
        ConfigError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        first_line = str(error).partition("\n")[0]
        raise ConfigError(
            f"{what} does not fit into memory",
            found=first_line or "no memory left",
            fix=fix,
        ) from error


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of a CUDA device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    # Linux reports KiB.
    return usage.ru_maxrss * 1024


def measure_peak_flops(device: torch.device, precision: str) -> float:
    """Return the measured rate of a matrix product on a CUDA device, FLOP/s; 0 on a CPU.

    Args:
        device: the device.
        precision: `float32` or `bfloat16`.
    """
    if device.type != "cuda":
        return 0.0
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    matrix = torch.rand(
        PEAK_MATRIX_SIZE,
        PEAK_MATRIX_SIZE,
        device=device,
        dtype=dtype,
    )
    # warm up
    _multiply(matrix)
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    start.record()
    _multiply(matrix)
    end.record()
    end.synchronize()
    num_flops = NUM_PEAK_PRODUCTS * 2 * PEAK_MATRIX_SIZE**3
    seconds = start.elapsed_time(end) / 1e3
    return float(num_flops / seconds)


def _multiply(matrix: torch.Tensor) -> None:
    for _ in range(NUM_PEAK_PRODUCTS):
        matrix @ matrix


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "can't allocate memory" in str(error)
