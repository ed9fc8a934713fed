"""The benchmark scripts run, and results.csv says of each row how to get it."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "model" / "benchmarks"


def _run(script: str, *arguments: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "model"),
        "LONGREC_COMMIT": "test",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, FOLDER / script, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
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
    assert {"rlb m=32 auto", "linear in length", "step d=256 device"} <= {
        row["claim"] for row in rows
    }
    for row in rows:
        words = shlex.split(row["command"])
        named = words[:2] == ["longrec", "bench"]
        script = (
            f"model/benchmarks/{words[2]}.py"
            if named
            else next((word for word in words if word.endswith(".py")), "")
        )
        assert script and (ROOT / script).is_file(), row["command"]
        assert (
            "--out" not in words
            and row["device"]
            and row["versions"]
            and row["commit"] not in ("", "wip")
        )


def test_attention_is_timed_in_every_order_of_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    _run(
        "attention.py",
        "--events",
        "64",
        "--requests",
        "2",
        "--targets",
        "3",
        "--repeats",
        "2",
        "--device",
        "cpu",
        "--out",
        str(out),
    )
    with open(out, newline="", encoding="utf-8") as stream:
        rows = {row["claim"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {"attention plain", "attention reordered"}
    assert rows["attention plain"]["command"].endswith(
        "--repeats 2 --device cpu"
    )  # where the rows went is no part of it
    plain, reordered = (
        float(rows[f"attention {order}"]["flops"]) for order in ("plain", "reordered")
    )
    assert plain == pytest.approx(3 * 2 * 64 * (4 * 64**2 + 4 * 64 * 3), rel=1e-3)
    assert reordered == pytest.approx(3 * 2 * 64 * (4 * 64 * 4 * 3), rel=1e-3)


def test_the_pictures_of_the_page_come_from_the_rows(tmp_path: Path) -> None:
    _run("plots.py", "--to", str(tmp_path))
    for name in ("step_against_length", "rlb_gain", "loader", "breakdown_256", "breakdown_512"):
        text = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        ElementTree.fromstring(text)
        assert "NVIDIA H100" in text and f"images/{name}.svg" in (
            ROOT / "docs" / "engine.md"
        ).read_text(encoding="utf-8")


def test_a_line_of_the_breakdown_has_the_larger_of_two_floors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels = _module("_kernels", monkeypatch)
    assert kernels.Line("product", 9.0, 1, (4e12, 1e9)).floor(8e14, 3e12) == pytest.approx(5.0)
    assert kernels.Line("copy", 9.0, 1, (0.0, 6e9)).floor(8e14, 3e12) == pytest.approx(2.0)
    assert kernels.Line("unknown", 9.0, 1).floor(8e14, 3e12) is None
    assert kernels._product_cost("aten::addmm", [[30], [10, 20], [20, 30], []]) == (
        2 * 10 * 20 * 30,
        2 * (200 + 600 + 300),
    )


@pytest.mark.parametrize("claim", ["models", "reference", "host"])
def test_claims_that_wait_for_a_gpu_run_on_tiny_shapes(
    claim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with their Python must not be found out in lent minutes."""
    world = _module("_world", monkeypatch)
    monkeypatch.setattr(world, "NUM_ITEMS", 500)
    monkeypatch.setattr(world, "SIZES", {"item": (501, 64), "user": (9,), "event": (8,)})
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    engine = _module("gpu_engine", monkeypatch)
    small = dataclasses.replace(engine.CONFIG, width=16, num_heads=2, num_layers=2)
    for name, value in {
        "DEVICE": torch.device("cpu"),
        "EVENTS": 16,
        "TARGETS": 2,
        "CONFIG": small,
        "free": lambda: None,
    }.items():
        monkeypatch.setattr(engine, name, value)
    monkeypatch.setattr(engine._rows, "replayed", lambda work: work)
    rows = list(engine.CLAIMS[claim]())
    assert rows and all(float(row["p50_ms"]) > 0 for row in rows)
    assert claim != "models" or [row["claim"] for row in rows] == [
        "model stca",
        *["model causal transformer"] * 2,
        *["model hstu"] * 2,
    ]


def test_the_lent_minutes_hold_only_commands_that_there_are() -> None:
    lines = [
        line
        for line in (FOLDER / "gpu_all.sh").read_text(encoding="utf-8").splitlines()
        if line.lstrip().startswith("bounded ")
    ]
    assert len(lines) > 12
    for line in lines:
        words = shlex.split(
            line.removesuffix(";;")
            .removesuffix("&")
            .replace("$bench", str(FOLDER))
            .replace("$rows", "rows.csv")
        )
        script = next(word for word in words if word.endswith(".py"))
        options = {word for word in words[words.index(script) :] if word.startswith("--")}
        source = Path(script).read_text(encoding="utf-8")
        assert all(
            f'"{option}"' in source or f'("{option[2:]}", ' in source for option in options
        ), line


@pytest.mark.slow
def test_ranking_on_a_gpu_is_timed_in_every_way(tmp_path: Path) -> None:
    """What a CPU can tell of gpu_serve: cache and fixed buffers agree with the forward pass, for
    three works of each shape.
    """
    sizes = shlex.split(
        "--device cpu --events 1100 70 --targets 70 5 --width 32 --heads 2 --items 500 --repeats 9 --cases 3"
    )
    found = _run("gpu_serve.py", *sizes, "--out", str(tmp_path / "rows.csv"))
    with open(tmp_path / "rows.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    works = ["cold", "warm", "append"]
    assert [row["claim"].split()[1] for row in rows] == [
        *works,
        "2",
        "2",
        "4",
        "4",
        "8",
        "8",
        *works,
        *works,
    ]
    assert "score to cold" in found and "another scorer captures" in found


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["data_parallel", "row_wise"])
def test_two_processes_step_as_one(sharding: str, tmp_path: Path) -> None:
    if sharding == "row_wise":
        pytest.importorskip("torchrec")
    out = tmp_path / "rows.csv"
    sizes = shlex.split("--device cpu --events 32 --budget 256 --items 500 --width 16 --heads 2")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        str(FOLDER / "gpu_ddp.py"),
        *sizes,
        "--out",
        str(out),
        "--sharding",
        sharding,
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "model"),
            "LONGREC_COMMIT": "test",
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    with open(out, newline="", encoding="utf-8") as stream:
        alone, together = csv.DictReader(stream)
    assert (alone["claim"], together["claim"]) == (
        "step on 1 process of several",
        "step on 2 processes",
    )
    assert together["command"].startswith("torchrun --nproc-per-node 2 model/benchmarks/gpu_ddp.py")
    assert "losses of 4 steps" in together["notes"]
