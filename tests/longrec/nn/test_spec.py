"""Properties of a faithful implementation: spec section 7, points 1 to 5.

Points 6 to 11 are in test_spec_cost.py. Point 8 needs a GPU: model/benchmarks/gpu_check.py.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longrec.config import ModelConfig
from longrec.nn.target_attention import (
    AttentionInputs,
    Segments,
    attend,
    cheaper_order,
    reference,
    reordered,
)
from longrec.nn.time_gaps import gap_buckets
from tests.longrec.nn import builders
from tests.longrec.nn.builders import close, scores

RECENCIES = ["token", "bias", "none"]


# 1
def attend_with_gradients(
    tensors: dict[str, Tensor],
    upstream: Tensor,
    order: str,
    **options: Any,
) -> list[Tensor]:
    """Return the attention output and the gradients of all tensors."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    output = attend(AttentionInputs(**leaves, **options), order)  # type: ignore[arg-type]
    if output.requires_grad:  # no event at all: constant zeros
        output.backward(upstream)
    gradients = []
    for leaf in leaves.values():
        gradients.append(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
    return [output.detach(), *gradients]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=5),
    targets=st.integers(1, 6),
    heads=st.sampled_from([1, 2, 4, 8]),
    has_bias=st.booleans(),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 10**6),
)
def test_1_reordered_equals_plain_with_all_gradients(
    lengths: list[int],
    targets: int,
    heads: int,
    has_bias: bool,
    scale: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    width = 16
    num_events = sum(lengths)
    num_rows = targets * len(lengths)
    tensors = {
        "queries": scale * torch.randn(num_rows, width, dtype=torch.float64),
        "tokens": torch.randn(num_events, width, dtype=torch.float64),
        "w_q": torch.randn(width, width, dtype=torch.float64),
        "w_k": torch.randn(width, width, dtype=torch.float64),
        "w_v": torch.randn(width, width, dtype=torch.float64),
    }
    if has_bias:
        tensors["bias"] = torch.randn(num_events, heads, dtype=torch.float64)
    upstream = torch.randn(num_rows, width, dtype=torch.float64)
    options = {
        "num_heads": heads,
        "segments": builders.segments(lengths, [targets] * len(lengths)),
    }
    plain = attend_with_gradients(tensors, upstream, "plain", **options)
    other = attend_with_gradients(tensors, upstream, "reordered", **options)
    for left, right in zip(plain, other, strict=True):
        size = float(left.abs().max()) if left.numel() else 0.0
        close(left, right, 1e-10 * max(1.0, size))


def test_1_the_choice_follows_the_break_even() -> None:
    assert cheaper_order(36, 256, 8) == "reordered"
    assert cheaper_order(37, 256, 8) == "plain"
    assert cheaper_order(10**6, 256, 1) == "reordered"


@pytest.mark.parametrize(
    ("targets", "expected"),
    [([1, 30], reordered), ([30, 1], reference)],
)
def test_1_the_order_is_chosen_by_the_targets_of_the_events(
    targets: list[int],
    expected: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def record(module: Any) -> None:
        attend_by_module = module.attend

        def recorded(inputs: AttentionInputs) -> Tensor:
            calls.append(module)
            output: Tensor = attend_by_module(inputs)
            return output

        monkeypatch.setattr(module, "attend", recorded)

    record(reference)
    record(reordered)
    model = builders.ranker(num_layers=1, attention="auto")
    scores(model, builders.batch([900, 4], targets))
    assert calls == [expected]


# 2
class LiteralStack:
    """Section 2 of the spec for one request, written from its text and the raw parameters."""

    def __init__(self, state: dict[str, Tensor], config: ModelConfig) -> None:
        self.state = state
        self.config = config

    def ffn(self, name: str, x: Tensor) -> Tensor:
        v = x @ self.state[f"stca.{name}.w_v.weight"].T
        u = x @ self.state[f"stca.{name}.w_u.weight"].T
        return (v * torch.sigmoid(v) * u) @ self.state[f"stca.{name}.w_o.weight"].T

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred**2).mean(-1, keepdim=True)
        normed = centred / torch.sqrt(variance + 1e-5)
        return normed * self.state[f"stca.{name}.weight"] + self.state[f"stca.{name}.bias"]

    def z(self, tokens: Tensor, targets: Tensor, gaps: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for i in range(self.config.num_layers):
            mixed = targets
            if i > 0:
                fused = outputs if self.config.query_fusion else outputs[-1:]
                weight = self.state[f"stca.fuse.{i - 1}.weight"]
                mixed = torch.cat([*fused, targets], -1) @ weight.T
            outputs.append(self.layer(f"layers.{i}", tokens, mixed, gaps))
        joined = torch.cat([*outputs, targets], -1) @ self.state["stca.join.weight"].T
        z = self.ffn("out", joined)
        if self.config.output_residual:
            z = z + joined
        return self.norm("out_norm", z) if self.config.output_norm else z

    def layer(self, layer: str, tokens: Tensor, mixed: Tensor, gaps: Tensor) -> Tensor:
        heads = self.config.num_heads
        head_width = self.config.width // heads
        prefix = "" if self.config.share_ffn else "query_"
        query = self.norm(f"{layer}.{prefix}norm", self.ffn(f"{layer}.{prefix}ffn", mixed))
        x = self.norm(f"{layer}.norm", self.ffn(f"{layer}.ffn", tokens))
        w_q, w_k, w_v, w_o = (self.state[f"stca.{layer}.w_{name}"] for name in "qkvo")
        parts = []
        for h in range(heads):
            columns = slice(h * head_width, (h + 1) * head_width)
            logits = (query @ w_q[:, columns]) @ (x @ w_k[:, columns]).T
            logits = logits / math.sqrt(head_width)
            if self.config.recency == "bias":
                logits = logits + self.state[f"stca.{layer}.gap_bias"][gaps, h]
            weights = logits
            if logits.numel():
                exponentials = torch.exp(logits - logits.max())
                weights = exponentials / exponentials.sum(-1, keepdim=True)
            parts.append(weights @ (x @ w_v[:, columns]))
        return torch.cat(parts, -1) @ w_o


@pytest.mark.parametrize("recency", RECENCIES)
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"share_ffn": False},
        {"query_fusion": False},
        {"output_norm": True},
        {"output_residual": True},
        {"num_layers": 1},
        {"ffn_ratio": 3},
    ],
)
@pytest.mark.parametrize("attention", ["plain", "reordered"])
def test_2_the_stack_is_the_text(recency: str, flags: dict[str, object], attention: str) -> None:
    options = {
        "width": 16,
        "num_layers": 3,
        "num_heads": 4,
        "recency": recency,
        "attention": attention,
        **flags,
    }
    lengths = [9, 0, 33]
    num_targets = [2, 3, 1]
    model = builders.ranker(**options)
    whole = builders.batch(lengths, num_targets)
    config = ModelConfig(**{"id_dim": 6, "feature_dim": 4, **options})  # type: ignore[arg-type]
    request_times = whole.request_timestamps.repeat_interleave(whole.event_offsets.diff())
    gaps = gap_buckets(request_times, whole.event_timestamps)
    literal = LiteralStack(model.state_dict(), config)
    segments = Segments.from_offsets(whole.event_offsets, whole.target_offsets)
    with torch.no_grad():
        events = model.event_tokens(whole, model.gaps(whole))
        targets = model.item_tokens(whole.target_items)
        z = model.stca(targets, events, segments, model.gaps(whole))
        requests = zip(
            z.split(num_targets),
            events.split(lengths),
            targets.split(num_targets),
            gaps.split(lengths),
            strict=True,
        )
        for z_of_request, *inputs in requests:
            close(z_of_request, literal.z(*inputs))


