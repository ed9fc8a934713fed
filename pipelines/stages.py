"""Stages that several graphs share: features, histories, and the exit step.

A stage loops over the shards of the dataset; one more step joins their results.
"""

from typing import Any, Optional, Tuple

from kfp import dsl

from components.build_features import build_features
from components.check_events import check_events
from components.check_histories import check_histories
from components.fingerprint import fingerprint
from components.finish import finish
from components.join_features import join_features
from components.join_histories import join_histories
from components.profile_events import profile_events
from components.profile_histories import profile_histories
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
    limit = parallelism(platform)
    with dsl.ParallelFor(shards, name="shards of events", parallelism=limit) as shard:
        profiled = profile_events(
            data_uri=data_uri,
            data_key=keys["data"],
            before_key=keys["before"],
            code_key=keys["profile_events"],
            shard=shard,
            workdir=workdir,
        )
        configure(profiled, platform)
    checked = check_events(
        profiles=dsl.Collected(profiled.outputs["profile"]),
        before_key=keys["before"],
        code_key=keys["check_events"],
        checks=checks,
        workdir=workdir,
    )
    configure(checked, platform)
    with dsl.ParallelFor(shards, name="shards of features", parallelism=limit) as shard:
        built = build_features(
            data_uri=data_uri,
            data_key=keys["data"],
            code_key=keys["build_features"],
            shard=shard,
            events_report=checked.outputs["report"],
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
    repo_dir: Any,
    data: Any,
    checks: Any,
    seed: Any,
) -> Tuple[Any, Any]:
    """Retrieve and check the histories of a dataset's requests; return them and the report.

    Args:
        keys, platform, data_uri, shards, workdir, repo_dir, data, checks: see
            `published_features`.
        published: result of `published_features`.
        seed: seed of the sample of requests.
    """
    limit = parallelism(platform)
    with dsl.ParallelFor(shards, name="shards of histories", parallelism=limit) as shard:
        retrieved = retrieve(
            data_uri=data_uri,
            data_key=keys["data"],
            code_key=keys["retrieve"],
            shard=shard,
            published=published,
            workdir=workdir,
            repo_dir=repo_dir,
            data=data,
            seed=seed,
        )
        configure(retrieved, platform)
        part = retrieved.outputs["histories"]
        profiled = profile_histories(histories=part, code_key=keys["profile_histories"])
        configure(profiled, platform)
    joined = join_histories(
        shards=dsl.Collected(part),
        code_key=keys["join_histories"],
        published=published,
        data=data,
        seed=seed,
    )
    configure(joined, platform)
    histories = joined.outputs["histories"]
    checked = check_histories(
        histories=histories,
        profiles=dsl.Collected(profiled.outputs["profile"]),
        code_key=keys["check_histories"],
        checks=checks,
    )
    configure(checked, platform)
    return histories, checked.outputs["report"]
