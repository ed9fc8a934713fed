"""The compiled training pipeline: up to date, byte-stable, free of machine paths, and the graph that the architecture describes."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from longrec.errors import LongrecError
from pipelines import training

ROOT = Path(__file__).parents[2]
EDGES = {
    "check-events": {"importer"},
    "build-features": {"importer", "check-events"},
    "publish": {"build-features"},
    "retrieve": {"importer", "publish"},
    "check-histories": {"retrieve"},
    "train": {"retrieve", "check-histories"},
    "evaluate": {"train", "retrieve"},
    "condition-1": {"evaluate", "train", "retrieve"},
}


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return next(yaml.safe_load_all(training.COMPILED.read_text()))


def test_the_committed_file_is_what_compiling_writes() -> None:
    training.check_compiled(training.COMPILED)


def test_a_stale_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "training.yaml"
    with pytest.raises(LongrecError, match="is not up to date"):
        training.check_compiled(path)
    path.write_text(training.COMPILED.read_text() + " ")
    with pytest.raises(LongrecError, match="is not up to date"):
        training.check_compiled(path)


def test_compiling_by_kfp_and_by_the_module_writes_the_same_bytes(tmp_path: Path) -> None:
    target = tmp_path / "by_kfp.yaml"
    kfp = Path(sys.executable).with_name("kfp")
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONHASHSEED": "7"}
    subprocess.run([kfp, "dsl", "compile", "--py", "pipelines/training.py", "--output", target], cwd=ROOT, check=True, capture_output=True,
                   env=environment)
    assert target.read_bytes() == training.COMPILED.read_bytes()


def test_the_graph_has_the_steps_and_edges_of_the_architecture(spec: dict[str, Any]) -> None:
    tasks = spec["root"]["dag"]["tasks"]
    assert {name: set(task.get("dependentTasks", ())) for name, task in tasks.items() if name != "importer"} == EDGES
    inner = spec["components"]["comp-condition-1"]["dag"]["tasks"]
    assert set(inner) == {"package"}
    assert tasks["condition-1"]["triggerPolicy"]["condition"] == "inputs.parameter_values['pipelinechannel--evaluate-Output'] == true"


def test_gates_are_artifacts_and_not_only_order(spec: dict[str, Any]) -> None:
    tasks = spec["root"]["dag"]["tasks"]
    for task, upstream in (("build-features", "check-events"), ("train", "check-histories"), ("retrieve", "publish")):
        producers = {value["taskOutputArtifact"]["producerTask"] for value in tasks[task]["inputs"]["artifacts"].values()}
        assert upstream in producers


def test_each_step_gets_its_own_section_of_the_configuration_only(spec: dict[str, Any]) -> None:
    tasks = spec["root"]["dag"]["tasks"]
    given = {name: {value["componentInputParameter"] for value in task.get("inputs", {}).get("parameters", {}).values()
                    if "componentInputParameter" in value} for name, task in tasks.items()}
    sections = {"data", "checks", "model", "lengths", "train", "evaluate", "gate"}
    assert {name: parameters & sections for name, parameters in given.items() if parameters & sections} == {
        "build-features": {"data"}, "check-events": {"checks"}, "retrieve": {"data"}, "check-histories": {"checks"},
        "train": {"model", "lengths", "train"}, "evaluate": {"evaluate", "gate"}, "condition-1": {"gate"}}


def test_the_file_names_no_path_of_a_machine_and_no_pip(spec: dict[str, Any]) -> None:
    text = training.COMPILED.read_text()
    assert not re.search(r"/(work|tmp|root|home|Users)/", text) and str(ROOT) not in text
    executors = spec["deploymentSpec"]["executors"].values()
    images = {executor["container"]["image"] for executor in executors if "container" in executor}
    assert len(images) == 1 and "python" in images.pop()
    assert "pip install" not in text


def test_every_parameter_is_described() -> None:
    text = inspect.getdoc(training.training.pipeline_func) or ""
    for name in training.training.component_spec.inputs:
        assert re.search(rf"^\s+(\w+, )*{name}(, \w+)*:", text, re.M), name
