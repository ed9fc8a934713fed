"""package: versioned bento of a ranker that passed the gate, after a check of its scores."""

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
    """Build a bento, serve it once to compare scores, and export it as a folder.

    An empty `version` names it by the fingerprints of bundle and code.
    """
    from longrec.config import GateConfig
    from longrec.config_file import build
    from longrec.data.files import write_json
    from longrec.release.packaging import package as package_ranker
    from longrec.reporting.summary import as_dict, scalar_metrics

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
    write_json(packaged.path, as_dict(report))
    for name, value in scalar_metrics(report).items():
        metrics.log_metric(name, value)
    write_json(metrics.path, metrics.metadata)
