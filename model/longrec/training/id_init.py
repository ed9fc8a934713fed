"""Initial id embeddings from the histories: items that occur together start close together.

Each history of the training window is cut into documents of consecutive events. Latent semantic
analysis of the documents (tf-idf, truncated SVD) gives every id a vector. Attention then finds the
related events of a target from the first step on. Ids that no training history contains keep their
random values.

Source: latent semantic analysis (Deerwester et al. 1990, equation 1), of items for words.

Shape letters: E events of the training window, I rows of one id feature, C width of one embedding.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longrec.data.columns import Int64
from longrec.data.encoder import Encoder
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.nn.layers import FeatureEmbedding
from longrec.nn.ranker import Ranker
from longrec.training.distributed import DistributedContext

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Float32: TypeAlias = npt.NDArray[np.float32]

TABLE_NAME = "initial_ids.npy"
"""File with the initial table of rank zero."""
DOCUMENT_EVENTS = 64
"""Consecutive events of a user that count as occurring together."""
MAX_EVENTS = 5_000_000
"""Most recent events of the training window that are read."""
RARE_DOCUMENTS = 5
"""Documents of an id whose vector is half as long as that of a frequent id."""
log = logging.getLogger(__name__)


def initialize_on_all_ranks(
    ranker: Ranker,
    encoder: Encoder,
    encoded: EncodedHistories,
    *,
    seed: int,
    directory: Path,
    context: DistributedContext,
) -> None:
    """Replace the initial embeddings of item ids by those of rank zero, on every rank.

    The decomposition amplifies rounding, so each rank's own would differ.

    Args:
        ranker, encoder, encoded, seed: as in `initialize_ids`.
        directory: a folder that all ranks see.
        context: the processes that train together.
    """
    path = directory / TABLE_NAME

    def learn() -> None:
        initialize_ids(ranker, encoder, encoded, seed=seed)
        if context.num_ranks > 1:
            np.save(path, _table(ranker).cpu().numpy(), allow_pickle=False)

    def load() -> None:
        values = torch.from_numpy(np.load(path, allow_pickle=False))
        _table(ranker).copy_(values)

    context.rank_zero_first(learn, load)


def initialize_ids(
    ranker: Ranker,
    encoder: Encoder,
    encoded: EncodedHistories,
    *,
    seed: int,
) -> None:
    """Replace the initial embeddings of the item ids that occur in training histories.

    Values of a frequent id have the standard deviation `model.id_std`, those of a rare id less.

    Args:
        ranker: new ranker.
        encoder: encoder of the histories.
        encoded: histories; only what the training requests see is read.
        seed: of the decomposition.
    """
    started = time.perf_counter()
    events, documents = _documents(encoded)
    for column, start in _id_blocks(ranker.items):
        ids = encoder.item_table[encoded.event_items[events], column].astype(np.int64)
        vectors = _vectors(ids, documents, ranker.config.id_dim, seed)
        if vectors is None:
            continue
        used, values = vectors
        _write_rows(ranker, used + start, values)
    log.info("id embeddings from the histories in %.1f s", time.perf_counter() - started)


def _id_blocks(items: FeatureEmbedding) -> list[tuple[int, int]]:
    """Return the column and the first row of the table of each id feature."""
    columns: list[int] = items.id_columns.tolist()
    starts: list[int] = items.id_starts.tolist()
    return list(zip(columns, starts, strict=True))


def _documents(encoded: EncodedHistories) -> tuple[Int64, Int64]:
    """Return the events of the training window and the document of each, int64 [E]."""
    requests = encoded.requests("train")
    # A user's timeline starts in one place; requests see more of it as time goes on.
    users = encoded.request_users[requests]
    order = np.argsort(users, kind="stable")
    _, first = np.unique(users[order], return_index=True)
    starts = np.minimum.reduceat(encoded.event_starts[requests][order], first)
    ends = np.maximum.reduceat(encoded.event_ends[requests][order], first)
    lengths = ends - starts
    offsets = np.cumsum(lengths) - lengths
    position = np.arange(lengths.sum()) - np.repeat(offsets, lengths)
    num_documents = -(-lengths // DOCUMENT_EVENTS)
    first_document = np.cumsum(num_documents) - num_documents
    documents = np.repeat(first_document, lengths) + position // DOCUMENT_EVENTS
    events = np.repeat(starts, lengths) + position
    if len(events) > MAX_EVENTS:
        log.info("ids start from the newest %d of %d events", MAX_EVENTS, len(events))
        newest = np.argsort(encoded.event_timestamps[events], kind="stable")[-MAX_EVENTS:]
        events, documents = events[newest], documents[newest]
    return events, documents


def _vectors(ids: Int64, documents: Int64, width: int, seed: int) -> tuple[Int64, Float32] | None:
    """Return the ids that occur and their vectors; None for too few of them.

    The values of a frequent id have deviation 1, those of a rare id less.

    Args:
        ids: int64 [E], id of each event; 0 is the missing value.
        documents: int64 [E], document of each event.
        width: C.
        seed: of the decomposition.
    """
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.utils.extmath import randomized_svd

    is_known = ids > 0
    used, columns = np.unique(ids[is_known], return_inverse=True)
    counts = _counts(documents[is_known], columns)
    rank = min(width, min(counts.shape) - 1)
    if rank < 1:
        return None
    weights = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    _, strengths, directions = randomized_svd(weights, rank, random_state=seed % 2**32)
    vectors = directions.T * strengths
    vectors -= vectors.mean(axis=0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions_of_ids = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    rotated = directions_of_ids @ _rotation(rank, width, seed) * np.sqrt(width)
    num_documents = counts.getnnz(axis=0)[:, None]
    trusted = num_documents / (num_documents + RARE_DOCUMENTS)
    return used, (rotated * trusted).astype(np.float32)


def _counts(documents: Int64, columns: Int64) -> csr_matrix:
    """Return how often each column occurs in each document."""
    from scipy.sparse import coo_matrix

    _, rows = np.unique(documents, return_inverse=True)
    ones = np.ones(len(columns), np.float32)
    shape = (rows.max(initial=-1) + 1, columns.max(initial=-1) + 1)
    return coo_matrix((ones, (rows, columns)), shape=shape).tocsr()


def _rotation(rank: int, width: int, seed: int) -> npt.NDArray[Any]:
    """Return orthonormal rows [rank, C] that spread a vector over all values of an embedding."""
    draws = np.random.default_rng(seed).normal(size=(width, rank))
    orthonormal, _ = np.linalg.qr(draws)
    return np.asarray(orthonormal.T)


def _table(ranker: Ranker) -> Tensor:
    """Return the values of the table of item ids, which may be written."""
    assert ranker.items.ids is not None
    return ranker.items.ids.weight.detach()


def _write_rows(ranker: Ranker, rows: Int64, values: Float32) -> None:
    table = _table(ranker)
    scaled = torch.from_numpy(values * np.float32(ranker.config.id_std))
    table[torch.from_numpy(rows).to(table.device)] = scaled.to(table)
