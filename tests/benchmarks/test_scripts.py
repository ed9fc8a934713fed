"""The benchmark scripts run, and results.csv says of each row how to get it."""

from __future__ import annotations

import csv
import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "model" / "benchmarks"


def _run(script: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "model"), "LONGREC_COMMIT": "test", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, FOLDER / script, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_every_row_names_its_command_device_and_commit() -> None:
    with open(FOLDER / "results.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {"rlb m=32 auto", "linear in length", "step d=256 device"} <= {row["claim"] for row in rows}
    for row in rows:
        words = shlex.split(row["command"])
        named = words[:2] == ["longrec", "bench"]
        script = f"model/benchmarks/{words[2]}.py" if named else next((word for word in words if word.endswith(".py")), "")
        assert script and (ROOT / script).is_file(), row["command"]
        assert "--out" not in words and row["device"] and row["versions"] and row["commit"] not in ("", "wip")


def test_attention_is_timed_in_every_order_of_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    _run("attention.py", "--events", "64", "--requests", "2", "--targets", "3", "--repeats", "2", "--device", "cpu", "--out", str(out))
    with open(out, newline="", encoding="utf-8") as stream:
        rows = {row["claim"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {"attention plain", "attention reordered"}
    plain, reordered = (float(rows[f"attention {order}"]["flops"]) for order in ("plain", "reordered"))
    assert plain == pytest.approx(3 * 2 * 64 * (4 * 64**2 + 4 * 64 * 3), rel=1e-3)
    assert reordered == pytest.approx(3 * 2 * 64 * (4 * 64 * 4 * 3), rel=1e-3)


def test_the_pictures_of_the_page_come_from_the_rows(tmp_path: Path) -> None:
    _run("plots.py", "--to", str(tmp_path))
    for name in ("step_against_length", "rlb_gain", "breakdown_256", "breakdown_512"):
        text = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        ElementTree.fromstring(text)
        assert "NVIDIA H100" in text and f"images/{name}.svg" in (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")


def test_a_line_of_the_breakdown_has_the_larger_of_two_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = _module("_kernels", monkeypatch)
    assert kernels.Line("product", 9.0, 1, (4e12, 1e9)).floor(8e14, 3e12) == pytest.approx(5.0)
    assert kernels.Line("copy", 9.0, 1, (0.0, 6e9)).floor(8e14, 3e12) == pytest.approx(2.0)
    assert kernels.Line("unknown", 9.0, 1).floor(8e14, 3e12) is None
    assert kernels._product_cost("aten::addmm", [[30], [10, 20], [20, 30], []]) == (2 * 10 * 20 * 30, 2 * (200 + 600 + 300))
