"""drift: how far what a service answered lately lies from what its model was evaluated on."""

from kfp.dsl import HTML, Artifact, Input, Metrics, Model, Output

from components import component


@component
def drift(bundle: Input[Model], evaluation: Input[Artifact], drift_config: dict, home: str, report: Output[HTML],
          metrics: Output[Metrics]) -> bool:
    """Returns whether scores and features of the requests logged in `home` are still those of the evaluation."""
    from longrec.config import DriftConfig, build
    from longrec.data.files import write_json
    from longrec.monitor import drift as compare
    from longrec.steps import numbers

    result = compare(home, evaluation.path, bundle.path, report.path, build(DriftConfig, drift_config, where="drift"))
    for name, value in numbers(result).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
    return result.passed
