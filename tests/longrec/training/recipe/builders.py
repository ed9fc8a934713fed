"""Values that the tests of training settings build."""

from __future__ import annotations

from collections.abc import Sequence

from longrec.training.curve import ValidationRow


def validations(
    aucs: Sequence[float | None], loglosses: Sequence[float] = ()
) -> list[ValidationRow]:
    """Return one validation per AUC, ten steps apart."""
    losses = loglosses or [0.5] * len(aucs)
    return [
        ValidationRow(step=10 * number, auc=auc, logloss=logloss, seconds=0.0)
        for number, (auc, logloss) in enumerate(zip(aucs, losses, strict=True), 1)
    ]
