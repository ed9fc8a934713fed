"""Stages that several graphs share: features, histories, and the exit step.

The features are built in a loop over the shards of the dataset, several of them in one item
(`longrec.data.shards`); one more step joins them. Each loop makes a workflow larger
(`pipelines.workflow_size`), so the other steps read shard after shard.
"""

from typing import Any, Optional, Tuple

from kfp import dsl

from components.build_features import build_features
from components.check_events import check_events
from components.check_histories import check_histories
from components.fingerprint import fingerprint
from components.finish import finish
from components.join_features import join_features
from components.publish import publish
from components.retrieve import retrieve
from pipelines.platform_config import PlatformConfig
from pipelines.task_settings import configure, parallelism


def exit_step(
    platform: Optional[PlatformConfig],
    *,
    pipeline: str,
    run_id: Any,
    data_uri: Any,
    webhook: Any,
) -> Any:
    """Return the step that reports the outcome of a run, for an exit handler."""
    finished = finish(
        pipeline=pipeline,
        run_id=run_id,
        job_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        data_uri=data_uri,
        webhook=webhook,
    )
    return configure(finished, platform)


def fingerprints(platform: Optional[PlatformConfig], **parameters: Any) -> Any:
    """Return the outputs of the step fingerprint: keys of the dataset and of each step's code."""
    return configure(fingerprint(**parameters), platform).outputs


def published_features(
    keys: Any,
    platform: Optional[PlatformConfig],
    *,
    data_uri: Any,
    shards: Any,
    workdir: Any,
    repo_dir: Any,
    data: Any,
    checks: Any,
) -> Any:
    """Check the events, build and publish their features; return the digest of the feature store.

    Args:
        keys: outputs of the step fingerprint.
        platform: see `pipelines.task_settings.configure`.
        data_uri, shards, workdir, repo_dir, data, checks: parameters of the pipeline.
    """
    checked = check_events(
        data_uri=data_uri,
        data_key=keys["data"],
        before_key=keys["before"],
        code_key=keys["check_events"],
        shards=shards,
        checks=checks,
        workdir=workdir,
    )
    configure(checked, platform)
    limit = parallelism(platform)
    with dsl.ParallelFor(shards, name="shards of features", parallelism=limit) as item:
        built = build_features(
            data_uri=data_uri,
            data_key=checked.outputs["Output"],
            code_key=keys["build_features"],
            shards=item,
            data=data,
        )
        configure(built, platform)
    joined = join_features(
        shards=dsl.Collected(built.outputs["features"]), code_key=keys["join_features"]
    )
    configure(joined, platform)
    published = publish(
        features=joined.outputs["features"],
        code_key=keys["publish"],
        workdir=workdir,
        repo_dir=repo_dir,
    )
    return configure(published, platform).outputs["Output"]


def checked_histories(
    keys: Any,
    platform: Optional[PlatformConfig],
    *,
    published: Any,
    data_uri: Any,
    shards: Any,
    workdir: Any,
    data: Any,
    checks: Any,
    seed: Any,
) -> Tuple[Any, Any]:
    """Retrieve and check the histories of a dataset's requests; return them and the report.

    Args:
        keys, platform, data_uri, shards, workdir, data, checks: see `published_features`.
        published: result of `published_features`.
        seed: seed of the sample of requests.
    """
    retrieved = retrieve(
        data_uri=data_uri,
        data_key=keys["data"],
        code_key=keys["retrieve"],
        shards=shards,
        published=published,
        workdir=workdir,
        data=data,
        seed=seed,
    )
    configure(retrieved, platform)
    histories = retrieved.outputs["histories"]
    checked = check_histories(
        histories=histories,
        code_key=keys["check_histories"],
        checks=checks,
    )
    configure(checked, platform)
    return histories, checked.outputs["report"]
