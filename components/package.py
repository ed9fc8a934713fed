"""package: a ranker that passed the gate becomes a versioned bento, after the three ways to score
were found equal.
"""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components import component


@component
def package(
    bundle: Input[Model],
    evaluation: Input[Artifact],
    histories: Input[Dataset],
    code_key: str,
    gate: dict,
    version: str,
    workdir: str,
    repo_dir: str,
    seed: int,
    bento: Output[Artifact],
    parity: Output[Artifact],
    packaged: Output[Artifact],
    metrics: Output[Metrics],
):
    """Builds the bento `version` (empty: named by the fingerprints of bundle and code), serves it
    once, and exports it as a folder.
    """
    from longrec.config import GateConfig, build
    from longrec.data.files import write_json
    from longrec.release.packaging import package as package_ranker
    from longrec.reporting.summary import facts, numbers

    report = package_ranker(
        bundle.path,
        evaluation.path,
        histories.path,
        bento.path,
        parity_path=parity.path,
        version=version,
        workdir=workdir,
        repo_dir=repo_dir,
        gate=build(GateConfig, gate, where="gate"),
        seed=seed,
        code_key=code_key,
    )
    bento.metadata["tag"] = report.tag
    write_json(packaged.path, facts(report))
    for name, value in numbers(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
