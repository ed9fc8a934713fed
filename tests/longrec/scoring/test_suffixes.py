"""All served lengths from one encoding have the scores of separate evaluations."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from longrec.config import EvaluateConfig, ModelConfig
from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.evaluation.length_curve import score_lengths
from longrec.evaluation.sample import EvaluationSample, draw_sample, score_sample
from longrec.nn.ranker import Ranker
from longrec.scoring import suffixes
from longrec.scoring.bundle import Bundle
from longrec.scoring.scorer import Scorer
from longrec.training.encoded_cache import fit_encoder
from longrec.training.loop import make_ranker
from tests.longrec import small_histories

MODEL = ModelConfig(
    width=16,
    num_layers=2,
    num_heads=2,
    id_dim=8,
    feature_dim=4,
    mixer_layers=1,
    id_std=1.0,
)
LENGTHS = (0, 1, 3, 20, 40, 500, 1_000)
TOLERANCE = 2e-6


@dataclasses.dataclass(frozen=True)
class Data:
    histories: Histories
    encoded: EncodedHistories
    sample: EvaluationSample


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("small")
    histories = Histories.open(small_histories.write(folder / "histories"))
    encoded = EncodedHistories.encode(histories, fit_encoder(histories), folder / "encoded")
    return Data(histories, encoded, draw_sample(encoded, EvaluateConfig(), 0))


def make_scorer(data: Data, **changes: Any) -> Scorer:
    """Return the scorer of an untrained ranker whose attention prefers some gaps."""
    model = dataclasses.replace(MODEL, **changes)
    encoder = fit_encoder(data.histories)
    ranker = make_ranker(model, encoder, 0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in ranker.named_parameters():
            if "gap_bias" in name:
                parameter.normal_(generator=generator)
    bundle = Bundle(ranker, encoder, model, 64, {})
    return Scorer(bundle, torch.device("cpu"), token_budget=300, max_requests=16)


@pytest.mark.parametrize(
    "changes",
    [
        {"recency": "bias"},
        {"recency": "none", "ffn": "residual"},
        {"recency": "bias", "matches": True},
        {"recency": "token"},
        {"kind": "din"},
    ],
)
def test_scores_equal_those_of_separate_evaluations(data: Data, changes: dict[str, Any]) -> None:
    scorer = make_scorer(data, **changes)
    entries = list(score_lengths(scorer, data.encoded, data.sample, LENGTHS))
    assert [entry.length for entry in entries] == sorted(LENGTHS)
    for entry in entries:
        alone = score_sample(scorer, data.encoded, data.sample, entry.length)
        np.testing.assert_allclose(entry.scores, alone, rtol=0, atol=TOLERANCE)
    assert [entry.same_as for entry in entries[-2:]] == [None, 500]
    assert np.abs(entries[0].scores - entries[-1].scores).max() > 1e-3


def test_each_event_is_encoded_once(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make_scorer(data)
    encoded_events = []
    scored_requests = []
    encode = Ranker.encode
    score_suffix = suffixes._score_suffix

    def count_events(self: Ranker, batch: Any) -> Any:
        encoded_events.append(batch.num_events)
        return encode(self, batch)

    def count_requests(*arguments: Any) -> Any:
        scored_requests.append(len(arguments[3]))
        return score_suffix(*arguments)

    monkeypatch.setattr(Ranker, "encode", count_events)
    monkeypatch.setattr(suffixes, "_score_suffix", count_requests)
    list(score_lengths(scorer, data.encoded, data.sample, (10, 30, 500)))
    events = data.sample.request_lengths
    assert sum(encoded_events) == events.sum()
    # only requests that a length changes are scored again
    assert sum(scored_requests) == len(events) + (events > 10).sum() + (events > 30).sum()
