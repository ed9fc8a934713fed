"""Print the largest error of the kernels of causal attention in Triton's interpreter, as JSON.

A process of its own: Triton reads TRITON_INTERPRET when it is imported. Truth and reference are the
padded groups of the baselines, in float64.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from longrec.nn.baselines import hstu, transformer
from longrec.nn.target_attention import Segments
from tests.longrec.nn import builders

Attention = Callable[[Tensor, Segments], Tensor]
HEADS = 2
SIZES: dict[str, tuple[list[int], list[int], int]] = {
    "mixed lengths": ([5, 0, 1, 70, 131], [3, 2, 1, 40, 1], 16),
    "no event": ([0, 0], [2, 3], 16),
    "no target": ([3, 66], [0, 0], 16),
    "one event": ([1], [1], 32),
    "a whole block": ([64, 128], [64, 1], 16),
}
KINDS: dict[str, tuple[int, type[torch.autograd.Function], Attention]] = {
    "transformer": (3, transformer.SoftmaxAttention, transformer.attention),
    "hstu": (4, hstu.PointwiseAttention, hstu.attention),
}
POISON = 6e4


def poisoned(tensor: Tensor) -> Tensor:
    """Fill a tensor with a number that no result holds; the interpreter has tensors of others."""
    return tensor.fill_(POISON) if tensor.is_floating_point() else tensor


def poisoned_empty(*arguments: object, **options: object) -> Tensor:
    """Return a new tensor full of a number that no result holds."""
    return poisoned(EMPTY_LIKE(*arguments, **options))


def poisoned_new_empty(tensor: Tensor, *arguments: object, **options: object) -> Tensor:
    """Return a new tensor like new_empty, full of a number that no result holds."""
    return poisoned(NEW_EMPTY(tensor, *arguments, **options))


EMPTY_LIKE = torch.empty_like
NEW_EMPTY = Tensor.new_empty


def results_of(
    attend: Attention,
    leaf: Tensor,
    upstream: Tensor,
    segments: Segments,
) -> list[Tensor]:
    """Return the attention and the gradient of the projections."""
    own = leaf.clone().requires_grad_()
    output = attend(own, segments)
    output.backward(upstream)
    assert own.grad is not None
    return [output.detach().double(), own.grad.double()]


def largest_error(kind: str, size: str, dtype: torch.dtype) -> float:
    """Return the largest error of one case, of output and gradients, over the largest value."""
    torch.manual_seed(0)
    projections, function, reference = KINDS[kind]
    lengths, num_targets, width = SIZES[size]
    segments = builders.segments(lengths, num_targets)
    num_tokens = sum(lengths) + sum(num_targets)
    leaf = torch.randn(num_tokens, projections, HEADS, width).to(dtype)
    upstream = torch.randn(num_tokens, HEADS, width).to(dtype)
    ours = results_of(function.apply, leaf, upstream, segments)
    truth = results_of(reference, leaf.double(), upstream.double(), segments)
    errors = []
    for own, expected in zip(ours, truth, strict=True):
        difference = float((own - expected).abs().max())
        errors.append(difference / float(expected.abs().max()))
    return max(errors)


def cases() -> Iterator[tuple[str, str, torch.dtype]]:
    """Yield (kind, size, dtype) of every case."""
    for kind in KINDS:
        for size in SIZES:
            yield kind, size, torch.float32
        yield kind, "mixed lengths", torch.float16


def main() -> None:
    """Print a JSON object of errors by case."""
    torch.empty_like = poisoned_empty
    Tensor.new_empty = poisoned_new_empty  # type: ignore[method-assign]
    errors = {}
    for kind, size, dtype in cases():
        name = f"{kind}, {size}, {str(dtype).removeprefix('torch.')}"
        errors[name] = largest_error(kind, size, dtype)
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
