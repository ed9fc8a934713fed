"""retrieve: histories of all requests, read through the feature store."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components import component


@component
def retrieve(
    dataset: Input[Dataset], published: Input[Artifact], home: str, repo_dir: str, data: dict, seed: int, histories: Output[Dataset],
    metrics: Output[Metrics],
):
    """Writes timelines, requests as offsets into them, and targets."""
    from longrec.config import DataConfig, build
    from longrec.data.files import write_json
    from longrec.data.store import retrieve as retrieve_histories
    from longrec.steps import numbers

    config = build(DataConfig, data, where="data")
    report = retrieve_histories(dataset.path, home, repo_dir, histories.path, config, seed)
    histories.metadata["published"] = published.uri
    for name, value in numbers(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
