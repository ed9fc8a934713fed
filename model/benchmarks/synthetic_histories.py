"""Histories of a synthetic dataset without a feature store: what `store.retrieve` writes of the same
dataset, for studies on a bare machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from longrec.config import DataConfig
from longrec.data import dataset as layout
from longrec.data.histories import HistoriesWriter, split_names, split_times
from longrec.data.importers.synthetic import synthesize
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID


def histories(dataset_dir: Path, out_dir: Path, data: DataConfig) -> None:
    """Writes the histories of all requests of a dataset without baskets; `data.max_requests` is not
    looked at.
    """
    source = layout.Dataset.open(dataset_dir)
    with HistoriesWriter(out_dir, source.schema) as writer:
        users, requests, targets = [], [], []
        for part in range(source.num_parts):
            events, asked = source.events(part), source.targets(part)
            owners, times = layout.int64_of(events, USER_ID), layout.int64_of(events, TIMESTAMP)
            start, _ = writer.add(
                events.select([name for name in events.column_names if name != USER_ID])
                .combine_chunks()
                .to_batches()[0]
            )
            ids, first, counts = np.unique(owners, return_index=True, return_counts=True)
            users.append(
                pa.table(
                    {
                        USER_ID: ids,
                        "event_start": start + first,
                        "event_end": start + first + counts,
                    }
                )
            )
            heads = layout.group_starts(layout.int64_of(asked, REQUEST_ID))
            askers, request_times = (
                layout.int64_of(asked, USER_ID)[heads],
                layout.int64_of(asked, TIMESTAMP)[heads],
            )
            ends = (
                start
                + first[np.searchsorted(ids, askers)]
                + layout.history_lengths(owners, times, askers, request_times)
            )
            begins = np.maximum(
                start + first[np.searchsorted(ids, askers)], ends - data.max_history
            )
            sizes = np.diff(np.append(heads, asked.num_rows))
            requests.append(
                np.stack(
                    [
                        layout.int64_of(asked, REQUEST_ID)[heads],
                        askers,
                        request_times,
                        begins,
                        ends,
                        sizes,
                    ]
                )
            )
            targets.append(asked.select([ITEM_ID, *source.schema.task_names]))
        _finish(
            writer,
            source,
            data,
            pa.concat_tables(users),
            np.concatenate(requests, axis=1),
            pa.concat_tables(targets),
        )


def _finish(
    writer: HistoriesWriter,
    source: layout.Dataset,
    data: DataConfig,
    users: pa.Table,
    requests: np.ndarray,
    targets: pa.Table,
) -> None:
    ids, askers, request_times, begins, ends, sizes = requests
    starts = np.cumsum(sizes) - sizes
    order = np.lexsort((ids, request_times))
    rows = np.concatenate([np.arange(starts[i], starts[i] + sizes[i]) for i in order])
    target_ends = np.cumsum(sizes[order])
    warmup_end, split_time = split_times(
        request_times[order], data.warmup_fraction, data.eval_fraction
    )
    known = source.users().to_pydict()
    place = {user: row for row, user in enumerate(known[USER_ID])}
    own = [place[user] for user in users[USER_ID].to_pylist()]
    by_id = np.argsort(np.asarray(users[USER_ID]))
    columns = {
        feature.name: [known[feature.name][row] for row in own] for feature in source.schema.user
    }
    table = pa.table(
        {
            REQUEST_ID: ids[order],
            "user_row": by_id[np.searchsorted(np.asarray(users[USER_ID])[by_id], askers[order])],
            TIMESTAMP: request_times[order],
            "event_start": begins[order],
            "event_end": ends[order],
            "target_start": target_ends - sizes[order],
            "target_end": target_ends,
            "split": split_names(request_times[order], warmup_end, split_time),
        }
    )
    manifest = {
        "dataset": source.name,
        "dataset_facts": source.facts,
        "time_range_ms": [int(request_times.min()), int(request_times.max())],
        "warmup_end_ms": warmup_end,
        "split_time_ms": split_time,
        "max_history": data.max_history,
        "seed": 0,
    }
    users = pa.table(
        {
            "user_row": np.arange(users.num_rows),
            **{name: users[name] for name in users.column_names},
            **columns,
        }
    )
    writer.finish(users, table, targets.take(pa.array(rows)), source.items(), manifest)


def main() -> None:
    """Writes OUT/dataset and OUT/histories."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    for name, value in (
        ("users", 3_000),
        ("events", 10_240),
        ("topics", 8),
        ("requests", 8),
        ("targets", 16),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[100, 500, 1_000, 2_000, 4_000, 10_240]
    )
    chosen = parser.parse_args()
    report = synthesize(
        chosen.out / "dataset",
        num_users=chosen.users,
        events_per_user=chosen.events,
        num_topics=chosen.topics,
        requests_per_user=chosen.requests,
        targets_per_request=chosen.targets,
        seed=chosen.seed,
        lengths=chosen.lengths,
    )
    histories(
        chosen.out / "dataset", chosen.out / "histories", DataConfig(max_history=chosen.events)
    )
    print(
        json.dumps(
            {
                "num_events": report.num_events,
                "num_requests": report.num_requests,
                "best_possible_auc": report.best_possible_auc,
            }
        )
    )


if __name__ == "__main__":
    main()
