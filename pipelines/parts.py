"""Parts of a graph that several pipelines have."""

from typing import Any, Optional, Tuple

from components.build_features import build_features
from components.check_events import check_events
from components.check_histories import check_histories
from components.publish import publish
from components.retrieve import retrieve
from longrec.config import PlatformConfig
from pipelines.platform import place


def published_features(
    keys: Any, platform: Optional[PlatformConfig], *, data_uri: Any, home: Any, repo_dir: Any, data: Any, checks: Any
) -> Any:
    """Returns the digest of what the feature store holds after checking the events and building and publishing their features.

    Args:
        keys: outputs of the step fingerprint.
        platform: see `platform.place`.
        data_uri, home, repo_dir, data, checks: parameters of the pipeline.
    """
    checked = check_events(
        data_uri=data_uri, data_key=keys["data"], before_key=keys["before"], code_key=keys["check_events"], checks=checks, home=home
    )
    place(checked, "check-events", platform)
    built = build_features(
        data_uri=data_uri, data_key=keys["data"], code_key=keys["build_features"], events_report=checked.outputs["report"], data=data
    )
    place(built, "build-features", platform)
    published = publish(features=built.outputs["features"], code_key=keys["publish"], home=home, repo_dir=repo_dir)
    return place(published, "publish", platform).outputs["Output"]


def checked_histories(
    keys: Any, platform: Optional[PlatformConfig], *, published: Any, data_uri: Any, home: Any, repo_dir: Any, data: Any, checks: Any,
    seed: Any,
) -> Tuple[Any, Any]:
    """Returns the histories of a dataset's requests and the report of their checks.

    Args:
        keys, platform, data_uri, home, repo_dir, data, checks: as of `published_features`.
        published: what it returned.
        seed: of the sample of requests.
    """
    retrieved = retrieve(
        data_uri=data_uri, data_key=keys["data"], code_key=keys["retrieve"], published=published, home=home, repo_dir=repo_dir, data=data,
        seed=seed,
    )
    histories = place(retrieved, "retrieve", platform).outputs["histories"]
    checked = check_histories(histories=histories, code_key=keys["check_histories"], checks=checks)
    return histories, place(checked, "check-histories", platform).outputs["report"]
