"""What the page draws of a history, and a history with one more event."""

from __future__ import annotations

import numpy as np
import pytest

from longrec.data import history
from longrec.data.histories import Histories
from longrec.errors import DataError
from longrec.scoring.scorer import Scorer
from longrec.serving.web.timeline_view import OTHERS, append_event, group_rare, timeline_view
from tests.conftest import ServedWorld


@pytest.fixture(scope="module")
def histories(served_world: ServedWorld) -> Histories:
    return Histories.open(served_world.path / "histories")


@pytest.fixture(scope="module")
def encoder(served_world: ServedWorld):
    return Scorer.load(served_world.path / "bundle").bundle.encoder


@pytest.fixture(scope="module")
def events(histories: Histories):
    return histories.timeline(0)


def names_of_events(groups: dict) -> list[str]:
    return [groups["names"][group] for group in groups["of"]]


def test_the_view_has_times_and_item_ids_as_texts(encoder, events) -> None:
    view = timeline_view(events, encoder)
    assert view["timestamps"] == history.timestamps(events).tolist()
    assert view["items"] == [str(item) for item in events.column("item_id").to_pylist()]


def test_the_view_names_the_lane_of_every_event(histories, encoder, events) -> None:
    lanes = timeline_view(events, encoder)["lanes"]
    assert lanes["feature"] == "topic"
    item_ids = histories.items.column("item_id").to_pylist()
    topics = histories.items.column("topic").to_pylist()
    topic_of = dict(zip(item_ids, topics, strict=True))
    expected = [str(topic_of[item]) for item in events.column("item_id").to_pylist()]
    found = names_of_events(lanes)
    assert len(set(found)) > 2
    for name, topic in zip(found, expected, strict=True):
        assert name in (topic, OTHERS)


def test_the_view_names_the_kind_of_every_event(encoder, events) -> None:
    kinds = timeline_view(events, encoder)["kinds"]
    assert kinds["feature"] == "action"
    assert names_of_events(kinds) == events.column("action").to_pylist()
    assert set(kinds["choices"]) == {"like", "view"}


def test_the_view_of_an_empty_history_is_empty(encoder, events) -> None:
    view = timeline_view(events.slice(0, 0), encoder)
    assert view["timestamps"] == [] == view["lanes"]["of"]


def test_rare_values_share_the_last_group() -> None:
    names = [str(code) for code in range(30)]
    codes = np.repeat(np.arange(30), np.arange(30, 0, -1))
    groups = group_rare(names, codes, "topic", 5)
    assert groups["names"] == ["0", "1", "2", "3", OTHERS]
    assert max(groups["of"]) == 4
    assert groups["of"].count(0) == 30
    assert groups["of"].count(4) == sum(range(1, 27))


@pytest.mark.parametrize("kind", ["like", None])
def test_one_more_event_is_the_newest_and_changes_no_other(encoder, events, kind) -> None:
    last = int(history.timestamps(events)[-1])
    longer = append_event(events, 7, last + 5, kind=kind, encoder=encoder)
    assert longer.num_rows == events.num_rows + 1
    assert longer.slice(0, events.num_rows).to_pylist() == events.to_pylist()
    row = longer.slice(events.num_rows).to_pylist()[0]
    assert (row["item_id"], row["timestamp"], row["action"]) == (7, last + 5, kind)
    history.pack(longer, encoder.schema)  # in order, of the right types


def test_one_more_event_is_never_older_than_the_newest(encoder, events) -> None:
    last = int(history.timestamps(events)[-1])
    longer = append_event(events, 7, last - 100, kind=None, encoder=encoder)
    assert longer.column("timestamp")[-1].as_py() == last


def test_an_empty_history_can_get_an_event(encoder, events) -> None:
    one = append_event(events.slice(0, 0), 7, 3, kind="view", encoder=encoder)
    assert one.num_rows == 1


@pytest.mark.parametrize("kind", ["click", 1, [], ["view"], {}])
def test_an_unknown_kind_is_an_error(encoder, events, kind: object) -> None:
    last = int(history.timestamps(events)[-1])
    with pytest.raises(DataError, match="kind"):
        append_event(events, 7, last, kind=kind, encoder=encoder)
