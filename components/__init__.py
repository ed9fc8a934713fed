"""The steps of the pipeline: typed artifacts in, one call of longrec, artifacts out.

`component` is `kfp.dsl.component` with the default image of all steps. KFP embeds the source of a
decorated function, so a body
sees nothing of its module: everything that it uses is imported inside it. `from __future__ import
annotations` and
`X | None` do not compile in these files.

`data_key` and `code_key` are inputs that no body reads: the fingerprints of the dataset and of the
step's code (step `fingerprint`),
by which a cache knows that a result is of other data or of other code.
"""

import functools

from kfp import dsl

IMAGE = "longrec/python-ml:0.1.0"
"""Image where the platform names no other; holds longrec, its extras, kfp and a checkout. The local
runner wants `python` in the name.
"""

component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
