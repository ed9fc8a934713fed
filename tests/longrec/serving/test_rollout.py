"""Versions in a worker, with engines of text: swaps under load, refusals, the shadow."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from longrec.errors import DataError
from longrec.release import registry
from longrec.serving import rollout as versions
from longrec.serving.rollout import Versions


@dataclasses.dataclass(eq=False)
class Engine:
    version: str
    is_closed: bool = False

    def score(self, asked: list[float]) -> list[np.ndarray]:
        assert not self.is_closed, "an engine is used after it was closed"
        return [np.array(asked) * (1 if self.version == "a" else -1)]


def decide(workdir: Path, **changes: object) -> None:
    """Writes the registry without looking at a store."""
    with registry._changing(workdir) as before:
        registry._decide(
            workdir,
            before,
            "promote",
            None,
            None,
            "test",
            "test",
            dataclasses.replace(before, **changes),
        )


class World:
    def __init__(self, workdir: Path) -> None:
        self.workdir, self.engines, self.broken, self.taken = workdir, [], {"broken"}, []

    def load(self, version: str) -> Engine:
        if version in self.broken:
            raise DataError(f"{version} is damaged")
        if version == "surprise":
            raise RuntimeError("no memory")
        self.engines.append(Engine(version))
        return self.engines[-1]

    def versions(self, own: str = "a", **more: object) -> Versions[Engine]:
        return Versions(
            self.workdir,
            own,
            self.load,
            score=Engine.score,
            close=lambda engine: setattr(engine, "is_closed", True),
            take=self.taken.append,
            **more,
        )


@pytest.fixture()
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def eventually(holds: object, seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_swap_leaves_the_old_engine_to_those_who_hold_it(world: World) -> None:
    held = world.versions()
    with held.lease() as (version, engine):
        decide(world.workdir, champion="b")
        held.look()
        assert held.version == "b" and version == engine.version == "a"
        time.sleep(0.05)
        assert not engine.is_closed
        with held.lease() as (later, other):
            assert later == other.version == "b"
    eventually(lambda: engine.is_closed)
    assert not other.is_closed and held.num_swaps == 1


def test_no_request_meets_a_closed_or_a_wrong_engine(world: World) -> None:
    held, failures, counts, stop = world.versions(), [], {"a": 0, "b": 0}, threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                with held.lease() as (version, engine):
                    time.sleep(0.0005)
                    assert (engine.score([1.0])[0][0] == 1) == (version == "a")
                    counts[version] += 1
            except AssertionError as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(40):
        version, before = "ab"[turn % 2], counts["ab"[turn % 2]]
        decide(world.workdir, champion=version)
        held.look()
        eventually(lambda version=version, before=before: counts[version] > before or failures)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures and held.num_swaps == 39
    eventually(lambda: sum(not engine.is_closed for engine in world.engines) == 1)  # nothing leaks


@pytest.mark.parametrize(
    ("version", "words"), [("broken", "is damaged"), ("surprise", "no memory")]
)
def test_a_refused_version_keeps_the_old_one_and_is_told(
    world: World, version: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = world.versions()
    decide(world.workdir, champion=version)
    held.look()
    assert held.version == "a" and words in held.refused[version]
    (worker,) = versions.workers(world.workdir)
    assert worker["serving"] == "a" and words in worker["refused"][version] and worker["is_live"]
    world.broken.clear()
    held.look()
    assert held.version == "a"  # not at once
    later = time.monotonic() + versions.RETRY_SECONDS + 1
    monkeypatch.setattr(versions.time, "monotonic", lambda: later)
    held.look()
    assert held.version == ("broken" if version == "broken" else "a")


def test_a_damaged_registry_keeps_what_is_served(world: World) -> None:
    held = world.versions()
    decide(world.workdir, champion="b")
    held.look()
    registry.registry_path(world.workdir).write_text("{")
    held.look()
    assert held.version == "b" and "not JSON" in held.refused["registry"]


def test_the_start_takes_the_champion_or_its_own_version(world: World) -> None:
    assert world.versions().version == "a"
    decide(world.workdir, champion="b")
    assert world.versions().version == "b"
    assert world.versions(is_pinned=True).version == "a"
    decide(world.workdir, champion="broken")
    held = world.versions()
    assert held.version == "a" and "broken" in held.refused
    world.broken.add("a")
    with pytest.raises(DataError):
        world.versions()


def test_the_registry_is_followed_within_seconds(world: World) -> None:
    held = world.versions()
    held.start()
    decide(world.workdir, champion="b")
    eventually(lambda: held.version == "b")
    eventually(lambda: world.engines[0].is_closed)  # nobody held it
    held.stop()


def test_the_shadow_compares_without_holding_up_anybody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(world.workdir, champion="a", challenger="b", mirror_share=1.0)
    held = world.versions()
    held.look()
    asked = [0.1, 0.2, 0.4]
    held.mirror(asked, "a", [np.array(asked)], 1e6)
    held.mirror(asked, "other", [np.array(asked)], 1e6)  # answered by a version that is gone
    held._compare_one(held._waiting.get())
    assert held._waiting.empty()
    report = versions.shadow_report(world.workdir)
    assert report is not None and report["compared"] == 0  # not written yet
    held._write_report()
    report = versions.shadow_report(world.workdir)
    assert (report["compared"], report["dropped"], report["failed"], report["is_enough"]) == (
        1,
        0,
        0,
        False,
    )
    assert report["rank_correlation"] == pytest.approx(-1) and report[
        "mean_difference"
    ] == pytest.approx(2 * np.mean(asked))
    assert (
        report["largest_difference"] == pytest.approx(0.8)
        and report["champion_ms"] == 1e6
        and report["latency_ratio"] < 1
    )
    for _ in range(versions.WAITING + 5):  # nobody takes them: to wait would be for ever
        held.mirror(asked, "a", [np.array(asked)], 2.0)
    assert held.tally.dropped == 5
    monkeypatch.setattr(held, "_score", lambda engine, asked: 1 / 0)
    held._compare_one(held._waiting.get())
    assert held.tally.failed == 1


def test_the_share_of_mirrored_requests(world: World) -> None:
    decide(world.workdir, champion="a", challenger="b", mirror_share=0.2)
    held = world.versions()
    held.look()
    for _ in range(2_000):
        held.mirror([1.0], "a", [np.ones(1)], 1.0)
    assert 300 < held.tally.dropped + held._waiting.qsize() < 500


def test_a_promoted_challenger_is_taken_over_warm_and_an_ended_shadow_is_closed(
    world: World,
) -> None:
    decide(world.workdir, champion="a", challenger="b", mirror_share=1.0)
    held = world.versions()
    held.look()
    challenger = world.engines[-1]
    assert challenger not in world.taken  # it has answered nobody yet
    decide(world.workdir, champion="b", challenger=None)
    held.look()
    assert held.engine is challenger and challenger in world.taken and held.tally is None
    assert [engine.version for engine in world.engines] == ["a", "b"]
    decide(world.workdir, challenger="c", mirror_share=1.0)
    held.look()
    decide(world.workdir, challenger=None)
    held.look()
    eventually(lambda: world.engines[-1].is_closed)
    assert held.tally is None and not challenger.is_closed
    assert versions.shadow_report(world.workdir)["challenger"] == "c"  # the report stays


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    for size in (2, 3, 50):
        a, b = rng.integers(0, 5 * size, size).astype(float), rng.random(size).round(1)
        if np.ptp(a) and np.ptp(b):
            assert versions.rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert versions.rank_correlation(np.ones(3), rng.random(3)) is None
