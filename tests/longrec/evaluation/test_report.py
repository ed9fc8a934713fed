"""The page of an evaluation: self-contained, complete, and whole when there is little to show."""

from __future__ import annotations

import copy
import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrec.evaluation import model_card, report
from longrec.reporting import charts, page
from longrec.reporting.charts import nice_ticks
from tests.longrec.pages import Page, text_of


def _metrics(auc: float | None) -> dict[str, Any]:
    out: dict[str, Any] = {
        "num_targets": 1000,
        "num_positives": 440,
        "num_users": 50,
        "num_ranked_users": 40,
        "undefined": {},
    }
    for name in ("auc", "gauc", "logloss", "ne", "calibration"):
        out |= {
            name: auc,
            f"{name}_low": None if auc is None else auc - 0.01,
            f"{name}_high": None if auc is None else auc + 0.01,
        }
    return {
        **out,
        "ece": None if auc is None else 0.02,
        "undefined": {} if auc is not None else {"auc": "all labels are 1"},
    }


def _facts() -> dict[str, Any]:
    lengths = [
        {
            "length": length,
            "auc": auc,
            "auc_low": auc - 0.01,
            "auc_high": auc + 0.01,
            "logloss": 0.6,
            "mean_events": length * 0.9,
            "seconds": 0.5,
            "same_as": same,
        }
        for length, auc, same in (
            (0, 0.6, None),
            (500, 0.7, None),
            (10_000, 0.8125, None),
            (20_000, 0.8125, 10_000),
        )
    ]
    bins = [{"score": score, "rate": score + 0.02, "num_targets": 50} for score in (0.1, 0.3, 0.5)]
    return {
        "name": "kuai<rand>",
        "num_targets": 1000,
        "num_requests": 90,
        "num_users": 50,
        "served_length": 10_000,
        "longest_history": 12_345,
        "gate": {
            "passed": True,
            "reasons": ["fine"],
            "criteria": [
                {"name": "min_auc", "value": 0.8, "passed": True, "sentence": "The AUC is fine."}
            ],
        },
        "metrics": {"is_click": _metrics(0.8125), "long_view": _metrics(0.7)},
        "popularity": {
            "is_click": {"name": "rate", **_metrics(0.6)},
            "long_view": {"name": "count", **_metrics(0.55)},
        },
        "gain": {
            task: {"value": 0.0312, "low": -0.01, "high": 0.05, "reason": ""}
            for task in ("is_click", "long_view")
        },
        "lengths": lengths,
        "best_possible": [{"length": 500, "auc": 0.75}, {"length": 10_000, "auc": 0.9}],
        "best_possible_full": 0.9,
        "parity_error": 0.0,
        "slices": [
            {
                "family": "history",
                "name": "0 events",
                "num_requests": 3,
                "num_targets": 30,
                "rate": 0.4,
                "auc": None,
                "auc_low": None,
                "auc_high": None,
                "popularity_auc": None,
                "calibration": 1.1,
                "ece": 0.2,
                "reason": "all labels are 0",
            }
        ],
        "calibration_bins": {"is_click": bins, "long_view": bins},
        "training": {"num_steps": 40, "device": "cpu", "final_loss": 0.61},
        "training_curve": [
            {"step": float(step), "loss": 0.7 - 0.001 * step} for step in range(1, 1000)
        ],
        "data": {
            "events": 228_329,
            "evaluated from": "2022-05-06 10:00",
            "last request": "2022-05-08",
        },
        "bundle": {"version": "abc123", "model": {"width": 64}, "schema_fingerprint": "f00d"},
        "extrapolation": {
            "value": 0.02,
            "low": 0.01,
            "high": 0.03,
            "trained_length": 2_000,
            "cost": 2.5,
            "reason": "",
        },
        "champion": {
            "version": "old1",
            "metric": "auc",
            "differences": {"is_click": {"value": 0.004, "low": 0.001, "high": 0.007}},
        },
        "latency_ms": {"p50": 12.0, "p95": 20.0},
        "unknown_item_share": 0.013,
        "data_version": "d1",
        "command": "longrec run",
        "config": {"seed": 0, "evaluate": {"lengths": [500]}},
        "versions": {"python": "3.11.7"},
    }


