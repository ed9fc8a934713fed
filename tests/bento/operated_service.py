"""A service in operation: its work directory, its store of three models, and its callers."""

from __future__ import annotations

import collections
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import torch

from longrec.release import model_store
from longrec.scoring.bundle import Bundle
from tests.bento.requests_and_scores import LATE_MS
from tests.conftest import VERSION, ServedWorld

TOKEN = "a-token-that-is-long-enough"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
BODY = {"user_id": 1, "candidates": list(range(12)), "request_time": LATE_MS}


class OperatedService:
    """A service with the trained model, a changed one ("better") and one to damage ("damaged").

    The fixture sets `url` once the service runs.
    """

    def __init__(self, served: ServedWorld, path: Path) -> None:
        self.workdir = path / "home"
        self.store = path / "bentoml"
        self.url = ""
        no_models = shutil.ignore_patterns("models")
        shutil.copytree(
            served.workdir,
            self.workdir,
            symlinks=True,
            ignore=no_models,
        )
        shutil.copytree(served.store, self.store)
        models = self.store / "models" / model_store.MODEL_NAME
        for version in ("better", "damaged"):
            shutil.copytree(models / VERSION, models / version)
        changed = Bundle.load(models / VERSION / "bundle")
        with torch.no_grad():
            for parameter in changed.ranker.parameters():
                parameter.mul_(1.2)
        changed.save(models / "better" / "bundle")

    def run_models(self, command: str, *arguments: object) -> None:
        """Run a command of `longrec models`."""
        program = [sys.executable, "-m", "longrec.cli.main", "models", command]
        options = ["--why", "test", "--workdir", str(self.workdir)]
        done = subprocess.run(
            [*program, *map(str, arguments), *options],
            env={**os.environ, "BENTOML_HOME": str(self.store)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    def rank(self, **body: object) -> dict:
        """Return the answer of POST /rank, with the token."""
        response = httpx.post(
            f"{self.url}/rank",
            json={**BODY, **body},
            headers=AUTHORIZED,
            timeout=90,
        )
        assert response.status_code == 200, response.text
        return response.json()

    def metrics(self) -> str:
        """Return the text of GET /metrics."""
        return httpx.get(f"{self.url}/metrics").text


def eventually(holds: Callable[[], bool], seconds: float = 180.0) -> None:
    """Wait until a condition holds."""
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, "it does not happen"
        time.sleep(0.2)


class Caller(threading.Thread):
    """Sends requests without a pause; counts statuses, and scores by version."""

    def __init__(self, url: str, is_over: threading.Event) -> None:
        super().__init__()
        self._url = url
        self._is_over = is_over
        self.statuses: collections.Counter[int | str] = collections.Counter()
        self.scores: dict[str, set[str]] = collections.defaultdict(set)
        self.versions: list[str] = []

    def run(self) -> None:
        with httpx.Client(base_url=self._url, headers=AUTHORIZED, timeout=90) as client:
            while not self._is_over.is_set():
                self._send(client)

    def _send(self, client: httpx.Client) -> None:
        try:
            response = client.post("/rank", json=BODY)
        except httpx.HTTPError as error:
            self.statuses[repr(error)] += 1
            return
        self.statuses[response.status_code] += 1
        if response.status_code != 200:
            return
        answer = response.json()
        version = answer["model_version"]
        scores = [round(score, 4) for score in answer["scores"]["label"]]
        self.scores[version].add(json.dumps(scores))
        if self.versions[-1:] != [version]:
            self.versions.append(version)
