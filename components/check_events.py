"""check-events: the checks of the imported events; a failing one stops the pipeline, the report
stays.
"""

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
    """Writes the report on events, targets, items and users of all shards, and on the drift against
    the version published in `workdir`.
    """
    from longrec.config import ChecksConfig, build
    from longrec.data.files import write_json
    from longrec.data.quality.checks import check_event_profiles
    from longrec.reporting.summary import numbers

    result = check_event_profiles(
        [each.path for each in profiles],
        report.path,
        build(ChecksConfig, checks, where="checks"),
        workdir,
    )
    for name, value in numbers(result).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
