"""Encode the histories of a training once, into a folder that a restarted training finds again."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from longrec.data import files
from longrec.data.columns import Int64, int64_column
from longrec.data.encoder import Encoder
from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.errors import ConfigError, DataError
from longrec.schema import ITEM_ID

ENCODER_NAME = "encoder"
HISTORIES_NAME = "histories"
SOURCE_NAME = "source.json"
"""File with the sizes and times of the encoded files, and the digest of the result."""


def encode(
    histories: Histories,
    directory: Path,
    id_min_count: int = 0,
) -> tuple[Encoder, EncodedHistories]:
    """Fit the encoder to the training window and encode the histories into `directory`.

    A former result is reused if it is complete and was made from the same files in the same way.

    Args:
        histories: made by `store.retrieve`.
        directory: folder of the result.
        id_min_count: as in `TrainConfig`.
    """
    source = {"files": _source_files(histories), "id_min_count": id_min_count}
    # A missing or damaged file of a former result is a DataError: encode again.
    with contextlib.suppress(DataError):
        encoder, encoded = _open(histories, directory)
        former = files.read_json(directory / SOURCE_NAME)
        if former == {**source, "digest": encoded.digest()}:
            return encoder, encoded
    shutil.rmtree(directory, ignore_errors=True)
    encoder = fit_encoder(histories, id_min_count)
    encoder.save(directory / ENCODER_NAME)
    encoded = EncodedHistories.encode(
        histories,
        encoder,
        directory / HISTORIES_NAME,
    )
    files.write_json(directory / SOURCE_NAME, {**source, "digest": encoded.digest()})
    return encoder, encoded


def open_encoded(histories: Histories, directory: Path) -> tuple[Encoder, EncodedHistories]:
    """Open the result of another process's `encode`.

    Raises:
        ConfigError: this process cannot see the folder.
    """
    if not directory.is_dir():
        raise ConfigError(
            f"this process cannot see the folder {directory}",
            expected="one output folder that all machines see",
            fix="Put the output on a volume that all of them mount.",
        )
    return _open(histories, directory)


def digest_of(directory: Path) -> str:
    """Return the digest of the encoded histories in a folder."""
    source = files.read_json(directory / SOURCE_NAME)
    return str(source["digest"])


def fit_encoder(histories: Histories, id_min_count: int = 0) -> Encoder:
    """Fit the encoder to the events of the training window and to the training targets.

    Args:
        histories: made by `store.retrieve`.
        id_min_count: as in `TrainConfig`.
    """
    return Encoder.fit(
        histories.schema,
        histories.items,
        histories.users,
        histories.training_events(),
        [_training_targets(histories)],
        id_min_count,
    )


def _open(histories: Histories, directory: Path) -> tuple[Encoder, EncodedHistories]:
    encoder = Encoder.load(directory / ENCODER_NAME, histories.schema)
    encoded = EncodedHistories.open(directory / HISTORIES_NAME)
    return encoder, encoded


def _source_files(histories: Histories) -> dict[str, Any]:
    """Return [size, time of change in ns] of each file of the histories."""
    folder = histories.path.resolve()
    source_files = {}
    for path in sorted(folder.iterdir()):
        status = path.stat()
        source_files[str(path)] = [status.st_size, status.st_mtime_ns]
    return source_files


def _training_targets(histories: Histories) -> Int64:
    """Return the item ids of the targets of training requests."""
    requests = histories.requests
    item_ids = int64_column(histories.targets, ITEM_ID)
    is_training = np.asarray(pc.equal(requests.column("split"), "train"))
    starts = int64_column(requests, "target_start")[is_training]
    ends = int64_column(requests, "target_end")[is_training]
    # +1 where a request's targets start and -1 where they end: inside them, the sum is positive
    changes = np.zeros(len(item_ids) + 1, np.int64)
    np.add.at(changes, starts, 1)
    np.add.at(changes, ends, -1)
    num_owners = np.cumsum(changes)[:-1]
    return item_ids[num_owners > 0]
