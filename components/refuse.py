"""refuse: outcome of a model that the gate refused, as a file and as a message to a webhook."""

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
    """Write which bounds were missed and by how much, and notify the webhook."""
    from longrec.runs.outcome import announce_refusal

    facts = {"pipeline": pipeline, "run_id": run_id, "data_uri": data_uri}
    report = announce_refusal(outcome.path, webhook, evaluation.path, facts)
    outcome.metadata.update({"state": report.state, "delivered": report.delivered})
