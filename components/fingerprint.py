"""fingerprint: what the results of the later steps depend on beside their inputs; never cached itself, and quick."""

from typing import NamedTuple

from components import component


@component
def fingerprint(
    data_uri: str, home: str, repo_dir: str
) -> NamedTuple(
    "Keys", data=str, before=str, check_events=str, build_features=str, publish=str, retrieve=str, check_histories=str, train=str,
    evaluate=str, package=str, study=str,
):
    """Returns the fingerprints of the dataset, of the version before it, and of the steps' code (as `longrec.fingerprint.STEPS`)."""
    from longrec.data.location import fingerprint as of_dataset
    from longrec.data.store import version_before
    from longrec.fingerprint import of_steps

    return (of_dataset(data_uri), version_before(home, data_uri), *of_steps(repo_dir).values())
