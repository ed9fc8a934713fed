"""Population stability index: its formula, empty bins, noise and histograms."""

from __future__ import annotations

import numpy as np
import pytest

from longrec.data.quality.psi import histogram, psi, psi_noise, quantile_edges
from longrec.errors import DataError


def test_psi_equals_its_formula() -> None:
    e = np.array([0.5, 0.3, 0.2])
    o = np.array([0.2, 0.3, 0.5])
    assert psi(e * 1_000, o * 10) == pytest.approx(2 * 0.3 * np.log(2.5))
    assert psi(o, e) == pytest.approx(psi(e, o))
    assert psi([1, 2, 3], [10, 20, 30]) == pytest.approx(0)
    assert psi([0, 0], [0, 0]) == 0


def test_an_empty_bin_is_finite_and_small_where_it_may_be_chance() -> None:
    full_bin = -0.5 * np.log(0.5)
    empty_bin = (0.5 - 0.0005) * np.log(0.5 / 0.0005)
    assert psi([1_000, 0], [500, 500]) == pytest.approx(full_bin + empty_bin)
    # Ten rows need not contain one that occurs once in a million.
    assert psi([10, 0], [1_000_000, 1]) == pytest.approx(0, abs=1e-5)
    assert psi([5, 5, 0, 0], [5, 5, 0, 0]) == 0


@pytest.mark.parametrize(
    ("expected", "observed"),
    [([1, 2], [1, 2, 3]), ([1, -1], [1, 1]), ([0, 0], [1, 1])],
)
def test_histograms_that_cannot_be_compared_are_refused(
    expected: list[int],
    observed: list[int],
) -> None:
    with pytest.raises(DataError, match="cannot be compared"):
        psi(expected, observed)


def test_the_noise_is_the_average_index_of_equal_distributions() -> None:
    rng = np.random.default_rng(0)
    shares = [0.1] * 10
    pairs = [(rng.multinomial(400, shares), rng.multinomial(900, shares)) for _ in range(300)]
    average = np.mean([psi(*pair) for pair in pairs])
    assert average == pytest.approx(psi_noise(*pairs[0]), rel=0.1)


def test_histograms_have_open_ends() -> None:
    assert histogram([-5, 0, 0.5, 1, 7], [0, 1]).tolist() == [1, 2, 2]
    edges = quantile_edges(np.arange(1_000), 4)
    assert histogram(np.arange(1_000), edges).tolist() == [250] * 4
    assert quantile_edges([1.0] * 10).tolist() == [1.0]
