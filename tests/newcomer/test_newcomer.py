"""From a log of any shape to a served model with two commands: import and run, no configuration."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longrec.config_file import load_config
from longrec.runs.project import find_root
from tests.newcomer import logs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
BUDGET = "2m"
"""Longest training; on a quiet machine the longest takes one minute."""
REFUSED_EXIT_CODE = 3
RUN = ("ratings", "invoices", "television", "funnel")
"""Logs that are run to the end: no repeats, cancelled lines, times from 0, guests."""
MIN_BENTOS = 3
"""Bentos of these logs at least, also on a busy machine, where the budget cuts the training."""


@dataclasses.dataclass(frozen=True)
class Newcomer:
    """A log and how a newcomer imports it.

    Args:
        write: writes the log.
        options: of `longrec import events`, beyond the file and --out.
        task: name of the label.
    """

    write: Callable[[Path], None]
    options: tuple[str, ...]
    task: str = "label"


NEWCOMERS = {
    "ratings": Newcomer(logs.ratings, ("--label", "liked=rating>=4"), "liked"),
    "shop": Newcomer(
        logs.shop,
        ("--user", "visitor", "--item", "sku", "--timestamp", "shown_at", "--label", "clicked"),
        "clicked",
    ),
    "invoices": Newcomer(logs.invoices, ("--where", "Quantity>0", "--negatives", "4")),
    "television": Newcomer(
        logs.television,
        (
            *("--user", "household", "--item", "programme", "--timestamp", "second"),
            *("--time-origin", "2024-03-01", "--timestamp-unit", "s"),
            *("--feature", "genre:category", "--negatives", "4"),
        ),
    ),
    "funnel": Newcomer(logs.funnel, ("--positive", "event_type=purchase", "--negatives", "4")),
    "library": Newcomer(
        logs.library,
        ("--user", "reader", "--item", "book", "--timestamp", "borrowed_at", "--negatives", "4"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What a newcomer gets: exit code and output of `longrec run`, and its summary."""

    exit_code: int
    console: str
    summary: dict[str, Any]
    workdir: Path


@pytest.fixture(scope="module")
def result_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """Return a function that imports a log and runs on it, once per log."""

    @functools.cache
    def result(name: str) -> Result:
        folder = tmp_path_factory.mktemp(name)
        newcomer = NEWCOMERS[name]
        newcomer.write(folder / f"{name}.csv")
        source = str(folder / f"{name}.csv")
        imported = _longrec(
            "import", "events", source, "--out", "data", *newcomer.options, at=folder
        )
        assert imported.returncode == 0, imported.stderr
        done = _longrec("run", "--data", "data", "--budget", BUDGET, "--json", at=folder)
        assert done.stdout, done.stderr
        workdir = folder / ".longrec"
        return Result(done.returncode, done.stderr, json.loads(done.stdout), workdir)

    return result


def _longrec(*arguments: str, at: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LONGREC_ROOT": str(find_root()), "HOME": str(at)}
    environment["OMP_NUM_THREADS"] = "1"  # other tests use the other core
    environment.pop("BENTOML_HOME", None)
    return subprocess.run(
        [sys.executable, "-m", "longrec", *arguments],
        cwd=at,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", sorted(set(NEWCOMERS) - set(RUN)))
def test_a_log_is_imported_and_gets_settings(name: str, tmp_path: Path) -> None:
    newcomer = NEWCOMERS[name]
    newcomer.write(tmp_path / "log.csv")
    options = ("--out", "data", *newcomer.options)
    imported = _longrec("import", "events", "log.csv", *options, at=tmp_path)
    assert imported.returncode == 0, imported.stderr
    settings = _longrec("init", "--data", "data", "--output", "run.yaml", at=tmp_path)
    assert settings.returncode == 0, settings.stderr
    assert load_config(tmp_path / "run.yaml").data.max_history == 128


@pytest.mark.parametrize("name", RUN)
def test_a_log_ends_with_a_bento_or_with_a_refusal_that_says_what_to_do(
    name: str, result_of: Callable[[str], Result]
) -> None:
    result = result_of(name)
    assert result.exit_code in (0, REFUSED_EXIT_CODE), result.console
    assert "settings derived from the data" in result.console
    assert NEWCOMERS[name].task in result.summary["metrics"]
    if result.exit_code == 0:
        assert result.summary["bento_tag"]
    else:
        assert result.summary["gate"]["reasons"], "the refusal names its bounds"
        packaged = _longrec(
            "package", "--force", "--workdir", str(result.workdir), at=result.workdir.parent
        )
        assert packaged.returncode == 0, packaged.stderr


def test_logs_end_with_a_bento(result_of: Callable[[str], Result]) -> None:
    results = {name: result_of(name) for name in RUN}
    bentos = [name for name, result in results.items() if result.summary["bento_tag"]]
    assert len(bentos) >= MIN_BENTOS, {name: found.console for name, found in results.items()}


def test_without_repeats_the_model_is_above_every_baseline(
    result_of: Callable[[str], Result],
) -> None:
    baselines = result_of("ratings").summary["baselines"]["liked"]
    lows = {row["name"]: row["difference_low"] for row in baselines}
    assert min(lows.values()) > 0, lows
