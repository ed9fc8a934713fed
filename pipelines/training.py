"""The training pipeline: from a dataset to a checked, trained, evaluated and packaged ranker.

    fingerprint         keys of data and code, for all steps
    check-events        the dataset, shard by shard
    build-features      in a loop over the shards; needs the key that check-events returns
    join-features       reads the features of all shards
    publish             reads the joined features
    retrieve            the histories, shard by shard; needs the digest of the published features
    check-histories     reads the histories
    train               reads the histories; needs the report of check-histories
    evaluate            reads the bundle and the histories
    package             if the gate passed
    register            adds the packaged bento to the model store and the registry
    refuse              if the gate refused: sends the bounds that were missed
    finish              in any case, at the end

`python -m pipelines.training` writes pipelines/compiled/training.yaml.
"""

import functools
import sys
from pathlib import Path
from typing import Any, Optional

from kfp import dsl

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # `kfp dsl compile --py` puts this folder on the path, not the root.
    sys.path.insert(0, str(ROOT))

from components.evaluate import evaluate as evaluate_ranker  # noqa: E402
from components.package import package  # noqa: E402
from components.refuse import refuse  # noqa: E402
from components.register import register  # noqa: E402
from components.train import train as train_ranker  # noqa: E402
from components.train_job import train_job  # noqa: E402
from longrec.config import to_dict  # noqa: E402
from pipelines.compiler import compile_all  # noqa: E402
from pipelines.platform_config import PlatformConfig  # noqa: E402
from pipelines.stages import (  # noqa: E402
    checked_histories,
    exit_step,
    fingerprints,
    published_features,
)
from pipelines.task_settings import configure, default_workdir, pipeline_config  # noqa: E402

NAME = "longrec-training"


def make(platform: Optional[PlatformConfig]) -> Any:
    """Return the pipeline for a platform; None for one machine."""
    workdir_path = default_workdir(platform)

    @dsl.pipeline(
        name=NAME,
        description="From a dataset to a checked, trained, evaluated and packaged ranker.",
        pipeline_config=pipeline_config(platform),
    )
    def training(
        data_uri: str,
        shards: list = ["1/1"],
        run_id: str = "",
        workdir: str = workdir_path,
        repo_dir: str = "/opt/longrec/feature_repo",
        webhook: str = "",
        seed: int = 0,
        served_lengths: list = [500, 1_000, 2_000, 5_000, 10_000],
        data: dict = {},
        checks: dict = {},
        model: dict = {},
        lengths: dict = {},
        train: dict = {},
        evaluate: dict = {},
        gate: dict = {},
    ):
        """Train and package a ranker.

        Args:
            data_uri: the dataset (`longrec import`, `longrec synth`): a directory, or its address
                in an object store (s3://, gs://).
            shards: items of a loop over the shards of the dataset's users, for example ["1/2",
                "2/2"], or ["1-4/8", "5-8/8"] with four shards in an item (`data.shards: 8`).
            run_id: names the run in its outcome.
            workdir: work directory with the feature store (a volume that serving mounts too).
            repo_dir: directory of the feature repository in the image.
            webhook: http(s) address that receives the outcome; empty for the platform's secret,
                or for none.
            seed: seeds everything random.
            served_lengths: history lengths that the service may have; validation requests choose
                one, which evaluation and package follow.
            data, checks, model, lengths, train, evaluate, gate: sections of the configuration
                (longrec.config); missing keys have their defaults.
        """
        last = exit_step(platform, pipeline=NAME, run_id=run_id, data_uri=data_uri, webhook=webhook)
        with dsl.ExitHandler(last, name="run"):
            keys = fingerprints(
                platform, data_uri=data_uri, workdir=workdir, repo_dir=repo_dir, gate=gate
            )
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
            train_component = _train_component(
                platform, checkpoint_dir=f"{workdir}/checkpoints", log_dir=f"{workdir}/tensorboard"
            )
            trained = train_component(
                histories=histories,
                histories_report=report,
                code_key=keys["train"],
                model=model,
                lengths=lengths,
                training=train,
                served_lengths=served_lengths,
                seed=seed,
            )
            configure(trained, platform)
            bundle = trained.outputs["bundle"]
            evaluated = evaluate_ranker(
                bundle=bundle,
                histories=histories,
                code_key=keys["evaluate"],
                champion=keys["champion"],
                workdir=workdir,
                evaluation_config=evaluate,
                gate=gate,
                seed=seed,
            )
            configure(evaluated, platform)
            has_passed = evaluated.outputs["Output"] == True  # noqa: E712  (kfp overloads ==)
            with dsl.If(has_passed, name="gate passed"):
                packaged = package(
                    bundle=bundle,
                    evaluation=evaluated.outputs["evaluation"],
                    histories=histories,
                    code_key=keys["package"],
                    gate=gate,
                    version="",
                    workdir=workdir,
                    repo_dir=repo_dir,
                    seed=seed,
                )
                configure(packaged, platform)
                registered = register(
                    bento=packaged.outputs["bento"],
                    evaluation=evaluated.outputs["evaluation"],
                    workdir=workdir,
                    repo_dir=repo_dir,
                )
                configure(registered, platform)
            has_failed = evaluated.outputs["Output"] == False  # noqa: E712
            with dsl.If(has_failed, name="gate refused"):
                refused = refuse(
                    evaluation=evaluated.outputs["evaluation"],
                    pipeline=NAME,
                    run_id=run_id,
                    data_uri=data_uri,
                    webhook=webhook,
                )
                configure(refused, platform)

    return training


def _train_component(platform: Optional[PlatformConfig], **folders: Any) -> Any:
    """Return the component that trains: in its own pod, or by a TrainJob of Kubeflow Trainer."""
    if platform is not None and platform.trainer.engine == "kubeflow":
        return functools.partial(train_job, platform=to_dict(platform))
    return functools.partial(train_ranker, **folders)


training = make(PlatformConfig())

if __name__ == "__main__":
    compile_all(["training"])
