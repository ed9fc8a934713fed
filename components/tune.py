"""tune: a share of the trials of a search, on a journal that all shares write."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from components import component


@component
def tune(
    histories: Input[Dataset],
    histories_report: Input[HTML],
    data_key: str,
    published: str,
    code_key: str,
    workdir: str,
    share: str,
    trials: int,
    workers: int,
    space: dict,
    seed: int,
    data: dict,
    checks: dict,
    model: dict,
    lengths: dict,
    training: dict,
    evaluation: dict,
    gate: dict,
    search: Output[Artifact],
):
    """Train on the checked histories; the result names the search and the report of the checks."""
    from longrec.study.share import of_pipeline, run_share, write_share

    sections = {"data": data, "checks": checks, "model": model, "lengths": lengths}
    sections |= {"train": training, "evaluate": evaluation, "gate": gate}
    keys = [data_key, published, code_key]
    asked = of_pipeline(histories.path, workdir, share, keys, space, seed, sections)
    write_share(search.path, run_share(asked, trials, num_workers=workers))
    search.metadata["checked_by"] = histories_report.uri
