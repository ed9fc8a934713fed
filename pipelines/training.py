"""The training pipeline: dataset -> features -> feature store -> histories -> bundle -> evaluation -> (gate) -> bento.

    fingerprint --(data, code)--> all
    for each shard: profile-events --> check-events --(report)--> for each shard: build-features --> join-features --> publish
    publish --> for each shard: retrieve, profile-histories --> join-histories --> check-histories
                                                                    \\              |(report)
                                                                     \\---------> train --> evaluate --(passed?)--> package
    whatever happens: finish

The arrows are artifacts and values: the feature build needs the report of the passed checks of the events, training that of the
histories, retrieval the digest of what was published. `python -m pipelines.training` writes pipelines/compiled/training.yaml.
"""

import functools
import sys
from pathlib import Path
from typing import Any, Optional, Tuple

from kfp import dsl

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # `kfp dsl compile --py` puts this folder on the path, not the root
    sys.path.insert(0, str(ROOT))

from components.evaluate import evaluate as evaluate_ranker  # noqa: E402
from components.fingerprint import fingerprint  # noqa: E402
from components.finish import finish  # noqa: E402
from components.package import package  # noqa: E402
from components.train import train as train_ranker  # noqa: E402
from components.train_job import train_job  # noqa: E402
from longrec.config import PlatformConfig, plain  # noqa: E402
from pipelines.compiler import compile_all  # noqa: E402
from pipelines.platform import place  # noqa: E402
from pipelines.stages import checked_histories, published_features  # noqa: E402

NAME = "longrec-training"


def make(platform: Optional[PlatformConfig]) -> Any:
    """Returns the pipeline as a platform runs it; None for one machine, which ignores what only a
    cluster has.
    """
    home_path = (platform or PlatformConfig()).workdir

    @dsl.pipeline(
        name=NAME,
        description="From a dataset to a checked, trained, evaluated and packaged ranker.",
    )
    def training(
        data_uri: str,
        shards: list = ["1/1"],
        run_id: str = "",
        workdir: str = home_path,
        repo_dir: str = "/opt/longrec/feature_repo",
        webhook: str = "",
        seed: int = 0,
        served_length: int = 10_000,
        data: dict = {},
        checks: dict = {},
        model: dict = {},
        lengths: dict = {},
        train: dict = {},
        evaluate: dict = {},
        gate: dict = {},
    ):
        """Trains and packages a ranker.

        Args:
            data_uri: the dataset (`longrec import`, `longrec synth`): a directory, or its address
                in an object store (s3://, gs://).
            shards: of the dataset's users, each built, checked and retrieved on its own: for
                example ["1/2", "2/2"] (`data.shards: 2`).
            run_id: names the run in its outcome.
            workdir: directory of the feature store (a volume that serving mounts too).
            repo_dir: directory of the feature repository in the image.
            webhook: http(s) address that is told how the run ended; empty for the platform's
                secret, or for none.
            seed: seeds everything that is random.
            served_length: the history length that ships; metrics and gate are taken at it.
            data, checks, model, lengths, train, evaluate, gate: the sections of the configuration
                (longrec.config); keys that
                are left out keep their defaults.
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
                    gate=gate,
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
            step, trainer = _trainer(
                platform, checkpoint_dir=f"{workdir}/checkpoints", log_dir=f"{workdir}/tensorboard"
            )
            trained = trainer(
                histories=histories,
                histories_report=report,
                code_key=keys["train"],
                model=model,
                lengths=lengths,
                training=train,
                served_length=served_length,
                seed=seed,
            )
            bundle = place(trained, step, platform).outputs["bundle"]
            evaluated = evaluate_ranker(
                bundle=bundle,
                histories=histories,
                code_key=keys["evaluate"],
                champion=keys["champion"],
                workdir=workdir,
                evaluation_config=evaluate,
                gate=gate,
                served_length=served_length,
                seed=seed,
            )
            place(evaluated, "evaluate", platform)
            with dsl.If(evaluated.outputs["Output"] == True, name="gate passed"):  # noqa: E712  (kfp overloads ==)
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
                place(packaged, "package", platform)

    return training


def _trainer(platform: Optional[PlatformConfig], **folders: Any) -> Tuple[str, Any]:
    """Returns the step that trains and its component: in its own pod, or by a TrainJob on the nodes
    that the platform names.
    """
    if platform is not None and platform.trainer.engine == "kubeflow":
        return "train-job", functools.partial(train_job, platform=plain(platform))
    return "train", functools.partial(train_ranker, **folders)


training = make(PlatformConfig())

if __name__ == "__main__":
    compile_all(["training"])
