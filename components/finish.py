"""finish: the outcome of a run as a file and as a message to a webhook; runs last, whatever
happened before.
"""

from kfp.dsl import Artifact, Output, PipelineTaskFinalStatus

from components import component


@component
def finish(
    status: PipelineTaskFinalStatus,
    pipeline: str,
    run_id: str,
    job_id: str,
    data_uri: str,
    webhook: str,
    outcome: Output[Artifact],
):
    """Writes the outcome and tells the webhook (LONGREC_WEBHOOK where the parameter is empty)."""
    from longrec.runs.outcome import announce

    facts = {
        "pipeline": pipeline,
        "run_id": run_id,
        "job_id": job_id,
        "data_uri": data_uri,
        "state": status.state,
        "error": status.error_message,
    }
    report = announce(outcome.path, webhook, facts)
    outcome.metadata.update({"state": report.state, "delivered": report.delivered})
