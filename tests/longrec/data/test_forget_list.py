"""The forget list, and how a running service learns of it."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

from longrec.data.upkeep import forget_list
from longrec.data.upkeep.forget_list import (
    ForgetWatcher,
    add_users,
    forgotten_users,
    list_path,
    without_users,
)
from longrec.errors import DataError


def test_users_are_added_once(tmp_path: Path) -> None:
    assert forgotten_users(tmp_path).tolist() == []
    assert add_users(tmp_path, [5, -(2**63), 5]) == 2
    assert add_users(tmp_path, [5, 2**63 - 1]) == 1
    assert forgotten_users(tmp_path).tolist() == [-(2**63), 5, 2**63 - 1]


def test_rows_of_others_stay_as_they_are(tmp_path: Path) -> None:
    add_users(tmp_path, [2])
    table = pa.table({"user_id": [1, 2, 3], "x": ["a", "b", "c"]})
    assert without_users(table, forgotten_users(tmp_path))["x"].to_pylist() == ["a", "c"]
    others = table.slice(0, 1)
    assert without_users(others, forgotten_users(tmp_path)) is others


@pytest.mark.parametrize("text", ["", "[]", '{"format_version": 9, "users": []}'])
def test_a_damaged_list_is_an_error(tmp_path: Path, text: str) -> None:
    list_path(tmp_path).write_text(text)
    with pytest.raises(DataError, match=r"forgotten\.json"):
        forgotten_users(tmp_path)


def test_a_watcher_names_each_user_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forget_list, "LOOK_SECONDS", 0.0)
    watcher = ForgetWatcher(tmp_path)
    assert watcher.newly_forgotten() == []
    add_users(tmp_path, [7])
    assert watcher.newly_forgotten() == [7]
    assert watcher.newly_forgotten() == []
    add_users(tmp_path, [3, 9])
    os.utime(list_path(tmp_path), ns=(1, 1))
    assert watcher.newly_forgotten() == [3, 9]
    list_path(tmp_path).write_text("{")
    assert watcher.newly_forgotten() == [], "a damaged list does not stop a service"


def test_a_watcher_looks_at_most_once_a_second(tmp_path: Path) -> None:
    watcher = ForgetWatcher(tmp_path)
    watcher.newly_forgotten()
    add_users(tmp_path, [7])
    assert watcher.newly_forgotten() == []
