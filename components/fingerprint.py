"""fingerprint: keys of the dataset and of the steps' code, for the cache of results."""

from typing import NamedTuple

from components import component


@component
def fingerprint(
    data_uri: str,
    workdir: str,
    repo_dir: str,
    gate: dict = {},
) -> NamedTuple(
    "Keys",
    data=str,
    before=str,
    champion=str,
    check_events=str,
    build_features=str,
    join_features=str,
    publish=str,
    retrieve=str,
    check_histories=str,
    train=str,
    evaluate=str,
    package=str,
    study=str,
):
    """Return the keys of the dataset, the dataset before it, the champion, and the steps' code."""
    from longrec.config import GateConfig
    from longrec.config_file import build
    from longrec.data.location import fingerprint as of_dataset
    from longrec.data.store.versions import version_before
    from longrec.release.registry import compared_champion
    from longrec.runs.cache_generation import keys_of_steps
    from longrec.runs.workdir import check_writable

    check_writable(workdir)
    config = build(GateConfig, gate, where="gate")
    return (
        of_dataset(data_uri),
        version_before(workdir, data_uri),
        compared_champion(workdir, config),
        *keys_of_steps(repo_dir, workdir).values(),  # In the order of longrec.runs.steps.
    )
