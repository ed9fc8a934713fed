"""EncodedHistories: batches equal the files, the cache is mapped, future events are refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from longrec.data.batch import RequestBatch
from longrec.data.columns import int64_column
from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.errors import DataError
from longrec.training.encoded_cache import fit_encoder
from tests.longrec.data.loading.streams import events_of, targets_of

CHOSEN = [3, 100, 17, 200]
"""Positions of some requests."""


@pytest.fixture
def requests(directory: Path) -> list[dict[str, Any]]:
    return pq.read_table(directory / "requests.parquet").to_pylist()


def batch_of(encoded: EncodedHistories, positions: list[int]) -> RequestBatch:
    chosen = np.array(positions)
    return encoded.batch(
        chosen,
        encoded.event_starts[chosen],
        encoded.event_ends[chosen],
    )


def test_events_and_users_of_a_batch_equal_the_files(
    directory: Path,
    encoded: EncodedHistories,
    requests: list[dict[str, Any]],
) -> None:
    encoder = fit_encoder(Histories.open(directory))
    timelines = pa.ipc.open_file(str(directory / "timelines.arrow")).read_all()
    users = pq.read_table(directory / "users.parquet")
    batch = batch_of(encoded, CHOSEN)
    for row, position in enumerate(CHOSEN):
        request = requests[position]
        num_events = request["event_end"] - request["event_start"]
        own = timelines.slice(request["event_start"], num_events)
        events = events_of(batch, row)
        assert len(batch.event_items[events]) == num_events
        for record_batch in own.combine_chunks().to_batches():
            items, features, times = encoder.events(record_batch)
            assert batch.event_items[events].tolist() == items.tolist()
            assert batch.event_features[events].tolist() == features.tolist()
            assert batch.event_timestamps[events].tolist() == times.tolist()
        assert batch.request_timestamps[row] == request["timestamp"]
        user = users.slice(request["user_row"], 1)
        assert batch.user_features[[row]].tolist() == encoder.users(user).tolist()
    assert batch.num_events > 0
    assert batch.event_items.dtype == torch.int32


def test_targets_of_a_batch_equal_the_files(
    directory: Path,
    encoded: EncodedHistories,
    requests: list[dict[str, Any]],
) -> None:
    encoder = fit_encoder(Histories.open(directory))
    all_targets = pq.read_table(directory / "targets.parquet")
    batch = batch_of(encoded, CHOSEN)
    assert batch.labels is not None
    for row, position in enumerate(CHOSEN):
        request = requests[position]
        num_targets = request["target_end"] - request["target_start"]
        expected = all_targets.slice(request["target_start"], num_targets)
        item_rows = encoder.item_rows(expected.column("item_id").to_numpy())
        targets = targets_of(batch, row)
        assert batch.target_items[targets].tolist() == item_rows.tolist()
        labels = [[target["click"], target["buy"]] for target in expected.to_pylist()]
        assert batch.labels[targets].tolist() == labels


def test_cache_round_trips_and_is_mapped(
    directory: Path,
    encoded: EncodedHistories,
    tmp_path: Path,
) -> None:
    histories = Histories.open(directory)
    cache = tmp_path / "cache"
    EncodedHistories.encode(histories, fit_encoder(histories), cache)
    again = EncodedHistories.open(cache)
    for field in dataclasses.fields(again):
        found = getattr(again, field.name)
        assert np.array_equal(found, getattr(encoded, field.name))
    assert not again.event_items.flags.writeable
    assert again.digest() == encoded.digest()


def test_a_damaged_cache_is_refused(directory: Path, tmp_path: Path) -> None:
    histories = Histories.open(directory)
    cache = tmp_path / "cache"
    EncodedHistories.encode(histories, fit_encoder(histories), cache)
    (cache / "event_items.npy").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="not readable"):
        EncodedHistories.open(cache)


def test_an_event_after_its_request_is_refused(directory: Path, tmp_path: Path) -> None:
    leaking = tmp_path / "histories"
    shutil.copytree(directory, leaking)
    requests = pq.read_table(leaking / "requests.parquet")
    users = pq.read_table(leaking / "users.parquet")
    timeline_ends = int64_column(users, "event_end")
    ends = timeline_ends[int64_column(requests, "user_row")]  # the whole timeline, future included
    position = requests.schema.get_field_index("event_end")
    requests = requests.set_column(position, "event_end", pa.array(ends))
    pq.write_table(requests, leaking / "requests.parquet")
    histories = Histories.open(leaking)
    encoder = fit_encoder(histories)
    with pytest.raises(DataError, match="at or after"):
        EncodedHistories.encode(histories, encoder, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
