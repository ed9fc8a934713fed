"""check-events: checks of the imported events; a failed check stops the pipeline."""

from typing import List

from kfp.dsl import HTML, Artifact, Input, Metrics, Output

from components import component


@component
def check_events(
    profiles: Input[List[Artifact]],
    before_key: str,
    code_key: str,
    checks: dict,
    workdir: str,
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Write the report on all shards, and on their drift from the version in `workdir`."""
    from longrec.config import ChecksConfig
    from longrec.config_file import build
    from longrec.data.files import write_json
    from longrec.data.quality.checks import check_event_profiles
    from longrec.reporting.summary import scalar_metrics

    config = build(ChecksConfig, checks, where="checks")
    paths = [profile.path for profile in profiles]
    result = check_event_profiles(paths, report.path, config, workdir)
    for name, value in scalar_metrics(result).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
