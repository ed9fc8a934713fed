"""Test live drift: it is found in requests that were changed, and in no others."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.config import DriftConfig
from longrec.data.histories import Histories
from longrec.errors import CheckFailed, DataError
from longrec.release import registry
from longrec.release.monitoring import DriftReport, check_drift, measure_drift
from longrec.release.request_log import RequestLog
from longrec.reporting.summary import scalar_metrics
from longrec.scoring.request import RequestRows
from longrec.scoring.scorer import Scorer
from tests.conftest import VERSION, ServedWorld

Row = dict[str, Any]
Change = Callable[[Row], Row]

CONFIG = DriftConfig(min_requests=20)
WHOLE_LOG = DriftConfig(min_requests=20, window_hours=1e6)
UNKNOWN_ID = 10**15


@pytest.fixture(scope="module")
def reference(served_world: ServedWorld) -> pa.Table:
    """The predictions of the evaluation."""
    return pq.read_table(served_world.path / "evaluation" / "predictions.parquet")


@pytest.fixture()
def workdir(served_world: ServedWorld, tmp_path: Path) -> Path:
    """A work directory with published features and without a log."""
    features = (served_world.workdir / "features").resolve()
    (tmp_path / "features").symlink_to(features)
    return tmp_path


def unchanged(row: Row) -> Row:
    return row


def halve_score(row: Row) -> Row:
    return {**row, "label_score": row["label_score"] * 0.5}


def log_reference(
    workdir: Path,
    reference: pa.Table,
    change: Change = unchanged,
    version: str = "v1",
) -> None:
    """Log the requests of the reference as if a service had answered them."""
    requests: dict[int, list[Row]] = {}
    for row in reference.to_pylist():
        requests.setdefault(row["request_id"], []).append(change(row))
    log = RequestLog(workdir, 1.0)
    for rows in requests.values():
        log.add(
            rows[0]["user_id"],
            milliseconds(rows[0]["timestamp"]),
            [row["item_id"] for row in rows],
            {"label": [row["label_score"] for row in rows]},
            history_length=rows[0]["history_length"],
            model_version=version,
            degraded=False,
        )
    log.stop()


def milliseconds(time: datetime.datetime) -> int:
    return int(time.timestamp() * 1000)


def compare(
    world: ServedWorld,
    workdir: Path,
    config: DriftConfig = CONFIG,
) -> DriftReport:
    return measure_drift(
        workdir,
        evaluation_dir=world.path / "evaluation",
        bundle_dir=world.path / "bundle",
        report_html=workdir / "report.html",
        config=config,
    )


def test_the_same_requests_have_not_drifted(
    served_world: ServedWorld, workdir: Path, reference: pa.Table
) -> None:
    log_reference(workdir, reference)
    report = compare(served_world, workdir, WHOLE_LOG)
    assert report.passed
    assert report.is_enough
    assert report.drifted == ()
    assert report.num_scores == reference.num_rows
    assert report.largest_score_psi == report.largest_feature_psi == 0.0
    assert "no drift" in (workdir / "report.html").read_text()
    assert scalar_metrics(report)["passed"] == 1.0


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("score label", halve_score),
        ("history length", lambda row: {**row, "history_length": 0}),
        ("item known", lambda row: {**row, "item_id": UNKNOWN_ID}),
        ("user.region", lambda row: {**row, "user_id": UNKNOWN_ID}),
    ],
)
def test_a_changed_quantity_has_drifted(
    name: str, change: Change, served_world: ServedWorld, workdir: Path, reference: pa.Table
) -> None:
    log_reference(workdir, reference, change)
    report = compare(served_world, workdir, WHOLE_LOG)
    assert name in report.drifted
    assert not report.passed
    assert name in (workdir / "report.html").read_text()


@pytest.mark.skipif(
    importlib.util.find_spec("evidently") is None,
    reason="evidently is not installed (extra: evidently)",
)
def test_evidently_has_the_indices_of_the_gate(
    served_world: ServedWorld, workdir: Path, reference: pa.Table
) -> None:
    log_reference(workdir, reference, halve_score)
    config = DriftConfig(min_requests=20, window_hours=1e6, evidently="reports")
    report = compare(served_world, workdir, config)
    content = json.loads((workdir / "reports" / "drift.json").read_text(encoding="utf-8"))
    values = {entry["config"]["column"]: entry["value"] for entry in content["metrics"]}
    assert values["score label"] == pytest.approx(report.largest_score_psi, rel=1e-12)
    features = [value for name, value in values.items() if not name.startswith("score ")]
    assert max(features) == pytest.approx(report.largest_feature_psi, abs=1e-12)
    failed = {entry["name"] for entry in content["tests"] if entry["status"] == "FAIL"}
    assert failed == {f"Value Drift for column {name}" for name in report.drifted}
    assert (workdir / "reports" / "drift.html").stat().st_size > 100_000
    compare(served_world, workdir, dataclasses.replace(config, min_requests=10**6))
    content = json.loads((workdir / "reports" / "drift.json").read_text(encoding="utf-8"))
    assert content["tests"] == []  # too few for a verdict
    assert {entry["config"]["column"]: entry["value"] for entry in content["metrics"]} == values


def test_without_the_setting_no_report_of_evidently_is_written(
    served_world: ServedWorld, workdir: Path, reference: pa.Table
) -> None:
    log_reference(workdir, reference)
    before = set(workdir.iterdir())
    compare(served_world, workdir, WHOLE_LOG)
    assert set(workdir.iterdir()) - before == {workdir / "report.html"}


def test_with_too_few_requests_nothing_has_drifted(
    served_world: ServedWorld, workdir: Path, reference: pa.Table
) -> None:
    log_reference(workdir, reference, halve_score)
    assert not compare(served_world, workdir, WHOLE_LOG).passed
    assert compare(
        served_world,
        workdir,
        DriftConfig(min_requests=10**6),
    ).passed


def test_only_the_window_and_the_last_version_count(
    served_world: ServedWorld, workdir: Path, reference: pa.Table
) -> None:
    log_reference(workdir, reference)
    last = max(reference.column("timestamp").to_pylist())
    log = RequestLog(workdir, 1.0)
    for _ in range(30):
        log.add(
            1,
            milliseconds(last) + 10**10,
            [1, 2],
            {"label": [0.5, 0.5]},
            history_length=3,
            model_version="v2",
            degraded=True,
        )
    log.stop()
    report = compare(served_world, workdir)
    assert report.model_version == "v2"
    assert report.num_requests == 30
    assert report.degraded_share == 1.0


def test_a_version_without_a_reference_is_an_error(
    served_world: ServedWorld, workdir: Path, reference: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(served_world.store))
    log_reference(workdir, reference, version=VERSION)
    message = f"the evaluation of {VERSION} is not in this work directory.*Package it again"
    with pytest.raises(DataError, match=message):
        check_drift(workdir, workdir / "page.html", WHOLE_LOG)


def test_the_last_version_is_compared_with_its_own_evaluation(
    served_world: ServedWorld, workdir: Path, reference: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(served_world.store))
    page = workdir / "page.html"
    evaluation = served_world.path / "evaluation"
    shutil.copytree(evaluation, registry.reference_dir(workdir, VERSION))
    log_reference(workdir, reference, version=VERSION)
    assert check_drift(workdir, page, WHOLE_LOG).passed
    log_reference(workdir, reference, halve_score, version=VERSION)
    message = f"requests of {VERSION} have drifted; found score label"
    with pytest.raises(CheckFailed, match=message):
        check_drift(workdir, page, WHOLE_LOG)
    assert "score label" in page.read_text()


def test_without_a_log_the_error_says_how_to_get_one(
    served_world: ServedWorld, workdir: Path
) -> None:
    with pytest.raises(DataError, match="LONGREC_LOG_SHARE"):
        compare(served_world, workdir)


def test_answers_of_a_scorer_can_be_logged(served_world: ServedWorld, workdir: Path) -> None:
    histories = Histories.open(served_world.path / "histories")
    scorer = Scorer.load(served_world.path / "bundle")
    items = histories.items.column("item_id").to_numpy()[:5]
    log = RequestLog(workdir, 1.0)
    for row, user in enumerate(histories.users.to_pylist()[:25]):
        rows = RequestRows(
            histories.timeline(row),
            user,
            1_720_000_000_000,
            items,
        )
        (scores,) = scorer.score([rows])
        log.add(
            user["user_id"],
            rows.request_time_ms,
            items,
            {"label": scores[:, 0]},
            history_length=48,
            model_version="v",
            degraded=False,
        )
    log.stop()
    report = compare(served_world, workdir)
    assert report.num_requests == 25
    assert report.num_scores == 125
