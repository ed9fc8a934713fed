"""plan: the trainings of a study, for a loop to run them side by side."""

from components import component


@component
def plan(study: str, code_key: str) -> list:
    """Returns the cells of a study (its YAML), each a whole configuration."""
    from longrec.study.runner import parse
    from longrec.study.runner import plan as cells_of

    return [trial.to_dict() for trial in cells_of(parse(study))]
