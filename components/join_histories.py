"""join-histories: the histories of all shards become those of the dataset, split in time."""

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
    """Writes what training and evaluation read, equal to the histories of one retrieval; names the
    digest of what was read.
    """
    from longrec.config import DataConfig, build
    from longrec.data.files import write_json
    from longrec.data.store.retrieve import join
    from longrec.reporting.summary import numbers

    report = join(
        [each.path for each in shards], histories.path, build(DataConfig, data, where="data"), seed
    )
    histories.metadata["published"] = published
    for name, value in numbers(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
