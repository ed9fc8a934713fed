# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Helpers that the kernels share: tile descriptors, program counts, precisions and the sigmoid."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs kernels in its interpreter, on a CPU; read at import only."""
INTERPRETED_PROGRAMS = 3
"""Most programs of a launch in the interpreter: enough to exercise the loops over tiles."""


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    """Return 1 / (1 + e^-x).

    FAST takes one hardware instruction. Its absolute error is below 2.5e-4, a quarter of
    bfloat16's step at 0.5.
    """
    if FAST:
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;",
            "=f,f",
            [0.5 * x],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
        return 0.5 * tanh + 0.5
    return tl.sigmoid(x)


def tile(
    tensor: Tensor,
    rows: int,
    columns: int,
) -> TensorDescriptor:
    """Return a descriptor of a contiguous matrix that kernels read in tiles [rows, columns]."""
    return TensorDescriptor.from_tensor(tensor, [rows, columns])


def dot_precision(tensor: Tensor) -> str:
    """Return the precision of products with this tensor: full float32, or tf32 for 16 bits."""
    return "ieee" if tensor.dtype == torch.float32 else "tf32"


def num_programs(
    num_tiles: int,
    device: torch.device,
    per_processor: int = 1,
) -> int:
    """Return the number of persistent programs, at most one for each tile.

    Each streaming multiprocessor of the device runs `per_processor` of them.
    """
    if INTERPRETED:
        return min(INTERPRETED_PROGRAMS, num_tiles)
    properties = torch.cuda.get_device_properties(device)
    return min(num_tiles, per_processor * properties.multi_processor_count)


def num_row_parts(
    num_rows: int,
    block_rows: int,
    num_result_tiles: int,
    device: torch.device,
    per_processor: int = 1,
) -> tuple[int, int]:
    """Return (parts, rows of a part) for a sum over rows that several programs share.

    With 132 processors and 8 tiles of the result, 16 parts give 128 programs.

    Args:
        num_rows: rows to sum over.
        block_rows: rows of one tile; a part holds whole tiles.
        num_result_tiles: tiles of the result, each with programs of its own.
        device: runs the programs.
        per_processor: programs that one processor holds.
    """
    num_tiles = num_result_tiles * triton.cdiv(num_rows, block_rows)
    programs = num_programs(num_tiles, device, per_processor)
    parts = max(1, programs // num_result_tiles)
    rows_per_part = triton.cdiv(triton.cdiv(num_rows, parts), block_rows) * block_rows
    return parts, rows_per_part
