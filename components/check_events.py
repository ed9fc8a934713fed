"""check-events: checks of the imported events; a failed check stops the pipeline."""

from kfp.dsl import HTML, Metrics, Output

from components import component


@component
def check_events(
    data_uri: str,
    data_key: str,
    before_key: str,
    code_key: str,
    shards: list,
    checks: dict,
    workdir: str,
    report: Output[HTML],
    metrics: Output[Metrics],
) -> str:
    """Write the report on all shards, and on their drift from the version in `workdir`.

    Return the key of the dataset: a step that needs it waits for the checks.
    """
    from longrec.config import ChecksConfig
    from longrec.config_file import build
    from longrec.data.files import write_json
    from longrec.data.quality.checks import check_shards
    from longrec.reporting.summary import scalar_metrics

    config = build(ChecksConfig, checks, where="checks")
    result = check_shards(data_uri, shards, report.path, config, workdir)
    for name, value in scalar_metrics(result).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
    return data_key
