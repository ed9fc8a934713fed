"""LengthSampler: how many and which events of a history a training step sees.

A draw is a pure function of (seed, epoch, request id). It does not depend on the order of batches,
on workers or on other requests. Serving has a fixed length instead
(`longrec.data.loading.batching.most_recent`).
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import numpy.typing as npt

from longrec.config import LengthConfig
from longrec.data.columns import Int64
from longrec.data.hashing import splitmix64
from longrec.errors import ConfigError

Float64 = npt.NDArray[np.float64]
log = logging.getLogger(__name__)

# Numbers of the independent uniform draws of a request: for its length, its rounding, its random
# window.
_LENGTH_DRAW = 0
_ROUNDING_DRAW = 1
_POSITION_DRAW = 2
_NUM_DRAWS = 3


@dataclasses.dataclass(frozen=True, slots=True)
class LengthSampler:
    """Draws the events that a training step sees.

    Distributions of the length L:

    - `beta` (arXiv 2511.06077): L = L_min + s (L_max - L_min) with s ~ Beta(alpha, beta) and
      beta = alpha (L_max - L_avg) / (L_avg - L_min). The mean is L_avg; alpha sets the shape.
    - `two_point` (stochastic length of HSTU, arXiv 2402.17152): with N = maximum and n events of
      the request (at most N), L = n with probability min(1, N^alpha / n^2), else N^(alpha/2).
      alpha is in (0, 2]; the mean is not fixed.
    - `uniform`: every multiple in [minimum, maximum] is equally likely.
    - `fixed`: always the mean.
    - `full`: all events.

    Lengths are multiples of `multiple`. With `two_point`, only the shorter of the two lengths is a
    multiple. `beta` is rounded up or down at random in proportion to the distance, which keeps the
    mean. A request with fewer events keeps all of them.

    The cut is `suffix` (most recent events), `prefix` (oldest events) or `random` (one contiguous
    window at a uniform position). The paper does not define its random cut. A window is a
    slice of the history and needs no copy; a random subset would.

    Args:
        config: distribution and cut.
        seed: seed of every draw.

    Raises:
        ConfigError: no multiple lies between minimum and maximum, or alpha does not suit
            `two_point`.
    """

    config: LengthConfig
    seed: int = 0

    def __post_init__(self) -> None:
        config = self.config
        if config.distribution == "two_point" and not 0 < config.alpha <= 2:
            raise ConfigError(
                "lengths.alpha of the two_point distribution must be in (0, 2]",
                found=config.alpha,
                fix="HSTU uses 1.5 to 2.",
            )
        if config.distribution in ("beta", "uniform", "fixed"):
            self._check_multiples()

    def cut(
        self,
        request_ids: Int64,
        starts: Int64,
        ends: Int64,
        epoch: int,
    ) -> tuple[Int64, Int64]:
        """Return (starts, ends) of the events to train on, int64 [n], inside the given ones.

        Args:
            request_ids: int64 [n].
            starts, ends: int64 [n]; events of request i are starts[i]:ends[i], oldest first.
            epoch: number of the pass over the data; each one draws anew.
        """
        available = ends - starts
        drawn = self.lengths(request_ids, available, epoch)
        lengths = np.minimum(available, drawn)
        if self.config.cut == "suffix":
            return ends - lengths, ends
        if self.config.cut == "prefix":
            return starts, starts + lengths
        num_positions = available - lengths + 1
        uniform = self._uniform(request_ids, epoch, _POSITION_DRAW)
        position = np.floor(uniform * num_positions)
        first = starts + position.astype(np.int64)
        return first, first + lengths

    def lengths(
        self,
        request_ids: Int64,
        available: Int64,
        epoch: int,
    ) -> Int64:
        """Return the drawn length of each request, int64 [n]; it may exceed the events available.

        Args:
            request_ids: int64 [n].
            available: int64 [n], events of each request; only `two_point` and `full` use it.
            epoch: number of the pass over the data; each one draws anew.
        """
        distribution = self.config.distribution
        low, mean, high = self._bounds()
        if distribution == "full":
            return available.copy()
        if distribution == "fixed":
            return np.full(len(request_ids), int(mean), np.int64)
        uniform = self._uniform(request_ids, epoch, _LENGTH_DRAW)
        if distribution == "two_point":
            bounded = np.minimum(available, self.config.maximum)
            return self._two_point(bounded, uniform)
        multiple = self.config.multiple
        if distribution == "uniform":
            num_lengths = (high - low) // multiple + 1
            steps = np.floor(uniform * num_lengths)
            return low + multiple * steps.astype(np.int64)
        # Rounds up with the probability of the fraction, which keeps the mean.
        exact_steps = self._beta_lengths(uniform) / multiple
        rounding = self._uniform(request_ids, epoch, _ROUNDING_DRAW)
        steps = np.floor(exact_steps + rounding)
        return multiple * steps.astype(np.int64)

    def _check_multiples(self) -> None:
        config = self.config
        low, mean, high = self._bounds()
        if low > high:
            raise ConfigError(
                "no length between lengths.minimum and lengths.maximum is a multiple of "
                "lengths.multiple",
                found=f"{config.minimum}..{config.maximum}, multiple {config.multiple}",
            )
        is_mean_changed = config.distribution == "fixed" and mean != config.mean
        if low != config.minimum or high != config.maximum or is_mean_changed:
            log.warning(
                "lengths rounded to multiples of %d: minimum %d, mean %g, maximum %d",
                config.multiple,
                low,
                mean,
                high,
            )
        if config.distribution == "uniform" and 2 * config.mean != low + high:
            log.warning(
                "lengths.mean %d is not used: the uniform distribution has mean %g",
                config.mean,
                (low + high) / 2,
            )

    def _beta_lengths(self, uniform: Float64) -> Float64:
        from scipy.special import betaincinv

        low, mean, high = self._bounds()
        if not low < mean < high:
            return np.full(len(uniform), mean)
        alpha = self.config.alpha
        beta = alpha * (high - mean) / (mean - low)
        share = betaincinv(alpha, beta, uniform)
        lengths = low + share * (high - low)
        return np.asarray(lengths, np.float64)

    def _two_point(
        self,
        available: Int64,
        uniform: Float64,
    ) -> Int64:
        maximum = float(self.config.maximum)
        alpha = self.config.alpha
        multiple = self.config.multiple
        target = maximum ** (alpha / 2)
        short = max(multiple, round(target / multiple) * multiple)
        num_events = np.maximum(available, 1).astype(np.float64)
        keeps_all = uniform * num_events**2 < maximum**alpha
        return np.where(keeps_all, available, np.minimum(available, short))

    def _bounds(self) -> tuple[int, float, int]:
        """Return (minimum, mean, maximum) with the outer two moved inwards to multiples.

        The mean lies between them; the mean of `fixed` is a multiple too.
        """
        config = self.config
        multiple = config.multiple
        low = -(-config.minimum // multiple) * multiple
        high = config.maximum // multiple * multiple
        mean = float(min(max(config.mean, low), high))
        if config.distribution == "fixed":
            mean = round(mean / multiple) * multiple
        return low, mean, high

    def _uniform(
        self,
        request_ids: Int64,
        epoch: int,
        draw: int,
    ) -> Float64:
        """Return one number in (0, 1) per request.

        Args:
            request_ids: int64 [n].
            epoch: number of the pass over the data.
            draw: which of the independent numbers of a request.
        """
        seed = np.array([self.seed], np.int64)
        seed_hash = splitmix64(seed)
        draw_number = np.uint64(_NUM_DRAWS * epoch + draw)
        key = splitmix64(seed_hash ^ draw_number)
        id_hash = splitmix64(request_ids.astype(np.int64))
        # The upper 53 bits, centred, as a number in (0, 1): a float64 holds 53 bits exactly.
        bits = splitmix64(id_hash ^ key) >> np.uint64(11)
        return (bits.astype(np.float64) + 0.5) * 2.0**-53
