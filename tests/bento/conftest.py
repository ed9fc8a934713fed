"""A served model, its data, and a client of the running service."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import httpx
import pyarrow as pa
import pytest

from longrec.data.histories import Histories
from longrec.scoring.scorer import Scorer
from tests.conftest import ServedWorld


@dataclasses.dataclass(frozen=True)
class ServedUser:
    """A user of the feature store.

    Args:
        id: of the user.
        features: value of each feature by name.
        timeline: all events.
    """

    id: int
    features: dict[str, Any]
    timeline: pa.RecordBatch


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def histories(served_world: ServedWorld) -> Histories:
    return Histories.open(served_world.path / "histories")


@pytest.fixture(scope="module")
def scorer(served_world: ServedWorld) -> Scorer:
    return Scorer.load(served_world.path / "bundle")


@pytest.fixture(scope="module")
def user(histories: Histories) -> ServedUser:
    """The user with most events."""
    users = histories.users.to_pylist()
    num_events = [row["event_end"] - row["event_start"] for row in users]
    longest = num_events.index(max(num_events))
    row = users[longest]
    return ServedUser(row["user_id"], row, histories.timeline(longest))


@pytest.fixture(scope="module")
def items(histories: Histories) -> list[int]:
    return histories.items.column("item_id").to_pylist()[:12]
