"""The whole ranker: against a literal transcription in numpy loops (spec sections 1 to 3),
precisions, groups without features, borders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from longrec.config import ModelConfig, TrainConfig
from longrec.data.batch import RequestBatch
from longrec.errors import DataError
from longrec.nn import casting
from longrec.nn.ranker import Ranker
from longrec.schema import Feature, Schema, Task
from longrec.training import losses
from longrec.training import optimizers as optim
from tests.longrec.nn import builders

Array = np.ndarray[Any, np.dtype[np.float64]]


class Literal:
    """The ranker of one target at a time, from raw parameters: no batches, no torch, one head and
    one event after another.
    """

    def __init__(
        self, model: Ranker, config: ModelConfig, schema: Schema, sizes: dict[str, tuple[int, ...]]
    ) -> None:
        self.p = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
        self.config, self.schema, self.sizes = config, schema, sizes

    def lin(self, name: str, x: Array) -> Array:
        y: Array = self.p[f"{name}.weight"] @ x
        return y + self.p[f"{name}.bias"] if f"{name}.bias" in self.p else y

    def ffn(self, name: str, x: Array) -> Array:
        v, u = self.lin(f"{name}.w_v", x), self.lin(f"{name}.w_u", x)
        return self.lin(f"{name}.w_o", v / (1 + np.exp(-v)) * u)

    def norm(self, name: str, x: Array) -> Array:
        y: Array = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * self.p[f"{name}.weight"] + self.p[
            f"{name}.bias"
        ]
        return y

    def embed(self, group: str, features: tuple[Feature, ...], indices: list[int]) -> Array:
        parts: dict[bool, list[Array]] = {True: [], False: []}
        starts = {True: 0, False: 0}
        sizes = self.sizes[{"items": "item", "users": "user", "actions": "event"}[group]]
        for feature, size, index in zip(features, sizes, indices, strict=True):
            is_id = feature.kind == "id"
            parts[is_id].append(
                self.p[f"{group}.{'ids' if is_id else 'others'}.weight"][starts[is_id] + index]
            )
            starts[is_id] += size
        return np.concatenate([np.zeros(0), *parts[True], *parts[False]])

    def item(self, row: int) -> Array:
        return self.lin(
            "item_part",
            self.embed("items", self.schema.item, self.p["item_table"][row].astype(int).tolist()),
        )

    def bucket(self, request_time: int, time: int) -> int:
        seconds = (request_time - time) / 1000
        return 0 if seconds < 1 else min(31, 1 + math.floor(math.log2(seconds)))

    def event(self, row: int, features: list[int], bucket: int) -> Array:
        e, action = self.item(row), self.embed("actions", self.schema.event, features)
        if self.config.recency == "token":
            action = np.concatenate([action, self.p["gap.weight"][bucket]])
        a = self.lin("action_part", action)
        return e + self.ffn("fusion", np.concatenate([e, a])) if self.config.fusion else e + a

    def z(self, target: Array, events: list[Array], buckets: list[int]) -> Array:
        config, width = self.config, self.config.width
        d_h, outputs = width // config.num_heads, list[Array]()
        for i in range(config.num_layers):
            layer = f"stca.layers.{i}"
            own = (
                ("query_ffn", "query_norm")
                if f"{layer}.query_norm.weight" in self.p
                else ("ffn", "norm")
            )
            seen = outputs if config.query_fusion else outputs[-1:]
            q_in = (
                target
                if i == 0
                else self.lin(f"stca.fuse.{i - 1}", np.concatenate([*seen, target]))
            )
            q = (
                self.norm(f"{layer}.{own[1]}", self.ffn(f"{layer}.{own[0]}", q_in))
                @ self.p[f"{layer}.w_q"]
            )
            encoded = [self.norm(f"{layer}.norm", self.ffn(f"{layer}.ffn", x)) for x in events]
            joined = np.zeros(width)
            for h in range(config.num_heads):
                columns = slice(h * d_h, (h + 1) * d_h)
                logits = [
                    float(q[columns] @ (x @ self.p[f"{layer}.w_k"])[columns]) / math.sqrt(d_h)
                    for x in encoded
                ]
                if config.recency == "bias":
                    logits = [
                        logit + self.p[f"{layer}.gap_bias"][bucket, h]
                        for logit, bucket in zip(logits, buckets, strict=True)
                    ]
                total = sum(math.exp(logit - max(logits)) for logit in logits)
                for logit, x in zip(logits, encoded, strict=True):
                    joined[columns] += (
                        math.exp(logit - max(logits))
                        / total
                        * (x @ self.p[f"{layer}.w_v"])[columns]
                    )
            outputs.append(joined @ self.p[f"{layer}.w_o"])
        z = self.ffn("stca.out", self.lin("stca.join", np.concatenate([*outputs, target])))
        return self.norm("stca.out_norm", z) if config.output_norm else z

    def mix(self, tokens: list[Array]) -> Array:
        count, erf = len(tokens), np.vectorize(math.erf)
        for i in range(self.config.mixer_layers):
            block = f"mixer.blocks.{i}"
            heads = [token.reshape(count, -1) for token in tokens]
            mixed = [np.concatenate([heads[t][h] for t in range(count)]) for h in range(count)]
            states = [
                self.norm(f"{block}.norm_mix", m + token)
                for m, token in zip(mixed, tokens, strict=True)
            ]
            tokens = []
            for t, state in enumerate(states):
                hidden = state @ self.p[f"{block}.w_in"][t] + self.p[f"{block}.b_in"][t, 0]
                hidden = hidden * 0.5 * (1 + erf(hidden / math.sqrt(2)))
                tokens.append(
                    self.norm(
                        f"{block}.norm_ffn",
                        hidden @ self.p[f"{block}.w_out"][t]
                        + self.p[f"{block}.b_out"][t, 0]
                        + state,
                    )
                )
        return sum(tokens, np.zeros(self.config.width)) / count

    def logits(self, batch: RequestBatch) -> tuple[list[Array], list[Array]]:
        main, auxiliary = list[Array](), list[Array]()
        for r in range(batch.num_requests):
            request_time = int(batch.request_timestamps[r])
            span = range(int(batch.event_offsets[r]), int(batch.event_offsets[r + 1]))
            buckets = [self.bucket(request_time, int(batch.event_timestamps[i])) for i in span]
            events = [
                self.event(int(batch.event_items[i]), batch.event_features[i].tolist(), bucket)
                for i, bucket in zip(span, buckets, strict=True)
            ]
            when = datetime.datetime.fromtimestamp(request_time / 1000, datetime.UTC)
            context = (
                self.p["hour.weight"][when.hour]
                + self.p["day.weight"][(when.date() - datetime.date(1970, 1, 1)).days % 7]
            )
            user = self.lin(
                "user_part", self.embed("users", self.schema.user, batch.user_features[r].tolist())
            )
            for t in range(int(batch.target_offsets[r]), int(batch.target_offsets[r + 1])):
                target = self.item(int(batch.target_items[t]))
                z = self.z(target, events, buckets)
                main.append(self.lin("head", self.mix([z, user, target, context])))
                auxiliary.append(
                    self.lin("aux_head", z) if "aux_head.weight" in self.p else np.zeros(0)
                )
        return main, auxiliary


@pytest.mark.parametrize(("num_layers", "warned"), [(2, True), (3, False)])
def test_an_ablation_that_compares_a_model_with_itself_says_so(
    num_layers: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    batch, logits = builders.batch([7, 3], [2, 1]), []
    for query_fusion in (True, False):
        with torch.no_grad():
            logits.append(
                builders.ranker(num_layers=num_layers, query_fusion=query_fusion)(batch).logits
            )
    assert bool(torch.equal(*logits)) == warned == ("changes nothing" in caplog.text)


@pytest.mark.parametrize(
    "flags",
    [
        {"recency": "bias"},
        {"recency": "token"},
        {"recency": "none"},
        {"fusion": False, "recency": "token"},
        {"mixer_layers": 1, "num_layers": 1},
        {"share_ffn": False, "output_norm": True},
        {"query_fusion": False, "aux_loss_weight": 0.1, "ffn_ratio": 1, "num_heads": 8},
    ],
)
def test_2_the_ranker_is_the_text(flags: dict[str, Any]) -> None:
    options = {"width": 16, "num_layers": 3, "num_heads": 4, "id_dim": 6, "feature_dim": 4, **flags}
    model, whole = builders.ranker(**options), builders.batch([7, 0, 12], [2, 1, 3])
    for parameter in model.parameters():  # no bias 0 and no gain 1: every term counts
        parameter.data += 0.1 * torch.randn_like(parameter)
    with torch.no_grad():
        output = model(whole)
    main, auxiliary = Literal(
        model, ModelConfig(**options), builders.SCHEMA, builders.SIZES
    ).logits(whole)
    np.testing.assert_allclose(output.logits.numpy(), np.stack(main), rtol=1e-10, atol=1e-10)
    if output.aux_logits is not None:
        np.testing.assert_allclose(
            output.aux_logits.numpy(), np.stack(auxiliary), rtol=1e-10, atol=1e-10
        )
    assert (output.aux_logits is None) == ("aux_loss_weight" not in flags)


def bare(dtype: torch.dtype = torch.float64) -> tuple[Ranker, RequestBatch]:
    """A ranker of a log with nothing but item ids, and a batch for it."""
    schema = Schema(
        "bare", item=(Feature("item_id", "id"),), user=(), event=(), tasks=(Task("click"),)
    )
    sizes = {"item": (10,), "user": (), "event": ()}
    model = Ranker(ModelConfig(width=16, num_heads=2), schema, sizes, torch.arange(10)[:, None]).to(
        dtype
    )
    whole = builders.batch([5, 0, 9], [1, 2, 3])
    return model, dataclasses.replace(
        whole,
        event_items=whole.event_items % 10,
        target_items=whole.target_items % 10,
        event_features=whole.event_features[:, :0],
        user_features=whole.user_features[:, :0],
        labels=None,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_log_of_ids_alone_has_learned_constants_for_action_and_user(
    dtype: torch.dtype, recwarn: pytest.WarningsRecorder
) -> None:
    model, whole = bare(dtype)
    model.check(whole)
    logits = model(whole).logits
    logits.sum().backward()
    assert logits.dtype == dtype
    assert torch.isfinite(logits).all()
    for name in ("user_part", "action_part"):
        assert model.get_parameter(f"{name}.bias").grad.abs().sum() > 0, name
    assert not recwarn.list


def test_stca_is_bias_free() -> None:
    names = [
        name for name, _ in builders.ranker(recency="none", share_ffn=False).stca.named_parameters()
    ]
    assert all("norm" in name for name in names if name.endswith("bias"))


def test_bfloat16_autocast_stays_near_float32_and_returns_float32() -> None:
    model, whole = (
        builders.ranker(aux_loss_weight=0.1).float(),
        builders.batch([300, 0, 100], [4, 2, 3]),
    )
    exact = model(whole).logits
    with torch.autocast("cpu", torch.bfloat16):
        output = model(whole)
        loss = losses.total(output, whole, TrainConfig())
    loss.backward()
    assert output.logits.dtype == output.aux_logits.dtype == loss.dtype == torch.float32
    assert float((output.logits - exact).detach().abs().max()) < 0.1 * float(exact.detach().std())
    assert all(torch.isfinite(p.grad.to_dense()).all() for p in model.parameters())


class Operations(TorchDispatchMode):
    """Notes what is issued, forward and backward, with the types before and after a cast."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = str(function), kwargs or {}
        is_cast = name.startswith("aten._to_copy") and kwargs.get("dtype") not in (
            None,
            args[0].dtype,
        )
        self.seen.append(f"{name} {args[0].dtype} {kwargs['dtype']}" if is_cast else name)
        return function(*args, **kwargs)


