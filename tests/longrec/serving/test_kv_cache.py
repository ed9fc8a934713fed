"""The cache gives the scores of a cold computation, stays within its bytes and encodes little."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
import torch

from longrec.data import history
from longrec.data.upkeep import forget_list
from longrec.nn import parallel, ranker
from longrec.nn.target_attention import cached
from longrec.scoring import duplicates
from longrec.scoring.request import CachedEvents, RequestRows
from longrec.scoring.scorer import Scorer
from longrec.serving.kv_cache import HistoryKVCache, HistorySlice
from tests.longrec.serving import small_scorer
from tests.longrec.serving.small_scorer import SERVED_LENGTH, User

TOLERANCE = 2e-6
LARGE = 1 << 30
KeyedRequest = tuple[object, RequestRows, int]
"""Key of the user, request, length."""


@pytest.fixture(scope="module", params=["bias", "none", "token", "matches"])
def any_scorer(request, tmp_path_factory) -> Scorer:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "matches":
        return small_scorer.make_scorer(directory, recency="bias", matches=True)
    return small_scorer.make_scorer(directory, recency=request.param)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> Scorer:
    return small_scorer.make_scorer(tmp_path_factory.mktemp("bias"))


@pytest.fixture
def num_merged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Merge equal events however few there are; list the merged events of each request."""
    num_merged = []
    find_duplicates = Scorer._find_duplicates

    def find_and_count(self: Scorer, events: CachedEvents, num_targets: int):
        found = find_duplicates(self, events, num_targets)
        num_distinct = len(events) if found is None else len(found.first_index)
        num_merged.append(len(events) - num_distinct)
        return found

    monkeypatch.setattr(duplicates, "MIN_CHUNK_WORK", 1)
    monkeypatch.setattr(duplicates, "MAX_DISTINCT_SHARE", 1.0)
    monkeypatch.setattr(Scorer, "_find_duplicates", find_and_count)
    return num_merged


def slice_of(
    key: object,
    request: RequestRows,
    length: int = SERVED_LENGTH,
) -> HistorySlice:
    end = history.events_before(request.history, request.request_time_ms).num_rows
    return HistorySlice(
        key=key,
        timeline=request.history,
        start=max(0, end - length),
        end=end,
        request_time_ms=request.request_time_ms,
    )


def scores(
    scorer: Scorer,
    cache: HistoryKVCache,
    requests: list[KeyedRequest],
) -> list[np.ndarray]:
    """Return the scores of requests in one batch, through the cache."""
    events = cache.get_or_encode([slice_of(*request) for request in requests])
    return scorer.score_cached([rows for _, rows, _ in requests], events)


def score_newest(
    scorer: Scorer,
    cache: HistoryKVCache,
    user: User,
) -> np.ndarray:
    """Return the scores of a request after the last event of a user."""
    request = user.request(user.timeline(), user.next_ms)
    return scores(scorer, cache, [("u", request, SERVED_LENGTH)])[0]


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def random_requests(rng: np.random.Generator, users: list[User]) -> list[KeyedRequest]:
    """Return requests of some users, after new events: in order, late, or none."""
    requests = []
    for number in rng.integers(
        0,
        len(users),
        rng.integers(1, 5),
    ):
        user = users[number]
        user.append(int(rng.choice([0, 0, 1, 1, 2, 30])))
        if rng.random() < 0.2:
            user.append(1, late=True)
        request_time = user.next_ms
        if rng.random() < 0.25 and user.rows:  # a time in the past
            request_time = int(user.rows[rng.integers(0, len(user.rows))][0])
        # Sometimes the store has fewer events.
        num_dropped = int(rng.integers(0, 10)) if rng.random() < 0.3 else 0
        timeline = user.timeline().slice(num_dropped)
        request = user.request(
            timeline,
            request_time,
            int(rng.integers(1, 6)),
        )
        length = int(rng.choice([SERVED_LENGTH, SERVED_LENGTH, 7, 90, 0]))
        requests.append((int(number), request, length))
    return requests


@pytest.mark.parametrize("seed", range(2))
def test_any_course_of_events_scores_like_a_cold_computation(
    any_scorer,
    seed: int,
    num_merged: list[int],
) -> None:
    rng = np.random.default_rng(seed)
    users = [User(seed * 100 + number) for number in range(5)]
    bytes_per_event = 3 * 2 * 32 * 4 + 12
    cache = HistoryKVCache(
        any_scorer,
        max_bytes=bytes_per_event * 260 * (seed + 1) // 2,  # two to five users fit
        events_per_user=SERVED_LENGTH,
    )
    for _ in range(40 if any_scorer.is_cacheable else 10):
        requests = random_requests(rng, users)
        found = scores(any_scorer, cache, requests)
        for (_, request, length), part in zip(requests, found, strict=True):
            assert_close(part, any_scorer.score([request], length)[0])
        assert 0 <= cache.num_bytes <= cache._max_bytes or not len(cache)
        assert cache.num_bytes == sum(entry.num_bytes for entry in cache._entries.values())
    counts = cache.counts
    if any_scorer.is_cacheable:
        assert min(counts.hits, counts.partial_hits, counts.misses) > 3, counts
        assert sum(count > 0 for count in num_merged) > len(num_merged) // 3
        assert seed or counts.evictions
    else:  # an event at another time is another event to the model
        assert not len(cache)
        assert not counts.hits
        assert not any(num_merged)


