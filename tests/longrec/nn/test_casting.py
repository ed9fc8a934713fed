"""Precisions: 16-bit products under autocast, weights cast together, and no wait for a device."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
import torch

from longrec.config import TrainConfig
from longrec.data.batch import RequestBatch
from longrec.nn import casting
from longrec.nn.ranker import Ranker
from longrec.training import losses
from longrec.training import optimizers as optim
from tests.longrec.nn import builders
from tests.longrec.nn.recorders import OperationRecorder, ValueReadRecorder

WAITING_OPERATIONS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique",
    "repeat_interleave.self_Tensor",
    "bincount",
)
"""Operations whose result depends on values that the host must read."""


def train_once(model: Ranker, batch: RequestBatch) -> tuple[dict[str, Any], OperationRecorder]:
    """Return logits and all gradients in bfloat16, and the operations of a training step."""
    optimizers = optim.build(model, TrainConfig())
    with OperationRecorder() as recorder:
        with torch.autocast("cpu", torch.bfloat16):
            output = model(batch)
        losses.total(output, batch, TrainConfig()).backward()
        results = {"logits": output.logits.detach()}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                results[name] = parameter.grad.to_dense()
        optimizers.step(0.0)
    return results, recorder


def test_bfloat16_autocast_stays_near_float32_and_returns_float32() -> None:
    model = builders.ranker(aux_loss_weight=0.1).float()
    whole = builders.batch([300, 0, 100], [4, 2, 3])
    exact = model(whole).logits
    with torch.autocast("cpu", torch.bfloat16):
        output = model(whole)
        loss = losses.total(output, whole, TrainConfig())
    loss.backward()
    assert output.logits.dtype == output.aux_logits.dtype == loss.dtype == torch.float32
    largest_error = float((output.logits - exact).detach().abs().max())
    assert largest_error < 0.1 * float(exact.detach().std())
    for parameter in model.parameters():
        assert torch.isfinite(parameter.grad.to_dense()).all()


@pytest.mark.parametrize(
    "options",
    [
        {"aux_loss_weight": 0.1, "matches": True},
        {"attention": "reordered", "recency": "token"},
        {"attention": "plain", "share_ffn": False},
        {"kind": "transformer", "recency": "none"},
    ],
)
def test_casting_weights_together_changes_no_bit_and_casts_less(
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = builders.ranker(**options).float()
    whole = builders.batch([70, 0, 30], [4, 2, 3])
    together, few_casts = train_once(model, whole)
    weights = dict(model.named_parameters())
    model.zero_grad()
    monkeypatch.setattr(
        casting,
        "cast_weights_once",
        lambda slots, device: contextlib.nullcontext(),
    )
    one_by_one, many_casts = train_once(model, whole)
    assert together.keys() == one_by_one.keys()
    for name, expected in one_by_one.items():
        assert torch.equal(together[name], expected)
    # Two casts for each weight, but a bias of an empty product and the like are not always read.
    num_saved = many_casts.num_casts - few_casts.num_casts
    assert num_saved >= 2 * (len(model._matmul_slots) - 2)
    # And the weights are the parameters again.
    for name, parameter in model.named_parameters():
        assert weights[name] is parameter


@pytest.mark.parametrize(
    "options",
    [{}, {"recency": "token", "aux_loss_weight": 0.1}, {"attention": "plain", "recency": "none"}],
)
def test_a_step_asks_the_device_for_no_value(options: dict[str, Any]) -> None:
    """Value reads, and results whose size depends on values, make the host wait for a GPU."""
    whole = builders.batch([70, 3, 30], [4, 2, 3])
    whole = dataclasses.replace(whole, host_counts=([70, 3, 30], [4, 2, 3]))
    model = builders.ranker(**options).float()
    with ValueReadRecorder() as values:
        _, recorder = train_once(model, whole)
    assert not values.reads
    for name in recorder.operations:
        assert not any(waiting in name for waiting in WAITING_OPERATIONS), name


@pytest.mark.parametrize("recency", ["bias", "none"])
def test_scoring_cached_events_asks_the_device_for_no_value(recency: str) -> None:
    lengths = [70, 30]
    model = builders.ranker(recency=recency)
    whole = builders.batch(lengths, [4, 3])
    by_layer = [layer.split(lengths) for layer in model.keys_values(whole)]
    parts = list(zip(*by_layer, strict=True))
    timestamps = whole.event_timestamps.split(lengths)
    without_events = dataclasses.replace(
        whole,
        event_items=whole.event_items[:0],
        event_features=whole.event_features[:0],
        event_timestamps=whole.event_timestamps[:0],
        event_offsets=torch.zeros(3, dtype=torch.int64),
        host_counts=([0, 0], [4, 3]),
    )
    with ValueReadRecorder() as values, torch.no_grad():
        sources = model.cached_sources(parts, timestamps, without_events)
        logits = model.score(without_events, sources).logits
    assert not values.reads
    # The bias of a gap is float32 there.
    torch.testing.assert_close(logits, model(whole).logits, rtol=0, atol=1e-6)


def test_logits_are_no_16_bit_numbers_where_products_run_in_16_bits() -> None:
    """The last bit of a 16-bit logit of 2 is 0.004 of a probability."""
    model = builders.ranker().float()
    whole = builders.batch([70, 30], [4, 3])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(whole).logits
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    torch.testing.assert_close(logits, model(whole).logits, rtol=0, atol=0.05)
