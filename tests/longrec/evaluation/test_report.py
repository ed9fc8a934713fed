"""Test the page of an evaluation: self-contained and complete, also with little to show."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from longrec.evaluation import report
from tests.longrec.evaluation.example_results import (
    example_baseline,
    example_metrics,
    example_results,
)
from tests.longrec.pages import text_of


def page_text(results: dict[str, Any], folder: Path) -> str:
    """Return the text of the page, after checking that it is self-contained."""
    path = folder / "report.html"
    path.write_text(report.render(results), encoding="utf-8")
    return text_of(path)


def test_the_page_shows_the_results(tmp_path: Path) -> None:
    text = page_text(example_results(), tmp_path)
    for expected in (
        "kuai<rand>",
        "gate passed",
        "0.8125",
        "0.8025–0.8225",
        "+0.0123",
        "recency of <tag>",
        "model below",
        "is_click: The model is level with boosted trees; above item rate.",
        "-0.0100 to +0.0500",
        "is_click",
        "long_view",
        "12,345 events",
        "Same scores as",
        "all labels are 0",
        "best possible",
        "228,329",
        "abc123",
        "3.11.7",
        "The AUC is fine.",
        "2.50 times",
        "champion old1",
        "1.30 %",
        "More events make <this> model worse.",
        "Served at 10,000 events: it was set.",
    ):
        assert expected in text, expected


def test_the_page_names_its_run_and_links_the_checks(tmp_path: Path) -> None:
    links = {"check-events.html": "check events"}
    path = tmp_path / "report.html"
    path.write_text(report.render(example_results(), "20220509-kuai", links))
    text = text_of(path)
    assert "Run 20220509-kuai." in text
    assert "Made on 2022-05-09 12:30 UTC." in text
    assert '<a href="check-events.html">check events</a>' in path.read_text()


def test_charts_mark_the_served_length_and_the_packaged_step() -> None:
    source = report.render(example_results())
    # Legends of two charts: on validation requests, and on those of the evaluation.
    assert source.count("served: 10,000 events") == 2
    assert "packaged: step 30" in source


@pytest.mark.parametrize(
    "words",
    [
        "events served, the most recent ones (log scale)",
        "AUC of is_click",
        "AUC on validation requests",
        "optimizer step",
        "training loss (nats)",
        "mean score (probability)",
        "share of positives",
        "AUC of is_click: model minus baseline, 95 % interval",
        "best baseline (boosted trees)",
    ],
)
def test_axes_and_lines_have_names(words: str) -> None:
    assert words in report.render(example_results())


def test_values_show_when_the_mouse_rests_on_a_dot() -> None:
    source = report.render(example_results())
    assert "<title>500 events: AUC 0.7000 (0.6900 to 0.7100)</title>" in source
    assert "<title>recency of &lt;tag&gt;: +0.0123 (-0.0100 to +0.0500)</title>" in source


def test_without_matplotlib_a_page_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install "longrec[report]"' in page_text(example_results(), tmp_path)


def test_a_model_that_failed_the_gate_is_marked(tmp_path: Path) -> None:
    results = example_results()
    criterion = {"name": "min_auc", "value": 0.4, "passed": False, "sentence": "No."}
    results["gate"] = {"passed": False, "reasons": ["No."], "criteria": [criterion]}
    text = page_text(results, tmp_path)
    assert "gate failed" in text
    assert text.count("failed") == 2, "the badge of the page and that of the criterion"
    assert "gate passed" not in text
    assert "longrec package --force" in text
    assert "longrec package" not in page_text(example_results(), tmp_path)


def test_little_to_show_is_still_a_page(tmp_path: Path) -> None:
    results = example_results()
    undefined = {"auc": None, "auc_low": None, "auc_high": None, "logloss": None}
    baseline = {
        **example_baseline("boosted trees", None, "unknown"),
        "difference": None,
        "difference_low": None,
        "difference_high": None,
        "reason": "LightGBM cannot be loaded",
    }
    results |= {
        "metrics": {"is_click": example_metrics(None)},
        "best_possible": [],
        "training_curve": [],
        "training": {},
        "slices": [],
        "calibration_bins": {"is_click": []},
        "lengths": [{**results["lengths"][1], **undefined}],
        "baselines": {"is_click": (baseline,)},
    }
    text = page_text(results, tmp_path)
    assert "The AUC is not defined on this sample." in text
    assert "There is no training curve." in text
    assert "all labels are 1" in text
    assert "not compared: LightGBM cannot be loaded" in text
    assert "None" not in text
    assert "nan" not in text


def test_one_length_and_one_level_can_be_drawn(tmp_path: Path) -> None:
    results = example_results()
    row = {**results["lengths"][1], "auc": 0.5, "auc_low": None, "auc_high": None}
    baseline = example_baseline("item rate", 0.5, "level")
    results |= {
        "lengths": [row],
        "best_possible": [],
        "baselines": {"is_click": (baseline,), "long_view": (baseline,)},
    }
    assert "nan" not in page_text(results, tmp_path)
