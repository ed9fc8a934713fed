# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Kernels of embedding tables: gather into one matrix, its gradients, and row-wise Adagrad.

The host never reads the number of distinct rows of a batch, so it never waits for the device.
Gradients of one row are added atomically, in any order. Two runs on equal batches can therefore
differ in the last bits.

Shape letters: T events, F index columns, n of them read from one table, K width of one row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longrec.nn.kernels.tiles import dot_precision

SMALL_TABLE_ROWS = 128
"""Most rows of a table whose gradient is summed on chip first."""
GATHER_ELEMENTS = 4096
"""Elements that one program gathers."""
SCATTER_ROWS = 128
"""Events whose gradients one program scatters."""
SUM_BLOCK_ROWS = 256
"""Events of one product with a one-hot matrix."""
MAX_SUM_PROGRAMS = 512
"""Most programs that sum the gradient of a small table."""
ADAGRAD_ELEMENTS = 2048
"""Elements of one program of the Adagrad update."""


@triton.jit
def _gather(
    index_rows,
    indices,
    columns,
    starts,
    table,
    out,
    table_rows,
    num_rows,
    num_index_columns,
    out_width,
    offset,
    n,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    INDIRECT: tl.constexpr,
):
    """Copy the table rows of one column of `indices`; INDIRECT picks its rows by `index_rows`."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    k = tl.program_id(1)
    inside = rows < num_rows
    rows_int64 = rows.to(tl.int64)
    index_row = rows_int64
    if INDIRECT:
        index_row = tl.load(index_rows + rows, mask=inside, other=0).to(tl.int64)
    index_offset = index_row * num_index_columns + tl.load(columns + k)
    value_index = tl.load(indices + index_offset, mask=inside, other=0).to(tl.int64)
    table_row = value_index + tl.load(starts + k)
    tl.store(table_rows + rows_int64 * n + k, table_row, mask=inside)
    column = tl.arange(0, BLOCK_K)
    mask = inside[:, None] & (column < K)[None, :]
    values = tl.load(table + table_row[:, None] * K + column[None, :], mask=mask, other=0.0)
    out_offsets = rows_int64[:, None] * out_width + offset + k * K + column[None, :]
    tl.store(out + out_offsets, values.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _scatter(
    gradient,
    table_rows,
    out,
    num_rows,
    width,
    offset,
    n,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Add the gradients of BLOCK_T events to the rows of the table's gradient."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    k = tl.program_id(1)
    inside = rows < num_rows
    rows_int64 = rows.to(tl.int64)
    column = tl.arange(0, BLOCK_K)
    mask = inside[:, None] & (column < K)[None, :]
    table_row = tl.load(table_rows + rows_int64 * n + k, mask=inside, other=0)
    gradient_offsets = rows_int64[:, None] * width + offset + k * K + column[None, :]
    values = tl.load(gradient + gradient_offsets, mask=mask, other=0.0)
    destination = out + table_row[:, None] * K + column[None, :]
    tl.atomic_add(destination, values.to(tl.float32), mask=mask, sem="relaxed")


@triton.jit
def _scatter_small(
    gradient,
    table_rows,
    out,
    num_rows,
    num_table_rows,
    width,
    offset,
    n,
    rows_per_program,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the gradients of a table that fits on chip: a one-hot product sums the rows first."""
    k = tl.program_id(1)
    column = tl.arange(0, BLOCK_K)
    is_column = column < K
    all_table_rows = tl.arange(0, BLOCK_R)
    first = tl.program_id(0) * rows_per_program
    acc = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    for start in range(0, rows_per_program, BLOCK_T):
        rows = first + start + tl.arange(0, BLOCK_T)
        inside = rows < num_rows
        rows_int64 = rows.to(tl.int64)
        table_row = tl.load(table_rows + rows_int64 * n + k, mask=inside, other=-1)
        gradient_offsets = rows_int64[:, None] * width + offset + k * K + column[None, :]
        mask = inside[:, None] & is_column[None, :]
        values = tl.load(gradient + gradient_offsets, mask=mask, other=0.0)
        one_hot = (all_table_rows[:, None] == table_row[None, :]).to(values.dtype)
        acc = tl.dot(
            one_hot,
            values,
            acc,
            input_precision=PRECISION,
        )
    mask = (all_table_rows < num_table_rows)[:, None] & is_column[None, :]
    destination = out + all_table_rows[:, None] * K + column[None, :]
    tl.atomic_add(destination, acc, mask=mask, sem="relaxed")


