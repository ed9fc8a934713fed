# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Kernels of embedding tables: gather of rows into one matrix, its gradients, and the row-wise
Adagrad update.

Nothing here waits for the device: the number of distinct rows of a batch is never read on the host.
Sums over the occurrences
of one row are added atomically, so that equal batches give equal updates up to the order of float32
additions.

Shape letters: T events, F index columns, n of them read from one table, K width of one row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SMALL_TABLE = 128
"""Rows of a table whose gradient is first summed on chip."""


@triton.jit
def _gather(
    items,
    index,
    columns,
    starts,
    table,
    out,
    at,
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
    rows, k = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.program_id(1)
    inside = rows < num_rows
    source = rows.to(tl.int64)
    if INDIRECT:
        source = tl.load(items + rows, mask=inside, other=0).to(tl.int64)
    place = tl.load(
        index + source * num_index_columns + tl.load(columns + k), mask=inside, other=0
    ).to(tl.int64) + tl.load(starts + k)
    tl.store(at + rows.to(tl.int64) * n + k, place, mask=inside)
    column = tl.arange(0, BLOCK_K)
    both = inside[:, None] & (column < K)[None, :]
    values = tl.load(table + place[:, None] * K + column[None, :], mask=both, other=0.0)
    spot = rows.to(tl.int64)[:, None] * out_width + offset + k * K + column[None, :]
    tl.store(out + spot, values.to(out.dtype.element_ty), mask=both)


@triton.jit
def _scatter(
    gradient,
    at,
    out,
    num_rows,
    width,
    offset,
    n,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    rows, k = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.program_id(1)
    inside, column = rows < num_rows, tl.arange(0, BLOCK_K)
    both = inside[:, None] & (column < K)[None, :]
    place = tl.load(at + rows.to(tl.int64) * n + k, mask=inside, other=0)
    values = tl.load(
        gradient + rows.to(tl.int64)[:, None] * width + offset + k * K + column[None, :],
        mask=both,
        other=0.0,
    )
    tl.atomic_add(
        out + place[:, None] * K + column[None, :], values.to(tl.float32), mask=both, sem="relaxed"
    )


@triton.jit
def _scatter_small(
    gradient,
    at,
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
    """The same for a table that fits on chip: rows are summed by a product with their one-hot
    matrix.
    """
    k, column, table_row = tl.program_id(1), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_R)
    acc = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    for start in range(0, rows_per_program, BLOCK_T):
        rows = tl.program_id(0) * rows_per_program + start + tl.arange(0, BLOCK_T)
        inside = rows < num_rows
        place = tl.load(at + rows.to(tl.int64) * n + k, mask=inside, other=-1)
        spot = rows.to(tl.int64)[:, None] * width + offset + k * K + column[None, :]
        values = tl.load(gradient + spot, mask=inside[:, None] & (column < K)[None, :], other=0.0)
        one_hot = (table_row[:, None] == place[None, :]).to(values.dtype)
        acc = tl.dot(one_hot, values, acc, input_precision=PRECISION)
    both = (table_row < num_table_rows)[:, None] & (column < K)[None, :]
    tl.atomic_add(out + table_row[:, None] * K + column[None, :], acc, mask=both, sem="relaxed")


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
    places = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside, column = places < num_values, tl.arange(0, BLOCK_K)
    both = inside[:, None] & (column < K)[None, :]
    source = tl.load(order + places, mask=inside, other=0).to(tl.int64)
    row = tl.load(segment + places, mask=inside, other=0).to(tl.int64)
    value = tl.load(values + source[:, None] * K + column[None, :], mask=both, other=0.0).to(
        tl.float32
    )
    tl.atomic_add(out + row[:, None] * K + column[None, :], value, mask=both, sem="relaxed")


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
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """s <- s + mean(G^2), row <- row - lr G / (sqrt(s) + eps), once for each distinct key: where a
    segment begins.
    """
    places = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_K)
    row = tl.load(segment + places, mask=places < num_values, other=0)
    before = tl.load(segment + places - 1, mask=(places < num_values) & (places > 0), other=-1)
    begins = (places < num_values) & (row != before)
    both = begins[:, None] & (column < K)[None, :]
    key = tl.load(keys + places, mask=begins, other=0).to(tl.int64)
    gradient = tl.load(
        gradients + row.to(tl.int64)[:, None] * K + column[None, :], mask=both, other=0.0
    )
    total = tl.load(sums + key, mask=begins, other=0.0) + tl.sum(gradient * gradient, 1) / K
    tl.store(sums + key, total, mask=begins)
    spot = table + key[:, None] * K + column[None, :]
    value = tl.load(spot, mask=both, other=0.0).to(tl.float32)
    tl.store(spot, value - lr * gradient / (tl.sqrt(total) + eps)[:, None], mask=both)


def gather(
    items: Tensor | None,
    index: Tensor,
    columns: Tensor,
    starts: Tensor,
    table: Tensor,
    out: Tensor,
    offset: int,
) -> Tensor:
    """Writes out[t, offset + k K:][:K] = table[index[t, columns[k]] + starts[k]]; returns those
    table rows, int64 [T, n].

    Args:
        items: [T], rows of `index` to read instead of row t, or None.
        index: int [T or items, F]. columns, starts: int64 [n]. table: [rows, K]. out: [T, width].
    """
    num_rows, n, width = out.shape[0], columns.numel(), table.shape[1]
    at = torch.empty((num_rows, n), dtype=torch.int64, device=out.device)
    block_k = triton.next_power_of_2(width)
    block_t = max(16, 4096 // block_k)
    _gather[(triton.cdiv(num_rows, block_t), n)](
        items if items is not None else index,
        index,
        columns,
        starts,
        table,
        out,
        at,
        num_rows,
        index.shape[1],
        out.shape[1],
        offset,
        n,
        K=width,
        BLOCK_K=block_k,
        BLOCK_T=block_t,
        INDIRECT=items is not None,
        num_warps=8,
    )
    return at


def scatter(
    gradient: Tensor,
    at: Tensor,
    offset: int,
    num_table_rows: int,
    width: int,
) -> Tensor:
    """Returns the gradient of a table, float32 [rows, K], from that of the gathered matrix.

    Args:
        gradient: [T, width of it]. at: int64 [T, n], as `gather` returned it.
    """
    out = torch.zeros((num_table_rows, width), dtype=torch.float32, device=gradient.device)
    (num_rows, n), block_k = at.shape, max(16, triton.next_power_of_2(width))
    if num_table_rows <= SMALL_TABLE:
        per_program = max(256, triton.cdiv(triton.cdiv(num_rows, 512), 256) * 256)
        _scatter_small[(triton.cdiv(num_rows, per_program), n)](
            gradient,
            at,
            out,
            num_rows,
            num_table_rows,
            gradient.shape[1],
            offset,
            n,
            per_program,
            K=width,
            BLOCK_K=block_k,
            BLOCK_T=256,
            BLOCK_R=max(16, triton.next_power_of_2(num_table_rows)),
            PRECISION="ieee" if gradient.dtype == torch.float32 else "tf32",
        )
    else:
        _scatter[(triton.cdiv(num_rows, 128), n)](
            gradient,
            at,
            out,
            num_rows,
            gradient.shape[1],
            offset,
            n,
            K=width,
            BLOCK_K=block_k,
            BLOCK_T=128,
        )
    return out


def adagrad(
    table: Tensor, sums: Tensor, rows: Tensor, gradients: Tensor, lr: float, eps: float
) -> None:
    """Updates the rows of a table and their accumulators in place; a row that comes several times
    gets the sum of its gradients.

    Args:
        table: [num_rows, K]. sums: float32 [num_rows]. rows: int64 [n]. gradients: [n, K].
    """
    count, width = gradients.shape
    if count == 0:
        return
    keys, order = torch.sort(rows.to(torch.int32) if table.shape[0] < 2**31 else rows)
    segment = torch.zeros_like(keys)
    torch.cumsum(keys[1:] != keys[:-1], 0, dtype=segment.dtype, out=segment[1:])
    summed = torch.zeros((count, width), dtype=torch.float32, device=table.device)
    block_k = triton.next_power_of_2(width)
    block_n = max(1, 2048 // block_k)
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
        K=width,
        BLOCK_K=block_k,
        BLOCK_N=block_n,
    )
