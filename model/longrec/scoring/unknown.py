"""Counts of values in a history that a model does not know."""

from __future__ import annotations

import numpy as np

from longrec.data.encoder import Encoder
from longrec.data.feature_encoders import Int32
from longrec.schema import ITEM_ID

UNKNOWN_ITEM = 0
"""Row of the unknown item in the item table."""


def count_unknown(
    encoder: Encoder,
    item_rows: Int32,
    features: Int32,
) -> dict[str, int]:
    """Return the number of events with an unknown value, for each column with a vocabulary.

    A value is unknown if it shares an index with all others of its kind: new ones, and those too
    rare in the training window. Missing values are not unknown.

    Args:
        encoder: of the model.
        item_rows: int32 [L], rows of the item table.
        features: int32 [L, F], indices of the event features.
    """
    counts = {ITEM_ID: _num_between(item_rows, UNKNOWN_ITEM, UNKNOWN_ITEM)}
    for feature, column in zip(encoder.schema.event, features.T, strict=True):
        if feature.kind != "number":
            counts[feature.name] = _num_between(column, 1, feature.num_oov)
    return counts


def _num_between(values: Int32, lowest: int, highest: int) -> int:
    is_between = (values >= lowest) & (values <= highest)
    return int(np.count_nonzero(is_between))
