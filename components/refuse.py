"""refuse: what a model missed that the gate refused, as a file and in the record of the run."""

from kfp.dsl import Artifact, Input, Output

from components import component


@component
def refuse(
    evaluation: Input[Artifact],
    pipeline: str,
    run_id: str,
    data_uri: str,
    webhook: str,
    outcome: Output[Artifact],
):
    """Write which bounds were missed and by how much; the step finish notifies the webhook."""
    from longrec.runs.outcome import refuse as refuse_model

    facts = {"pipeline": pipeline, "run_id": run_id, "data_uri": data_uri}
    report = refuse_model(outcome.path, webhook, evaluation.path, facts)
    outcome.metadata.update({"state": report.state, "delivered": report.delivered})
