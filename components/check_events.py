"""check-events: the checks of the imported events; a failing one stops the pipeline, the report stays."""

from kfp.dsl import HTML, Metrics, Output

from components import component


@component
def check_events(
    data_uri: str, data_key: str, before_key: str, code_key: str, checks: dict, home: str, report: Output[HTML], metrics: Output[Metrics]
):
    """Writes the report on events, targets, items and users, and on the drift against the version before, published in `home`."""
    from longrec.config import ChecksConfig, build
    from longrec.data.checks import check_events as check
    from longrec.data.files import write_json
    from longrec.data.location import opened
    from longrec.steps import numbers

    with opened(data_uri) as dataset:
        result = check(dataset, report.path, build(ChecksConfig, checks, where="checks"), home)
    for name, value in numbers(result).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
