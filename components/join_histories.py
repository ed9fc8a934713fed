"""join-histories: histories of the dataset from those of all shards, split in time."""

from typing import List

from kfp.dsl import Dataset, Input, Metrics, Output

from components import component


@component
def join_histories(
    shards: Input[List[Dataset]],
    code_key: str,
    published: str,
    data: dict,
    seed: int,
    histories: Output[Dataset],
    metrics: Output[Metrics],
):
    """Write the histories for training and evaluation; they equal those of one retrieval.

    The artifact names the digest of the published features.
    """
    from longrec.config import DataConfig
    from longrec.config_file import build
    from longrec.data.files import write_json
    from longrec.data.store.retrieve import join_shards
    from longrec.reporting.summary import scalar_metrics

    config = build(DataConfig, data, where="data")
    paths = [shard.path for shard in shards]
    report = join_shards(paths, histories.path, config, seed)
    histories.metadata["published"] = published
    for name, value in scalar_metrics(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
