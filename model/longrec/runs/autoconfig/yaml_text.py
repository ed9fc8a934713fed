"""Write derived settings as a configuration file that states the reason of each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator

from longrec.runs.autoconfig.log_facts import LogFacts
from longrec.runs.autoconfig.settings import Choice, Derived, Estimate

GIB = 2**30
COMMENT_COLUMN = 46
"""Column of the reasons."""


def to_yaml(derived: Derived, facts: LogFacts) -> str:
    """Return a configuration file: a comment on log and cost, then the settings by section."""
    lines = [f"# {line}" for line in (describe_log(facts), describe_cost(derived.estimate))]
    lines.append("# Every other key has its default: longrec config schema.")
    lines.append(f"name: {json.dumps(derived.name)}")
    by_section = itertools.groupby(derived.choices, lambda choice: choice.key.partition(".")[0])
    for section, choices in by_section:
        lines += _section_lines(section, choices)
    return "\n".join(lines) + "\n"


def _section_lines(section: str, choices: Iterable[Choice]) -> Iterator[str]:
    """Yield the lines of one section, or of one key outside of all sections."""
    for index, choice in enumerate(choices):
        key = choice.key.removeprefix(f"{section}.")
        indent = "" if key == section else "  "
        if index == 0 and indent:
            yield f"{section}:"
        setting = f"{indent}{key}: {json.dumps(choice.value)}"
        yield f"{setting:<{COMMENT_COLUMN}}  # {choice.reason}"


def describe_log(facts: LogFacts) -> str:
    """Return one line on the log."""
    return (
        f"{json.dumps(facts.name)}: {facts.num_events:,} events, {facts.num_users:,} users, "
        f"{facts.num_requests:,} requests, {facts.num_targets:,} targets"
    )


def describe_cost(estimate: Estimate) -> str:
    """Return one line on the expected time and memory of the training."""
    minutes = max(round(estimate.seconds / 60), 1)
    plural = "" if minutes == 1 else "s"
    return (
        f"training: up to {estimate.epochs} x {estimate.requests_per_epoch:,} requests, about "
        f"{minutes} minute{plural} and {estimate.memory_bytes / GIB:.1f} GiB of memory"
    )
