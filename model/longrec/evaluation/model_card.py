"""Write the model card of an evaluated ranker as Markdown, from the content of metrics.json.

The card says what the model is, how it was measured, where it is weak and how it was made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from longrec.evaluation.report import standings, training_values, undefined_metrics
from longrec.reporting import page

Results: TypeAlias = Mapping[str, Any]

BETTER_SHORTER_LENGTH = (
    "Served at {length:,} events the AUC is {auc:.4f}, higher than at {served_length:,}."
)
BELOW_POPULARITY = (
    "Popularity is better where {family} {name} ({num_targets:,} targets): "
    "{popularity_auc:.4f} against {auc:.4f}."
)


def render(results: Results) -> str:
    """Return the card of a model.

    Args:
        results: content of metrics.json: `EvaluationReport.to_dict()` and `provenance.describe`.
    """
    return page.render(
        "model_card.md.jinja",
        **results,
        standings=standings(results),
        limits=list(_limits(results)),
        training_values=training_values(results),
    )


def _limits(results: Results) -> Iterator[str]:
    """Yield the weaknesses that the measurement shows."""
    yield from _better_shorter_length(results)
    yield from _slices_below_popularity(results)
    for reason in undefined_metrics(results):
        yield f"{reason}."


def _better_shorter_length(results: Results) -> Iterator[str]:
    served_length = results["served_length"]
    defined = [row for row in results["lengths"] if row["auc"] is not None]
    served = [row for row in defined if row["length"] == served_length]
    shorter = [row for row in defined if row["length"] < served_length]
    if not served or not shorter:
        return
    best = max(shorter, key=lambda row: row["auc"])
    if best["auc"] > served[0]["auc"]:
        yield BETTER_SHORTER_LENGTH.format_map({**best, "served_length": served_length})


def _slices_below_popularity(results: Results) -> Iterator[str]:
    for row in results["slices"]:
        auc = row["auc"]
        popularity_auc = row["popularity_auc"]
        if auc is None or popularity_auc is None:
            continue
        if auc < popularity_auc:
            yield BELOW_POPULARITY.format_map(row)
