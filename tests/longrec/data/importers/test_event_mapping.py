"""Event mapping: mistakes are named before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longrec.data.importers import (
    EventMapping,
    NegativeSampling,
    import_events,
)
from longrec.errors import DataError

START_MS = 1_650_000_000_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": ("x",)}, "misdescribed"),
        ({"features": ("x:shape",)}, "misdescribed"),
        ({"features": ("x:category:int8",)}, "misdescribed"),
        ({"features": ("x:number:float64:9",)}, "misdescribed"),
        ({"features": ("timestamp:number",)}, "cannot be called timestamp"),
        ({"features": ("x:category", "x:number")}, "named twice"),
        ({"user": "nobody"}, "lacks the column nobody"),
        ({"labels": ("x",)}, "either labels or negatives"),
        ({"items": "i.csv"}, "go together"),
        ({"timestamp_unit": "days"}, "unknown unit"),
        ({"labels": ("x", "x")}, "named twice; found x"),
        ({"user": "a", "item": "a"}, "named twice; found a"),
        ({"features": ("x:id", "x:number")}, "named twice; found x"),
    ],
)
def test_mapping_mistakes_are_named(
    tmp_path: Path,
    change: dict[str, Any],
    words: str,
) -> None:
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp,x\n1,1,{START_MS},1\n")
    with pytest.raises(DataError, match=words):
        import_events(
            tmp_path / "log.csv",
            tmp_path / "d",
            EventMapping(**change),
            negatives=NegativeSampling(1),
        )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.csv"]
