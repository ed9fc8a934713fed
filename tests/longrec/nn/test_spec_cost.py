"""Properties of a faithful implementation: spec section 7, points 6 to 11.

These are sharing, memory, FLOPs and serving. Point 8 needs a GPU: model/benchmarks/gpu_check.py.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from longrec.config import ModelConfig, TrainConfig
from longrec.data.batch import RequestBatch
from longrec.nn.flops import stca_flops
from longrec.nn.ranker import Ranker
from longrec.nn.stca import STCA
from longrec.training import losses
from tests.longrec.nn import builders
from tests.longrec.nn.builders import close, scores
from tests.longrec.nn.recorders import LargestTensorRecorder

RECENCIES = ["token", "bias", "none"]


# 6
def gradients(
    model: Ranker,
    batch: RequestBatch,
    objective: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and all gradients."""
    model.zero_grad()
    config = TrainConfig(loss=objective)  # type: ignore[arg-type]
    loss = losses.total(model(batch), batch, config)
    loss.backward()
    by_name = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            by_name[name] = parameter.grad.to_dense().clone()
    return loss.detach(), by_name


@pytest.mark.parametrize("attention", ["plain", "reordered"])
@pytest.mark.parametrize("recency", RECENCIES)
def test_6_rlb_equals_the_per_sample_expansion(attention: str, recency: str) -> None:
    model = builders.ranker(attention=attention, recency=recency, aux_loss_weight=0.1)
    whole = builders.batch([25, 0, 40], [4, 4, 4])
    expanded = builders.expanded(whole)
    assert expanded.num_events == 4 * whole.num_events
    close(scores(model, whole), scores(model, expanded))
    loss, shared = gradients(model, whole, "request")
    # The mean over targets equals the one over requests, for every request has four targets.
    expanded_loss, copied = gradients(model, expanded, "target")
    close(loss, expanded_loss)
    assert set(shared) == set(copied) == {name for name, _ in model.named_parameters()}
    for name, gradient in shared.items():
        close(gradient, copied[name])
        assert float(gradient.abs().max()) > 0, name


def test_6_unequal_requests_weigh_the_same_by_request() -> None:
    model = builders.ranker()
    whole = builders.batch([25, 5], [6, 1])
    loss, _ = gradients(model, whole, "request")
    of_requests = []
    for request in range(2):
        loss_of_request, _ = gradients(model, builders.pick(whole, [request]), "request")
        of_requests.append(loss_of_request)
    close(loss, torch.stack(of_requests).mean())


def largest_saved(model: Ranker, batch: RequestBatch) -> int:
    """Return the elements of the largest tensor that forward saves for the backward pass."""
    largest = 0

    def save(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        model(batch).logits.sum()
    return largest


@pytest.mark.parametrize("attention", ["plain", "reordered"])
def test_6_nothing_of_size_targets_times_events_times_width_is_made_or_saved(
    attention: str,
) -> None:
    lengths = [300, 200]
    targets = 16
    width = 16
    heads = 4
    model = builders.ranker(attention=attention)
    whole = builders.batch(lengths, [targets, targets])
    all_pairs = targets * sum(lengths) * width
    # The expansion has a history for each target.
    assert largest_saved(model, builders.expanded(whole)) >= all_pairs
    bound = max(sum(lengths) * 2 * width, targets * max(lengths) * heads)
    assert largest_saved(model, whole) <= bound < all_pairs / 6
    with LargestTensorRecorder() as made:
        gradients(model, whole, "request")
    assert made.num_elements <= bound


# 7
@pytest.mark.parametrize("attention", ["plain", "reordered"])
def test_7_packing_equals_one_request_at_a_time(attention: str) -> None:
    model = builders.ranker(attention=attention)
    whole = builders.batch([25, 0, 61, 8], [4, 1, 3, 2])
    alone = [scores(model, builders.pick(whole, [request])) for request in range(4)]
    close(scores(model, whole), torch.cat(alone))


def test_7_recomputation_saves_no_hidden_row() -> None:
    model = builders.ranker()
    whole = builders.batch([300], [2])
    before = largest_saved(model, whole)
    model.enable_recompute()
    model.fusion = None  # the hidden rows of the fusion are saved either way
    assert largest_saved(model, whole) <= 300 * 16 < before


@pytest.mark.parametrize(("chunk_events", "recompute"), [(7, False), (0, True), (7, True)])
def test_7_chunks_and_recomputation_equal_the_direct_pass(
    chunk_events: int,
    recompute: bool,
) -> None:
    model = builders.ranker()
    whole = builders.batch([25, 0, 61], [4, 1, 3])
    loss, direct = gradients(model, whole, "request")
    model.stca.chunk_events = chunk_events
    model.stca.recompute = recompute
    other_loss, other = gradients(model, whole, "request")
    close(loss, other_loss)
    for name, gradient in direct.items():
        close(gradient, other[name])


# 9
@pytest.mark.parametrize("attention", ["plain", "reordered", "auto"])
@pytest.mark.parametrize("query_fusion", [True, False])
def test_9_counted_flops_follow_the_formula_and_are_linear(
    attention: str,
    query_fusion: bool,
) -> None:
    config = ModelConfig(
        width=64,
        num_layers=3,
        num_heads=4,
        attention=attention,  # type: ignore[arg-type]
        query_fusion=query_fusion,
        recency="none",
    )
    targets = 8
    model = STCA(config)
    assert stca_flops(config, 10, targets).encode == 3 * 6 * 2 * 10 * 64**2  # M layers of 6 r L d^2
    counted = {}
    for length in (0, 500, 1000, 2000):
        inputs = (torch.randn(targets, 64), torch.randn(length, 64))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*inputs, builders.segments([length], [targets]))
        counted[length] = counter.get_total_flops()
    for length in (500, 1000, 2000):
        formula = stca_flops(config, length, targets)
        of_events = counted[length] - counted[0]
        assert of_events == pytest.approx(formula.encode + formula.attend, rel=0.01)
        assert counted[length] == formula.total
    assert counted[2000] - counted[1000] == 2 * (counted[1000] - counted[500])


# 11
def most_recent(whole: RequestBatch, length: int) -> tuple[RequestBatch, Tensor]:
    """Return the batch with at most `length` events a request, and the rows of these events."""
    rows = []
    bounds = whole.event_offsets.tolist()
    for start, end in itertools.pairwise(bounds):
        rows.append(torch.arange(max(end - length, start), end))
    index = torch.cat(rows)
    shorter = dataclasses.replace(
        whole,
        event_items=whole.event_items[index],
        event_features=whole.event_features[index],
        event_timestamps=whole.event_timestamps[index],
        event_offsets=builders.offsets([len(part) for part in rows]),
    )
    return shorter, index


@pytest.mark.parametrize("length", [60, 10, 0])
def test_11_serving_length_is_no_weight_and_cached_encodings_score_the_same(length: int) -> None:
    model = builders.ranker(recency="bias")
    whole = builders.batch([60, 30], [3, 2])
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shorter, index = most_recent(whole, length)
    with torch.no_grad():
        # Each event is encoded on its own, at another time, as a cache holds it.
        alone = [model.stca.encode(row[None]) for row in model.event_tokens(whole, None)]
        cached = [torch.cat(rows)[index] for rows in zip(*alone, strict=True)]
        close(model.score(shorter, cached).logits, model(shorter).logits)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])
