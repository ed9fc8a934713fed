"""The share of a search that one step of a pipeline runs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from longrec.config import RunConfig
from longrec.errors import ConfigError
from longrec.study.search_space import SearchSpace
from longrec.study.share import _trials_of, of_pipeline


def _search(**changes: Any) -> Any:
    arguments = {
        "histories_dir": "histories",
        "workdir": "work",
        "share": "1/2",
        "keys": ["data", "code"],
        "space": {},
        "seed": 0,
        "sections": {"model": {"width": 32}},
        **changes,
    }
    return of_pipeline(**arguments)


@pytest.mark.parametrize(("trials", "count"), itertools.product([1, 7, 20], [1, 3, 8]))
def test_shares_have_all_trials_together(trials: int, count: int) -> None:
    sizes = [_trials_of(f"{index}/{count}", trials) for index in range(1, count + 1)]
    assert sum(sizes) == trials
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("share", ["1", "0/2", "3/2", "a/b", "1/0", "1/2/3"])
def test_a_share_that_is_none_is_an_error(share: str) -> None:
    with pytest.raises(ConfigError, match="share of a search is not valid"):
        _trials_of(share, 4)


def test_all_shares_of_a_search_have_one_journal() -> None:
    assert _search(share="2/2").out_dir == _search().out_dir
    assert _search(histories_dir="elsewhere").out_dir == _search().out_dir


@pytest.mark.parametrize(
    "changes",
    [
        {"keys": ["data", "other"]},
        {"seed": 1},
        {"space": {"train.epochs": [1, 2]}},
        {"sections": {"model": {"width": 64}}},
    ],
)
def test_another_search_has_another_journal(changes: dict[str, Any]) -> None:
    assert _search(**changes).out_dir != _search().out_dir


def test_without_a_space_the_kind_decides() -> None:
    assert _search().space == SearchSpace.default(RunConfig())


def test_a_space_that_is_none_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"search space of train.epochs"):
        _search(space={"train.epochs": 3})
