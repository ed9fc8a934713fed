"""Parts of a graph that several pipelines have: a loop over the shards of the dataset, and a step
that joins what they made.
"""

from typing import Any, Optional, Tuple

from kfp import dsl

from components.build_features import build_features
from components.check_events import check_events
from components.check_histories import check_histories
from components.join_features import join_features
from components.join_histories import join_histories
from components.profile_events import profile_events
from components.profile_histories import profile_histories
from components.publish import publish
from components.retrieve import retrieve
from longrec.config import PlatformConfig
from pipelines.platform import parallelism, place


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
    """Returns the digest of what the feature store holds after checking the events and building and
    publishing their features.

    Args:
        keys: outputs of the step fingerprint.
        platform: see `platform.place`.
        data_uri, shards, home, repo_dir, data, checks: parameters of the pipeline.
    """
    with dsl.ParallelFor(
        shards, name="shards of events", parallelism=parallelism(platform)
    ) as shard:
        measured = profile_events(
            data_uri=data_uri,
            data_key=keys["data"],
            before_key=keys["before"],
            code_key=keys["profile_events"],
            shard=shard,
            workdir=workdir,
        )
        place(measured, "profile-events", platform)
    checked = check_events(
        profiles=dsl.Collected(measured.outputs["profile"]),
        before_key=keys["before"],
        code_key=keys["check_events"],
        checks=checks,
        workdir=workdir,
    )
    place(checked, "check-events", platform)
    with dsl.ParallelFor(
        shards, name="shards of features", parallelism=parallelism(platform)
    ) as shard:
        built = build_features(
            data_uri=data_uri,
            data_key=keys["data"],
            code_key=keys["build_features"],
            shard=shard,
            events_report=checked.outputs["report"],
            data=data,
        )
        place(built, "build-features", platform)
    joined = join_features(
        shards=dsl.Collected(built.outputs["features"]), code_key=keys["join_features"]
    )
    features = place(joined, "join-features", platform).outputs["features"]
    published = publish(
        features=features, code_key=keys["publish"], workdir=workdir, repo_dir=repo_dir
    )
    return place(published, "publish", platform).outputs["Output"]


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
    """Returns the histories of a dataset's requests and the report of their checks.

    Args:
        keys, platform, data_uri, shards, home, repo_dir, data, checks: as of `published_features`.
        published: what it returned.
        seed: of the sample of requests.
    """
    with dsl.ParallelFor(
        shards, name="shards of histories", parallelism=parallelism(platform)
    ) as shard:
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
        part = place(retrieved, "retrieve", platform).outputs["histories"]
        measured = place(
            profile_histories(histories=part, code_key=keys["profile_histories"]),
            "profile-histories",
            platform,
        )
    joined = join_histories(
        shards=dsl.Collected(part),
        code_key=keys["join_histories"],
        published=published,
        data=data,
        seed=seed,
    )
    histories = place(joined, "join-histories", platform).outputs["histories"]
    checked = check_histories(
        histories=histories,
        profiles=dsl.Collected(measured.outputs["profile"]),
        code_key=keys["check_histories"],
        checks=checks,
    )
    return histories, place(checked, "check-histories", platform).outputs["report"]
