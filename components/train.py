"""train: bundle of a ranker, trained on the checked histories."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from components import component


@component
def train(
    histories: Input[Dataset],
    histories_report: Input[HTML],
    code_key: str,
    model: dict,
    lengths: dict,
    training: dict,
    served_lengths: list,
    seed: int,
    checkpoint_dir: str,
    log_dir: str,
    bundle: Output[Model],
    metrics: Output[Metrics],
):
    """Train a ranker; an interrupted training resumes from its last checkpoint.

    The bundle names the report of the checks.
    """
    from longrec.config import LengthConfig, ModelConfig, TrainConfig
    from longrec.config_file import build
    from longrec.data.files import write_json
    from longrec.reporting.summary import scalar_metrics
    from longrec.training.train import train as train_ranker

    report = train_ranker(
        histories.path,
        bundle.path,
        build(ModelConfig, model, where="model"),
        lengths=build(LengthConfig, lengths, where="lengths"),
        train=build(TrainConfig, training, where="train"),
        served_lengths=served_lengths,
        seed=seed,
        checkpoint_dir=checkpoint_dir,
        log_dir=log_dir,
    )
    bundle.metadata["checked_by"] = histories_report.uri
    for name, value in scalar_metrics(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
