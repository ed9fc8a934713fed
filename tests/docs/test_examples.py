"""The notebook has the cells of the script and runs; the example log is what the pages say."""

from __future__ import annotations

import csv
import importlib
import time
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a file of examples/ as a module."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


def test_the_notebook_has_the_cells_of_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load("make_notebook", monkeypatch).notebook_of(
        (EXAMPLES / "quickstart.py").read_text(encoding="utf-8")
    )
    written = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    cells = [(cell.cell_type, cell.source) for cell in written.cells]
    assert cells == [(cell.cell_type, cell.source) for cell in expected.cells]
    assert len(cells) > 10


def test_the_example_log_has_48_000_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load("make_clicks", monkeypatch).main(tmp_path)
    with open(tmp_path / "clicks.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 48_000
    assert list(rows[0]) == ["ts", "uid", "iid", "clicked"]
    assert rows == sorted(rows, key=lambda row: int(row["ts"]))
    with open(tmp_path / "items.csv", newline="", encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == 200


@pytest.mark.slow
def test_the_notebook_runs_and_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = load("make_notebook", monkeypatch)
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    started = time.monotonic()
    maker.execute(notebook)
    seconds = time.monotonic() - started
    text = "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text" in output
    )
    auc = float(text.partition("AUC ")[2].partition(",")[0])
    assert auc > 0.7
    assert "because of" in text
    print(f"the notebook took {seconds:.0f} s")
