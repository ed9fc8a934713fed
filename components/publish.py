"""publish: feature tables become the offline and the online side of the feature store."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components import component


@component
def publish(features: Input[Dataset], home: str, repo_dir: str, published: Output[Artifact], metrics: Output[Metrics]):
    """Applies the feature repository and materializes it."""
    from longrec.data.files import write_json
    from longrec.data.store import publish as publish_features
    from longrec.steps import facts, numbers

    report = publish_features(features.path, home, repo_dir)
    published.metadata.update(facts(report))
    write_json(published.path, published.metadata)
    for name, value in numbers(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
