"""train: a ranker from histories, as a bundle."""

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
    served_length: int,
    seed: int,
    checkpoint_dir: str,
    log_dir: str,
    bundle: Output[Model],
    metrics: Output[Metrics],
):
    """Trains on the checked histories, from the last checkpoint if it was stopped; the bundle names
    the report of the checks.
    """
    from longrec.config import LengthConfig, ModelConfig, TrainConfig, build
    from longrec.data.files import write_json
    from longrec.reporting.summary import numbers
    from longrec.training.train import train as train_ranker

    length_sampler, settings = (
        build(LengthConfig, lengths, where="lengths"),
        build(TrainConfig, training, where="train"),
    )
    report = train_ranker(
        histories.path,
        bundle.path,
        build(ModelConfig, model, where="model"),
        length_sampler,
        settings,
        served_length,
        seed,
        checkpoint_dir=checkpoint_dir,
        log_dir=log_dir,
    )
    bundle.metadata["checked_by"] = histories_report.uri
    for name, value in numbers(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
