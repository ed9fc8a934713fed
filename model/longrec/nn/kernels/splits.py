# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Splitting of a history over programs, and the merge of their softmax sums.

A single history of 100,000 events still fills the device: each of its splits has its own program.
A program returns unnormalized sums with their maximum, and `merge_splits` rescales and adds them.

Shape letters: S splits, R requests, H heads, K head width. Logits are in units of log2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
"""Factor of logits: exp(x) = exp2(x * LOG2E), and exp2 is one instruction."""
MERGE_BLOCK_ELEMENTS = 256
"""Elements of a row block that one program merges."""


@triton.jit
def split_bounds(
    offsets,
    request,
    split,
    splits,
    BLOCK_L: tl.constexpr,
):
    """Return the first event of one split of a request, and the number of its events.

    The number is int32: only loops over int32 are pipelined.
    """
    start = tl.load(offsets + request)
    end = tl.load(offsets + request + 1)
    size = tl.cdiv(tl.cdiv(end - start, splits), BLOCK_L) * BLOCK_L
    first = tl.minimum(start + split * size, end)
    return first, tl.minimum(size, end - first).to(tl.int32)


@triton.jit(do_not_specialize=["num_rows", "splits"])
def _merge_splits(
    split_outputs,
    split_maxima,
    split_sums,
    out,
    lse,
    num_rows,
    splits,
    H: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Merge the sums of all splits of BLOCK_N rows; a row without events gets 0."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    head = tl.program_id(1)
    inside = rows < num_rows
    D: tl.constexpr = H * K
    columns = head * K + tl.arange(0, K)
    maximum = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    acc = tl.zeros((BLOCK_N, K), tl.float32)
    split_rows = rows.to(tl.int64)
    for _ in tl.range(0, splits, num_stages=3):
        scalars = split_rows * H + head
        matrix = split_rows[:, None] * D + columns[None, :]
        split_maximum = tl.load(split_maxima + scalars, mask=inside, other=float("-inf"))
        split_total = tl.load(split_sums + scalars, mask=inside, other=0.0)
        split_acc = tl.load(split_outputs + matrix, mask=inside[:, None], other=0.0)
        new_maximum = tl.maximum(maximum, split_maximum)
        # -inf - -inf is NaN: sums over no event have weight 0 instead.
        rescale = tl.where(maximum == float("-inf"), 0.0, tl.exp2(maximum - new_maximum))
        weight = tl.where(split_maximum == float("-inf"), 0.0, tl.exp2(split_maximum - new_maximum))
        total = total * rescale + split_total * weight
        acc = acc * rescale[:, None] + split_acc * weight[:, None]
        maximum = new_maximum
        split_rows += num_rows
    is_empty = total == 0.0
    total = tl.where(is_empty, 1.0, total)
    tl.store(out + rows[:, None] * D + columns[None, :], acc / total[:, None], mask=inside[:, None])
    log_sum_exp = tl.where(is_empty, 0.0, maximum + tl.log2(total))
    tl.store(lse + rows * H + head, log_sum_exp, mask=inside)


def split_buffers(
    shape: tuple[int, int, int],
    head_width: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return uninitialized float32 buffers: outputs [S, rows, H K], maxima and sums [S, rows, H].

    Args:
        shape: S, rows and H.
        head_width: K.
        device: of the kernels.
    """
    splits, num_rows, heads = shape
    outputs = torch.empty(
        (splits, num_rows, heads * head_width),
        dtype=torch.float32,
        device=device,
    )
    maxima = torch.empty(shape, dtype=torch.float32, device=device)
    sums = torch.empty_like(maxima)
    return outputs, maxima, sums


def merge_splits(
    split_outputs: Tensor,
    split_maxima: Tensor,
    split_sums: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    heads: int,
    head_width: int,
) -> None:
    """Write the merged sums of all splits; rows without events get 0.

    Args:
        split_outputs: float32 [S, rows, H K], sums of weights times values.
        split_maxima, split_sums: float32 [S, rows, H], maximum of the logits, sum of the weights.
        out: [rows, H K].
        lse: float32 [rows, H], log2-sum-exp of the logits.
        heads, head_width: H and K.
    """
    splits, num_rows = split_maxima.shape[:2]
    block = max(1, MERGE_BLOCK_ELEMENTS // head_width)
    _merge_splits[(triton.cdiv(num_rows, block), heads)](
        split_outputs,
        split_maxima,
        split_sums,
        out,
        lse,
        num_rows,
        splits,
        H=heads,
        K=head_width,
        BLOCK_N=block,
        num_warps=1,
    )


def attention_precision(tensor: Tensor) -> str:
    """Return the precision of the products of attention.

    A float32 product is the sum of three tf32 products of its operands' parts, almost as precise.
    16-bit operands are not affected.
    """
    return "tf32x3" if tensor.dtype == torch.float32 else "tf32"
