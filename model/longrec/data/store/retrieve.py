"""Retrieve the histories of a dataset's requests from the offline store.

    targets                 --RequestTable-->    requests by time
    offline store | shards  --TimelineSource-->  events of a group of users --> timelines.arrow

The result holds the timelines of all users once; a request is a pair of offsets into them. Shards
of a dataset are retrieved one by one, as histories of their own. `join_shards` writes them as one
retrieval would: the same requests and groups of users, so the same bytes.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longrec.config import DataConfig
from longrec.data.columns import Int64, int64_column
from longrec.data.dataset import Dataset
from longrec.data.histories import Histories, count_parts, target_schema
from longrec.data.histories_writer import HistoriesWriter, RequestSplit, split_requests
from longrec.data.location import local_directory
from longrec.data.shards import (
    WHOLE_DATASET,
    Shard,
    parse_shards,
    shard_folders,
    shard_order,
)
from longrec.data.store.feast_adapter import FeastAdapter
from longrec.data.store.request_table import RequestTable
from longrec.data.store.timeline_sources import (
    OfflineTimelines,
    RequestSpans,
    ShardTimelines,
    write_timelines,
)
from longrec.data.store.versions import PUBLISH_FIRST, PublishedVersion
from longrec.data.timelines import quantiles
from longrec.data.upkeep.forget_list import forgotten_users
from longrec.errors import DataError, SchemaMismatch, StoreError
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP

log = logging.getLogger(__name__)

_SHARED_KEYS = (
    "dataset",
    "dataset_facts",
    "dataset_hash",
    "store_version",
)


@dataclasses.dataclass(frozen=True, slots=True)
class RetrieveReport:
    """Counts of the histories that were written.

    Args:
        num_requests, num_warmup, num_train, num_validation, num_eval: requests, and those of each
            part.
        parts: part -> its numbers of `requests`, `targets` and `users`.
        num_targets, num_users, num_events, num_items: rows of the histories' tables.
        users_without_history: users with a request but without a history in the store.
        requests_without_history: requests with no event before them.
        requests_at_the_bound: requests whose oldest events were left out.
        longest_history: events of the longest history.
        split_time_ms: first time of the evaluation.
    """

    num_requests: int
    num_warmup: int
    num_train: int
    num_validation: int
    num_eval: int
    num_targets: int
    num_users: int
    num_events: int
    num_items: int
    users_without_history: int
    requests_without_history: int
    requests_at_the_bound: int
    longest_history: int
    split_time_ms: int
    parts: Mapping[str, Mapping[str, int]]


def retrieve(
    dataset_dir: str | Path,
    workdir: str | Path,
    repo_dir: str | Path,
    out_dir: str | Path,
    data: DataConfig,
    seed: int,
    shard: Shard = WHOLE_DATASET,
    digest: str = "",
) -> RetrieveReport:
    """Write the histories of a dataset's requests, read through the feature store; return counts.

    Feast returns one row per user, as of the end of the published log, for a bounded number of
    users at a time. Pushed events are not in it, so the same dataset gives the same histories. A
    history is the `data.max_history` most recent events strictly before the request.

    Args:
        dataset_dir: the published dataset; its targets become requests.
        workdir: as for `publish`.
        repo_dir: not used; a version holds its own settings.
        out_dir: new, empty, or histories to replace.
        data: bounds, and fractions of the split.
        seed: seed of the sample of requests, if `data.max_requests` asks for one. Shards have all
            requests, and `join_shards` takes the sample.
        shard: the shard of the dataset to retrieve, for `join_shards`; it may have no request.
        digest: of the version to read (`PublishReport.digest`); empty for the current one. A run
            that another publish overtakes goes on with its own.

    Raises:
        DataError: the dataset cannot be used or has no request.
        SchemaMismatch: the store was published for another schema.
        StoreError: nothing, or another dataset, was published; or Feast lost a row.
    """
    source = Dataset.open(dataset_dir, shard)
    published = PublishedVersion.open(workdir, digest)
    _check_published(source, published)
    requests = RequestTable.of_dataset(source).without(forgotten_users(workdir))
    if shard == WHOLE_DATASET:
        requests.check(str(source.path))
        requests = requests.sample(data.max_requests, seed)
    adapter = FeastAdapter(published)
    target_columns = [ITEM_ID, *source.schema.task_names]
    with HistoriesWriter(out_dir, source.schema) as writer:
        spans = write_timelines(
            OfflineTimelines(adapter),
            writer,
            requests,
            data,
            source.num_parts,
        )
        targets, target_ends = requests.read_targets(
            lambda part: source.targets(part, target_columns),
            target_schema(source.schema),
        )
        items = adapter.items(int64_column(source.items(), ITEM_ID))
        first_entries = _first_entries(source, published)
        first_entries["seed"] = seed
        content = _Content(requests, spans, targets, target_ends, items)
        return _finish(writer, content, first_entries, data)


def retrieve_shards(
    data_uri: str,
    items: Iterable[str],
    workdir: str | Path,
    out_dir: str | Path,
    data: DataConfig,
    seed: int,
    digest: str = "",
) -> RetrieveReport:
    """Write the histories of a dataset, retrieved shard by shard, as `retrieve` does.

    Memory and copies of the dataset are those of one shard.

    Args:
        data_uri: the dataset (`longrec.data.location`).
        items: all its shards (`longrec.data.shards.shard_items`).
        workdir, out_dir, data, seed, digest: as for `retrieve`.

    Raises:
        DataError, SchemaMismatch, StoreError: as for `retrieve`.
    """
    shards = [shard for item in items for shard in parse_shards(item)]
    with tempfile.TemporaryDirectory(prefix="longrec-histories-") as folder:
        for shard in shards:
            with local_directory(data_uri, shard) as dataset:
                retrieve(dataset, workdir, "", shard.folder(folder), data, seed, shard, digest)
        return join_shards(shard_folders(folder), out_dir, data, seed)


def join_shards(
    shard_dirs: Sequence[str | Path],
    out_dir: str | Path,
    data: DataConfig,
    seed: int,
) -> RetrieveReport:
    """Write the histories of all shards of a dataset as one retrieval would; return counts.

    Args:
        shard_dirs: one directory per shard that `retrieve` wrote, in any order.
        out_dir, data, seed: as for `retrieve`, and equal to those of the shards.

    Raises:
        DataError: a shard is missing, given twice, or of another dataset or version of the
            features; or there is no request.
    """
    shards = [Histories.open(directory) for directory in shard_dirs]
    names = [shard.manifest.get("shard", "1/1") for shard in shards]
    order = shard_order([Shard.parse(name) for name in names])
    shards = [shards[position] for position in order]
    _check_shards(shards)
    first = shards[0]
    first_entries: dict[str, Any] = {}
    for key in _SHARED_KEYS:
        first_entries[key] = first.manifest[key]
    requests = RequestTable.of_shards(shards)
    requests.check(f"the dataset {first_entries['dataset']}")
    requests = requests.sample(data.max_requests, seed)
    num_parts = int(first_entries["dataset_facts"]["num_parts"])
    with HistoriesWriter(out_dir, first.schema) as writer:
        spans = write_timelines(
            ShardTimelines(shards),
            writer,
            requests,
            data,
            num_parts,
        )
        targets, target_ends = requests.read_targets(
            lambda number: shards[number].targets,
            target_schema(first.schema),
        )
        first_entries["seed"] = seed
        content = _Content(requests, spans, targets, target_ends, first.items)
        return _finish(writer, content, first_entries, data)


@dataclasses.dataclass(frozen=True, slots=True)
class _Content:
    """Tables of the histories before they are written.

    Args:
        requests: the requests.
        spans: where their events are.
        targets: item_id and labels, request after request.
        target_ends: int64 [R], end of the targets of each request.
        items: item_id and item features.
    """

    requests: RequestTable
    spans: RequestSpans
    targets: pa.Table
    target_ends: Int64
    items: pa.Table

    @property
    def history_lengths(self) -> Int64:
        return self.spans.ends - self.spans.starts

    @property
    def target_starts(self) -> Int64:
        return np.append(0, self.target_ends)[:-1]

    def split(self, data: DataConfig) -> RequestSplit:
        """Return the part of each request."""
        return split_requests(
            self.requests.request_times,
            self.requests.user_ids,
            self.target_ends - self.target_starts,
            data,
        )

    def request_rows(self, splits: Sequence[str]) -> pa.Table:
        """Return the rows of requests.parquet."""
        return pa.table(
            {
                REQUEST_ID: self.requests.request_ids,
                "user_row": self.spans.user_rows,
                TIMESTAMP: self.requests.request_times,
                "event_start": self.spans.starts,
                "event_end": self.spans.ends,
                "target_start": self.target_starts,
                "target_end": self.target_ends,
                "split": pa.array(splits, pa.string()),
            }
        )


def _finish(
    writer: HistoriesWriter,
    content: _Content,
    first_entries: Mapping[str, Any],
    data: DataConfig,
) -> RetrieveReport:
    """Split the requests, write all tables and the manifest, and return counts."""
    times = content.requests.request_times
    time_range: list[int | None] = times[[0, -1]].tolist() if len(times) else [None, None]
    split = content.split(data)
    rows = content.request_rows(split.names)
    parts = count_parts(rows)
    manifest = {
        **first_entries,
        "time_range_ms": time_range,
        "split": data.split,
        "warmup_end_ms": split.warmup_end,
        "train_end_ms": split.train_end,
        "split_time_ms": split.eval_start,
        "max_history": data.max_history,
        "parts": parts,
        "history_length": quantiles(content.history_lengths),
    }
    writer.finish(
        content.spans.users,
        rows,
        content.targets,
        content.items,
        manifest,
    )
    # The split of a shard is replaced when the shards are joined.
    if "shard" not in first_entries:
        _log_parts(parts, split.note)
    return _report(content, parts, split.eval_start)


def _log_parts(parts: Mapping[str, Mapping[str, int]], note: str) -> None:
    for name, counts in parts.items():
        texts = [f"{count:,} {what}" for what, count in counts.items()]
        log.info("%s: %s", name, ", ".join(texts))
    if note:
        log.warning("there is no validation part: %s", note)


def _report(
    content: _Content,
    parts: Mapping[str, Mapping[str, int]],
    split_time_ms: int,
) -> RetrieveReport:
    lengths = content.history_lengths
    users = content.spans.users
    timeline_starts = int64_column(users, "event_start")
    timeline_lengths = int64_column(users, "event_end") - timeline_starts
    return RetrieveReport(
        num_requests=len(lengths),
        num_warmup=parts["warmup"]["requests"],
        num_train=parts["train"]["requests"],
        num_validation=parts["validation"]["requests"],
        num_eval=parts["eval"]["requests"],
        num_targets=content.targets.num_rows,
        num_users=users.num_rows,
        num_events=int(timeline_lengths.sum()),
        num_items=content.items.num_rows,
        users_without_history=int((timeline_lengths == 0).sum()),
        requests_without_history=int((lengths == 0).sum()),
        requests_at_the_bound=int(content.spans.is_truncated.sum()),
        longest_history=int(lengths.max(initial=0)),
        split_time_ms=split_time_ms,
        parts=parts,
    )


def _first_entries(source: Dataset, published: PublishedVersion) -> dict[str, Any]:
    """Return the entries of the manifest that tell where the histories are from."""
    first_entries = {
        "dataset": source.name,
        "dataset_facts": source.facts,
        "dataset_hash": source.facts.get("content_hash"),
        "store_version": published.manifest["version"],
    }
    if source.shard != WHOLE_DATASET:
        first_entries["shard"] = str(source.shard)
    return first_entries


def _check_published(source: Dataset, published: PublishedVersion) -> None:
    differences = source.schema.differences(published.schema)
    if differences:
        raise SchemaMismatch(
            "the feature store was published for another schema",
            found="; ".join(differences),
            fix=PUBLISH_FIRST,
        )
    if source.facts.get("content_hash") != published.manifest.get("dataset_hash"):
        raise StoreError(
            f"the feature store holds features of another dataset than {source.path}",
            found=published.manifest.get("name"),
            expected=source.name,
            fix=PUBLISH_FIRST,
        )


def _check_shards(shards: Sequence[Histories]) -> None:
    """Check that all shards are of one dataset, schema and version of the features."""
    origins = set()
    for shard in shards:
        dataset_hash = shard.manifest["dataset_hash"]
        store_version = shard.manifest["store_version"]
        origin = f"{dataset_hash} {shard.schema.fingerprint} {store_version}"
        origins.add(origin)
    if len(origins) > 1:
        raise DataError(
            "these are not shards of one dataset, read from one version of its features",
            found="; ".join(sorted(origins)),
            fix="Retrieve all shards again.",
        )
