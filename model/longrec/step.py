"""The process of a pipeline step: imports the step's file from the project and executes it.

    python -m longrec.step EXECUTOR --executor_input JSON --function_to_execute NAME

EXECUTOR is the module of kfp that reads the inputs, calls the function and writes the outputs. It
gets the path of `components/NAME.py`: of the image on a cluster, of the checkout on one machine.
The start and the end of the step go to the record of the run (`longrec.runs.record.attempts`), to
OpenLineage and to MLflow (`longrec.runs.record.tracking`), where these are configured. An
artifact that is gone starts a new generation of cached results (`longrec.runs.cache_generation`).
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Sequence

from longrec import retries, tracing
from longrec.errors import LongrecError
from longrec.runs.cache_generation import checked_artifacts
from longrec.runs.project import find_root
from longrec.runs.record.attempts import WORKDIR_VARIABLE, recorded, run_name
from longrec.runs.record.tracking import tracked

INPUT_OPTION = "--executor_input"
FUNCTION_OPTION = "--function_to_execute"
PATH_OPTION = "--component_module_path"
COMPONENTS_FOLDER = "components"


def main() -> None:
    """Execute the step that the command line names."""
    executor, *arguments = sys.argv[1:]
    root = find_root()
    name = _option(arguments, FUNCTION_OPTION)
    path = root / COMPONENTS_FOLDER / f"{name}.py"
    if not path.is_file():
        raise LongrecError(
            f"there is no step '{name}'",
            found=f"no file {path}",
            fix="The pipeline was compiled by another version of longrec than the image has.",
        )
    os.environ["_KFP_RUNTIME"] = "true"
    os.environ.setdefault(retries.VARIABLE, retries.STEP_SECONDS)
    sys.path.insert(0, str(root))
    sys.argv = [executor, PATH_OPTION, str(path), *arguments]
    executor_input = json.loads(_option(arguments, INPUT_OPTION))
    checked = checked_artifacts(executor_input, os.environ.get(WORKDIR_VARIABLE, ""))
    step = name.replace("_", "-")
    traced = tracing.pipeline_span(
        f"step {step}",
        {"longrec.step": step, "longrec.run": run_name()},
        run=run_name(),
    )
    with traced, recorded(step, executor_input), tracked(step, executor_input), checked:
        runpy.run_module(executor, run_name="__main__", alter_sys=True)


def _option(arguments: Sequence[str], name: str) -> str:
    """Return the value behind an option of a command line."""
    return arguments[arguments.index(name) + 1]


if __name__ == "__main__":
    main()
