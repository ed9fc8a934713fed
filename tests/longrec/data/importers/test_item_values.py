"""Item values: the first known value of each item."""

from __future__ import annotations

import numpy as np
import pytest

from longrec.data.importers.item_values import FirstKnownValues


def test_the_first_known_value_of_an_item_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longrec.data.importers.item_values.COMPACT_ROWS", 50)
    rng = np.random.default_rng(0)
    values = FirstKnownValues()
    expected: dict[int, int | None] = {}
    for _ in range(40):
        ids = rng.integers(0, 60, 20)
        found = rng.integers(-3, 5, 20)
        values.add(ids, found)
        for item, value in zip(ids.tolist(), found.tolist(), strict=True):
            if expected.get(item) is None:
                expected[item] = value if value >= 0 else None
    assert values.ids().tolist() == sorted(expected)
    assert values.values_of(np.arange(70)).to_pylist() == [expected.get(item) for item in range(70)]
    assert FirstKnownValues().values_of(np.arange(2)).to_pylist() == [None, None]