def _write(facts: dict[str, Any], path: Path) -> str:
    path.write_text(report.render(facts), encoding="utf-8")
    return text_of(path)


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    text = _write(_facts(), tmp_path / "report.html")
    for expected in (
        "kuai<rand>",
        "gate passed",
        "0.8125",
        "0.8025–0.8225",
        "+0.0312",
        "-0.0100 to +0.0500",
        "is_click",
        "long_view",
        "rate",
        "count",
        "12,345 events",
        "as 10,000",
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


def test_what_is_drawn_lies_in_the_drawing(tmp_path: Path) -> None:
    _write(_facts(), tmp_path / "report.html")
    source = (tmp_path / "report.html").read_text()
    pairs = re.findall(r"([-\d.]+),([-\d.]+)", " ".join(re.findall(r'points="([^"]+)"', source)))
    pairs += re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', source)
    assert len(pairs) > 250
    for x, y in pairs:
        assert charts.LEFT - 0.1 <= float(x) <= charts.WIDTH - charts.RIGHT + 0.1
        assert charts.TOP - 0.1 <= float(y) <= charts.HEIGHT - charts.BOTTOM + 0.1


def test_the_length_curve_is_where_its_values_are() -> None:
    """The AUC of 0.7 at 500 events, read back from the place of its dot."""
    source = report.render(_facts())
    tooltip = "500 events: AUC 0.7000 (0.6900 to 0.7100)"
    y = float(re.search(rf'cy="([-\d.]+)" r="3.6"><title>{re.escape(tooltip)}', source)[1])
    marks = re.findall(r'<text x="58" y="([-\d.]+)" text-anchor="end">([\d.]+)</text>', source)[:4]
    levels = {float(text): float(place) for place, text in marks}
    (low, at_low), (high, at_high) = min(levels.items()), max(levels.items())
    assert low + (at_low - 4 - y) / (at_low - at_high) * (high - low) == pytest.approx(
        0.7, abs=0.002
    )


def test_a_refused_model_is_marked(tmp_path: Path) -> None:
    facts = _facts()
    facts["gate"] = {
        "passed": False,
        "reasons": ["No."],
        "criteria": [{"name": "min_auc", "value": 0.4, "passed": False, "sentence": "No."}],
    }
    text = _write(facts, tmp_path / "report.html")
    assert "gate failed" in text and "failed" in text and "gate passed" not in text


def test_little_to_show_is_still_a_page(tmp_path: Path) -> None:
    facts = copy.deepcopy(_facts())
    row = {**facts["lengths"][1], "auc": None, "auc_low": None, "auc_high": None, "logloss": None}
    facts |= {
        "metrics": {"is_click": _metrics(None)},
        "best_possible": [],
        "training_curve": [],
        "training": {},
        "slices": [],
        "calibration_bins": {"is_click": []},
        "lengths": [row],
        "popularity": {"is_click": {"name": "rate", **_metrics(None)}},
        "gain": {"is_click": {"value": None, "low": None, "high": None, "reason": "no AUC"}},
    }
    text = _write(facts, tmp_path / "report.html")
    assert (
        "The AUC is not defined on this sample." in text
        and "There is no training curve." in text
        and "all labels are 1" in text
    )
    assert "None" not in text and "nan" not in text


def test_one_length_and_one_level_can_be_drawn(tmp_path: Path) -> None:
    facts = _facts()
    row = {**facts["lengths"][1], "auc": 0.5, "auc_low": None, "auc_high": None}
    popularity = {"name": "rate", **_metrics(0.5)}
    facts |= {
        "lengths": [row],
        "best_possible": [],
        "popularity": {"is_click": popularity, "long_view": popularity},
    }
    assert "nan" not in _write(facts, tmp_path / "report.html")


@given(st.floats(-1e6, 1e6), st.floats(1e-9, 1e6), st.integers(2, 8))
def test_ticks_span_their_range_in_few_even_steps(low: float, width: float, num: int) -> None:
    high = low + width
    ticks = nice_ticks(low, high, num)
    slack = 1e-6 * max(abs(low), abs(high), width) + 1e-9
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    if width > 1e-4 * max(1.0, abs(low)):
        assert 2 <= len(ticks) <= 2 * num + 4
        steps = [b - a for a, b in itertools.pairwise(ticks)]
        assert max(steps) - min(steps) < 1e-6 * max(1.0, abs(ticks[-1]), abs(ticks[0]))


def test_values_for_people() -> None:
    shown = [
        page.format_value(value)
        for value in (None, True, 12_345, 0.123456789, 1016.0, 123_456.7, "x", 1e-7, math.inf)
    ]
    assert shown == ["–", "yes", "12,345", "0.12346", "1,016", "123,457", "x", "1e-07", "inf"]


def test_text_is_escaped_everywhere() -> None:
    bad = '<b onclick="x">&'
    body = page.Html(
        page.section(bad, page.table([bad], [[bad]], [""]), page.tiles({bad: bad}), note=bad)
        + page.details(bad, bad)
    )
    parsed = Page(page.document(bad, bad, body, (False, bad)))
    assert not any(name == "onclick" for name, _ in parsed.attributes) and parsed.open == []
    assert (
        "".join(parsed.text).count(bad) == 12
    )  # title, headline, subtitle, badge, section, note, th, td, dt, dd, summary, pre


def test_the_card_names_limits_that_the_measurement_shows() -> None:
    facts = _facts()
    facts["lengths"][1]["auc"] = 0.83
    worse = {
        "name": "1 to 9 events",
        "auc": 0.6,
        "auc_low": 0.5,
        "auc_high": 0.7,
        "popularity_auc": 0.65,
    }
    facts["slices"] += [{**facts["slices"][0], **worse}]
    card = model_card.render(facts)
    for expected in (
        "# Ranker abc123",
        "data d1",
        "schema f00d",
        "0.8125 (0.8025 to 0.8225)",
        "It passed the gate",
        "width 64",
        "`longrec run`",
        "Served at 500 events the AUC is 0.8300",
        "Popularity is better where history 1 to 9 events",
        "longest history measured has 12,345",
    ):
        assert expected in card, expected
    assert "None" not in card
