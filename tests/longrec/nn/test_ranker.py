"""The whole ranker against a literal transcription (spec sections 1 to 3), and its borders."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longrec.config import ModelConfig
from longrec.data.batch import RequestBatch
from longrec.errors import DataError
from longrec.nn.crosses import Crosses
from longrec.nn.ranker import Ranker
from longrec.schema import Feature, Schema, Task
from tests.longrec.nn import builders
from tests.longrec.nn.literal_ranker import LiteralRanker

HOUR_MS = 3_600_000
WEEK_MS = 7 * 24 * HOUR_MS


@pytest.mark.parametrize(("num_layers", "is_warned"), [(2, True), (3, False)])
def test_an_ablation_that_compares_a_model_with_itself_warns(
    num_layers: int,
    is_warned: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    batch = builders.batch([7, 3], [2, 1])
    logits = []
    for query_fusion in (True, False):
        model = builders.ranker(num_layers=num_layers, query_fusion=query_fusion)
        with torch.no_grad():
            logits.append(model(batch).logits)
    assert torch.equal(*logits) == is_warned
    assert ("changes nothing" in caplog.text) == is_warned


@pytest.mark.parametrize(
    "flags",
    [
        {"recency": "bias"},
        {"recency": "token"},
        {"recency": "none"},
        {"fusion": False, "recency": "token"},
        {"mixer_layers": 1, "num_layers": 1},
        {"share_ffn": False, "output_norm": True},
        {"output_residual": True, "uniform_heads": 2},
        {"query_fusion": False, "aux_loss_weight": 0.1, "ffn_ratio": 1, "num_heads": 8},
    ],
)
def test_2_the_ranker_is_the_text(flags: dict[str, Any]) -> None:
    options = {"width": 16, "num_layers": 3, "num_heads": 4, "id_dim": 6, "feature_dim": 4, **flags}
    model = builders.ranker(**options)
    whole = builders.batch([7, 0, 12], [2, 1, 3])
    for parameter in model.parameters():  # no bias 0 and no gain 1: every term counts
        parameter.data += 0.1 * torch.randn_like(parameter)
    with torch.no_grad():
        output = model(whole)
    config = ModelConfig(**options)
    literal = LiteralRanker(model, config, builders.SCHEMA, builders.SIZES)
    main, auxiliary = literal.logits(whole)
    close = {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(output.logits.numpy(), np.stack(main), **close)
    assert (output.aux_logits is None) == ("aux_loss_weight" not in flags)
    if output.aux_logits is not None:
        np.testing.assert_allclose(output.aux_logits.numpy(), np.stack(auxiliary), **close)


def ids_only(dtype: torch.dtype) -> tuple[Ranker, RequestBatch]:
    """Return a ranker of a log with nothing but item ids, and a batch for it."""
    schema = Schema(
        "ids-only",
        item=(Feature("item_id", "id"),),
        user=(),
        event=(),
        tasks=(Task("click"),),
    )
    sizes = {"item": (10,), "user": (), "event": ()}
    config = ModelConfig(width=16, num_heads=2)
    model = Ranker(config, schema, sizes, torch.arange(10)[:, None]).to(dtype)
    whole = builders.batch([5, 0, 9], [1, 2, 3])
    batch = dataclasses.replace(
        whole,
        event_items=whole.event_items % 10,
        target_items=whole.target_items % 10,
        event_features=whole.event_features[:, :0],
        user_features=whole.user_features[:, :0],
        labels=None,
    )
    return model, batch


def test_crosses_are_products_of_the_target_with_the_user_and_with_z() -> None:
    crosses = Crosses(4).double()
    user, z, targets = torch.randn(3, 5, 4, dtype=torch.float64).unbind()
    new_user, new_z = crosses(user, z, targets)
    products = torch.cat([user * targets, z * targets], dim=1)
    weight = crosses.part.weight
    assert torch.allclose(new_user, user + products @ weight[:4].T)
    assert torch.allclose(new_z, z + products @ weight[4:].T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_log_of_ids_alone_has_learned_constants_for_action_and_user(
    dtype: torch.dtype,
    recwarn: pytest.WarningsRecorder,
) -> None:
    model, whole = ids_only(dtype)
    model.check(whole)
    logits = model(whole).logits
    logits.sum().backward()
    assert logits.dtype == dtype
    assert torch.isfinite(logits).all()
    for name in ("user_part", "action_part"):
        assert model.get_parameter(f"{name}.bias").grad.abs().sum() > 0, name
    assert not recwarn.list


def test_stca_is_bias_free() -> None:
    stca = builders.ranker(recency="none", share_ffn=False).stca
    for name, _ in stca.named_parameters():
        assert "norm" in name or not name.endswith("bias")


@pytest.mark.parametrize("ffn", ["swiglu", "plain"])
def test_keys_and_values_of_stacked_layers_are_those_of_each(ffn: str) -> None:
    model = builders.ranker(recency="bias", ffn=ffn)
    whole = builders.batch([25, 14], [4, 3])
    for layer in model.stca.layers:
        torch.nn.init.normal_(layer.norm.weight)
        torch.nn.init.normal_(layer.norm.bias)
    tokens = model.event_tokens(whole, None)
    weights = model.stack_weights()
    assert (weights is None) == (ffn == "plain")
    expected = [layer.keys_values(tokens) for layer in model.stca.layers]
    for stacked in (model.keys_values(whole), model.keys_values(whole, weights)):
        torch.testing.assert_close(stacked, expected, rtol=0, atol=1e-12)


def test_indices_of_any_integer_type_give_the_same_scores() -> None:
    model = builders.ranker()
    whole = builders.batch([25, 4], [4, 2])
    narrow = dataclasses.replace(
        whole,
        event_items=whole.event_items.int(),
        event_features=whole.event_features.int(),
        target_items=whole.target_items.int(),
        user_features=whole.user_features.int(),
    )
    assert torch.equal(model(whole).logits, model(narrow).logits)


@pytest.mark.parametrize("recency", ["token", "bias", "none"])
def test_11_encode_then_score_equals_forward_with_gradients(recency: str) -> None:
    model = builders.ranker(recency=recency)
    whole = builders.batch([25, 0, 14], [4, 2, 3])
    direct = model(whole).logits
    apart = model.score(whole, model.encode(whole)).logits
    assert torch.equal(direct, apart)
    w_k = model.stca.layers[0].w_k
    direct_gradient = torch.autograd.grad(direct.sum(), w_k)
    apart_gradient = torch.autograd.grad(apart.sum(), w_k)
    torch.testing.assert_close(direct_gradient, apart_gradient, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("recency", "is_changed"),
    [("token", True), ("bias", False), ("none", False)],
)
def test_5_only_recency_token_makes_an_encoding_depend_on_the_request_time(
    recency: str,
    is_changed: bool,
) -> None:
    model = builders.ranker(recency=recency)
    whole = builders.batch([25, 14], [4, 3])
    later = dataclasses.replace(whole, request_timestamps=whole.request_timestamps + 10**10)
    encoded_now = model.encode(whole)
    encoded_later = model.encode(later)
    assert len(encoded_now) == 3
    for now, then in zip(encoded_now, encoded_later, strict=True):
        assert torch.equal(now, then) != is_changed


@pytest.mark.parametrize("recency", ["token", "bias"])
def test_the_time_gap_matters_and_the_future_counts_as_now(recency: str) -> None:
    model = builders.ranker(recency=recency)
    whole = builders.batch([25], [4])

    def logits(event_timestamps: Tensor) -> Tensor:
        batch = dataclasses.replace(whole, event_timestamps=event_timestamps)
        result: Tensor = model(batch).logits
        return result

    ages_ms = torch.arange(25) * 10**9
    now = whole.request_timestamps.expand(25)
    older = logits(whole.event_timestamps - ages_ms)
    assert not torch.equal(logits(whole.event_timestamps), older)
    assert torch.equal(logits(now), logits(now + 10**9))


def test_the_context_is_the_hour_and_the_day_and_nothing_else_of_the_time() -> None:
    model = builders.ranker(recency="none")
    whole = builders.batch([25], [4])

    def logits(request_time: int) -> Tensor:
        batch = dataclasses.replace(whole, request_timestamps=torch.tensor([request_time]))
        result: Tensor = model(batch).logits
        return result

    start = builders.NOW_MS // HOUR_MS * HOUR_MS
    assert torch.equal(logits(start), logits(start + HOUR_MS - 1))
    assert torch.equal(logits(start), logits(start + WEEK_MS))
    assert not torch.equal(logits(start), logits(start + HOUR_MS))
    assert not torch.equal(logits(start), logits(start + 24 * HOUR_MS))


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("event_features", lambda features: features + torch.tensor([[0, 6]]), "'played'"),
        ("event_features", lambda features: features - torch.tensor([[4, 0]]), "'action'"),
        ("event_features", lambda features: features[:, :1], "1 columns"),
        ("user_features", lambda features: features + 5, "'region'"),
        ("target_items", lambda items: items + builders.NUM_ITEMS + 1, "target_items"),
        ("event_offsets", lambda offsets: offsets + 1, "event_offsets"),
    ],
)
def test_an_index_outside_its_table_is_named_at_the_border(
    field: str,
    change: Any,
    message: str,
) -> None:
    model = builders.ranker()
    whole = builders.batch([25, 14], [4, 3])
    model.check(whole)
    changed = dataclasses.replace(whole, **{field: change(getattr(whole, field))})
    with pytest.raises(DataError, match=message):
        model.check(changed)


def test_an_item_table_that_does_not_fit_its_sizes_is_refused() -> None:
    columns = [torch.tensor([0, size - 1]) for size in builders.SIZES["item"]]
    table = torch.stack(columns, dim=1)
    config = ModelConfig(width=16)
    Ranker(config, builders.SCHEMA, builders.SIZES, table)
    with pytest.raises(DataError, match="'topic'"):
        Ranker(config, builders.SCHEMA, builders.SIZES, table + torch.tensor([0, 1, 0]))
    with pytest.raises(DataError, match="sizes do not fit"):
        Ranker(config, builders.SCHEMA, {**builders.SIZES, "event": (4,)}, table)


def test_a_uniform_head_starts_with_the_mean_of_the_history() -> None:
    model = builders.ranker(num_heads=2, uniform_heads=1, recency="none", num_layers=1)
    layer = model.stca.layers[0]
    events = torch.randn(64, 16, dtype=torch.float64)
    segments = builders.segments([64], [1])
    with torch.no_grad():
        encoded = layer.encode(events)
        query = layer.query(events[:1])
        output = layer.attend(query, encoded, segments, None)
        mean = (encoded.mean(dim=0) @ layer.w_v)[None]
        by_head = torch.linalg.solve(layer.w_o.T, output.T).T
    sharp, uniform = (by_head - mean).abs().chunk(2, dim=1)
    assert uniform.max() < 0.1 * sharp.max()
