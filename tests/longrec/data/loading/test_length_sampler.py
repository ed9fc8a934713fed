"""LengthSampler: fixed mean, multiples, cuts, one seeded draw per request (spec section 7)."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.config import LengthConfig
from longrec.data.loading.length_sampler import LengthSampler
from longrec.errors import ConfigError

NUM = 200_000
IDS = np.arange(NUM, dtype=np.int64) * 7919 + 2**60
PLENTY = np.full(NUM, 1_000_000, np.int64)


def drawn(
    config: LengthConfig, *, seed: int = 0, epoch: int = 0, available: np.ndarray = PLENTY
) -> np.ndarray:
    return LengthSampler(config, seed).lengths(IDS, available, epoch)


@pytest.mark.parametrize("alpha", [0.05, 0.25, 1.0, 5.0])
@pytest.mark.parametrize(
    "bounds", [(0, 2_000, 10_000), (64, 100, 512), (0, 4, 8), (8, 1_000, 1_008)]
)
def test_the_mean_of_beta_is_fixed_for_every_shape(
    alpha: float, bounds: tuple[int, int, int]
) -> None:
    minimum, mean, maximum = bounds
    lengths = drawn(LengthConfig("beta", minimum, mean, maximum, alpha=alpha))
    error = 4 * lengths.std() / np.sqrt(NUM)  # four standard errors of the mean
    assert abs(lengths.mean() - mean) < error
    assert error < 0.02 * maximum
    assert lengths.min() >= minimum
    assert lengths.max() <= maximum
    assert not (lengths % 8).any()


@pytest.mark.parametrize("alpha", [0.1, 0.25, 1.0, 10.0])
def test_lengths_follow_the_beta_distribution(alpha: float) -> None:
    lengths = drawn(LengthConfig("beta", 0, 2_000, 10_000, alpha=alpha))
    independent = 10_000 * np.random.default_rng(0).beta(alpha, alpha * 4, size=NUM)
    for length in (500, 1_000, 3_000, 9_000, 9_900):
        assert abs((lengths < length).mean() - (independent < length).mean()) < 0.006


@pytest.mark.parametrize("mean", [0, 512])
def test_a_mean_at_a_bound_is_that_bound(mean: int) -> None:
    assert set(drawn(LengthConfig("beta", 0, mean, 512))) == {mean}


def test_uniform_covers_every_multiple_equally() -> None:
    values, counts = np.unique(
        drawn(LengthConfig("uniform", 16, 40, 64)),
        return_counts=True,
    )
    assert values.tolist() == [16, 24, 32, 40, 48, 56, 64]
    assert np.abs(counts / NUM - 1 / 7).max() < 0.005


def test_uniform_warns_that_it_ignores_the_mean(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        LengthSampler(LengthConfig("uniform", 16, 56, 64))
    assert "not used" in caplog.text


def test_fixed_and_full() -> None:
    assert set(drawn(LengthConfig("fixed", 0, 96, 512))) == {96}
    available = np.arange(NUM)
    assert np.array_equal(drawn(LengthConfig("full"), available=available), available)


def test_two_point_keeps_all_with_the_stated_probability() -> None:
    config = LengthConfig("two_point", 0, 2_000, 10_000, alpha=1.6)
    short = round(10_000 ** (1.6 / 2) / 8) * 8
    for n in (800, 3_000, 10_000, 50_000):
        lengths = drawn(config, available=np.full(NUM, n))
        n = min(n, 10_000)
        assert set(lengths) <= {short, n}
        assert abs((lengths == n).mean() - min(1.0, 10_000**1.6 / n**2)) < 0.005


def test_bounds_off_the_multiples_move_inwards_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        lengths = drawn(LengthConfig("beta", 3, 50, 101))
    assert "multiples of 8" in caplog.text
    assert lengths.min() >= 8
    assert lengths.max() <= 96
    assert not (lengths % 8).any()


def test_impossible_distributions_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple"):
        LengthSampler(LengthConfig("beta", 9, 10, 15))
    with pytest.raises(ConfigError, match="two_point"):
        LengthSampler(LengthConfig("two_point", alpha=2.5))


configs = st.builds(
    LengthConfig,
    distribution=st.sampled_from(["beta", "two_point", "fixed", "uniform", "full"]),
    minimum=st.just(8),
    mean=st.integers(8, 64),
    maximum=st.just(64),
    alpha=st.floats(0.05, 2.0),
    cut=st.sampled_from(["suffix", "random", "prefix"]),
)
requests = st.lists(
    st.tuples(st.integers(0, 2**62), st.integers(0, 1000), st.integers(0, 200)),
    min_size=1,
    max_size=20,
)


@settings(max_examples=200, deadline=None)
@given(
    configs,
    requests,
    st.integers(0, 2**31),
    st.integers(0, 5),
)
def test_a_cut_is_one_slice_inside_the_history_and_its_own_draw(
    config, entries, seed, epoch
) -> None:
    length_sampler = LengthSampler(config, seed)
    ids, starts, sizes = (np.array(column, np.int64) for column in zip(*entries, strict=True))
    ends = starts + sizes
    first, last = length_sampler.cut(ids, starts, ends, epoch)
    assert (first >= starts).all()
    assert (last <= ends).all()
    assert (first <= last).all()
    assert np.array_equal(
        last - first, np.minimum(sizes, length_sampler.lengths(ids, sizes, epoch))
    )
    if config.cut == "suffix":
        assert np.array_equal(last, ends)
    if config.cut == "prefix":
        assert np.array_equal(first, starts)
    for row in range(len(ids)):  # alone, in another order: the same draw
        alone = length_sampler.cut(
            ids[[row]],
            starts[[row]],
            ends[[row]],
            epoch,
        )
        assert (alone[0][0], alone[1][0]) == (first[row], last[row])


def test_random_windows_are_spread_evenly() -> None:
    length_sampler = LengthSampler(LengthConfig("fixed", 0, 8, 64, cut="random"))
    starts = np.zeros(NUM, np.int64)
    first, _ = length_sampler.cut(IDS, starts, starts + 11, 0)
    values, counts = np.unique(first, return_counts=True)
    assert values.tolist() == [0, 1, 2, 3]
    assert np.abs(counts / NUM - 1 / 4).max() < 0.005


def test_seed_and_epoch_draw_anew_and_nothing_else_does() -> None:
    config = LengthConfig("beta", 0, 2_000, 10_000)
    base = drawn(config)
    assert np.array_equal(base, drawn(config))
    for other in (drawn(config, seed=1), drawn(config, epoch=1)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.01
