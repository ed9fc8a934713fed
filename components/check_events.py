"""check-events: the checks of the imported events; a failing one stops the pipeline, the report stays."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from components import component


@component
def check_events(dataset: Input[Dataset], checks: dict, home: str, report: Output[HTML], metrics: Output[Metrics]):
    """Writes the report on events, targets, items and users, and on the drift against the version published in `home`."""
    from longrec.config import ChecksConfig, build
    from longrec.data.checks import check_events as check
    from longrec.data.files import write_json
    from longrec.steps import numbers

    config = build(ChecksConfig, checks, where="checks")
    result = check(dataset.path, report.path, config, home)
    for name, value in numbers(result).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
