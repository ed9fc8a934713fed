"""The steps of the pipeline: typed artifacts in, one call of longrec, artifacts out.

`component` is `kfp.dsl.component` with the image of all steps. KFP embeds the source of a decorated function, so a body
sees nothing of its module: everything that it uses is imported inside it. `from __future__ import annotations` and
`X | None` do not compile in these files.
"""

import functools
import os

from kfp import dsl

IMAGE = os.environ.get("LONGREC_IMAGE", "longrec/python-ml:0.1.0")
"""Image of every step; holds longrec, its extras, kfp and a checkout. The local runner wants `python` in the name."""

component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
