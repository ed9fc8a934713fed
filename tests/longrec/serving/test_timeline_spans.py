"""Equal events of two timelines: the shared beginning, the shared end, what is between them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from longrec.serving.timeline_spans import Span, equal_spans, uncovered
from tests.longrec.serving.small_scorer import User


@pytest.fixture
def user() -> User:
    user = User(0)
    user.append(30)
    return user


def test_a_timeline_equals_itself(user: User) -> None:
    assert equal_spans(user.timeline(), user.timeline()) == [Span(0, 0, 30)]


def test_appended_and_dropped_events_leave_one_span(user: User) -> None:
    old = user.timeline()
    user.append(4)
    new = user.timeline().slice(3)
    assert equal_spans(old, new) == [Span(old=3, new=0, count=27)]


def test_a_changed_event_parts_two_spans(user: User) -> None:
    old = user.timeline()
    time_ms, order, item, action, _ = user.rows[12]
    user.rows[12] = (time_ms, order, item, action, 99.0)
    assert equal_spans(old, user.timeline()) == [Span(0, 0, 12), Span(13, 13, 17)]


def with_actions(user: User, words: list[str], codes: list[int]) -> pa.RecordBatch:
    """Return three events whose middle action is null; its code is 0, as the codec writes it."""
    timeline = user.timeline().slice(0, 3)
    validity = pa.py_buffer(bytes([0b101]))
    values = pa.py_buffer(np.array(codes, np.int32).tobytes())
    indices = pa.Array.from_buffers(pa.int32(), 3, [validity, values])
    actions = pa.DictionaryArray.from_arrays(indices, pa.array(words))
    position = timeline.schema.get_field_index("action")
    return timeline.set_column(position, "action", actions)


def test_nulls_are_equal_under_different_dictionaries(user: User) -> None:
    old = with_actions(user, ["x", "y"], [0, 0, 1])
    new = with_actions(user, ["y", "x"], [1, 0, 0])
    assert old.column("action").to_pylist() == ["x", None, "y"] == new.column("action").to_pylist()
    assert equal_spans(old, new) == [Span(0, 0, 3)]


def test_timelines_that_do_not_meet_share_nothing(user: User) -> None:
    timeline = user.timeline()
    assert equal_spans(timeline.slice(0, 10), timeline.slice(20)) == []
    assert equal_spans(timeline.slice(0, 0), timeline) == []


def test_a_span_is_clipped_to_rows_of_the_new_timeline() -> None:
    span = Span(old=5, new=10, count=6)
    assert span.clipped(12, 14) == Span(7, 12, 2)
    assert span.clipped(0, 3).count == 0


def test_uncovered_rows_are_those_between_the_spans() -> None:
    spans = [Span(0, 2, 3), Span(9, 7, 1)]
    assert list(uncovered(spans, 0, 10)) == [(0, 2), (5, 2), (8, 2)]
    assert list(uncovered([], 4, 4)) == []
