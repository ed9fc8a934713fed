"""The attention of many short histories: values and gradients of the plain order."""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from longrec.nn.target_attention import AttentionInputs, attend, padded, reference
from tests.longrec.nn import builders

WIDTH = 8
HEADS = 2


def random_tensors(num_events: int, num_targets: int) -> list[Tensor]:
    """Return queries, tokens, W_Q, W_K, W_V and bias."""
    shapes = [(num_targets, WIDTH), (num_events, WIDTH), *[(WIDTH, WIDTH)] * 3]
    shapes.append((num_events, HEADS))
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def inputs(tensors: list[Tensor], lengths: list[int], targets: list[int]) -> AttentionInputs:
    queries, tokens, w_q, w_k, w_v, bias = tensors
    segments = builders.segments(lengths, targets)
    return AttentionInputs(queries, tokens, w_q, w_k, w_v, HEADS, segments, bias)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(
        st.tuples(st.integers(0, 70), st.integers(0, 4)),
        min_size=2,
        max_size=8,
    ),
    seed=st.integers(0, 10**6),
)
def test_values_and_gradients_are_those_of_the_plain_order(
    counts: list[tuple[int, int]], seed: int
) -> None:
    assume(any(length and number for length, number in counts))
    torch.manual_seed(seed)
    lengths = [length for length, _ in counts]
    targets = [number for _, number in counts]
    tensors = random_tensors(sum(lengths), sum(targets))
    upstream = torch.randn(sum(targets), WIDTH, dtype=torch.float64)
    results = []
    for order in (padded, reference):
        output = order.attend(inputs(tensors, lengths, targets))
        gradients = torch.autograd.grad(output, tensors, upstream)
        results.append([output, *gradients])
    for ours, expected in zip(*results, strict=True):
        assert torch.allclose(ours, expected, atol=1e-10)


def test_long_histories_are_read_one_by_one() -> None:
    short = random_tensors(20, 2)
    assert padded.usable(inputs(short, [10, 10], [1, 1]))
    long = random_tensors(2_000, 2)
    assert not padded.usable(inputs(long, [1_000, 1_000], [1, 1]))


def test_without_any_event_every_weight_still_has_a_gradient() -> None:
    tensors = random_tensors(0, 3)
    output = attend(inputs(tensors, [0, 0], [1, 2]))
    assert not output.any()
    gradients = torch.autograd.grad(output.sum(), tensors)
    assert len(gradients) == len(tensors)
