"""Test the page of an evaluation: self-contained and complete, also with little to show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from longrec.evaluation import report
from longrec.reporting import charts
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
        "1.30%",
    ):
        assert expected in text, expected


def test_all_points_lie_inside_their_charts() -> None:
    source = report.render(example_results())
    lines = " ".join(re.findall(r'points="([^"]+)"', source))
    points = re.findall(r"([-\d.]+),([-\d.]+)", lines)
    points += re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', source)
    assert len(points) > 250
    right = charts.WIDTH - charts.RIGHT
    bottom = charts.HEIGHT - charts.BOTTOM
    for x, y in points:
        assert charts.LEFT - 0.1 <= float(x) <= right + 0.1
        assert charts.TOP - 0.1 <= float(y) <= bottom + 0.1


def test_the_length_curve_is_where_its_values_are() -> None:
    """Read the AUC of 0.7 at 500 events back from the place of its dot."""
    source = report.render(example_results())
    tooltip = re.escape("500 events: AUC 0.7000 (0.6900 to 0.7100)")
    dot = re.search(rf'cy="([-\d.]+)" r="3.6"><title>{tooltip}', source)
    y = float(dot[1])
    label = r'<text x="58" y="([-\d.]+)" text-anchor="end">([\d.]+)</text>'
    levels = {float(text): float(place) for place, text in re.findall(label, source)[:4]}
    low, low_y = min(levels.items())
    high, high_y = max(levels.items())
    # Labels are written 4 units below their line.
    fraction = (low_y - 4 - y) / (low_y - high_y)
    assert low + fraction * (high - low) == pytest.approx(0.7, abs=0.002)


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
