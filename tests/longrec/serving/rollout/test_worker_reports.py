"""What the reports of several workers say about a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrec.data import files
from longrec.release import registry
from longrec.serving.rollout.shadow import ShadowComparison
from longrec.serving.rollout.worker_reports import shadow_report
from tests.longrec.serving.rollout.fake_engines import decide


def write_report(
    workdir: Path,
    name: str,
    champion: str,
    challenger: str,
    minute: int,
) -> None:
    """Write the report of a worker that compared one request."""
    comparison = ShadowComparison(champion, challenger)
    comparison.add([[0.1, 0.2]], [[0.1, 0.2]])
    report = {"at": f"2026-01-01T00:{minute:02}:00+00:00", "shadow": comparison.to_dict()}
    folder = registry.registry_path(workdir).parent / "workers"
    files.write_json(folder / f"{name}.json", report)


def test_without_a_challenger_the_last_comparison_is_that_of_the_newest_report(
    tmp_path: Path,
) -> None:
    write_report(tmp_path, "host-1", "a", "new", minute=5)
    write_report(tmp_path, "host-2", "a", "new", minute=4)
    write_report(tmp_path, "host-9", "a", "old", minute=1)
    report = shadow_report(tmp_path)
    assert report is not None
    assert (report["challenger"], report["workers"]) == ("new", 2)


@pytest.mark.parametrize("champion", ["a", None])
def test_all_workers_count_with_or_without_a_champion_in_the_registry(
    tmp_path: Path,
    champion: str | None,
) -> None:
    decide(tmp_path, champion=champion, challenger="b", mirror_share=1.0)
    write_report(tmp_path, "host-1", "a", "b", minute=1)
    write_report(tmp_path, "host-2", "a", "b", minute=2)
    write_report(tmp_path, "host-3", "a", "other", minute=3)
    report = shadow_report(tmp_path)
    assert report is not None
    counts = (report["challenger"], report["workers"], report["compared"])
    assert counts == ("b", 2, 2)
