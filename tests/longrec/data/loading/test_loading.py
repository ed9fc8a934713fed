"""RequestStream: every request once, with its own events and targets, in any batches."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.config import LengthConfig
from longrec.data.batch import RequestBatch
from longrec.data.histories import Histories
from longrec.data.loading.batching import balance_events, batch_bounds
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.data.loading.length_sampler import LengthSampler
from longrec.data.loading.prefetch import prefetch
from longrec.data.loading.request_stream import RequestStream
from longrec.errors import DataError
from longrec.training.encoded_cache import fit_encoder
from tests.longrec import small_histories

FULL = LengthSampler(LengthConfig("full"))
SHORT = LengthSampler(
    LengthConfig("beta", 0, 16, 64),
    seed=3,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_histories.write(tmp_path_factory.mktemp("world") / "histories")


@pytest.fixture(scope="module")
def encoded(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> EncodedHistories:
    histories = Histories.open(directory)
    return EncodedHistories.encode(
        histories, fit_encoder(histories), tmp_path_factory.mktemp("cache") / "encoded"
    )


def by_request(batches) -> dict[tuple[int, ...], list[list]]:
    """Return the content of each request, by its time and targets, which are unique."""
    seen: dict[tuple[int, ...], list[list]] = {}
    for batch in batches:
        batch.validate()
        for r in range(batch.num_requests):
            events = slice(int(batch.event_offsets[r]), int(batch.event_offsets[r + 1]))
            targets = slice(int(batch.target_offsets[r]), int(batch.target_offsets[r + 1]))
            key = (int(batch.request_timestamps[r]), *batch.target_items[targets].tolist())
            assert key not in seen
            seen[key] = [
                batch.event_items[events].tolist(),
                batch.event_features[events].tolist(),
                batch.event_timestamps[events].tolist(),
                batch.user_features[r].tolist(),
                batch.labels[targets].tolist(),
            ]
    return seen


def test_a_batch_equals_the_files(directory: Path, encoded: EncodedHistories) -> None:
    histories = Histories.open(directory)
    encoder = fit_encoder(histories)
    events = pa.ipc.open_file(str(directory / "timelines.arrow")).read_all()
    requests, targets = (
        pq.read_table(directory / f"{name}.parquet").to_pydict() for name in ("requests", "targets")
    )
    users = pq.read_table(directory / "users.parquet")
    chosen = np.array([3, 100, 17, 200])
    batch = encoded.batch(chosen, encoded.event_starts[chosen], encoded.event_ends[chosen])
    for r, position in enumerate(chosen):
        rows = events.slice(
            requests["event_start"][position],
            requests["event_end"][position] - requests["event_start"][position],
        )
        expected = (
            encoder.events(rows.combine_chunks().to_batches()[0]) if rows.num_rows else ([], [], [])
        )
        own = slice(int(batch.event_offsets[r]), int(batch.event_offsets[r + 1]))
        for got, want in zip(
            (batch.event_items, batch.event_features, batch.event_timestamps), expected, strict=True
        ):
            assert got[own].tolist() == np.asarray(want).tolist()
        first = requests["target_start"][position]
        last = requests["target_end"][position]
        own = slice(int(batch.target_offsets[r]), int(batch.target_offsets[r + 1]))
        assert (
            batch.target_items[own].tolist()
            == encoder.item_rows(np.array(targets["item_id"][first:last])).tolist()
        )
        assert batch.labels is not None
        assert batch.labels[own].tolist() == [
            [targets["click"][row], targets["buy"][row]] for row in range(first, last)
        ]
        assert batch.request_timestamps[r] == requests["timestamp"][position]
        assert np.array_equal(
            batch.user_features[r], encoder.users(users.slice(requests["user_row"][position], 1))[0]
        )
    assert batch.num_events > 0
    assert batch.event_items.dtype == torch.int32


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 40),
    st.sampled_from([FULL, SHORT]),
    st.integers(0, 3),
)
def test_packing_equals_one_request_at_a_time(
    encoded, budget: int, max_requests: int, length_sampler: LengthSampler, epoch: int
) -> None:
    packed = RequestStream.for_training(
        encoded, length_sampler, token_budget=budget, max_requests=max_requests, seed=7, epoch=epoch
    )
    single = RequestStream.for_training(
        encoded, length_sampler, token_budget=1, max_requests=1, seed=7, epoch=epoch
    )
    assert by_request(packed) == by_request(single)
    assert len(single) == len(encoded.requests("train"))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 120), st.integers(1, 8))
def test_batches_are_filled_greedily_inside_the_budget(
    sizes: list[int], budget: int, max_requests: int
) -> None:
    bounds = batch_bounds(
        np.array(sizes, np.int64),
        token_budget=budget,
        max_requests=max_requests,
    )
    assert bounds[0] == 0
    assert bounds[-1] == len(sizes)
    assert (np.diff(bounds) > 0).all()
    for start, end in itertools.pairwise(bounds):
        alone = end - start == 1
        assert alone or (sum(sizes[start:end]) <= budget and end - start <= max_requests)
        if end < len(sizes) and sum(sizes[start:end]) <= budget:
            assert end - start == max_requests or sum(sizes[start : end + 1]) > budget


def test_orders_are_seeded_and_change_with_the_epoch(encoded: EncodedHistories) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return RequestStream.for_training(
            encoded, FULL, token_budget=100, max_requests=8, seed=seed, epoch=epoch
        ).requests.tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert sorted(order(0, 0)) == sorted(order(0, 1)) == encoded.requests("train").tolist()


def test_a_stream_resumes_where_it_stopped(encoded: EncodedHistories) -> None:
    options = {"token_budget": 100, "max_requests": 8, "seed": 1, "epoch": 2}
    whole = list(RequestStream.for_training(encoded, SHORT, **options))
    rest = RequestStream.for_training(
        encoded,
        SHORT,
        **options,
        first_batch=3,
    )
    assert len(rest) == len(whole) - 3
    for a, b in zip(whole[3:], rest, strict=True):
        for field in dataclasses.fields(a):
            left = getattr(a, field.name)
            right = getattr(b, field.name)
            assert left is right is None or torch.equal(left, right)


def test_the_length_sampler_acts_on_training_batches_only(encoded: EncodedHistories) -> None:
    short = RequestStream.for_training(
        encoded,
        SHORT,
        token_budget=500,
        max_requests=64,
        seed=0,
    )
    full = RequestStream.for_training(
        encoded,
        FULL,
        token_budget=500,
        max_requests=64,
        seed=0,
    )
    assert short.num_events < full.num_events
    assert short.num_targets == full.num_targets
    assert sum(batch.num_events for batch in short) == short.num_events
    available = encoded.event_ends[short.requests] - encoded.event_starts[short.requests]
    kept = short.ends - short.starts
    assert np.array_equal(short.ends, encoded.event_ends[short.requests])  # the most recent events
    assert all(size % 8 == 0 or size == has for size, has in zip(kept, available, strict=True))


@pytest.mark.parametrize("length", [0, 1, 7, 1000])
def test_evaluation_takes_the_most_recent_events_in_the_given_order(
    encoded: EncodedHistories, length: int
) -> None:
    requests = encoded.requests("eval")
    served = RequestStream.for_evaluation(
        encoded, requests, length, token_budget=50, max_requests=5
    )
    batches = list(served)
    assert (
        torch.cat([batch.request_timestamps for batch in batches]).tolist()
        == encoded.request_timestamps[requests].tolist()
    )
    sizes = torch.cat([batch.event_offsets.diff() for batch in batches]).numpy()
    assert np.array_equal(
        sizes, np.minimum(length, encoded.event_ends[requests] - encoded.event_starts[requests])
    )
    last = [
        int(batch.event_timestamps[end - 1])
        for batch in batches
        for start, end in zip(
            batch.event_offsets[:-1].tolist(), batch.event_offsets[1:].tolist(), strict=True
        )
        if end > start
    ]
    expected = encoded.event_timestamps[encoded.event_ends[requests][sizes > 0] - 1]
    assert last == expected.tolist()


def test_positions_of_targets_follow_the_stream(encoded: EncodedHistories) -> None:
    served = RequestStream.for_training(
        encoded,
        FULL,
        token_budget=100,
        max_requests=4,
        seed=5,
    )
    labels = torch.cat([batch.labels for batch in served if batch.labels is not None]).numpy()
    assert np.array_equal(labels, encoded.labels[served.target_positions])
    users = encoded.request_users[served.target_requests]
    assert len(users) == len(labels) == served.num_targets
    assert set(users) <= set(encoded.request_users)


def test_cache_round_trips_and_is_mapped(
    directory: Path, encoded: EncodedHistories, tmp_path: Path
) -> None:
    histories = Histories.open(directory)
    EncodedHistories.encode(histories, fit_encoder(histories), tmp_path / "cache")
    again = EncodedHistories.open(tmp_path / "cache")
    for field in dataclasses.fields(again):
        assert np.array_equal(getattr(again, field.name), getattr(encoded, field.name))
    assert not again.event_items.flags.writeable
    (tmp_path / "cache" / "event_items.npy").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="not readable"):
        EncodedHistories.open(tmp_path / "cache")


def test_an_event_after_its_request_is_refused(directory: Path, tmp_path: Path) -> None:
    for name in directory.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    table = pq.read_table(tmp_path / "requests.parquet")
    ends = np.asarray(table.column("event_end")).copy()
    users = pq.read_table(tmp_path / "users.parquet")
    last = np.asarray(users.column("event_end"))[np.asarray(table.column("user_row"))]
    ends[:] = last  # the whole timeline, future included
    position = table.schema.get_field_index("event_end")
    pq.write_table(
        table.set_column(position, "event_end", pa.array(ends)), tmp_path / "requests.parquet"
    )
    with pytest.raises(DataError, match="at or after"):
        histories = Histories.open(tmp_path)
        EncodedHistories.encode(histories, fit_encoder(histories), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_failing_batch_stops_the_stream_with_its_error(encoded: EncodedHistories) -> None:
    served = RequestStream.for_evaluation(
        encoded, encoded.requests("eval"), 5, token_budget=50, max_requests=5
    )
    broken = dataclasses.replace(served, starts=served.starts[:6])
    with pytest.raises((IndexError, ValueError)):
        list(broken)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.integers(0, 50),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 8),
)
def test_ranks_have_nearly_equal_events_and_are_not_empty(sizes: list[int], num_parts: int) -> None:
    parts = balance_events(np.array(sizes, np.int64), num_parts)
    loads = [
        sum(size for size, part in zip(sizes, parts, strict=True) if part == number)
        for number in range(num_parts)
    ]
    assert max(loads) - min(loads) <= max(sizes)
    assert len(set(parts.tolist())) == min(num_parts, len(sizes))


@pytest.mark.parametrize(("num_ranks", "budget"), [(2, 60), (3, 300)])
def test_the_parts_of_all_ranks_are_the_batch(
    encoded: EncodedHistories, num_ranks: int, budget: int
) -> None:
    options = {"token_budget": budget, "max_requests": 16, "seed": 1}
    whole = RequestStream.for_training(encoded, SHORT, **options)
    parts = [
        RequestStream.for_training(
            encoded,
            SHORT,
            **options,
            num_ranks=num_ranks,
            rank=rank,
        )
        for rank in range(num_ranks)
    ]
    assert all(len(part) == len(whole) for part in parts)
    num_placeholders = 0
    skews = []
    for number in range(len(whole)):
        batch = whole.batch(number)
        own = [part.batch(number) for part in parts]
        assert all(
            (
                part.global_batch.num_requests,
                part.global_batch.num_events,
                part.global_batch.num_targets,
            )
            == (batch.num_requests, batch.num_events, batch.num_targets)
            for part in own
        )
        assert by_request(
            [part for part in own if not part.global_batch.is_placeholder]
        ) == by_request([batch])
        num_placeholders += sum(part.global_batch.is_placeholder for part in own)
        skews.append(max(part.num_events for part in own) - min(part.num_events for part in own))
        assert skews[-1] <= int(batch.event_offsets.diff().max())
    if budget == 60:
        assert num_placeholders  # a batch of fewer requests than ranks was among them
    else:
        assert np.mean(skews) < 0.1 * budget / num_ranks


def _damaged(batch: RequestBatch, damage: str) -> RequestBatch:
    offsets = batch.event_offsets
    targets = batch.target_offsets
    one = torch.zeros(1, dtype=torch.int64)
    change = {
        "first offset": {"event_offsets": offsets + 1},
        "falling offsets": {
            "event_offsets": torch.cat([offsets[:1], offsets[1:-1].flip(0), offsets[-1:]])
        },
        "last offset": {"target_offsets": torch.cat([targets[:-1], targets[-1:] + 1])},
        "no request": {"event_offsets": one},
        "one offset more": {"event_offsets": torch.cat([offsets, offsets[-1:]])},
        "an item beyond its table": {"target_items": torch.full_like(batch.target_items, 1_000)},
        "a feature row less": {"event_features": batch.event_features[1:]},
        "a label less": {"labels": None if batch.labels is None else batch.labels[1:]},
        "a request without target": {
            "target_offsets": torch.cat([targets[:1], targets[:1], targets[2:]])
        },
    }[damage]
    return dataclasses.replace(batch, **change)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        ("first offset", "event_offsets do not fit"),
        ("falling offsets", "event_offsets do not fit"),
        ("last offset", "target_offsets do not fit"),
        ("no request", "the batch is empty"),
        ("one offset more", "does not fit the batch"),
        (
            "an item beyond its table",
            r"target_items out of range; found 1000..1000; expected 0..60",
        ),
        ("a feature row less", "event_features does not fit"),
        ("a label less", "labels does not fit"),
        ("a request without target", "a request has no target"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(
    encoded: EncodedHistories, damage: str, what: str
) -> None:
    requests = encoded.requests("train")[-4:]
    batch = encoded.batch(requests, encoded.event_starts[requests], encoded.event_ends[requests])
    batch.validate(num_items=small_histories.NUM_ITEMS + 1)
    with pytest.raises(DataError, match=what) as caught:
        _damaged(batch, damage).validate(num_items=small_histories.NUM_ITEMS + 1)
    assert "\n" not in str(caught.value)


def test_a_batch_of_no_request_is_refused(encoded: EncodedHistories) -> None:
    nothing = np.zeros(0, np.int64)
    with pytest.raises(DataError, match="the batch is empty"):
        encoded.batch(nothing, nothing, nothing)


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_batches_do_not_depend_on_the_workers(encoded: EncodedHistories, workers: int) -> None:
    epochs = [
        RequestStream.for_training(
            encoded, SHORT, token_budget=100, max_requests=8, seed=1, epoch=epoch
        )
        for epoch in range(2)
    ]
    epochs[1] = dataclasses.replace(epochs[1], first_batch=4)
    expected = [
        *(epochs[0].batch(n) for n in range(len(epochs[0]))),
        *(epochs[1].batch(n + 4) for n in range(len(epochs[1]))),
    ]
    batches = list(prefetch(epochs, num_workers=workers))
    assert len(batches) == len(expected)
    for got, want in zip(batches, expected, strict=True):
        assert torch.equal(got.event_timestamps, want.event_timestamps)
        assert torch.equal(got.target_items, want.target_items)
        assert torch.equal(got.request_timestamps, want.request_timestamps)


def test_a_reader_that_stops_leaves_no_thread(encoded: EncodedHistories) -> None:
    batches = prefetch(
        [
            RequestStream.for_training(
                encoded,
                SHORT,
                token_budget=50,
                max_requests=4,
                seed=1,
            )
        ],
        num_workers=3,
    )
    next(batches)
    assert any(thread.name.startswith("longrec-batches") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("longrec-batches") for thread in threading.enumerate())