def test_2_gap_buckets_are_log2_of_seconds() -> None:
    gaps_ms = torch.tensor([-5, 0, 999, 1000, 1999, 2000, 3999, 4000, 86_400_000, 2**62])
    buckets = gap_buckets(gaps_ms, torch.zeros(10, dtype=torch.int64))
    assert buckets.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 17, 31]


# 3
def test_3_an_empty_history_is_finite_and_learns() -> None:
    model = builders.ranker()
    output = model(builders.batch([0, 0], [2, 1]))
    output.logits.sum().backward()
    assert torch.isfinite(output.logits).all()
    for parameter in model.parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad.to_dense()).all()


@pytest.mark.parametrize("attention", ["plain", "reordered"])
def test_3_users_are_isolated_in_a_batch(attention: str) -> None:
    model = builders.ranker(attention=attention)
    whole = builders.batch([12, 30, 0], [2, 4, 3])
    items = whole.event_items.clone()
    items[:12] = (items[:12] + 1) % 40
    before = scores(model, whole)
    after = scores(model, dataclasses.replace(whole, event_items=items))
    assert (before[:2] != after[:2]).any()
    close(before[2:], after[2:], 0)


# 4
@pytest.mark.parametrize("recency", RECENCIES)
def test_4_order_of_events_does_not_matter(recency: str) -> None:
    model = builders.ranker(recency=recency)
    whole = builders.batch([40], [5])
    order = torch.randperm(40)
    shuffled = dataclasses.replace(
        whole,
        event_items=whole.event_items[order],
        event_features=whole.event_features[order],
        event_timestamps=whole.event_timestamps[order],
    )
    close(scores(model, whole), scores(model, shuffled))


# 5
def test_5_encodings_know_no_target_and_bias_leaves_them_unchanged_in_time() -> None:
    model = builders.ranker(recency="bias")
    whole = builders.batch([20, 7], [3, 2])
    later = dataclasses.replace(
        whole,
        target_items=whole.target_items.flip(0),
        request_timestamps=whole.request_timestamps + 10**9,
    )
    with torch.no_grad():
        encoded_now = model.encode(whole)
        encoded_later = model.encode(later)
    for now, then in zip(encoded_now, encoded_later, strict=True):
        close(now, then, 0)


@pytest.mark.parametrize("attention", ["plain", "reordered"])
def test_5_a_target_changes_only_its_own_score(attention: str) -> None:
    model = builders.ranker(attention=attention)
    whole = builders.batch([25, 14], [4, 3])
    items = whole.target_items.clone()
    items[2] = (items[2] + 1) % 40
    before = scores(model, whole)
    after = scores(model, dataclasses.replace(whole, target_items=items))
    is_same = torch.arange(7) != 2
    close(before[is_same], after[is_same])
    assert (before[2] != after[2]).all()


def test_5_order_of_candidates_and_company_do_not_matter() -> None:
    model = builders.ranker()
    whole = builders.batch([25, 14, 3], [4, 3, 2])
    picked = builders.pick(whole, [1, 0], {0: [2, 0, 1], 1: [3]})
    close(scores(model, picked), scores(model, whole)[[6, 4, 5, 3]])
