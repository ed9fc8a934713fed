"""retrieve: histories of the dataset's requests, read through the feature store, split in time."""

from kfp.dsl import Dataset, Metrics, Output

from components import component


@component
def retrieve(
    data_uri: str,
    data_key: str,
    code_key: str,
    shards: list,
    published: str,
    workdir: str,
    data: dict,
    seed: int,
    histories: Output[Dataset],
    metrics: Output[Metrics],
):
    """Write timelines, requests as offsets into them, and targets, for training and evaluation.

    `published` is the digest of the features that are read; the artifact names it.
    """
    from longrec.config import DataConfig
    from longrec.config_file import build
    from longrec.data.files import write_json
    from longrec.data.store.retrieve import retrieve_shards
    from longrec.reporting.summary import scalar_metrics

    config = build(DataConfig, data, where="data")
    report = retrieve_shards(data_uri, shards, workdir, histories.path, config, seed, published)
    histories.metadata["published"] = published
    for name, value in scalar_metrics(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
