"""Shadow: the challenger scores copies of requests; its scores are only compared.

Copies are scored one at a time, after the champion has answered. A copy that would wait too long is
dropped and counted.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from longrec.serving.rollout.listener import RolloutListener
from longrec.serving.rollout.loaded_model import LoadedModel

log = logging.getLogger("bentoml.longrec.shadow")

Engine = TypeVar("Engine")
Scores: TypeAlias = Sequence[npt.ArrayLike] | npt.NDArray[np.float32]
"""Scores of the candidates, [m] for each task."""
MAX_MIRROR_QUEUE = 8
"""Copies that may wait for the challenger; more are dropped."""
MAX_LATENCY_SAMPLES = 512
"""Latencies that a comparison remembers for each side."""
WAIT_SECONDS = 1.0
"""Time after which a waiting thread looks whether it must end."""


def _latencies() -> collections.deque[float]:
    return collections.deque(maxlen=MAX_LATENCY_SAMPLES)


@dataclasses.dataclass(slots=True)
class ShadowComparison:
    """Scores and latencies of champion and challenger on the same requests of one worker.

    Args:
        champion, challenger: versions.
        num_compared: mirrored requests that both scored.
        num_dropped: copies that would have waited too long.
        num_failed: copies on which the challenger raised.
        num_correlations, sum_correlations: columns of scores with an order (two different
            candidates), and the sum of their Spearman correlations.
        num_scores, sum_differences, max_difference: compared scores and their absolute differences.
        champion_ms, challenger_ms: latencies of the last requests.
    """

    champion: str
    challenger: str
    num_compared: int = 0
    num_dropped: int = 0
    num_failed: int = 0
    num_correlations: int = 0
    sum_correlations: float = 0.0
    num_scores: int = 0
    sum_differences: float = 0.0
    max_difference: float = 0.0
    champion_ms: collections.deque[float] = dataclasses.field(default_factory=_latencies)
    challenger_ms: collections.deque[float] = dataclasses.field(default_factory=_latencies)

    def add(self, champion: Scores, challenger: Scores) -> float:
        """Count a request that both scored; return the mean absolute difference of its scores."""
        num_scores = 0
        sum_differences = 0.0
        for champion_column, challenger_column in zip(champion, challenger, strict=True):
            a = np.asarray(champion_column, np.float64)
            b = np.asarray(challenger_column, np.float64)
            differences = np.abs(a - b)
            num_scores += len(a)
            sum_differences += float(differences.sum())
            largest = float(differences.max(initial=0.0))
            self.max_difference = max(self.max_difference, largest)
            self._add_correlation(rank_correlation(a, b))
        self.num_compared += 1
        self.num_scores += num_scores
        self.sum_differences += sum_differences
        return sum_differences / max(1, num_scores)

    def add_latencies(self, champion_ms: float, challenger_ms: float) -> None:
        """Remember the latencies of a request."""
        self.champion_ms.append(champion_ms)
        self.challenger_ms.append(challenger_ms)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, which `worker_reports` reads."""
        return {
            "champion": self.champion,
            "challenger": self.challenger,
            "compared": self.num_compared,
            "dropped": self.num_dropped,
            "failed": self.num_failed,
            "ranked": self.num_correlations,
            "rank_correlation": self.sum_correlations,
            "scores": self.num_scores,
            "difference": self.sum_differences,
            "largest": self.max_difference,
            "champion_ms": [round(ms, 3) for ms in self.champion_ms],
            "challenger_ms": [round(ms, 3) for ms in self.challenger_ms],
        }

    def _add_correlation(self, correlation: float | None) -> None:
        if correlation is not None:
            self.num_correlations += 1
            self.sum_correlations += correlation


@dataclasses.dataclass(frozen=True, slots=True)
class MirroredRequest:
    """A copy of an answered request.

    Args:
        request: the engine's form of the request.
        version: version that answered it.
        scores: scores of that version.
        champion_ms: latency of that version.
    """

    request: Any
    version: str
    scores: Scores
    champion_ms: float


