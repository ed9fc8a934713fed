"""trial: training and evaluation of one trial of a study."""

from kfp.dsl import HTML, Dataset, Input, Output

from components import component


@component
def trial(
    histories: Input[Dataset],
    histories_report: Input[HTML],
    code_key: str,
    trial: str,
    result: Output[Dataset],
):
    """Train and evaluate on the checked histories; the result names the report of the checks."""
    from longrec.study.run_trial import run_trial
    from longrec.study.trial import Trial

    row = run_trial(histories.path, result.path, Trial.from_text(trial).to_dict())
    result.metadata.update({"id": row["id"], "checked_by": histories_report.uri})
