"""Drift of a new version from the published one: changes fail and name users."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from longrec.config import ChecksConfig, DataConfig
from longrec.data import features
from longrec.data.dataset import Dataset
from longrec.data.dataset_writer import DatasetWriter
from longrec.data.importers.synthetic import synthesize
from longrec.data.quality import checks
from longrec.data.quality.drift import DriftProfile
from longrec.data.quality.psi import psi
from longrec.errors import CheckFailed
from tests.longrec.data.quality.small_data import replace_column
from tests.longrec.pages import text_of

Change = Callable[[pa.Table], pa.Table]

CONFIG = ChecksConfig()


def write_synthetic(
    path: Path,
    *,
    seed: int,
    events_per_user: int = 200,
) -> Dataset:
    synthesize(
        path,
        num_users=80,
        events_per_user=events_per_user,
        num_items=200,
        num_topics=4,
        requests_per_user=10,
        targets_per_request=8,
        lengths=[32],
        seed=seed,
    )
    return Dataset.open(path)


def _unchanged(table: pa.Table) -> pa.Table:
    return table


def write_changed(
    source: Dataset,
    path: Path,
    *,
    events: Change = _unchanged,
    targets: Change = _unchanged,
    items: Change = _unchanged,
) -> Dataset:
    """Write a copy of a dataset with changed tables."""
    with DatasetWriter(
        path,
        source.schema,
        name=source.name,
        source={},
        num_parts=source.num_parts,
    ) as writer:
        for part in range(source.num_parts):
            writer.write_part(
                part,
                events(source.events(part)),
                targets(source.targets(part)),
            )
        writer.write_entities(items(source.items()), source.users())
    return Dataset.open(path)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a work directory with the parts of a published version that the checks read."""
    root = tmp_path_factory.mktemp("home")
    version = root / "store" / "v1"
    source = write_synthetic(root / "data", seed=0)
    features.build_features(source.path, version / "features", DataConfig())
    (version / "feast").mkdir()
    (version / "feast" / "feature_store.yaml").touch()
    (root / "store" / "current").symlink_to("v1")
    (root / "features").symlink_to("store/current/features")
    return root


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return another sample from the distribution of the published dataset."""
    return write_synthetic(tmp_path_factory.mktemp("sample") / "data", seed=1)


def test_the_first_version_has_nothing_to_compare_with(tmp_path: Path) -> None:
    source = write_synthetic(tmp_path / "data", seed=0)
    report = checks.check_events(
        source.path,
        tmp_path / "report.html",
        CONFIG,
        tmp_path / "nowhere",
    )
    assert report.passed
    assert "this is the first version" in text_of(tmp_path / "report.html")


def test_another_sample_of_the_same_distribution_passes(
    workdir: Path,
    sample: Dataset,
    tmp_path: Path,
) -> None:
    report = checks.check_events(sample.path, tmp_path / "report.html", CONFIG, workdir)
    text = text_of(tmp_path / "report.html")
    assert report.passed
    assert not any("drift" in line for line in report.warnings)
    assert "Compared with synthetic (v1)" in text
    assert "history lengths: PSI" in text


def named_shares(profile: DriftProfile) -> dict[str, tuple[int, int]]:
    """Return column of the report -> (rows with yes, rows)."""
    tables = {f"{name} with a known item": counts for name, counts in profile.coverage.items()}
    return {**profile.labels, **tables}


@pytest.mark.skipif(
    importlib.util.find_spec("evidently") is None,
    reason="evidently is not installed (extra: evidently)",
)
def test_evidently_has_the_numbers_of_both_versions(
    workdir: Path,
    sample: Dataset,
    tmp_path: Path,
) -> None:
    config = dataclasses.replace(CONFIG, evidently=str(tmp_path / "reports"))
    checks.check_events(sample.path, tmp_path / "report.html", config, workdir)
    content = json.loads((tmp_path / "reports" / "data.json").read_text(encoding="utf-8"))
    values = {entry["config"]["column"]: entry["value"] for entry in content["metrics"]}
    old = DriftProfile.of(Dataset.open(workdir / "data"))
    new = DriftProfile.of(sample)
    assert values["history length"] == pytest.approx(psi(old.lengths, new.lengths), rel=1e-12)
    shares = named_shares(new)
    old_shares = named_shares(old)
    for name, (num_yes, num_rows) in shares.items():
        old_yes, old_rows = old_shares[name]
        expected = psi((old_rows - old_yes, old_yes), (num_rows - num_yes, num_yes))
        assert values[name] == pytest.approx(expected, rel=1e-12, abs=1e-15)
    (verdict,) = content["tests"]
    assert "history length" in verdict["name"]
    assert (tmp_path / "reports" / "data.html").exists()


def test_other_data_are_not_compared(workdir: Path, tmp_path: Path) -> None:
    source = write_synthetic(tmp_path / "data", seed=0, events_per_user=20)
    other = tmp_path / "other"
    with DatasetWriter(
        other,
        source.schema,
        name="other",
        source={},
        num_parts=1,
    ) as writer:
        writer.write_part(0, source.events(0), source.targets(0))
        writer.write_entities(source.items(), source.users())
    assert checks.check_events(other, tmp_path / "report.html", CONFIG, workdir).passed
    assert "of other data or of another schema" in text_of(tmp_path / "report.html")


def _every(num_rows: int) -> Change:
    """Return a change that leaves every n-th row."""
    return lambda table: table.filter(pa.array(np.arange(table.num_rows) % num_rows == 0))


def _with_more_likes(table: pa.Table) -> pa.Table:
    is_early_user = np.asarray(table["user_id"]) < 70
    labels = np.where(is_early_user, 1, np.asarray(table["label"]))
    return replace_column(table, "label", pa.array(labels.astype(np.int8)))


def _with_other_ids(table: pa.Table) -> pa.Table:
    ids = np.asarray(table["item_id"]) + 1_000
    return replace_column(table, "item_id", pa.array(ids))


FAULTS = {
    "shorter histories": (
        {"events": _every(20)},
        "history lengths: PSI",
        r"user \d+: \d+ events before, \d+ now",
    ),
    "more positive labels": (
        {"targets": _with_more_likes},
        "label: change of the rate",
        r"user \d+",
    ),
    "lost items": (
        {"items": _every(2)},
        "targets with a known item: lost share",
        r"user \d+",
    ),
    "other item ids": (
        {"events": _with_other_ids, "targets": _with_other_ids, "items": _with_other_ids},
        "new items: share",
        r"user \d+",
    ),
}
"""Fault -> (changes by table, column of the failed expectation, pattern of a failed row)."""


@pytest.mark.parametrize("fault", FAULTS)
def test_drift_fails_and_names_at_most_ten_users(
    workdir: Path,
    sample: Dataset,
    tmp_path: Path,
    fault: str,
) -> None:
    changes, column, failed_row = FAULTS[fault]
    source = write_changed(sample, tmp_path / "new", **changes)
    report_html = tmp_path / "report.html"
    config = dataclasses.replace(CONFIG, max_unknown_item_share=1.0, check_label_rates=False)
    with pytest.raises(CheckFailed) as caught:
        checks.check_events(source.path, report_html, config, workdir)
    line = next(line for line in str(caught.value).split("; ") if column in line)
    assert 1 <= len(re.findall(failed_row, line)) <= 10, line
    assert column in text_of(report_html)
    only_warns = dataclasses.replace(config, check_drift=False)
    report = checks.check_events(source.path, report_html, only_warns, workdir)
    assert any(column in line for line in report.warnings)
    wide_bounds = dataclasses.replace(
        config,
        max_psi=99.0,
        max_rate_change=99.0,
        max_coverage_loss=1.0,
        max_new_item_share=1.0,
    )
    assert checks.check_events(source.path, report_html, wide_bounds, workdir).passed
