"""Fit the baselines that have parameters: a logistic regression of one repeat, and boosted trees.

Recency and frequency are monotone, so their AUC is that of the raw value. The fit finds the
direction, and the place of targets without a repeat.

Shape letters: N targets, C columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from longrec.errors import LongrecError
from longrec.evaluation.baselines.repeats import Repeats

Array: TypeAlias = npt.NDArray[Any]
Float: TypeAlias = npt.NDArray[np.float64]

MAX_TREES = 300
NUM_THREADS = 1
"""Threads that wait for each other spin: two were three times slower than one on a busy machine."""
TREES_WITHOUT_STOPPING = 50
"""Trees if there are no later targets to stop by."""
STOPPING_ROUNDS = 20
"""Trees without a lower log loss on the later targets after which the fit ends."""
TREE_SETTINGS = {
    "objective": "binary",
    "metric": "binary_logloss",
    "learning_rate": 0.1,
    "num_leaves": 31,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": NUM_THREADS,
    "verbosity": -1,
}


class BaselineError(LongrecError):
    """A baseline that cannot be fitted here."""


class Examples(NamedTuple):
    """Rows to fit: features float64 [N, C] and labels [N]."""

    features: Float
    labels: Array


def recency_columns(repeats: Repeats) -> Float:
    """Return whether there was a repeat, and the logarithm of its gap, float64 [N, 2]."""
    has_repeat = repeats.counts > 0
    log_gaps = np.log1p(np.nan_to_num(repeats.gap_seconds))
    return np.stack([has_repeat.astype(np.float64), log_gaps], axis=1)


def frequency_columns(repeats: Repeats) -> Float:
    """Return the logarithm of one plus the number of repeats, float64 [N, 1]."""
    return np.log1p(repeats.counts.astype(np.float64))[:, None]


def logistic_scores(
    train: Examples,
    features: Float,
) -> Float:
    """Return the probabilities of a logistic regression, float64 [N].

    Args:
        train: rows to fit.
        features: float64 [N, C], rows to score.

    Raises:
        BaselineError: there are no two classes to fit.
    """
    from sklearn.linear_model import LogisticRegression

    _require_two_classes(train.labels)
    model = LogisticRegression()
    model.fit(train.features, train.labels)
    scores: Float = model.predict_proba(features)[:, 1]
    return scores


def tree_scores(
    train: Examples,
    later: Examples,
    features: Float,
    seed: int,
) -> Float:
    """Return the probabilities of boosted trees, float64 [N].

    Args:
        train: rows to fit.
        later: rows whose log loss ends the fit; may be empty.
        features: float64 [N, C], rows to score.
        seed: of the fit.

    Raises:
        BaselineError: LightGBM cannot be loaded, or there are no two classes to fit.
    """
    lightgbm = _load_lightgbm()
    _require_two_classes(train.labels)
    settings = {**TREE_SETTINGS, "seed": seed % 2**31}
    train_rows = lightgbm.Dataset(train.features, train.labels, params=settings)
    if len(later.labels):
        later_rows = train_rows.create_valid(later.features, later.labels)
        model = lightgbm.train(
            settings,
            train_rows,
            MAX_TREES,
            valid_sets=[later_rows],
            callbacks=[lightgbm.early_stopping(STOPPING_ROUNDS, verbose=False)],
        )
    else:
        model = lightgbm.train(settings, train_rows, TREES_WITHOUT_STOPPING)
    return np.asarray(model.predict(features), np.float64)


def _load_lightgbm() -> Any:
    try:
        import lightgbm
    except (ImportError, OSError) as error:
        raise BaselineError(
            "LightGBM cannot be loaded", found=error, fix="Install it: pip install lightgbm"
        ) from error
    return lightgbm


def _require_two_classes(labels: Array) -> None:
    classes = np.unique(labels)
    if len(classes) == 0:
        raise BaselineError("the training window has no targets")
    if len(classes) == 1:
        raise BaselineError(f"all labels of the training window are {int(classes[0])}")
