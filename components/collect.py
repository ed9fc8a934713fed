"""collect: the trainings of a study, compared on the same requests."""

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
    """Writes the tables of the study, and its page."""
    import shutil

    from longrec.study.runner import collect as compare
    from longrec.study.runner import gather, parse

    gather([result.path for result in results], tables.path)
    compare(tables.path, parse(study))
    shutil.copyfile(f"{tables.path}/report.html", report.path)
