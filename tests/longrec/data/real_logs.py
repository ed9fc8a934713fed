"""Real logs as datasets; tests of a log that is not on this machine are skipped.

Real data is next to the repository, in shared/data, and never in it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from longrec.data.importers import (
    EventMapping,
    ImportOptions,
    NegativeSampling,
    RequestGrouping,
    import_events,
    import_kuairand,
)


def shared(name: str) -> Path:
    """Return a folder of real data, next to this checkout or to the one of its worktree."""
    root = Path(__file__).resolve().parents[3]
    for place in (root.parent, _main_checkout(root).parent):
        folder = place / "shared" / "data" / name
        if folder.is_dir():
            return folder
    pytest.skip(f"{name} is not there: real data is next to the repository, never in it")


def _main_checkout(root: Path) -> Path:
    """Return the checkout that a worktree belongs to; any other checkout itself."""
    git = root / ".git"
    if not git.is_file():
        return root
    git_dir = git.read_text().split("gitdir: ")[1].strip()
    return Path(git_dir).parents[2]


def kuairand(out: Path) -> None:
    import_kuairand(
        shared("kuairand-pure-partial"),
        out,
        grouping=RequestGrouping(max_requests_per_user=1),
    )


def dev_events(out: Path) -> None:
    mapping = EventMapping(
        timestamp="ts",
        timestamp_unit="s",
        basket="commit_id",
        features=("action:category",),
    )
    import_events(
        shared("dev-events") / "events.parquet",
        out,
        mapping,
        negatives=NegativeSampling(1),
        grouping=RequestGrouping(max_targets=2, max_requests_per_user=1),
        options=ImportOptions(rows_per_part=500_000),
    )


IMPORT = {"kuairand": kuairand, "dev_events": dev_events}
"""Name of a real log -> function that writes its dataset."""
