"""Real logs as datasets, where they lie beside the checkout; a test that wants one that is not
there is skipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from longrec.data.importers import (
    EventMapping,
    ImportOptions,
    NegativeSampling,
    import_events,
    import_kuairand,
)
from longrec.data.importers.requests.grouping import RequestGrouping


def shared(name: str) -> Path:
    """Returns a folder of real data, beside the checkout or beside the checkout that this worktree
    belongs to.
    """
    root = Path(__file__).resolve().parents[3]
    git = root / ".git"
    main = Path(git.read_text().split("gitdir: ")[1].strip()).parents[2] if git.is_file() else root
    for place in (root.parent, main.parent):
        if (found := place / "shared" / "data" / name).is_dir():
            return found
    pytest.skip(f"{name} is not there: real data lies beside the repository, never in it")


def kuairand(out: Path) -> None:
    import_kuairand(shared("kuairand-pure-partial"), out, grouping=RequestGrouping(max_requests_per_user=1))


def dev_events(out: Path) -> None:
    mapping = EventMapping(
        timestamp="ts", timestamp_unit="s", basket="commit_id", features=("action:category",)
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
