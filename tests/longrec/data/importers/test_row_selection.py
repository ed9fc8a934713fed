"""Row selection: conditions, guests, positives, the k-core, and the notes on what was cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longrec.data.dataset import Dataset
from longrec.data.importers import (
    EventMapping,
    ImportOptions,
    ImportReport,
    NegativeSampling,
    RequestGrouping,
    import_events,
)
from longrec.errors import DataError
from tests.longrec.data.importers.imported import assert_rows_add_up, read_dataset

START_MS = 1_700_000_000_000
HEADER = "user_id,item_id,timestamp,event,quantity,rating"


def import_rows(
    tmp_path: Path,
    rows: list[str],
    *,
    negatives: int = 0,
    options: ImportOptions | None = None,
    **mapping: Any,
) -> ImportReport:
    (tmp_path / "log.csv").write_text("\n".join([HEADER, *rows]))
    report = import_events(
        tmp_path / "log.csv",
        tmp_path / "d",
        EventMapping(**mapping),
        negatives=NegativeSampling(negatives, keep_new=True) if negatives else None,
        grouping=RequestGrouping(max_targets=2),
        options=options,
    )
    assert_rows_add_up(report)
    return report


def row(user: object, item: int, event: str = "view", quantity: object = 1, rating: int = 5) -> str:
    return f"{user},{item},{START_MS + item},{event},{quantity},{rating}"


def test_conditions_and_guests_are_counted_apart_from_bad_rows(tmp_path: Path) -> None:
    rows = [row(1, item) for item in range(6)]
    rows += [row(1, 7, quantity=-3), row("", 8), row("anonymous", 9), row("", 10)]
    report = import_rows(
        tmp_path,
        rows,
        labels=("rating>=5",),
        where=("quantity>0",),
        guests=("anonymous",),
    )
    assert report.filter_counts == {
        "events: no user id (a guest)": 3,
        "events: not quantity>0": 1,
    }
    assert (report.rows_rejected, report.num_events) == (0, 6)


def test_a_row_without_user_and_item_is_bad_and_no_guest(tmp_path: Path) -> None:
    rows = [row(1, item) for item in range(6)]
    options = ImportOptions(max_reject_share=0.5)
    report = import_rows(tmp_path, [*rows, ",,,,,"], labels=("rating>4",), options=options)
    assert report.reject_reasons == {"events: user_id is null": 1}


def test_labels_by_value_have_names(tmp_path: Path) -> None:
    rows = [row(1, item, event="buy" if item else "view", rating=item) for item in range(6)]
    import_rows(tmp_path, rows, labels=("liked=rating>=4", "event=buy"))
    _, targets = read_dataset(tmp_path / "d")
    assert [target["liked"] for target in targets] == [0, 0, 0, 0, 1, 1]
    assert [target["label"] for target in targets] == [0, 1, 1, 1, 1, 1]
    assert Dataset.open(tmp_path / "d").schema.task_names == ("liked", "label")


def test_positives_are_the_rows_of_a_value_and_the_others_stay_in_the_history(
    tmp_path: Path,
) -> None:
    rows = [row(1, item, event="buy" if item in (2, 4) else "view") for item in range(6)]
    report = import_rows(tmp_path, rows, negatives=1, positives=("event=buy",))
    events, targets = read_dataset(tmp_path / "d")
    assert report.num_events == len(events) == 6
    assert {target["item_id"] for target in targets if target["label"]} == {2, 4}


def test_cut_positives_are_noted(tmp_path: Path) -> None:
    rows = [row(user, item) for user in range(3) for item in range(5)]
    notes = import_rows(tmp_path, rows, negatives=1).notes
    assert any(note.startswith("9 positives were cut from requests with more") for note in notes)


def test_the_k_core_leaves_out_rare_users_and_items_until_none_is_left(tmp_path: Path) -> None:
    # Without user 9, item 3 has one event; without item 3, user 8 has one event.
    rows = [row(user, item) for user in range(3) for item in range(2)]
    rows += [row(8, 0), row(8, 3), row(9, 3)]
    report = import_rows(tmp_path, rows, labels=("rating>4",), options=ImportOptions(k_core=2))
    assert report.filter_counts == {"events: not in the 2-core of users and items": 3}
    assert report.num_events == 6


def test_a_log_without_events_says_what_became_of_its_rows(tmp_path: Path) -> None:
    rows = [row("", 1), row(1, 2, quantity=0)]
    with pytest.raises(DataError, match="no events; found 2 rows; 1 not quantity>0; 1 no user id"):
        import_rows(tmp_path, rows, labels=("rating>4",), where=("quantity>0",))


@pytest.mark.parametrize("key", ["where", "positives"])
def test_a_misdescribed_condition_is_refused_before_the_log_is_read(key: str) -> None:
    with pytest.raises(DataError, match="a condition is misdescribed"):
        EventMapping(**{key: ("quantity",)})


def test_a_column_may_come_from_the_name_of_a_folder(tmp_path: Path) -> None:
    for day in (1, 2):
        path = tmp_path / "log" / f"event=e{day}" / "part.csv"
        path.parent.mkdir(parents=True)
        path.write_text(f"user_id,item_id,timestamp,clicked\n1,{day},{START_MS + day},1\n")
    mapping = EventMapping(labels=("clicked",), features=("event:category",))
    import_events(tmp_path / "log", tmp_path / "d", mapping)
    assert [event["event"] for event in read_dataset(tmp_path / "d")[0]] == ["e1", "e2"]
