"""The cache gives the scores of a cold computation, whatever happens to the histories; it stays
within its bytes and encodes little.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
import torch

from longrec.data import history
from longrec.nn import parallel, ranker
from longrec.nn.target_attention import cached as kept
from longrec.scoring import scorer as scorer_module
from longrec.scoring.scorer import RequestRows, Scorer
from longrec.serving.kv_cache import HistoryKVCache, HistorySlice
from tests.longrec.serving import world
from tests.longrec.serving.world import SERVED, User

TOLERANCE = 2e-6


@pytest.fixture(scope="module", params=["bias", "none", "token", "matches"])
def any_scorer(request, tmp_path_factory) -> Scorer:
    options = (
        {"recency": "bias", "matches": True}
        if request.param == "matches"
        else {"recency": request.param}
    )
    return world.scorer(tmp_path_factory.mktemp(request.param), **options)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> Scorer:
    return world.scorer(tmp_path_factory.mktemp("bias"))


def wanted(key: object, request: RequestRows, length: int = SERVED) -> HistorySlice:
    end = history.prefix_before(request.history, request.request_time_ms).num_rows
    return HistorySlice(key, request.history, max(0, end - length), end, request.request_time_ms)


def scores(
    scorer: Scorer, cache: HistoryKVCache, asked: list[tuple[object, RequestRows, int]]
) -> list[np.ndarray]:
    return scorer.score_cached(
        [request for _, request, _ in asked], cache.get_or_encode([wanted(*ask) for ask in asked])
    )


def newest(user: User) -> int:
    return user.rows[-1][0] + 1 if user.rows else world.START_MS


@pytest.fixture
def merging(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Equal events are attended to once however few they are; the list gets how many were saved,
    request by request.
    """
    saved, of = [], Scorer._repeats

    def noted(self: Scorer, events, num_targets: int):
        found = of(self, events, num_targets)
        saved.append(0 if found is None else len(events) - len(found.first))
        return found

    for name, value in (("SMALL", 1), ("MAX_DISTINCT_SHARE", 1.0)):
        monkeypatch.setattr(scorer_module, name, value)
    monkeypatch.setattr(Scorer, "_repeats", noted)
    return saved


@pytest.mark.parametrize("seed", range(2))
def test_any_course_of_events_scores_like_a_cold_computation(
    any_scorer, seed: int, merging: list[int]
) -> None:
    rng, users = np.random.default_rng(seed), [User(seed * 100 + number) for number in range(5)]
    per_event = 3 * 2 * 32 * 4 + 12
    cache = HistoryKVCache(
        any_scorer, per_event * 260 * (seed + 1) // 2, keep=SERVED
    )  # room for two to five of them
    for _ in range(40 if any_scorer.is_cacheable else 10):
        asked = []
        for number in rng.integers(0, len(users), rng.integers(1, 5)):
            user = users[number]
            user.append(int(rng.choice([0, 0, 1, 1, 2, 30])))
            if rng.random() < 0.2:
                user.append(1, late=True)
            past = rng.random() < 0.25 and user.rows
            request_time = (
                int(user.rows[rng.integers(0, len(user.rows))][0]) if past else newest(user)
            )
            dropped = (
                int(rng.integers(0, 10)) if rng.random() < 0.3 else 0
            )  # a store that keeps fewer
            request = user.request(
                user.timeline().slice(dropped), request_time, int(rng.integers(1, 6))
            )
            asked.append((int(number), request, int(rng.choice([SERVED, SERVED, 7, 90, 0]))))
        got = scores(any_scorer, cache, asked)
        for (_, request, length), found in zip(asked, got, strict=True):
            np.testing.assert_allclose(
                found, any_scorer.score([request], length)[0], atol=TOLERANCE
            )
        assert 0 <= cache.num_bytes <= cache._max_bytes or not len(cache)
        assert cache.num_bytes == sum(entry.num_bytes for entry in cache._entries.values())
    if any_scorer.is_cacheable:
        assert min(cache.counts.hits, cache.counts.partial, cache.counts.misses) > 3, cache.counts
        assert sum(count > 0 for count in merging) > len(merging) // 3
        assert seed or cache.counts.evictions
    else:
        assert (
            not len(cache) and not cache.counts.hits and not any(merging)
        )  # an event of another time is another event to the model


