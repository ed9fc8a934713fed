"""The training-only training length distribution: how many events of a request's history one training step sees, and
which ones.

A draw is a pure function of (seed, epoch, request id): it does not depend on the order of batches,
on workers, or on which
other requests there are. Serving has no law, only a fixed length
(`longrec.data.loader.most_recent`).
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import numpy.typing as npt

from longrec.config import LengthConfig
from longrec.data.encoder import Int64, splitmix64
from longrec.errors import ConfigError

Float64 = npt.NDArray[np.float64]
log = logging.getLogger(__name__)

_SHAPE, _ROUND, _PLACE = range(3)
"""Which of the independent uniform numbers of a request: of the law, of the rounding, of the random
cut.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class LengthSampler:
    """Draws the events that a training step sees.

    `beta` (arXiv 2511.06077): s ~ Beta(alpha, beta) with beta = alpha (L_max - L_avg) / (L_avg -
    L_min), and
    L = L_min + s (L_max - L_min), so that the mean is pinned to L_avg and alpha is the shape alone.
    `two_point` (HSTU, arXiv 2402.17152, stochastic length): with N = maximum and n the events that
    the request has (at most N), all n
    are kept with probability min(1, N^alpha / n^2) and N^(alpha/2) otherwise; alpha is in (0, 2],
    and the mean is not pinned.
    `uniform`: every multiple in [minimum, maximum] is equally likely. `fixed`: always the mean.
    `full`: everything.

    Lengths are multiples of `multiple` (in `two_point`, the shorter one). `beta` is rounded up or
    down at random, in
    proportion to the distance, which keeps the mean exactly where it was pinned. A request with
    fewer events keeps all it has.

    `cut`: `suffix` keeps the most recent events, `prefix` the oldest, `random` one contiguous
    window at a uniformly drawn
    place. The paper does not say how it cuts at random; a window keeps a history a slice, which a
    random subset would not be.

    Args:
        config: the law.
        seed: of every draw.

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
                "lengths.alpha of the two_point law must be in (0, 2]",
                found=config.alpha,
                fix="HSTU uses 1.5 to 2.",
            )
        if config.distribution in ("beta", "uniform", "fixed"):
            low, mean, high = self._bounds()
            if low > high:
                raise ConfigError(
                    "no length between lengths.minimum and lengths.maximum is a multiple of lengths.multiple",
                    found=f"{config.minimum}..{config.maximum}, multiple {config.multiple}",
                )
            if (low, high) != (config.minimum, config.maximum) or (
                config.distribution == "fixed" and mean != config.mean
            ):
                log.warning(
                    "lengths rounded to multiples of %d: minimum %d, mean %g, maximum %d",
                    config.multiple,
                    low,
                    mean,
                    high,
                )
            if config.distribution == "uniform" and 2 * config.mean != low + high:
                log.warning(
                    "lengths.mean %d is not used: the uniform law has mean %g",
                    config.mean,
                    (low + high) / 2,
                )

    def cut(
        self, request_ids: Int64, starts: Int64, ends: Int64, epoch: int
    ) -> tuple[Int64, Int64]:
        """Returns (starts, ends) of the events that stay, int64 [n], inside the given ones.

        Args:
            request_ids: int64 [n].
            starts, ends: int64 [n]; the events of request i are starts[i]:ends[i], oldest first.
            epoch: each epoch draws anew.
        """
        available = ends - starts
        kept = np.minimum(available, self.lengths(request_ids, available, epoch))
        if self.config.cut == "suffix":
            return ends - kept, ends
        if self.config.cut == "prefix":
            return starts, starts + kept
        place = np.floor(self._uniform(request_ids, epoch, _PLACE) * (available - kept + 1)).astype(
            np.int64
        )
        return starts + place, starts + place + kept

    def lengths(
        self,
        request_ids: Int64,
        available: Int64,
        epoch: int,
    ) -> Int64:
        """Returns the drawn length of each request, int64 [n]; it may be more than the request has.

        Args:
            request_ids: int64 [n].
            available: int64 [n], events that each request has; only `two_point` and `full` look at
                it.
            epoch: each epoch draws anew.
        """
        if self.config.distribution == "full":
            return available.copy()
        if self.config.distribution == "fixed":
            return np.full(len(request_ids), int(self._bounds()[1]), np.int64)
        shape = self._uniform(request_ids, epoch, _SHAPE)
        if self.config.distribution == "two_point":
            return self._two_point(np.minimum(available, self.config.maximum), shape)
        low, _, high = self._bounds()
        multiple = self.config.multiple
        if self.config.distribution == "uniform":
            return low + multiple * np.floor(shape * ((high - low) // multiple + 1)).astype(
                np.int64
            )
        exact = self._beta(shape) / multiple
        return multiple * np.floor(exact + self._uniform(request_ids, epoch, _ROUND)).astype(
            np.int64
        )

    def _beta(self, uniform: Float64) -> Float64:
        from scipy.special import betaincinv

        low, mean, high = self._bounds()
        if not low < mean < high:
            return np.full(len(uniform), mean)
        alpha = self.config.alpha
        beta = alpha * (high - mean) / (mean - low)
        return np.asarray(low + betaincinv(alpha, beta, uniform) * (high - low), np.float64)

    def _two_point(self, available: Int64, uniform: Float64) -> Int64:
        capacity, alpha, multiple = (
            float(self.config.maximum),
            self.config.alpha,
            self.config.multiple,
        )
        short = max(multiple, round(capacity ** (alpha / 2) / multiple) * multiple)
        keeps_all = uniform * np.maximum(available, 1).astype(np.float64) ** 2 < capacity**alpha
        return np.where(keeps_all, available, np.minimum(available, short))

    def _bounds(self) -> tuple[int, float, int]:
        """Returns (minimum, mean, maximum), the outer two moved inwards to multiples and the mean
        between them.
        """
        config = self.config
        low = -(-config.minimum // config.multiple) * config.multiple
        high = config.maximum // config.multiple * config.multiple
        mean = float(min(max(config.mean, low), high))
        return (
            low,
            round(mean / config.multiple) * config.multiple
            if config.distribution == "fixed"
            else mean,
            high,
        )

    def _uniform(
        self,
        request_ids: Int64,
        epoch: int,
        which: int,
    ) -> Float64:
        """Returns one number in (0, 1) per request."""
        key = splitmix64(splitmix64(np.array([self.seed], np.int64)) ^ np.uint64(3 * epoch + which))
        bits = splitmix64(splitmix64(request_ids.astype(np.int64)) ^ key)
        return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
