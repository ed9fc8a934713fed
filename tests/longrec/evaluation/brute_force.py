"""Compute metrics by loops over all pairs, and draw samples for them."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st


def auc_of_pairs(labels, scores, weights=None):
    """Return the weighted AUC over all pairs of a positive and a negative; ties count one half."""
    if weights is None:
        weights = np.ones(len(labels))
    won = 0.0
    total = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            weight = weights[i] * weights[j]
            total += weight
            if scores[i] > scores[j]:
                won += weight
            elif scores[i] == scores[j]:
                won += 0.5 * weight
    return won / total if total else math.nan


def gauc_of_loops(labels, scores, users):
    """Return the mean AUC of the users with both labels, weighted by their targets."""
    total = 0.0
    weight = 0.0
    for user in np.unique(users):
        own = users == user
        if labels[own].min() == labels[own].max():
            continue
        total += own.sum() * auc_of_pairs(labels[own], scores[own])
        weight += own.sum()
    return total / weight if weight else math.nan


@st.composite
def targets(draw):
    """Draw labels, scores with ties, and users of 1 to 40 targets."""
    size = draw(st.integers(1, 40))

    def column(low, high):
        values = st.lists(
            st.integers(low, high),
            min_size=size,
            max_size=size,
        )
        return np.array(draw(values))

    labels = column(0, 1)
    scores = column(1, 9) / 10
    users = column(-3, 5)
    return labels, scores, users
