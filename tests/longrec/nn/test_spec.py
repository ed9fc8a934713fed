"""What a faithful implementation proves: spec section 7, by number (8 needs a GPU:
model/benchmarks/gpu_check.py).
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from longrec.config import ModelConfig, TrainConfig
from longrec.nn import stca
from longrec.nn.flops import stca_flops
from longrec.nn.layers import gap_buckets
from longrec.nn.ranker import Ranker
from longrec.nn.target_attention import (
    AttentionInputs,
    Segments,
    attend,
    cheaper_order,
    reference,
    reordered,
)
from longrec.training import losses
from tests.longrec.nn import builders

RECENCIES = ["token", "bias", "none"]


def scores(model: Ranker, batch: object) -> Tensor:
    with torch.no_grad():
        return model(batch).logits


def close(left: Tensor, right: Tensor, bound: float = 1e-10) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=bound)


# 1
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=5),
    targets=st.integers(1, 6),
    heads=st.sampled_from([1, 2, 4, 8]),
    biased=st.booleans(),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 10**6),
)
def test_1_reordered_equals_plain_with_all_gradients(
    lengths: list[int], targets: int, heads: int, biased: bool, scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    width, events, rows = 16, sum(lengths), targets * len(lengths)
    shapes = {
        "queries": (rows, width),
        "tokens": (events, width),
        "w_q": (width, width),
        "w_k": (width, width),
        "w_v": (width, width),
    }
    tensors = {
        name: scale * torch.randn(shape, dtype=torch.float64)
        if name == "queries"
        else torch.randn(shape, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    if biased:
        tensors["bias"] = torch.randn((events, heads), dtype=torch.float64)
    upstream = torch.randn((rows, width), dtype=torch.float64)
    segments = builders.segments(lengths, [targets] * len(lengths))
    results = []
    for order in ("plain", "reordered"):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
        output = attend(AttentionInputs(**leaves, num_heads=heads, segments=segments), order)  # type: ignore[arg-type]
        if output.requires_grad:  # no event at all: constant zeros
            output.backward(upstream)
        results.append(
            [
                output.detach(),
                *(
                    leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
                    for leaf in leaves.values()
                ),
            ]
        )
    for plain, other in zip(*results, strict=True):
        size = float(plain.abs().max()) if plain.numel() else 0.0
        close(plain, other, 1e-10 * max(1.0, size))


def test_1_the_choice_follows_the_break_even() -> None:
    assert cheaper_order(36, 256, 8) == "reordered"
    assert cheaper_order(37, 256, 8) == "plain"
    assert cheaper_order(10**6, 256, 1) == "reordered"


# 2
def literal(
    model: Ranker,
    state: dict[str, Tensor],
    config: ModelConfig,
    tokens: Tensor,
    targets: Tensor,
    gaps: Tensor,
) -> Tensor:
    """Section 2 of the spec, one request, written from its text and the raw parameters."""

    def ffn(name: str, x: Tensor) -> Tensor:
        u, v, o = (state[f"stca.{name}.{part}.weight"].T for part in ("w_u", "w_v", "w_o"))
        hidden = x @ v
        return (hidden * torch.sigmoid(hidden) * (x @ u)) @ o

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred**2).mean(-1, keepdim=True)
        return (
            centred / torch.sqrt(variance + 1e-5) * state[f"stca.{name}.weight"]
            + state[f"stca.{name}.bias"]
        )

    heads, head_width = config.num_heads, config.width // config.num_heads
    outputs: list[Tensor] = []
    for i in range(config.num_layers):
        own = ("query_ffn", "query_norm") if not config.share_ffn else ("ffn", "norm")
        seen = outputs if config.query_fusion else outputs[-1:]
        mixed = (
            targets
            if i == 0
            else torch.cat([*seen, targets], -1) @ state[f"stca.fuse.{i - 1}.weight"].T
        )
        q = norm(f"layers.{i}.{own[1]}", ffn(f"layers.{i}.{own[0]}", mixed))
        x = norm(f"layers.{i}.norm", ffn(f"layers.{i}.ffn", tokens))
        w_q, w_k, w_v, w_o = (state[f"stca.layers.{i}.w_{name}"] for name in "qkvo")
        parts = []
        for h in range(heads):
            own_columns = slice(h * head_width, (h + 1) * head_width)
            logits = (q @ w_q[:, own_columns]) @ (x @ w_k[:, own_columns]).T / math.sqrt(head_width)
            if config.recency == "bias":
                logits = logits + state[f"stca.layers.{i}.gap_bias"][gaps, h]
            attention = torch.exp(logits - logits.max()) if logits.numel() else logits
            attention = attention / attention.sum(-1, keepdim=True) if logits.numel() else attention
            parts.append(attention @ (x @ w_v[:, own_columns]))
        outputs.append(torch.cat(parts, -1) @ w_o)
    z = ffn("out", torch.cat([*outputs, targets], -1) @ state["stca.join.weight"].T)
    return norm("out_norm", z) if config.output_norm else z


@pytest.mark.parametrize("recency", RECENCIES)
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"share_ffn": False},
        {"query_fusion": False},
        {"output_norm": True},
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
    model, whole = builders.ranker(**options), builders.batch([9, 0, 33], [2, 3, 1])
    config = ModelConfig(**{"id_dim": 6, "feature_dim": 4, **options})  # type: ignore[arg-type]
    gaps = gap_buckets(
        whole.request_timestamps.repeat_interleave(whole.event_offsets.diff()),
        whole.event_timestamps,
    )
    with torch.no_grad():
        events, targets = (
            model.event_tokens(whole, model.gaps(whole)),
            model.item_tokens(whole.target_items),
        )
        segments = Segments.from_offsets(whole.event_offsets, whole.target_offsets)
        z = model.stca(targets, events, segments, model.gaps(whole))
        for r in range(3):
            e, t = (
                slice(*whole.event_offsets[r : r + 2].tolist()),
                slice(*whole.target_offsets[r : r + 2].tolist()),
            )
            close(z[t], literal(model, model.state_dict(), config, events[e], targets[t], gaps[e]))


def test_2_gap_buckets_are_log2_of_seconds() -> None:
    gaps_ms = torch.tensor([-5, 0, 999, 1000, 1999, 2000, 3999, 4000, 86_400_000, 2**62])
    assert gap_buckets(gaps_ms, torch.zeros(10, dtype=torch.int64)).tolist() == [
        0,
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        17,
        31,
    ]


# 3
def test_3_an_empty_history_is_finite_and_learns() -> None:
    model, whole = builders.ranker(), builders.batch([0, 0], [2, 1])
    output = model(whole)
    output.logits.sum().backward()
    assert torch.isfinite(output.logits).all()
    assert all(
        torch.isfinite(p.grad.to_dense()).all() for p in model.parameters() if p.grad is not None
    )


@pytest.mark.parametrize("attention", ["plain", "reordered"])
def test_3_users_are_isolated_in_a_batch(attention: str) -> None:
    model, whole = builders.ranker(attention=attention), builders.batch([12, 30, 0], [2, 4, 3])
    changed = dataclasses.replace(
        whole,
        event_items=torch.where(
            torch.arange(42) < 12, (whole.event_items + 1) % 40, whole.event_items
        ),
    )
    before, after = scores(model, whole), scores(model, changed)
    assert (before[:2] != after[:2]).any()
    close(before[2:], after[2:], 0)


# 4
@pytest.mark.parametrize("recency", RECENCIES)
def test_4_order_of_events_does_not_matter(recency: str) -> None:
    model, whole = builders.ranker(recency=recency), builders.batch([40], [5])
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
    model, whole = builders.ranker(recency="bias"), builders.batch([20, 7], [3, 2])
    later = dataclasses.replace(
        whole,
        target_items=whole.target_items.flip(0),
        request_timestamps=whole.request_timestamps + 10**9,
    )
    with torch.no_grad():
        ours = model.stca.encode(model.event_tokens(whole, model.gaps(whole)))
        theirs = model.stca.encode(model.event_tokens(later, model.gaps(later)))
    for left, right in zip(ours, theirs, strict=True):
        close(left, right, 0)


@pytest.mark.parametrize("attention", ["plain", "reordered"])
def test_5_a_target_changes_only_its_own_score(attention: str) -> None:
    model, whole = builders.ranker(attention=attention), builders.batch([25, 14], [4, 3])
    changed = dataclasses.replace(
        whole,
        target_items=torch.where(
            torch.arange(7) == 2, (whole.target_items + 1) % 40, whole.target_items
        ),
    )
    before, after = scores(model, whole), scores(model, changed)
    same = torch.arange(7) != 2
    close(before[same], after[same])
    assert (before[2] != after[2]).all()


def test_5_order_of_candidates_and_company_do_not_matter() -> None:
    model, whole = builders.ranker(), builders.batch([25, 14, 3], [4, 3, 2])
    turned = scores(model, builders.pick(whole, [1, 0], {0: [2, 0, 1], 1: [3]}))
    before = scores(model, whole)
    close(turned, before[[6, 4, 5, 3]])


# 6
def gradients(model: Ranker, batch: object, objective: str) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = losses.total(model(batch), batch, TrainConfig(loss=objective))  # type: ignore[arg-type]
    loss.backward()
    return loss.detach(), {
        name: p.grad.to_dense().clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


@pytest.mark.parametrize("attention", ["plain", "reordered"])
@pytest.mark.parametrize("recency", RECENCIES)
def test_6_rlb_equals_the_per_sample_expansion(attention: str, recency: str) -> None:
    model, whole = (
        builders.ranker(attention=attention, recency=recency, aux_loss_weight=0.1),
        builders.batch([25, 0, 40], [4, 4, 4]),
    )
    alone = builders.expanded(whole)
    assert alone.num_events == 4 * whole.num_events
    close(scores(model, whole), scores(model, alone))
    loss, ours = gradients(model, whole, "request")
    other, theirs = gradients(
        model, alone, "target"
    )  # equal to the request mean, since every request has four targets
    close(loss, other)
    assert set(ours) == set(theirs) == {name for name, p in model.named_parameters()}
    for name, gradient in ours.items():
        close(gradient, theirs[name])
        assert float(gradient.abs().max()) > 0, name


def test_6_unequal_requests_weigh_the_same_by_request() -> None:
    model, whole = builders.ranker(), builders.batch([25, 5], [6, 1])
    loss, _ = gradients(model, whole, "request")
    each = [gradients(model, builders.pick(whole, [r]), "request")[0] for r in range(2)]
    close(loss, torch.stack(each).mean())


def largest_saved(model: Ranker, batch: object) -> int:
    """Returns the number of elements of the largest tensor that the forward pass keeps for the
    backward pass.
    """
    largest = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(batch).logits.sum()
    return largest


class Largest(TorchDispatchMode):
    """Notes the number of elements behind the largest tensor that any operation makes, kept or
    not.
    """

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self.elements = max(
                    self.elements, tensor.untyped_storage().nbytes() // tensor.element_size()
                )
        return made


@pytest.mark.parametrize("attention", ["plain", "reordered"])
def test_6_nothing_of_size_targets_times_events_times_width_is_made_or_saved(
    attention: str,
) -> None:
    lengths, targets, width, heads = [300, 200], [16, 16], 16, 4
    model, whole = builders.ranker(attention=attention), builders.batch(lengths, targets)
    all_pairs = 16 * sum(lengths) * width
    assert (
        largest_saved(model, builders.expanded(whole)) >= all_pairs
    )  # what must not be: a history for each target
    bound = max(sum(lengths) * 2 * width, 16 * max(lengths) * heads)
    assert largest_saved(model, whole) <= bound < all_pairs / 6
    with Largest() as made:
        gradients(model, whole, "request")
    assert made.elements <= bound


# 7
@pytest.mark.parametrize("attention", ["plain", "reordered"])
def test_7_packing_equals_one_request_at_a_time(attention: str) -> None:
    model, whole = (
        builders.ranker(attention=attention),
        builders.batch([25, 0, 61, 8], [4, 1, 3, 2]),
    )
    alone = torch.cat([scores(model, builders.pick(whole, [r])) for r in range(4)])
    close(scores(model, whole), alone)


@pytest.mark.parametrize("targets", [[1, 30], [30, 1]])
def test_1_the_order_is_chosen_by_the_targets_of_the_events(
    targets: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    for module in (reference, reordered):
        monkeypatch.setattr(
            module,
            "attend",
            lambda inputs, name=module.__name__, real=module.attend: (
                taken.append(name) or real(inputs)
            ),
        )
    model, whole = (
        builders.ranker(num_layers=1, attention="auto"),
        builders.batch([200, 4], targets),
    )
    scores(model, whole)
    assert taken == [
        "longrec.nn.target_attention." + ("reordered" if targets[0] == 1 else "reference")
    ]


def test_7_recomputation_keeps_no_hidden_row() -> None:
    model, whole = builders.ranker(), builders.batch([300], [2])
    before = largest_saved(model, whole)
    model.stca.recompute, model.fusion = (
        True,
        None,
    )  # the fusion's own hidden rows are kept either way
    assert largest_saved(model, whole) <= 300 * 16 < before


def test_7_chunks_and_recomputation_equal_the_direct_pass() -> None:
    model, whole = builders.ranker(), builders.batch([25, 0, 61], [4, 1, 3])
    loss, direct = gradients(model, whole, "request")
    for chunk, recompute in ((7, False), (0, True), (7, True)):
        model.stca.chunk_events, model.stca.recompute = chunk, recompute
        other, theirs = gradients(model, whole, "request")
        close(loss, other)
        for name, gradient in direct.items():
            close(gradient, theirs[name])


# 9
@pytest.mark.parametrize("attention", ["plain", "reordered", "auto"])
@pytest.mark.parametrize("query_fusion", [True, False])
def test_9_counted_flops_follow_the_formula_and_are_linear(
    attention: str, query_fusion: bool
) -> None:
    config = ModelConfig(
        width=64,
        num_layers=3,
        num_heads=4,
        attention=attention,
        query_fusion=query_fusion,  # type: ignore[arg-type]
        recency="none",
    )
    model, targets, counted = stca.STCA(config), 8, {}
    assert stca_flops(config, 10, targets).encode == 3 * 6 * 2 * 10 * 64**2  # M layers of 6 r L d^2
    for length in (0, 500, 1000, 2000):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(
                torch.randn(targets, 64),
                torch.randn(length, 64),
                builders.segments([length], [targets]),
            )
        counted[length] = counter.get_total_flops()
    for length in (500, 1000, 2000):
        history = stca_flops(config, length, targets)
        assert counted[length] - counted[0] == pytest.approx(
            history.encode + history.attend, rel=0.01
        )
        assert counted[length] == history.total
    assert counted[2000] - counted[1000] == 2 * (counted[1000] - counted[500])


# 11
def test_11_serving_length_is_no_weight_and_cached_encodings_score_the_same() -> None:
    model, whole = builders.ranker(recency="bias"), builders.batch([60, 30], [3, 2])
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for length in (60, 10, 0):
        keep = [torch.arange(max(end - length, start), end) for start, end in ((0, 60), (60, 90))]
        index = torch.cat(keep)
        shorter = dataclasses.replace(
            whole,
            event_items=whole.event_items[index],
            event_features=whole.event_features[index],
            event_timestamps=whole.event_timestamps[index],
            event_offsets=builders.offsets([len(part) for part in keep]),
        )
        with torch.no_grad():
            # each event encoded on its own, at another time, as a cache holds it
            alone = [model.stca.encode(row[None]) for row in model.event_tokens(whole, None)]
            cached = [torch.cat(parts)[index] for parts in zip(*alone, strict=True)]
            close(model.score(shorter, cached).logits, model(shorter).logits)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
