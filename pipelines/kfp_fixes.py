"""Fixes for faults of kfp 2.17: loops, commands of steps and placeholders of its local runner, and
slow settings of tasks.
"""

import contextlib
import json
import os
import shlex
from collections.abc import Iterator
from typing import Any

PLACEHOLDER = "{{$"
MASK = "{{\ue000$"
"""Stands for the start of a placeholder in the arguments of a pipeline."""
STEP_COMMAND = ["python3", "-m", "longrec.step"]
"""Beginning of the command of a step (`components`)."""
SOURCE_COMMAND = "_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main"
"""Part of the shell command of a component that kfp embeds with its source."""


@contextlib.contextmanager
def fixed_loops() -> Iterator[None]:
    """Apply both fixes inside the context.

    1. In a loop, `create_parameter_loop_iteration_task_spec` passes the loop's item also for inputs
       that are outputs of earlier steps, such as code keys. The fix restores these inputs.
    2. `indented_print` replaces `print` while a step runs. The threads of a loop restore it in the
       wrong order. With the fix nothing is indented.
    """
    from kfp.local import logging_utils
    from kfp.local.orchestrator import task_spec_utils

    original_indent = logging_utils.indented_print
    original_create = task_spec_utils.create_parameter_loop_iteration_task_spec

    def create(original_task_spec: Any, loop_item: Any, loop_task_name: str) -> Any:
        iteration = original_create(original_task_spec, loop_item, loop_task_name)
        for name, parameter in original_task_spec.inputs.parameters.items():
            if parameter.HasField("task_output_parameter"):
                iteration.inputs.parameters[name].CopyFrom(parameter)
        return iteration

    task_spec_utils.create_parameter_loop_iteration_task_spec = create
    logging_utils.indented_print = contextlib.nullcontext
    try:
        yield
    finally:
        logging_utils.indented_print = original_indent
        task_spec_utils.create_parameter_loop_iteration_task_spec = original_create


@contextlib.contextmanager
def fixed_commands() -> Iterator[None]:
    """Let a step run in a process that ends with this one; arguments may hold any text.

    1. A step survives this process. With the fix the step's process watches this one. Where kfp
       starts the step below a shell, the shell becomes the step's process.
    2. `replace_python_executable` also replaces `python3` in arguments, such as paths.
    3. Texts in arguments that look like placeholders are replaced. With the fix `masked` arguments
       reach the step as they are.
    """
    from kfp.local import placeholder_utils, subprocess_task_handler

    original_replace = subprocess_task_handler.replace_python_executable
    original_resolve = placeholder_utils.resolve_individual_placeholder
    original_self = placeholder_utils.resolve_self_references_in_executor_input

    def replace(command: list[str], executable: str) -> list[str]:
        return _watched(command, executable)

    def resolve(element: str, executor_input_dict: dict[str, Any], **names: Any) -> Any:
        if element == "{{$}}":
            return json.dumps(executor_input_dict)
        return original_resolve(element, executor_input_dict=executor_input_dict, **names)

    def resolve_self(**names: Any) -> dict[str, Any]:
        resolved: dict[str, Any] = original_self(**names)
        parameters = resolved.get("inputs", {}).get("parameterValues", {})
        for name, value in parameters.items():
            parameters[name] = _replaced(value, MASK, PLACEHOLDER)
        return resolved

    subprocess_task_handler.replace_python_executable = replace
    placeholder_utils.resolve_individual_placeholder = resolve
    placeholder_utils.resolve_self_references_in_executor_input = resolve_self
    try:
        yield
    finally:
        subprocess_task_handler.replace_python_executable = original_replace
        placeholder_utils.resolve_individual_placeholder = original_resolve
        placeholder_utils.resolve_self_references_in_executor_input = original_self


@contextlib.contextmanager
def quick_settings() -> Iterator[None]:
    """Set a property of a task without a look at the source of all callers.

    For the text of an error that it seldom raises, kfp reads the whole stack for each setting. In a
    process that has loaded many modules, that makes a compilation many times slower.
    """
    from kfp.dsl import PipelineTask

    original = PipelineTask._ensure_container_spec_exists

    def check(task: PipelineTask) -> None:
        if task.container_spec is None:
            original(task)

    PipelineTask._ensure_container_spec_exists = check
    try:
        yield
    finally:
        PipelineTask._ensure_container_spec_exists = original


def masked(arguments: Any) -> Any:
    """Return arguments of a pipeline in which kfp finds no placeholder; see `fixed_commands`."""
    return _replaced(arguments, PLACEHOLDER, MASK)


def _replaced(value: Any, old: str, new: str) -> Any:
    """Return a JSON value with a text replaced in all its strings."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {key: _replaced(entry, old, new) for key, entry in value.items()}
    if isinstance(value, list):
        return [_replaced(entry, old, new) for entry in value]
    return value


def _watched(command: list[str], executable: str) -> list[str]:
    """Return the command of a step, its Python process replaced by one that ends with us."""
    watcher = [executable, "-m", "longrec.child", str(os.getpid()), "-m"]
    length = len(STEP_COMMAND)
    if command[:length] == STEP_COMMAND:
        return [*watcher, STEP_COMMAND[-1], *command[length:]]
    launcher = shlex.join([*watcher, "kfp.dsl.executor_main"])
    shell = f"export _KFP_RUNTIME=true; exec {launcher}"
    return [part.replace(SOURCE_COMMAND, shell) for part in command]
