"""register: the packaged bento in the model store and the registry of the work directory."""

from kfp.dsl import Artifact, Input, Output

from components import component


@component
def register(
    bento: Input[Artifact],
    evaluation: Input[Artifact],
    workdir: str,
    repo_dir: str,
    registered: Output[Artifact],
):
    """Add the bento where it is missing; the first model becomes the champion."""
    from longrec.data.files import write_json
    from longrec.release.packaging import register as register_bento
    from longrec.reporting.summary import as_dict

    report = register_bento(bento.path, evaluation.path, workdir=workdir, repo_dir=repo_dir)
    registered.metadata.update(as_dict(report))
    write_json(registered.path, registered.metadata)
