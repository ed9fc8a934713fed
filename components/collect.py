"""collect: comparison of the trials of a study on the same requests."""

from typing import List

from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from components import component


@component
def collect(
    results: Input[List[Dataset]],
    study: str,
    code_key: str,
    tables: Output[Artifact],
    report: Output[HTML],
):
    """Write the tables and the page of a study."""
    import shutil

    from longrec.study.collect import collect as collect_results
    from longrec.study.collect import gather
    from longrec.study.config import parse

    gather([result.path for result in results], tables.path)
    collect_results(tables.path, parse(study))
    shutil.copyfile(f"{tables.path}/report.html", report.path)
