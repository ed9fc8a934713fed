"""Fixes for two faults of loops in the local runner of kfp 2.17."""

import contextlib
from collections.abc import Iterator
from typing import Any


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
