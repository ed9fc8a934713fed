"""The importer of any table of events on a real log of commits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.data.dataset import Dataset
from longrec.data.importers import (
    EventMapping,
    ImportOptions,
    NegativeSampling,
    RequestGrouping,
    import_events,
)
from longrec.data.timelines import history_lengths
from tests.longrec.data import real_logs


@pytest.mark.slow
def test_negatives_and_histories_of_a_real_log(tmp_path: Path) -> None:
    source = real_logs.shared("dev-events")
    mapping = EventMapping(
        timestamp="ts",
        timestamp_unit="s",
        basket="commit_id",
        features=("action:category",),
        items=source / "items.parquet",
        item_features=(
            "repo_id:category",
            "area_id:category",
            "extension:category",
            "depth:category",
        ),
    )
    report = import_events(
        source / "events.parquet",
        tmp_path / "d",
        mapping,
        negatives=NegativeSampling(4, "repo_id"),
        grouping=RequestGrouping(max_targets=8, max_requests_per_user=50),
        options=ImportOptions(rows_per_part=500_000),
    )
    assert (
        report.num_events,
        report.num_users,
        report.num_items,
        report.events_per_user["max"],
    ) == (2_790_011, 1_190, 465_240, 49_560)
    assert report.label_rates["label"] == pytest.approx(0.2, abs=0.002)
    dataset = Dataset.open(tmp_path / "d")
    log = pq.read_table(source / "events.parquet")
    first = np.full(600_000, 2**62)
    np.minimum.at(
        first,
        log["item_id"].to_numpy(),
        log["ts"].to_numpy() * 1_000,
    )
    repos = np.full(600_000, -1)
    repos[dataset.items()["item_id"].to_numpy()] = dataset.items()["repo_id"].to_numpy()
    for part in range(dataset.num_parts):
        events = dataset.events(part)
        targets = dataset.targets(part).to_pandas()
        request_times = np.array(times_of(dataset.targets(part)))
        assert np.all(first[targets["item_id"]] < request_times), "a target from the future"
        taken = set(
            zip(
                events["user_id"].to_pylist(),
                times_of(events),
                events["item_id"].to_pylist(),
                strict=True,
            )
        )
        is_taken = [
            key in taken
            for key in zip(
                targets["user_id"],
                request_times.tolist(),
                targets["item_id"],
                strict=True,
            )
        ]
        assert all(
            taken_now
            for taken_now, label in zip(is_taken, targets["label"], strict=True)
            if label == 1
        )
        pairs = [
            set(
                zip(
                    group["request_id"],
                    repos[group["item_id"]],
                    strict=True,
                )
            )
            for _, group in targets.groupby("label")
        ]
        assert pairs[0] <= pairs[1], "a negative of another repository"
        lengths = history_lengths(
            events["user_id"].to_numpy(),
            np.array(times_of(events)),
            targets["user_id"].to_numpy(),
            request_times,
        )
        starts = np.searchsorted(events["user_id"].to_numpy(), targets["user_id"].to_numpy())
        baskets = events["basket_id"].to_numpy()
        times = np.array(times_of(events))
        inside = starts + lengths
        whole = (inside < len(times)) & (lengths > 0)
        assert np.all(times[inside[whole]] >= request_times[whole])
        assert np.all(times[inside[whole] - 1] < request_times[whole])
        assert np.all(baskets[inside[whole] - 1] != baskets[inside[whole]]), (
            "a history ends inside a commit"
        )


def times_of(events: pa.Table) -> list[int]:
    return events["timestamp"].cast(pa.int64()).to_pylist()
