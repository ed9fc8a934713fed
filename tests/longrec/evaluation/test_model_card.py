"""Test the model card: what it holds, and the limits that the results show."""

from __future__ import annotations

from longrec.evaluation import model_card
from tests.longrec.evaluation.example_results import example_results


def test_the_card_names_limits_that_the_results_show() -> None:
    results = example_results()
    results["lengths"][1]["auc"] = 0.83
    below_popularity = {
        **results["slices"][0],
        "name": "1 to 9 events",
        "auc": 0.6,
        "auc_low": 0.5,
        "auc_high": 0.7,
        "popularity_auc": 0.65,
    }
    results["slices"].append(below_popularity)
    card = model_card.render(results)
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
        "is_click: The model is level with boosted trees; above item rate.",
        "| long_view | recency of <tag> | 0.7200 (0.7100 to 0.7300) |",
    ):
        assert expected in card, expected
    assert "None" not in card
