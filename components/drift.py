"""drift: how far what a service answered lately lies from what its model was evaluated on; too far
is a failure, the report stays.
"""

from kfp.dsl import HTML, Metrics, Output

from components import component


@component
def drift(
    drift_config: dict,
    workdir: str,
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Writes the report on scores and features of the requests logged in `workdir` against the
    evaluation of the version that answered.
    """
    from longrec.config import DriftConfig, build
    from longrec.data.files import write_json
    from longrec.release.monitoring import check_drift
    from longrec.reporting.summary import numbers

    result = check_drift(workdir, report.path, build(DriftConfig, drift_config, where="drift"))
    for name, value in numbers(result).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