@triton.jit
def _sum_segments(
    values,
    order,
    segment,
    out,
    num_values,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add up the gradients of each segment of equal keys."""
    positions = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = positions < num_values
    column = tl.arange(0, BLOCK_K)
    mask = inside[:, None] & (column < K)[None, :]
    value_row = tl.load(order + positions, mask=inside, other=0).to(tl.int64)
    segment_row = tl.load(segment + positions, mask=inside, other=0).to(tl.int64)
    value = tl.load(values + value_row[:, None] * K + column[None, :], mask=mask, other=0.0)
    destination = out + segment_row[:, None] * K + column[None, :]
    tl.atomic_add(destination, value.to(tl.float32), mask=mask, sem="relaxed")


@triton.jit
def _adagrad(
    table,
    sums,
    gradients,
    keys,
    segment,
    num_values,
    lr,
    eps,
    weight_decay,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Update each distinct key once, at the first position of its segment.

    G <- G + weight_decay row, s <- s + mean(G^2), row <- row - lr G / (sqrt(s) + eps)
    """
    positions = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_K)
    inside = positions < num_values
    segment_row = tl.load(segment + positions, mask=inside, other=0)
    has_previous = inside & (positions > 0)
    previous_row = tl.load(segment + positions - 1, mask=has_previous, other=-1)
    is_first = inside & (segment_row != previous_row)
    mask = is_first[:, None] & (column < K)[None, :]
    key = tl.load(keys + positions, mask=is_first, other=0).to(tl.int64)
    gradient_offsets = segment_row.to(tl.int64)[:, None] * K + column[None, :]
    gradient = tl.load(gradients + gradient_offsets, mask=mask, other=0.0)
    pointer = table + key[:, None] * K + column[None, :]
    value = tl.load(pointer, mask=mask, other=0.0).to(tl.float32)
    gradient += weight_decay * value
    mean_square = tl.sum(gradient * gradient, 1) / K
    total = tl.load(sums + key, mask=is_first, other=0.0) + mean_square
    tl.store(sums + key, total, mask=is_first)
    denominator = tl.sqrt(total) + eps
    tl.store(pointer, value - lr * gradient / denominator[:, None], mask=mask)


