"""plan: the trials of a study, as items of a loop."""

from typing import List

from components import component


@component
def plan(study: str, code_key: str, max_items: int) -> List[str]:
    """Return texts with the trials of a study from its YAML text, several in one if needed."""
    from longrec.study.config import parse
    from longrec.study.trial import plan as trials_of
    from longrec.study.trial import to_items

    return to_items(trials_of(parse(study)), max_items)
