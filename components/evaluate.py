"""evaluate: metrics of a bundle on later requests, and the verdict of the gate."""

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
    seed: int,
    evaluation: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
) -> bool:
    """Evaluate at several served lengths; return whether the gate passed.

    The output has no name: a local `dsl.If` skips its branch for a named one.
    """
    import shutil

    from longrec.config import EvaluateConfig, GateConfig
    from longrec.config_file import build
    from longrec.data.files import write_json
    from longrec.evaluation.evaluate import evaluate as evaluate_ranker
    from longrec.release.model_store import store_dir
    from longrec.release.registry import champion_bundle
    from longrec.reporting.summary import scalar_metrics

    result = evaluate_ranker(
        bundle.path,
        histories.path,
        evaluation.path,
        config=build(EvaluateConfig, evaluation_config, where="evaluate"),
        gate=build(GateConfig, gate, where="gate"),
        seed=seed,
        champion_dir=champion_bundle(workdir, store_dir(), champion),
    )
    shutil.copyfile(f"{evaluation.path}/report.html", report.path)
    for name, value in scalar_metrics(result).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
    return result.gate.passed
