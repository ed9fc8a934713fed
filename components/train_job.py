"""train-job: bundle of a ranker, trained by a TrainJob of Kubeflow Trainer; replaces train."""

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
    served_lengths: list,
    seed: int,
    platform: dict,
    bundle: Output[Model],
    metrics: Output[Metrics],
):
    """Wait for the TrainJob and take its bundle; the bundle names the report of the checks."""
    from longrec.config import RunConfig
    from longrec.config_file import build
    from longrec.data.files import write_json
    from longrec.reporting.summary import scalar_metrics
    from longrec.runs.project import import_module

    sections = {
        "model": model,
        "lengths": lengths,
        "train": training,
        "evaluate": {"lengths": served_lengths},
        "seed": seed,
    }
    cluster = import_module("pipelines.platform_config").build_platform(platform)
    report = import_module("pipelines.kubeflow_trainer").run_training_job(
        histories.path, bundle.path, build(RunConfig, sections), cluster, code_key=code_key
    )
    bundle.metadata["checked_by"] = histories_report.uri
    for name, value in scalar_metrics(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
