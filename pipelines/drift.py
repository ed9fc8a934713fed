"""The drift pipeline: what the service answered lately -> compared with the evaluation of its
model; a run that fails says what moved.

    drift;   whatever happens: finish

It reads nothing but the work directory: the log of requests, the published features, the registry and the
BentoML store.
`python -m pipelines.drift` writes pipelines/compiled/drift.yaml.
"""

import sys
from pathlib import Path
from typing import Any, Optional

from kfp import dsl

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # `kfp dsl compile --py` puts this folder on the path, not the root
    sys.path.insert(0, str(ROOT))

from components.drift import drift as check_drift  # noqa: E402
from components.finish import finish  # noqa: E402
from longrec.config import PlatformConfig  # noqa: E402
from pipelines.compiler import compile_all  # noqa: E402
from pipelines.platform import place  # noqa: E402

NAME = "longrec-drift"


def make(platform: Optional[PlatformConfig]) -> Any:
    """Returns the pipeline as a platform runs it; None for one machine, which ignores what only a
    cluster has.
    """
    home_path = (platform or PlatformConfig()).workdir

    @dsl.pipeline(
        name=NAME, description="From the log of answered requests to a verdict on their drift."
    )
    def drifted(
        run_id: str = "",
        workdir: str = home_path,
        repo_dir: str = "/opt/longrec/feature_repo",
        webhook: str = "",
        drift: dict = {},
    ):
        """Compares live requests with the evaluation of the model that answered them.

        Args:
            run_id: names the run in its outcome.
            workdir: directory of the feature store (the volume that serving mounts too).
            repo_dir: as of every pipeline; nothing here reads it.
            webhook: http(s) address that is told how the run ended; empty for the platform's
                secret, or for none.
            drift: the section of the configuration (longrec.config); keys that are left out keep
                their defaults.
        """
        last = finish(
            pipeline=NAME,
            run_id=run_id,
            job_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            data_uri="",
            webhook=webhook,
        )
        with dsl.ExitHandler(place(last, "finish", platform), name="run"):
            place(check_drift(drift_config=drift, workdir=workdir), "drift", platform)

    return drifted


drifted = make(PlatformConfig())

if __name__ == "__main__":
    compile_all(["drift"])
