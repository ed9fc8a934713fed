"""Pipeline steps: typed artifacts in, one call of longrec, artifacts out.

`component` makes a KFP component of a function in a file of its name. Its container holds no source
text: `longrec.step` imports the file in the image. A body imports longrec itself, so that compiling
loads none of it. In these files, KFP does not compile `from __future__ import annotations` and
`X | None`.

Most bodies do not read their parameters `data_key`, `before_key` and `code_key`: the fingerprints
of the dataset, of the published dataset and of the step's code (step `fingerprint`). The cache of
results is keyed by them. A report among the inputs makes a step wait for the checks.
"""

import os
from collections.abc import Callable
from typing import Any

IMAGE = "longrec/python-ml:0.1.0"
"""Default image: longrec, its extras, kfp and a checkout.

kfp's local runner requires `python` in the name.
"""
COMMAND = ["python3", "-m", "longrec.step", "kfp.dsl.executor_main"]
"""Command of a step; kfp's local runner looks for the name of its executor in it."""
RUNTIME_VARIABLE = "_KFP_RUNTIME"
"""Variable of kfp: `true` in the process of a step, where kfp loads no compiler."""


def component(function: Callable[..., Any]) -> Any:
    """Return the component of a step's function; inside a step, the function itself."""
    if os.environ.get(RUNTIME_VARIABLE) == "true":
        return function
    from kfp import dsl

    made = dsl.component(function, base_image=IMAGE, install_kfp_package=False)
    container = made.component_spec.implementation.container
    container.command = COMMAND
    container.args = ["--executor_input", "{{$}}", "--function_to_execute", function.__name__]
    return made
