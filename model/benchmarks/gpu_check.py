"""Fused paths against the readable twins on a GPU: values and all gradients, in float32 and in
bfloat16; exit status 1 on a failure.

    python model/benchmarks/gpu_check.py | tee docs/gpu_check.txt

The truth is the same model in float64. In bfloat16 the bar is twice the error of plain PyTorch (the
readable twins) in the same
precision, both measured as |x - truth| / |truth|, for rankers over three batches together; a
gradient of fewer than 64 numbers, whose
ratio is luck, is held to the size of bfloat16's step instead. In float32, where the attention
kernels run as well, the bar is 1e-5.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import _rows

from longrec.config import ModelConfig, TrainConfig
from longrec.data.batch import RequestBatch
from longrec.nn import fused_paths
from longrec.nn.baselines import hstu
from longrec.nn.kernels import rows as row_kernels
from longrec.nn.ranker import Ranker
from longrec.nn.stca import STCA
from longrec.nn.stca_layer import STCALayer
from longrec.nn.target_attention import AttentionInputs, Segments, fused, reference
from longrec.schema import Feature, Schema, Task
from longrec.training import losses
from longrec.training.optimizers import RowWiseAdagrad

DEVICE = torch.device("cuda")
SCHEMA = Schema(
    "check",
    item=(Feature("item_id", "id"), Feature("topic", "category"), Feature("author", "id")),
    user=(Feature("region", "category"),),
    event=(Feature("action", "category"), Feature("played", "number")),
    tasks=(Task("click"), Task("like")),
)
SIZES = {"item": (5000, 300, 700), "user": (40,), "event": (6, 40)}
NUM_ITEMS, NOW_MS = 4000, 1_700_000_000_000
FLOAT32_BAR, RATIO_BAR, SMALL_BAR, SMALL, BATCHES = 1e-5, 2.0, 2**-6, 64, 3
LENGTHS = [[10_007, 0, 1], [3_000, 128, 127, 129, 5_001], [10_240, 10_240], [777] * 9]
WORLDS: list[tuple[int, dict[str, object]]] = list(
    enumerate(
        [
            {"width": 256, "num_heads": 8, "num_layers": 4, "attention": "plain", "id_dim": 16},
            {"width": 256, "num_heads": 8, "attention": "reordered"},
            {"width": 256, "num_heads": 8, "recency": "token"},
            {"width": 128, "num_heads": 4, "share_ffn": False, "id_dim": 16},
            {"width": 64, "num_heads": 4, "recency": "none", "fusion": False},
            {"width": 512, "num_heads": 8, "id_dim": 16},
            {"width": 512, "num_heads": 16},
            {"width": 320, "num_heads": 10},
            {"width": 192, "num_heads": 6, "ffn_ratio": 3},
            {"width": 256, "num_heads": 8, "id_dim": 256, "output_norm": True},
        ]
    )
)
Check = tuple[str, bool, str]
chosen_worlds = list(range(len(WORLDS)))


def error(found: Tensor, truth: Tensor) -> float:
    """Returns |found - truth| / |truth|; infinite for a NaN."""
    found, truth = found.detach().double(), truth.detach().double()
    distance = float((found - truth).norm() / truth.norm().clamp_min(1e-30))
    return distance if distance == distance else float("inf")


def offsets(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts], device=DEVICE).cumsum(0)


def batch(lengths: list[int], num_targets: list[int]) -> RequestBatch:
    """Returns a random batch on the device, checked."""
    events, targets, requests = sum(lengths), sum(num_targets), len(lengths)
    times = torch.cat(
        [
            NOW_MS - torch.randint(1, 10**10, (length,)).sort(descending=True).values
            for length in lengths
        ]
    )
    return (
        RequestBatch(
            event_items=torch.randint(0, NUM_ITEMS + 1, (events,)),
            event_timestamps=times,
            event_offsets=offsets(lengths).cpu(),
            event_features=torch.stack(
                [torch.randint(0, size, (events,)) for size in SIZES["event"]], dim=1
            ),
            target_items=torch.randint(0, NUM_ITEMS + 1, (targets,)),
            target_offsets=offsets(num_targets).cpu(),
            user_features=torch.randint(0, SIZES["user"][0], (requests, 1)),
            request_timestamps=torch.full((requests,), NOW_MS),
            labels=torch.randint(0, 2, (targets, 2)).float(),
        )
        .validate(num_items=NUM_ITEMS + 1)
        .to(DEVICE)
    )


def ranker(**options: object) -> Ranker:
    """Returns a ranker in which no term is zero by its initial value."""
    table = torch.stack([torch.randint(0, size, (NUM_ITEMS + 1,)) for size in SIZES["item"]], dim=1)
    model = Ranker(ModelConfig(**options), SCHEMA, SIZES, table).to(DEVICE)  # type: ignore[arg-type]
    for layer in cast("STCA", model.stca).layers:
        assert isinstance(layer, STCALayer)
        if layer.gap_bias is not None:
            nn.init.normal_(layer.gap_bias)
        nn.init.normal_(layer.norm.weight, 1, 0.2)
        nn.init.normal_(layer.norm.bias, 0, 0.2)
    return model


def run(model: Ranker, requests: RequestBatch, *, mixed: bool) -> dict[str, Tensor]:
    """Returns logits, loss and all gradients."""
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
        output = model(requests)
    assert requests.labels is not None
    labelled = dataclasses.replace(requests, labels=requests.labels.to(output.logits.dtype))
    loss = losses.total(output, labelled, TrainConfig())
    loss.backward()
    found = {
        name: parameter.grad.to_dense().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {"logits": output.logits.detach(), "loss": loss.detach()[None], **found}


def check_ranker() -> Iterator[Check]:
    """The whole ranker, every gradient, bfloat16."""
    for number, options in (WORLDS[number] for number in chosen_worlds):
        torch.manual_seed(number)
        lengths = LENGTHS[number % len(LENGTHS)]
        targets = [(3, 1, 40, 2, 8, 5, 1, 1, 2)[i] for i in range(len(lengths))]
        model, drawn = ranker(**options), [batch(lengths, targets) for _ in range(BATCHES)]
        exact = copy.deepcopy(model).double()
        truth = together([run(exact, requests, mixed=False) for requests in drawn])
        with fused_paths.reference_only():
            plain = together([run(model, requests, mixed=True) for requests in drawn])
        for recompute in (False, True) if options["width"] == 512 or number == 0 else (False,):
            cast("STCA", model.stca).recompute = recompute
            ours = together([run(model, requests, mixed=True) for requests in drawn])
            yield compare(
                f"ranker {options}{' recompute' if recompute else ''} L={lengths}",
                ours,
                plain,
                truth,
                SMALL * BATCHES,
            )


def together(results: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the results of several batches as one."""
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}


