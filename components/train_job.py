"""train-job: a ranker from histories, trained by a TrainJob of Kubeflow Trainer on several nodes;
in place of train.
"""

from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from components import component


@component
def train_job(
    histories: Input[Dataset],
    histories_report: Input[HTML],
    code_key: str,
    model: dict,
    lengths: dict,
    training: dict,
    served_length: int,
    seed: int,
    platform: dict,
    bundle: Output[Model],
    metrics: Output[Metrics],
):
    """Waits for the TrainJob and takes its bundle, which names the report of the checks."""
    from longrec.config import RunConfig, build
    from longrec.data.files import write_json
    from longrec.reporting.summary import numbers
    from longrec.runs.run import room

    sections = {
        "model": model,
        "lengths": lengths,
        "train": training,
        "evaluate": {"served_length": served_length},
        "seed": seed,
    }
    config = build(RunConfig, {**sections, "platform": platform})
    report = room("pipelines.kubeflow_trainer").run_training_job(
        histories.path, bundle.path, config
    )
    bundle.metadata["checked_by"] = histories_report.uri
    for name, value in numbers(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
