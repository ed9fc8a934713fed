"""Results of an evaluation as metrics.json holds them."""

from __future__ import annotations

from typing import Any


def example_metrics(auc: float | None) -> dict[str, Any]:
    """Return the metrics of one task; all undefined without an AUC."""
    metrics: dict[str, Any] = {
        "num_targets": 1000,
        "num_positives": 440,
        "num_users": 50,
        "num_ranked_users": 40,
        "undefined": {} if auc is not None else {"auc": "all labels are 1"},
    }
    for name in ("auc", "gauc", "logloss", "ne", "calibration"):
        metrics[name] = auc
        metrics[f"{name}_low"] = None if auc is None else auc - 0.01
        metrics[f"{name}_high"] = None if auc is None else auc + 0.01
    metrics["ece"] = None if auc is None else 0.02
    return metrics


def example_baseline(name: str, auc: float | None, standing: str) -> dict[str, Any]:
    """Return the row of one baseline."""
    return {
        "name": name,
        **example_metrics(auc),
        "difference": 0.0123,
        "difference_low": -0.01,
        "difference_high": 0.05,
        "standing": standing,
        "reason": "",
    }


def example_results() -> dict[str, Any]:
    """Return the content of a metrics.json with two tasks."""
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
        "date": "2022-05-09 12:30 UTC",
        "findings": ["More events make <this> model worse."],
        "notes": ["Served at 10,000 events: it was set."],
        "parts": {"eval": {"requests": 90, "targets": 1000, "users": 50}},
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
        "metrics": {"is_click": example_metrics(0.8125), "long_view": example_metrics(0.7)},
        "popularity": {
            "is_click": {"name": "rate", **example_metrics(0.6)},
            "long_view": {"name": "count", **example_metrics(0.55)},
        },
        "gain": {
            task: {"value": 0.0312, "low": -0.01, "high": 0.05, "reason": ""}
            for task in ("is_click", "long_view")
        },
        "baselines": {
            "is_click": (
                example_baseline("boosted trees", 0.8, "level"),
                example_baseline("item rate", 0.6, "above"),
            ),
            "long_view": (example_baseline("recency of <tag>", 0.72, "below"),),
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
        "training": {
            "num_steps": 40,
            "device": "cpu",
            "final_loss": 0.61,
            "best_step": 30,
            "validation": {
                "curve": [{"step": step, "auc": 0.7 + step / 1000} for step in (10, 20, 30, 40)],
                "served_length": {"length": 10_000, "curve": lengths},
            },
        },
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
