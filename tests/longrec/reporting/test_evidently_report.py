"""Evidently's report has the numbers of the gate, and nothing leaves the machine."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from longrec.data.quality.psi import psi
from longrec.errors import ConfigError
from longrec.reporting import evidently_report
from longrec.reporting.evidently_report import Quantity, require_evidently, write_evidently

needs_evidently = pytest.mark.skipif(
    evidently_report.importlib.util.find_spec("evidently") is None,
    reason="evidently is not installed (extra: evidently)",
)
AGE = Quantity("age", ("young", "old"), (60, 40), (30, 170), bound=0.1)
REGION = Quantity("region", ("a", "b", "c"), (5, 5, 0), (4, 0, 4), bound=9.0)
LABEL = Quantity("label", ("no", "yes"), (90, 10), (150, 50), bound=None)


def report(folder: Path, *quantities: Quantity, max_rows: int = 10_000) -> dict[str, Any]:
    """Return the JSON of a report."""
    write_evidently(
        quantities,
        folder / "report.html",
        folder / "report.json",
        index=psi,
        name="test",
        metadata={"model_version": "v1"},
        max_rows=max_rows,
    )
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def value_of(content: dict[str, Any], column: str) -> Any:
    """Return the value of the metric of a column."""
    (metric,) = (entry for entry in content["metrics"] if entry["config"]["column"] == column)
    return metric["value"]


@needs_evidently
def test_the_index_and_the_verdict_are_those_of_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a report opens no connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    content = report(tmp_path, AGE, REGION, LABEL)
    for quantity in (AGE, REGION, LABEL):
        expected = psi(quantity.reference, quantity.current)
        assert value_of(content, quantity.name) == pytest.approx(expected, rel=1e-12)
    assert [test["status"] for test in content["tests"]] == ["FAIL", "SUCCESS"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "population stability index (longrec)" in page


@needs_evidently
def test_evidently_computes_the_same_index_itself_without_empty_bins(tmp_path: Path) -> None:
    content = report(tmp_path, AGE)
    own = evidently_psi(AGE)
    assert value_of(content, "age") == pytest.approx(own, rel=1e-9)


def evidently_psi(quantity: Quantity) -> float:
    """Return the index by Evidently's own method."""
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    def rows(counts: tuple[int, ...]) -> Dataset:
        pairs = zip(quantity.bins, counts, strict=True)
        values = [name for name, count in pairs for _ in range(count)]
        definition = DataDefinition(categorical_columns=["age"])
        return Dataset.from_pandas(pd.DataFrame({"age": values}), definition)

    metric = ValueDrift(column="age", method="psi")
    run = Report([metric]).run(rows(quantity.current), rows(quantity.reference))
    return float(run.dict()["metrics"][0]["value"])


@needs_evidently
def test_many_rows_are_thinned_in_proportion(tmp_path: Path) -> None:
    large = Quantity("age", AGE.bins, (600_000, 400_000), (300_000, 1_700_000), bound=0.1)
    content = report(tmp_path, large, max_rows=2_000)
    assert value_of(content, "age") == pytest.approx(psi(large.reference, large.current), rel=0.01)


def test_without_evidently_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidently_report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"drift.evidently is set.*longrec\[evidently\]"):
        require_evidently("drift.evidently", tmp_path)


@needs_evidently
def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "reports").touch()
    for folder in (tmp_path / "reports", tmp_path / "reports" / "today"):
        with pytest.raises(
            ConfigError, match=r"checks\.evidently names no folder.*found .*reports"
        ):
            require_evidently("checks.evidently", folder)


def test_nothing_of_evidently_is_loaded_with_the_gates() -> None:
    code = (
        "import sys, longrec.release.monitoring, longrec.data.quality.checks\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'evidently'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