def test_only_new_events_are_encoded(scorer) -> None:
    cache = HistoryKVCache(scorer, LARGE)
    user = User(1)
    user.append(60)
    for step, (change, max_encoded) in enumerate(
        [
            (lambda: None, SERVED_LENGTH),
            (lambda: None, 0),
            (lambda: user.append(1), 1),
            (lambda: user.append(3), 3),
            (lambda: user.append(1, late=True), 1),
            (lambda: user.append(200), SERVED_LENGTH),
        ]
    ):
        change()
        before = cache.counts.num_encoded
        score_newest(scorer, cache, user)
        assert cache.counts.num_encoded - before <= max_encoded, step


def test_the_events_of_a_forgotten_user_leave_the_cache(scorer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(forget_list, "LOOK_SECONDS", 0.0)
    cache = HistoryKVCache(scorer, LARGE)
    cache.forgotten = forget_list.ForgetWatcher(tmp_path)
    user = User(1)
    user.append(60)
    request = user.request(user.timeline(), user.next_ms)
    scores(scorer, cache, [(key, request, SERVED_LENGTH) for key in (5, 6)])
    num_bytes = cache.num_bytes
    forget_list.add_users(tmp_path, [5])
    scores(scorer, cache, [(6, request, SERVED_LENGTH)])
    assert 5 not in cache
    assert 6 in cache
    assert cache.num_bytes == num_bytes / 2


def test_a_request_for_the_past_reads_the_cached_events(scorer) -> None:
    cache = HistoryKVCache(scorer, LARGE)
    user = User(1)
    user.append(260)
    score_newest(scorer, cache, user)
    before = cache.counts.num_encoded
    earlier = int(user.rows[-20][0])
    scores(
        scorer,
        cache,
        [("u", user.request(user.timeline(), earlier), 5)],
    )
    assert cache.counts.num_encoded == before


def test_a_changed_event_is_encoded_again(scorer) -> None:
    """A republished log may change a feature; key, user id and time of the event stay the same."""
    cache = HistoryKVCache(scorer, LARGE)
    user = User(2)
    user.append(30)
    score_newest(scorer, cache, user)
    time_ms, order, item, action, seconds = user.rows[12]
    other_action = "like" if action == "buy" else "buy"
    user.rows[12] = (time_ms, order, item, other_action, seconds)
    request = user.request(user.timeline(), user.next_ms)
    before = cache.counts.num_encoded
    found = scores(scorer, cache, [("u", request, SERVED_LENGTH)])[0]
    assert_close(found, scorer.score([request], SERVED_LENGTH)[0])
    assert cache.counts.num_encoded - before == 1


@pytest.mark.parametrize("num_threads", [2, 9])
@pytest.mark.parametrize("num_requests", [1, 3, 9])
def test_parallel_chunks_score_the_same(
    any_scorer,
    num_requests: int,
    num_threads: int,
    monkeypatch,
    num_merged,
) -> None:
    """Chunks are so small that several are joined; equal events are merged."""
    monkeypatch.setattr(cached, "MIN_CHUNK_WORK", 1)
    monkeypatch.setattr(cached, "ATTENTION_CHUNK_EVENTS", 7)
    monkeypatch.setattr(ranker, "ENCODE_CHUNK_EVENTS", 8)
    monkeypatch.setattr(ranker, "HEAD_CHUNK_TARGETS", 4)
    requests = []
    for number in range(num_requests):
        user = User(number)
        user.append([30, 0, 45][number % 3])
        request = user.request(
            user.timeline(),
            user.next_ms,
            1 + 4 * number,
        )
        requests.append((number, request, SERVED_LENGTH))
    expected = any_scorer.score([request for _, request, _ in requests], SERVED_LENGTH)
    num_torch_threads = torch.get_num_threads()
    parallel.set_num_threads(num_threads)
    try:
        found = scores(any_scorer, HistoryKVCache(any_scorer, LARGE), requests)
    finally:
        parallel.set_num_threads(1)
        torch.set_num_threads(num_torch_threads)
    for part, expected_part in zip(found, expected, strict=True):
        assert_close(part, expected_part)


def test_selected_rows_are_those_attended_to_and_weighed() -> None:
    torch.manual_seed(0)
    queries = torch.randn(5, 8)
    events = torch.randn(9, 16)
    rows = torch.tensor([0, 3, 4, 8])
    bias = torch.randn(2, 4)
    selected = cached.CachedKeysValues(
        [events],
        [bias],
        2,
        [5],
        rows=[rows],
    )
    alone = cached.CachedKeysValues(
        [events[rows]],
        [bias],
        2,
        [5],
    )
    assert torch.equal(selected.attend(queries), alone.attend(queries))
    assert torch.equal(selected.weights(queries)[0], alone.weights(queries)[0])


def test_requests_of_one_user_in_one_batch_encode_once(scorer) -> None:
    cache = HistoryKVCache(scorer, LARGE)
    user = User(3)
    user.append(30)
    request = user.request(user.timeline(), user.next_ms)
    found = scores(
        scorer,
        cache,
        [("u", request, SERVED_LENGTH)] * 4,
    )
    assert cache.counts.num_encoded == 30
    expected = scorer.score([request], SERVED_LENGTH)[0]
    for part in found:
        assert_close(part, expected)


def test_attention_is_the_softmax_that_scores(scorer) -> None:
    """Compare with the reference: weights from raw parameters, by the model's own queries."""
    user = User(4)
    user.append(25)
    request = user.request(user.timeline(), user.next_ms, 3)
    events = HistoryKVCache(scorer, 0).get_or_encode([slice_of(None, request)])[0]
    weights = scorer.attention(request, events)
    assert weights.shape == (3, 2, 3, 25)
    np.testing.assert_allclose(
        weights.sum(-1),
        1.0,
        atol=1e-5,
    )
    expected = reference_attention(scorer, request)
    np.testing.assert_allclose(weights, expected, atol=1e-5)


@torch.no_grad()
def reference_attention(scorer: Scorer, request: RequestRows) -> np.ndarray:
    """Return the attention weights of each layer and head, [M, H, m, L]."""
    model = scorer.bundle.ranker
    batch = scorer.to_batch([request], SERVED_LENGTH)
    gaps = model.gaps(batch)
    targets = model.item_tokens(batch.target_items)
    events = model.event_tokens(batch, gaps)
    outputs = []
    weights = []
    for index, layer in enumerate(model.stca.layers):
        mixed = targets
        if index:
            mixed = model.stca.fuse[index - 1](torch.cat([*outputs, targets], 1))
        query = layer.query(mixed)
        encoded = layer.encode(events)
        heads = []
        for head in range(2):
            columns = slice(head * 16, head * 16 + 16)
            keys = encoded @ layer.w_k[:, columns]
            logits = (query @ layer.w_q[:, columns]) @ keys.t() / 4
            weights_of_head = torch.softmax(logits + layer.gap_bias[gaps, head], -1)
            weights.append(weights_of_head)
            heads.append(weights_of_head @ (encoded @ layer.w_v[:, columns]))
        outputs.append(torch.cat(heads, 1) @ layer.w_o)
    num_layers = len(model.stca.layers)
    return torch.stack(weights).unflatten(0, (num_layers, 2)).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "layers", "share"), [(64, 2, 10), (128, 4, 50)])
