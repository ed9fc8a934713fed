# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Kernel of a^T b over very many rows with a small result, split over the rows.

Shape letters: T rows, M layers, A columns of a, B columns of b (in capitals; a and b are matrices).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longrec.nn.kernels.tiles import dot_precision, num_row_parts, tile


@triton.jit
def _rows_product(
    a,
    b,
    out,
    num_rows,
    rows_per_program,
    first_column,
    A: tl.constexpr,
    B: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write one tile [BLOCK, BLOCK] of a^T b over one part of the rows."""
    tiles_across: tl.constexpr = B // BLOCK
    num_tiles: tl.constexpr = (A // BLOCK) * tiles_across
    program = tl.program_id(0)
    tile_index = program % num_tiles
    part = program // num_tiles
    row_of_out = (tile_index // tiles_across) * BLOCK
    column_of_out = (tile_index % tiles_across) * BLOCK
    first_row = part * rows_per_program
    last_row = tl.minimum(first_row + rows_per_program, num_rows)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for row in tl.range(first_row, last_row, BLOCK_T, num_stages=STAGES):
        a_tile = a.load([row, first_column + row_of_out])
        b_tile = b.load([row, column_of_out])
        acc = tl.dot(
            a_tile.T,
            b_tile,
            acc,
            input_precision=PRECISION,
        )
    out_rows = row_of_out + tl.arange(0, BLOCK)
    out_columns = tl.arange(0, BLOCK)
    start = out + part * A * B
    tl.store(start + out_rows[:, None] * B + column_of_out + out_columns[None, :], acc)


def rows_product(
    a: Tensor,
    layer: int,
    b: Tensor,
    *,
    block: int = 128,
    block_t: int = 64,
    stages: int = 5,
    warps: int = 8,
) -> Tensor:
    """Return a[:, layer]^T b, float32 [A, B].

    Args:
        a: [T, M, A]; A is a multiple of `block`.
        layer: index into M.
        b: [T, B]; B is a multiple of `block`.
    """
    num_rows, _, height = a.shape
    width = b.shape[1]
    num_tiles = (height // block) * (width // block)
    parts, rows_per_program = num_row_parts(num_rows, block_t, num_tiles, b.device)
    out = torch.empty(
        (parts, height, width),
        dtype=torch.float32,
        device=b.device,
    )
    _rows_product[(num_tiles * parts,)](
        tile(a.view(num_rows, -1), block_t, block),
        tile(b, block_t, block),
        out,
        num_rows,
        rows_per_program,
        layer * height,
        A=height,
        B=width,
        BLOCK=block,
        BLOCK_T=block_t,
        PRECISION=dot_precision(b),
        STAGES=stages,
        num_warps=warps,
    )
    return out.sum(0)
