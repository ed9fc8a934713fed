"""trial: one training of a study, measured."""

from kfp.dsl import HTML, Dataset, Input, Output

from components import component


@component
def trial(
    histories: Input[Dataset],
    histories_report: Input[HTML],
    code_key: str,
    trial: dict,
    result: Output[Dataset],
):
    """Trains and measures one cell on the checked histories; the result names the report of the
    checks.
    """
    from longrec.study.runner import run_one

    row = run_one(histories.path, result.path, trial)
    result.metadata.update({"id": row["id"], "checked_by": histories_report.uri})