def test_only_new_events_are_encoded(scorer) -> None:
    cache, user = HistoryKVCache(scorer, 1 << 30), User(1)
    user.append(60)
    for step, (change, encoded) in enumerate(
        [
            (lambda: None, SERVED),
            (lambda: None, 0),
            (lambda: user.append(1), 1),
            (lambda: user.append(3), 3),
            (lambda: user.append(1, late=True), 1),
            (lambda: user.append(200), SERVED),
        ]
    ):
        change()
        before = cache.counts.num_encoded
        scores(scorer, cache, [("u", user.request(user.timeline(), newest(user)), SERVED)])
        assert cache.counts.num_encoded - before <= encoded, step
    earlier = int(user.rows[-20][0])
    before = cache.counts.num_encoded
    scores(scorer, cache, [("u", user.request(user.timeline(), earlier), 5)])
    assert cache.counts.num_encoded == before  # a moment in the past reads what is kept


def test_an_event_that_was_changed_is_not_taken_for_the_old_one(scorer) -> None:
    """The same key with another feature: a republished log may do that, and the user id and the
    time say nothing of it.
    """
    cache, user = HistoryKVCache(scorer, 1 << 30), User(2)
    user.append(30)
    scores(scorer, cache, [("u", user.request(user.timeline(), newest(user)), SERVED)])
    time_ms, order, item, _, seconds = user.rows[12]
    user.rows[12] = (time_ms, order, item, "like" if user.rows[12][3] == "buy" else "buy", seconds)
    request = user.request(user.timeline(), newest(user))
    before = cache.counts.num_encoded
    np.testing.assert_allclose(
        scores(scorer, cache, [("u", request, SERVED)])[0],
        scorer.score([request], SERVED)[0],
        atol=TOLERANCE,
    )
    assert cache.counts.num_encoded - before == 1


@pytest.mark.parametrize("num_threads", [2, 9])
@pytest.mark.parametrize("num_requests", [1, 3, 9])
def test_work_shared_out_to_threads_scores_the_same(
    any_scorer, num_requests: int, num_threads: int, monkeypatch, merging
) -> None:
    """Events are cut so finely that several stretches are joined, the last of them shorter than the
    others; equal ones are one.
    """
    sizes = {
        "SMALL": (kept, 1),
        "EVENTS": (kept, 7),
        "ENCODE_CHUNK_EVENTS": (ranker, 8),
        "HEAD_CHUNK_TARGETS": (ranker, 4),
    }
    for name, (module, value) in sizes.items():
        monkeypatch.setattr(module, name, value)
    asked, threads = [], torch.get_num_threads()
    for number in range(num_requests):
        user = User(number)
        user.append([30, 0, 45][number % 3])
        asked.append((number, user.request(user.timeline(), newest(user), 1 + 4 * number), SERVED))
    expected = any_scorer.score([request for _, request, _ in asked], SERVED)
    parallel.share(num_threads)
    try:
        found = scores(any_scorer, HistoryKVCache(any_scorer, 1 << 30), asked)
    finally:
        parallel.share(1)
        torch.set_num_threads(threads)
    for each, wanted_scores in zip(found, expected, strict=True):
        np.testing.assert_allclose(each, wanted_scores, atol=TOLERANCE)


def test_chosen_rows_are_those_attended_to_and_weighed() -> None:
    torch.manual_seed(0)
    queries, events, rows, bias = (
        torch.randn(5, 8),
        torch.randn(9, 16),
        torch.tensor([0, 3, 4, 8]),
        torch.randn(2, 4),
    )
    chosen = kept.CachedKeysValues([events], [bias], 2, [5], rows=[rows])
    alone = kept.CachedKeysValues([events[rows]], [bias], 2, [5])
    assert torch.equal(chosen.attend(queries), alone.attend(queries)) and torch.equal(
        chosen.weights(queries)[0], alone.weights(queries)[0]
    )


