"""The commands that keep a work directory in order: `longrec forget`, `doctor` and `gc`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from longrec.cli.data.store import UserId
from longrec.cli.options import DEFAULT_WORKDIR, AsJson, ExistingWorkdir, print_result

Datasets = Annotated[
    list[Path] | None,
    typer.Option("--data", help="A dataset directory to remove the user from; repeatable."),
]
NumRuns = Annotated[int, typer.Option("--keep", min=1, help="Number of the newest runs to keep.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")]


def forget(
    user: UserId,
    data: Datasets = None,
    workdir: ExistingWorkdir = DEFAULT_WORKDIR,
) -> None:
    """Remove a user for good, and print a receipt as JSON.

    The user goes from the feature store, pushed events, the log of requests, the tables of runs,
    the datasets in the work directory and those of --data. WORKDIR/forgotten.json keeps the id:
    publish, push and training leave the user out from now on. Call it again at any time.

    \b
    Examples:
      longrec forget --user 17
      longrec forget --user 17 --data data/kuairand --workdir /srv/longrec > receipt.json
    """
    from longrec.runs.forget import forget_user, receipt_as_dict

    receipt = forget_user(workdir, user, data or ())
    typer.echo(json.dumps(receipt_as_dict(receipt), indent=2))


def doctor(workdir: ExistingWorkdir = DEFAULT_WORKDIR, as_json: AsJson = False) -> None:
    """Check a work directory; exit code 1 if it has a fault. Nothing is changed.

    Checks links, hashes and counts of the published tables, the online store against them,
    forgotten users, models, the log of requests, cached results, and what nothing refers to.

    \b
    Examples:
      longrec doctor
      longrec doctor --workdir /srv/longrec --json
    """
    from longrec.runs.doctor import CHECKS, examine

    findings = examine(workdir)
    value = {
        "checks": list(CHECKS),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
    lines = [f"{found.check}: {found.fault} {found.fix}".rstrip() for found in findings]
    text = "\n".join(lines) or f"{len(CHECKS)} checks passed"
    print_result(value, text, as_json=as_json)
    if findings:
        raise typer.Exit(1)


def gc(
    keep: NumRuns = 10,
    dry_run: DryRun = False,
    workdir: ExistingWorkdir = DEFAULT_WORKDIR,
    as_json: AsJson = False,
) -> None:
    """Remove old runs, and what nothing refers to.

    Runs of the champion, the version before it and the challenger stay, and so does the latest
    run.

    \b
    Examples:
      longrec gc --keep 5 --dry-run
      longrec gc --keep 5
    """
    from longrec.runs.gc import collect_garbage, plan_removal

    if dry_run:
        removal = plan_removal(workdir, keep)
        num_bytes = removal.num_bytes()
    else:
        removal, num_bytes = collect_garbage(workdir, keep)
    paths = [str(path) for path in removal.paths]
    value = {"removed": paths, "bytes": num_bytes, "dry_run": dry_run}
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} {path}" for path in paths]
    lines.append(f"{verb} {len(paths)} paths, {num_bytes / 2**20:,.1f} MiB")
    print_result(value, "\n".join(lines), as_json=as_json)
