"""publish: offline and online feature store from the feature tables."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components import component


@component
def publish(
    features: Input[Dataset],
    code_key: str,
    workdir: str,
    repo_dir: str,
    published: Output[Artifact],
    metrics: Output[Metrics],
) -> str:
    """Publish the feature tables if the store holds others; return the store's digest."""
    from longrec.data.files import write_json
    from longrec.data.store.publish import STEP_WAIT_SECONDS
    from longrec.data.store.publish import publish as publish_features
    from longrec.reporting.summary import as_dict, scalar_metrics
    from longrec.runs.record.attempts import run_name

    report = publish_features(
        features.path,
        workdir,
        repo_dir,
        key=code_key,
        run=run_name(),
        wait_seconds=STEP_WAIT_SECONDS,
    )
    published.metadata.update(as_dict(report))
    write_json(published.path, published.metadata)
    for name, value in scalar_metrics(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
    return report.digest