def gather(
    index_rows: Tensor | None,
    indices: Tensor,
    columns: Tensor,
    starts: Tensor,
    table: Tensor,
    out: Tensor,
    offset: int,
) -> Tensor:
    """Copy table rows into columns of `out`; return which rows, int64 [T, n].

    out[t, offset + k K + j] = table[row, j] with row = indices[t, columns[k]] + starts[k].

    Args:
        index_rows: [T], rows of `indices` to read instead of row t; None for row t.
        indices: int [T, F], or [*, F] with `index_rows`.
        columns: int64 [n], columns of `indices` that this table serves.
        starts: int64 [n], first table row of each column.
        table: [rows, K].
        out: [T, width].
        offset: first column of `out` that is written.
    """
    num_rows = out.shape[0]
    n = columns.numel()
    width = table.shape[1]
    table_rows = torch.empty(
        (num_rows, n),
        dtype=torch.int64,
        device=out.device,
    )
    block_k = triton.next_power_of_2(width)
    block_t = max(16, GATHER_ELEMENTS // block_k)
    _gather[(triton.cdiv(num_rows, block_t), n)](
        indices if index_rows is None else index_rows,
        indices,
        columns,
        starts,
        table,
        out,
        table_rows,
        num_rows,
        indices.shape[1],
        out.shape[1],
        offset,
        n,
        K=width,
        BLOCK_K=block_k,
        BLOCK_T=block_t,
        INDIRECT=index_rows is not None,
        num_warps=8,
    )
    return table_rows


def scatter(
    gradient: Tensor,
    table_rows: Tensor,
    offset: int,
    num_table_rows: int,
    width: int,
) -> Tensor:
    """Return the gradient of a table, float32 [rows, K], from that of the gathered matrix.

    Args:
        gradient: [T, width of the gathered matrix].
        table_rows: int64 [T, n], as `gather` returned it.
        offset: first column of the table in `gradient`.
        num_table_rows: rows of the table.
        width: K.
    """
    num_rows, n = table_rows.shape
    block_k = max(16, triton.next_power_of_2(width))
    out = torch.zeros(
        (num_table_rows, width),
        dtype=torch.float32,
        device=gradient.device,
    )
    if num_table_rows > SMALL_TABLE_ROWS:
        _scatter[(triton.cdiv(num_rows, SCATTER_ROWS), n)](
            gradient,
            table_rows,
            out,
            num_rows,
            gradient.shape[1],
            offset,
            n,
            K=width,
            BLOCK_K=block_k,
            BLOCK_T=SCATTER_ROWS,
        )
        return out
    blocks = triton.cdiv(triton.cdiv(num_rows, MAX_SUM_PROGRAMS), SUM_BLOCK_ROWS)
    rows_per_program = max(1, blocks) * SUM_BLOCK_ROWS
    _scatter_small[(triton.cdiv(num_rows, rows_per_program), n)](
        gradient,
        table_rows,
        out,
        num_rows,
        num_table_rows,
        gradient.shape[1],
        offset,
        n,
        rows_per_program,
        K=width,
        BLOCK_K=block_k,
        BLOCK_T=SUM_BLOCK_ROWS,
        BLOCK_R=max(16, triton.next_power_of_2(num_table_rows)),
        PRECISION=dot_precision(gradient),
    )
    return out


def adagrad(
    table: Tensor,
    sums: Tensor,
    rows: Tensor,
    gradients: Tensor,
    lr: float,
    eps: float,
    weight_decay: float = 0.0,
) -> None:
    """Update the rows of a table and their accumulators in place.

    A row that comes several times gets the sum of its gradients.

    Args:
        table: [num_rows, K].
        sums: float32 [num_rows], accumulators.
        rows: int64 [n], rows to update.
        gradients: [n, K].
        lr: learning rate.
        eps: added to the root of an accumulator.
        weight_decay: L2 penalty; a row times it is added to the row's gradient.
    """
    count, width = gradients.shape
    if count == 0:
        return
    fits_int32 = table.shape[0] < 2**31  # then the sort reads half the bytes
    keys, order = torch.sort(rows.to(torch.int32) if fits_int32 else rows)
    # Number of the segment of equal keys that each position belongs to.
    segment = torch.zeros_like(keys)
    is_new = keys[1:] != keys[:-1]
    torch.cumsum(is_new, 0, dtype=segment.dtype, out=segment[1:])
    summed = torch.zeros((count, width), dtype=torch.float32, device=table.device)
    block_k = triton.next_power_of_2(width)
    block_n = max(1, ADAGRAD_ELEMENTS // block_k)
    grid = (triton.cdiv(count, block_n),)
    _sum_segments[grid](
        gradients.contiguous(),
        order,
        segment,
        summed,
        count,
        K=width,
        BLOCK_K=block_k,
        BLOCK_N=block_n,
    )
    _adagrad[grid](
        table,
        sums,
        summed,
        keys,
        segment,
        count,
        lr,
        eps,
        weight_decay,
        K=width,
        BLOCK_K=block_k,
        BLOCK_N=block_n,
    )
