"""trial: training and evaluation of one trial of a study, or of several one after the other."""

from kfp.dsl import HTML, Dataset, Input, Output

from components import component


@component
def trial(
    histories: Input[Dataset],
    histories_report: Input[HTML],
    code_key: str,
    trials: str,
    result: Output[Dataset],
):
    """Train and evaluate on the checked histories; the result names the report of the checks."""
    from longrec.study.run_trial import run_trials
    from longrec.study.trial import from_item

    rows = run_trials(histories.path, result.path, from_item(trials))
    ids = ", ".join(row["id"] for row in rows)
    result.metadata.update({"ids": ids, "checked_by": histories_report.uri})
