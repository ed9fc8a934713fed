"""The benchmark scripts run, and every row of results.csv names its command."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
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


def _harness(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a module that the scripts share."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(f"harness.{name}")


def _script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
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


def test_every_kind_is_timed_on_histories_of_different_lengths(tmp_path: Path) -> None:
    sizes = "--requests 3 --events 8 --targets 3 --width 16 --heads 2 --items 50 --repeats 2"
    out = tmp_path / "rows.csv"
    found = _run("baselines.py", *shlex.split(sizes), "--most", "1000", "--out", str(out))
    with open(out, newline="", encoding="utf-8") as stream:
        claims = [row["claim"] for row in csv.DictReader(stream)]
    kinds = [claim.removeprefix("ragged step of ") for claim in claims]
    assert {"stca", "transformer", "hstu", "din", "mean"} <= set(kinds)
    _, *table, _ = found.strip().splitlines()
    assert [line.split()[0] for line in table] == kinds


def test_the_pictures_of_the_page_come_from_the_rows(tmp_path: Path) -> None:
    _run("plots.py", "--to", str(tmp_path))
    for name in ("step_against_length", "rlb_gain", "loader", "breakdown_256", "breakdown_512"):
        text = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        ElementTree.fromstring(text)
        page = (ROOT / "docs" / "benchmarks" / "training.md").read_text(encoding="utf-8")
        assert "NVIDIA H100" in text
        assert f"images/{name}.svg" in page


def test_a_line_of_the_breakdown_has_the_larger_of_two_floors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profile = _harness("kernel_profile", monkeypatch)
    product = profile.KernelLine("product", 9.0, 1, (4e12, 1e9))
    copy = profile.KernelLine("copy", 9.0, 1, (0.0, 6e9))
    assert product.floor_ms(8e14, 3e12) == pytest.approx(5.0)
    assert copy.floor_ms(8e14, 3e12) == pytest.approx(2.0)
    assert profile.KernelLine("unknown", 9.0, 1).floor_ms(8e14, 3e12) is None
    cost = profile.product_cost("aten::addmm", [[30], [10, 20], [20, 30], []])
    assert cost == (2 * 10 * 20 * 30, 2 * (200 + 600 + 300))


@pytest.mark.parametrize("claim", ["models", "reference", "host"])
def test_claims_that_wait_for_a_gpu_run_on_tiny_shapes(
    claim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in their Python must not be found only when a GPU is at hand."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    engine = _script("gpu_engine", monkeypatch)
    small = dataclasses.replace(engine.CONFIG, width=16, num_heads=2, num_layers=2)
    for name, value in {
        "DEVICE": torch.device("cpu"),
        "EVENTS": 16,
        "TARGETS": 2,
        "NUM_ITEMS": 500,
        "CONFIG": small,
        "free_memory": lambda: None,
    }.items():
        monkeypatch.setattr(engine, name, value)
    monkeypatch.setattr(engine.timing, "replayed", lambda work: work)
    rows = list(engine.CLAIMS[claim]())
    assert rows and all(float(row["p50_ms"]) > 0 for row in rows)
    assert claim != "models" or [row["claim"] for row in rows] == [
        "model stca",
        *["model causal transformer"] * 2,
        *["model hstu"] * 2,
    ]


def test_the_script_of_all_gpu_benchmarks_holds_existing_commands() -> None:
    text = (FOLDER / "gpu_all.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    variables = dict(re.findall(r'^(launch|sizes)="(.*)"$', text, re.MULTILINE))
    lines = [line for line in text.splitlines() if line.lstrip().startswith("bounded ")]
    assert len(lines) > 12
    for line in lines:
        command = line.removesuffix(";;").removesuffix("&")
        for name, value in {**variables, "bench": str(FOLDER), "rows": "rows.csv"}.items():
            command = command.replace(f"${name}", value)
        words = shlex.split(command)
        script = next(word for word in words if word.endswith(".py"))
        options = {word for word in words[words.index(script) :] if word.startswith("--")}
        source = Path(script).read_text(encoding="utf-8")
        assert all(
            f'"{option}"' in source or f'("{option[2:]}", ' in source for option in options
        ), line


@pytest.mark.slow
def test_ranking_on_a_gpu_is_timed_in_every_way(tmp_path: Path) -> None:
    """On a CPU, cache and fixed buffers agree with the forward pass for three kinds of calls."""
    sizes = shlex.split(
        "--device cpu --events 1100 70 --targets 70 5 --width 32 --heads 2 --items 500 "
        "--repeats 9 --cases 3"
    )
    found = _run("gpu_serve.py", *sizes, "--out", str(tmp_path / "rows.csv"))
    with open(tmp_path / "rows.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    kinds = ["cold", "warm", "append"]
    together = ["2", "2", "4", "4", "8", "8"]
    assert [row["claim"].split()[1] for row in rows] == [*kinds, *together, *kinds, *kinds]
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


def test_the_growth_of_traces_is_that_of_the_means(monkeypatch: pytest.MonkeyPatch) -> None:
    tracing = _script("tracing", monkeypatch)
    rng = np.random.default_rng(1)
    off = rng.normal(10.0, 0.1, 200)
    grown, low, high = tracing.growth(np.stack([off, 1.02 * off], axis=1))
    assert low <= grown <= high
    assert grown == pytest.approx(0.02)
