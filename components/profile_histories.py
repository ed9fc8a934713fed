"""profile-histories: statistics of the timelines of one shard, for check-histories."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components import component


@component
def profile_histories(
    histories: Input[Dataset], code_key: str, profile: Output[Artifact], metrics: Output[Metrics]
):
    """Write one row of statistics per user and the totals of the shard."""
    from longrec.data.files import write_json
    from longrec.data.quality.checks import profile_histories as measure
    from longrec.reporting.summary import scalar_metrics

    result = measure(histories.path, profile.path)
    for name, value in scalar_metrics(result).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