class Shadow(Generic[Engine]):
    """The challenger of one worker.

    Args:
        load: returns a warm engine of a version.
        score: returns the scores of a request; called from the thread of `run`.
        close: closes an engine that nothing uses.
        listener: observes mirrored requests.
    """

    def __init__(
        self,
        load: Callable[[str], Engine],
        score: Callable[[Engine, Any], Scores],
        close: Callable[[Engine], None],
        listener: RolloutListener,
    ) -> None:
        self._load = load
        self._score = score
        self._close = close
        self._listener = listener
        self._lock = threading.Lock()  # held while the challenger scores, or is taken away
        self._challenger: LoadedModel[Engine] | None = None
        self._mirror_share = 0.0
        self._queue: queue.Queue[MirroredRequest] = queue.Queue(MAX_MIRROR_QUEUE)
        self._random = random.Random(os.getpid())  # noqa: S311
        self.comparison: ShadowComparison | None = None
        self.last_comparison: ShadowComparison | None = None

    def compare(
        self,
        champion: str,
        challenger: str | None,
        mirror_share: float,
    ) -> None:
        """Compare this pair from now on; end the comparison before it.

        Args:
            champion: version that answers.
            challenger: version to compare with it; None for no comparison.
            mirror_share: share of the requests to copy.

        Raises:
            Exception: whatever `load` raises; nothing is compared then.
        """
        self._mirror_share = mirror_share
        if self._compares(champion, challenger):
            return
        self._end_comparison(next_challenger=challenger)
        if challenger is None or challenger == champion:
            return
        if self._challenger is None:
            self._challenger = LoadedModel(challenger, self._load(challenger))
        self.comparison = ShadowComparison(champion, challenger)
        self.last_comparison = self.comparison
        log.info(
            "%s runs in the shadow of %s, with %.3g of the requests",
            challenger,
            champion,
            mirror_share,
        )

    def take_challenger(self, version: str) -> LoadedModel[Engine] | None:
        """Return the warm challenger if it is this version; it leaves the shadow."""
        with self._lock:
            challenger = self._challenger
            if challenger is None or challenger.version != version:
                return None
            self._challenger = None
            self.comparison = None
            return challenger

    def mirror(
        self,
        request: Any,
        version: str,
        scores: Scores,
        champion_ms: float,
    ) -> None:
        """Queue a copy of a request if it is in the mirrored share; never wait.

        Args:
            request: the engine's form of the request.
            version: version that answered it.
            scores: scores of that version.
            champion_ms: latency of that version.
        """
        comparison = self.comparison
        if comparison is None or version != comparison.champion:
            return
        if self._random.random() >= self._mirror_share:
            return
        try:
            self._queue.put_nowait(MirroredRequest(request, version, scores, champion_ms))
        except queue.Full:
            comparison.num_dropped += 1
            self._listener.request_mirrored("dropped")

    def run(self, is_stopped: threading.Event) -> None:
        """Score copies until stopped; this is the work of a thread."""
        while not is_stopped.is_set():
            try:
                mirrored = self._queue.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                continue
            with self._lock:
                self._compare_scores(mirrored)

    def _compares(self, champion: str, challenger: str | None) -> bool:
        comparison = self.comparison
        if comparison is None:
            return False
        return comparison.champion == champion and comparison.challenger == challenger

    def _end_comparison(self, next_challenger: str | None) -> None:
        with self._lock:  # the challenger is idle then
            self.comparison = None
            challenger = self._challenger
            if challenger is not None and challenger.version != next_challenger:
                self._challenger = None
                self._close(challenger.engine)

    def _compare_scores(self, mirrored: MirroredRequest) -> None:
        comparison = self.comparison
        challenger = self._challenger
        if comparison is None or challenger is None:
            return
        if mirrored.version != comparison.champion:
            return  # it waited while another version became the champion
        started = time.perf_counter()
        try:
            scores = self._score(challenger.engine, mirrored.request)
            challenger_ms = 1e3 * (time.perf_counter() - started)
            difference = comparison.add(mirrored.scores, scores)
            comparison.add_latencies(mirrored.champion_ms, challenger_ms)
            self._listener.request_mirrored("compared", difference)
        except Exception as error:
            # Nobody waits for the challenger: its errors are only counted.
            comparison.num_failed += 1
            self._listener.request_mirrored("failed")
            log.warning("the challenger %s failed: %s", challenger.version, error)


def rank_correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float | None:
    """Return Spearman's correlation of two columns of scores, None where one has no order.

    Ties get their mean rank.
    """
    from scipy.stats import rankdata

    mean_rank = (len(a) + 1) / 2
    ranks_a = rankdata(a) - mean_rank
    ranks_b = rankdata(b) - mean_rank
    squares_a = (ranks_a**2).sum()
    squares_b = (ranks_b**2).sum()
    scale = float(np.sqrt(squares_a * squares_b))
    if scale == 0:
        return None
    return float((ranks_a * ranks_b).sum()) / scale
