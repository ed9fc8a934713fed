"""A published feature store and a model with random weights, served by `bentoml serve`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from harness import results
from harness.http_load import Address, http_message
from longrec.config import DataConfig, ModelConfig
from longrec.data import features, history
from longrec.data.dataset import Dataset
from longrec.data.encoder import Encoder
from longrec.data.importers.synthetic import synthesize
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import OVERLAY_VARIABLE, publish
from longrec.nn.ranker import Ranker
from longrec.release.bento_server import serve_bento
from longrec.runs.project import find_root
from longrec.scoring.bundle import Bundle
from longrec.serving.arrow_codec import write_request

NUM_USERS = 8
NUM_EVENTS = 33_000
SERVED_LENGTH = 10_000
MODELS = {
    "cpu": ModelConfig(width=64, num_layers=2, num_heads=2),
    "cuda": ModelConfig(width=256, num_layers=4, num_heads=8),
}
JSON_TYPE = "application/json"
ARROW_TYPE = "application/vnd.apache.arrow.stream"
EMPTY_SERVICE = """import bentoml


@bentoml.service(name="empty")
class Empty:
    @bentoml.api
    async def rank(
        self, user_id: int, candidates: list[int], request_time: int = 0, length: int = 0
    ) -> dict:
        return {}
"""
STORE_SCRIPT = """import bentoml, shutil, sys
with bentoml.models.create('longrec-ranker:bench') as model:
    shutil.copytree(sys.argv[1], model.path_of('bundle'))
"""


class ServedModel:
    """A feature store of long histories and a model, in a folder of their own.

    Args:
        folder: for everything.
        redis: address of the online store; empty for SQLite.
        device: cpu or cuda.
        num_items: of the synthetic dataset; with many of them hardly any event repeats.
    """

    def __init__(self, folder: Path, redis: str, device: str, num_items: int) -> None:
        self.folder = folder
        self.device = device
        if redis:
            os.environ |= {OVERLAY_VARIABLE: "redis", "LONGREC_REDIS": redis}
        self._publish(num_items)
        dataset = Dataset.open(folder / "dataset")
        self.items: list[int] = dataset.items().column("item_id").to_pylist()
        stored = self.open_store().fetch(range(4 * NUM_USERS))
        users = sorted(stored, key=lambda user: -user.history.num_rows)
        self.users = [user.user_id for user in users[:NUM_USERS]]
        self.times = [history.timestamps(user.history) for user in users[:NUM_USERS]]
        self.num_distinct = _num_distinct(users[0].history)
        self._save_model(dataset, [user.history for user in users])
        (folder / "empty.py").write_text(EMPTY_SERVICE, encoding="utf-8")

    def open_store(self) -> OnlineStore:
        """Open the online store."""
        return OnlineStore(self.folder / "workdir", find_root() / "feature_repo")

    @contextlib.contextmanager
    def served(self, **variables: str) -> Iterator[Address]:
        """Yield the address of the service, with these environment variables."""
        with serve_bento(
            "bento.service:Ranker",
            workdir=self.folder / "workdir",
            store=self.folder / "store",
            folder=find_root(),
            variables={**variables, "LONGREC_DEVICE": self.device},
        ) as address:
            yield address

    @contextlib.contextmanager
    def served_empty(self) -> Iterator[Address]:
        """Yield the address of a service that does nothing."""
        with serve_bento("empty:Empty", workdir=self.folder, folder=self.folder) as address:
            yield address

    @property
    def machine(self) -> results.Row:
        """Columns of a row about the machine and the products."""
        processor = f"{results.cpu_name()}, {os.cpu_count()} cores"
        if self.device == "cpu":
            return {"device": processor, "dtype": "float32"}
        return {"device": f"{torch.cuda.get_device_name()}, {processor}", "dtype": "bfloat16"}

    def message(
        self,
        number: int,
        length: int,
        num_candidates: int,
        *,
        last: int = NUM_EVENTS,
        timeout_ms: int | None = None,
        form: str = "json",
    ) -> bytes:
        """Return a request as it is sent.

        Args:
            number: chooses the user and the candidates.
            length: events used.
            num_candidates: of the request.
            last: the history ends before this event of the user.
            timeout_ms: deadline; None for the default of the service.
            form: json or arrow.
        """
        user = number % len(self.users)
        times = self.times[user]
        rows = np.random.default_rng(number).integers(0, len(self.items), num_candidates)
        candidates = [self.items[row] for row in rows.tolist()]
        fields = {
            "user_id": self.users[user],
            "request_time": int(times[min(last, len(times) - 1)]),
            "length": length,
        }
        if timeout_ms is not None:
            fields["timeout_ms"] = timeout_ms
        if form == "arrow":
            return http_message("/rank_arrow", ARROW_TYPE, write_request(candidates, fields))
        body = json.dumps({**fields, "candidates": candidates}).encode()
        return http_message("/rank", JSON_TYPE, body)

    def _publish(self, num_items: int) -> None:
        synthesize(
            self.folder / "dataset",
            num_users=NUM_USERS,
            events_per_user=NUM_EVENTS,
            num_items=num_items,
            seed=0,
        )
        tables = self.folder / "features"
        config = DataConfig(max_history=NUM_EVENTS)
        features.build_features(self.folder / "dataset", tables, config)
        publish(tables, self.folder / "workdir", find_root() / "feature_repo")

    def _save_model(self, dataset: Dataset, histories: list[pa.RecordBatch]) -> None:
        """Save a model with random weights to a BentoML store."""
        config = MODELS[self.device]
        encoder = Encoder.fit(dataset.schema, dataset.items(), dataset.users(), histories)
        torch.manual_seed(0)
        item_table = torch.from_numpy(encoder.item_table)
        ranker = Ranker(config, dataset.schema, encoder.sizes, item_table)
        bundle = self.folder / "bundle"
        Bundle(ranker, encoder, config, SERVED_LENGTH, {}).save(bundle)
        environment = {
            **os.environ,
            "BENTOML_HOME": str(self.folder / "store"),
            "BENTOML_DO_NOT_TRACK": "True",
        }
        command = [sys.executable, "-c", STORE_SCRIPT, str(bundle)]
        subprocess.run(command, env=environment, check=True)


def _num_distinct(events: pa.RecordBatch) -> int:
    """Return how many of the last 10,000 events differ in item and action."""
    last = events.slice(max(0, events.num_rows - SERVED_LENGTH))
    columns = [last.column(name).to_pylist() for name in ("item_id", "action")]
    return len(set(zip(*columns, strict=True)))
