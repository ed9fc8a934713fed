"""The study pipeline: train a grid of models on the same histories and compare them.

    fingerprint --> ... --> retrieve --> check-histories, as in training
    plan --(trials)--> for some trials each: trial --> collect;   in any case: finish

`python -m pipelines.study` writes pipelines/compiled/study.yaml.
"""

import sys
from pathlib import Path
from typing import Any, Optional

from kfp import dsl

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # `kfp dsl compile --py` puts this folder on the path, not the root.
    sys.path.insert(0, str(ROOT))

from components.collect import collect  # noqa: E402
from components.plan import plan  # noqa: E402
from components.trial import trial  # noqa: E402
from pipelines.compiler import compile_all  # noqa: E402
from pipelines.platform_config import PlatformConfig  # noqa: E402
from pipelines.stages import (  # noqa: E402
    checked_histories,
    exit_step,
    fingerprints,
    published_features,
)
from pipelines.task_settings import configure, default_workdir, parallelism, pipeline_config  # noqa: E402

NAME = "longrec-study"


def make(platform: Optional[PlatformConfig]) -> Any:
    """Return the pipeline for a platform; None for one machine."""
    workdir_path = default_workdir(platform)

    @dsl.pipeline(
        name=NAME,
        description="A grid of trainings on the same histories, compared on the same requests.",
        pipeline_config=pipeline_config(platform),
    )
    def study_pipeline(
        data_uri: str,
        study: str,
        shards: list = ["1/1"],
        run_id: str = "",
        workdir: str = workdir_path,
        repo_dir: str = "/opt/longrec/feature_repo",
        webhook: str = "",
        seed: int = 0,
        data: dict = {},
        checks: dict = {},
    ):
        """Compare a grid of trainings.

        Args:
            data_uri: the dataset (`longrec import`, `longrec synth`): a directory, or its address
                in an object store (s3://, gs://).
            study: the study as YAML text with its whole base (`longrec.study.config.parse`).
            shards: items of a loop over the shards of the dataset's users, for example ["1/2",
                "2/2"], or ["1-4/8", "5-8/8"] with four shards in an item (`data.shards: 8`).
            run_id: names the run in its outcome.
            workdir: work directory with the feature store (a volume that serving mounts too).
            repo_dir: directory of the feature repository in the image.
            webhook: http(s) address that receives the outcome; empty for the platform's secret,
                or for none.
            seed: seed of the sample of requests.
            data, checks: sections of the configuration (longrec.config); missing keys have their
                defaults.
        """
        last = exit_step(platform, pipeline=NAME, run_id=run_id, data_uri=data_uri, webhook=webhook)
        with dsl.ExitHandler(last, name="run"):
            keys = fingerprints(platform, data_uri=data_uri, workdir=workdir, repo_dir=repo_dir)
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
                data=data,
                checks=checks,
                seed=seed,
            )
            limit = parallelism(platform)
            planned = plan(study=study, code_key=keys["study"], max_items=limit)
            configure(planned, platform)
            with dsl.ParallelFor(planned.output, name="trials", parallelism=limit) as item:
                measured = trial(
                    histories=histories,
                    histories_report=report,
                    code_key=keys["study"],
                    trials=item,
                )
                configure(measured, platform)
            compared = collect(
                results=dsl.Collected(measured.outputs["result"]),
                study=study,
                code_key=keys["study"],
            )
            configure(compared, platform)

    return study_pipeline


study_pipeline = make(PlatformConfig())

if __name__ == "__main__":
    compile_all(["study"])
