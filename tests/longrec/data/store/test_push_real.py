"""Real logs with a part pushed: 1,000 random (user, time) pairs are equal in both stores."""

from __future__ import annotations

import contextlib
import dataclasses
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
from longrec.schema import Schema
from tests.longrec.data import real_logs, redis_server

REPO = Path(__file__).parents[4] / "feature_repo"
NUM_PAIRS = 1_000
MAX_HISTORY = 10_000
USER_SHARES = {
    "kuairand": 8,
    "dev_events": 5,
}
"""One user in so many is published, to save time; histories of users are independent."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

Histories = dict[int, pa.RecordBatch]


@dataclasses.dataclass(frozen=True)
class HeldOutLog:
    """A real log, of which some events are pushed.

    Args:
        dataset: all events of all users.
        tables: feature tables of most events of some users.
        rest: the other events of these users.
        share: one user in so many is published.
    """

    dataset: Path
    tables: Path
    rest: pa.Table
    share: int


@pytest.fixture(params=["kuairand", "dev_events"], scope="module")
def log(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[HeldOutLog]:
    root = tmp_path_factory.mktemp("log")
    dataset = root / "all"
    real_logs.IMPORT[request.param](dataset)
    share = USER_SHARES[request.param]
    rng = np.random.default_rng(0)
    rest = hold_out(Dataset.open(dataset), root / "most", share, rng)
    features.build_features(root / "most", root / "features", DataConfig())
    shutil.rmtree(root / "most")
    yield HeldOutLog(dataset, root / "features", rest, share)
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
    names = event_schema(source.schema).names
    held_out = []
    with DatasetWriter(
        target,
        with_event_numbers(source.schema),
        name=source.name,
        source={},
        num_parts=source.num_parts,
    ) as writer:
        for part in range(source.num_parts):
            events = source.events(part, names)
            is_published = events["user_id"].to_numpy() % share == 0
            events = events.filter(pa.array(is_published))
            is_held_out = choose_held_out(events["user_id"].to_numpy(), rng)
            held_out.append(events.filter(pa.array(is_held_out)))
            most = events.filter(pa.array(~is_held_out))
            writer.write_part(part, most, source.targets(part))
        writer.write_entities(source.items(), source.users())
    return pa.concat_tables(held_out)


def choose_held_out(users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    user_ends = np.searchsorted(users, users, side="right")
    num_left = user_ends - np.arange(len(users))  # 1 for the last event of a user
    is_random = rng.random(len(users)) < 0.002
    is_end_of_timeline = (users % 7 == 0) & (num_left <= 300)
    return is_random | is_end_of_timeline


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_1000_pairs_are_equal_bit_for_bit(
    log: HeldOutLog,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workdir = tmp_path / "workdir"
    rng = np.random.default_rng(1)
    with contextlib.ExitStack() as stack:
        if kind == "redis":
            address = stack.enter_context(redis_server.running(tmp_path))
            monkeypatch.setenv("LONGREC_FEATURE_OVERLAY", "redis")
            monkeypatch.setenv("LONGREC_REDIS", address)
        publish(log.tables, workdir, REPO)
        push_in_random_order(workdir, log.rest, rng)
        assert_histories_equal_the_dataset(log, workdir, rng)


def push_in_random_order(
    workdir: Path,
    rest: pa.Table,
    rng: np.random.Generator,
) -> None:
    """Push all events, one in five of them twice."""
    once = np.arange(rest.num_rows)
    again = rng.integers(0, rest.num_rows, rest.num_rows // 5)
    order = rng.permutation(np.concatenate([once, again]))
    pusher = Pusher(workdir)
    num_new = 0
    for rows in np.array_split(order, 4):
        report = pusher.push(rest.take(pa.array(rows)))
        num_new += report.num_new
    assert num_new == rest.num_rows > 1_000


def assert_histories_equal_the_dataset(
    log: HeldOutLog,
    workdir: Path,
    rng: np.random.Generator,
) -> None:
    source = Dataset.open(log.dataset)
    users = choose_users(source, log.share, rng)
    expected = histories_of(source, users)
    stores = (OnlineStore(workdir), OfflineStore(workdir))
    num_pairs = 0
    num_pushed_ends = 0
    for group in np.array_split(np.unique(users), 10):
        histories = [fetch(store, group) for store in stores]
        for user in group.tolist():
            times = history.timestamps(expected[user])
            num_draws = int((users == user).sum())
            for _ in range(num_draws * NUM_PAIRS // len(users)):
                before_ms = int(rng.choice(times)) + int(rng.integers(0, 2))
                wanted = packed_before(source, expected[user], before_ms)
                for found in histories:
                    packed = packed_before(source, found[user], before_ms)
                    assert packed == wanted, (user, before_ms)
                num_pairs += 1
            num_pushed_ends += user % 7 == 0
    assert num_pairs == NUM_PAIRS
    assert num_pushed_ends > 5


def choose_users(
    source: Dataset,
    share: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw published users; many draws of each where there are few users."""
    events = pa.concat_tables(source.event_parts(["user_id"]))
    users = np.unique(events["user_id"].to_numpy())
    published = users[users % share == 0]
    num_draws = NUM_PAIRS if len(published) > 2_000 else NUM_PAIRS // 10
    return rng.choice(published, num_draws)


def histories_of(source: Dataset, users: np.ndarray) -> Histories:
    """Return all events of users, straight from the dataset."""
    chosen = pa.array(np.unique(users))
    names = event_schema(source.schema).names
    parts = []
    for part in source.event_parts(names):
        is_chosen = pc.is_in(part["user_id"], chosen)
        parts.append(part.filter(is_chosen))
    schema = with_event_numbers(source.schema)
    events = live_events.conform(pa.concat_tables(parts), schema)
    return dict(live_events.split_by_user(events))


def with_event_numbers(schema: Schema) -> Schema:
    """Return the schema of a log whose producer knows the positions in the log."""
    return dataclasses.replace(schema, has_event_numbers=True)


def fetch(store: OnlineStore | OfflineStore, users: np.ndarray) -> Histories:
    return {record.user_id: record.history for record in store.fetch(users.tolist())}


def packed_before(
    source: Dataset,
    events: pa.RecordBatch,
    before_ms: int,
) -> bytes:
    earlier = history.events_before(events, before_ms)
    recent = history.most_recent(earlier, MAX_HISTORY)
    return history.pack(recent, source.schema)
