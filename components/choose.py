"""choose: configuration of the best trial of a search, and what mattered."""

from typing import List

from kfp.dsl import HTML, Artifact, Input, Metrics, Output

from components import component


@component
def choose(
    searches: Input[List[Artifact]],
    code_key: str,
    config: Output[Artifact],
    tables: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Write the chosen configuration, the table of the trials and the page of a search."""
    import shutil

    from longrec.data.files import write_json
    from longrec.study.share import choose as choose_best
    from longrec.study.share import read_share

    result = choose_best(read_share(searches[0].path), tables.path)
    shutil.copyfile(f"{tables.path}/best.yaml", config.path)
    shutil.copyfile(f"{tables.path}/report.html", report.path)
    metrics.log_metric("validation_auc", result["auc"])
    metrics.log_metric("num_trials", result["num_finished"])
    write_json(metrics.path, metrics.metadata)
