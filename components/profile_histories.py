"""profile-histories: what the leakage checks need to know of the timelines of a shard; judges
nothing.
"""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components import component


@component
def profile_histories(
    histories: Input[Dataset], code_key: str, profile: Output[Artifact], metrics: Output[Metrics]
):
    """Writes a row per user and some numbers; with those of the other shards, `check-histories`
    judges them.
    """
    from longrec.data.files import write_json
    from longrec.data.quality.checks import profile_histories as measure
    from longrec.reporting.summary import numbers

    result = measure(histories.path, profile.path)
    for name, value in numbers(result).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