def compare(
    name: str,
    ours: dict[str, Tensor],
    plain: dict[str, Tensor],
    truth: dict[str, Tensor],
    small_below: int = SMALL,
) -> Check:
    """Returns whether every tensor of `ours` is within twice the error of `plain`."""
    if set(ours) != set(truth):
        return name, False, f"gradients missing: {sorted(set(truth) - set(ours))}"
    errors = {
        key: (error(ours[key], truth[key]), error(plain[key], truth[key]))
        for key in truth
        if float(truth[key].norm()) > 0
    }
    ratios = {
        key: mine / max(theirs, 1e-12)
        for key, (mine, theirs) in errors.items()
        if truth[key].numel() >= small_below
    }
    worst = max(ratios, key=lambda key: ratios[key])
    small = max(
        (mine for key, (mine, _) in errors.items() if truth[key].numel() < small_below), default=0.0
    )
    mine, theirs = errors["logits"]
    passed = ratios[worst] <= RATIO_BAR and small <= SMALL_BAR
    return (
        name,
        passed,
        (
            f"logits {mine:.2e} (plain {theirs:.2e}); worst ratio {ratios[worst]:.2f} ({worst}: {errors[worst][0]:.2e}, "
            f"plain {errors[worst][1]:.2e}); small ones {small:.1e}; {len(errors)} tensors"
        ),
    )


