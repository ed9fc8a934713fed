"""The tune pipeline: search training settings on the same histories with Optuna.

    fingerprint --> ... --> retrieve --> check-histories, as in training
    for some trials each: tune --> choose;   in any case: finish

`python -m pipelines.tune` writes pipelines/compiled/tune.yaml.
"""

import sys
from pathlib import Path
from typing import Any, Optional

from kfp import dsl

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # `kfp dsl compile --py` puts this folder on the path, not the root.
    sys.path.insert(0, str(ROOT))

from components.choose import choose  # noqa: E402
from components.tune import tune  # noqa: E402
from pipelines.compiler import compile_all  # noqa: E402
from pipelines.platform_config import PlatformConfig  # noqa: E402
from pipelines.stages import (  # noqa: E402
    checked_histories,
    exit_step,
    fingerprints,
    published_features,
)
from pipelines.task_settings import configure, default_workdir, parallelism, pipeline_config  # noqa: E402

NAME = "longrec-tune"


def make(platform: Optional[PlatformConfig]) -> Any:
    """Return the pipeline for a platform; None for one machine."""
    workdir_path = default_workdir(platform)

    @dsl.pipeline(
        name=NAME,
        description="A search of training settings, judged on validation requests.",
        pipeline_config=pipeline_config(platform),
    )
    def tune_pipeline(
        data_uri: str,
        shards: list = ["1/1"],
        trials: int = 20,
        shares: list = ["1/4", "2/4", "3/4", "4/4"],
        workers: int = 1,
        space: dict = {},
        run_id: str = "",
        workdir: str = workdir_path,
        repo_dir: str = "/opt/longrec/feature_repo",
        webhook: str = "",
        seed: int = 0,
        data: dict = {},
        checks: dict = {},
        model: dict = {},
        lengths: dict = {},
        train: dict = {},
        evaluate: dict = {},
        gate: dict = {},
    ):
        """Search training settings.

        Args:
            data_uri: the dataset (`longrec import`, `longrec synth`): a directory, or its address
                in an object store (s3://, gs://).
            shards: items of a loop over the shards of the dataset's users, for example ["1/2",
                "2/2"], or ["1-4/8", "5-8/8"] with four shards in an item (`data.shards: 8`).
            trials: number of trials of the search, pruned ones included.
            shares: items of a loop over equal shares of the trials, for example ["1/2", "2/2"].
            workers: processes of a share; on a GPU they share it.
            space: searched keys with choices or ranges (longrec.study.search_space); empty for
                those of the model's kind.
            run_id: names the run in its outcome.
            workdir: work directory with the feature store and the journals of searches.
            repo_dir: directory of the feature repository in the image.
            webhook: http(s) address that receives the outcome; empty for the platform's secret,
                or for none.
            seed: seeds the sample of requests, the trainings and the suggestions.
            data, checks, model, lengths, train, evaluate, gate: sections of the configuration that
                every trial starts from (longrec.config); missing keys have their defaults.
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
            with dsl.ParallelFor(shares, name="shares of trials", parallelism=limit) as item:
                searched = tune(
                    histories=histories,
                    histories_report=report,
                    data_key=keys["data"],
                    published=published,
                    code_key=keys["study"],
                    workdir=workdir,
                    share=item,
                    trials=trials,
                    workers=workers,
                    space=space,
                    seed=seed,
                    data=data,
                    checks=checks,
                    model=model,
                    lengths=lengths,
                    training=train,
                    evaluation=evaluate,
                    gate=gate,
                )
                configure(searched, platform)
            chosen = choose(
                searches=dsl.Collected(searched.outputs["search"]),
                code_key=keys["study"],
            )
            configure(chosen, platform)

    return tune_pipeline


tune_pipeline = make(PlatformConfig())

if __name__ == "__main__":
    compile_all(["tune"])
