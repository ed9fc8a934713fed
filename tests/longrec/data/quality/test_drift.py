"""Drift: the index against its formula, and a new version of the data against the published one;
what moved fails and names users.
"""

from __future__ import annotations

import dataclasses
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
from longrec.data.quality import checks, drift
from longrec.errors import CheckFailed, DataError
from tests.longrec.pages import text_of

CONFIG = ChecksConfig()


def test_psi_is_its_formula() -> None:
    e, o = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    assert drift.psi(e * 1_000, o * 10) == pytest.approx(2 * 0.3 * np.log(2.5))
    assert drift.psi(o, e) == pytest.approx(drift.psi(e, o))
    assert drift.psi([1, 2, 3], [10, 20, 30]) == pytest.approx(0) and drift.psi([0, 0], [0, 0]) == 0


def test_psi_of_an_empty_bin_is_finite_and_small_where_it_may_be_chance() -> None:
    assert drift.psi([1_000, 0], [500, 500]) == pytest.approx(
        -0.5 * np.log(0.5) + (0.5 - 0.0005) * np.log(0.5 / 0.0005)
    )
    assert drift.psi([10, 0], [1_000_000, 1]) == pytest.approx(
        0, abs=1e-5
    )  # ten rows need not have met one in a million
    assert drift.psi([5, 5, 0, 0], [5, 5, 0, 0]) == 0


@pytest.mark.parametrize(
    ("left", "right"), [([1, 2], [1, 2, 3]), ([1, -1], [1, 1]), ([0, 0], [1, 1])]
)
def test_psi_refuses_what_cannot_be_compared(left: list[int], right: list[int]) -> None:
    with pytest.raises(DataError, match="cannot be compared"):
        drift.psi(left, right)


def test_the_noise_is_what_equal_distributions_have_on_average() -> None:
    rng = np.random.default_rng(0)
    pairs = [
        (rng.multinomial(400, [0.1] * 10), rng.multinomial(900, [0.1] * 10)) for _ in range(300)
    ]
    assert np.mean([drift.psi(*pair) for pair in pairs]) == pytest.approx(
        drift.psi_noise(*pairs[0]), rel=0.1
    )


def test_histograms_have_open_ends() -> None:
    assert drift.histogram([-5, 0, 0.5, 1, 7], [0, 1]).tolist() == [1, 2, 2]
    edges = drift.quantile_edges(np.arange(1_000), 4)
    assert drift.histogram(np.arange(1_000), edges).tolist() == [250] * 4
    assert drift.quantile_edges([1.0] * 10).tolist() == [1.0]


def world(path: Path, *, seed: int, events: int = 200) -> Dataset:
    synthesize(
        path,
        num_users=80,
        events_per_user=events,
        num_items=200,
        num_topics=4,
        requests_per_user=10,
        targets_per_request=8,
        lengths=[32],
        seed=seed,
    )
    return Dataset.open(path)


def changed(
    source: Dataset,
    path: Path,
    *,
    events: Callable[[pa.Table], pa.Table] = lambda t: t,
    targets: Callable[[pa.Table], pa.Table] = lambda t: t,
    items: Callable[[pa.Table], pa.Table] = lambda t: t,
) -> Dataset:
    with DatasetWriter(
        path, source.schema, name=source.name, source={}, num_parts=source.num_parts
    ) as writer:
        for part in range(source.num_parts):
            writer.write_part(part, events(source.events(part)), targets(source.targets(part)))
        writer.write_entities(items(source.items()), source.users())
    return Dataset.open(path)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a work directory to which the first version was published, as far as the checks look at it."""
    root = tmp_path_factory.mktemp("home")
    features.build_features(
        world(root / "data", seed=0).path, root / "store" / "v1" / "features", DataConfig()
    )
    (root / "store" / "v1" / "feast").mkdir()
    (root / "store" / "v1" / "feast" / "feature_store.yaml").touch()
    (root / "store" / "current").symlink_to("v1")
    (root / "features").symlink_to("store/current/features")
    return root


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Returns another sample of the world that was published."""
    return world(tmp_path_factory.mktemp("sample") / "data", seed=1)


