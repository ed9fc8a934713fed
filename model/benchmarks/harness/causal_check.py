"""Checks of the kernels of causal attention that the baselines Transformer and HSTU call."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from harness.comparison import Check, Tensors, compare
from longrec.nn.baselines import hstu, transformer
from longrec.nn.fused import paths as fused_paths
from longrec.nn.target_attention import Segments

Attention = Callable[[Tensor, Segments], Tensor]
MODELS: dict[str, tuple[int, Attention]] = {
    "transformer": (3, transformer.attention),
    "hstu": (4, hstu.attention),
}
"""Projections of a token, and the attention."""
SIZES = (
    ([1500, 0, 777], [1, 1, 40], 32),
    ([200, 1, 0, 128, 129, 63] * 8, [32, 1, 3, 0, 65, 2] * 8, 16),
    ([0, 0], [3, 1], 16),
    ([300], [5], 64),
    ([300, 20], [5, 130], 128),
)
"""Events and targets of each request, and the head width."""
NUM_HEADS = 4


def check_causal_attention(device: torch.device) -> Iterator[Check]:
    """Causal attention of Transformer and HSTU: values and gradients, bfloat16."""
    for name in MODELS:
        for lengths, num_targets, width in SIZES:
            yield _check_case(name, Segments.from_counts(lengths, num_targets, device), width)


def _check_case(
    name: str,
    segments: Segments,
    width: int,
) -> Check:
    torch.manual_seed(0)
    num_projections, attend = MODELS[name]
    num_tokens = sum(segments.num_events) + sum(segments.num_targets)
    device = segments.event_offsets.device
    leaf = torch.randn(num_tokens, num_projections, NUM_HEADS, width, device=device).bfloat16()
    upstream = torch.randn(num_tokens, NUM_HEADS, width, device=device).bfloat16()

    def run(dtype: torch.dtype) -> Tensors:
        own = leaf.to(dtype).clone().requires_grad_()
        output = attend(own, segments)
        output.backward(upstream.to(dtype))
        assert own.grad is not None
        return {"logits": output.detach(), "gradient": own.grad}

    ours = run(torch.bfloat16)
    with fused_paths.reference_only():
        plain = run(torch.bfloat16)
    longest = max(segments.num_events)
    title = f"{name} R={len(segments.num_events)} L<={longest} d_h={width}"
    return compare(title, ours, plain, run(torch.float64))
