"""The log of requests stays bounded; drift is found where it was synthetic and not where it was
not.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.config import DriftConfig
from longrec.data.histories import Histories
from longrec.errors import CheckFailed, DataError
from longrec.release import monitoring, registry, request_log
from longrec.release.monitoring import measure_drift
from longrec.release.request_log import RequestLog
from longrec.reporting.summary import scalar_metrics
from longrec.scoring.request import RequestRows
from longrec.scoring.scorer import Scorer
from tests.conftest import VERSION, ServedWorld

CONFIG = DriftConfig(min_requests=20)


@pytest.fixture(scope="module")
def reference(served_world: ServedWorld) -> pa.Table:
    return pq.read_table(served_world.path / "evaluation" / "predictions.parquet")


@pytest.fixture()
def workdir(served_world: ServedWorld, tmp_path: Path) -> Path:
    (tmp_path / "features").symlink_to((served_world.workdir / "features").resolve())
    return tmp_path


def replay(workdir: Path, reference: pa.Table, change=lambda row: row, version: str = "v1") -> None:
    """Logs the requests of the reference as if a service had answered them."""
    log = RequestLog(workdir, 1.0)
    rows = reference.to_pylist()
    for request in dict.fromkeys(row["request_id"] for row in rows):
        mine = [change(dict(row)) for row in rows if row["request_id"] == request]
        log.add(
            mine[0]["user_id"],
            int(mine[0]["timestamp"].timestamp() * 1000),
            [row["item_id"] for row in mine],
            {"label": [row["label_score"] for row in mine]},
            history_length=mine[0]["history_length"],
            model_version=version,
            degraded=False,
        )
    log.stop()


def compare(
    world: ServedWorld, workdir: Path, config: DriftConfig = CONFIG
) -> monitoring.DriftReport:
    return measure_drift(
        workdir, world.path / "evaluation", world.path / "bundle", workdir / "report.html", config
    )


def test_the_same_requests_have_not_drifted(served_world, workdir, reference) -> None:
    replay(workdir, reference)
    report = compare(served_world, workdir, DriftConfig(min_requests=20, window_hours=1e6))
    assert (
        report.passed
        and report.is_enough
        and report.drifted == ()
        and report.num_scores == reference.num_rows
    )
    assert report.largest_score_psi == report.largest_feature_psi == 0.0
    assert (
        "no drift" in (workdir / "report.html").read_text()
        and scalar_metrics(report)["passed"] == 1.0
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("score label", lambda row: {**row, "label_score": row["label_score"] * 0.5}),
        ("history length", lambda row: {**row, "history_length": 0}),
        ("item known", lambda row: {**row, "item_id": 10**15}),
        ("user.region", lambda row: {**row, "user_id": 10**15}),
    ],
)
def test_what_was_planted_is_found(served_world, workdir, reference, name: str, change) -> None:
    replay(workdir, reference, change)
    report = compare(served_world, workdir, DriftConfig(min_requests=20, window_hours=1e6))
    assert name in report.drifted and not report.passed
    assert name in (workdir / "report.html").read_text()
    assert compare(served_world, workdir, DriftConfig(min_requests=10**6)).passed  # too few to tell


def test_only_the_window_and_the_last_version_count(served_world, workdir, reference) -> None:
    replay(workdir, reference)
    log = RequestLog(workdir, 1.0)
    last = int(max(reference.column("timestamp").to_pylist()).timestamp() * 1000)
    for _ in range(30):
        log.add(
            1,
            last + 10**10,
            [1, 2],
            {"label": [0.5, 0.5]},
            history_length=3,
            model_version="v2",
            degraded=True,
        )
    log.stop()
    report = compare(served_world, workdir)
    assert (report.model_version, report.num_requests, report.degraded_share) == ("v2", 30, 1.0)


def test_the_version_that_answered_is_compared_with_its_own_evaluation(
    served_world, workdir, reference, monkeypatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(served_world.store))
    config = DriftConfig(min_requests=20, window_hours=1e6)
    replay(workdir, reference, version=VERSION)
    with pytest.raises(
        DataError,
        match=f"the evaluation of {VERSION} is not in this work directory.*Package it again",
    ):
        monitoring.check_drift(workdir, workdir / "page.html", config)
    shutil.copytree(served_world.path / "evaluation", registry.reference_dir(workdir, VERSION))
    assert monitoring.check_drift(workdir, workdir / "page.html", config).passed
    replay(
        workdir,
        reference,
        lambda row: {**row, "label_score": row["label_score"] * 0.5},
        version=VERSION,
    )
    with pytest.raises(CheckFailed, match=f"requests of {VERSION} have drifted; found score label"):
        monitoring.check_drift(workdir, workdir / "page.html", config)
    assert "score label" in (workdir / "page.html").read_text()


def test_without_a_log_it_says_how_to_get_one(served_world, workdir) -> None:
    with pytest.raises(DataError, match="LONGREC_LOG_SHARE"):
        compare(served_world, workdir)


def test_the_log_is_a_share_and_stays_bounded(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "MAX_FILES", 3)
    nothing = RequestLog(tmp_path, 0.0)
    nothing.add(1, 1, [1], {"label": [0.5]})
    nothing.stop()
    assert not (tmp_path / "requests").exists()
    for _ in range(6):
        log = RequestLog(tmp_path, 0.5)
        for _ in range(400):
            log.add(
                1,
                1,
                list(range(80)),
                {"label": np.full(80, 0.5)},
                history_length=1,
                model_version="v",
                degraded=False,
            )
        log.stop()
    paths = list((tmp_path / "requests").glob("*.parquet"))
    assert len(paths) == 3
    requests = {
        row for path in paths for row in pq.read_table(path).column("request_id").to_pylist()
    }
    assert 450 < len(requests) < 750  # half of 3 x 400
    assert all(
        pq.read_metadata(path).num_rows % request_log.MAX_LOGGED_CANDIDATES == 0 for path in paths
    )
    monkeypatch.setattr(request_log, "MAX_PENDING", 10)
    log = RequestLog(tmp_path, 1.0)
    for _ in range(10):
        log.add(1, 1, list(range(50)), {"label": np.full(50, 0.5)})
    assert log.num_dropped > 5
    log.stop()


def test_a_scorers_answers_can_be_logged(served_world, workdir) -> None:
    histories, scorer = (
        Histories.open(served_world.path / "histories"),
        Scorer.load(served_world.path / "bundle"),
    )
    log = RequestLog(workdir, 1.0)
    items = histories.items.column("item_id").to_numpy()[:5]
    for row, user in enumerate(histories.users.to_pylist()[:25]):
        rows = RequestRows(histories.timeline(row), user, 1_720_000_000_000, items)
        log.add(
            user["user_id"],
            rows.request_time_ms,
            items,
            {"label": scorer.score([rows])[0][:, 0]},
            history_length=48,
            model_version="v",
            degraded=False,
        )
    log.stop()
    report = compare(served_world, workdir)
    assert report.num_requests == 25 and report.num_scores == 125
    shutil.rmtree(workdir / "requests")