def test_requests_of_one_user_in_one_batch_encode_once(scorer) -> None:
    cache, user = HistoryKVCache(scorer, 1 << 30), User(3)
    user.append(30)
    request = user.request(user.timeline(), newest(user))
    found = scores(scorer, cache, [("u", request, SERVED)] * 4)
    assert cache.counts.num_encoded == 30
    for each in found:
        np.testing.assert_allclose(each, scorer.score([request], SERVED)[0], atol=TOLERANCE)


def test_attention_is_the_softmax_that_scores(scorer) -> None:
    """Against the attention of the readable reference: weights from raw parameters, layer by layer,
    by the model's own queries.
    """
    user = User(4)
    user.append(25)
    request = user.request(user.timeline(), newest(user), 3)
    kept = HistoryKVCache(scorer, 0).kept([wanted(None, request)])[0]
    weights = scorer.attention(request, kept)
    assert weights.shape == (3, 2, 3, 25)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
    stca, batch = scorer.bundle.ranker.stca, scorer.to_batch([request], SERVED)
    with torch.no_grad():
        ranker = scorer.bundle.ranker
        gaps, outputs, targets = ranker.gaps(batch), [], ranker.item_tokens(batch.target_items)
        events = ranker.event_tokens(batch, gaps)
        for index, layer in enumerate(stca.layers):
            mixed = (
                targets if index == 0 else stca.fuse[index - 1](torch.cat([*outputs, targets], 1))
            )
            query, encoded = layer.query(mixed), layer.encode(events)
            heads = []
            for head in range(2):
                columns = slice(head * 16, head * 16 + 16)
                logits = (query @ layer.w_q[:, columns]) @ (
                    encoded @ layer.w_k[:, columns]
                ).t() / 4 + layer.gap_bias[gaps, head]
                expected = torch.softmax(logits, -1)
                np.testing.assert_allclose(weights[index, head], expected, atol=1e-5)
                heads.append(expected @ (encoded @ layer.w_v[:, columns]))
            outputs.append(torch.cat(heads, 1) @ layer.w_o)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "layers", "share"), [(64, 2, 10), (128, 4, 50)])
def test_a_new_event_costs_next_to_nothing_beside_a_cold_encoding(
    tmp_path, width: int, layers: int, share: int
) -> None:
    """At 10,000 events, median CPU seconds of one thread. A new event is 0.4 ms of Python whatever
    the model, and 1.8 with the shape checks
    of these tests; here a 45th and a 149th of the cold encoding, on a machine with wider products
    less."""
    scorer = world.scorer(
        tmp_path, width=width, num_layers=layers, num_heads=4, id_dim=32, feature_dim=8
    )
    user, threads = User(5), torch.get_num_threads()
    user.append(10_060)
    torch.set_num_threads(1)
    try:
        ask = HistorySlice("u", user.timeline(), 0, 10_000, newest(user))
        cold = [_cpu_seconds(HistoryKVCache(scorer, 1 << 30), ask) for _ in range(5)]
        cache, hits, appended = HistoryKVCache(scorer, 1 << 30, keep=10_000), [], []
        cache.get_or_encode([ask])
        for _ in range(50):
            ask = dataclasses.replace(ask, start=ask.start + 1, end=ask.end + 1)
            appended.append(_cpu_seconds(cache, ask))
            hits.append(_cpu_seconds(cache, ask))
    finally:
        torch.set_num_threads(threads)
    event = np.median(appended) - np.median(hits)
    print(
        f"d{width} M{layers}: cold {np.median(cold) * 1e3:.1f} ms, one event {event * 1e3:.2f} ms (1/{np.median(cold) / event:.0f}), "
        f"all kept {np.median(hits) * 1e3:.2f} ms, {cache.num_bytes / 10_000:.0f} bytes an event"
    )
    assert cache.counts.num_encoded == 10_050
    assert event < np.median(cold) / share


def _cpu_seconds(cache: HistoryKVCache, ask: HistorySlice) -> float:
    started = time.thread_time()
    cache.get_or_encode([ask])
    return time.thread_time() - started
