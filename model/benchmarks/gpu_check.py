"""Compare fused paths with the reference implementation on a GPU: values and all gradients.

    python model/benchmarks/gpu_check.py | tee docs/gpu_check.txt
    python model/benchmarks/gpu_check.py --only ranker --models 0 1

The exit status is 1 when a check fails. The truth is the same model in float64, and an error is |x
- truth| / |truth|. In bfloat16 the bound is twice the error of plain PyTorch in the same precision,
for rankers over three batches together. The ratio of a gradient with fewer than 64 numbers is luck,
so it is compared with the step of bfloat16 instead. In float32, which the attention kernels have
too, the bound is 1e-5.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from harness import results
from harness.causal_check import check_causal_attention
from harness.check_models import (
    DEVICE,
    gradients_of,
    loss_and_gradients,
    offsets_of,
    one_request_per_target,
    random_batch,
    random_ranker,
)
from harness.comparison import (
    MAX_FLOAT32_ERROR,
    MIN_RATIO_NUMBERS,
    Check,
    Tensors,
    compare,
    relative_error,
    stacked,
)
from longrec.config import TrainConfig
from longrec.nn.fused import paths as fused_paths
from longrec.nn.kernels import rows as row_kernels
from longrec.nn.ranker import Ranker
from longrec.nn.stca import STCA
from longrec.nn.target_attention import AttentionInputs, Segments, fused, reference
from longrec.training import losses
from longrec.training.optimizers import RowWiseAdagrad

NUM_BATCHES = 3
MAX_SHARING_DIFFERENCE = 0.05
LENGTHS = [[10_007, 0, 1], [3_000, 128, 127, 129, 5_001], [10_240, 10_240], [777] * 9]
NUM_TARGETS = (3, 1, 40, 2, 8, 5, 1, 1, 2)
MODELS: list[dict[str, object]] = [
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
Attend = Callable[[AttentionInputs], Tensor]


@dataclasses.dataclass(frozen=True)
class AttentionCase:
    """Sizes of one attention check.

    Args:
        dtype: of the kernel.
        order: `plain` or `reordered`.
        scale: of the queries; a large one gives large logits.
        lengths: events of each request.
        num_targets: of the first request; the others have a third.
        width: d.
        num_heads: h.
    """

    dtype: torch.dtype
    order: str
    scale: float
    lengths: list[int]
    num_targets: int
    width: int = 256
    num_heads: int = 8

    @property
    def name(self) -> str:
        """Text of the case in the list of checks."""
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"attention {self.order} {dtype} d={self.width} h={self.num_heads} "
            f"x{self.scale:g} L={self.lengths} m<={self.num_targets}"
        )


def check_ranker(model_numbers: list[int]) -> Iterator[Check]:
    """The whole ranker, every gradient, bfloat16."""
    for number in model_numbers:
        options = MODELS[number]
        torch.manual_seed(number)
        lengths = LENGTHS[number % len(LENGTHS)]
        num_targets = list(NUM_TARGETS[: len(lengths)])
        model = random_ranker(**options)
        batches = [random_batch(lengths, num_targets) for _ in range(NUM_BATCHES)]
        exact = copy.deepcopy(model).double()
        truth = stacked([loss_and_gradients(exact, batch, mixed=False) for batch in batches])
        with fused_paths.reference_only():
            plain = stacked([loss_and_gradients(model, batch, mixed=True) for batch in batches])
        recompute_modes = [False, True] if options["width"] == 512 or number == 0 else [False]
        for recompute in recompute_modes:
            cast("STCA", model.stca).recompute = recompute
            ours = stacked([loss_and_gradients(model, batch, mixed=True) for batch in batches])
            name = f"ranker {options}{' recompute' if recompute else ''} L={lengths}"
            yield compare(name, ours, plain, truth, MIN_RATIO_NUMBERS * NUM_BATCHES)


def check_attention() -> Iterator[Check]:
    """Attention alone, both kernels, float32 and bfloat16, small and large logits."""
    sizes = [(1.0, lengths, 33) for lengths in LENGTHS]
    sizes += [(1.0, LENGTHS[0], 1), (30.0, LENGTHS[0], 33), (30.0, LENGTHS[1], 8)]
    cases = [AttentionCase(torch.float32, "plain", *size) for size in sizes]
    cases += [AttentionCase(torch.bfloat16, "plain", *size) for size in sizes]
    cases.append(AttentionCase(torch.bfloat16, "plain", 1.0, LENGTHS[1], 200))
    cases += [AttentionCase(torch.bfloat16, "reordered", *size) for size in sizes]
    for width, heads in ((64, 4), (128, 4), (256, 2), (512, 8), (512, 32)):
        for order, num_targets in (("plain", 12), ("reordered", 5)):
            size = (1.0, LENGTHS[1], num_targets, width, heads)
            cases.append(AttentionCase(torch.bfloat16, order, *size))
    for case in cases:
        yield check_attention_case(case)


def check_attention_case(case: AttentionCase) -> Check:
    """Check one case against the reference implementation in float64."""
    torch.manual_seed(0)
    num_targets = [case.num_targets]
    num_targets += [max(1, case.num_targets // 3)] * (len(case.lengths) - 1)
    segments = Segments(
        offsets_of(case.lengths), offsets_of(num_targets), case.lengths, num_targets
    )
    leaves = _attention_leaves(case, sum(num_targets))
    upstream = torch.randn(sum(num_targets), case.width, device=DEVICE, dtype=case.dtype)

    def run(dtype: torch.dtype, attend: Attend) -> Tensors:
        own = {name: leaf.to(dtype).clone().requires_grad_() for name, leaf in leaves.items()}
        inputs = AttentionInputs(**own, num_heads=case.num_heads, segments=segments)
        output = attend(inputs)
        output.backward(upstream.to(dtype))
        gradients = {name: leaf.grad for name, leaf in own.items() if leaf.grad is not None}
        return {"logits": output.detach(), **gradients}

    def attend_fused(inputs: AttentionInputs) -> Tensor:
        source = fused.attention_source(inputs, case.order)
        return source.attend(inputs.scaled_queries().flatten(1))

    ours = run(case.dtype, attend_fused)
    truth = run(torch.float64, reference.attend)
    if case.dtype == torch.bfloat16:
        return compare(case.name, ours, run(case.dtype, reference.attend), truth)
    worst = max(relative_error(ours[key], truth[key]) for key in truth)
    passed = worst <= MAX_FLOAT32_ERROR * max(1.0, case.scale)
    return case.name, passed, f"worst error {worst:.2e}"


def _attention_leaves(case: AttentionCase, num_targets: int) -> Tensors:
    num_events = sum(case.lengths)
    width = case.width
    leaves = {
        "queries": case.scale * torch.randn(num_targets, width),
        "tokens": torch.randn(num_events, width),
        "w_q": torch.randn(width, width) / 16,
        "w_k": torch.randn(width, width) / 16,
        "w_v": torch.randn(width, width) / 16,
        "bias": torch.randn(num_events, case.num_heads),
    }
    return {name: leaf.to(DEVICE, case.dtype) for name, leaf in leaves.items()}


def check_tables() -> Iterator[Check]:
    """Row-wise Adagrad without waiting for the device, repeated rows included."""
    torch.manual_seed(0)
    num_rows = 5000
    num_gradients = 100_000
    for width, weight_decay in ((8, 0.0), (32, 0.0), (33, 0.0), (32, 0.3)):
        table = torch.randn(num_rows, width, device=DEVICE)
        gradient = torch.randn(num_gradients, width, device=DEVICE)
        rows = (torch.rand(num_gradients, device=DEVICE) ** 4 * num_rows).long()
        expected = nn.Parameter(table.clone())
        optimizer = RowWiseAdagrad([expected], weight_decay=weight_decay)
        expected.grad = torch.sparse_coo_tensor(
            rows[None], gradient, table.shape, check_invariants=False
        )
        with fused_paths.reference_only():
            optimizer.step()
        ours = table.clone()
        sums = torch.zeros(num_rows, device=DEVICE)
        row_kernels.adagrad(ours, sums, rows, gradient, 0.05, 1e-8, weight_decay)
        worst = max(
            relative_error(ours, expected),
            relative_error(sums, optimizer.state[expected]["row_sums"]),
        )
        passed = worst <= MAX_FLOAT32_ERROR
        name = f"row-wise Adagrad K={width} weight decay {weight_decay}"
        yield name, passed, f"worst error {worst:.2e}"


def check_causal() -> Iterator[Check]:
    """Causal attention of the Transformer and of HSTU, for the comparison of models."""
    return check_causal_attention(DEVICE)


def check_sharing() -> Iterator[Check]:
    """A shared history equals one copy per target; users do not see each other."""
    torch.manual_seed(0)
    model = random_ranker(width=256, num_heads=8)
    requests = random_batch([5_000, 2_999, 0], [8, 3, 2])
    config = TrainConfig(loss="target")
    measured = []
    for batch in (requests, one_request_per_target(requests)):
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            output = model(batch)
        losses.total(output, batch, config).backward()
        measured.append({"logits": output.logits.detach(), **gradients_of(model)})
    shared, copied = measured
    differences = {key: relative_error(shared[key], copied[key]) for key in copied}
    worst = max(differences, key=lambda key: differences[key])
    yield (
        "shared history = one copy a target",
        differences[worst] < MAX_SHARING_DIFFERENCE,
        f"largest difference {differences[worst]:.2e} ({worst})",
    )
    yield _check_isolation(model)


def _check_isolation(model: Ranker) -> Check:
    """Check that a change of the first user's events changes no other user's logits."""
    requests = random_batch([5_000, 2_999, 0], [8, 3, 2])
    belongs_to_first = torch.arange(7_999, device=DEVICE) < 5_000
    event_items = torch.where(belongs_to_first, 0, requests.event_items)
    changed = dataclasses.replace(requests, event_items=event_items)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        before = model(requests).logits
        after = model(changed).logits
    others_are_equal = torch.equal(before[8:], after[8:])
    first_differs = bool((before[:8] != after[:8]).any())
    name = "another user's history changes nothing"
    return name, others_are_equal and first_differs, "bit for bit"


CHECKS = ("attention", "tables", "causal", "sharing", "ranker")


def checks_of(name: str, model_numbers: list[int]) -> tuple[str, Iterator[Check]]:
    """Return the title of a group of checks, and the checks."""
    functions: dict[str, Callable[[], Iterator[Check]]] = {
        "attention": check_attention,
        "tables": check_tables,
        "causal": check_causal,
        "sharing": check_sharing,
    }
    if name == "ranker":
        return str(check_ranker.__doc__), check_ranker(model_numbers)
    return str(functions[name].__doc__), functions[name]()


def main() -> None:
    """Run the chosen checks and count the failures."""
    options = _arguments()
    warnings.simplefilter("ignore")  # PyTorch's remarks on sparse tensors
    facts = results.row("gpu_check", "", "", None)
    print(f"{facts['device']}, {facts['versions']}, commit {facts['commit']}\n", flush=True)
    num_failures = 0
    num_checks = 0
    for group in options.only:
        title, checks = checks_of(group, options.models)
        print(title)
        for name, passed, details in checks:
            print(f"  {'pass' if passed else 'FAIL'}  {name}: {details}", flush=True)
            num_failures += not passed
            num_checks += 1
    print(f"\n{num_checks - num_failures} of {num_checks} passed")
    raise SystemExit(1 if num_failures else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    numbers = list(range(len(MODELS)))
    parser.add_argument(
        "--models", nargs="+", type=int, choices=numbers, default=numbers, help="of the ranker"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
