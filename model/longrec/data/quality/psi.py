"""Population stability index (PSI): the distance of two histograms over the same bins.

This module does not depend on datasets: it compares any two histograms, for example of scores.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from longrec.errors import DataError

Counts = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


def psi(expected: npt.ArrayLike, observed: npt.ArrayLike) -> float:
    """Return the population stability index of two histograms.

    It is the sum of (o - e) ln(o / e) over the shares e and o of the bins, and 0 for equal
    shares. By custom, below 0.1 is read as no change, above 0.25 as a large one.

    A bin that is empty on one side counts there as half a row, or as the other side's share when
    that is less. The index is therefore finite. Two empty histograms are equal.

    Args:
        expected, observed: counts per bin, at least 0, of equal length.

    Raises:
        DataError: the lengths differ, a count is negative, or only one histogram is empty.
    """
    expected_counts = np.asarray(expected, np.float64)
    observed_counts = np.asarray(observed, np.float64)
    _require_comparable(expected_counts, observed_counts)
    used = (expected_counts > 0) | (observed_counts > 0)
    if not used.any():
        return 0.0
    num_expected = expected_counts.sum()
    num_observed = observed_counts.sum()
    e = expected_counts[used] / num_expected
    o = observed_counts[used] / num_observed
    filled_e = _fill_empty(e, o, num_expected)
    filled_o = _fill_empty(o, e, num_observed)
    terms = (filled_o - filled_e) * np.log(filled_o / filled_e)
    return float(terms.sum())


def psi_noise(expected: npt.ArrayLike, observed: npt.ArrayLike) -> float:
    """Return the average index of two samples of these sizes from one distribution.

    It is (used bins - 1) (1/n + 1/m) for samples of n and m rows.
    """
    expected_counts = np.asarray(expected, np.float64)
    observed_counts = np.asarray(observed, np.float64)
    used = (expected_counts > 0) | (observed_counts > 0)
    degrees_of_freedom = max(int(used.sum()) - 1, 0)
    num_expected = max(expected_counts.sum(), 1)
    num_observed = max(observed_counts.sum(), 1)
    return float(degrees_of_freedom * (1 / num_expected + 1 / num_observed))


def histogram(values: npt.ArrayLike, edges: npt.ArrayLike) -> Counts:
    """Return the number of values in each bin, int64 [len(edges) + 1].

    The first bin is below the first edge, the last one from the last edge on.
    """
    sorted_edges = np.asarray(edges)
    bins = np.searchsorted(
        sorted_edges,
        np.asarray(values),
        side="right",
    )
    return np.bincount(bins, minlength=len(sorted_edges) + 1).astype(np.int64)


def quantile_edges(values: npt.ArrayLike, num_bins: int = 10) -> Float64:
    """Return the inner edges of bins with about equally many values.

    There are fewer edges when values repeat.
    """
    quantiles = np.arange(1, num_bins) / num_bins
    return np.unique(np.quantile(np.asarray(values, np.float64), quantiles))


def _require_comparable(expected: Float64, observed: Float64) -> None:
    has_negative = (expected < 0).any() or (observed < 0).any()
    num_expected = expected.sum()
    num_observed = observed.sum()
    one_is_empty = (num_expected == 0) != (num_observed == 0)
    if expected.shape != observed.shape or has_negative or one_is_empty:
        raise DataError(
            "two histograms cannot be compared",
            found=f"{expected.shape}, {observed.shape} bins, [{num_expected}, {num_observed}] rows",
            expected="counts of some rows over the same bins",
        )


def _fill_empty(
    shares: Float64,
    other_shares: Float64,
    num_rows: float,
) -> Float64:
    """Return the shares with a small one for each empty bin."""
    return np.where(
        shares > 0,
        shares,
        np.minimum(0.5 / num_rows, other_shares),
    )
