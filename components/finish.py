"""finish: outcome of a run, as a file and as a message to a webhook; always runs last."""

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
    """Write how the run ended and notify the webhook; LONGREC_WEBHOOK is its default."""
    from longrec.runs.outcome import conclude

    facts = {
        "pipeline": pipeline,
        "run_id": run_id,
        "job_id": job_id,
        "data_uri": data_uri,
        "state": status.state,
        "error": status.error_message,
        "workflow": status.pipeline_job_resource_name,
    }
    report = conclude(outcome.path, webhook, facts)
    outcome.metadata.update({"state": report.state, "delivered": report.delivered})
