"""join-features: feature tables of the dataset from those of all shards."""

from typing import List

from kfp.dsl import Dataset, Input, Metrics, Output

from components import component


@component
def join_features(
    shards: Input[List[Dataset]], code_key: str, features: Output[Dataset], metrics: Output[Metrics]
):
    """Write the feature tables to publish; they equal those of one unsharded build."""
    from longrec.data.features import join_shards
    from longrec.data.files import write_json
    from longrec.data.shards import shard_folders
    from longrec.reporting.summary import scalar_metrics

    paths = [path for shard in shards for path in shard_folders(shard.path)]
    report = join_shards(paths, features.path)
    for name, value in scalar_metrics(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
