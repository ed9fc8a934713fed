"""Write a synthetic dataset and its histories without a feature store, for studies.

The histories are those that `retrieve` writes for the same dataset.

    python model/benchmarks/synthetic_histories.py --out DIR --users 400 --requests 4 --targets 64
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.config import DataConfig
from longrec.data.columns import int64_column
from longrec.data.dataset import Dataset
from longrec.data.histories_writer import HistoriesWriter, split_requests
from longrec.data.importers.synthetic import synthesize
from longrec.data.timelines import group_starts, history_lengths
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID

Int64 = npt.NDArray[np.int64]
DEFAULT_LENGTHS = [100, 500, 1_000, 2_000, 4_000, 10_240]


@dataclasses.dataclass(frozen=True)
class Requests:
    """Requests of some users, one element each.

    Args:
        ids: request ids.
        user_ids: of the requests.
        times: in ms.
        event_starts: first event of the history, as an offset into the timelines.
        event_ends: end of the history.
        num_targets: targets of the request.
    """

    ids: Int64
    user_ids: Int64
    times: Int64
    event_starts: Int64
    event_ends: Int64
    num_targets: Int64

    @classmethod
    def concatenate(cls, parts: list[Requests]) -> Requests:
        """Return the requests of all parts."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def take(self, rows: Int64) -> Requests:
        """Return the requests in the given rows."""
        names = [field.name for field in dataclasses.fields(self)]
        return Requests(*(getattr(self, name)[rows] for name in names))


def write_histories(dataset_dir: Path, out_dir: Path, data: DataConfig) -> None:
    """Write the histories of all requests of a dataset without baskets.

    `data.max_requests` is ignored.
    """
    source = Dataset.open(dataset_dir)
    with HistoriesWriter(out_dir, source.schema) as writer:
        users, requests, targets = [], [], []
        for part in range(source.num_parts):
            events = source.events(part)
            part_targets = source.targets(part)
            start = _add_timelines(writer, events)
            part_users = _user_spans(events, start)
            users.append(part_users)
            requests.append(_requests(events, part_targets, part_users, data.max_history))
            targets.append(part_targets.select([ITEM_ID, *source.schema.task_names]))
        _finish(
            writer,
            source,
            data,
            users=pa.concat_tables(users),
            requests=Requests.concatenate(requests),
            targets=pa.concat_tables(targets),
        )


def _add_timelines(writer: HistoriesWriter, events: pa.Table) -> int:
    """Write the events of a part; return the offset of the first one."""
    columns = [name for name in events.column_names if name != USER_ID]
    (batch,) = events.select(columns).combine_chunks().to_batches()
    start, _ = writer.add(batch)
    return start


def _user_spans(events: pa.Table, start: int) -> pa.Table:
    """Return a table of the users of a part with the offsets of their events."""
    owners = int64_column(events, USER_ID)
    ids, first, counts = np.unique(owners, return_index=True, return_counts=True)
    return pa.table(
        {
            USER_ID: ids,
            "event_start": start + first,
            "event_end": start + first + counts,
        }
    )


def _requests(events: pa.Table, targets: pa.Table, users: pa.Table, max_history: int) -> Requests:
    """Return the requests of a part, from its targets."""
    heads = group_starts(int64_column(targets, REQUEST_ID))
    user_ids = int64_column(targets, USER_ID)[heads]
    times = int64_column(targets, TIMESTAMP)[heads]
    user_rows = np.searchsorted(int64_column(users, USER_ID), user_ids)
    timeline_starts = int64_column(users, "event_start")[user_rows]
    owners = int64_column(events, USER_ID)
    event_times = int64_column(events, TIMESTAMP)
    event_ends = timeline_starts + history_lengths(owners, event_times, user_ids, times)
    return Requests(
        ids=int64_column(targets, REQUEST_ID)[heads],
        user_ids=user_ids,
        times=times,
        event_starts=np.maximum(timeline_starts, event_ends - max_history),
        event_ends=event_ends,
        num_targets=np.diff(np.append(heads, targets.num_rows)),
    )


def _finish(
    writer: HistoriesWriter,
    source: Dataset,
    data: DataConfig,
    *,
    users: pa.Table,
    requests: Requests,
    targets: pa.Table,
) -> None:
    """Write users, requests in the order of time, their targets and the manifest."""
    target_starts = np.cumsum(requests.num_targets) - requests.num_targets
    order = np.lexsort((requests.ids, requests.times))
    ordered = requests.take(order)
    target_rows = [
        np.arange(start, start + count)
        for start, count in zip(target_starts[order], ordered.num_targets, strict=True)
    ]
    split = split_requests(ordered.times, ordered.user_ids, ordered.num_targets, data)
    target_ends = np.cumsum(ordered.num_targets)
    request_table = pa.table(
        {
            REQUEST_ID: ordered.ids,
            "user_row": _rows_of(int64_column(users, USER_ID), ordered.user_ids),
            TIMESTAMP: ordered.times,
            "event_start": ordered.event_starts,
            "event_end": ordered.event_ends,
            "target_start": target_ends - ordered.num_targets,
            "target_end": target_ends,
            "split": split.names,
        }
    )
    manifest = {
        "dataset": source.name,
        "dataset_facts": source.facts,
        "time_range_ms": [int(ordered.times.min()), int(ordered.times.max())],
        "split": data.split,
        "warmup_end_ms": split.warmup_end,
        "train_end_ms": split.train_end,
        "split_time_ms": split.eval_start,
        "max_history": data.max_history,
        "seed": 0,
    }
    target_table = targets.take(pa.array(np.concatenate(target_rows)))
    user_table = _with_features(users, source)
    writer.finish(user_table, request_table, target_table, source.items(), manifest)


def _rows_of(ids: Int64, wanted: Int64) -> Int64:
    """Return the row of each wanted id; `ids` are unique, in any order."""
    order = np.argsort(ids)
    return order[np.searchsorted(ids[order], wanted)]


def _with_features(users: pa.Table, source: Dataset) -> pa.Table:
    """Return the table of users with their row numbers and features."""
    features = source.users()
    rows = _rows_of(int64_column(features, USER_ID), int64_column(users, USER_ID))
    columns = {feature.name: features[feature.name].take(rows) for feature in source.schema.user}
    own_columns = {name: users[name] for name in users.column_names}
    return pa.table({"user_row": np.arange(users.num_rows), **own_columns, **columns})


def main() -> None:
    """Write OUT/dataset and OUT/histories."""
    options = _arguments()
    report = synthesize(
        options.out / "dataset",
        num_users=options.users,
        events_per_user=options.events,
        num_topics=options.topics,
        requests_per_user=options.requests,
        targets_per_request=options.targets,
        seed=options.seed,
        lengths=options.lengths,
    )
    data = DataConfig(max_history=options.events)
    write_histories(options.out / "dataset", options.out / "histories", data)
    summary = {
        "num_events": report.num_events,
        "num_requests": report.num_requests,
        "best_possible_auc": report.best_possible_auc,
    }
    print(json.dumps(summary))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    for name, default in (
        ("users", 3_000),
        ("events", 10_240),
        ("topics", 8),
        ("requests", 8),
        ("targets", 16),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lengths", type=int, nargs="+", default=DEFAULT_LENGTHS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
