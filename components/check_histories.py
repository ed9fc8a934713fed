"""check-histories: the leakage and coverage checks of what training will read; a failing one stops
the pipeline.
"""

from typing import List

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from components import component


@component
def check_histories(
    histories: Input[Dataset],
    profiles: Input[List[Artifact]],
    code_key: str,
    checks: dict,
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Writes the report on the timelines, as measured in the shards, and on the joined requests."""
    from longrec.config import ChecksConfig, build
    from longrec.data.files import write_json
    from longrec.data.quality.checks import check_histories as check
    from longrec.reporting.summary import numbers

    config = build(ChecksConfig, checks, where="checks")
    result = check(histories.path, report.path, config, [each.path for each in profiles])
    for name, value in numbers(result).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