def check_attention() -> Iterator[Check]:
    """Attention alone, both kernels, float32 and bfloat16, small and large logits, many and few
    targets.
    """
    cases = [(1.0, lengths, 33) for lengths in LENGTHS] + [
        (1.0, LENGTHS[0], 1),
        (30.0, LENGTHS[0], 33),
        (30.0, LENGTHS[1], 8),
    ]
    for dtype, order in (
        (torch.float32, "plain"),
        (torch.bfloat16, "plain"),
        (torch.bfloat16, "reordered"),
    ):
        for scale, lengths, most in [
            *cases,
            *([(1.0, LENGTHS[1], 200)] if (dtype, order) == (torch.bfloat16, "plain") else []),
        ]:
            yield attention(dtype, order, scale, lengths, most)
    for width, heads in ((64, 4), (128, 4), (256, 2), (512, 8), (512, 32)):
        yield attention(torch.bfloat16, "plain", 1.0, LENGTHS[1], 12, width, heads)
        yield attention(torch.bfloat16, "reordered", 1.0, LENGTHS[1], 5, width, heads)


def attention(
    dtype: torch.dtype,
    order: str,
    scale: float,
    lengths: list[int],
    most: int,
    width: int = 256,
    heads: int = 8,
) -> Check:
    """Returns whether one case agrees with the readable twin in float64."""
    torch.manual_seed(0)
    targets = [most, *[max(1, most // 3)] * (len(lengths) - 1)]
    segments = Segments(offsets(lengths), offsets(targets), lengths, targets)
    leaves = {
        "queries": scale * torch.randn(sum(targets), width),
        "tokens": torch.randn(sum(lengths), width),
        "w_q": torch.randn(width, width) / 16,
        "w_k": torch.randn(width, width) / 16,
        "w_v": torch.randn(width, width) / 16,
        "bias": torch.randn(sum(lengths), heads),
    }
    leaves = {name: leaf.to(DEVICE, dtype) for name, leaf in leaves.items()}
    upstream = torch.randn(sum(targets), width, device=DEVICE, dtype=dtype)

    def results(
        kind: torch.dtype, attend: Callable[[AttentionInputs], Tensor]
    ) -> dict[str, Tensor]:
        own = {name: leaf.to(kind).clone().requires_grad_() for name, leaf in leaves.items()}
        output = attend(
            AttentionInputs(
                **own,
                num_heads=heads,
                segments=segments,
            )
        )
        output.backward(upstream.to(kind))
        return {
            "logits": output.detach(),
            **{name: leaf.grad for name, leaf in own.items() if leaf.grad is not None},
        }

    ours = results(
        dtype,
        lambda inputs: fused.attention_source(inputs, order).attend(
            inputs.scaled_queries().flatten(1)
        ),
    )
    truth = results(torch.float64, reference.attend)
    name = f"attention {order} {str(dtype).removeprefix('torch.')} d={width} h={heads} x{scale:g} L={lengths} m<={most}"
    if dtype == torch.bfloat16:
        return compare(name, ours, results(dtype, reference.attend), truth)
    worst = max(error(ours[key], truth[key]) for key in truth)
    return name, worst <= FLOAT32_BAR * max(1.0, scale), f"worst error {worst:.2e}"


def check_tables() -> Iterator[Check]:
    """Row-wise Adagrad without waiting for the device, repeated rows included."""
    torch.manual_seed(0)
    for width in (8, 32, 33):
        table, gradient = (
            torch.randn(5000, width, device=DEVICE),
            torch.randn(100_000, width, device=DEVICE),
        )
        rows = (torch.rand(100_000, device=DEVICE) ** 4 * 5000).long()
        ours, twin = (nn.Parameter(table.clone()) for _ in range(2))
        optimizer = RowWiseAdagrad([twin])
        twin.grad = torch.sparse_coo_tensor(
            rows[None], gradient, table.shape, check_invariants=False
        )
        with fused_paths.reference_only():
            optimizer.step()
        sums = torch.zeros(5000, device=DEVICE)
        row_kernels.adagrad(ours.data, sums, rows, gradient, 0.05, 1e-8)
        worst = max(error(ours, twin), error(sums, optimizer.state[twin]["row_sums"]))
        yield f"row-wise Adagrad K={width}", worst <= FLOAT32_BAR, f"worst error {worst:.2e}"


def check_hstu() -> Iterator[Check]:
    """HSTU's causal attention, for the comparison of costs."""
    lengths = [1500, 0, 777]
    segments = Segments(offsets(lengths), offsets([1, 1, 1]), lengths, [1, 1, 1])
    leaf = torch.randn(sum(lengths), 4, 4, 32, device=DEVICE, dtype=torch.bfloat16)
    upstream = torch.randn(sum(lengths), 4, 32, device=DEVICE, dtype=torch.bfloat16)

    def results(kind: torch.dtype) -> dict[str, Tensor]:
        own = leaf.to(kind).clone().requires_grad_()
        output = hstu.causal_attention(own, segments)
        output.backward(upstream.to(kind))
        assert own.grad is not None
        return {"logits": output.detach(), "gradient": own.grad}

    ours = results(torch.bfloat16)
    with fused_paths.reference_only():
        plain = results(torch.bfloat16)
    yield compare(f"hstu L={lengths}", ours, plain, results(torch.float64))


def check_sharing() -> Iterator[Check]:
    """Request level batching equals the per-sample expansion on the fused path; users do not see
    each other, in any packing.
    """
    torch.manual_seed(0)
    model, requests = ranker(width=256, num_heads=8), batch([5_000, 2_999, 0], [8, 3, 2])
    counts = requests.target_offsets.diff().tolist()
    spans = [
        slice(*requests.event_offsets[r : r + 2].tolist())
        for r, count in enumerate(counts)
        for _ in range(count)
    ]
    of = torch.tensor([r for r, count in enumerate(counts) for _ in range(count)], device=DEVICE)
    lengths = [span.stop - span.start for span in spans]
    alone = RequestBatch(
        torch.cat([requests.event_items[s] for s in spans]),
        torch.cat([requests.event_features[s] for s in spans]),
        torch.cat([requests.event_timestamps[s] for s in spans]),
        offsets(lengths),
        requests.target_items,
        offsets([1] * len(spans)),
        requests.user_features[of],
        requests.request_timestamps[of],
        requests.labels,
    )
    config = TrainConfig(loss="target")
    found = []
    for whole in (requests, alone):
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            output = model(whole)
        losses.total(output, whole, config).backward()
        gradients = {
            name: p.grad.to_dense().clone()
            for name, p in model.named_parameters()
            if p.grad is not None
        }
        found.append({"logits": output.logits.detach(), **gradients})
    apart = max((error(found[0][key], found[1][key]), key) for key in found[1])
    yield (
        "shared history = one copy a target",
        apart[0] < 0.05,
        f"largest difference {apart[0]:.2e} ({apart[1]})",
    )
    changed = dataclasses.replace(
        requests,
        event_items=torch.where(
            torch.arange(7_999, device=DEVICE) < 5_000, 0, requests.event_items
        ),
    )
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        before, after = model(requests).logits, model(changed).logits
    same = torch.equal(before[8:], after[8:]) and bool((before[:8] != after[:8]).any())
    yield "another user's history changes nothing", same, "bit for bit"


CHECKS = {
    "attention": check_attention,
    "tables": check_tables,
    "hstu": check_hstu,
    "sharing": check_sharing,
    "ranker": check_ranker,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CHECKS,
        default=list(CHECKS),
    )
    parser.add_argument(
        "--worlds",
        nargs="+",
        type=int,
        choices=range(len(WORLDS)),
        default=chosen_worlds,
        help="rankers, by number",
    )
    chosen = parser.parse_args()
    chosen_worlds[:] = chosen.worlds
    warnings.simplefilter("ignore")  # PyTorch's remarks on sparse tensors
    found = _rows.row("gpu_check", "", "", None)
    print(f"{found['device']}, {found['versions']}, commit {found['commit']}\n", flush=True)
    failures = count = 0
    for check in (CHECKS[name] for name in chosen.only):
        print((check.__doc__ or "").partition("\n")[0])
        for name, passed, detail in check():
            print(f"  {'pass' if passed else 'FAIL'}  {name}: {detail}", flush=True)
            failures, count = failures + (not passed), count + 1
    print(f"\n{count - failures} of {count} passed")
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
