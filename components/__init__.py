"""Pipeline steps: typed artifacts in, one call of longrec, artifacts out.

`component` is `kfp.dsl.component` with the default image of all steps. KFP embeds the source of a
decorated function, so its body sees nothing of its module and imports all that it uses. In these
files, KFP does not compile `from __future__ import annotations` and `X | None`.

Most bodies do not read their parameters `data_key`, `before_key` and `code_key`: the fingerprints
of the dataset, of the published dataset and of the step's code (step `fingerprint`). The cache of
results is keyed by them. A report among the inputs makes a step wait for the checks.
"""

import functools

from kfp import dsl

IMAGE = "longrec/python-ml:0.1.0"
"""Default image: longrec, its extras, kfp and a checkout.

kfp's local runner requires `python` in the name.
"""

component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
