"""The process of a step: it imports the step's file of the project, under kfp's own runner too."""

import subprocess
import sys
from pathlib import Path

import pytest
from kfp import local

from components import component
from components.plan import plan
from longrec.study.config import parse, to_text

ROOT = Path(__file__).parents[2]
STUDY = (
    "name: two\nbase: {}\nvariants: {stca: {}, mean: {model.kind: mean, model.recency: token}}\n"
)


def test_a_container_holds_no_source_of_its_step() -> None:
    container = plan.component_spec.implementation.container
    assert container.command == ["python3", "-m", "longrec.step", "kfp.dsl.executor_main"]
    assert "import" not in " ".join(container.args)


def test_kfps_own_runner_executes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGREC_ROOT", str(ROOT))
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    task = plan(study=to_text(parse(STUDY)), code_key="", max_items=8)
    assert len(task.output) == 2


def test_inside_a_step_a_component_is_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_KFP_RUNTIME", "true")

    def twice(number: int) -> int:
        return 2 * number

    assert component(twice) is twice


def test_a_step_that_the_image_does_not_have_is_named() -> None:
    command = [sys.executable, "-m", "longrec.step", "kfp.dsl.executor_main"]
    answer = subprocess.run(
        [*command, "--executor_input", "{}", "--function_to_execute", "absent"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert answer.returncode == 1
    last = answer.stderr.strip().splitlines()[-1]
    assert "there is no step 'absent'" in last
    assert "compiled by another version of longrec" in last
