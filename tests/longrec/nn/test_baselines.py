"""Every baseline against a literal transcription of its equations: one target, one event and one
head after another, in float64.
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
from longrec.nn.baselines import history_reader
from longrec.nn.baselines.din import DIN
from longrec.nn.layers import NUM_GAP_BUCKETS
from longrec.training import losses
from tests.longrec.nn import worlds

Array = npt.NDArray[np.float64]
WIDTH, HEADS, LENGTHS, TARGETS = 16, 4, [5, 0, 1, 12], [3, 2, 1, 4]
KINDS = ("mean", "din", "din_sum", "target_attention", "sim", "transformer", "hstu")
READING_GAPS = ("din", "din_sum", "target_attention", "sim", "stca")


def config(kind: str, **options: object) -> ModelConfig:
    recency = "bias" if kind in READING_GAPS else "token"
    return ModelConfig(
        **{
            "kind": kind,
            "width": WIDTH,
            "num_heads": HEADS,
            "num_layers": 2,
            "id_dim": 6,
            "feature_dim": 4,  # type: ignore
            "recency": recency,
            "retrieved": 4,
            **options,
        }
    )


def reader(kind: str, **options: object) -> nn.Module:
    """Returns a float64 model with no parameter left at an initial value that hides a term."""
    torch.manual_seed(1)
    model = history_reader(config(kind, **options)).double()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 or name == "gap_bias":
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def inputs(lengths: list[int] = LENGTHS, targets: list[int] = TARGETS) -> tuple[Tensor, ...]:
    torch.manual_seed(2)
    return (
        torch.randn(sum(targets), WIDTH, dtype=torch.float64),
        torch.randn(sum(lengths), WIDTH, dtype=torch.float64),
        worlds.offsets(lengths),
        worlds.offsets(targets),
        torch.randint(0, NUM_GAP_BUCKETS, (sum(lengths),)),
    )


class Literal:
    """z of one target at a time, from raw parameters."""

    def __init__(self, kind: str, model: nn.Module, options: ModelConfig) -> None:
        self.kind, self.options = kind, options
        self.p = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def lin(self, name: str, x: Array) -> Array:
        y: Array = self.p[f"{name}.weight"] @ x
        return y + self.p[f"{name}.bias"] if f"{name}.bias" in self.p else y

    def norm(self, name: str, x: Array) -> Array:
        y: Array = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * self.p[f"{name}.weight"] + self.p[
            f"{name}.bias"
        ]
        return y

    def ffn(self, name: str, x: Array) -> Array:
        return self.lin(
            f"{name}.w_o", silu(self.lin(f"{name}.w_v", x)) * self.lin(f"{name}.w_u", x)
        )

    def z(self, target: Array, events: list[Array], gaps: list[int]) -> Array:
        if self.kind in ("transformer", "hstu"):
            return self.norm("norm", self.sequence([*events, target])[-1])
        interest = {"mean": self.mean, "din": self.din, "din_sum": self.din}.get(
            self.kind, self.attention
        )(target, events, gaps)
        return self.ffn("join.out", self.lin("join.join", np.concatenate([interest, target])))

    def mean(self, target: Array, events: list[Array], gaps: list[int]) -> Array:
        return sum(events, np.zeros(WIDTH)) / max(len(events), 1)

    def din(self, target: Array, events: list[Array], gaps: list[int]) -> Array:
        weights = []
        for x, gap in zip(events, gaps, strict=True):
            hidden = silu(self.lin("unit.0", np.concatenate([x, target, x - target, x * target])))
            weights.append(
                float(self.lin("unit.4", silu(self.lin("unit.2", hidden)))[0])
                + self.p["gap_bias"][gap, 0]
            )
        if self.kind == "din":
            weights = softmax(weights)
        return sum((w * x for w, x in zip(weights, events, strict=True)), np.zeros(WIDTH))

    def attention(self, target: Array, events: list[Array], gaps: list[int]) -> Array:
        d_h, joined = WIDTH // HEADS, np.zeros(WIDTH)
        q, xs = self.norm("norm", target) @ self.p["w_q"], [self.norm("norm", x) for x in events]
        slices = [slice(h * d_h, (h + 1) * d_h) for h in range(HEADS)]
        raw = [[float(q[s] @ (x @ self.p["w_k"])[s]) / math.sqrt(d_h) for x in xs] for s in slices]
        seen = list(range(len(xs)))
        if self.kind == "sim":
            seen = sorted(seen, key=lambda j: -sum(row[j] for row in raw))[: self.options.retrieved]
        for h, s in enumerate(slices):
            weights = softmax([raw[h][j] + self.p["gap_bias"][gaps[j], h] for j in seen])
            for weight, j in zip(weights, seen, strict=True):
                joined[s] += weight * (xs[j] @ self.p["w_v"])[s]
        return joined @ self.p["w_o"]

    def sequence(self, rows: list[Array]) -> list[Array]:
        for i in range(self.options.num_layers):
            rows = getattr(self, self.kind)(f"blocks.{i}", rows)
        return rows

    def transformer(self, block: str, rows: list[Array]) -> list[Array]:
        d_h, new = WIDTH // HEADS, []
        qkv = [
            self.lin(f"{block}.qkv", self.norm(f"{block}.norm", row)).reshape(3, HEADS, d_h)
            for row in rows
        ]
        for place, row in enumerate(rows):
            heads = []
            for h in range(HEADS):
                weights = softmax(
                    [
                        float(qkv[place][0, h] @ qkv[j][1, h]) / math.sqrt(d_h)
                        for j in range(place + 1)
                    ]
                )
                heads.append(sum((w * qkv[j][2, h] for j, w in enumerate(weights)), np.zeros(d_h)))
            row = row + self.lin(f"{block}.out", np.concatenate(heads))
            new.append(row + self.ffn(f"{block}.ffn", self.norm(f"{block}.ffn_norm", row)))
        return new

    def hstu(self, block: str, rows: list[Array]) -> list[Array]:
        d_h, new = WIDTH // HEADS, []
        uvqk = [
            silu(self.lin(f"{block}.uvqk", self.norm(f"{block}.norm", row))).reshape(4, HEADS, d_h)
            for row in rows
        ]
        for place, row in enumerate(rows):
            heads = []
            for h in range(HEADS):
                weights = [
                    silu(uvqk[place][2, h] @ uvqk[j][3, h] / math.sqrt(d_h)) / len(rows)
                    for j in range(place + 1)
                ]
                heads.append(sum((w * uvqk[j][1, h] for j, w in enumerate(weights)), np.zeros(d_h)))
            gated = (
                self.norm(f"{block}.attended_norm", np.concatenate(heads)) * uvqk[place][0].ravel()
            )
            new.append(row + self.lin(f"{block}.out", gated))
        return new


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def softmax(logits: list[float]) -> list[float]:
    raised = [math.exp(logit - max(logits)) for logit in logits]
    return [value / sum(raised) for value in raised]


@pytest.mark.parametrize("kind", KINDS)
def test_a_baseline_equals_its_equations(kind: str) -> None:
    model, (targets, events, event_offsets, target_offsets, gaps) = reader(kind), inputs()
    literal, expected = Literal(kind, model, config(kind)), []
    for r in range(len(LENGTHS)):
        span = slice(int(event_offsets[r]), int(event_offsets[r + 1]))
        for target in targets[target_offsets[r] : target_offsets[r + 1]]:
            expected.append(
                literal.z(target.numpy(), list(events[span].numpy()), gaps[span].tolist())
            )
    with torch.no_grad():
        z = model(targets, events, event_offsets, target_offsets, gaps)
    np.testing.assert_allclose(z.numpy(), np.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_and_requests_do_not_see_each_other(kind: str) -> None:
    model, (targets, events, event_offsets, target_offsets, gaps) = reader(kind), inputs()
    with torch.no_grad():
        z = model(targets, events, event_offsets, target_offsets, gaps)
        alone = model(targets[6:8], events[6:], worlds.offsets([12]), worlds.offsets([2]), gaps[6:])
    torch.testing.assert_close(alone, z[6:8], rtol=0, atol=1e-12)


def test_sim_with_room_for_every_event_is_target_attention() -> None:
    whole, sim = reader("target_attention"), reader("sim", retrieved=12)
    sim.load_state_dict(whole.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(sim(*inputs()), whole(*inputs()), rtol=0, atol=1e-12)


def test_an_event_that_sim_does_not_retrieve_gets_no_gradient() -> None:
    targets, events, event_offsets, target_offsets, gaps = inputs([12], [1])
    reader("sim")(
        targets, events.requires_grad_(), event_offsets, target_offsets, gaps
    ).sum().backward()
    assert int((events.grad.abs().sum(1) > 0).sum()) == 4


def test_the_sum_of_din_grows_with_the_history_and_its_softmax_does_not() -> None:
    targets, events, _, _, gaps = inputs([12], [1])
    twice, gaps = torch.cat([events, events]), torch.cat([gaps, gaps])
    for kind, same in (("din", True), ("din_sum", False)):
        model = reader(kind)
        assert isinstance(model, DIN)
        once, again = (
            model(
                targets, rows, worlds.offsets([len(rows)]), worlds.offsets([1]), gaps[: len(rows)]
            )
            for rows in (events, twice)
        )
        assert torch.allclose(once, again) is same


@pytest.mark.parametrize("kind", KINDS)
def test_a_ranker_of_every_kind_learns_and_all_its_parameters_do(kind: str) -> None:
    torch.manual_seed(0)
    options = config(kind, aux_loss_weight=0.1)
    names = ("kind", "width", "num_heads", "recency", "retrieved", "aux_loss_weight")
    model = worlds.ranker(**{name: getattr(options, name) for name in names})
    batch = worlds.batch([9, 0, 4, 30], [3, 2, 2, 5])
    loss = losses.total(model(batch), batch, TrainConfig())
    loss.backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not idle and math.isfinite(float(loss.detach()))


@pytest.mark.parametrize("kind", ["mean", "transformer", "hstu"])
def test_a_gap_bias_that_a_kind_cannot_use_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.recency=token"):
        ModelConfig(kind=kind, recency="bias")  # type: ignore[arg-type]


def test_only_stca_encodes_a_history_apart_from_its_targets() -> None:
    model, batch = worlds.ranker(kind="hstu", recency="token"), worlds.batch([3], [2])
    with pytest.raises(ConfigError, match="found hstu; expected model"):
        model.encode(batch)
