"""check-histories: the leakage and coverage checks of what training will read; a failing one stops the pipeline."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from components import component


@component
def check_histories(
    histories: Input[Dataset], code_key: str, checks: dict, report: Output[HTML], metrics: Output[Metrics]
):
    """Writes the report on timelines and requests."""
    from longrec.config import ChecksConfig, build
    from longrec.data.checks import check_histories as check
    from longrec.data.files import write_json
    from longrec.steps import numbers

    config = build(ChecksConfig, checks, where="checks")
    result = check(histories.path, report.path, config)
    for name, value in numbers(result).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
