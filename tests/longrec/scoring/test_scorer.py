"""Scorer: the training forward in evaluation mode, from rows.

Only the request itself changes its scores.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from longrec.config import LengthConfig, ModelConfig, TrainConfig
from longrec.data.batch import RequestBatch
from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.data.loading.request_stream import RequestStream
from longrec.errors import ConfigError, DataError, SchemaMismatch
from longrec.schema import Schema
from longrec.scoring.bundle import Bundle
from longrec.scoring.request import RequestRows
from longrec.scoring.scorer import Scorer
from longrec.training.train import train
from tests.longrec import small_histories

MODEL = ModelConfig(
    width=16,
    num_layers=2,
    num_heads=2,
    id_dim=8,
    feature_dim=4,
    mixer_layers=1,
)
TRAIN = TrainConfig(
    epochs=2,
    token_budget=300,
    max_requests_per_batch=16,
    learning_rate=1e-2,
    device="cpu",
)
SERVED_LENGTH = 64
UNLIMITED = 10**9
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def histories_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_histories.write(tmp_path_factory.mktemp("small") / "histories")


@pytest.fixture(scope="module")
def bundle_dir(
    histories_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    train(
        histories_dir,
        out,
        MODEL,
        lengths=LengthConfig("beta", 0, 16, 64),
        train=TRAIN,
        served_lengths=[SERVED_LENGTH],
        seed=0,
    )
    return out


@pytest.fixture(scope="module")
def scorer(bundle_dir: Path) -> Scorer:
    return Scorer.load(bundle_dir)


@pytest.fixture(scope="module")
def encoded(
    histories_dir: Path,
    scorer: Scorer,
    tmp_path_factory: pytest.TempPathFactory,
) -> EncodedHistories:
    return EncodedHistories.encode(
        Histories.open(histories_dir),
        scorer.bundle.encoder,
        tmp_path_factory.mktemp("cache") / "encoded",
    )


@pytest.fixture(scope="module")
def requests(histories_dir: Path) -> list[RequestRows]:
    """Every request, each with all events of its user: the Scorer cuts them."""
    histories = Histories.open(histories_dir)
    events = pa.Table.from_batches(list(histories.event_batches())).combine_chunks()
    users = histories.users.to_pylist()
    item_ids = histories.targets.column("item_id").to_pylist()
    rows = []
    for request in histories.requests.to_pylist():
        user = users[request["user_row"]]
        own_items = slice(request["target_start"], request["target_end"])
        row = RequestRows(
            history_between(events, user["event_start"], user["event_end"]),
            {"region": user["region"]},
            request["timestamp"],
            np.array(item_ids[own_items], np.int64),
        )
        rows.append(row)
    return rows


def history_between(
    events: pa.Table,
    start: int,
    end: int,
) -> pa.RecordBatch:
    batches = events.slice(start, end - start).to_batches()
    if batches:
        return batches[0]
    return pa.RecordBatch.from_pylist([], schema=events.schema)


def longest(requests: list[RequestRows]) -> RequestRows:
    return max(requests, key=lambda request: request.history.num_rows)


def forward(
    scorer: Scorer,
    batch: RequestBatch,
) -> np.ndarray:
    """Return the probabilities of the training forward."""
    with torch.no_grad():
        logits = scorer.bundle.ranker(batch).logits
        return torch.sigmoid(logits).numpy()


def assert_close(
    scores: np.ndarray,
    expected: np.ndarray,
) -> None:
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE)


@pytest.mark.parametrize("length", [0, 5, 64])
def test_rows_score_like_the_training_forward_of_the_same_requests(
    scorer: Scorer,
    encoded: EncodedHistories,
    requests: list[RequestRows],
    length: int,
) -> None:
    positions = encoded.requests("eval")
    stream = RequestStream.for_evaluation(
        encoded,
        positions,
        length,
        token_budget=UNLIMITED,
        max_requests=len(positions),
    )
    [batch] = stream
    expected = forward(scorer, batch)
    in_one_batch = dataclasses.replace(
        scorer,
        token_budget=UNLIMITED,
        max_requests=len(positions),
    )
    asked = [requests[position] for position in positions]
    scores = np.concatenate(in_one_batch.score(asked, length))
    assert scores.dtype == np.float32
    # the same batch: bit for bit
    assert np.array_equal(scores, expected)
    [streamed] = scorer.score_batches(stream)
    assert np.array_equal(streamed, expected)


def test_the_default_length_is_the_one_of_the_bundle(
    scorer: Scorer,
    requests: list[RequestRows],
) -> None:
    asked = requests[-20:]
    explicit = scorer.score(asked, SERVED_LENGTH)
    for scores, expected in zip(scorer.score(asked), explicit, strict=True):
        assert np.array_equal(scores, expected)


def test_batching_and_order_do_not_change_scores(
    scorer: Scorer,
    requests: list[RequestRows],
) -> None:
    asked = requests[-30:]
    unbatched = dataclasses.replace(scorer, token_budget=1)
    together = scorer.score(asked, SERVED_LENGTH)
    one_by_one = [unbatched.score([request], SERVED_LENGTH)[0] for request in asked]
    backwards = scorer.score(asked[::-1], SERVED_LENGTH)[::-1]
    for scores, alone, reordered in zip(together, one_by_one, backwards, strict=True):
        assert_close(scores, alone)
        assert_close(scores, reordered)


def test_the_order_of_candidates_does_not_change_their_scores(
    scorer: Scorer,
    requests: list[RequestRows],
) -> None:
    for request in requests[-30:]:
        if len(set(request.candidates.tolist())) >= 3:
            break
    backwards = request.candidates[::-1].copy()
    flipped = dataclasses.replace(request, candidates=backwards)
    [scores] = scorer.score([request])
    [flipped_scores] = scorer.score([flipped])
    assert_close(flipped_scores[::-1], scores)


def test_events_at_or_after_the_request_time_are_not_used(
    scorer: Scorer,
    requests: list[RequestRows],
) -> None:
    request = longest(requests[-60:])
    times = np.asarray(request.history.column("timestamp"))
    # an event happens at this very time
    request_time_ms = int(times[len(times) // 2])
    end = int(np.searchsorted(times, request_time_ms, side="left"))
    assert end < int(np.searchsorted(times, request_time_ms, side="right"))
    full = dataclasses.replace(request, request_time_ms=request_time_ms)
    cut = dataclasses.replace(full, history=request.history.slice(0, end))
    [full_scores] = scorer.score([full], SERVED_LENGTH)
    [cut_scores] = scorer.score([cut], SERVED_LENGTH)
    assert np.array_equal(full_scores, cut_scores)
    late = dataclasses.replace(request, request_time_ms=int(times[-1]) + 1)
    [late_scores] = scorer.score([late], SERVED_LENGTH)
    assert not np.array_equal(late_scores, cut_scores)


def test_unknown_users_and_items_and_no_candidates(
    scorer: Scorer,
    requests: list[RequestRows],
) -> None:
    request = requests[-1]
    nobody = RequestRows(
        request.history.slice(0, 0),
        None,
        request.request_time_ms,
        np.array([small_histories.FIRST_ID, -1, 999], np.int64),
    )
    without_columns = dataclasses.replace(nobody, history=pa.RecordBatch.from_pydict({}))
    without_candidates = dataclasses.replace(request, candidates=np.array([], np.int64))
    scores = scorer.score(
        [
            without_candidates,
            nobody,
            without_columns,
            without_candidates,
        ]
    )
    assert [part.shape for part in scores] == [(0, 2), (3, 2), (3, 2), (0, 2)]
    assert np.isfinite(scores[1]).all()
    assert (scores[1] > 0).all()
    assert (scores[1] < 1).all()
    assert_close(scores[1], scores[2])
    # both are the unknown item
    assert_close(scores[1][1], scores[1][2])
    assert scorer.score([]) == []
    [nothing] = scorer.score([without_candidates])
    assert nothing.shape == (0, 2)


def test_the_length_changes_scores_but_no_weight(
    scorer: Scorer,
    requests: list[RequestRows],
) -> None:
    before = {}
    for name, tensor in scorer.bundle.ranker.state_dict().items():
        before[name] = tensor.clone()
    with_candidates = [request for request in requests if len(request.candidates)]
    request = dataclasses.replace(longest(with_candidates), request_time_ms=2**60)
    scores = {}
    for length in (0, 8, 10_000, request.history.num_rows):
        [scores[length]] = scorer.score([request], length)
    assert not np.array_equal(scores[0], scores[8])
    assert not np.array_equal(scores[8], scores[10_000])
    assert np.array_equal(scores[request.history.num_rows], scores[10_000])
    for name, tensor in scorer.bundle.ranker.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_inference_mode_does_not_leak_to_the_caller(
    scorer: Scorer,
    encoded: EncodedHistories,
) -> None:
    stream = RequestStream.for_evaluation(
        encoded,
        encoded.requests("eval"),
        8,
        token_budget=50,
        max_requests=5,
    )
    for _ in scorer.score_batches(stream):
        assert not torch.is_inference_mode_enabled()


def test_wrong_requests_are_named(
    scorer: Scorer,
    requests: list[RequestRows],
) -> None:
    request = longest(requests)
    order = range(request.history.num_rows - 1, -1, -1)
    backwards = dataclasses.replace(
        request,
        history=request.history.take(pa.array(order)),
    )
    with pytest.raises(DataError, match="time order"):
        scorer.score([backwards])
    wrong_type = dataclasses.replace(request, user_features={"region": 5})
    with pytest.raises(DataError, match="region"):
        scorer.score([wrong_type])
    with pytest.raises(ConfigError, match="negative"):
        scorer.score([request], -1)


def test_another_schema_is_refused(bundle_dir: Path) -> None:
    schema = small_histories.SCHEMA
    other = Schema(
        schema.name,
        schema.item,
        schema.user,
        (),
        schema.tasks,
    )
    with pytest.raises(SchemaMismatch):
        Scorer.load(bundle_dir, schema=other)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_refused(bundle_dir: Path) -> None:
    with pytest.raises(ConfigError, match="no GPU"):
        Scorer.load(bundle_dir, "cuda")


def test_a_user_feature_that_is_left_out_is_missing(
    scorer: Scorer,
    requests: list[RequestRows],
) -> None:
    scores = []
    for features in ({}, None, {"region": None, "user_id": 7}):
        request = dataclasses.replace(requests[-1], user_features=features)
        scores.append(scorer.score([request])[0])
    assert np.array_equal(scores[0], scores[1])
    assert np.array_equal(scores[0], scores[2])


def test_the_bundle_alone_gives_the_same_scores(
    bundle_dir: Path,
    scorer: Scorer,
    requests: list[RequestRows],
    tmp_path: Path,
) -> None:
    Bundle.load(bundle_dir).save(tmp_path / "copy")
    copied = Scorer.load(tmp_path / "copy")
    asked = requests[:10]
    for scores, expected in zip(copied.score(asked), scorer.score(asked), strict=True):
        assert np.array_equal(scores, expected)