def test_the_first_version_has_nothing_to_compare_with(tmp_path: Path) -> None:
    source = world(tmp_path / "data", seed=0)
    report = checks.check_events(
        source.path, tmp_path / "report.html", CONFIG, tmp_path / "nowhere"
    )
    assert report.passed and "this is the first version" in text_of(tmp_path / "report.html")


def test_another_sample_of_the_same_world_passes(
    workdir: Path, sample: Dataset, tmp_path: Path
) -> None:
    report = checks.check_events(sample.path, tmp_path / "report.html", CONFIG, workdir)
    text = text_of(tmp_path / "report.html")
    assert report.passed and not any("drift" in line for line in report.warnings)
    assert "Compared with synthetic (v1)" in text and "history lengths: PSI" in text


def test_other_data_are_not_compared(workdir: Path, tmp_path: Path) -> None:
    source = world(tmp_path / "data", seed=0, events=20)
    other = tmp_path / "other"
    with DatasetWriter(other, source.schema, name="other", source={}, num_parts=1) as writer:
        writer.write_part(0, source.events(0), source.targets(0))
        writer.write_entities(source.items(), source.users())
    assert checks.check_events(other, tmp_path / "report.html", CONFIG, workdir).passed
    assert "of other data or of another schema" in text_of(tmp_path / "report.html")


def _lost(table: pa.Table) -> pa.Table:
    return table.filter(pa.array(np.arange(table.num_rows) % 2 == 0))


def _liked(table: pa.Table) -> pa.Table:
    labels = np.where(np.asarray(table["user_id"]) < 70, 1, np.asarray(table["label"])).astype(
        np.int8
    )
    return table.set_column(table.column_names.index("label"), "label", pa.array(labels))


def _renamed(table: pa.Table) -> pa.Table:
    return table.set_column(
        table.column_names.index("item_id"),
        "item_id",
        pa.array(np.asarray(table["item_id"]) + 1_000),
    )


def _without_history(table: pa.Table) -> pa.Table:
    return table.filter(pa.array(np.arange(table.num_rows) % 20 == 0))


FAULTS = {
    "histories cut": (
        {"events": _without_history},
        "history lengths: PSI",
        r"user \d+: \d+ events before, \d+ now",
    ),
    "labels that became more": ({"targets": _liked}, "label: change of the rate", r"user \d+"),
    "items lost": ({"items": _lost}, "targets with a known item: lost share", r"user \d+"),
    "ids of another kind": (
        {"events": _renamed, "targets": _renamed, "items": _renamed},
        "new items: share",
        r"user \d+",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_drift_fails_and_names_at_most_ten_users(
    workdir: Path, sample: Dataset, tmp_path: Path, fault: str
) -> None:
    changes, column, who = FAULTS[fault]
    source = changed(sample, tmp_path / "new", **changes)
    config = dataclasses.replace(CONFIG, max_unknown_item_share=1.0, check_label_rates=False)
    with pytest.raises(CheckFailed) as caught:
        checks.check_events(source.path, tmp_path / "report.html", config, workdir)
    line = next(line for line in str(caught.value).split("; ") if column in line)
    assert 1 <= len(re.findall(who, line)) <= 10, line
    assert column in text_of(tmp_path / "report.html")
    only_warned = checks.check_events(
        source.path,
        tmp_path / "report.html",
        dataclasses.replace(config, check_drift=False),
        workdir,
    )
    assert any(column in line for line in only_warned.warnings)
    loose = dataclasses.replace(
        config, max_psi=99.0, max_rate_change=99.0, max_coverage_loss=1.0, max_new_item_share=1.0
    )
    assert checks.check_events(source.path, tmp_path / "report.html", loose, workdir).passed
