"""One table declares the steps: graphs, components and code agree with it."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import dsl

from components import component
from longrec.errors import LongrecError
from longrec.runs import steps
from longrec.runs.steps import STEPS
from pipelines import compiler
from pipelines.task_settings import configure

ROOT = Path(__file__).parents[3]
STRUCTURAL = ("condition", "exit-handler", "for-loop")


def _steps_of_graphs() -> set[str]:
    names: set[str] = set()
    for name in compiler.PIPELINES:
        spec, _ = yaml.safe_load_all((compiler.FOLDER / f"{name}.yaml").read_text())
        for part in [*spec["components"].values(), spec["root"]]:
            names |= set(part.get("dag", {}).get("tasks", {}))
    return {name for name in names if not name.startswith(STRUCTURAL)}


def test_the_graphs_hold_the_steps_of_the_table() -> None:
    assert _steps_of_graphs() | {"train-job"} == set(STEPS), "train-job replaces train"


def test_each_step_has_a_component_and_each_component_a_step() -> None:
    for name, step in STEPS.items():
        function = getattr(importlib.import_module(f"components.{step.component}"), step.component)
        assert function.component_spec.name == name
    files = {path.stem for path in (ROOT / "components").glob("*.py")} - {"__init__"}
    assert files == {step.component for step in STEPS.values()}


@pytest.mark.parametrize("step", STEPS.values(), ids=lambda step: step.name)
def test_the_modules_and_folders_of_a_step_exist(step: steps.PipelineStep) -> None:
    assert all(importlib.util.find_spec(name) for name in step.modules)
    assert all((ROOT / folder).is_dir() for folder in step.folders)


@pytest.mark.parametrize("step", STEPS.values(), ids=lambda step: step.name)
def test_a_component_imports_the_modules_of_its_step(step: steps.PipelineStep) -> None:
    source = (ROOT / "components" / f"{step.component}.py").read_text()
    direct = [name for name in step.modules if f"from {name} import" in source]
    assert direct or not step.modules or step.component == "train_job"


def test_a_cached_step_reads_its_code_key_and_no_other_does() -> None:
    for step in STEPS.values():
        module = importlib.import_module(f"components.{step.component}")
        inputs = getattr(module, step.component).component_spec.inputs
        assert ("code_key" in inputs) == bool(step.code_key), step.name
        assert step.code_key or not step.is_cached


def test_a_step_outside_the_table_does_not_compile() -> None:
    @component
    def unlisted() -> str:
        return ""

    with pytest.raises(LongrecError, match="the table of steps has no step 'unlisted'"):

        @dsl.pipeline(name="unlisted")
        def graph() -> None:
            configure(unlisted(), None)


def test_steps_of_one_code_key_share_one_fingerprint() -> None:
    groups: dict[str, list[Any]] = steps.steps_by_code_key()
    names = [step.name for step in groups["study"]]
    assert names == ["plan", "trial", "collect", "tune", "choose"]
    assert [step.name for step in groups["train"]] == ["train", "train-job"]
