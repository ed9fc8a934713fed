"""Versions in a running service: follows the registry of its work directory, swaps engines under load, compares the challenger in the shadow.

    registry.json --looked at each second--> load aside --warm--> swap --> the old engine finishes what it began, then it is closed
                                                 \\-- refused: the old one stays, and the report says why

An engine is whatever `load` returns; this module never looks into it. A request holds the engine that it began with (`lease`), so its
answer and its `model_version` belong together whatever is promoted meanwhile.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import logging
import os
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from longrec.data import files
from longrec.errors import LongrecError
from longrec.release import registry as models
from longrec.release.registry import Registry

log = logging.getLogger("bentoml.longrec.versions")

Engine = TypeVar("Engine")
Scores = Sequence[npt.ArrayLike]
"""Per task, the scores of the candidates."""
LOOK_SECONDS = 1.0
BEAT_SECONDS = 10.0
"""A worker says at least so often that it is there."""
RETRY_SECONDS = 30.0
"""A refused version is tried again so long after, for its files may have been on the way."""
WAITING = 8
"""Mirrored requests that wait for the challenger; more are dropped."""
KEPT_TIMES = 512
OLD_REPORT_SECONDS = 7 * 86_400


class Note(Protocol):
    """Is told what happens to versions, for metrics; must not wait."""

    def serving(self, version: str, before: str | None) -> None:
        """Notes which version answers from now on, and which did."""

    def refused(self) -> None:
        """Notes a version that could not be loaded."""

    def mirrored(self, outcome: str, difference: float = 0.0) -> None:
        """Notes what became of a mirrored request: compared, dropped, failed; and the mean
        difference of its scores.
        """


class NoNote:
    """Forgets."""

    def serving(self, version: str, before: str | None) -> None:
        pass

    def refused(self) -> None:
        pass

    def mirrored(self, outcome: str, difference: float = 0.0) -> None:
        pass


@dataclasses.dataclass(slots=True)
class Tally:
    """What a worker has seen of champion and challenger side by side.

    Args:
        champion, challenger: versions.
        compared, dropped, failed: mirrored requests: scored by both; not scored, the challenger was
            busy; the challenger raised.
        ranked, rank_correlation: columns of scores with an order (two different candidates), and
            the sum of their Spearman correlations.
        scores, difference, largest: scores compared, sum and maximum of their absolute differences.
        champion_ms, challenger_ms: seconds of the last requests, in ms; at most KEPT_TIMES.
    """

    champion: str
    challenger: str
    compared: int = 0
    dropped: int = 0
    failed: int = 0
    ranked: int = 0
    rank_correlation: float = 0.0
    scores: int = 0
    difference: float = 0.0
    largest: float = 0.0
    champion_ms: collections.deque[float] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=KEPT_TIMES)
    )
    challenger_ms: collections.deque[float] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=KEPT_TIMES)
    )

    def add(
        self, champion: Scores, challenger: Scores, champion_ms: float, challenger_ms: float
    ) -> float:
        """Returns the mean absolute difference of the scores of one request that both have scored,
        after counting it.
        """
        before = self.scores, self.difference
        for ours, theirs in zip(champion, challenger, strict=True):
            a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
            apart = np.abs(a - b)
            self.scores += len(a)
            self.difference += float(apart.sum())
            self.largest = max(self.largest, float(apart.max(initial=0.0)))
            if (correlation := rank_correlation(a, b)) is not None:
                self.ranked += 1
                self.rank_correlation += correlation
        self.compared += 1
        self.champion_ms.append(champion_ms)
        self.challenger_ms.append(challenger_ms)
        return (self.difference - before[1]) / max(1, self.scores - before[0])

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            **dataclasses.asdict(self),
            "champion_ms": [round(ms, 3) for ms in self.champion_ms],
            "challenger_ms": [round(ms, 3) for ms in self.challenger_ms],
        }


def rank_correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float | None:
    """Returns Spearman's correlation of two columns of scores, ties at their mean rank; None where
    a column has no order.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(column) - (len(column) + 1) / 2 for column in (a, b)]
    size = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return None if size == 0 else float((ranks[0] * ranks[1]).sum()) / size


