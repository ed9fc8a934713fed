"""The refresh pipeline: check new events and publish their features; the model stays.

    fingerprint --(data, code)--> check-events --(key)--> for some shards each: build-features -->
    join-features --> publish;   in any case: finish

`python -m pipelines.refresh` writes pipelines/compiled/refresh.yaml.
"""

import sys
from pathlib import Path
from typing import Any, Optional

from kfp import dsl

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # `kfp dsl compile --py` puts this folder on the path, not the root.
    sys.path.insert(0, str(ROOT))

from pipelines.compiler import compile_all  # noqa: E402
from pipelines.platform_config import PlatformConfig  # noqa: E402
from pipelines.stages import exit_step, fingerprints, published_features  # noqa: E402
from pipelines.task_settings import default_workdir, pipeline_config  # noqa: E402

NAME = "longrec-refresh"


def make(platform: Optional[PlatformConfig]) -> Any:
    """Return the pipeline for a platform; None for one machine."""
    workdir_path = default_workdir(platform)

    @dsl.pipeline(
        name=NAME,
        description="From new events to the feature store that serving reads.",
        pipeline_config=pipeline_config(platform),
    )
    def refresh(
        data_uri: str,
        shards: list = ["1/1"],
        run_id: str = "",
        workdir: str = workdir_path,
        repo_dir: str = "/opt/longrec/feature_repo",
        webhook: str = "",
        data: dict = {},
        checks: dict = {},
    ):
        """Publish the features of a dataset.

        Args:
            data_uri: the dataset with the new events: a directory, or its address in an object
                store (s3://, gs://).
            shards: items of a loop over the shards of the dataset's users, for example ["1/2",
                "2/2"], or ["1-4/8", "5-8/8"] with four shards in an item (`data.shards: 8`).
            run_id: names the run in its outcome.
            workdir: work directory with the feature store (a volume that serving mounts too).
            repo_dir: directory of the feature repository in the image.
            webhook: http(s) address that receives the outcome; empty for the platform's secret,
                or for none.
            data, checks: sections of the configuration (longrec.config); missing keys have their
                defaults.
        """
        last = exit_step(platform, pipeline=NAME, run_id=run_id, data_uri=data_uri, webhook=webhook)
        with dsl.ExitHandler(last, name="run"):
            keys = fingerprints(platform, data_uri=data_uri, workdir=workdir, repo_dir=repo_dir)
            published_features(
                keys,
                platform,
                data_uri=data_uri,
                shards=shards,
                workdir=workdir,
                repo_dir=repo_dir,
                data=data,
                checks=checks,
            )

    return refresh


refresh = make(PlatformConfig())

if __name__ == "__main__":
    compile_all(["refresh"])
