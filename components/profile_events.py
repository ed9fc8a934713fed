"""profile-events: statistics of one shard of the imported events, for check-events."""

from kfp.dsl import Artifact, Metrics, Output

from components import component


@component
def profile_events(
    data_uri: str,
    data_key: str,
    before_key: str,
    code_key: str,
    shard: str,
    workdir: str,
    profile: Output[Artifact],
    metrics: Output[Metrics],
):
    """Write one row of statistics per user and the totals of the shard."""
    from longrec.data.files import write_json
    from longrec.data.location import local_directory
    from longrec.data.quality.checks import profile_events as measure
    from longrec.data.shards import Shard
    from longrec.reporting.summary import scalar_metrics

    part = Shard.parse(shard)
    with local_directory(data_uri, part) as dataset:
        result = measure(dataset, profile.path, workdir, part)
    for name, value in scalar_metrics(result).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
