"""A log whose times start at 0: its origin goes from the dataset to the store and every push."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from longrec.config import DataConfig
from longrec.data import features, history
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import publish
from longrec.data.store.push import Pusher
from longrec.errors import DataError
from tests.longrec.data import random_log
from tests.longrec.data.store.published_log import REPO

ORIGIN_MS = 1_500_000_000_000
SCHEMA = dataclasses.replace(random_log.SCHEMA, time_origin_ms=ORIGIN_MS)
NEW_USER = 77_777


def event_at(time: int) -> pa.Table:
    """Return an event of a new user."""
    event = random_log.live(np.random.default_rng(0), 1, [NEW_USER])
    position = event.schema.get_field_index("timestamp")
    return event.set_column(position, "timestamp", pa.array([time]))


@pytest.mark.slow
def test_a_push_may_count_its_times_from_the_origin(tmp_path: Path) -> None:
    random_log.write(tmp_path / "data", num_users=3, max_events=5, schema=SCHEMA)
    features.build_features(tmp_path / "data", tmp_path / "features", DataConfig())
    publish(tmp_path / "features", tmp_path / "workdir", REPO)
    pusher = Pusher(tmp_path / "workdir")
    assert pusher.schema.time_origin_ms == ORIGIN_MS
    assert pusher.push(event_at(200_000_000_000)).num_new == 1
    assert pusher.push(event_at(ORIGIN_MS + 200_000_000_000)).num_new == 0, "the same time"
    with pytest.raises(DataError, match=f"milliseconds since 1970 UTC from {ORIGIN_MS}"):
        pusher.push(event_at(ORIGIN_MS - 1))
    [record] = OnlineStore(tmp_path / "workdir").fetch([NEW_USER])
    assert history.timestamps(record.history).tolist() == [1_700_000_000_000]
