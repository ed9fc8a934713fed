"""The versions of a worker, with fake engines: swaps under load, failed loads, the start."""

from __future__ import annotations

import threading
import time

import pytest

from longrec.errors import DataError
from longrec.release import registry
from longrec.serving.rollout import model_manager, worker_reports
from tests.longrec.serving.rollout.fake_engines import FakeRollout, decide, eventually


def test_a_swap_leaves_the_old_engine_to_its_requests(rollout: FakeRollout) -> None:
    manager = rollout.start_worker()
    with manager.acquire() as (version, engine):
        decide(rollout.workdir, champion="b")
        manager.sync_with_registry()
        assert manager.version == "b"
        assert version == engine.version == "a"
        time.sleep(0.05)
        assert not engine.is_closed
        with manager.acquire() as (later_version, later_engine):
            assert later_version == later_engine.version == "b"
    eventually(lambda: engine.is_closed)
    assert not later_engine.is_closed
    assert manager.num_swaps == 1


def test_no_request_gets_a_closed_or_a_wrong_engine(rollout: FakeRollout) -> None:
    manager = rollout.start_worker()
    failures = []
    num_answers = {"a": 0, "b": 0}
    is_over = threading.Event()

    def send_requests() -> None:
        while not is_over.is_set():
            try:
                with manager.acquire() as (version, engine):
                    time.sleep(0.0005)
                    score = engine.score([1.0])[0][0]
                    assert (score == 1) == (version == "a")
                    num_answers[version] += 1
            except AssertionError as error:
                failures.append(error)

    threads = [threading.Thread(target=send_requests) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(40):
        version = "ab"[turn % 2]
        before = num_answers[version]
        decide(rollout.workdir, champion=version)
        manager.sync_with_registry()
        eventually(lambda version=version, before=before: num_answers[version] > before or failures)
    is_over.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert manager.num_swaps == 39
    eventually(lambda: rollout.num_open_engines == 1)  # no engine leaks


@pytest.mark.parametrize(
    ("version", "reason"),
    [("broken", "is damaged"), ("surprise", "no memory")],
)
def test_a_failed_load_keeps_the_old_version_and_is_reported(
    rollout: FakeRollout,
    version: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager = rollout.start_worker()
    decide(rollout.workdir, champion=version)
    manager.sync_with_registry()
    assert manager.version == "a"
    assert reason in manager.load_errors[version]
    (worker,) = worker_reports.workers(rollout.workdir)
    assert worker["serving"] == "a"
    assert reason in worker["refused"][version]
    assert worker["is_live"]
    rollout.broken.clear()
    manager.sync_with_registry()
    assert manager.version == "a"  # it is not loaded again at once
    later = time.monotonic() + model_manager.RETRY_SECONDS + 1
    monkeypatch.setattr(model_manager.time, "monotonic", lambda: later)
    manager.sync_with_registry()
    assert manager.version == ("broken" if version == "broken" else "a")


def test_a_damaged_registry_changes_nothing(rollout: FakeRollout) -> None:
    manager = rollout.start_worker()
    decide(rollout.workdir, champion="b")
    manager.sync_with_registry()
    registry.registry_path(rollout.workdir).write_text("{")
    manager.sync_with_registry()
    assert manager.version == "b"
    assert "not JSON" in manager.load_errors["registry"]


def test_a_worker_starts_with_the_champion_or_its_own_version(rollout: FakeRollout) -> None:
    assert rollout.start_worker().version == "a"
    decide(rollout.workdir, champion="b")
    assert rollout.start_worker().version == "b"
    assert rollout.start_worker(is_pinned=True).version == "a"
    decide(rollout.workdir, champion="broken")
    manager = rollout.start_worker()
    assert manager.version == "a"
    assert "broken" in manager.load_errors
    rollout.broken.add("a")
    with pytest.raises(DataError):
        rollout.start_worker()


def test_the_registry_is_followed_within_seconds(rollout: FakeRollout) -> None:
    manager = rollout.start_worker()
    manager.start()
    decide(rollout.workdir, champion="b")
    eventually(lambda: manager.version == "b")
    eventually(lambda: rollout.engines[0].is_closed)  # no request used it
    manager.stop()


def test_a_promoted_challenger_takes_over_warm(rollout: FakeRollout) -> None:
    decide(rollout.workdir, champion="a", challenger="b", mirror_share=1.0)
    manager = rollout.start_worker()
    manager.sync_with_registry()
    challenger = rollout.engines[-1]
    assert challenger not in rollout.activated  # it has answered nobody yet
    decide(rollout.workdir, champion="b", challenger=None)
    manager.sync_with_registry()
    assert manager.engine is challenger
    assert challenger in rollout.activated
    assert manager.shadow.comparison is None
    assert [engine.version for engine in rollout.engines] == ["a", "b"]


def test_an_ended_shadow_is_closed_and_its_report_stays(rollout: FakeRollout) -> None:
    decide(rollout.workdir, champion="b")
    manager = rollout.start_worker()
    champion = rollout.engines[-1]
    decide(rollout.workdir, challenger="c", mirror_share=1.0)
    manager.sync_with_registry()
    decide(rollout.workdir, challenger=None)
    manager.sync_with_registry()
    eventually(lambda: rollout.engines[-1].is_closed)
    assert manager.shadow.comparison is None
    assert not champion.is_closed
    assert worker_reports.shadow_report(rollout.workdir)["challenger"] == "c"
