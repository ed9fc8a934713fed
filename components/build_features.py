"""build-features: feature tables of a shard of a dataset, one packed history per user."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from components import component


@component
def build_features(
    data_uri: str,
    data_key: str,
    code_key: str,
    shard: str,
    events_report: Input[HTML],
    data: dict,
    features: Output[Dataset],
    metrics: Output[Metrics],
):
    """Writes the tables of its users; needs the report of the passed checks, and names it."""
    from longrec.config import DataConfig, build
    from longrec.data.dataset import Shard
    from longrec.data.features import build as build_tables
    from longrec.data.files import write_json
    from longrec.data.location import opened
    from longrec.reporting.summary import numbers

    part = Shard.parse(shard)
    with opened(data_uri, part) as dataset:
        report = build_tables(
            dataset, features.path, build(DataConfig, data, where="data"), shard=part
        )
    features.metadata["checked_by"] = events_report.uri
    for name, value in numbers(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
