"""Baselines against literal transcriptions of their equations, in float64.

A transcription takes one target, one event and one head after another.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from longrec.config import ModelConfig, TrainConfig
from longrec.errors import ConfigError
from longrec.nn.baselines import sequence_model
from longrec.nn.baselines.din import DIN
from longrec.nn.target_attention import Segments
from longrec.nn.time_gaps import NUM_GAP_BUCKETS
from longrec.training import losses
from tests.longrec.nn import builders

Array = npt.NDArray[np.float64]
Inputs = tuple[Tensor, Tensor, Segments, Tensor]
WIDTH = 16
HEADS = 4
HEAD_WIDTH = WIDTH // HEADS
LENGTHS = [5, 0, 1, 12]
TARGETS = [3, 2, 1, 4]
KINDS = ("mean", "din", "din_sum", "target_attention", "sim", "transformer", "hstu")
BIAS_KINDS = ("din", "din_sum", "target_attention", "sim", "stca")
"""Kinds that can add a gap bias."""


def config(kind: str, **options: object) -> ModelConfig:
    defaults = {
        "kind": kind,
        "width": WIDTH,
        "num_heads": HEADS,
        "num_layers": 2,
        "id_dim": 6,
        "feature_dim": 4,
        "recency": "bias" if kind in BIAS_KINDS else "token",
        "retrieved": 4,
    }
    return ModelConfig(**{**defaults, **options})  # type: ignore[arg-type]


def model_of(kind: str, **options: object) -> nn.Module:
    """Return a float64 model with no parameter left at an initial value that hides a term."""
    torch.manual_seed(1)
    model = sequence_model(config(kind, **options)).double()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 or name == "gap_bias":
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def inputs(lengths: list[int] = LENGTHS, targets: list[int] = TARGETS) -> Inputs:
    torch.manual_seed(2)
    return (
        torch.randn(sum(targets), WIDTH, dtype=torch.float64),
        torch.randn(sum(lengths), WIDTH, dtype=torch.float64),
        builders.segments(lengths, targets),
        torch.randint(0, NUM_GAP_BUCKETS, (sum(lengths),)),
    )


class Literal:
    """z of one target at a time, from raw parameters."""

    def __init__(self, kind: str, model: nn.Module, options: ModelConfig) -> None:
        self.kind = kind
        self.options = options
        self.parameters = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def linear(self, name: str, x: Array) -> Array:
        y: Array = self.parameters[f"{name}.weight"] @ x
        bias = self.parameters.get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(self, name: str, x: Array) -> Array:
        normed = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        scaled: Array = normed * self.parameters[f"{name}.weight"]
        return scaled + self.parameters[f"{name}.bias"]

    def ffn(self, name: str, x: Array) -> Array:
        gate = silu(self.linear(f"{name}.w_v", x))
        return self.linear(f"{name}.w_o", gate * self.linear(f"{name}.w_u", x))

    def z(self, target: Array, events: list[Array], gaps: list[int]) -> Array:
        if self.kind in ("transformer", "hstu"):
            return self.norm("norm", self.sequence([*events, target])[-1])
        if self.kind == "mean":
            interest = self.mean(events)
        elif self.kind in ("din", "din_sum"):
            interest = self.din(target, events, gaps)
        else:
            interest = self.attention(target, events, gaps)
        joined = self.linear("join.join", np.concatenate([interest, target]))
        return self.ffn("join.out", joined)

    def mean(self, events: list[Array]) -> Array:
        return sum(events, np.zeros(WIDTH)) / max(len(events), 1)

    def din(self, target: Array, events: list[Array], gaps: list[int]) -> Array:
        weights = []
        for x, gap in zip(events, gaps, strict=True):
            pair = np.concatenate([x, target, x - target, x * target])
            hidden = silu(self.linear("unit.0", pair))
            hidden = silu(self.linear("unit.2", hidden))
            logit = float(self.linear("unit.4", hidden)[0])
            weights.append(logit + self.parameters["gap_bias"][gap, 0])
        if self.kind == "din":
            weights = softmax(weights)
        return weighted_sum(weights, events, WIDTH)

    def attention(self, target: Array, events: list[Array], gaps: list[int]) -> Array:
        query = self.norm("norm", target) @ self.parameters["w_q"]
        normed = [self.norm("norm", event) for event in events]
        keys = [x @ self.parameters["w_k"] for x in normed]
        values = [x @ self.parameters["w_v"] for x in normed]
        heads = [slice(h * HEAD_WIDTH, (h + 1) * HEAD_WIDTH) for h in range(HEADS)]
        logits = np.zeros((HEADS, len(events)))
        for h, head in enumerate(heads):
            for j, key in enumerate(keys):
                logits[h, j] = query[head] @ key[head] / math.sqrt(HEAD_WIDTH)
        attended = list(range(len(events)))
        if self.kind == "sim":
            scores = logits.sum(0)
            attended = sorted(attended, key=lambda j: -scores[j])[: self.options.retrieved]
        output = np.zeros(WIDTH)
        for h, head in enumerate(heads):
            gap_bias = self.parameters["gap_bias"][:, h]
            weights = softmax([logits[h, j] + gap_bias[gaps[j]] for j in attended])
            own_values = [values[j][head] for j in attended]
            output[head] = weighted_sum(weights, own_values, HEAD_WIDTH)
        result: Array = output @ self.parameters["w_o"]
        return result

    def sequence(self, rows: list[Array]) -> list[Array]:
        for i in range(self.options.num_layers):
            rows = getattr(self, self.kind)(f"blocks.{i}", rows)
        return rows

    def transformer(self, block: str, rows: list[Array]) -> list[Array]:
        qkv = []
        for row in rows:
            projected = self.linear(f"{block}.qkv", self.norm(f"{block}.norm", row))
            qkv.append(projected.reshape(3, HEADS, HEAD_WIDTH))
        updated = []
        for position, row in enumerate(rows):
            seen = qkv[: position + 1]
            heads = []
            for h in range(HEADS):
                query = qkv[position][0, h]
                weights = softmax([query @ past[1, h] / math.sqrt(HEAD_WIDTH) for past in seen])
                heads.append(weighted_sum(weights, [past[2, h] for past in seen], HEAD_WIDTH))
            row = row + self.linear(f"{block}.out", np.concatenate(heads))
            updated.append(row + self.ffn(f"{block}.ffn", self.norm(f"{block}.ffn_norm", row)))
        return updated

    def hstu(self, block: str, rows: list[Array]) -> list[Array]:
        uvqk = []
        for row in rows:
            projected = self.linear(f"{block}.uvqk", self.norm(f"{block}.norm", row))
            uvqk.append(silu(projected).reshape(4, HEADS, HEAD_WIDTH))
        updated = []
        for position, row in enumerate(rows):
            seen = uvqk[: position + 1]
            heads = []
            for h in range(HEADS):
                query = uvqk[position][2, h]
                logits = [query @ past[3, h] / math.sqrt(HEAD_WIDTH) for past in seen]
                weights = [silu(logit) / len(rows) for logit in logits]
                heads.append(weighted_sum(weights, [past[1, h] for past in seen], HEAD_WIDTH))
            normed = self.norm(f"{block}.attended_norm", np.concatenate(heads))
            gated = normed * uvqk[position][0].ravel()
            updated.append(row + self.linear(f"{block}.out", gated))
        return updated


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(logit - max(logits)) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


def weighted_sum(weights: list[float], rows: list[Array], width: int) -> Array:
    total = np.zeros(width)
    for weight, row in zip(weights, rows, strict=True):
        total += weight * row
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_a_baseline_equals_its_equations(kind: str) -> None:
    model = model_of(kind)
    targets, events, segments, gaps = inputs()
    literal = Literal(kind, model, config(kind))
    requests = zip(
        targets.split(TARGETS),
        events.split(LENGTHS),
        gaps.split(LENGTHS),
        strict=True,
    )
    expected = []
    for own_targets, history, own_gaps in requests:
        for target in own_targets:
            expected.append(literal.z(target.numpy(), list(history.numpy()), own_gaps.tolist()))
    with torch.no_grad():
        z = model(targets, events, segments, gaps)
    np.testing.assert_allclose(z.numpy(), np.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_and_requests_do_not_see_each_other(kind: str) -> None:
    model = model_of(kind)
    targets, events, segments, gaps = inputs()
    with torch.no_grad():
        z = model(targets, events, segments, gaps)
        alone = model(targets[6:8], events[6:], builders.segments([12], [2]), gaps[6:])
    torch.testing.assert_close(alone, z[6:8], rtol=0, atol=1e-12)


def test_sim_that_retrieves_every_event_is_target_attention() -> None:
    whole = model_of("target_attention")
    sim = model_of("sim", retrieved=12)
    sim.load_state_dict(whole.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(sim(*inputs()), whole(*inputs()), rtol=0, atol=1e-12)


def test_an_event_that_sim_does_not_retrieve_gets_no_gradient() -> None:
    targets, events, segments, gaps = inputs([12], [1])
    z = model_of("sim")(targets, events.requires_grad_(), segments, gaps)
    z.sum().backward()
    has_gradient = events.grad.abs().sum(1) > 0
    assert int(has_gradient.sum()) == 4


@pytest.mark.parametrize(("kind", "is_same"), [("din", True), ("din_sum", False)])
def test_the_sum_of_din_grows_with_the_history_and_its_softmax_does_not(
    kind: str,
    is_same: bool,
) -> None:
    targets, events, segments, gaps = inputs([12], [1])
    model = model_of(kind)
    assert isinstance(model, DIN)
    once = model(targets, events, segments, gaps)
    twice = model(
        targets,
        torch.cat([events, events]),
        builders.segments([24], [1]),
        torch.cat([gaps, gaps]),
    )
    assert torch.allclose(once, twice) is is_same


@pytest.mark.parametrize("kind", KINDS)
def test_a_ranker_of_every_kind_learns_and_all_its_parameters_do(kind: str) -> None:
    torch.manual_seed(0)
    options = config(kind, aux_loss_weight=0.1)
    names = ("kind", "width", "num_heads", "recency", "retrieved", "aux_loss_weight")
    model = builders.ranker(**{name: getattr(options, name) for name in names})
    batch = builders.batch([9, 0, 4, 30], [3, 2, 2, 5])
    loss = losses.total(model(batch), batch, TrainConfig())
    loss.backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not idle
    assert math.isfinite(float(loss.detach()))


@pytest.mark.parametrize("kind", ["mean", "transformer", "hstu"])
def test_a_gap_bias_that_a_kind_cannot_use_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.recency=token"):
        ModelConfig(kind=kind, recency="bias")  # type: ignore[arg-type]


def test_only_stca_encodes_a_history_apart_from_its_targets() -> None:
    model = builders.ranker(kind="hstu", recency="token")
    batch = builders.batch([3], [2])
    with pytest.raises(ConfigError, match="found hstu; expected model"):
        model.encode(batch)
