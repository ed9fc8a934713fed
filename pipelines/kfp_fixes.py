"""Fixes for two faults of loops in the local runner of kfp 2.17."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def fixed_loops() -> Iterator[None]:
    """Apply both fixes inside the context.

    kfp replaces every output of an earlier step by the loop's item, even keys of the cache. And it
    indents the output of steps by replacing `print`; threads of a loop restore it in the wrong
    order. With the fix nothing is indented.
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