class Reads(TorchFunctionMode):
    """Notes where Python asks for the values of a tensor."""

    ASKS = frozenset(
        {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__name__", "") in self.ASKS:
            self.seen.append(function.__name__)
        return function(*args, **(kwargs or {}))


def trained_once(model: Ranker, whole: RequestBatch) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Returns the logits and all gradients in bfloat16, and the operations that a training step
    issued.
    """
    optimizers = optim.build(model, TrainConfig())
    with Operations() as operations:
        with torch.autocast("cpu", torch.bfloat16):
            output = model(whole)
        losses.total(output, whole, TrainConfig()).backward()
        found = {
            name: p.grad.to_dense() for name, p in model.named_parameters() if p.grad is not None
        }
        optimizers.step(0.0)
    return {"logits": output.logits.detach(), **found}, operations.seen


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
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, whole = builders.ranker(**options).float(), builders.batch([70, 0, 30], [4, 2, 3])
    ours, operations = trained_once(model, whole)
    weights = dict(model.named_parameters())
    model.zero_grad()
    monkeypatch.setattr(
        casting, "cast_weights_once", lambda slots, device: contextlib.nullcontext()
    )
    theirs, more = trained_once(model, whole)
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in theirs
    )
    there_and_back = sum(line.startswith("aten._to_copy") for line in more) - sum(
        line.startswith("aten._to_copy") for line in operations
    )
    assert there_and_back >= 2 * (
        len(model._matmul_slots) - 2
    )  # a bias of an empty product and the like are not always read
    assert all(
        weights[name] is parameter for name, parameter in model.named_parameters()
    )  # and they are the parameters again


@pytest.mark.parametrize(
    "options",
    [{}, {"recency": "token", "aux_loss_weight": 0.1}, {"attention": "plain", "recency": "none"}],
)
def test_a_step_asks_the_device_for_no_value(options: dict[str, Any]) -> None:
    """What would make the host wait for a GPU: a value read, or a result whose size depends on
    values.
    """
    whole = builders.batch([70, 3, 30], [4, 2, 3])
    whole = dataclasses.replace(whole, host_counts=([70, 3, 30], [4, 2, 3]))
    model = builders.ranker(**options).float()
    with Reads() as reads:
        _, operations = trained_once(model, whole)
    waits = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "unique",
        "repeat_interleave.self_Tensor",
        "bincount",
    )
    assert not reads.seen and not [
        line for line in operations if any(word in line for word in waits)
    ]


@pytest.mark.parametrize("recency", ["bias", "none"])
def test_scoring_kept_events_asks_the_device_for_no_value(recency: str) -> None:
    model, whole = builders.ranker(recency=recency), builders.batch([70, 30], [4, 3])
    lengths, nothing = [70, 30], torch.zeros(3, dtype=torch.int64)
    parts = list(zip(*(layer.split(lengths) for layer in model.keys_values(whole)), strict=True))
    batch = dataclasses.replace(
        whole,
        event_items=whole.event_items[:0],
        event_features=whole.event_features[:0],
        event_timestamps=whole.event_timestamps[:0],
        event_offsets=nothing,
        host_counts=([0, 0], [4, 3]),
    )
    with Reads() as reads, torch.no_grad():
        scored = model.score(
            batch, model.cached(parts, whole.event_timestamps.split(lengths), batch)
        ).logits
    assert not reads.seen
    torch.testing.assert_close(
        scored, model(whole).logits, rtol=0, atol=1e-6
    )  # the bias of a gap is float32 there


@pytest.mark.parametrize("ffn", ["swiglu", "plain"])
def test_keys_and_values_of_all_layers_side_by_side_are_those_of_each(ffn: str) -> None:
    model, whole = builders.ranker(recency="bias", ffn=ffn), builders.batch([25, 14], [4, 3])
    for layer in model.stca.layers:
        torch.nn.init.normal_(layer.norm.weight)
        torch.nn.init.normal_(layer.norm.bias)
    tokens, weights = model.event_tokens(whole, None), model.stack_weights()
    assert (weights is None) == (ffn == "plain")
    for found in (model.keys_values(whole), model.keys_values(whole, weights)):
        torch.testing.assert_close(
            found, [layer.keys_values(tokens) for layer in model.stca.layers], rtol=0, atol=1e-12
        )


def test_logits_are_no_16_bit_numbers_where_products_run_in_16_bits() -> None:
    """Two scorings of one request that differ in the last bit of a 16-bit logit of 2 are 0.004 of a
    probability apart.
    """
    model, whole = builders.ranker().float(), builders.batch([70, 30], [4, 3])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(whole).logits
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())
    torch.testing.assert_close(logits, model(whole).logits, rtol=0, atol=0.05)


def test_indices_of_any_integer_type_give_the_same_scores() -> None:
    model, whole = builders.ranker(), builders.batch([25, 4], [4, 2])
    narrow = dataclasses.replace(
        whole,
        event_items=whole.event_items.int(),
        event_features=whole.event_features.int(),
        target_items=whole.target_items.int(),
        user_features=whole.user_features.int(),
    )
    assert torch.equal(model(whole).logits, model(narrow).logits)


def test_11_encode_then_score_equals_forward_with_gradients() -> None:
    for recency in ("token", "bias", "none"):
        model, whole = builders.ranker(recency=recency), builders.batch([25, 0, 14], [4, 2, 3])
        direct, apart = model(whole).logits, model.score(whole, model.encode(whole)).logits
        assert torch.equal(direct, apart)
        torch.testing.assert_close(
            torch.autograd.grad(direct.sum(), model.stca.layers[0].w_k),
            torch.autograd.grad(apart.sum(), model.stca.layers[0].w_k),
            rtol=0,
            atol=0,
        )


def test_5_only_recency_token_makes_an_encoding_depend_on_the_moment() -> None:
    for recency, differs in (("token", True), ("bias", False), ("none", False)):
        model, whole = builders.ranker(recency=recency), builders.batch([25, 14], [4, 3])
        later = dataclasses.replace(whole, request_timestamps=whole.request_timestamps + 10**10)
        pairs = list(zip(model.encode(whole), model.encode(later), strict=True))
        assert len(pairs) == 3
        assert all(torch.equal(now, then) != differs for now, then in pairs)


@pytest.mark.parametrize("recency", ["token", "bias"])
def test_the_time_gap_matters_and_the_future_counts_as_now(recency: str) -> None:
    model, whole = builders.ranker(recency=recency), builders.batch([25], [4])
    older = dataclasses.replace(
        whole, event_timestamps=whole.event_timestamps - torch.arange(25) * 10**9
    )
    assert not torch.equal(model(whole).logits, model(older).logits)
    now = dataclasses.replace(whole, event_timestamps=whole.request_timestamps.expand(25))
    future = dataclasses.replace(
        whole, event_timestamps=whole.request_timestamps.expand(25) + 10**9
    )
    assert torch.equal(model(now).logits, model(future).logits)


def test_the_context_is_the_hour_and_the_day_and_nothing_else_of_the_time() -> None:
    model, whole = builders.ranker(recency="none"), builders.batch([25], [4])

    def at(request_time: int) -> torch.Tensor:
        logits: torch.Tensor = model(
            dataclasses.replace(whole, request_timestamps=torch.tensor([request_time]))
        ).logits
        return logits

    hour, week = 3_600_000, 7 * 86_400_000
    start = builders.NOW_MS // hour * hour
    assert torch.equal(at(start), at(start + hour - 1))
    assert torch.equal(at(start), at(start + week))
    assert not torch.equal(at(start), at(start + hour))
    assert not torch.equal(at(start), at(start + 24 * hour))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda b: dataclasses.replace(
                b, event_features=b.event_features + torch.tensor([[0, 6]])
            ),
            "'played'",
        ),
        (
            lambda b: dataclasses.replace(
                b, event_features=b.event_features - torch.tensor([[4, 0]])
            ),
            "'action'",
        ),
        (lambda b: dataclasses.replace(b, event_features=b.event_features[:, :1]), "1 columns"),
        (lambda b: dataclasses.replace(b, user_features=b.user_features + 5), "'region'"),
        (
            lambda b: dataclasses.replace(b, target_items=b.target_items + builders.NUM_ITEMS + 1),
            "target_items",
        ),
        (lambda b: dataclasses.replace(b, event_offsets=b.event_offsets + 1), "event_offsets"),
    ],
)
def test_an_index_outside_its_table_is_named_at_the_border(change: Any, named: str) -> None:
    model, whole = builders.ranker(), builders.batch([25, 14], [4, 3])
    model.check(whole)
    with pytest.raises(DataError, match=named):
        model.check(change(whole))


def test_an_item_table_that_does_not_fit_its_sizes_is_refused() -> None:
    table = torch.stack([torch.tensor([0, size - 1]) for size in builders.SIZES["item"]], dim=1)
    config = ModelConfig(width=16)
    Ranker(config, builders.SCHEMA, builders.SIZES, table)
    with pytest.raises(DataError, match="'topic'"):
        Ranker(config, builders.SCHEMA, builders.SIZES, table + torch.tensor([0, 1, 0]))
    with pytest.raises(DataError, match="sizes do not fit"):
        Ranker(config, builders.SCHEMA, {**builders.SIZES, "event": (4,)}, table)
