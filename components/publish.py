"""publish: feature tables become the offline and the online side of the feature store."""

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
    """Returns the digest of what the store holds now; never cached, and does nothing where the
    store holds it already.
    """
    from longrec.data.files import write_json
    from longrec.data.store.publish import publish as publish_features
    from longrec.reporting.summary import facts, numbers

    report = publish_features(features.path, workdir, repo_dir, key=code_key)
    published.metadata.update(facts(report))
    write_json(published.path, published.metadata)
    for name, value in numbers(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
    return report.digest
