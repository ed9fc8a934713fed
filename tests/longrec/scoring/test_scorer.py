"""The Scorer: the training forward in evaluation mode, from rows; nothing but the request changes a
score.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from longrec.config import LengthConfig, ModelConfig, TrainConfig
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

MODEL = ModelConfig(width=16, num_layers=2, num_heads=2, id_dim=8, feature_dim=4, mixer_layers=1)
TRAIN = TrainConfig(
    epochs=2, token_budget=300, max_requests_per_batch=16, learning_rate=1e-2, device="cpu"
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_histories.write(tmp_path_factory.mktemp("world") / "histories")


@pytest.fixture(scope="module")
def bundle_dir(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    train(
        directory,
        out,
        MODEL,
        lengths=LengthConfig("beta", 0, 16, 64),
        train=TRAIN,
        served_length=64,
        seed=0,
    )
    return out


@pytest.fixture(scope="module")
def scorer(bundle_dir: Path) -> Scorer:
    return Scorer.load(bundle_dir)


@pytest.fixture(scope="module")
def encoded(
    directory: Path, scorer: Scorer, tmp_path_factory: pytest.TempPathFactory
) -> EncodedHistories:
    return EncodedHistories.encode(
        Histories.open(directory),
        scorer.bundle.encoder,
        tmp_path_factory.mktemp("cache") / "encoded",
    )


@pytest.fixture(scope="module")
def rows(directory: Path) -> list[RequestRows]:
    """Every request of the small world, with the whole timeline of its user (the Scorer cuts)."""
    histories = Histories.open(directory)
    events = pa.Table.from_batches(list(histories.event_batches())).combine_chunks()
    users, requests, targets = (
        table.to_pydict() for table in (histories.users, histories.requests, histories.targets)
    )
    found = []
    for position in range(len(requests["request_id"])):
        user = requests["user_row"][position]
        start, end = users["event_start"][user], users["event_end"][user]
        batches = events.slice(start, end - start).to_batches()
        history = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=events.schema)
        candidates = np.array(
            targets["item_id"][
                requests["target_start"][position] : requests["target_end"][position]
            ],
            np.int64,
        )
        found.append(
            RequestRows(
                history,
                {"region": users["region"][user]},
                requests["timestamp"][position],
                candidates,
            )
        )
    return found


def forward(scorer: Scorer, batch) -> np.ndarray:
    with torch.no_grad():
        return torch.sigmoid(scorer.bundle.ranker(batch).logits).numpy()


@pytest.mark.parametrize("length", [0, 5, 64])
def test_rows_score_like_the_training_forward_of_the_same_requests(
    scorer, encoded, rows, length: int
) -> None:
    requests = encoded.requests("eval")
    stream = RequestStream.for_evaluation(
        encoded, requests, length, token_budget=10**9, max_requests=len(requests)
    )
    (batch,) = stream
    expected = forward(scorer, batch)
    whole = dataclasses.replace(scorer, token_budget=10**9, max_requests=len(requests))
    got = np.concatenate(whole.score([rows[position] for position in requests], length))
    assert got.dtype == np.float32 and np.array_equal(got, expected)  # the same batch: bit for bit
    (streamed,) = scorer.score_batches(stream)
    assert np.array_equal(streamed, expected)


def test_the_default_length_is_the_one_that_the_bundle_states(scorer, rows) -> None:
    some = rows[-20:]
    for a, b in zip(scorer.score(some), scorer.score(some, 64), strict=True):
        assert np.array_equal(a, b)


def test_batching_and_order_do_not_change_scores(scorer, rows) -> None:
    some = rows[-30:]
    together = scorer.score(some, 64)
    one_by_one = [
        dataclasses.replace(scorer, token_budget=1).score([request], 64)[0] for request in some
    ]
    backwards = scorer.score(some[::-1], 64)[::-1]
    for a, b, c in zip(together, one_by_one, backwards, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
        np.testing.assert_allclose(a, c, atol=2e-6)


def test_candidates_keep_their_order_and_do_not_change_each_other_through_the_order(
    scorer, rows
) -> None:
    request = next(request for request in rows[-30:] if len(set(request.candidates.tolist())) >= 3)
    flipped = dataclasses.replace(request, candidates=request.candidates[::-1].copy())
    np.testing.assert_allclose(
        scorer.score([flipped])[0][::-1], scorer.score([request])[0], atol=2e-6
    )


def test_events_at_or_after_the_moment_are_not_used(scorer, rows) -> None:
    request = max(rows[-60:], key=lambda request: request.history.num_rows)
    times = np.asarray(request.history.column("timestamp"))
    request_time = int(times[len(times) // 2])  # an event happens at this very moment
    before = request.history.slice(0, int(np.searchsorted(times, request_time, side="left")))
    assert before.num_rows < int(np.searchsorted(times, request_time, side="right"))
    full = dataclasses.replace(request, request_time_ms=request_time)
    cut = dataclasses.replace(full, history=before)
    assert np.array_equal(scorer.score([full])[0], scorer.score([cut])[0])
    late = dataclasses.replace(request, request_time_ms=int(times[-1]) + 1)
    assert not np.array_equal(scorer.score([late], 64)[0], scorer.score([cut], 64)[0])


def test_unknown_users_and_items_and_no_candidates(scorer, rows) -> None:
    request = rows[-1]
    nobody = RequestRows(
        request.history.slice(0, 0),
        None,
        request.request_time_ms,
        np.array([small_histories.FIRST_ID, -1, 999], np.int64),
    )
    bare = dataclasses.replace(nobody, history=pa.RecordBatch.from_pydict({}))
    nothing = dataclasses.replace(request, candidates=np.array([], np.int64))
    scores = scorer.score([nothing, nobody, bare, nothing])
    assert [score.shape for score in scores] == [(0, 2), (3, 2), (3, 2), (0, 2)]
    assert np.isfinite(scores[1]).all() and ((scores[1] > 0) & (scores[1] < 1)).all()
    np.testing.assert_allclose(scores[1], scores[2], atol=2e-6)
    np.testing.assert_allclose(scores[1][1], scores[1][2], atol=2e-6)  # both are the unknown item
    assert scorer.score([]) == [] and scorer.score([nothing])[0].shape == (0, 2)


def test_the_length_changes_scores_but_no_weight(scorer, rows) -> None:
    before = {name: tensor.clone() for name, tensor in scorer.bundle.ranker.state_dict().items()}
    request = max(
        rows, key=lambda request: request.history.num_rows if len(request.candidates) else 0
    )
    request = dataclasses.replace(request, request_time_ms=2**60)
    scores = {length: scorer.score([request], length)[0] for length in (0, 8, 10_000)}
    assert not np.array_equal(scores[0], scores[8]) and not np.array_equal(
        scores[8], scores[10_000]
    )
    np.testing.assert_array_equal(
        scorer.score([request], request.history.num_rows)[0], scores[10_000]
    )
    after = scorer.bundle.ranker.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_inference_mode_does_not_leak_to_the_caller(scorer, encoded) -> None:
    for _ in scorer.score_batches(
        RequestStream.for_evaluation(encoded, encoded.requests("eval"), 8, token_budget=50, max_requests=5)
    ):
        assert not torch.is_inference_mode_enabled()


def test_mistakes_are_named(scorer, bundle_dir, rows) -> None:
    request = max(rows, key=lambda request: request.history.num_rows)
    backwards = dataclasses.replace(
        request, history=request.history.take(pa.array(range(request.history.num_rows - 1, -1, -1)))
    )
    with pytest.raises(DataError, match="time order"):
        scorer.score([backwards])
    with pytest.raises(DataError, match="region"):
        scorer.score([dataclasses.replace(request, user_features={"region": 5})])
    with pytest.raises(ConfigError, match="negative"):
        scorer.score([request], -1)
    schema = small_histories.SCHEMA
    with pytest.raises(SchemaMismatch):
        Scorer.load(
            bundle_dir, schema=Schema(schema.name, schema.item, schema.user, (), schema.tasks)
        )
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU"):
            Scorer.load(bundle_dir, "cuda")


def test_a_missing_user_feature_is_missing(scorer, rows) -> None:
    request = rows[-1]
    empty, none, null = (
        dataclasses.replace(request, user_features=value)
        for value in ({}, None, {"region": None, "user_id": 7})
    )
    scores = [scorer.score([entry])[0] for entry in (empty, none, null)]
    assert np.array_equal(scores[0], scores[1]) and np.array_equal(scores[0], scores[2])


def test_the_bundle_alone_gives_the_same_scores(bundle_dir, scorer, rows, tmp_path) -> None:
    Bundle.load(bundle_dir).save(tmp_path / "copy")
    for a, b in zip(
        Scorer.load(tmp_path / "copy").score(rows[:10]), scorer.score(rows[:10]), strict=True
    ):
        assert np.array_equal(a, b)
