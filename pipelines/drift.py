"""The drift pipeline: compare recently answered requests with the evaluation of their model.

    drift;   in any case: finish

It reads the work directory only: the request log, the published features, the registry and the
BentoML store. `python -m pipelines.drift` writes pipelines/compiled/drift.yaml.
"""

import sys
from pathlib import Path
from typing import Any, Optional

from kfp import dsl

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # `kfp dsl compile --py` puts this folder on the path, not the root.
    sys.path.insert(0, str(ROOT))

from components.drift import drift as check_drift  # noqa: E402
from pipelines.compiler import compile_all  # noqa: E402
from pipelines.platform_config import PlatformConfig  # noqa: E402
from pipelines.stages import exit_step  # noqa: E402
from pipelines.task_settings import configure, default_workdir, pipeline_config  # noqa: E402

NAME = "longrec-drift"


def make(platform: Optional[PlatformConfig]) -> Any:
    """Return the pipeline for a platform; None for one machine."""
    workdir_path = default_workdir(platform)

    @dsl.pipeline(
        name=NAME,
        description="From the log of answered requests to a verdict on their drift.",
        pipeline_config=pipeline_config(platform),
    )
    def drift_pipeline(
        run_id: str = "",
        workdir: str = workdir_path,
        repo_dir: str = "/opt/longrec/feature_repo",
        webhook: str = "",
        drift: dict = {},
    ):
        """Compare live requests with the evaluation of the model that answered them.

        Args:
            run_id: names the run in its outcome.
            workdir: work directory with the feature store (a volume that serving mounts too).
            repo_dir: unused; every pipeline has this parameter.
            webhook: http(s) address that receives the outcome; empty for the platform's secret,
                or for none.
            drift: section of the configuration (longrec.config); missing keys have their defaults.
        """
        last = exit_step(platform, pipeline=NAME, run_id=run_id, data_uri="", webhook=webhook)
        with dsl.ExitHandler(last, name="run"):
            configure(check_drift(drift_config=drift, workdir=workdir), platform)

    return drift_pipeline


drift_pipeline = make(PlatformConfig())

if __name__ == "__main__":
    compile_all(["drift"])
