"""retrieve: histories of the requests of one shard, read through the feature store."""

from kfp.dsl import Dataset, Metrics, Output

from components import component


@component
def retrieve(
    data_uri: str,
    data_key: str,
    code_key: str,
    shard: str,
    published: str,
    workdir: str,
    repo_dir: str,
    data: dict,
    seed: int,
    histories: Output[Dataset],
    metrics: Output[Metrics],
):
    """Write timelines, requests as offsets into them, and targets.

    `published` is the digest of the features that are read.
    """
    from longrec.config import DataConfig
    from longrec.config_file import build
    from longrec.data.files import write_json
    from longrec.data.location import local_directory
    from longrec.data.shards import Shard
    from longrec.data.store.retrieve import retrieve as retrieve_histories
    from longrec.reporting.summary import scalar_metrics

    part = Shard.parse(shard)
    config = build(DataConfig, data, where="data")
    with local_directory(data_uri, part) as dataset:
        report = retrieve_histories(dataset, workdir, repo_dir, histories.path, config, seed, part)
    for name, value in scalar_metrics(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
