"""What the page is given: columns to draw, one more event; and that the page needs nothing from
anywhere.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from longrec.data import history
from longrec.data.histories import Histories
from longrec.errors import DataError
from longrec.scoring.scorer import Scorer
from longrec.serving import web
from tests.conftest import ServedWorld


@pytest.fixture(scope="module")
def encoder(served_world: ServedWorld):
    return Scorer.load(served_world.path / "bundle").bundle.encoder


@pytest.fixture(scope="module")
def events(served_world: ServedWorld):
    return Histories.open(served_world.path / "histories").timeline(0)


def test_the_picture_names_lane_and_kind_of_every_event(served_world, encoder, events) -> None:
    found = web.picture(events, encoder)
    topics = dict(
        zip(
            *(
                Histories.open(served_world.path / "histories").items.column(name).to_pylist()
                for name in ("item_id", "topic")
            ),
            strict=True,
        )
    )
    assert found["timestamps"] == history.timestamps(events).tolist()
    assert found["items"] == [str(item) for item in events.column("item_id").to_pylist()]
    assert found["lanes"]["feature"] == "topic" and found["kinds"]["feature"] == "action"
    named = [found["lanes"]["names"][place] for place in found["lanes"]["of"]]
    expected = [str(topics[item]) for item in events.column("item_id").to_pylist()]
    assert (
        all(name in (topic, web.OTHERS) for name, topic in zip(named, expected, strict=True))
        and len(set(named)) > 2
    )
    assert [found["kinds"]["names"][place] for place in found["kinds"]["of"]] == events.column(
        "action"
    ).to_pylist()
    assert set(found["kinds"]["choices"]) == {"like", "view"}
    nothing = web.picture(events.slice(0, 0), encoder)
    assert nothing["timestamps"] == [] == nothing["lanes"]["of"]


def test_rare_values_share_the_last_lane() -> None:
    names = [str(code) for code in range(30)]
    found = web._lanes(names, np.repeat(np.arange(30), np.arange(30, 0, -1)), "topic", 5)
    assert found["names"] == ["0", "1", "2", "3", web.OTHERS] and max(found["of"]) == 4
    assert found["of"].count(0) == 30 and found["of"].count(4) == sum(range(1, 27))


def test_one_more_event_is_the_newest_and_changes_no_other(encoder, events) -> None:
    last = int(history.timestamps(events)[-1])
    for kind in ("like", None):
        longer = web.with_event(events, 7, last + 5, kind, encoder)
        assert longer.num_rows == events.num_rows + 1
        assert longer.slice(0, events.num_rows).to_pylist() == events.to_pylist()
        row = longer.slice(events.num_rows).to_pylist()[0]
        assert (row["item_id"], row["timestamp"], row["action"]) == (7, last + 5, kind)
        history.pack(longer, encoder.schema)  # in order, of the right types
    assert (
        web.with_event(events, 7, last - 100, None, encoder).column("timestamp")[-1].as_py() == last
    )
    assert web.with_event(events.slice(0, 0), 7, 3, "view", encoder).num_rows == 1
    with pytest.raises(DataError, match="kind"):
        web.with_event(events, 7, last, "click", encoder)


@pytest.mark.parametrize("value", [None, "", "1.5", "x", 1.5, True, 2**63, "9" * 30, [1], "١"])
def test_what_is_no_number_is_told(value) -> None:
    with pytest.raises(DataError, match="user_id"):
        web._whole({"user_id": value}, "user_id")


def test_the_page_is_one_file_that_allows_its_own_script_and_nothing_else() -> None:
    text, policy = web._page()
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//)|@import|url\(""", text)
    assert (
        "default-src 'none'" in policy and "unsafe" not in policy and policy.count("'sha256-") == 2
    )
    assert not re.search(r"<[a-z]+[^>]*\s(style|on[a-z]+)=", text), (
        "an inline style or handler, which the policy forbids"
    )
