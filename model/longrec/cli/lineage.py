"""The command `longrec lineage`: from a version back to the dataset."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from longrec.cli.options import DEFAULT_WORKDIR, AsJson, ExistingWorkdir, print_result

if TYPE_CHECKING:
    from longrec.runs.record.chain import Chain, Link

Version = Annotated[
    str,
    typer.Argument(
        metavar="VERSION", help="model_version or store_version of an answer, or one in a chain."
    ),
]


def lineage(
    version: Version,
    workdir: ExistingWorkdir = DEFAULT_WORKDIR,
    as_json: AsJson = False,
) -> None:
    """Show what a model or a feature store was made of, back to the dataset.

    The records of the runs tell it; no lineage server is needed.

    \b
    Examples:
      longrec lineage 7ba15e10bc2d-04f875
      longrec lineage 86afdda687744bdf --workdir /srv/longrec --json
    """
    from longrec.runs.record.chain import trace

    chain = trace(workdir, version)
    content = {**dataclasses.asdict(chain), "is_complete": chain.is_complete}
    print_result(content, _as_text(chain), as_json=as_json)


def _as_text(chain: Chain) -> str:
    lines = [
        f"{'deployment':<11}{entry.action} at {entry.at} by {entry.by}: {entry.why}"
        for entry in chain.decisions
    ]
    lines += [_line(link) for link in chain.links]
    if not chain.is_complete:
        lines.append("incomplete: the runs that made the rest left no record here")
    return "\n".join(lines)


def _line(link: Link) -> str:
    made_by = f"{link.step} of run {link.run}" if link.step else f"{link.name} {link.uri}".strip()
    return f"{link.kind:<11}{link.version:<22} {made_by}"
