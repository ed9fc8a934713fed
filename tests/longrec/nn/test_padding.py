"""Groups of requests with similar lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longrec.nn import padding
from longrec.nn.padding import PaddedRows, scatter_groups, similar_requests

COUNTS = np.array([3, 0, 2, 9])
DEVICE = torch.device("cpu")


def test_padding_and_back_keeps_every_row() -> None:
    rows = torch.arange(14.0)[:, None]
    groups = []
    parts = []
    for requests in similar_requests(COUNTS, COUNTS > 0):
        group = PaddedRows.of(COUNTS, requests, DEVICE)
        groups.append(group)
        parts.append(group.unpad(group.gather(rows)))
    assert torch.equal(scatter_groups(parts, groups, rows), rows)


def test_lengths_of_a_group_differ_by_less_than_a_factor_of_two() -> None:
    counts = np.arange(1, 1_000)
    for requests in similar_requests(counts, counts > 0):
        assert counts[requests].max() < 2 * counts[requests].min()


def test_large_groups_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding, "MAX_GROUP_CELLS", 100)
    counts = np.full(10, 5)
    sizes = [len(group) for group in similar_requests(counts, counts > 0, counts**2)]
    assert sizes == [4, 4, 2]


def test_a_request_above_the_bound_is_a_group_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding, "MAX_GROUP_CELLS", 100)
    counts = np.array([64, 65])
    assert len(list(similar_requests(counts, counts > 0, counts**2))) == 2


def test_requests_without_rows_of_a_kind_pad_to_nothing() -> None:
    rows = PaddedRows.of(COUNTS, np.array([1]), DEVICE)
    assert rows.index.shape == (1, 0)
    assert rows.packed.numel() == 0
