"""plan: list of the trials of a study, for a loop over them."""

from components import component


@component
def plan(study: str, code_key: str) -> list:
    """Return the trials of a study from its YAML text, each with a whole configuration."""
    from longrec.study.config import parse
    from longrec.study.trial import plan as trials_of

    return [trial.to_dict() for trial in trials_of(parse(study))]
