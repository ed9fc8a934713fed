"""The study pipeline: one dataset, one set of histories, a grid of trainings side by side, one
comparison.

    fingerprint --> ... --> join-histories --> check-histories, as in training
    plan --(cells)--> for each: trial --> collect;   whatever happens: finish

`python -m pipelines.study` writes pipelines/compiled/study.yaml.
"""

import sys
from pathlib import Path
from typing import Any, Optional

from kfp import dsl

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # `kfp dsl compile --py` puts this folder on the path, not the root
    sys.path.insert(0, str(ROOT))

from components.collect import collect  # noqa: E402
from components.fingerprint import fingerprint  # noqa: E402
from components.finish import finish  # noqa: E402
from components.plan import plan  # noqa: E402
from components.trial import trial  # noqa: E402
from longrec.config import PlatformConfig  # noqa: E402
from pipelines.compiler import compile_all  # noqa: E402
from pipelines.platform import parallelism, place  # noqa: E402
from pipelines.stages import checked_histories, published_features  # noqa: E402

NAME = "longrec-study"


def make(platform: Optional[PlatformConfig]) -> Any:
    """Returns the pipeline as a platform runs it; None for one machine, which ignores what only a
    cluster has.
    """
    home_path = (platform or PlatformConfig()).workdir

    @dsl.pipeline(
        name=NAME,
        description="A grid of trainings on the same histories, compared on the same requests.",
    )
    def study(
        data_uri: str,
        study: str,
        shards: list = ["1/1"],
        run_id: str = "",
        workdir: str = home_path,
        repo_dir: str = "/opt/longrec/feature_repo",
        webhook: str = "",
        seed: int = 0,
        data: dict = {},
        checks: dict = {},
    ):
        """Compares a grid of trainings.

        Args:
            data_uri: the dataset (`longrec import`, `longrec synth`): a directory, or its address
                in an object store (s3://, gs://).
            study: the study as YAML text, its base written out (`longrec.study.runner.parse`).
            shards: of the dataset's users, each built, checked and retrieved on its own: for
                example ["1/2", "2/2"] (`data.shards: 2`).
            run_id: names the run in its outcome.
            workdir: directory of the feature store (a volume that serving mounts too).
            repo_dir: directory of the feature repository in the image.
            webhook: http(s) address that is told how the run ended; empty for the platform's
                secret, or for none.
            seed: of the sample of requests.
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
            published = published_features(
                keys,
                platform,
                data_uri=data_uri,
                shards=shards,
                workdir=workdir,
                repo_dir=repo_dir,
                data=data,
                checks=checks,
            )
            histories, report = checked_histories(
                keys,
                platform,
                published=published,
                data_uri=data_uri,
                shards=shards,
                workdir=workdir,
                repo_dir=repo_dir,
                data=data,
                checks=checks,
                seed=seed,
            )
            planned = place(plan(study=study, code_key=keys["study"]), "plan", platform)
            with dsl.ParallelFor(
                planned.output, name="trials", parallelism=parallelism(platform)
            ) as item:
                tried = trial(
                    histories=histories, histories_report=report, code_key=keys["study"], trial=item
                )
                place(tried, "trial", platform)
            compared = collect(
                results=dsl.Collected(tried.outputs["result"]), study=study, code_key=keys["study"]
            )
            place(compared, "collect", platform)

    return study


study = make(PlatformConfig())

if __name__ == "__main__":
    compile_all(["study"])