@dataclasses.dataclass(slots=True)
class _Held(Generic[Engine]):
    version: str
    engine: Engine
    num_running: int = 0
    is_replaced: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class _Copy:
    """A mirrored request: what was asked, what the champion said, how long that took."""

    asked: Any
    scores: Scores
    milliseconds: float


class Versions(Generic[Engine]):
    """The engines of one worker.

    Args:
        workdir: LONGREC_HOME, whose registry is followed.
        own: version that is served where the registry names none, or one that cannot be loaded
            here.
        load: returns a warm engine of a version, or raises LongrecError; called from another thread
            while the old engine answers.
        score: (engine, request) -> scores; for the shadow, called from a thread of its own.
        close: ends an engine that no request uses any more.
        take: is given an engine right before it answers callers for the first time; not one that
            runs in the shadow.
        note: is told of it all.
        is_pinned: True for a service that serves its own version whatever the registry says.
    """

    def __init__(
        self,
        workdir: str | Path,
        own: str,
        load: Callable[[str], Engine],
        *,
        score: Callable[[Engine, Any], Scores],
        close: Callable[[Engine], None] = lambda _: None,
        take: Callable[[Engine], None] = lambda _: None,
        note: Note | None = None,
        is_pinned: bool = False,
    ) -> None:
        self._workdir, self._own, self._load, self._score, self._close = (
            Path(workdir),
            own,
            load,
            score,
            close,
        )
        self._take, self._note = take, note or NoNote()
        self._is_pinned, self._lock, self._stop = is_pinned, threading.Lock(), threading.Event()
        self._registry, self.refused = Registry(), dict[str, str]()
        self._seen: tuple[int, int, int] | None = None
        self._challenger: _Held[Engine] | None = None
        self._shadow = threading.Lock()
        self._tally: Tally | None = None
        self._told: Tally | None = None
        self._waiting: queue.Queue[_Copy] = queue.Queue(WAITING)
        self._random = random.Random(os.getpid())  # noqa: S311
        self._look_again_at, self._beat_at, self.num_swaps = float("inf"), 0.0, 0
        self._report = (
            models.registry_path(workdir).parent
            / "workers"
            / f"{socket.gethostname()}-{os.getpid()}.json"
        )
        self._current = self._first()
        self._take(self._current.engine)
        self._note.serving(self._current.version, None)
        self._threads = [
            threading.Thread(
                target=work,
                name=name,
                daemon=True,
            )
            for work, name in ((self._follow, "versions"), (self._compare, "shadow"))
        ]

    @property
    def version(self) -> str:
        """The version that answers the next request."""
        return self._current.version

    @property
    def engine(self) -> Engine:
        """The engine that answers the next request; for reading facts of it, not for scoring (see
        `lease`).
        """
        return self._current.engine

    @property
    def tally(self) -> Tally | None:
        """The comparison under way, None where nothing runs in the shadow."""
        return self._tally

    def start(self) -> None:
        """Begins to follow the registry."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends following; engines stay open for what is still asked of them."""
        self._stop.set()

    @contextlib.contextmanager
    def lease(self) -> Iterator[tuple[str, Engine]]:
        """Yields the version and its engine, which stays open until the block ends."""
        with self._lock:
            held = self._current
            held.num_running += 1
        try:
            yield held.version, held.engine
        finally:
            with self._lock:
                held.num_running -= 1
                is_last = held.is_replaced and held.num_running == 0
            if is_last:
                self._close_aside(held.engine)

    def mirror(
        self,
        asked: Any,
        version: str,
        scores: Scores,
        milliseconds: float,
    ) -> None:
        """Puts a copy of an answered request in front of the challenger, if it is one of the
        mirrored share; never waits.
        """
        tally = self._tally
        if (
            tally is None
            or version != tally.champion
            or self._random.random() >= self._registry.mirror_share
        ):
            return
        try:
            self._waiting.put_nowait(_Copy(asked, scores, milliseconds))
        except queue.Full:
            tally.dropped += 1
            self._note.mirrored("dropped")

    def look(self) -> None:
        """Does what the registry says, where it has changed since the last look."""
        stamp = self._stamp()
        if stamp == self._seen and time.monotonic() < self._look_again_at:
            return
        self._seen, self._look_again_at = stamp, float("inf")
        try:
            registry = models.read(self._workdir)
        except LongrecError as error:
            return self._refuse("registry", error)
        self.refused.clear()
        self._registry = registry
        self._to_champion(registry.champion or self._own)
        self._to_challenger(registry.challenger)
        self._write_report()

    def _first(self) -> _Held[Engine]:
        """Returns the champion, or the service's own version where there is none or it cannot be
        loaded.
        """
        wanted = self._own
        if not self._is_pinned:
            try:
                wanted = models.read(self._workdir).champion or self._own
            except LongrecError as error:
                self._refuse("registry", error)
        if wanted != self._own:
            try:
                return _Held(wanted, self._load(wanted))
            except LongrecError as error:
                self._refuse(wanted, error)
        return _Held(self._own, self._load(self._own))

    def _to_champion(self, version: str) -> None:
        if version == self._current.version:
            return
        try:
            held = self._out_of_the_shadow(version) or _Held(version, self._load(version))
        except Exception as error:  # whatever is wrong with a new version, the old one goes on
            return self._refuse(version, error)
        self._take(held.engine)
        with self._lock:
            old, self._current = self._current, held
            old.is_replaced = True
            is_idle = old.num_running == 0
        self.num_swaps += 1
        self._note.serving(version, old.version)
        log.info("serving %s instead of %s", version, old.version)
        if is_idle:
            self._close_aside(old.engine)

    def _out_of_the_shadow(self, version: str) -> _Held[Engine] | None:
        """Returns the challenger, which is warm already, where it is this version; it is the
        challenger no more.
        """
        with self._shadow:
            if self._challenger is None or self._challenger.version != version:
                return None
            held, self._challenger, self._tally = self._challenger, None, None
            return held

    def _to_challenger(self, version: str | None) -> None:
        pair = None if self._tally is None else (self._tally.champion, self._tally.challenger)
        if version is not None and pair == (self.version, version):
            return
        with self._shadow:  # the engine is not at work then
            self._tally, old = None, self._challenger
            if old is not None and old.version != version:
                self._challenger = None
                self._close_aside(old.engine)
        if version is None or version == self.version:
            return
        if self._challenger is None:
            try:
                self._challenger = _Held(version, self._load(version))
            except Exception as error:
                return self._refuse(version, error)
        self._tally = self._told = Tally(self.version, version)
        log.info(
            "%s runs in the shadow of %s, with %.3g of the requests",
            version,
            self.version,
            self._registry.mirror_share,
        )

    def _refuse(self, version: str, error: Exception) -> None:
        self.refused[version] = (
            str(error) if isinstance(error, LongrecError) else f"{type(error).__name__}: {error}"
        )
        self._look_again_at = time.monotonic() + RETRY_SECONDS
        self._note.refused()
        log.error("%s cannot be served: %s", version, self.refused[version])
        if hasattr(self, "_current"):
            self._write_report()

    def _follow(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                if not self._is_pinned:
                    self.look()
                if time.monotonic() >= self._beat_at:
                    self._write_report()
            except Exception:
                log.exception("the registry of %s cannot be followed", self._workdir)

    def _compare(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Empty):
                copy = self._waiting.get(timeout=LOOK_SECONDS)
                with self._shadow:
                    self._compare_one(copy)

    def _compare_one(self, copy: _Copy) -> None:
        tally, held = self._tally, self._challenger
        if tally is None or held is None:
            return
        started = time.perf_counter()
        try:
            scores = self._score(held.engine, copy.asked)
            difference = tally.add(
                copy.scores, scores, copy.milliseconds, 1e3 * (time.perf_counter() - started)
            )
            self._note.mirrored("compared", difference)
        except Exception as error:  # nobody waits for the challenger
            tally.failed += 1
            self._note.mirrored("failed")
            log.warning("the challenger %s failed: %s", held.version, error)

    def _stamp(self) -> tuple[int, int, int] | None:
        with contextlib.suppress(OSError):
            found = models.registry_path(self._workdir).stat()
            return found.st_mtime_ns, found.st_ino, found.st_size
        return None

    def _close_aside(self, engine: Engine) -> None:
        threading.Thread(
            target=self._close,
            args=(engine,),
            name="close",
            daemon=True,
        ).start()

    def _write_report(self) -> None:
        """Says what this worker serves; a work directory that cannot be written to is not needed for
        serving.
        """
        self._beat_at = time.monotonic() + BEAT_SECONDS
        report = {
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "serving": self.version,
            "pinned": self._is_pinned,
            "generation": self._registry.generation,
            "refused": self.refused,
            "shadow": None if self._told is None else self._told.to_dict(),
        }
        try:
            files.write_json(self._report, report)
        except OSError as error:
            log.warning("no report in %s: %s", self._report.parent, error)
            self._beat_at = float("inf")


def workers(workdir: str | Path) -> list[dict[str, Any]]:
    """Returns what the workers of a work directory last said of themselves, those of the last week; older
    reports are removed.
    """
    found = []
    for path in sorted((models.registry_path(workdir).parent / "workers").glob("*.json")):
        with contextlib.suppress(LongrecError, OSError):
            if time.time() - path.stat().st_mtime > OLD_REPORT_SECONDS:
                path.unlink()
            else:
                found.append(
                    {
                        **files.read_json(path),
                        "is_live": time.time() - path.stat().st_mtime < 3 * BEAT_SECONDS,
                    }
                )
    return found


def shadow_report(workdir: str | Path) -> dict[str, Any] | None:
    """Returns the comparison of the challenger with the champion, over all workers; None where no
    worker has compared.

    The last pair is taken where nothing runs in the shadow now. Latencies are medians of the last
    requests of each worker; their ratio
    tells what the challenger costs more than the champion on the same requests, under the same load
    but without a queue.
    """
    registry, tallies = (
        models.read(workdir),
        [worker["shadow"] for worker in workers(workdir) if worker.get("shadow")],
    )
    wanted = (registry.champion, registry.challenger)
    chosen = [
        tally for tally in tallies if (tally["champion"], tally["challenger"]) == wanted
    ] or tallies[-1:]
    if not chosen:
        return None
    total = {
        name: sum(tally[name] for tally in chosen)
        for name in (
            "compared",
            "dropped",
            "failed",
            "ranked",
            "rank_correlation",
            "scores",
            "difference",
        )
    }
    medians = {
        side: _median([ms for tally in chosen for ms in tally[f"{side}_ms"]])
        for side in ("champion", "challenger")
    }
    return {
        "champion": chosen[0]["champion"],
        "challenger": chosen[0]["challenger"],
        "workers": len(chosen),
        **{name: total[name] for name in ("compared", "dropped", "failed")},
        "rank_correlation": _ratio(total["rank_correlation"], total["ranked"]),
        "mean_difference": _ratio(total["difference"], total["scores"]),
        "largest_difference": max(tally["largest"] for tally in chosen),
        "champion_ms": medians["champion"],
        "challenger_ms": medians["challenger"],
        "latency_ratio": _ratio(medians["challenger"], medians["champion"]),
        "is_enough": total["compared"] >= models.PAIRS_WANTED,
    }


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def summary(workdir: str | Path, store: str | Path) -> dict[str, Any]:
    """Returns what `longrec models list` shows: the registry, the models of the store, the workers
    that are there, the last decisions.
    """
    registry = models.read(workdir)
    return {
        "champion": registry.champion,
        "previous": registry.previous,
        "challenger": registry.challenger,
        "mirror_share": registry.mirror_share,
        "generation": registry.generation,
        "models": [dataclasses.asdict(each) for each in models.candidates(workdir, store)],
        "workers": [
            {
                name: worker[name]
                for name in ("host", "pid", "at", "serving", "pinned", "generation", "refused")
            }
            for worker in workers(workdir)
            if worker["is_live"]
        ],
        "log": [dataclasses.asdict(change) for change in models.log(workdir)[-10:]],
    }
