"""Late events: no history holds an event before it became known, built or pushed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from longrec.config import DataConfig
from longrec.data import features, files, history
from longrec.data.dataset import Dataset
from longrec.data.importers import EventMapping, NegativeSampling, import_events
from longrec.data.quality import drift, psi
from longrec.data.store import live_events
from longrec.errors import DataError
from tests.longrec.data.features.test_features import rows_of

START = 1_600_000_000_000
MAPPING = EventMapping(created="came_in", features=("action:category",))


def log(
    path: Path,
    rng: np.random.Generator,
    num_events: int = 400,
) -> pa.Table:
    """Write a CSV in which one row in four arrives up to 50 ms late; times tie often."""
    late = np.where(rng.random(num_events) < 0.25, rng.integers(1, 50, num_events), 0)
    times = START + np.sort(rng.integers(0, 300, num_events))
    table = pa.table(
        {
            "user_id": rng.integers(0, 5, num_events),
            "item_id": rng.integers(0, 20, num_events),
            "timestamp": times,
            "came_in": times + late,
            "action": rng.choice(["view", "buy"], num_events),
            "basket": np.arange(num_events) // 3,
        }
    )
    lines = [
        ",".join(table.column_names),
        *(",".join(str(value) for value in row.values()) for row in table.to_pylist()),
    ]
    path.write_text("\n".join(lines) + "\n")
    return table


def imported(tmp_path: Path, mapping: EventMapping = MAPPING) -> tuple[Dataset, pa.Table]:
    rows = log(tmp_path / "log.csv", np.random.default_rng(0))
    import_events(
        tmp_path / "log.csv",
        tmp_path / "data",
        mapping,
        negatives=NegativeSampling(2, keep_new=True),
    )
    return Dataset.open(tmp_path / "data"), rows


def histories(
    source: Dataset,
    out: Path,
    data: DataConfig,
) -> dict[int, pa.RecordBatch]:
    features.build_features(source.path, out, data)
    return {
        user: history.unpack(row["history"], source.schema) for user, row in rows_of(out).items()
    }


def test_no_history_holds_what_was_not_known_yet(tmp_path: Path) -> None:
    source, rows = imported(tmp_path)
    built = histories(source, tmp_path / "out", DataConfig())
    users = np.asarray(rows["user_id"])
    known = np.asarray(rows["came_in"])
    for user, events in built.items():
        for request_time in range(START - 1, START + 360):
            expected = np.flatnonzero((users == user) & (known < request_time))
            seen = (
                history.events_before(events, request_time).column("event_seq").to_numpy() - 2
            )  # the lines of the file, below its header
            assert sorted(seen.tolist()) == expected.tolist(), (user, request_time)
    manifest = files.read_json(tmp_path / "out" / "manifest.json")
    assert manifest["counts"]["num_late"] == int((known > np.asarray(rows["timestamp"])).sum()) > 50
    assert source.facts["time_range_ms"] == [int(known.min()), int(known.max())]


def test_late_events_can_be_taken_at_their_own_time(tmp_path: Path) -> None:
    source, rows = imported(tmp_path)
    built = histories(source, tmp_path / "out", DataConfig(late_events="ignore"))
    times = np.asarray(rows["timestamp"])
    users = np.asarray(rows["user_id"])
    for user, events in built.items():
        assert history.timestamps(events).tolist() == times[users == user].tolist()


def test_a_basket_is_known_when_its_last_row_is(tmp_path: Path) -> None:
    source, rows = imported(tmp_path, dataclasses.replace(MAPPING, basket="basket"))
    built = histories(source, tmp_path / "out", DataConfig())
    for user, events in built.items():
        own = rows.filter(pa.array(np.asarray(rows["user_id"]) == user))
        baskets = np.asarray(own["basket"])
        known = np.asarray(own["came_in"])
        for basket, time in zip(
            events.column("basket_id").to_pylist(), history.timestamps(events).tolist(), strict=True
        ):
            assert time == known[baskets == basket].max()


def test_the_profile_counts_what_was_known(tmp_path: Path) -> None:
    source, rows = imported(tmp_path)
    users = np.asarray(rows["user_id"])
    known = np.asarray(rows["came_in"])
    targets = source.targets(0).select(["request_id", "user_id", "timestamp"]).to_pylist()
    requests = {
        row["request_id"]: (row["user_id"], round(row["timestamp"].timestamp() * 1000))
        for row in targets
    }
    lengths = [
        int(((users == user) & (known < request_time)).sum())
        for user, request_time in requests.values()
    ]
    assert (
        list(drift.DriftProfile.of(source).lengths)
        == psi.histogram(lengths, drift.LENGTH_EDGES).tolist()
    )
    assert source.facts["history_length"]["max"] == max(lengths)


def test_a_pushed_event_has_the_time_at_which_it_was_known(tmp_path: Path) -> None:
    source, _ = imported(tmp_path)
    events = pa.table(
        {
            "user_id": [1, 1],
            "item_id": [7, 8],
            "timestamp": [START, START + 1],
            "event_seq": [0, 1],
            "created": pa.array([START + 9, START], pa.timestamp("ms", "UTC")),
            "action": ["buy", "view"],
        }
    )
    assert live_events.conform(events, source.schema)["timestamp"].to_pylist() == [
        START + 1,
        START + 9,
    ]
    assert live_events.conform(events, source.schema, "ignore")["timestamp"].to_pylist() == [
        START,
        START + 1,
    ]
    with pytest.raises(DataError, match="'created' must not hold nulls"):
        live_events.conform(events.set_column(4, "created", pa.nulls(2, pa.int64())), source.schema)
    with pytest.raises(DataError, match="column 'created' has the wrong type; found string"):
        live_events.conform(
            events.set_column(4, "created", pa.array(["soon", "later"])), source.schema
        )
