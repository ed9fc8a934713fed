"""evaluate: metrics of a bundle on later requests, at several served lengths, and the verdict of
the gate.
"""

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components import component


@component
def evaluate(
    bundle: Input[Model],
    histories: Input[Dataset],
    code_key: str,
    champion: str,
    workdir: str,
    evaluation_config: dict,
    gate: dict,
    served_length: int,
    seed: int,
    evaluation: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
) -> bool:
    """Returns whether the gate lets the model pass; a single output, since a local `dsl.If` skips
    on named ones.
    """
    import shutil

    from longrec.config import EvaluateConfig, GateConfig, build
    from longrec.data.files import write_json
    from longrec.evaluation.evaluate import evaluate as evaluate_ranker
    from longrec.release.registry import comparable, store_dir
    from longrec.reporting.summary import numbers

    config = build(
        EvaluateConfig, {**evaluation_config, "served_length": served_length}, where="evaluate"
    )
    result = evaluate_ranker(
        bundle.path,
        histories.path,
        evaluation.path,
        config,
        build(GateConfig, gate, where="gate"),
        seed,
        champion_dir=comparable(workdir, store_dir(), champion),
    )
    shutil.copyfile(f"{evaluation.path}/report.html", report.path)
    for name, value in numbers(result).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
    return result.gate.passed
