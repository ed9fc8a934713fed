"""The refresh pipeline: new events -> checks -> features -> feature store, so that serving sees them; the model stays.

    fingerprint --(data, code)--> for each shard: profile-events --> check-events --(report)--> for each shard: build-features
    --> join-features --> publish;   whatever happens: finish

`python -m pipelines.refresh` writes pipelines/compiled/refresh.yaml.
"""

import sys
from pathlib import Path
from typing import Any, Optional

from kfp import dsl

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # `kfp dsl compile --py` puts this folder on the path, not the root
    sys.path.insert(0, str(ROOT))

from components.fingerprint import fingerprint  # noqa: E402
from components.finish import finish  # noqa: E402
from longrec.config import PlatformConfig  # noqa: E402
from pipelines.compiler import compile_all  # noqa: E402
from pipelines.platform import place  # noqa: E402
from pipelines.stages import published_features  # noqa: E402

NAME = "longrec-refresh"


def make(platform: Optional[PlatformConfig]) -> Any:
    """Returns the pipeline as a platform runs it; None for one machine, which ignores what only a
    cluster has.
    """
    home_path = (platform or PlatformConfig()).workdir

    @dsl.pipeline(name=NAME, description="From new events to the feature store that serving reads.")
    def refresh(
        data_uri: str,
        shards: list = ["1/1"],
        run_id: str = "",
        workdir: str = home_path,
        repo_dir: str = "/opt/longrec/feature_repo",
        webhook: str = "",
        data: dict = {},
        checks: dict = {},
    ):
        """Publishes the features of a dataset.

        Args:
            data_uri: the dataset with the new events: a directory, or its address in an object
                store (s3://, gs://).
            shards: of the dataset's users, each built, checked and retrieved on its own: for
                example ["1/2", "2/2"] (`data.shards: 2`).
            run_id: names the run in its outcome.
            workdir: directory of the feature store (a volume that serving mounts too).
            repo_dir: directory of the feature repository in the image.
            webhook: http(s) address that is told how the run ended; empty for the platform's
                secret, or for none.
            data, checks: the sections of the configuration (longrec.config); keys that are left out
                keep their defaults.
        """
        last = finish(
            pipeline=NAME,
            run_id=run_id,
            job_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            data_uri=data_uri,
            webhook=webhook,
        )
        with dsl.ExitHandler(place(last, "finish", platform), name="run"):
            keys = place(
                fingerprint(
                    data_uri=data_uri,
                    workdir=workdir,
                    repo_dir=repo_dir,
                ),
                "fingerprint",
                platform,
            ).outputs
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