def test_a_new_event_costs_little_compared_with_a_cold_encoding(
    tmp_path,
    width: int,
    layers: int,
    share: int,
) -> None:
    """Compare median CPU seconds of one thread, at 10,000 events.

    A new event takes 0.4 ms of Python for any model, and 1.8 ms with the shape checks of these
    tests. Here that is a 45th and a 149th of the cold encoding, and less where products are wider.
    """
    scorer = small_scorer.make_scorer(
        tmp_path,
        width=width,
        num_layers=layers,
        num_heads=4,
        id_dim=32,
        feature_dim=8,
    )
    user = User(5)
    user.append(10_060)
    piece = HistorySlice(
        key="u",
        timeline=user.timeline(),
        start=0,
        end=10_000,
        request_time_ms=user.next_ms,
    )
    cache = HistoryKVCache(scorer, LARGE, events_per_user=10_000)
    hits = []
    appended = []
    num_torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cold = [cpu_seconds(HistoryKVCache(scorer, LARGE), piece) for _ in range(5)]
        cache.get_or_encode([piece])
        for _ in range(50):
            piece = dataclasses.replace(
                piece,
                start=piece.start + 1,
                end=piece.end + 1,
            )
            appended.append(cpu_seconds(cache, piece))
            hits.append(cpu_seconds(cache, piece))
    finally:
        torch.set_num_threads(num_torch_threads)
    cold_seconds = np.median(cold)
    event_seconds = np.median(appended) - np.median(hits)
    print(
        f"d{width} M{layers}: cold {cold_seconds * 1e3:.1f} ms, "
        f"one event {event_seconds * 1e3:.2f} ms (1/{cold_seconds / event_seconds:.0f}), "
        f"all cached {np.median(hits) * 1e3:.2f} ms, {cache.num_bytes / 10_000:.0f} bytes an event"
    )
    assert cache.counts.num_encoded == 10_050
    assert event_seconds < cold_seconds / share


def cpu_seconds(cache: HistoryKVCache, piece: HistorySlice) -> float:
    """Return the CPU time of reading a history through the cache."""
    started = time.thread_time()
    cache.get_or_encode([piece])
    return time.thread_time() - started
