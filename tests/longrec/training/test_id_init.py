"""Initial id embeddings from the histories: close for items that occur together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from longrec.config import ModelConfig
from longrec.data.histories import Histories
from longrec.nn.ranker import Ranker
from longrec.training import encoded_cache, loop
from longrec.training.encoded_cache import EncodedHistories
from longrec.training.id_init import _documents, initialize_ids, initialize_on_all_ranks
from tests.longrec.small_histories import ITEMS_PER_TOPIC, NUM_TOPICS

MODEL = ModelConfig(width=16, num_heads=2, id_dim=8, id_std=0.5)


@pytest.fixture(scope="module")
def encoded(
    histories_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[encoded_cache.Encoder, EncodedHistories]:
    folder = tmp_path_factory.mktemp("encoded")
    return encoded_cache.encode(Histories.open(histories_dir), folder)


def initial(encoded: tuple[encoded_cache.Encoder, EncodedHistories]) -> tuple[Ranker, Ranker]:
    """Return a ranker with random ids and the same one with ids from the histories."""
    encoder, histories = encoded
    random = loop.make_ranker(MODEL, encoder, 1)
    learned = loop.make_ranker(MODEL, encoder, 1)
    initialize_ids(learned, encoder, histories, seed=1)
    return random, learned


@dataclasses.dataclass(frozen=True)
class OneOfTwo:
    """One of two processes that run one after the other."""

    rank: int
    num_ranks: int = 2

    def rank_zero_first(self, first: Callable[[], None], then: Callable[[], None]) -> None:
        (first if self.rank == 0 else then)()


def test_all_ranks_start_with_the_table_of_rank_zero(
    encoded: tuple[encoded_cache.Encoder, EncodedHistories], tmp_path: Path
) -> None:
    encoder, histories = encoded
    tables = []
    for rank in (0, 1):
        ranker = loop.make_ranker(MODEL, encoder, 1)
        initialize_on_all_ranks(
            ranker,
            encoder,
            histories,
            seed=1 + rank,  # a table of its own would differ
            directory=tmp_path,
            context=OneOfTwo(rank),  # type: ignore[arg-type]
        )
        tables.append(table(ranker))
    assert np.array_equal(*tables)


def table(ranker: Ranker) -> np.ndarray:
    assert ranker.items.ids is not None
    return ranker.items.ids.weight.detach().numpy()


def test_items_of_one_topic_start_close_together(
    encoded: tuple[encoded_cache.Encoder, EncodedHistories],
) -> None:
    encoder, _ = encoded
    _, learned = initial(encoded)
    ids = encoder.item_table[1:, 0]
    vectors = table(learned)[ids]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    topics = encoder.item_table[1:, 1]
    is_pair = topics[:, None] == topics[None, :]
    np.fill_diagonal(is_pair, False)
    np.fill_diagonal(cosines, np.nan)
    assert len(topics) == NUM_TOPICS * ITEMS_PER_TOPIC
    assert np.nanmean(cosines[is_pair]) > np.nanmean(cosines[~is_pair]) + 0.2


def test_a_frequent_id_has_the_deviation_of_a_random_one_and_a_rare_id_less(
    encoded: tuple[encoded_cache.Encoder, EncodedHistories],
) -> None:
    encoder, _ = encoded
    _, learned = initial(encoded)
    deviations = table(learned)[np.unique(encoder.item_table[1:, 0])].std(axis=1)
    # No id of this small log occurs in many more than RARE_DOCUMENTS documents.
    assert (deviations < 1.05 * MODEL.id_std).all()
    assert deviations.mean() > 0.5 * MODEL.id_std


def test_ids_that_no_training_history_contains_keep_their_random_values(
    encoded: tuple[encoded_cache.Encoder, EncodedHistories],
) -> None:
    random, learned = initial(encoded)
    assert np.array_equal(table(random)[0], table(learned)[0])


def test_later_events_are_not_read(
    encoded: tuple[encoded_cache.Encoder, EncodedHistories],
) -> None:
    encoder, histories = encoded
    _, learned = initial(encoded)
    is_later = np.ones(len(histories.event_items), bool)
    for request in histories.requests("train"):
        is_later[histories.event_starts[request] : histories.event_ends[request]] = False
    assert is_later.any()
    changed = histories.event_items.copy()
    changed[is_later] = 1
    other = loop.make_ranker(MODEL, encoder, 1)
    initialize_ids(other, encoder, dataclasses.replace(histories, event_items=changed), seed=1)
    assert np.array_equal(table(other), table(learned))


def test_users_whose_ids_differ_in_the_last_bit_have_documents_of_their_own(
    encoded: tuple[encoded_cache.Encoder, EncodedHistories],
) -> None:
    _, histories = encoded
    _, ranks = np.unique(histories.request_users, return_inverse=True)
    expected = _documents(dataclasses.replace(histories, request_users=ranks))
    # Neighbours above 2^53 are equal as doubles.
    large = dataclasses.replace(histories, request_users=2**62 + ranks)
    for ours, theirs in zip(_documents(large), expected, strict=True):
        assert np.array_equal(ours, theirs)


def test_without_any_event_all_ids_keep_their_random_values(
    encoded: tuple[encoded_cache.Encoder, EncodedHistories],
) -> None:
    encoder, histories = encoded
    empty = dataclasses.replace(histories, event_ends=histories.event_starts)
    ranker = loop.make_ranker(MODEL, encoder, 1)
    before = table(ranker).copy()
    initialize_ids(ranker, encoder, empty, seed=1)
    assert np.array_equal(table(ranker), before)
