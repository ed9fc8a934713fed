"""check-histories: leakage and coverage checks of the training data."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from components import component


@component
def check_histories(
    histories: Input[Dataset],
    code_key: str,
    checks: dict,
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Write the report on the timelines and on the requests."""
    from longrec.config import ChecksConfig
    from longrec.config_file import build
    from longrec.data.files import write_json
    from longrec.data.quality.checks import check_histories as check
    from longrec.reporting.summary import scalar_metrics

    config = build(ChecksConfig, checks, where="checks")
    result = check(histories.path, report.path, config)
    for name, value in scalar_metrics(result).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
