"""Real logs with a part pushed: 1,000 random (user, time) pairs are equal in both stores."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from longrec.config import DataConfig
from longrec.data import features, history
from longrec.data.dataset import Dataset, event_schema
from longrec.data.dataset_writer import DatasetWriter
from longrec.data.store import live_events
from longrec.data.store.offline_store import OfflineStore
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import publish
from longrec.data.store.push import Pusher
from tests.longrec.data import real_logs, redis_server

REPO = Path(__file__).parents[4] / "feature_repo"
NUM_PAIRS = 1_000
MAX_HISTORY = 10_000
SHARES = {"kuairand": 8, "dev_events": 5}
"""One user in so many is published: a user's history does not depend on the others, and publishing
and pushing take the time.
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(
    params=["kuairand", "dev_events"],
    scope="module",
)
def log(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path, pa.Table, int]]:
    """Yield a dataset, feature tables of most events of some users, the other events, the share."""
    root = tmp_path_factory.mktemp("log")
    real_logs.IMPORT[request.param](root / "all")
    share = SHARES[request.param]
    rest = hold_out(
        Dataset.open(root / "all"),
        root / "most",
        share,
        np.random.default_rng(0),
    )
    features.build_features(root / "most", root / "features", DataConfig())
    shutil.rmtree(root / "most")
    yield root / "all", root / "features", rest, share
    shutil.rmtree(root)


def hold_out(
    source: Dataset,
    target: Path,
    share: int,
    rng: np.random.Generator,
) -> pa.Table:
    """Write most events of one user in `share`; return the others.

    Those are some random events and the ends of some timelines.
    """
    held = []
    with DatasetWriter(
        target, source.schema, name=source.name, source={}, num_parts=source.num_parts
    ) as writer:
        for part in range(source.num_parts):
            events = source.events(part, event_schema(source.schema).names)
            events = events.filter(pa.array(events["user_id"].to_numpy() % share == 0))
            users = events["user_id"].to_numpy()
            ends = np.searchsorted(users, users, side="right") - np.arange(
                len(users)
            )  # 1 for the last event of a user
            away = (rng.random(len(users)) < 0.002) | ((users % 7 == 0) & (ends <= 300))
            held.append(events.filter(pa.array(away)))
            writer.write_part(part, events.filter(pa.array(~away)), source.targets(part))
        writer.write_entities(source.items(), source.users())
    return pa.concat_tables(held)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_1000_pairs_are_equal_bit_for_bit(
    log: tuple[Path, Path, pa.Table, int],
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with redis_server.running(tmp_path) as address:
        if kind == "redis":
            monkeypatch.setenv("LONGREC_FEATURE_OVERLAY", "redis")
            monkeypatch.setenv("LONGREC_REDIS", address)
        source = Dataset.open(log[0])
        workdir = tmp_path / "home"
        rng = np.random.default_rng(1)
        publish(log[1], workdir, REPO)
        push_all(workdir, log[2], rng)
        check(source, workdir, log[3], rng)


def push_all(
    workdir: Path,
    rest: pa.Table,
    rng: np.random.Generator,
) -> None:
    """Push events in random order, one in five of them twice."""
    order = rng.permutation(
        np.concatenate(
            [np.arange(rest.num_rows), rng.integers(0, rest.num_rows, rest.num_rows // 5)]
        )
    )
    pusher = Pusher(workdir)
    reports = [pusher.push(rest.take(pa.array(rows))) for rows in np.array_split(order, 4)]
    assert sum(report.num_new for report in reports) == rest.num_rows > 1_000


def check(
    source: Dataset,
    workdir: Path,
    share: int,
    rng: np.random.Generator,
) -> None:
    everyone = np.unique(
        np.concatenate([part["user_id"].to_numpy() for part in source.event_parts(["user_id"])])
    )
    everyone = everyone[everyone % share == 0]
    users = rng.choice(everyone, NUM_PAIRS if len(everyone) > 2_000 else NUM_PAIRS // 10)
    expected = of_users(source, users)
    doors = OnlineStore(workdir), OfflineStore(workdir)
    num_pairs = num_pushed = 0
    for group in np.array_split(np.unique(users), 10):
        answers = [
            {row.user_id: row.history for row in door.fetch(group.tolist())} for door in doors
        ]
        for user in group.tolist():
            times = history.timestamps(expected[user])
            for _ in range(int((users == user).sum()) * NUM_PAIRS // len(users)):
                request_time = int(rng.choice(times)) + int(rng.integers(0, 2))
                wanted = history.pack(cut(expected[user], request_time), source.schema)
                assert [
                    history.pack(cut(answer[user], request_time), source.schema)
                    for answer in answers
                ] == [wanted, wanted], (user, request_time)
                num_pairs += 1
            num_pushed += user % 7 == 0
    assert num_pairs == NUM_PAIRS
    assert num_pushed > 5


def cut(events: pa.RecordBatch, request_time: int) -> pa.RecordBatch:
    return history.most_recent(history.events_before(events, request_time), MAX_HISTORY)


def of_users(source: Dataset, users: np.ndarray) -> dict[int, pa.RecordBatch]:
    """Return all events of users, straight from the dataset."""
    names = event_schema(source.schema).names
    chosen = pa.concat_tables(
        [
            part.filter(pc.is_in(part["user_id"], pa.array(np.unique(users))))
            for part in source.event_parts(names)
        ]
    )
    return dict(live_events.split_by_user(live_events.conform(chosen, source.schema)))
