"""A log that is pushed, then imported and published: the real importer, build and stores."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from longrec.config import DataConfig
from longrec.data import features
from longrec.data.importers.event_mapping import EventMapping
from longrec.data.importers.events import import_events
from longrec.data.importers.requests.negatives import NegativeSampling
from longrec.data.store import live_events
from longrec.data.store.offline_store import OfflineStore
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import publish
from longrec.data.store.push import Pusher
from tests.longrec.data.random_log import START_MS
from tests.longrec.data.store.published_store import REPO

HEADER = "user_id,item_id,timestamp,action,amount\n"
HOUR_MS = 3_600_000
LATER_MS = START_MS + 20 * HOUR_MS
OLD = "".join(f"1,{item},{START_MS + item * HOUR_MS},buy,1.5\n" for item in range(1, 9))
INVOICE = f"1,7,{LATER_MS},buy,2.5\n" * 2
TIES = f"1,9,{LATER_MS + 10},,\n1,3,{LATER_MS + 10},view,0.1\n1,3,{LATER_MS + 10},buy,\n"
PUSHED_ONLY = f"1,5,{LATER_MS + 10},gift,7\n"
MAPPING = EventMapping(features=("action:category", "amount:number"))


def publish_log(root: Path, text: str) -> None:
    """Import a CSV log, build its features and publish them."""
    (root / "log.csv").write_text(HEADER + text)
    import_events(
        root / "log.csv",
        root / "data",
        MAPPING,
        negatives=NegativeSampling(1, keep_new=True),
        name="invoices",
    )
    features.build_features(root / "data", root / "features", DataConfig())
    publish(root / "features", root / "workdir", REPO)


def push_csv(root: Path, text: str) -> int:
    path = root / "live.csv"
    path.write_text(HEADER + text)
    return push_file(root, path)


def push_jsonl(root: Path, text: str) -> int:
    """Push the rows of a CSV as JSON, with numbers of the producer."""
    lines = []
    for number, line in enumerate(text.splitlines()):
        user, item, time, action, amount = line.split(",")
        row = {
            "user_id": int(user),
            "item_id": int(item),
            "timestamp": int(time),
            "event_seq": 5_000 - number,
            "action": action or None,
            "amount": float(amount) if amount else None,
        }
        lines.append(json.dumps(row) + "\n")
    path = root / "live.jsonl"
    path.write_text("".join(lines))
    return push_file(root, path)


def push_file(root: Path, path: Path) -> int:
    pusher = Pusher(root / "workdir")
    return pusher.push(live_events.read_file(path, pusher.schema)).num_new


def served(root: Path) -> list[tuple[Any, ...]]:
    """Return the served events of user 1, which both sides must agree on."""
    [online] = OnlineStore(root / "workdir").fetch([1])
    [offline] = OfflineStore(root / "workdir").fetch([1])
    assert online.history.equals(offline.history)
    names = ("item_id", "timestamp", "action", "amount")
    return [tuple(row[name] for name in names) for row in online.history.to_pylist()]


def rows_of(text: str) -> list[tuple[Any, ...]]:
    rows = []
    for line in text.splitlines():
        _, item, time, action, amount = line.split(",")
        rows.append((int(item), int(time), action or None, float(amount) if amount else None))
    return rows


@pytest.mark.parametrize("push", [push_csv, push_jsonl])
def test_a_log_that_was_pushed_and_then_imported_is_served_once(tmp_path: Path, push: Any) -> None:
    publish_log(tmp_path, OLD)
    assert push(tmp_path, INVOICE + TIES + PUSHED_ONLY) == 6
    expected = rows_of(OLD + INVOICE + TIES + PUSHED_ONLY)
    assert Counter(served(tmp_path)) == Counter(expected)
    publish_log(tmp_path, OLD + INVOICE + TIES)
    assert served(tmp_path) == expected  # ties in the order of the log, then the pushed event
    assert push(tmp_path, PUSHED_ONLY + TIES + INVOICE) == 0
    assert served(tmp_path) == expected
