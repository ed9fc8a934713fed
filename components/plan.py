"""plan: list of the trials of a study, for a loop over them."""

from typing import List

from components import component


@component
def plan(study: str, code_key: str) -> List[str]:
    """Return the trials of a study from its YAML text, each as a text."""
    from longrec.study.config import parse
    from longrec.study.trial import plan as trials_of

    return [trial.to_text() for trial in trials_of(parse(study))]
