"""build-features: feature tables of a dataset, one packed history per user."""

from kfp.dsl import Dataset, Input, Metrics, Output

from components import component


@component
def build_features(dataset: Input[Dataset], data: dict, features: Output[Dataset], metrics: Output[Metrics]):
    """Writes the feature tables that the feature store publishes."""
    from longrec.config import DataConfig, build
    from longrec.data.features import build as build_tables
    from longrec.data.files import write_json
    from longrec.steps import numbers

    config = build(DataConfig, data, where="data")
    report = build_tables(dataset.path, features.path, config)
    for name, value in numbers(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
