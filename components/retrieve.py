"""retrieve: histories of the requests of a shard, read through the feature store."""

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
    """Writes timelines, requests as offsets into them, and targets; `published` is the digest of
    what is read.
    """
    from longrec.config import DataConfig, build
    from longrec.data.dataset import Shard
    from longrec.data.files import write_json
    from longrec.data.location import opened
    from longrec.data.store.retrieve import retrieve as retrieve_histories
    from longrec.reporting.summary import numbers

    part, config = Shard.parse(shard), build(DataConfig, data, where="data")
    with opened(data_uri, part) as dataset:
        report = retrieve_histories(dataset, workdir, repo_dir, histories.path, config, seed, part)
    for name, value in numbers(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
