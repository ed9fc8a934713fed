"""User profiles: counts equal those of a plain loop."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data.columns import TIMESTAMP_TYPE
from longrec.data.quality.user_profiles import profile_users


def test_user_profiles_equal_a_loop(tmp_path: Path) -> None:
    """Small random parts with every kind of disorder, against one row after another."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        tables = [
            pa.table(
                {
                    "user_id": np.sort(rng.integers(0, 4, 30)),
                    "timestamp": pa.array(rng.integers(0, 5, 30), TIMESTAMP_TYPE),
                    "event_seq": rng.integers(0, 3, 30),
                    "item_id": rng.integers(0, 3, 30),
                    "basket_id": rng.integers(0, 6, 30),
                }
            )
            for _ in range(2)
        ]
        paths = [tmp_path / f"{seed}-{number}.parquet" for number in range(2)]
        for path, table in zip(paths, tables, strict=True):
            pq.write_table(table, path)
        profile = profile_users(
            dict(enumerate(paths)),
            "event_seq",
            np.array([0, 2]),
            has_baskets=True,
        )
        for row, user in enumerate(profile.columns["user_id"]):
            parts = [
                [entry for entry in table.to_pylist() if entry["user_id"] == user]
                for table in tables
            ]
            expected = _count_in_a_loop(parts)
            assert {name: int(profile.columns[name][row]) for name in expected} == expected


def _count_in_a_loop(parts: list[list[dict[str, object]]]) -> dict[str, int]:
    names = (
        "num_rows",
        "num_runs",
        "num_disordered",
        "num_duplicates",
        "num_repeats",
        "num_unknown_items",
        "num_split_baskets",
    )
    counts = dict.fromkeys(names, 0)
    for rows in parts:
        counts["num_rows"] += len(rows)
        counts["num_runs"] += bool(rows)
        counts["num_unknown_items"] += sum(row["item_id"] == 1 for row in rows)
        places = [(row["timestamp"], row["event_seq"]) for row in rows]
        counts["num_disordered"] += sum(
            later < earlier for earlier, later in itertools.pairwise(places)
        )
        start = 0  # of a run of rows with equal times
        for end in range(1, len(rows) + 1):
            if end == len(rows) or rows[end]["timestamp"] != rows[start]["timestamp"]:
                keys = [(row["item_id"], row["event_seq"]) for row in rows[start:end]]
                counts["num_duplicates"] += len(keys) - len(set(keys))
                counts["num_repeats"] += len(set(keys)) - len({item for item, _ in keys})
                start = end
        for basket in {row["basket_id"] for row in rows}:
            times = {row["timestamp"] for row in rows if row["basket_id"] == basket}
            counts["num_split_baskets"] += len(times) - 1
    return counts
