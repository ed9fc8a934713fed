"""build-features: feature tables of one shard of a dataset, a packed history per user."""

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
    """Write the feature tables; the artifact names the report of the passed checks."""
    from longrec.config import DataConfig
    from longrec.config_file import build
    from longrec.data.features import build_features as build_tables
    from longrec.data.files import write_json
    from longrec.data.location import local_directory
    from longrec.data.shards import Shard
    from longrec.reporting.summary import scalar_metrics

    part = Shard.parse(shard)
    config = build(DataConfig, data, where="data")
    with local_directory(data_uri, part) as dataset:
        report = build_tables(dataset, features.path, config, shard=part)
    features.metadata["checked_by"] = events_report.uri
    for name, value in scalar_metrics(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
