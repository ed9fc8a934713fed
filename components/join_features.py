"""join-features: the feature tables of all shards become those of the dataset."""

from typing import List

from kfp.dsl import Dataset, Input, Metrics, Output

from components import component


@component
def join_features(
    shards: Input[List[Dataset]], code_key: str, features: Output[Dataset], metrics: Output[Metrics]
):
    """Writes the feature tables that the feature store publishes, equal to those of one build."""
    from longrec.data.features import join
    from longrec.data.files import write_json
    from longrec.reporting.summary import numbers

    report = join([each.path for each in shards], features.path)
    for name, value in numbers(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
