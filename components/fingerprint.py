"""fingerprint: what the results of the later steps depend on beside their inputs; never cached
itself, and quick.
"""

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
    profile_events=str,
    check_events=str,
    build_features=str,
    join_features=str,
    publish=str,
    retrieve=str,
    profile_histories=str,
    join_histories=str,
    check_histories=str,
    train=str,
    evaluate=str,
    package=str,
    study=str,
):
    """Returns the fingerprints of the dataset and of the one before it, the champion to beat, and
    the fingerprints of the steps' code.
    """
    from longrec.config import GateConfig, build
    from longrec.data.location import fingerprint as of_dataset
    from longrec.data.store.versions import version_before
    from longrec.release.registry import read
    from longrec.runs.fingerprint import of_steps

    champion = build(GateConfig, gate, where="gate").against_champion and read(workdir).champion
    return (
        of_dataset(data_uri),
        version_before(workdir, data_uri),
        champion or "",
        *of_steps(repo_dir).values(),
    )
