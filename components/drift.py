"""drift: comparison of recently answered requests with the evaluation of their model."""

from kfp.dsl import HTML, Metrics, Output

from components import component


@component
def drift(
    drift_config: dict,
    workdir: str,
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Write the report on scores and features of the requests in the log of `workdir`.

    Drift beyond the bounds fails the step.
    """
    from longrec.config import DriftConfig
    from longrec.config_file import build
    from longrec.data.files import write_json
    from longrec.release.monitoring import check_drift
    from longrec.reporting.summary import scalar_metrics

    config = build(DriftConfig, drift_config, where="drift")
    result = check_drift(workdir, report.path, config)
    for name, value in scalar_metrics(result).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
